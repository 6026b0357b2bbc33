import pytest

from launch.lab.sweep import Case, Outcome, Table, crossing, run_cases


def outcome(rate: float, seed: int, value: float) -> Outcome:
    return Outcome(Case(policy="fcfs", rate=rate, seed=seed), {"x": value})


def test_a_table_gives_means_and_deviations_over_seeds() -> None:
    found = Table([outcome(1.0, 0, 3.0), outcome(1.0, 1, 5.0), outcome(2.0, 0, 9.0)])
    assert found.over_seeds("x", rate=1.0) == (4.0, 1.0)
    assert found.mean("x", rate=2.0, policy="fcfs") == 9.0
    assert found.all_of("rate", policy="fcfs") == [1.0, 2.0]


def test_figures_that_nobody_measured_are_not_made_up() -> None:
    with pytest.raises(AssertionError, match="srpt"):
        Table([outcome(1.0, 0, 3.0)]).mean("x", policy="srpt")


def test_a_crossing_is_interpolated_on_the_logarithm() -> None:
    assert crossing([1.0, 2.0, 3.0], [0.01, 0.1, 10.0], limit=1.0) == pytest.approx(2.5)
    assert crossing([1.0, 2.0], [0.01, 0.1], limit=1.0) is None
    assert crossing([1.0, 2.0], [2.0, 3.0], limit=1.0) is None


def test_cases_run_on_all_cores_and_keep_their_order() -> None:
    cases = [Case(policy="fcfs", rate=5.0, jobs=5, workload="alpaca", seed=seed) for seed in range(3)]
    outcomes = run_cases(cases, "test")
    assert [found.case for found in outcomes] == cases
    assert [found.figures for found in outcomes] == [case.run() for case in cases]


def test_a_case_can_have_less_memory_than_its_machine_or_any() -> None:
    half, unlimited = (Case(policy="fcfs", rate=1.0, device_share=share).hardware() for share in (0.5, 0.0))
    assert half.device_bytes == 5e9
    assert unlimited.device_bytes > 1e18
