"""A checkpoint's tensors by name: the interface between the files and the model definitions."""

from typing import Protocol

import torch
from torch import Tensor

from common.config import Stored
from common.model_files import ModelError
from worker.models.stored_matrix import StoredMatrix


class Weights(Protocol):
    """Names and layouts are those of the Hugging Face checkpoint, whatever the file. Only what is asked for is read."""

    device: torch.device
    stored: Stored  # how matrices are to be kept

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor `name` in memory of its own on `device`, contiguous, in the stage's type unless `dtype` is given.

        Raises ModelError naming it when it is missing or does not have `shape`.
        """
        ...

    def matrix(self, name: str, out: int, ins: int) -> StoredMatrix:
        """The same, [out, ins], kept as matrices are: exact ones that a file has as codes are these codes."""
        ...


def check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise ModelError when a tensor does not have the shape that the model's facts promise."""
    if found != wanted:
        raise ModelError(f"tensor {name} is {list(found)}, the model's configuration says {list(wanted)}")


def own(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A contiguous copy of `tensor`: a mapped file would be read again, and unaligned, in every iteration."""
    return torch.empty(tensor.shape, device=device, dtype=dtype).copy_(tensor)
