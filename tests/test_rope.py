"""The native rotation against the plain one."""

import pytest
import torch

from worker.models.rope import NativeRotation, PlainRotation, Rope, _native

pytestmark = pytest.mark.skipif(_native() is None, reason="no C compiler")


@pytest.mark.parametrize("head_dim", [2, 16, 64, 80])
def test_the_native_rotation_equals_the_plain_one(head_dim: int) -> None:
    torch.manual_seed(0)
    rope = Rope(1.0 / 10000.0 ** (torch.arange(0, head_dim, 2) / head_dim))
    native = rope.at(torch.tensor([0, 5, 8000]), torch.float32)
    assert isinstance(native, NativeRotation)
    qkv = torch.randn(3, 6, head_dim)
    x, behind = qkv[:, :4], qkv[:, 4:].clone()
    expected = PlainRotation(native.cos, native.sin)(x)
    torch.testing.assert_close(native(x), expected)
    assert torch.equal(qkv[:, 4:], behind)


def test_other_types_are_rotated_plainly() -> None:
    assert isinstance(Rope(torch.ones(4)).at(torch.tensor([1]), torch.bfloat16), PlainRotation)
