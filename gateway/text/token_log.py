"""Which tokens an output's text is made of, with what the model said about them; held back as long as their text is.

Knows no stop strings: who cuts the text says how much of it is certain.
"""

import codecs
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from common.records import Logprobs


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A token and its log probability, in the model's own distribution."""

    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Said:
    """One token of an output."""

    token: int
    piece: bytes  # perhaps only a part of a character
    offset: int  # characters of the text before it; before the character that it is in the middle of
    drawn: Likelihood | None = None  # None: no logprobs were asked for
    top: tuple[Likelihood, ...] = ()  # of the most likely tokens, best first


class TokenLog:
    """Filled token by token, emptied as text becomes certain."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._offset = 0
        self._held: deque[Said] = deque()

    def add(self, token: int, text: str, logprobs: Logprobs | None) -> None:
        """`text` is what the detokenizer gave for `token`: nothing, in the middle of a character."""
        piece = self._bytes_of(token)
        offset = self._offset + _ends_others(text, piece)
        if logprobs is None:
            said = Said(token, piece, offset)
        else:
            top = tuple(Likelihood(self._bytes_of(other), logprob) for other, logprob in logprobs.top)
            said = Said(token, piece, offset, Likelihood(piece, logprobs.drawn), top)
        self._held.append(said)
        self._offset += len(text)

    def take(self, certain: int) -> list[Said]:
        """The tokens that begin within the first `certain` characters, unless they were taken before."""
        taken = []
        while self._held and self._held[0].offset < certain:
            taken.append(self._held.popleft())
        return taken

    def rest(self) -> list[Said]:
        """All that is left, when nothing of the text was cut off."""
        rest = list(self._held)
        self._held.clear()
        return rest


def _ends_others(text: str, piece: bytes) -> int:
    """The characters of a token's text that are those before it, whose character it broke off."""
    own, _ = codecs.utf_8_decode(piece, "replace", False)
    return len(text) - len(own) if len(own) < len(text) and text.endswith(own) else 0
