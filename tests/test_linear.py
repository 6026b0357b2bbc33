import pytest
import torch

from worker.models.linear import PackedLinear, PlainLinear, linear, padded_rows

needs_packing = pytest.mark.skipif(
    not PackedLinear.supports(torch.zeros(1, 1)), reason="this build of torch has no oneDNN"
)


@needs_packing
@pytest.mark.parametrize("rows", [1, 2, 7, 64, 100, 512, 2048, 2049, 2100])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 40)])
def test_the_packed_product_equals_the_plain_one(rows: int, bias: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(40, 24), torch.randn(rows, 24)
    expected = PlainLinear(weight, bias)(x)
    torch.testing.assert_close(PackedLinear.pack(weight, bias)(x), expected, rtol=1e-5, atol=1e-5)


@needs_packing
def test_a_row_that_is_not_contiguous_is_read_right() -> None:
    weight, wide = torch.randn(8, 16), torch.randn(4, 32)
    expected = PlainLinear(weight, None)(wide[:, :16])
    torch.testing.assert_close(PackedLinear.pack(weight, None)(wide[:, :16]), expected, rtol=1e-5, atol=1e-5)


@needs_packing
def test_fp32_on_the_cpu_is_packed() -> None:
    assert isinstance(linear(torch.zeros(4, 4)), PackedLinear)


def test_what_cannot_be_packed_is_multiplied_plainly() -> None:
    weight = torch.randn(4, 3, dtype=torch.float64)
    product = linear(weight)
    assert isinstance(product, PlainLinear)
    assert torch.equal(product(torch.eye(3, dtype=torch.float64)), weight.t())


def test_products_of_all_lengths_are_made_with_few_numbers_of_rows() -> None:
    assert all(padded_rows(rows) >= rows for rows in range(1, 2049))
    assert len({padded_rows(rows) for rows in range(1, 2049)}) == 52
