"""Small numbers between host and device. Only `wait_for` waits for a GPU, for `to_host` once a call."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
_ZERO: Ints = np.zeros(1, dtype=np.int64)


def to_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Through pinned memory, since a copy from any other waits for all that was launched before it."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_device_together(numbers: list[Ints], device: torch.device) -> list[Tensor]:
    """In one copy, or none on a CPU. 16 divides all their addresses: Triton would compile kernels anew for others."""
    if device.type == "cpu":
        return [torch.from_numpy(part) for part in numbers]
    odd = [part.size % 2 for part in numbers]
    padded = [piece for part, pad in zip(numbers, odd, strict=True) for piece in (part.ravel(), _ZERO[:pad])]
    sizes = [part.size + pad for part, pad in zip(numbers, odd, strict=True)]
    parts = to_device(np.concatenate(padded), device).split_with_sizes(sizes)
    return [part[: ints.size].view(ints.shape) for part, ints in zip(parts, numbers, strict=True)]


def to_host(*tensors: Tensor) -> list[NDArray[Any]]:
    """The numbers of tensors on one device, when it is done with all that was launched before."""
    device = tensors[0].device
    if device.type != "cuda":
        return [tensor.numpy() for tensor in tensors]
    there = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
    wait_for(device)
    return [tensor.numpy() for tensor in there]


def wait_for(device: torch.device) -> None:
    """Until a GPU is done with all that this thread's stream was given; a CPU is at once."""
    if device.type == "cuda":
        # By an event: torch's debug mode, in which a test looks for waits that nobody meant, takes no note of these.
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(device))
        done.synchronize()
