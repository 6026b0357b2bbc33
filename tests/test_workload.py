import numpy as np
import pytest

from common.config import ConfigError
from launch.lab.workload import ALPACA, SHAREGPT, Lengths, arrivals, make_requests, parse_lengths, read_requests

MANY = 100_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("lengths", "prompt", "output"), [(SHAREGPT, 161, 250), (ALPACA, 19.3, 46)])
def test_the_datasets_have_the_means_that_their_comment_says(lengths: Lengths, prompt: float, output: float) -> None:
    prompts, outputs = lengths.draw(rng(), MANY)
    assert prompts.mean() == pytest.approx(prompt, rel=0.03)
    assert outputs.mean() == pytest.approx(output, rel=0.03)


@pytest.mark.parametrize(
    "name", ["sharegpt", "alpaca", "mix", "zipf", "zipf:0.5", "uniform:3-9", "ratio:16", "ratio:256"]
)
def test_every_length_is_at_least_one_and_the_same_for_the_same_seed(name: str) -> None:
    prompts, outputs = parse_lengths(name).draw(rng(), 1000)
    assert len(prompts) == len(outputs) == 1000
    assert prompts.min() >= 1
    assert outputs.min() >= 1
    again = parse_lengths(name).draw(rng(), 1000)
    assert (again[0] == prompts).all()
    assert (again[1] == outputs).all()


def test_prompts_and_outputs_fit_the_context_together() -> None:
    prompts, outputs = SHAREGPT.draw(rng(), MANY)
    assert (prompts + outputs).max() <= 2048


def test_uniform_lengths_reach_both_bounds() -> None:
    prompts, outputs = parse_lengths("uniform:3-5").draw(rng(), 1000)
    assert set(prompts) == set(outputs) == {3, 4, 5}


def test_a_larger_exponent_makes_lengths_more_skewed() -> None:
    flat, skewed = (parse_lengths(f"zipf:{exponent}").draw(rng(), MANY)[1] for exponent in (0.2, 1.5))
    assert np.median(skewed) < np.median(flat) / 10


@pytest.mark.parametrize("ratio", [0.25, 4, 64])
def test_prompts_are_so_many_times_as_long_as_outputs(ratio: float) -> None:
    prompts, outputs = parse_lengths(f"ratio:{ratio}").draw(rng(), MANY)
    assert prompts.mean() / outputs.mean() == pytest.approx(ratio, rel=0.06)


@pytest.mark.parametrize("name", ["sharegpt2", "zipf:x", "zipf:-1", "uniform:5-3", "uniform:0-3", "ratio", "mix:2"])
def test_a_workload_that_is_none_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        parse_lengths(name)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness_that_were_asked_for(cv: float) -> None:
    times = arrivals(rng(), MANY, rate=5.0, cv=cv)
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-9)


def test_the_same_seed_gives_the_same_requests_and_another_does_not() -> None:
    assert make_requests("sharegpt", 50, 2.0, seed=3) == make_requests("sharegpt", 50, 2.0, seed=3)
    assert make_requests("sharegpt", 50, 2.0, seed=3) != make_requests("sharegpt", 50, 2.0, seed=4)


def test_the_azure_trace_keeps_its_order_and_gets_the_rate() -> None:
    requests = make_requests("azure", 500, rate=4.0)
    times = [request.arrival_s for request in requests]
    assert times == sorted(times)
    assert times[0] == 0
    assert 499 / times[-1] == pytest.approx(4.0)
    assert [(r.prompt_tokens, r.output_tokens) for r in requests[:2]] == [(374, 44), (396, 109)]


def test_a_trace_keeps_its_own_times_unless_a_rate_is_given(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trace.csv"
    path.write_text("arrival,prompt,output\n5,10,20\n6,11,21\n9,12,22\n")
    assert [request.arrival_s for request in read_requests(str(path))] == [0, 1, 4]
    assert [request.arrival_s for request in read_requests(str(path), 2, rate=4.0)] == [0, 0.25]
