import pytest

from launch.lab.samples import Sample, by_length, summary


def sample(output: int, jct_s: float, ttft_s: float = 0.5) -> Sample:
    return Sample(prompt_tokens=3, output_tokens=output, ttft_s=ttft_s, jct_s=jct_s, longest_gap_s=jct_s / 10)


def test_normalized_latency_is_jct_per_token_and_tpot_leaves_the_first_out() -> None:
    one = sample(output=5, jct_s=2.5)
    assert one.norm_s == 0.5
    assert one.tpot_s == 0.5
    assert sample(output=1, jct_s=0.5).tpot_s == 0


def test_a_summary_has_means_and_percentiles() -> None:
    numbers = summary([sample(output=10, jct_s=float(i)) for i in range(1, 102)])
    assert numbers["mean_jct_s"] == pytest.approx(51)
    assert numbers["p50_jct_s"] == pytest.approx(51)
    assert numbers["p95_jct_s"] == pytest.approx(96)
    assert numbers["p99_norm_s"] == pytest.approx(10.0)
    assert numbers["mean_ttft_s"] == pytest.approx(0.5)
    assert numbers["p95_gap_s"] == pytest.approx(9.6)


def test_samples_are_sorted_into_classes_of_output_length() -> None:
    classes = by_length([sample(output, 1.0) for output in (600, 32, 33, 1)])
    assert {name: len(group) for name, group in classes.items()} == {
        "up to 32 tokens": 2,
        "up to 128 tokens": 1,
        "over 512 tokens": 1,
    }
