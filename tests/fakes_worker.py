"""What worker tests share: a small random model, its dense twin, plans for jobs, devices to test on."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from fakes_attention import DenseAttention
from torch import Tensor

from common.config import Config
from common.model_spec import ModelSpec
from common.records import Entry, Sampling, pack_blocks
from common.topology import Stage
from worker.device import Placement
from worker.kv_cache import KvCache
from worker.loop import Model
from worker.models.stage_model import Attention
from worker.models.stored_matrix import GROUP4, GROUP8, StoredMatrix

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
BLOCK_TOKENS = 4
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]

SPEC = ModelSpec(
    family="llama",
    architecture="fake",
    num_layers=3,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=32,
    vocab_size=97,
    context_length=256,
    dtype="fp32",
    activation="silu",
    norm_eps=1e-5,
    tied_embeddings=False,
    eos_token_ids=(0,),
    bos_token_id=None,
    sliding_window=6,
    sliding_layers=(False, True, False),
)

CONFIG = Config(block_tokens=BLOCK_TOKENS, device="cpu", threads=1, start_timeout=20.0, iteration_timeout=20.0)


class FakeStage:
    """A stage of random layers whose output depends on every earlier token, on positions and on the layer's window."""

    def __init__(self, spec: ModelSpec, stage: Stage, device: str | torch.device = "cpu") -> None:
        self._spec = spec
        self._stage = stage
        width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        self._embedding = _weights(1, spec.vocab_size, spec.hidden_size).to(device)
        self._places = _weights(2, spec.context_length, spec.hidden_size).to(device)
        self._qkv = [_weights(10 + layer, spec.hidden_size, width).to(device) for layer in stage.layers]
        self._head = _weights(3, spec.hidden_size, spec.vocab_size).to(device)

    def forward(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        if self._stage.is_first:
            x = self._embedding[x]
        heads, kv_heads, head_dim = self._spec.num_heads, self._spec.num_kv_heads, self._spec.head_dim
        for i, (layer, qkv) in enumerate(zip(self._stage.layers, self._qkv, strict=True)):
            joined = ((x + self._places[positions]) @ qkv).unflatten(1, (-1, head_dim))
            q, k, v = joined.split([heads, kv_heads, kv_heads], dim=1)
            x = x + attention(i, q, k, v, scale=head_dim**-0.5, window=self._spec.window(layer))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self._head


def _weights(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def fake_model(spec: ModelSpec = SPEC) -> Callable[[Config], Model]:
    """What `serve_stage` opens instead of a model's files."""

    def load(stage: Stage, placement: Placement, progress: Callable[[int, int], None]) -> FakeStage:
        progress(len(stage.layers), len(stage.layers))
        return FakeStage(spec, stage, placement.device)

    return lambda config: Model(spec, load)


def greedy_tokens(prompt: list[int], count: int, spec: ModelSpec = SPEC) -> list[int]:
    """What the fake model says after `prompt`: dense attention, one stage, nothing cached."""
    model = FakeStage(spec, Stage(0, 1, range(spec.num_layers)))
    tokens = list(prompt)
    for _ in range(count):
        hidden = model.forward(torch.tensor(tokens), torch.arange(len(tokens)), DenseAttention())
        tokens.append(int(model.logits(hidden[-1:]).argmax()))
    return tokens[len(prompt) :]


def make_cache(
    device: str = "cpu",
    *,
    num_layers: int = 3,
    blocks: int = 32,
    host_blocks: int = 32,
    dtype: torch.dtype = torch.float32,
    block_tokens: int = BLOCK_TOKENS,
) -> KvCache:
    return KvCache(
        SPEC,
        num_layers=num_layers,
        block_tokens=block_tokens,
        num_device_blocks=blocks,
        num_host_blocks=host_blocks,
        device=torch.device(device),
        dtype=dtype,
    )


@dataclass
class FakeJob:
    """A job as the gateway keeps it: its tokens and its blocks."""

    job_id: int
    tokens: list[int]
    blocks: list[int]
    done: int = 0  # tokens whose KV is cached
    sampling: Sampling = field(default=GREEDY)

    def entry(self, count: int | None = None) -> Entry:
        """The next `count` tokens (None: all that are not cached); a token is wanted when none is left."""
        end = len(self.tokens) if count is None else self.done + count
        last = end == len(self.tokens)
        entry = Entry(
            self.job_id,
            self.done,
            self.tokens[self.done : end],
            pack_blocks(self.blocks),
            self.sampling if last else None,
        )
        self.done = end
        return entry


def coded_matrix(out: int, ins: int, bits: int) -> StoredMatrix:
    """Random codes of 4 or 8 bits; scales have as few bits as those of files, and as any have where offsets are 0."""
    random = torch.Generator().manual_seed(out)
    lowest, group, dtype = (0, GROUP4, torch.uint8) if bits == 4 else (-128, GROUP8, torch.int8)
    codes = torch.randint(lowest, lowest + 2**bits, (out, ins), generator=random).to(dtype)
    scales, offsets = (torch.randn(out, ins // group, generator=random) for _ in range(2))
    few_bits = torch.rand(out, ins // group, generator=random) < 0.5
    return StoredMatrix(
        codes, torch.where(few_bits, scales.half().float(), scales), torch.where(few_bits, offsets, 0.0)
    )
