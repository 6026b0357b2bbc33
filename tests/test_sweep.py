import pytest

from launch.lab.sweep import Case, Crossing, Outcome, Table, run_cases


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


def test_a_crossing_is_interpolated_on_the_logarithm_or_said_to_be_beyond() -> None:
    assert Crossing.of([1.0, 2.0, 3.0], [0.01, 0.1, 10.0], limit=1.0).x == pytest.approx(2.5)
    assert str(Crossing.of([1.0, 2.0], [0.01, 0.1], limit=1.0)) == "over 2"
    assert str(Crossing.of([1.0, 2.0], [2.0, 3.0], limit=1.0)) == "under 1"


def test_ratios_of_crossings_say_what_is_known_of_them() -> None:
    inside, over, under = Crossing(2.0), Crossing(6.0, "over "), Crossing(1.0, "under ")
    assert inside.over(Crossing(1.0)) == "2x"
    assert over.over(inside) == "over 3x"
    assert inside.over(over) == "under 0.333x"
    assert inside.over(under) == "over 2x"
    assert over.over(under) == "-"


def test_cases_run_on_all_cores_and_keep_their_order() -> None:
    cases = [Case(policy="fcfs", rate=5.0, jobs=5, workload="alpaca", seed=seed) for seed in range(3)]
    outcomes = run_cases(cases, "test")
    assert [found.case for found in outcomes] == cases
    assert [found.figures for found in outcomes] == [case.run() for case in cases]


def test_a_case_can_have_less_memory_than_its_machine_or_any() -> None:
    half, unlimited = (Case(policy="fcfs", rate=1.0, device_share=share).hardware() for share in (0.5, 0.0))
    assert half.device_bytes == 5e9
    assert unlimited.device_bytes > 1e18
