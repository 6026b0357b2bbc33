"""The products in torch, against each other."""

import pytest
import torch

from worker.models.linear import GatedLinear, NormedLinear, PackedLinear, PlainLinear, padded_rows
from worker.models.rms_norm import RmsNorm

needs_packing = pytest.mark.skipif(
    not PackedLinear.supports(torch.zeros(1, 1)), reason="this build of torch has no oneDNN"
)


@needs_packing
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 100, 512, 2048, 2049, 2100])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 40)])
def test_the_packed_product_equals_the_plain_one(rows: int, bias: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    weight, x, add = torch.randn(40, 24), torch.randn(rows, 24), torch.randn(rows, 40)
    packed, plain = PackedLinear.pack(weight, bias), PlainLinear(weight, bias)
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed(x, add), plain(x) + add, rtol=1e-5, atol=1e-5)


@needs_packing
def test_a_row_that_is_not_contiguous_is_read_right() -> None:
    weight, wide = torch.randn(8, 16), torch.randn(4, 32)
    expected = PlainLinear(weight)(wide[:, :16])
    torch.testing.assert_close(PackedLinear.pack(weight, None)(wide[:, :16]), expected, rtol=1e-5, atol=1e-5)


def test_what_is_added_is_added_to_the_product() -> None:
    weight, x, add = torch.randn(5, 3), torch.randn(2, 3), torch.randn(2, 5)
    assert torch.equal(PlainLinear(weight)(x, add), add + x @ weight.t())


def test_a_normed_product_is_that_of_rows_whose_mean_square_is_one() -> None:
    normed = NormedLinear(RmsNorm(torch.tensor([1.0, 2.0]), 0.0), PlainLinear(torch.eye(2)))
    torch.testing.assert_close(normed(torch.tensor([[3.0, 3.0], [-5.0, 5.0]])), torch.tensor([[1.0, 2.0], [-1.0, 2.0]]))


def test_the_first_half_of_a_product_gates_the_second() -> None:
    gated = GatedLinear(PlainLinear(torch.tensor([[-1.0], [2.0], [3.0], [5.0]])), torch.relu)
    assert torch.equal(gated(torch.tensor([[2.0]])), torch.tensor([[0.0, 4.0 * 10.0]]))
    assert torch.equal(gated(torch.tensor([[2.0]]), torch.ones(1, 2)), torch.tensor([[1.0, 41.0]]))


def test_products_of_all_lengths_are_made_with_few_numbers_of_rows() -> None:
    assert all(padded_rows(rows) >= rows for rows in range(1, 2049))
    assert len({padded_rows(rows) for rows in range(1, 2049)}) == 52
