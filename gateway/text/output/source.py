"""Text that arrives in pieces, for a grammar that reads it from the top to the end, and the parts that come out.

A grammar is a generator over a `Source`: `yield from` pauses it until there is more text. It reads like a program that
has the whole text, yet takes each character once, and keeps back no more than a marker's length of what is certain.
Knows no format.
"""

from collections.abc import Callable, Generator

from gateway.text.output.json_value import JsonValue
from gateway.text.output.parts import CallArguments, CallStart, Content, Part, Reasoning

_SPACE = " \t\r\n"  # JSON's

Text = type[Content] | type[Reasoning]


class Malformed(Exception):
    """The text is not what the grammar expects here."""


class Enough(Exception):
    """The output is complete, whatever follows."""


class Source:
    """Unread text, text that was read but is no part yet, and parts."""

    def __init__(self, *, one_call: bool = False) -> None:
        """one_call: Enough is raised after the first."""
        self.num_calls = 0
        self.in_reasoning = False
        self._one_call = one_call
        self._unread = ""
        self._at = 0  # in `_unread`
        self._ended = False
        self._held: list[str] = []  # read since the last part; content, unless it turns out to be markup
        self._space: list[str] = []  # white space that is dropped where it turns out to be a margin
        self._in_section = False  # a section's first and last white space is its margin
        self._margin_counts = True  # before the first section of an output: it may be plain text, and that is exact
        self._parts: list[Part] = []

    # ------------------------------------------------------------------------------------------ for who feeds it

    def feed(self, text: str) -> None:
        self._unread = self._unread[self._at :] + text
        self._at = 0

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    def take(self) -> list[Part]:
        """The parts that are certain by now; each is given once."""
        parts, self._parts = self._parts, []
        return parts

    # ------------------------------------------------------------------------------------------ reading

    def more(self) -> Generator[None, None, bool]:
        """Wait until there is unread text. False at the end."""
        while self._at == len(self._unread):
            if self._ended:
                return False
            yield
        return True

    def skip_space(self) -> Generator[None, None, None]:
        while (yield from self.more()) and self._unread[self._at] in _SPACE:
            self._read(self._at + 1)

    def peek(self) -> Generator[None, None, str]:
        """Read white space; the character that comes then, unread, or nothing at the end."""
        yield from self.skip_space()
        return self._unread[self._at] if (yield from self.more()) else ""

    def skip(self, marker: str) -> Generator[None, None, bool]:
        """Read white space, and `marker` if it comes next."""
        yield from self.skip_space()
        while len(self._unread) - self._at < len(marker) and not self._ended:
            if not marker.startswith(self._unread[self._at :]):
                return False
            yield
        found = self._unread.startswith(marker, self._at)
        if found:
            self._read(self._at + len(marker))
        return found

    def expect(self, *markers: str) -> Generator[None, None, str]:
        """Read white space, and the one of `markers` that comes next. Raises Malformed when none does."""
        for marker in markers:
            if (yield from self.skip(marker)):
                return marker
        raise Malformed

    def word(self, characters: frozenset[str], most: int) -> Generator[None, None, str]:
        """Read `characters`, as long as they come and at most so many."""
        word: list[str] = []
        while len(word) < most and (yield from self.more()) and self._unread[self._at] in characters:
            word.append(self._read(self._at + 1))
        return "".join(word)

    def value(self) -> Generator[None, None, str]:
        """Read white space, and a JSON value as it is written. Raises Malformed."""
        pieces: list[str] = []
        yield from self.skip_space()
        yield from self._follow_value(lambda end: pieces.append(self._read(end)))
        return "".join(pieces)

    # ------------------------------------------------------------------------------------------ what it becomes

    def content_until(self, marker: str) -> Generator[None, None, bool]:
        """All text before `marker` is content; read that as well. False at the end, without one."""
        return (yield from self._text_until(marker, Content))

    def reasoning_until(self, marker: str) -> Generator[None, None, bool]:
        """All text before `marker` is reasoning; read that as well. False at the end, without one."""
        self.in_reasoning = True
        found = yield from self._text_until(marker, Reasoning)
        self.in_reasoning = False
        return found

    def content(self) -> Generator[None, None, None]:
        """All the rest is content."""
        self.give_back()
        while (yield from self.more()):
            self._text(self._advance(len(self._unread)), Content)

    def give_back(self) -> None:
        """What was read is no markup: it is content."""
        if self._held:
            held = "".join(self._held)
            self._held.clear()
            self._text(held, Content)

    def drop(self) -> None:
        """What was read is markup: it becomes nothing, and another section begins."""
        self._held.clear()
        self._space.clear()
        self._in_section = self._margin_counts = False

    def begin_call(self, name: str) -> None:
        """What was read begins a call. Raises Enough where there was to be one only."""
        if self._one_call and self.num_calls:
            raise Enough
        self.drop()
        self._parts.append(CallStart(self.num_calls, name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """The arguments of the call that has begun, read before."""
        self._parts.append(CallArguments(self.num_calls - 1, text))

    def coming_arguments(self) -> Generator[None, None, None]:
        """The JSON value that comes now is the arguments, piece by piece. Raises Malformed where it breaks."""
        yield from self._follow_value(lambda end: self.arguments(self._advance(end)))

    def end_call(self) -> None:
        """The call is complete. Raises Enough where there was to be one only."""
        self.drop()
        if self._one_call:
            raise Enough

    def close(self) -> None:
        """At the end: what is left of unfinished markup is content."""
        self.give_back()
        if self._space and self._margin_counts:
            self._parts.append(Content("".join(self._space)))
            self._space.clear()

    # ------------------------------------------------------------------------------------------ private

    def _advance(self, end: int) -> str:
        text = self._unread[self._at : end]
        self._at = end
        return text

    def _read(self, end: int) -> str:
        text = self._advance(end)
        self._held.append(text)
        return text

    def _follow_value(self, take: Callable[[int], object]) -> Generator[None, None, None]:
        """Call `take` with the end of each piece of the JSON value. Raises Malformed."""
        value = JsonValue()
        while value.verdict == "open" and (yield from self.more()):
            end = value.scan(self._unread, self._at)
            if end > self._at:
                take(end)
        if value.verdict != "complete":
            raise Malformed

    def _text_until(self, marker: str, kind: Text) -> Generator[None, None, bool]:
        self.give_back()
        while (yield from self.more()):
            found = self._unread.find(marker, self._at)
            end = found if found >= 0 else len(self._unread) - self._begun(marker)
            self._text(self._advance(end), kind)
            if found >= 0:
                self._read(found + len(marker))
                return True
            if self._at < len(self._unread):
                if self._ended:
                    self._text(self._advance(len(self._unread)), kind)
                else:
                    yield
        return False

    def _begun(self, marker: str) -> int:
        """How many characters at the end of the unread text may be the beginning of `marker`."""
        start = max(self._at, len(self._unread) - len(marker) + 1)
        while (start := self._unread.find(marker[0], start)) >= 0:
            if marker.startswith(self._unread[start:]):
                return len(self._unread) - start
            start += 1
        return 0

    def _text(self, text: str, kind: Text) -> None:
        if not text:
            return
        if not self._in_section:
            body = text.lstrip()
            if self._margin_counts:
                self._space.append(text[: len(text) - len(body)])
            if not body:
                return
            self._in_section, text = True, body
        body = text.rstrip() if kind is Reasoning else text
        if body:
            self._parts.append(kind("".join(self._space) + body))
            self._space.clear()
        if len(body) < len(text):
            self._space.append(text[len(body) :])
