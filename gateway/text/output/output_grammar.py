"""Grammars of whole outputs, with thoughts and tool calls, in Lark's notation as llguidance reads it. Compiles nothing.

The marks of a format are single tokens in some vocabularies, and ordinary text in others.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from gateway.text.output.reasoning import CLOSE, OPEN

MAX_CALLS = 16  # in one output that has to call: a small model would never end by itself

# Written as json.dumps does: without a choice, a small model cannot go on with blanks for ever.
_AS_DUMPED = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
_TERMINALS = (r"TEXT: /(.|\n)*/", r"SPACE: /[ \t\r\n]{0,8}/")
_START = {"none": "", "possible": "thoughts?", "opened": "end_of_thoughts"}

TokenOf = Callable[[str], int | None]  # the token that a mark is, if it is one
Thoughts = Literal["none", "possible", "opened"]


@dataclass(frozen=True, slots=True)
class Notation:
    """How a format writes calls, around their names and arguments."""

    opening: str  # before all calls
    before_name: str
    before_arguments: str
    after_arguments: str
    between: str  # two calls
    closing: str  # after all calls
    trigger: str = ""  # the mark that tells a call, or a list of them, from text; empty where there is none

    def after_trigger(self) -> Self:
        """What is still to be written when the text has the trigger."""
        if self.opening:
            return replace(self, opening=self.opening.removeprefix(self.trigger))
        return replace(self, before_name=self.before_name.removeprefix(self.trigger))


@dataclass(frozen=True, slots=True)
class CallableFunction:
    name: str
    schema: Mapping[str, Any]  # of its arguments


class OutputGrammar:
    """Writes grammars for one format in one vocabulary."""

    def __init__(self, notation: Notation, marks: frozenset[str], token_of: TokenOf) -> None:
        self._notation = notation
        self._tokens = {mark: token for mark in marks | {OPEN, CLOSE} if (token := token_of(mark)) is not None}
        self.has_trigger = bool(notation.trigger)
        self._marks = re.compile("|".join(map(re.escape, self._tokens)) or r"(?!)")

    def calls(self, functions: Sequence[CallableFunction], thoughts: Thoughts, *, one_call: bool) -> str:
        """Calls and nothing else."""
        return self._grammar(thoughts, "calls", self._calls(functions, one_call=one_call))

    def content_or_calls(self, functions: Sequence[CallableFunction], thoughts: Thoughts, *, one_call: bool) -> str:
        """Calls, or else what another grammar, `@content`, says. Only for notations with a trigger."""
        assert self.has_trigger, self._notation
        return self._grammar(thoughts, "(calls | @content)", self._calls(functions, one_call=one_call))

    def content(self, thoughts: Thoughts) -> str:
        """What another grammar, `@content`, says."""
        return self._grammar(thoughts, "@content", [])

    def text_with_calls(self, functions: Sequence[CallableFunction], thoughts: Thoughts) -> str:
        """Any text, in which calls are as they should be. Only for notations with a trigger."""
        assert self.has_trigger, self._notation
        notation = self._notation
        rules = ["section: trigger calls", self._until("trigger", notation.trigger)]
        after = notation.after_trigger()
        # Where the trigger opens a list of calls, that is one section; where each call has it, each is one.
        rules += self._calls(functions, one_call=not notation.opening, notation=after)
        return self._grammar(thoughts, "section* TEXT", rules)

    # ------------------------------------------------------------------------------------------ rules

    def _grammar(self, thoughts: Thoughts, answer: str, rules: Iterable[str]) -> str:
        return "\n".join([f"start: {_START[thoughts]} {answer}", *_TERMINALS, *self._thoughts(thoughts), *rules])

    def _thoughts(self, thoughts: Thoughts) -> Iterator[str]:
        if thoughts != "none":
            yield f"thoughts: {self._literal(OPEN)} end_of_thoughts"
            yield "end_of_thoughts: last_thought SPACE"
            yield self._until("last_thought", CLOSE)

    def _calls(
        self, functions: Sequence[CallableFunction], *, one_call: bool, notation: Notation | None = None
    ) -> Iterator[str]:
        notation = notation or self._notation
        more = "" if one_call else f"({self._literal(notation.between)} call){{0,{MAX_CALLS - 1}}}"
        yield f"calls: {self._literal(notation.opening)} call {more} {self._literal(notation.closing)}"
        yield "call: " + " | ".join(f"call_{i}" for i in range(len(functions)))
        for i, function in enumerate(functions):
            before = self._literal(notation.before_name + function.name + notation.before_arguments)
            yield f"call_{i}: {before} arguments_{i} {self._literal(notation.after_arguments)}"
            yield f"arguments_{i}: %json {json.dumps({**function.schema, 'x-guidance': _AS_DUMPED})}"

    def _until(self, rule: str, mark: str) -> str:
        """Any text to the end of the first `mark`."""
        if mark in self._tokens:
            return f"{rule}: TEXT {self._literal(mark)}"
        return f"{rule}[lazy]: TEXT {self._literal(mark)}"

    def _literal(self, text: str) -> str:
        """`text`, with its marks as tokens where they are."""
        pieces: list[str] = []
        at = 0
        for mark in self._marks.finditer(text):
            pieces += [_quoted(text[at : mark.start()]), f"<[{self._tokens[mark[0]]}]>"]
            at = mark.end()
        return " ".join(filter(None, [*pieces, _quoted(text[at:])]))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""
