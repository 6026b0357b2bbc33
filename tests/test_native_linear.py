"""The native products against the plain ones, and the promise about bits."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from fakes_worker import coded_matrix

from worker.models import native_linear
from worker.models.linear import GatedLinear, Linear, NormedLinear, PlainLinear
from worker.models.native_linear import Layout, NativeLinear, layout_of
from worker.models.rms_norm import RmsNorm
from worker.models.stored_matrix import GROUP, StoredMatrix
from worker.native.library import open_library

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

STORED = ["exact", "exact, of bf16", "exact, of fp16", "bf16", "int8"]
KEPT = [*STORED, "codes of 4 bits", "codes of 8 bits"]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 16, 100, 300]
SHAPES = [(1, 1), (5, 3), (16, 32), (40, 33), (100, 64), (300, 700)]  # out, in


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pack(matrix: StoredMatrix, bias: torch.Tensor | None = None, **options: object) -> NativeLinear:
    library = open_library()
    assert library is not None
    return NativeLinear.pack(library, matrix, bias, **options)


def matrix_of(out: int, ins: int, stored: str) -> StoredMatrix:
    if stored.startswith("codes"):
        return coded_matrix(out, ins, 4 if "4" in stored else 8)
    numbers = torch.randn(out, ins, generator=torch.Generator().manual_seed(1))
    if stored == "exact, of bf16":
        return StoredMatrix.of(numbers.bfloat16().float(), "exact")
    if stored == "exact, of fp16":
        return StoredMatrix.of(numbers.half().float(), "exact")
    return StoredMatrix.of(numbers, stored)


def lies_as(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, whatever this CPU wants."""
    monkeypatch.setattr(native_linear, "layout_of", lambda matrix, library: layout)


def assert_close(
    stored: str, product: Linear, expected: Linear, x: torch.Tensor, add: torch.Tensor | None = None
) -> None:
    # int8 keeps 16 bits of a row's numbers; bf16 8, where the CPU has AMX.
    rtol, atol = {"bf16": (2e-2, 0.5), "int8": (1e-4, 1e-2)}.get(stored, (1e-5, 5e-4))
    torch.testing.assert_close(product(x, add), expected(x, add), rtol=rtol, atol=atol)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("out", "ins"), SHAPES)
def test_it_equals_the_plain_product(out: int, ins: int, stored: str) -> None:
    matrix, bias, norm = matrix_of(out, ins, stored), torch.randn(out), RmsNorm(torch.rand(ins), 1e-5)
    plain, with_bias = PlainLinear(matrix.unpacked()), PlainLinear(matrix.unpacked(), bias)
    for rows in ROWS:
        x, add = torch.randn(rows, ins), torch.randn(rows, out)
        assert_close(stored, pack(matrix), plain, x)
        assert_close(stored, pack(matrix, bias), with_bias, x, add)
        assert_close(stored, pack(matrix, bias, norm=norm), NormedLinear(norm, with_bias), x, add)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("out", [1, 8, 20, 100])
def test_a_gated_product_equals_the_plain_one(out: int, stored: str) -> None:
    matrix, bias = matrix_of(2 * out, 40, stored), torch.randn(2 * out)
    gated = GatedLinear(PlainLinear(matrix.unpacked(), bias), F.silu)
    for rows in ROWS:
        assert_close(stored, pack(matrix, bias, gated=True), gated, torch.randn(rows, 40))


@pytest.mark.parametrize(("out", "ins"), SHAPES)
def test_how_int8_lies_in_memory_changes_no_bit(out: int, ins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, ids = matrix_of(out, ins, "int8"), torch.arange(out)
    found = []
    for layout in (Layout.INT8, Layout.INT8_QUADS):
        lies_as(layout, monkeypatch)
        found.append(pack(matrix))
    pairs, quads = found
    assert torch.equal(pairs.columns(ids), quads.columns(ids))
    for rows in ROWS:
        x = torch.randn(rows, ins)
        assert torch.equal(pairs(x), quads(x))


def test_a_gate_that_is_very_open_or_shut_is_neither_nan_nor_infinite() -> None:
    product = pack(StoredMatrix(torch.tensor([[1.0], [1.0]])), gated=True)
    x = torch.tensor([[-3e4], [-200.0], [-0.0], [200.0], [1e4]])
    expected = GatedLinear(PlainLinear(torch.ones(2, 1)), F.silu)(x)
    torch.testing.assert_close(product(x), expected, rtol=1e-5, atol=1e-25)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("out", "ins"), SHAPES)
