"""The stages as the engine sees them: what each is sent."""

from itertools import count

import pytest

from common.channel import LocalChannel
from common.config import ConfigError
from common.records import Entry, Fault, Plan, Progress, Sampling, Shaping, decode_order, encode, pack_blocks
from gateway.pipeline import Interrupted, Pipeline, StageLost

DRAW = Sampling(0.0, 1.0, 0, 0.0, 0)
BENT = Entry(1, 0, [5], pack_blocks([0]), DRAW, Shaping(allowed=b"\xff" * 6000), 1, [6])
PLAIN = Entry(2, 0, [5], pack_blocks([0]), DRAW)


def received(ranks: list[LocalChannel], *entries: Entry) -> list[tuple[Plan, int]]:
    """What every stage got, and in how many bytes."""
    stages = list(range(1, len(ranks)))
    Pipeline(ranks[0], stages, timeout_s=1.0).send(Plan(1, 0, list(entries), [], [], False))
    messages = [ranks[stage].poll() for stage in stages]
    plans = [(decode_order(message[1]), len(message[1])) for message in messages if message is not None]
    return [(plan, size) for plan, size in plans if isinstance(plan, Plan)]


def test_only_the_last_stage_is_told_what_to_do_with_logits() -> None:
    (first, first_size), (second, _), (last, last_size) = received(LocalChannel.world(4), BENT, PLAIN)
    assert [(entry.shaping, entry.scored) for entry in first.entries] == [(None, []), (None, [])]
    assert second == first
    assert last.entries == [BENT, PLAIN]
    assert first_size < 120
    assert last_size > 6000


def test_ordinary_plans_are_the_same_for_all_stages() -> None:
    plans = [plan for plan, _ in received(LocalChannel.world(3), PLAIN)]
    assert [plan.entries for plan in plans] == [[PLAIN], [PLAIN]]


def test_stages_that_always_tell_how_far_they_are_do_not_keep_anybody_from_leaving() -> None:
    gateway, stage = LocalChannel.world(2)
    pipeline = Pipeline(gateway, [1], timeout_s=1.0)
    told = count()

    def tell(_: float) -> None:
        assert next(told) < 5, "it goes on"
        stage.send([0], encode(Progress(1, 2)))
        pipeline.interrupt()

    stage.send([0], encode(Progress(0, 2)))
    with pytest.raises(Interrupted):
        pipeline.wait_until_loaded(60.0, tell)


@pytest.mark.parametrize(("is_mistake", "error"), [(True, ConfigError), (False, StageLost)])
def test_what_a_stage_says_of_the_configuration_is_the_operators_mistake(
    is_mistake: bool, error: type[Exception]
) -> None:
    gateway, stage = LocalChannel.world(2)
    stage.send([0], encode(Fault("no such thing", is_mistake)))
    with pytest.raises(error, match="rank 1: no such thing"):
        Pipeline(gateway, [1], timeout_s=1.0).wait_until_loaded(60.0, lambda share: None)


def test_a_single_stage_gets_everything() -> None:
    [(plan, _)] = received(LocalChannel.world(2), BENT)
    assert plan.entries == [BENT]
