import pytest

from gateway.scheduling.levels import Levels


def test_each_quantum_is_twice_the_one_above() -> None:
    assert Levels(4, 0.03, 2.0).quanta == pytest.approx([0.03, 0.06, 0.12, 0.24])


def test_a_job_joins_the_highest_level_whose_quantum_covers_its_prefill() -> None:
    levels = Levels(4, 1.0, 2.0)
    assert [levels.covering(seconds) for seconds in (0.5, 1.0, 1.1, 4.0, 4.1, 99.0)] == [0, 0, 1, 2, 3, 3]


def test_demotion_goes_to_the_next_level_or_past_those_that_do_not_cover_an_iteration() -> None:
    levels = Levels(5, 1.0, 2.0)
    assert levels.below(0, 1.0) == 1
    assert levels.below(0, 5.0) == 3
    assert levels.below(4, 1.0) == 4


def test_work_ahead_sums_the_quanta_that_others_use_until_they_stand_behind() -> None:
    levels = Levels(4, 1.0, 2.0)
    # Two jobs at level 0, one at level 1, three at level 2. Until level 2 the two use 1 + 2 each and the one uses 2;
    # until level 3 the two use 1 + 2 + 4, the one 2 + 4, the three 4 each.
    assert levels.work_ahead_s([0, 2, 3, 6]) == [0, 2, 2 * 3 + 2, 2 * 7 + 6 + 3 * 4]
