"""When the gateway looks for results."""

import pytest

from gateway.pace import SHORTEST_S, Pace
from gateway.scheduling.scheduler import Expected

JOBS = Expected(tokens=16, seconds=0.1)
PROMPT = Expected(tokens=512, seconds=2.0)


def drive(pace: Pace, real_s: float, iterations: int, expected: Expected = JOBS) -> float:
    """Results are noticed at the first look after they are there; how late the last one was."""
    for _ in range(iterations):
        seen_s = pace.sure_s(expected)
        pauses = pace.pauses(seen_s)
        while seen_s < real_s:
            seen_s += next(pauses)
        pace.took(expected, seen_s)
    return seen_s - real_s


def looks(pace: Pace, real_s: float, *, calm: bool = False) -> int:
    seen_s = pace.sure_s(JOBS)
    pauses = pace.pauses(seen_s, calm=calm)
    for count in range(10_000):
        if seen_s >= real_s:
            return count
        seen_s += next(pauses)
    raise AssertionError("it never looked late enough")


@pytest.mark.parametrize("real_s", [0.02, 0.1, 0.5])
def test_a_profile_that_is_wrong_makes_nobody_late_and_nobody_look_often(real_s: float) -> None:
    pace = Pace()
    assert drive(pace, real_s, 1) <= max(SHORTEST_S, 0.01 * real_s)  # nothing is known, so it looks often
    assert drive(pace, real_s, 50) <= max(SHORTEST_S, 0.01 * real_s)
    assert looks(pace, real_s) <= 20


def test_iterations_that_become_quicker_are_soon_noticed_in_time() -> None:
    pace = Pace()
    drive(pace, 0.5, 50)
    assert drive(pace, 0.1, 20) <= 0.01 * 0.1


def test_prompts_among_the_jobs_delay_no_iteration_without_them() -> None:
    pace = Pace()
    drive(pace, 0.1, 10)
    drive(pace, 1.0, 4)
    assert drive(pace, 0.1, 1) <= 0.01 * 0.1


def test_a_profile_that_is_too_slow_for_prompts_only_makes_no_prompt_late() -> None:
    pace = Pace()
    for _ in range(10):
        drive(pace, 0.12, 20)
        assert drive(pace, 1.0, 1, PROMPT) <= 0.01


def test_a_long_iteration_is_looked_for_a_few_times_only() -> None:
    pace = Pace()
    drive(pace, 0.1, 10)
    assert looks(pace, 1.0) < 260  # from 0.09 s on, at 1 % each


def test_nobody_looks_often_while_the_stage_has_more_to_do() -> None:
    pace = Pace()
    drive(pace, 0.1, 10)
    assert looks(pace, 0.1, calm=True) < looks(pace, 0.1) / 2


def test_a_plan_may_go_ahead_shortly_before_the_quickest_of_late_were_done() -> None:
    pace = Pace()
    assert pace.sure_s(JOBS) == 0.0
    drive(pace, 0.2, 10)
    assert pace.sure_s(JOBS) == pytest.approx(0.18, rel=0.02)
