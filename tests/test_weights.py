import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize
from safetensors.torch import save_file

from common.config import Stored
from common.gguf_file import read_gguf
from common.model_files import ModelError
from common.model_spec import ModelSpec
from worker.gguf_codes import CODED
from worker.gguf_weights import GgufWeights
from worker.safetensors_weights import SafetensorsWeights

CPU = torch.device("cpu")
EMBEDDING, Q = "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"


# ---------------------------------------------------------------------------- safetensors


def safetensors(directory: Path, dtype: torch.dtype = torch.float32) -> SafetensorsWeights:
    return SafetensorsWeights(directory, CPU, dtype)


def test_a_tensor_is_read_by_name_and_converted(tmp_path: Path) -> None:
    stored = torch.randn(3, 4, dtype=torch.bfloat16)
    save_file({"a.weight": stored}, tmp_path / "model.safetensors")
    assert torch.equal(safetensors(tmp_path).get("a.weight", 3, 4), stored.float())
    assert torch.equal(safetensors(tmp_path, torch.float16).get("a.weight", 3, 4), stored.half())
    assert torch.equal(safetensors(tmp_path, torch.float16).get("a.weight", 3, 4, dtype=torch.bfloat16), stored)


def test_a_tensor_has_memory_of_its_own(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors")
    weights = safetensors(tmp_path)
    weights.get("a", 4).fill_(1)
    assert torch.equal(weights.get("a", 4), torch.zeros(4))


def test_a_checkpoint_saved_without_its_head_has_shorter_names(tmp_path: Path) -> None:
    save_file({"wte.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert torch.equal(safetensors(tmp_path).get("transformer.wte.weight", 2), torch.ones(2))


def test_only_the_shards_that_are_needed_are_opened(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    (tmp_path / "two.safetensors").write_bytes(b"damaged")
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"})
    weights = safetensors(tmp_path)
    assert torch.equal(weights.get("a", 2), torch.ones(2))
    with pytest.raises(ModelError, match=r"two\.safetensors is not a readable safetensors file"):
        weights.get("b", 2)
    with pytest.raises(ModelError, match=r"lacks three\.safetensors: an incomplete download"):
        weights.get("c", 2)


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    index(tmp_path, {"b": "one.safetensors"})
    with pytest.raises(ModelError, match=r"one\.safetensors lacks the tensor b"):
        safetensors(tmp_path).get("b", 2)


def test_files_without_an_index_are_all_looked_into(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "two.safetensors")
    assert torch.equal(safetensors(tmp_path).get("b", 3), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.norm.weight", (4,), "has no tensor model.norm.weight"),
        ("a.weight", (4, 3), r"tensor a.weight is \[3, 4\], the model's configuration says \[4, 3\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    save_file({"a.weight": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        safetensors(tmp_path).get(name, *shape)


def index(directory: Path, files: dict[str, str]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


# ---------------------------------------------------------------------------- GGUF: how numbers are packed


def halves(block: bytes, *offsets: int) -> list[float]:
    return [float(np.frombuffer(block, np.float16, 1, offset)[0]) for offset in offsets]


def q8_0(block: bytes) -> list[float]:
    (scale,) = halves(block, 0)
    return [scale * value for value in np.frombuffer(block, np.int8, 32, 2).tolist()]


def q4_0(block: bytes) -> list[float]:
    (scale,) = halves(block, 0)
    return [scale * ((byte & 15) - 8) for byte in block[2:]] + [scale * ((byte >> 4) - 8) for byte in block[2:]]


def q4_1(block: bytes) -> list[float]:
    scale, low = halves(block, 0, 2)
    return [scale * (byte & 15) + low for byte in block[4:]] + [scale * (byte >> 4) + low for byte in block[4:]]


def q4_k(block: bytes) -> list[float]:
    scale, low = halves(block, 0, 2)
    packed, codes = block[4:16], block[16:]
    values = []
    for group in range(8):  # of 32 weights, each with a 6-bit scale and minimum
        if group < 4:
            d, m = packed[group] & 63, packed[group + 4] & 63
        else:
            d = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            m = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        run = codes[group // 2 * 32 : group // 2 * 32 + 32]  # two groups share these bytes
        values += [scale * d * (byte >> 4 if group % 2 else byte & 15) - low * m for byte in run]
    return values


def q6_k(block: bytes) -> list[float]:
    low, high, scales = block[:128], block[128:192], np.frombuffer(block, np.int8, 16, 192).tolist()
    (scale,) = halves(block, 208)
    values = [0.0] * 256
    for half in range(2):
        for i in range(32):
            for quarter in range(4):
                byte = low[64 * half + 32 * (quarter % 2) + i]
                code = (byte >> 4 if quarter > 1 else byte & 15) | (high[32 * half + i] >> 2 * quarter & 3) << 4
                d = scales[8 * half + 2 * quarter + i // 16]
                values[128 * half + 32 * quarter + i] = scale * d * (code - 32)
    return values


# Where the fp16 scales lie in a block, and the format written down as slowly as it is specified.
PACKINGS: dict[str, tuple[tuple[int, ...], Callable[[bytes], list[float]]]] = {
    "Q8_0": ((0,), q8_0),
    "Q4_0": ((0,), q4_0),
    "Q4_1": ((0, 2), q4_1),
    "Q4_K": ((0, 2), q4_k),
    "Q6_K": ((208,), q6_k),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("rows", [3, 64])
def test_quantized_weights_are_unpacked_as_their_format_says(packing: str, rows: int, tmp_path: Path) -> None:
    offsets, reference = PACKINGS[packing]
    kind = GGMLQuantizationType[packing]
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (rows, 512 // GGML_QUANT_SIZES[kind][0], GGML_QUANT_SIZES[kind][1]), np.uint8)
    for offset in offsets:
        scales = random.normal(size=blocks.shape[:2]).astype(np.float16)
        blocks[:, :, offset : offset + 2] = scales[..., None].view(np.uint8)
    weights = gguf(tmp_path, {"token_embd.weight": (blocks.reshape(rows, -1), kind)})
    expected = torch.tensor([[value for block in row for value in reference(block.tobytes())] for row in blocks])
    numbers = weights.get(EMBEDDING, rows, 512)
    torch.testing.assert_close(numbers, expected, rtol=1e-5, atol=1e-4)
    matrix = weights.matrix(EMBEDDING, rows, 512)
    assert matrix.is_coded
    assert torch.equal(matrix.unpacked(), numbers)


def test_unquantized_weights_are_read_as_they_are(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    bf16 = torch.from_numpy(values).bfloat16()
    weights = gguf(
        tmp_path,
        {
            "token_embd.weight": (values, None),
            "output.weight": (values.astype(np.float16), None),
            "output_norm.weight": (bf16.view(torch.uint8).numpy(), GGMLQuantizationType.BF16),
        },
    )
    assert weights.get(EMBEDDING, 5, 6).numpy().tolist() == values.tolist()
    assert torch.equal(weights.get("lm_head.weight", 5, 6), torch.from_numpy(values).half().float())
    assert torch.equal(weights.get("model.norm.weight", 5, 6), bf16.float())
    assert weights.get("model.norm.weight", 5, 6, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("packing", sorted(CODED))
def test_codes_stand_for_the_numbers_that_the_library_unpacks(packing: GGMLQuantizationType, tmp_path: Path) -> None:
    """Also those of q, whose rows are reordered."""
    per_block, block_bytes = GGML_QUANT_SIZES[packing]
    blocks = np.random.default_rng(0).integers(0, 60, (32, 512 // per_block * block_bytes), np.uint8)
    weights = gguf(tmp_path, {"blk.0.attn_q.weight": (blocks, packing)})
    matrix, numbers = weights.matrix(Q, 32, 512), weights.get(Q, 32, 512)
    assert matrix.is_coded
    assert torch.equal(matrix.unpacked(), numbers)
    assert not torch.equal(numbers, torch.from_numpy(dequantize(blocks, packing)))
    for dtype, stored in ((torch.bfloat16, "exact"), (torch.float, "int8")):
        weights = gguf(tmp_path, {"blk.0.attn_q.weight": (blocks, packing)}, dtype, stored)
        assert not weights.matrix(Q, 32, 512).is_coded


@pytest.mark.parametrize("packing", ["Q2_K", "Q3_K", "IQ4_XS"])
def test_what_has_no_codes_that_are_kept_is_unpacked(packing: str, tmp_path: Path) -> None:
    kind = GGMLQuantizationType[packing]
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 60, (2, 256 // per_block * block_bytes), np.uint8)
    weights = gguf(tmp_path, {"token_embd.weight": (blocks, kind)})
    matrix = weights.matrix(EMBEDDING, 2, 256)
    assert not matrix.is_coded
    assert torch.equal(matrix.values, torch.from_numpy(dequantize(blocks, kind)))


def test_packings_that_the_library_does_not_know_are_refused_by_name(tmp_path: Path) -> None:
    weights = gguf(tmp_path, {"token_embd.weight": (np.zeros((2, 292), np.uint8), GGMLQuantizationType.Q8_K)})
    with pytest.raises(ModelError, match=r"token_embd\.weight is packed as Q8_K, which nothing here unpacks"):
        weights.matrix(EMBEDDING, 2, 256)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.norm.weight", (4,), r"no tensor output_norm\.weight"),
        (EMBEDDING, (6, 5), r"token_embd\.weight is \[5, 6\].*\[6, 5\]"),
    ],
)
def test_a_gguf_tensor_that_does_not_fit_is_refused_by_name(
    name: str, shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    weights = gguf(tmp_path, {"token_embd.weight": (np.zeros((5, 6), np.float32), None)})
    with pytest.raises(ModelError, match=message):
        weights.get(name, *shape)


def gguf(
    directory: Path,
    tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType | None]],
    dtype: torch.dtype = torch.float,
    stored: Stored = "exact",
) -> GgufWeights:
    path = directory / "packed.gguf"
    writer = GGUFWriter(path, "llama")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufWeights(read_gguf(path), SPEC, CPU, dtype, stored)


SPEC = ModelSpec(
    family="llama",
    architecture="llama",
    num_layers=1,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=48,
    vocab_size=96,
    context_length=64,
    dtype="fp32",
    activation="silu",
    norm_eps=1e-5,
    tied_embeddings=True,
    eos_token_ids=(),
    bos_token_id=None,
)
