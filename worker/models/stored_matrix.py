"""A matrix as it is kept in memory: exact, in as few bytes as that takes, or smaller and rounded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import Stored

GROUP = 256  # inputs that share a scale in int8, the last ones perhaps with fewer
_LARGEST = 127
# What is rounded at once: the steps between need several times its memory, and an embedding can be most of a model.
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """Numbers, and in int8 what they are multiplied by."""

    values: Tensor  # [out, in]
    scales: Tensor | None = None  # int8: fp32 [out, groups of in]
    dtype: torch.dtype = torch.float  # of the matrix
    exact: bool = True  # these are the matrix's numbers, so what they meet must not be rounded either

    @classmethod
    def of(cls, weight: Tensor, stored: Stored) -> "StoredMatrix":
        """weight: [out, in]."""
        if stored == "int8":
            return cls._rounded(weight)
        return cls(weight.bfloat16() if stored == "bf16" else weight, dtype=weight.dtype, exact=stored == "exact")

    @classmethod
    def _rounded(cls, weight: Tensor) -> "StoredMatrix":
        """Every group's largest number becomes 127 or -127."""
        values, scales = zip(*map(_rounded, torch.split(weight, _ROWS_AT_ONCE)), strict=True)
        return cls(torch.cat(values), torch.cat(scales), weight.dtype, exact=False)

    def narrowed(self, dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.half)) -> "StoredMatrix":
        """The same numbers in the first of `dtypes` that has all of them: most checkpoints are published in one.

        What fits in none stays as it is, and so does what is not fp32.
        """
        if self.values.dtype != torch.float:
            return self
        fitting = (dtype for dtype in dtypes if _fits(self.values, dtype))
        return replace(self, values=self.values.to(next(fitting, torch.float)))

    def rows(self, ids: Tensor) -> Tensor:
        """What the rows `ids`, [count], stand for."""
        return replace(
            self, values=self.values[ids], scales=None if self.scales is None else self.scales[ids]
        ).unpacked()

    def unpacked(self) -> Tensor:
        """The numbers that it stands for: [out, in]."""
        if self.scales is None:
            return self.values.to(self.dtype)
        scales = self.scales.repeat_interleave(GROUP, 1)[:, : self.values.shape[1]]
        return (self.values * scales).to(self.dtype)


def _fits(rows: Tensor, dtype: torch.dtype) -> bool:
    """Whether `dtype` has all of these numbers."""
    return all(torch.equal(some.to(dtype).float(), some) for some in torch.split(rows, _ROWS_AT_ONCE))


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, in] as int8 [rows, in], and scales [rows, groups of in]."""
    count, ins = rows.shape
    grouped = F.pad(rows.float(), (0, -ins % GROUP)).view(count, -1, GROUP)
    scales = grouped.abs().amax(2) / _LARGEST
    values = (grouped / scales.clamp(min=torch.finfo(torch.float).tiny)[..., None]).round().to(torch.int8)
    return values.view(count, -1)[:, :ins], scales
