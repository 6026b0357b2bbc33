"""The embedded model, unpacked and computed by us, against transformers' own reading of the same file."""

import pytest
import torch
from fakes_attention import DenseAttention
from reference import greedy, logits, reference_model

from common.model_files import locate
from common.spec_reader import read_spec
from common.topology import partition
from worker.models.load import load_stage
from worker.models.stage_model import StageModel

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

# "The capital of France is Paris. The capital of Germany is" and, after it, ordinary ids from all over the vocabulary.
IDS = [504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 4521, 314, 1, 4093, 198, 28120, 49151, 0, 2, 12345]


@pytest.fixture(scope="module")
def stages() -> list[StageModel]:
    files = locate(None)
    spec = read_spec(files)
    options = {"device": torch.device("cpu"), "dtype": torch.float32, "progress": lambda done, total: None}
    return [load_stage(files, spec, stage, **options) for stage in partition(spec, 2)]


@torch.inference_mode()
def test_logits_are_those_of_transformers(stages: list[StageModel]) -> None:
    x, positions = torch.tensor(IDS), torch.arange(len(IDS))
    for stage in stages:
        x = stage.forward(x, positions, DenseAttention())
    torch.testing.assert_close(stages[-1].logits(x), logits(reference_model(), IDS), atol=1e-3, rtol=0)


@torch.inference_mode()
def test_greedy_tokens_are_those_of_transformers(stages: list[StageModel]) -> None:
    attentions = [DenseAttention() for _ in stages]
    tokens: list[int] = []
    x, start = torch.tensor(IDS[:12]), 0
    for _ in range(24):
        positions = torch.arange(start, start + len(x))
        start += len(x)
        for stage, attention in zip(stages, attentions, strict=True):
            x = stage.forward(x, positions, attention)
        x = stages[-1].logits(x[-1:]).argmax(-1)
        tokens.append(int(x))
    assert tokens == greedy(reference_model(), IDS[:12], 24)
