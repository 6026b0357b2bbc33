"""Stop strings in a stream of text: find them across pieces, and hold back only what may become one."""

from collections.abc import Sequence


class StopStrings:
    """The stop strings of one request, prepared once for all of its choices."""

    def __init__(self, strings: Sequence[str], *, included: bool = False) -> None:
        """`strings` are not empty. included: the text ends after the stop string, not before it."""
        self.included = included
        self.patterns = [(string, _failures(string)) for string in strings]

    def matcher(self) -> "StopMatcher":
        return StopMatcher(self)


class StopMatcher:
    """Watches one text. Takes time linear in the text, however it is cut into pieces (Knuth, Morris, Pratt).

    The first stop string to be complete counts; of several that end at the same character, the longest.
    """

    def __init__(self, stops: StopStrings) -> None:
        self._patterns = stops.patterns
        self._included = stops.included
        self._matched = [0] * len(self._patterns)  # per pattern: characters of it that the text ends with
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is certain by now: before a stop string, or no part of one. Nothing after `stopped`."""
        if self.stopped or not self._patterns:
            return "" if self.stopped else piece
        text = self._held + piece
        for end, character in enumerate(piece, start=len(self._held) + 1):
            longest = self._step(character)
            if longest:
                self.stopped, self._held = True, ""
                return text[: end if self._included else end - longest]
        certain = len(text) - max(self._matched)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> int:
        """Advance every pattern by one character; the length of the longest that is complete now, or 0."""
        longest = 0
        for i, (pattern, failures) in enumerate(self._patterns):
            matched = self._matched[i]
            while matched and pattern[matched] != character:
                matched = failures[matched - 1]
            matched += pattern[matched] == character
            self._matched[i] = matched
            if matched == len(pattern):
                longest = max(longest, matched)
        return longest


def _failures(pattern: str) -> list[int]:
    """Per prefix of `pattern`: the length of its longest proper end that `pattern` also begins with."""
    failures = [0] * len(pattern)
    matched = 0
    for i in range(1, len(pattern)):
        while matched and pattern[i] != pattern[matched]:
            matched = failures[matched - 1]
        matched += pattern[i] == pattern[matched]
        failures[i] = matched
    return failures
