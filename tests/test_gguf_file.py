import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from common.gguf_file import GgufTensor, read_gguf
from common.model_files import ModelError, locate


def small_file(path: Path) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.rope.freq_base", 0.5)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", ""])
    writer.add_array("tokenizer.ggml.token_type", [1, 2, -3])
    writer.add_tensor("first", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("second", np.full((4, 18), 7, np.uint8), raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_comes_as_plain_values(tmp_path: Path) -> None:
    file = read_gguf(small_file(tmp_path / "small.gguf"))
    assert file.metadata == {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.rope.freq_base": 0.5,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.tokens": ["a", "é", ""],
        "tokenizer.ggml.token_type": [1, 2, -3],
    }


def test_tensors_have_torchs_shape_and_their_place_in_the_file(tmp_path: Path) -> None:
    path = small_file(tmp_path / "small.gguf")
    first, second = read_gguf(path).tensors.values()
    assert second == GgufTensor(GGMLQuantizationType.Q4_0, (4, 32), first.offset + 32, 72)
    assert first == GgufTensor(GGMLQuantizationType.F32, (2, 3), first.offset, 24)
    assert np.fromfile(path, np.float32, 6, offset=first.offset).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.model
@pytest.mark.timeout(60)
def test_the_embedded_file_is_read_as_the_gguf_package_reads_it() -> None:
    path = locate(None).path
    ours, theirs = read_gguf(path), GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields
    assert ours.tensors == {
        tensor.name: GgufTensor(
            tensor.tensor_type, tuple(reversed(tensor.shape.tolist())), tensor.data_offset, tensor.n_bytes
        )
        for tensor in theirs.tensors
    }


def header(*parts: bytes, version: int = 3, tensors: int = 0, fields: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + b"".join(parts)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(*, shape: tuple[int, ...] = (32,), packing: int = 0, offset: int = 0) -> bytes:
    return text("t") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, packing, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(40), "does not begin with GGUF"),
        (header(version=1), "version 1 is not one of"),
        (header(version=3 << 24), "big-endian"),
        (header(fields=1), "in the middle of its header"),
        (header(fields=2**63), "in the middle of its header"),
        (header(struct.pack("<Q", 2**62), fields=1), "in the middle of its header"),
        (header(text("key"), struct.pack("<IIQ", 9, 4, 2**60), fields=1), "in the middle of its header"),
        (header(text("key"), struct.pack("<IIQ", 9, 9, 1), fields=1), "unknown type of value 9"),
        (header(text("key"), struct.pack("<I", 77), fields=1), "unknown type of value 77"),
        (header(text("general.alignment"), struct.pack("<II", 4, 0), fields=1), "alignment is 0"),
        (header(struct.pack("<Q", 1), b"\xff", bytes(99), fields=1), "utf-8"),
        (header(tensor(), tensors=1), "ends before its tensor t"),
        (header(tensor(offset=2**63), bytes(500), tensors=1), "ends before its tensor t"),
        (header(tensor(packing=999), bytes(500), tensors=1), "999 is not a valid"),
        (header(tensor(shape=(33,), packing=2), bytes(500), tensors=1), "not whole blocks of Q4_0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_file_is_refused_with_its_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"damaged\.gguf is not a readable GGUF file.*{message}"):
        read_gguf(path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = small_file(tmp_path / "small.gguf")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="ends before its tensor second: an incomplete download"):
        read_gguf(path)
