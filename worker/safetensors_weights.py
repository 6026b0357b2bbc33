"""Weights of a Hugging Face directory: one safetensors file, or shards with an index."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.config import Stored
from common.model_files import ModelError
from worker.models.stored_matrix import StoredMatrix
from worker.weights import check_shape, own

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class SafetensorsWeights:
    """Opens only the shards that hold what is asked for."""

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype, stored: Stored = "exact") -> None:
        self._directory = directory
        self.device = device
        self.stored = stored
        self._dtype = dtype
        self._files: dict[str, Any] = {}  # open ones, by file name
        self._file_of = self._locate()

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        stored = self._stored_name(name)
        file = self._open(self._file_of[stored])
        if stored not in file.keys():  # noqa: SIM118 - not a dict
            raise ModelError(f"{self._file_of[stored]} lacks the tensor {stored} that the index promises")
        check_shape(stored, tuple(file.get_slice(stored).get_shape()), shape)
        return own(file.get_tensor(stored), self.device, dtype or self._dtype)

    def matrix(self, name: str, out: int, ins: int) -> StoredMatrix:
        return StoredMatrix.of(self.get(name, out, ins), self.stored)

    def _stored_name(self, name: str) -> str:
        """A checkpoint saved without its head lacks the first part of every name: `h.0...` for `transformer.h.0...`."""
        for candidate in (name, name.partition(".")[2]):
            if candidate in self._file_of:
                return candidate
        raise ModelError(f"{self._directory.name} has no tensor {name}")

    def _locate(self) -> dict[str, str]:
        """The file of every tensor."""
        index = self._directory / _INDEX
        if index.is_file():
            try:
                return msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
            except msgspec.DecodeError as error:
                raise ModelError(f"{index}: {error}") from None
        single = [self._directory / _SINGLE] if (self._directory / _SINGLE).is_file() else []
        paths = single or sorted(self._directory.glob("*.safetensors"))
        return {name: path.name for path in paths for name in self._open(path.name).keys()}  # noqa: SIM118

    def _open(self, file_name: str) -> Any:
        if file_name not in self._files:
            path = self._directory / file_name
            try:
                self._files[file_name] = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError:
                raise ModelError(f"{self._directory} lacks {file_name}: an incomplete download?") from None
            except SafetensorError as error:
                raise ModelError(f"{path} is not a readable safetensors file: {error}") from None
        return self._files[file_name]
