"""When to look for a result: every look takes time from those who compute."""

from collections.abc import Iterator

from common.channel import BUSY_PAUSE_S

_SURE_SHARE = 0.9  # of the time that an iteration should take at least: not looked at earlier
SHORTEST_S = 2e-4  # between two looks
_LATE_SHARE = 0.01  # of the time that one has taken: how late its result may be noticed
_CALM_SHARE = 0.03  # the same where the stage has the next plan already, and loses nothing
_SLOWING = 1.02  # at most, from one iteration to the next


class Pace:
    """How long iterations take over what the profile says, by the quickest of late.

    The profile may be of a busier hour, or of an idler one. Who believed it, and slept too long, would make it true.
    """

    def __init__(self) -> None:
        self._ratio = 0.0  # not known: look at once

    def sure_s(self, expected_s: float) -> float:
        """How long an iteration takes at least that should take `expected_s` at least; 0 while nothing is known."""
        return expected_s * self._ratio * _SURE_SHARE

    def pauses(self, elapsed_s: float, *, calm: bool = False) -> Iterator[float]:
        """Between looks for a result that may be there at any time, `elapsed_s` after its iteration began.

        calm: another plan is in flight, so nobody but clients waits for the result.
        """
        share, shortest_s = (_CALM_SHARE, BUSY_PAUSE_S) if calm else (_LATE_SHARE, SHORTEST_S)
        while True:
            pause_s = max(shortest_s, elapsed_s * share)
            yield pause_s
            elapsed_s += pause_s

    def took(self, expected_s: float, seconds: float) -> None:
        """The result was noticed after `seconds`."""
        ratio = seconds / expected_s
        self._ratio = min(ratio, self._ratio * _SLOWING) if self._ratio else ratio
