"""What bends logits, against plain arithmetic on one row."""

import math

import numpy as np
import pytest
import torch

from common.records import Penalties, Shaping
from worker.shaping import shape

PENALTIES = [
    Penalties(0.0, 0.0, 1.0, [0], [0]),
    Penalties(1.5, 0.0, 1.0, [], [0, 0]),
    Penalties(0.0, 0.5, 1.0, [], [0, 0, 0, 2]),
    Penalties(2.0, 2.0, 1.0, [0, 0], []),
    Penalties(0.0, 0.0, 1.4, [0, 4], []),
    Penalties(0.0, 0.0, 1.4, [0, 1], [0, 2]),
    Penalties(-1.5, -0.25, 0.7, [4], [1, 1, 3]),
    Penalties(1.0, 1.0, 1.4, [0], [0, 4, 4, 4]),
]
ROW = [4.0, 3.0, -1.0, 0.0, -2.5]


def shaped(shaping: Shaping, row: list[float] = ROW) -> list[float]:
    logits = torch.tensor(row)
    shape(logits, shaping)
    return logits.tolist()


def by_definition(row: list[float], p: Penalties) -> list[float]:
    """Token by token: repetition once for what was ever seen, frequency for each time said, presence once if said."""
    bent = []
    for token, logit in enumerate(row):
        times = p.repetition if token in p.prompt + p.output else 1.0
        said = p.output.count(token)
        bent.append((logit / times if logit > 0 else logit * times) - said * p.frequency - (said > 0) * p.presence)
    return bent


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
def test_penalties_follow_their_definitions(penalties: Penalties) -> None:
    assert shaped(Shaping(penalties=penalties)) == pytest.approx(by_definition(ROW, penalties))


def test_a_bias_is_added() -> None:
    assert shaped(Shaping(bias=[(0, -100.0), (3, 2.5)])) == pytest.approx([-96.0, 3.0, -1.0, 2.5, -2.5])


def test_forbidden_tokens_cannot_come_whatever_their_bias() -> None:
    assert shaped(Shaping(bias=[(1, 100.0)], forbidden=[1, 4])) == [4.0, -math.inf, -1.0, 0.0, -math.inf]


def test_only_tokens_whose_bit_is_set_are_allowed() -> None:
    row = [float(i) for i in range(20)]
    allowed = {0, 7, 8, 15, 19}
    bits = np.zeros(24, np.uint8)
    bits[list(allowed)] = 1
    mask = np.packbits(bits, bitorder="little").tobytes()
    assert shaped(Shaping(allowed=mask), row) == [logit if t in allowed else -math.inf for t, logit in enumerate(row)]


def test_tokens_beyond_the_mask_are_not_allowed() -> None:
    assert shaped(Shaping(allowed=b"\xff"), [0.0] * 10) == [0.0] * 8 + [-math.inf] * 2


def test_penalties_come_before_the_bias() -> None:
    shaping = Shaping(penalties=Penalties(0.0, 0.0, 2.0, [0], []), bias=[(0, 1.0)])
    assert shaped(shaping)[0] == 4.0 / 2 + 1