def test_a_rows_numbers_are_the_same_bits_in_any_batch(out: int, ins: int, stored: str) -> None:
    product = pack(matrix_of(out, ins, stored), torch.randn(out), norm=RmsNorm(torch.rand(ins), 1e-5))
    x = torch.randn(max(ROWS), ins)
    together = product(x)
    assert torch.equal(torch.cat([product(row[None]) for row in x]), together)
    for rows in ROWS:
        assert torch.equal(product(x[-rows:]), together[-rows:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("out", "ins"), [(100, 70), (48, 1), (2, 300)])
def test_16_bits_are_multiplied_like_their_fp32_numbers_to_the_bit(
    out: int, ins: int, gated: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredMatrix, "narrowed", lambda self, dtypes: self)
    narrow = StoredMatrix(matrix_of(out, ins, "exact").values.to(dtype))
    exact, product = pack(StoredMatrix(narrow.unpacked()), gated=gated), pack(narrow, gated=gated)
    assert (exact.number_bytes, product.number_bytes) == (4, 2)
    ids = torch.arange(out // 2)
    assert torch.equal(product.columns(ids), exact.columns(ids))
    for rows in ROWS:
        x = torch.randn(rows, ins)
        assert torch.equal(product(x), exact(x))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("out", "ins"), [(100, 64), (48, 32), (2, 320), (34, 11_200)])
def test_codes_are_multiplied_like_their_fp32_numbers_to_the_bit(
    out: int, ins: int, gated: bool, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredMatrix, "narrowed", lambda self, dtypes: self)
    coded, norm = coded_matrix(out, ins, bits), RmsNorm(torch.rand(ins), 1e-5)
    exact = pack(StoredMatrix(coded.unpacked()), torch.ones(out), norm=norm, gated=gated)
    product = pack(coded, torch.ones(out), norm=norm, gated=gated)
    assert (exact.number_bytes, product.number_bytes) == (4, 0.75 if bits == 4 else 1.5)
    ids = torch.arange(out // 2)
    assert torch.equal(product.columns(ids), exact.columns(ids))
    for rows in ROWS:
        x = torch.randn(rows, ins)
        assert torch.equal(product(x), exact(x))
        assert torch.equal(product(x), torch.cat([product(row[None]) for row in x]))


def test_exact_numbers_are_kept_in_16_bits_that_have_them_all() -> None:
    library, numbers = open_library(), matrix_of(100, 70, "exact").values
    assert library is not None
    assert pack(StoredMatrix.of(numbers.bfloat16().float(), "exact")).parameters.type == Layout.BF16
    fp16 = Layout.FP16 if library.linear_fp16() else Layout.FP32
    assert pack(StoredMatrix.of(numbers.half().float(), "exact")).parameters.type == fp16
    numbers = numbers.half().float()
    numbers[99, 69] = 1 + 2**-20
    assert pack(StoredMatrix.of(numbers, "exact")).parameters.type == Layout.FP32


def test_amx_multiplies_what_was_rounded_and_nothing_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    library = open_library()
    assert library is not None
    monkeypatch.setattr(library, "linear_amx", lambda: True)
    numbers = torch.ones(2, 2)
    assert layout_of(StoredMatrix.of(numbers, "bf16"), library) == Layout.BF16_PAIRS
    assert layout_of(StoredMatrix.of(numbers, "exact").narrowed(), library) == Layout.BF16


def test_bf16_by_amx_multiplies_rows_rounded_to_bf16() -> None:
    matrix = matrix_of(100, 700, "bf16")
    product = pack(matrix)
    if product.parameters.type != Layout.BF16_PAIRS:
        pytest.skip("this CPU has no AMX")
    weights = matrix.unpacked().double()
    for rows in ROWS:
        x = torch.randn(rows, 700).bfloat16().double()
        off = (product(x.float()).double() - x @ weights.T).abs()
        assert (off <= 2**-19 * x.abs() @ weights.abs().T).all()
        assert torch.equal(product((x * (1 + 2**-10)).float()), product(x.float()))


@pytest.mark.parametrize("layout", [Layout.INT8, Layout.INT8_QUADS])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integers_do_not_overflow(sign: int, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    lies_as(layout, monkeypatch)
    matrix = StoredMatrix.of(torch.full((40, 2 * GROUP), float(sign)), "int8")
    product = pack(matrix)
    for rows in ROWS:
        x = torch.full((rows, 2 * GROUP), 3.0)
        torch.testing.assert_close(product(x), torch.full((rows, 40), sign * 6.0 * GROUP))
        torch.testing.assert_close(product(-x), torch.full((rows, 40), -sign * 6.0 * GROUP))


def test_a_huge_input_costs_int8_no_precision_beyond_its_group() -> None:
    matrix, x = matrix_of(100, 3 * GROUP, "int8"), torch.randn(4, 3 * GROUP)
    x[:, GROUP] = 1e9
    matrix.values[:, GROUP : 2 * GROUP] = 0
    torch.testing.assert_close(pack(matrix)(x), PlainLinear(matrix.unpacked())(x), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("stored", ["int8", "codes of 4 bits"])
def test_the_number_of_threads_does_not_change_a_bit(stored: str) -> None:
    matrix, x = matrix_of(300, 704, stored), torch.randn(50, 704)
    before = torch.get_num_threads()
    products = []
    for threads in (1, 3, 32):  # the last: more than there are panels
        torch.set_num_threads(threads)
        products.append(pack(matrix, norm=RmsNorm(torch.ones(704), 1e-5))(x))
    torch.set_num_threads(before)
    assert torch.equal(products[0], products[1])
    assert torch.equal(products[0], products[2])


@pytest.mark.parametrize("stored", STORED)
def test_columns_are_rows_of_the_matrix(stored: str) -> None:
    matrix = matrix_of(100, 70, stored)
    ids = torch.tensor([0, 99, 5, 5, 16, 15])
    assert torch.equal(pack(matrix).columns(ids), matrix.unpacked()[ids])


@pytest.mark.parametrize("stored", KEPT)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_stays_in_its_row(stored: str, number: float) -> None:
    product, x = pack(matrix_of(20, 64, stored)), torch.randn(9, 64)
    expected = product(x)
    x[4, 7] = number
    assert not product(x)[4].isfinite().any()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(product(x)[others], expected[others])
