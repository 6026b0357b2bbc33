"""All layers of a stage of the Llama family in one call of the native kernel, native/layers.c.

What Python does between hundreds of short calls takes a millisecond or two. The numbers are those of the single calls,
to the bit, but where queries and keys have norms of their own: torch sums those in another order.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.attention.native import NativeAttention
from worker.models.linear import Linear
from worker.models.native_linear import NativeLinear, Parameters
from worker.models.rope import NativeRotation
from worker.native.library import open_library

PARTS = ("qkv", "attention", "out", "gate and up", "down")


class _Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Parameters),
        ("out", Parameters),
        ("gated", Parameters),
        ("down", Parameters),
        ("qk_norm", ctypes.c_void_p),
    )


class _Iteration(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("batches", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
        ("layer_stride", ctypes.c_int64),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("seconds", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer is made of."""

    qkv: Linear
    out: Linear
    gated: Linear
    down: Linear
    qk_norm: Tensor | None  # [heads + kv_heads, head_dim]
    window: int | None


class NativeLayers:
    """The layers as the kernel knows them, and memory for what they hand on: as much as the most rows so far wanted."""

    def __init__(
        self,
        library: ctypes.CDLL,
        layers: Sequence[LayerParts],
        products: Sequence[list[NativeLinear]],
        eps: float,
        scale: float,
    ) -> None:
        self._run, self._bytes_for = _functions(library)
        self._owners = layers  # of the memory that the records point to
        self._windows = [layer.window for layer in layers]
        self._eps, self._scale = eps, scale
        self._records = (_Layer * len(layers))(
            *(
                _Layer(*(p.parameters for p in own), None if layer.qk_norm is None else layer.qk_norm.data_ptr())
                for layer, own in zip(layers, products, strict=True)
            )
        )
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._rows = 0  # that the memory suffices for
        self._seconds = (ctypes.c_double * len(PARTS))()

    @classmethod
    def of(cls, layers: Sequence[LayerParts], eps: float, scale: float) -> "NativeLayers | None":
        """None where a product is none of the native kernel's."""
        library = open_library()
        products = [
            [p for p in (layer.qkv, layer.out, layer.gated, layer.down) if isinstance(p, NativeLinear)]
            for layer in layers
        ]
        if library is None or not layers or any(len(own) < 4 for own in products):
            return None
        return cls(library, layers, products, eps, scale)

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent so far, by part."""
        return dict(zip(PARTS, self._seconds, strict=True))

    def __call__(self, x: Tensor, rotation: NativeRotation, attention: NativeAttention) -> Tensor:
        """x: fp32 [tokens, hidden]. Returns the same after all layers."""
        hidden, rows = x.clone(memory_format=torch.contiguous_format), len(x)
        if rows > self._rows:
            self._memory = torch.empty(0, dtype=torch.uint8)  # The old must go before the new comes.
            self._memory = torch.empty(self._bytes_for(self._records, len(self._records), rows), dtype=torch.uint8)
            self._rows = rows
        heads = self._records[0].out.ins // rotation.cos.shape[1]
        batches = (ctypes.c_void_p * len(self._windows))(*(attention.batch(w, heads) for w in self._windows))
        iteration = _Iteration(
            layers=len(self._records),
            rows=rows,
            batches=ctypes.addressof(batches),
            pool=attention.pool,
            layer_stride=attention.layer_stride,
            cosines=rotation.cos.data_ptr(),
            sines=rotation.sin.data_ptr(),
            scale=self._scale,
            epsilon=self._eps,
            seconds=ctypes.addressof(self._seconds),
        )
        self._run(ctypes.byref(iteration), self._records, hidden.data_ptr(), self._memory.data_ptr())
        return hidden


def _functions(library: ctypes.CDLL) -> tuple[Callable[..., None], Callable[..., int]]:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.run_layers.argtypes, library.run_layers.restype = (pointer, pointer, pointer, pointer), None
    library.layers_memory.argtypes, library.layers_memory.restype = (pointer, number, number), number
    return library.run_layers, library.layers_memory
