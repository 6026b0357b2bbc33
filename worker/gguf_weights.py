"""Weights of a GGUF file: renamed and reordered to what the Hugging Face checkpoint had, and unpacked, but for what is
kept as codes.
"""

from math import gcd

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from gguf.quants import dequantize
from torch import Tensor

from common.config import Stored
from common.gguf_file import GgufFile, GgufTensor
from common.model_files import ModelError
from common.model_spec import ModelSpec
from worker.gguf_codes import CODED, coded
from worker.models.stored_matrix import StoredMatrix
from worker.weights import check_shape, own

_WIDEST = 64
_PARTS = (".weight", ".bias")
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class GgufWeights:
    """Reads and unpacks one tensor at a time."""

    def __init__(
        self, file: GgufFile, spec: ModelSpec, device: torch.device, dtype: torch.dtype, stored: Stored = "exact"
    ) -> None:
        self._file = file
        self._spec = spec
        self.device = device
        self.stored = stored
        self._dtype = dtype
        architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == spec.architecture)
        self._names = get_tensor_name_map(architecture, spec.num_layers)
        self._interleaved = architecture == MODEL_ARCH.LLAMA

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        transposed = self._spec.family == "gpt2" and name.endswith(_CONV1D)
        tensor = self._find(name, shape[::-1] if transposed else shape)
        values = self._reordered(name, torch.from_numpy(self._unpack(name, tensor)).view(tensor.shape))
        return own(values.t() if transposed else values, self.device, dtype or self._dtype)

    def matrix(self, name: str, out: int, ins: int) -> StoredMatrix:
        if self.stored == "exact" and self.device.type == "cpu" and self._dtype == torch.float:
            tensor = self._find(name, (out, ins))
            if tensor.packing in CODED:
                matrix = coded(self._read(tensor), tensor.packing, out)
                return matrix.reordered(lambda rows: self._reordered(name, rows))
        return StoredMatrix.of(self.get(name, out, ins), self.stored)

    def _stored_name(self, name: str) -> str:
        return self._names.get_name(name, _PARTS) or name

    def _find(self, name: str, shape: tuple[int, ...]) -> GgufTensor:
        stored = self._stored_name(name)
        tensor = self._file.tensors.get(stored)
        if tensor is None:
            raise ModelError(f"{self._file.path.name} has no tensor {stored}")
        check_shape(stored, tensor.shape, shape)
        return tensor

    def _read(self, tensor: GgufTensor) -> np.ndarray:
        return np.fromfile(self._file.path, np.uint8, tensor.num_bytes, offset=tensor.offset)

    def _unpack(self, name: str, tensor: GgufTensor) -> np.ndarray:
        packed = self._read(tensor)
        # It takes a few rows per step of Python: wide ones, each of many of ours, halve the time.
        rows = packed.reshape(tensor.shape[0] // gcd(tensor.shape[0], _WIDEST), -1)
        try:
            values: np.ndarray = dequantize(rows, tensor.packing)
        except NotImplementedError:
            kind, stored = tensor.packing.name, self._stored_name(name)
            raise ModelError(f"tensor {stored} is packed as {kind}, which nothing here unpacks") from None
        return values

    def _reordered(self, name: str, values: Tensor) -> Tensor:
        """Llama's q and k are stored for a rotation of neighbours (0, 1), (2, 3)...; ours rotates halves."""
        rotated = {"q_proj": self._spec.num_heads, "k_proj": self._spec.num_kv_heads}
        heads = rotated.get(name.split(".")[-2]) if self._interleaved and ".self_attn." in name else None
        if heads is None:
            return values
        pairs = values.view(heads, self._spec.head_dim // 2, 2, -1)  # [heads, frequencies, 2, in]
        return pairs.transpose(1, 2).reshape(values.shape)
