"""A GGUF file: its metadata and where its tensors lie. Knows the container, not what a model makes of it.

`gguf.GGUFReader` builds an array object for every entry of the vocabulary and needs seconds for it, in every process;
this reads the same header in a tenth of one.
"""

import mmap
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from common.model_files import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies, and how its numbers are packed."""

    packing: GGMLQuantizationType
    shape: tuple[int, ...]  # outermost first, as in torch; the file has the reverse
    offset: int  # from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file. Arrays of the metadata are lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of `path`. Raises ModelError when the file is damaged, cut short, or not GGUF."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_header(path, _Cursor(data))
    except (ValueError, struct.error) as error:
        raise ModelError(f"{path} is not a readable GGUF file: {error}") from None


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.at = 0

    @property
    def size(self) -> int:
        return len(self._data)

    def take(self, size: int) -> bytes:
        chunk = self._data[self.at : self.at + size]
        if len(chunk) < size:
            raise ValueError(f"it ends after {self.size} bytes, in the middle of its header")
        self.at += size
        return chunk

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}")
        return layout.unpack(self.take(layout.size))

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def string(self) -> str:
        return self.take(int.from_bytes(self.take(8), "little")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        return self.number(_number_code(kind))

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        return list(self.numbers(_number_code(kind), count))


def _number_code(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"unknown type of value {kind} (an array of arrays, or a newer format)")
    return _NUMBERS[kind]


def _read_header(path: Path, cursor: _Cursor) -> GgufFile:
    if cursor.take(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version} is not one of {_VERSIONS}, or it is big-endian")
    num_tensors, num_fields = cursor.numbers("Q", 2)
    metadata = {}
    for _ in range(num_fields):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("I"))
    tensors = dict(_read_tensor(cursor) for _ in range(num_tensors))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment}")
    start = -(-cursor.at // alignment) * alignment  # rounded up
    for name, tensor in tensors.items():
        if start + tensor.offset + tensor.num_bytes > cursor.size:
            raise ValueError(f"it ends before its tensor {name}: an incomplete download?")
    placed = {name: replace(tensor, offset=start + tensor.offset) for name, tensor in tensors.items()}
    return GgufFile(path, metadata, placed)


def _read_tensor(cursor: _Cursor) -> tuple[str, GgufTensor]:
    """Name and place of one tensor; the offset counts from the end of the header."""
    name = cursor.string()
    shape = cursor.numbers("Q", cursor.number("I"))[::-1]
    packing = GGMLQuantizationType(cursor.number("I"))
    block_weights, block_bytes = GGML_QUANT_SIZES[packing]
    if shape[-1:] and shape[-1] % block_weights:
        raise ValueError(f"tensor {name} has rows of {shape[-1]}, not whole blocks of {packing.name}")
    num_bytes = prod(shape) // block_weights * block_bytes
    return name, GgufTensor(packing, shape, cursor.number("Q"), num_bytes)
