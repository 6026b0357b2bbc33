import pytest

from gateway.scheduling.cost import Profile


def test_a_profile_interpolates_between_its_points_and_continues_beyond_them() -> None:
    profile = Profile(prefill=[(10, 1.0), (20, 2.0), (40, 6.0)], decode=[(1, 0.5)])
    assert [profile.prefill_s(n) for n in (1, 10, 15, 30, 50)] == pytest.approx([1.0, 1.0, 1.5, 4.0, 8.0])


def test_a_profile_of_one_point_is_constant() -> None:
    assert Profile(prefill=[(1, 1.0)], decode=[(1, 0.5)]).decode_s(16) == 0.5


def test_noise_never_makes_a_longer_prompt_cheaper_than_the_shortest() -> None:
    assert Profile(prefill=[(10, 1.0), (20, 0.9)], decode=[(1, 0.5)]).prefill_s(1000) == 1.0
