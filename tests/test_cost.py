import pytest

from gateway.scheduling.cost import LinearCost, Profile


def test_a_profile_interpolates_between_its_points_and_continues_beyond_them() -> None:
    profile = Profile(prefill=[(10, 1.0), (20, 2.0), (40, 6.0)], decode=[(1, 0.5)])
    assert [profile.prefill_s(n) for n in (1, 10, 15, 30, 50)] == pytest.approx([1.0, 1.0, 1.5, 4.0, 8.0])


def test_a_profile_of_one_point_is_constant() -> None:
    assert Profile(prefill=[(1, 1.0)], decode=[(1, 0.5)]).decode_s(16) == 0.5


def test_noise_never_makes_a_longer_prompt_cheaper_than_the_shortest() -> None:
    assert Profile(prefill=[(10, 1.0), (20, 0.9)], decode=[(1, 0.5)]).prefill_s(1000) == 1.0


def test_contexts_other_than_the_profiled_one_cost_their_difference() -> None:
    profile = Profile([(10, 1.0), (20, 2.0)], [(1, 0.5), (4, 0.8)], decode_context=100, context_s=0.001)
    assert profile.iteration_s(0, 4, 400) == pytest.approx(0.8)
    assert profile.iteration_s(0, 4, 600) == pytest.approx(1.0)
    assert profile.iteration_s(0, 1, 50) == pytest.approx(0.45)


def test_decoding_jobs_beside_a_prompt_cost_their_tokens_and_their_contexts() -> None:
    profile = Profile([(10, 1.0), (20, 2.0)], [(1, 0.5)], decode_context=100, context_s=0.001)
    assert profile.iteration_s(12, 3, 300) == pytest.approx(1.5 + 0.3)


def test_a_roofline_reads_weights_or_computes_whichever_takes_longer() -> None:
    cost = LinearCost(decode=0.03, prefill_per_token=0.001)
    assert cost.iteration_s(10, 5, 1000) == 0.03
    assert cost.iteration_s(100, 5, 1000) == pytest.approx(0.105)
