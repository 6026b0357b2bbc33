"""When a result is due, and how often to look for it: every look takes time from those who compute."""

from common.channel import BUSY_PAUSE_S

_SURE_SHARE = 0.9  # of the time that an iteration should take: not looked at earlier
_LATE_SHARE = 0.02  # of it: how late a result may be noticed
_SLOWING = 1.05  # at most, from one iteration to the next


class Pace:
    """How long iterations take over what the profile says, by the quickest of late.

    The profile may be of a busier hour, or of an idler one. Who believed it, and slept too long, would make it true.
    """

    def __init__(self) -> None:
        self._ratio = 0.0  # not known: look at once

    def first_look_s(self, expected_s: float) -> float:
        """Seconds after it was sent at which a plan of `expected_s` may be done."""
        return expected_s * self._ratio * _SURE_SHARE

    def pause_s(self, expected_s: float) -> float:
        """Seconds between looks for its result."""
        return max(BUSY_PAUSE_S, expected_s * self._ratio * _LATE_SHARE)

    def took(self, expected_s: float, seconds: float) -> None:
        """An iteration of `expected_s` was noticed to be done after `seconds`."""
        ratio = seconds / expected_s
        self._ratio = min(ratio, self._ratio * _SLOWING) if self._ratio else ratio
