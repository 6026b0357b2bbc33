"""Reads the output of one job into its parts, as it comes."""

from collections.abc import Generator
from dataclasses import dataclass, field

from gateway.text.output.formats import ToolFormat
from gateway.text.output.output_grammar import Thoughts
from gateway.text.output.parts import Content, Part
from gateway.text.output.reasoning import CLOSE, OPEN, think
from gateway.text.output.source import Enough, Source


@dataclass(frozen=True, slots=True)
class OutputForm:
    """What may be in an output, beside plain text."""

    tool_format: ToolFormat | None = None
    names: frozenset[str] = field(default_factory=frozenset)  # of the functions that were offered
    one_call: bool = False  # the first call ends the output
    reasons: bool = False  # it may begin with reasoning
    reasoning_opened: bool = False  # the prompt ends within reasoning

    @property
    def thoughts(self) -> Thoughts:
        """What grammars of the output have to allow before all else."""
        if self.reasoning_opened:
            return "opened"
        return "possible" if self.reasons else "none"

    @property
    def marks(self) -> frozenset[str]:
        """What has to be seen in the text, even where it is a special token."""
        thoughts = frozenset({OPEN, CLOSE}) if self.reasons else frozenset[str]()
        return thoughts if self.tool_format is None else thoughts | self.tool_format.marks

    @property
    def is_plain(self) -> bool:
        return self.tool_format is None and not self.reasons


PLAIN = OutputForm()


class OutputParser:
    """The reader of one output. However its text is cut into pieces, the parts are the same when joined."""

    def __init__(self, form: OutputForm) -> None:
        self.complete = False  # the output is all that it should be: nothing more is read
        self._is_plain = form.is_plain
        self._source = Source(one_call=form.one_call)
        self._reading = _read(self._source, form)

    @property
    def num_calls(self) -> int:
        return self._source.num_calls

    @property
    def in_reasoning(self) -> bool:
        return self._source.in_reasoning

    def push(self, text: str) -> list[Part]:
        """The parts that are certain by now."""
        if self._is_plain:
            return [Content(text)] if text else []
        self._source.feed(text)
        return self._resume()

    def flush(self) -> list[Part]:
        """What was held back, at the end."""
        self._source.end()
        return self._resume()

    def _resume(self) -> list[Part]:
        if not self.complete:
            try:
                next(self._reading, None)
            except Enough:
                self.complete = True
        return self._source.take()


def _read(source: Source, form: OutputForm) -> Generator[None, None, None]:
    if form.reasons:
        yield from think(source, opened=form.reasoning_opened)
    if form.tool_format is not None:
        yield from form.tool_format.read(source, form.names)
    yield from source.content()
    source.close()
