"""A matrix as it is kept in memory: exact, in as few bytes as that takes, or smaller and rounded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import Stored

GROUP = 256  # inputs that share a scale in int8, the last ones perhaps with fewer
GROUP4, GROUP8 = 32, 16  # those that share scale and offset in codes of 4 bits, and of 8
_LARGEST = 127
# What is rounded at once: the steps between need several times its memory, and an embedding can be most of a model.
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """Numbers, or integers: scale * integer [+ offset], with those of a group of inputs.

    Integers of int8 are rounded; codes are exactly what a file has instead of numbers. Either their offset is 0, or a
    scale times a code is exact in fp32, as files have few bits for scales: so a number is rounded once.
    """

    values: Tensor  # [out, in]; codes of 4 bits are uint8, those of 8 int8
    scales: Tensor | None = None  # of integers: fp32 [out, groups of in]
    offsets: Tensor | None = None  # of codes: fp32 [out, groups of in]
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
        return cls(torch.cat(values), torch.cat(scales), dtype=weight.dtype, exact=False)

    @classmethod
    def stacked(cls, parts: Sequence["StoredMatrix"]) -> "StoredMatrix":
        """All rows of the first, then those of the next, in the fewest bytes that all can be kept in."""
        first = parts[0]
        if len({part.values.dtype for part in parts}) > 1:
            coded = all(part.is_coded for part in parts)
            return cls.stacked(
                [part._of_8_bits() if coded else cls(part.unpacked(), dtype=first.dtype) for part in parts]
            )
        return replace(
            first,
            values=_together([part.values for part in parts]),
            scales=None if first.scales is None else _together([part.scales for part in parts]),
            offsets=None if first.offsets is None else _together([part.offsets for part in parts]),
        )

    @property
    def is_coded(self) -> bool:
        return self.offsets is not None

    def _of_8_bits(self) -> "StoredMatrix":
        """The same codes in the form that has room for all."""
        assert self.scales is not None
        assert self.offsets is not None
        if self.values.dtype == torch.int8:
            return self
        times = GROUP4 // GROUP8
        scales, offsets = (part.repeat_interleave(times, 1) for part in (self.scales, self.offsets))
        return replace(self, values=self.values.to(torch.int8), scales=scales, offsets=offsets)

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
        return self.reordered(lambda part: part[ids]).unpacked()

    def reordered(self, order: Callable[[Tensor], Tensor]) -> "StoredMatrix":
        """With other rows; `order` is given all that there is of each: [out, n] for several n."""
        scales, offsets = (None if part is None else order(part) for part in (self.scales, self.offsets))
        return replace(self, values=order(self.values), scales=scales, offsets=offsets)

    def unpacked(self) -> Tensor:
        """The numbers that it stands for: [out, in]."""
        if self.scales is None:
            return self.values.to(self.dtype)
        ins = self.values.shape[1]
        group = GROUP if self.offsets is None else ins // self.offsets.shape[1]
        numbers = self.values * self.scales.repeat_interleave(group, 1)[:, :ins]
        if self.offsets is not None:
            numbers += self.offsets.repeat_interleave(group, 1)
        return numbers.to(self.dtype)


def _together(parts: Sequence[Tensor | None]) -> Tensor:
    """No copy of a single one: matrices are large."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if len(present) > 1 else present[0]


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
