"""One JSON value, followed through text that comes in pieces: where does it end, and is it one? Builds nothing.

A stack of what is still open takes the place of recursion, so that no depth of nesting can hurt.
"""

import re
from typing import Literal

Verdict = Literal["open", "complete", "broken"]

_SPACE = frozenset(" \t\r\n")
_IN_STRING = re.compile(r'[^"\\\x00-\x1f]*')
_IN_LITERAL = re.compile(r"[-+.0-9A-Za-z]*")
_LITERAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null", re.ASCII)
_ESCAPED = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")
_CLOSER = {"{": "}", "[": "]"}


class JsonValue:
    """Begins before the value, white space allowed, and ends with its last character.

    A number or word that is the whole value ends with the first character that is none of it.
    """

    def __init__(self) -> None:
        self.verdict: Verdict = "open"
        self._open: list[str] = []  # what closes the objects and arrays that are open
        self._expects = "value"  # also: value or end, key, key or end, colon, comma or end, string, escape, literal
        self._is_key = False  # the string that is being read
        self._hex_digits = 0  # that an escape still needs
        self._literal: list[str] = []

    def scan(self, text: str, start: int) -> int:
        """The index of the first character from `start` on that does not belong to the value; sets the verdict."""
        at = start
        while at < len(text) and self.verdict == "open":
            if self._expects == "string":
                at = self._string(text, at)
            elif self._expects == "literal":
                at = self._number_or_word(text, at)
            elif self._take(text[at]):
                at += 1
        return at

    def _string(self, text: str, at: int) -> int:
        end = _end_of_match(_IN_STRING, text, at)
        if end == len(text):
            return end
        if text[end] == '"':
            self._value_ends(expects="colon" if self._is_key else None)
        elif text[end] == "\\":
            self._expects = "escape"
        else:
            self.verdict = "broken"
            return end
        return end + 1

    def _number_or_word(self, text: str, at: int) -> int:
        end = _end_of_match(_IN_LITERAL, text, at)
        self._literal.append(text[at:end])
        if end < len(text):
            if _LITERAL.fullmatch("".join(self._literal)):
                self._literal.clear()
                self._value_ends()
            else:
                self.verdict = "broken"
        return end

    def _take(self, character: str) -> bool:
        """Step over `character`, unless it breaks the value, or begins a number or word."""
        expects = self._expects
        if expects == "escape":
            return self._escape(character)
        if character in _SPACE:
            return True
        if expects.endswith("or end") and character == self._open[-1]:
            self._open.pop()
            self._value_ends()
        elif expects == "comma or end" and character == ",":
            self._expects = "key" if self._open[-1] == "}" else "value"
        elif expects == "colon" and character == ":":
            self._expects = "value"
        elif expects.startswith("key") and character == '"':
            self._expects, self._is_key = "string", True
        elif expects.startswith("value"):
            return self._begin_value(character)
        else:
            self.verdict = "broken"
        return self.verdict != "broken"

    def _begin_value(self, character: str) -> bool:
        if character == '"':
            self._expects, self._is_key = "string", False
        elif character in _CLOSER:
            self._open.append(_CLOSER[character])
            self._expects = "key or end" if character == "{" else "value or end"
        else:
            self._expects = "literal"
        return self._expects != "literal"

    def _escape(self, character: str) -> bool:
        if self._hex_digits:
            good = character in _HEX
            self._hex_digits -= 1
        else:
            good = character in _ESCAPED
            self._hex_digits = 4 if character == "u" else 0
        if not self._hex_digits:
            self._expects = "string"
        if not good:
            self.verdict = "broken"
        return good

    def _value_ends(self, expects: str | None = None) -> None:
        """Of a key, which `expects` a colon; or of a value within another; or of the whole."""
        self._expects = expects or "comma or end"
        if expects is None and not self._open:
            self.verdict = "complete"


def _end_of_match(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Of a pattern that matches everywhere, if only nothing."""
    match = pattern.match(text, at)
    assert match is not None, pattern
    return match.end()
