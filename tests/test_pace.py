"""When the gateway looks for results."""

import pytest

from common.channel import BUSY_PAUSE_S
from gateway.pace import Pace


def drive(pace: Pace, expected_s: float, real_s: float, iterations: int) -> float:
    """Results are noticed at the first look after they are there; how late the last one was."""
    for _ in range(iterations):
        seen_s = pace.first_look_s(expected_s)
        while seen_s < real_s:
            seen_s += pace.pause_s(expected_s)
        pace.took(expected_s, seen_s)
    return seen_s - real_s


def test_the_first_result_is_looked_for_at_once() -> None:
    assert Pace().first_look_s(100.0) == 0.0
    assert Pace().pause_s(100.0) == BUSY_PAUSE_S


@pytest.mark.parametrize("real_s", [0.02, 0.1, 0.5])
def test_a_profile_that_is_wrong_makes_nobody_late(real_s: float) -> None:
    pace = Pace()
    assert drive(pace, 0.1, real_s, 50) <= 0.03 * real_s + BUSY_PAUSE_S
    assert pace.first_look_s(0.1) == pytest.approx(0.9 * real_s, rel=0.1)


def test_iterations_that_become_quicker_are_soon_noticed_in_time() -> None:
    pace = Pace()
    drive(pace, 0.1, 0.5, 50)
    assert drive(pace, 0.1, 0.1, 20) <= 0.03 * 0.1 + BUSY_PAUSE_S


def test_a_single_long_one_delays_nobody() -> None:
    pace = Pace()
    drive(pace, 0.1, 0.1, 10)
    pace.took(0.1, 5.0)
    assert pace.first_look_s(0.1) < 0.1
