"""How far a matrix is from what it was, and which type it is kept in."""

import pytest
import torch
from fakes_worker import coded_matrix

from worker.models.stored_matrix import GROUP, StoredMatrix


def test_an_exact_matrix_is_the_matrix() -> None:
    weight = torch.randn(4, 40)
    assert StoredMatrix.of(weight, "exact").unpacked() is weight


@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (0.0, torch.bfloat16),
        (-0.0, torch.bfloat16),
        (2.0**-126, torch.bfloat16),
        (torch.inf, torch.bfloat16),
        (1 + 2**-8, torch.half),
        (65504.0, torch.half),
        (1023 * 2.0**-24, torch.half),
    ],
)
def test_exact_numbers_are_kept_in_the_16_bits_that_have_them(number: float, dtype: torch.dtype) -> None:
    weight = torch.zeros(4, 40)
    weight[3, 39] = number
    narrowed = StoredMatrix.of(weight, "exact").narrowed()
    assert narrowed.values.dtype == dtype
    assert narrowed.exact
    assert torch.equal(narrowed.unpacked().view(torch.int32), weight.view(torch.int32))


@pytest.mark.parametrize("number", [1 + 2**-11, 1 + 2**-23, 65505.0, 3.4e38, torch.nan])
def test_one_number_that_no_16_bits_have_keeps_a_matrix_in_fp32(number: float) -> None:
    weight = torch.zeros(4, 40)
    weight[3, 39] = number
    assert StoredMatrix.of(weight, "exact").narrowed().values is weight


def test_a_matrix_of_which_no_type_has_all_numbers_stays_in_fp32() -> None:
    weight = torch.tensor([[1 + 2**-8, 2.0**-100]])  # fp16 has the one, bf16 the other
    assert StoredMatrix.of(weight, "exact").narrowed().values is weight


def test_bf16_keeps_eight_bits_of_every_number() -> None:
    weight = torch.randn(4, 40)
    stored = StoredMatrix.of(weight, "bf16")
    assert stored.values.dtype == torch.bfloat16
    torch.testing.assert_close(stored.unpacked(), weight, rtol=2**-8, atol=0)


@pytest.mark.parametrize("ins", [1, 31, 32, 33, 100])
def test_int8_is_off_by_half_a_step_of_its_group_at_most(ins: int) -> None:
    weight = torch.randn(6, ins) * torch.logspace(-3, 3, ins)
    stored = StoredMatrix.of(weight, "int8")
    assert stored.values.dtype == torch.int8
    for first in range(0, ins, GROUP):
        group = weight[:, first : first + GROUP]
        step = group.abs().amax(1, keepdim=True) / 127
        assert ((stored.unpacked()[:, first : first + GROUP] - group).abs() <= 0.5001 * step).all()


def test_a_matrix_is_rounded_alike_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(11, 300)
    whole = StoredMatrix.of(weight, "int8").unpacked()
    monkeypatch.setattr("worker.models.stored_matrix._ROWS_AT_ONCE", 4)
    assert torch.equal(StoredMatrix.of(weight, "int8").unpacked(), whole)


def test_a_group_of_zeros_stays_zero() -> None:
    assert torch.equal(StoredMatrix.of(torch.zeros(2, GROUP), "int8").unpacked(), torch.zeros(2, GROUP))


def test_a_number_is_its_code_times_a_scale_plus_an_offset() -> None:
    codes = torch.arange(64, dtype=torch.uint8).view(1, 64) % 16
    matrix = StoredMatrix(codes, torch.tensor([[2.0, -0.5]]), torch.tensor([[1.0, 3.0]]))
    assert matrix.unpacked().tolist() == [[2.0 * (i % 16) + 1 if i < 32 else 3 - 0.5 * (i % 16) for i in range(64)]]
    assert matrix.narrowed() is matrix


def test_what_is_stacked_is_kept_as_its_parts_are() -> None:
    for parts in ([coded_matrix(3, 64, 4), coded_matrix(5, 64, 4)], [coded_matrix(2, 32, 8), coded_matrix(1, 32, 8)]):
        stacked = StoredMatrix.stacked(parts)
        assert (stacked.values.dtype, stacked.is_coded) == (parts[0].values.dtype, True)
        assert torch.equal(stacked.unpacked(), torch.cat([part.unpacked() for part in parts]))
    alone = coded_matrix(3, 64, 4)
    assert StoredMatrix.stacked([alone]).values is alone.values


def test_what_is_kept_in_several_ways_is_stacked_in_one_that_all_can_be_kept_in() -> None:
    codes = [coded_matrix(3, 64, 4), coded_matrix(4, 64, 8)]
    stacked = StoredMatrix.stacked(codes)
    assert (stacked.values.dtype, stacked.is_coded) == (torch.int8, True)
    assert torch.equal(stacked.unpacked(), torch.cat([part.unpacked() for part in codes]))
    parts = [*codes, StoredMatrix.of(torch.randn(2, 64), "exact")]
    stacked = StoredMatrix.stacked(parts)
    assert stacked.values.dtype == torch.float
    assert torch.equal(stacked.values, torch.cat([part.unpacked() for part in parts]))


@pytest.mark.parametrize("stored", ["exact", "bf16", "int8", 4, 8])
def test_rows_are_those_of_the_unpacked_matrix(stored: str | int) -> None:
    of_codes = isinstance(stored, int)
    matrix = coded_matrix(9, 64, stored) if of_codes else StoredMatrix.of(torch.randn(9, 40), stored)
    assert torch.equal(matrix.rows(torch.tensor([8, 0, 8])), matrix.unpacked()[[8, 0, 8]])
