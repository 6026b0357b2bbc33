"""Draws from whole distributions by the native kernel, native/sampling.c: no row waits for another, or needs a sort."""

import ctypes
import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.native.library import open_library
from worker.transfer import Ints

_DRAW = np.dtype([("temperature", np.float32), ("barred", np.int32), ("draw", np.float64)])


class NativeDraws:
    """The compiled function."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.draw_tokens.argtypes = (pointer, number, number, pointer, number, pointer)
        library.draw_tokens.restype = None
        self._draw: Callable[..., None] = library.draw_tokens

    def __call__(self, logits: Tensor, temperatures: list[float], draws: list[float], barred: list[bool]) -> Ints:
        """A token per row, [rows]; -1 where logits are not finite, or all tokens are barred.

        logits: fp32 [rows, vocab]. temperatures: 0 for the likeliest token. draws: in [0, 1). barred: for rows whose
        logits may be -inf.
        """
        rows, vocab = logits.shape
        records: NDArray[np.void] = np.empty(rows, _DRAW)
        records["temperature"], records["barred"], records["draw"] = temperatures, barred, draws
        tokens = np.empty(rows, np.int64)
        logits = logits.contiguous()
        self._draw(logits.data_ptr(), rows, vocab, records.ctypes.data, torch.get_num_threads(), tokens.ctypes.data)
        return tokens


@functools.cache
def open_draws() -> NativeDraws | None:
    """The kernel, or None where torch has to do."""
    library = open_library()
    return None if library is None else NativeDraws(library)
