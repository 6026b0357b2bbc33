from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import ConfigError
from common.model_spec import ModelSpec
from common.topology import Stage, partition, role

SMOLLM2: dict[str, Any] = {
    "family": "llama",
    "architecture": "llama",
    "num_layers": 30,
    "hidden_size": 576,
    "num_heads": 9,
    "num_kv_heads": 3,
    "head_dim": 64,
    "ffn_size": 1536,
    "vocab_size": 49152,
    "context_length": 8192,
    "dtype": "bf16",
    "activation": "silu",
    "norm_eps": 1e-5,
    "tied_embeddings": True,
    "eos_token_ids": (2,),
    "bos_token_id": 1,
}


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec(**SMOLLM2 | changes)


def counts(stages: list[Stage]) -> list[int]:
    return [len(stage.layers) for stage in stages]


def test_rank_0_is_the_gateway_then_come_the_stages_then_spares() -> None:
    assert [role(rank, 5, 2) for rank in range(5)] == ["gateway", "worker", "worker", "spare", "spare"]


def test_a_world_that_is_too_small_says_how_large_it_must_be() -> None:
    with pytest.raises(ConfigError, match=r"has 2 ranks, but --pipeline-parallel 2 needs 3: .* start it with -n 3"):
        role(0, 2, 2)
    with pytest.raises(ConfigError, match=r"has 1 rank, but --pipeline-parallel 1 needs 2: one gateway and 1 stage;"):
        role(0, 1, 1)


def test_one_stage_has_all_layers_and_is_first_and_last() -> None:
    (stage,) = partition(spec(), 1)
    assert stage.layers == range(30)
    assert stage.is_first
    assert stage.is_last


def test_the_last_stage_has_fewer_layers_because_it_has_the_head() -> None:
    assert spec().vocab_size * 576 / spec().layer_parameters() == pytest.approx(8, abs=0.1)
    assert counts(partition(spec(), 2)) == [17, 13]


def test_without_a_large_head_the_layers_are_divided_evenly() -> None:
    assert counts(partition(spec(vocab_size=100), 3)) == [10, 10, 10]


def test_a_stage_knows_its_place() -> None:
    first, middle, last = partition(spec(), 3)
    assert (first.is_first, middle.is_first, last.is_first) == (True, False, False)
    assert (first.is_last, middle.is_last, last.is_last) == (False, False, True)
    assert [stage.num_stages for stage in (first, middle, last)] == [3, 3, 3]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="--pipeline-parallel 31 is more than the model's 30 layers"):
        partition(spec(), 31)


@given(layers=st.integers(1, 100), vocab=st.integers(1, 300_000), data=st.data())
def test_every_layer_is_in_exactly_one_stage_in_order_and_no_stage_is_empty(
    layers: int, vocab: int, data: st.DataObject
) -> None:
    num_stages = data.draw(st.integers(1, layers))
    stages = partition(spec(num_layers=layers, vocab_size=vocab), num_stages)
    assert [layer for stage in stages for layer in stage.layers] == list(range(layers))
    assert all(counts(stages))
    assert [stage.index for stage in stages] == list(range(num_stages))


@given(layers=st.integers(1, 12), vocab=st.integers(1, 300_000), data=st.data())
def test_no_other_split_has_a_lighter_heaviest_stage(layers: int, vocab: int, data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, layers))
    facts = spec(num_layers=layers, vocab_size=vocab)
    head = vocab * facts.hidden_size / facts.layer_parameters()

    def heaviest(last: int) -> float:  # with the other layers spread as evenly as they go
        others = -(-(layers - last) // (num_stages - 1)) if num_stages > 1 else 0
        return max(others, last + head)

    possible = range(1, layers - num_stages + 2) if num_stages > 1 else [layers]
    assert heaviest(counts(partition(facts, num_stages))[-1]) <= min(map(heaviest, possible)) + 1
