"""Which product is chosen."""

from dataclasses import dataclass

import pytest
import torch
from fakes_worker import coded_matrix

from common.config import Stored
from worker.models.linear import GatedLinear, NormedLinear, PackedLinear, PlainLinear
from worker.models.load_linear import load_gated, load_stacked, make_linear
from worker.models.native_linear import NativeLinear
from worker.models.rms_norm import RmsNorm
from worker.models.stored_matrix import StoredMatrix
from worker.native.library import open_library


@dataclass
class Matrices:
    """Weights that are made up when asked for, the same for the same name."""

    stored: Stored = "exact"
    device = torch.device("cpu")

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))

    def matrix(self, name: str, out: int, ins: int) -> StoredMatrix:
        return StoredMatrix.of(self.get(name, out, ins), self.stored)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch):
    open_library.cache_clear()
    monkeypatch.setenv("PATH", "")
    yield
    open_library.cache_clear()


NORM = RmsNorm(torch.linspace(0.5, 2, 40), 1e-5)
GATED = (("gate", "upper"), 24, 40, "silu")


@pytest.mark.skipif(open_library() is None, reason="no C compiler")
def test_fp32_on_the_cpu_is_native() -> None:
    assert isinstance(make_linear(StoredMatrix(torch.zeros(4, 4))), NativeLinear)
    assert isinstance(load_gated(Matrices(), *GATED, bias=False, norm=NORM), NativeLinear)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_fp32_is_packed() -> None:
    product = load_stacked(Matrices(), ["a"], [8], 40, bias=False, norm=NORM)
    assert isinstance(product, NormedLinear)
    assert isinstance(product.product, PackedLinear)
    assert isinstance(load_gated(Matrices(), *GATED, bias=False, norm=NORM), GatedLinear)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_codes_are_unpacked() -> None:
    matrix, x = coded_matrix(8, 64, 4), torch.randn(3, 64)
    product = make_linear(matrix)
    assert isinstance(product, PackedLinear)
    torch.testing.assert_close(product(x), x @ matrix.unpacked().T)


def test_what_is_neither_is_multiplied_plainly() -> None:
    weight = torch.randn(4, 3, dtype=torch.float64)
    product = make_linear(StoredMatrix.of(weight, "exact"))
    assert isinstance(product, PlainLinear)
    assert torch.equal(product(torch.eye(3, dtype=torch.float64)), weight.t())


def test_other_gates_than_silu_are_torchs() -> None:
    gated = load_gated(Matrices(), ("gate", "upper"), 24, 40, "gelu", bias=False, norm=NORM)
    assert isinstance(gated, GatedLinear)


@pytest.mark.parametrize("stored", ["exact", "bf16", "int8"])
def test_all_ways_give_the_same_numbers(stored: Stored, no_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights = torch.linspace(-1, 1, 200).view(5, 40), Matrices(stored)
    names, outs = ["a", "bb", "ccc"], [40, 16, 16]

    def products() -> list[torch.Tensor]:
        stacked = load_stacked(weights, names, outs, 40, bias=True, norm=NORM)
        return [stacked(x), load_gated(weights, *GATED, bias=True, norm=NORM)(x)]

    plain = products()
    monkeypatch.undo()
    open_library.cache_clear()
    # int8 may keep 16 bits of a row's numbers, bf16 8.
    rtol, atol = {"exact": (1e-5, 1e-4), "bf16": (2e-2, 0.2), "int8": (3e-4, 1e-3)}[stored]
    for actual, expected in zip(products(), plain, strict=True):
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
