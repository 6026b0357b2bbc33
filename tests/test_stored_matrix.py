"""How far a matrix is from what it was, and which type it is kept in."""

import pytest
import torch

from worker.models.stored_matrix import GROUP, StoredMatrix


def test_an_exact_matrix_is_the_matrix() -> None:
    weight = torch.randn(4, 40)
    assert StoredMatrix.of(weight, "exact").unpacked() is weight


@pytest.mark.parametrize("number", [0.0, -0.0, 1.5, 2.0**-126, 3.3895e38, torch.inf])
def test_exact_numbers_that_bf16_has_are_kept_in_it(number: float) -> None:
    weight = torch.randn(4, 40).bfloat16().float()
    weight[3, 39] = torch.tensor(number).bfloat16()
    narrowed = StoredMatrix.of(weight, "exact").narrowed()
    assert narrowed.values.dtype == torch.bfloat16
    assert narrowed.exact
    assert torch.equal(narrowed.unpacked().view(torch.int32), weight.view(torch.int32))


@pytest.mark.parametrize("number", [1 + 2**-8, 1 + 2**-23, 2.0**-149, 3.4e38])
def test_one_number_that_bf16_lacks_keeps_a_matrix_in_fp32(number: float) -> None:
    weight = torch.zeros(4, 40)
    weight[3, 39] = number
    matrix = StoredMatrix.of(weight, "exact")
    assert matrix.narrowed() is matrix


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


@pytest.mark.parametrize("stored", ["exact", "bf16", "int8"])
def test_rows_are_those_of_the_unpacked_matrix(stored: str) -> None:
    matrix = StoredMatrix.of(torch.randn(9, 40), stored)
    assert torch.equal(matrix.rows(torch.tensor([8, 0, 8])), matrix.unpacked()[[8, 0, 8]])
