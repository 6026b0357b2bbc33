"""When to look for a result: every look takes time from those who compute."""

from collections.abc import Iterator

from common.channel import BUSY_PAUSE_S
from gateway.scheduling.scheduler import Expected

_SURE_SHARE = 0.9  # of the time that an iteration should take at least: not looked at earlier
SHORTEST_S = 2e-4  # between two looks
_LATE_SHARE = 0.01  # of the time that one has taken: how late its result may be noticed
_CALM_SHARE = 0.03  # the same where the stage has the next plan already, and loses nothing
_SLOWING = 1.02  # at most, from one iteration to the next


class Pace:
    """How long iterations take over what the profile says, by the quickest of late that were about as large.

    The profile may be of a busier hour, or of an idler one, and wrong by more for a prompt than for a few tokens. Who
    believed it, and slept too long, would make it true.
    """

    def __init__(self) -> None:
        self._ratios: dict[int, float] = {}  # by the logarithm of the tokens

    def sure_s(self, expected: Expected) -> float:
        """How long the iteration takes at least; 0 where none of its size is known: look at once."""
        return expected.seconds * self._ratios.get(_size(expected), 0.0) * _SURE_SHARE

    def pauses(self, elapsed_s: float, *, calm: bool = False) -> Iterator[float]:
        """Between looks for a result that may be there at any time, `elapsed_s` after its iteration began.

        calm: another plan is in flight, so nobody but clients waits for the result.
        """
        share, shortest_s = (_CALM_SHARE, BUSY_PAUSE_S) if calm else (_LATE_SHARE, SHORTEST_S)
        while True:
            pause_s = max(shortest_s, elapsed_s * share)
            yield pause_s
            elapsed_s += pause_s

    def took(self, expected: Expected, seconds: float) -> None:
        """The result was noticed after `seconds`."""
        size, ratio = _size(expected), seconds / expected.seconds
        self._ratios[size] = min(ratio, self._ratios.get(size, ratio) * _SLOWING)


def _size(expected: Expected) -> int:
    return expected.tokens.bit_length()
