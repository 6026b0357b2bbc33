"""How the engine drives constraints: whom it tells what, and how long it waits for them all."""

from collections.abc import Iterator

import pytest
from fakes import FixedMask, generation

from gateway.constraints import GRACE_S, Constraints, why_no_token
from gateway.generation import Failure
from gateway.scheduling.job import Job
from gateway.scheduling.scheduler import Outcome


def outcome(token: int | None, constraint: FixedMask | None, *, ended: bool = False) -> Outcome:
    job = Job(1, generation(2, 5, constraint=constraint), arrival=0.0)
    return Outcome(job, token, "length" if ended else None, None)


def test_a_constraint_is_started_with_what_wakes_the_engine() -> None:
    woken: list[bool] = []
    constraint = FixedMask()
    Constraints(lambda: woken.append(True)).start(generation(2, 5, constraint=constraint))
    assert constraint.on_ready is not None
    constraint.on_ready()
    assert woken == [True]


def test_only_jobs_that_go_on_are_told_and_waited_for() -> None:
    going, ended, silent = FixedMask(), FixedMask(), FixedMask()
    outcomes = [outcome(7, going), outcome(8, ended, ended=True), outcome(None, silent), outcome(9, None)]
    Constraints(lambda: None).advance(outcomes)
    assert (going.accepted, ended.accepted, silent.accepted) == ([7], [], [])
    assert [len(one.waits) for one in (going, ended, silent)] == [1, 0, 0]


def test_all_of_them_together_get_one_grace() -> None:
    times: Iterator[float] = iter([0.0, 0.0, GRACE_S * 0.75, GRACE_S * 5])
    masks = [FixedMask() for _ in range(3)]
    Constraints(lambda: None, clock=times.__next__).advance([outcome(7, mask) for mask in masks])
    assert [mask.waits for mask in masks] == [[GRACE_S], [pytest.approx(GRACE_S * 0.25)], [0.0]]


def test_a_client_is_told_why_its_constraint_gave_up() -> None:
    constraint = FixedMask()
    assert "not finite" in why_no_token(generation(2, 5)).message
    assert not why_no_token(generation(2, 5)).by_request
    for options in ({"constraint": constraint}, {"bad_words": ((1,),)}, {"min_tokens": 1}):
        failure = why_no_token(generation(2, 5, **options))
        assert ("leaves no token" in failure.message, failure.by_request) == (True, True)
    constraint.failure = "too complex"
    assert why_no_token(generation(2, 5, constraint=constraint)) == Failure("too complex", by_request=True)
