"""Limits of an account, on a manual clock."""

import pytest

from gateway.accounts import JOB_RETRY_S, Account, Bucket, LimitReached, Limits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def account(clock: Clock, **limits: int) -> Account:
    return Account("alice", Limits(**limits), clock)


def test_a_bucket_holds_a_minutes_worth_and_refills_steadily(clock: Clock) -> None:
    bucket = Bucket(60, clock)
    clock.now = 1000.0
    assert (bucket.remaining, bucket.full_in_s) == (60, 0.0)
    bucket.take(45)
    assert (bucket.remaining, bucket.full_in_s) == (15, 45.0)
    clock.now += 10
    assert (bucket.remaining, bucket.wait_s(25), bucket.wait_s(30)) == (25, 0.0, 5.0)


def test_a_debt_is_paid_before_anything_is_left(clock: Clock) -> None:
    bucket = Bucket(60, clock)
    bucket.take(90)
    assert (bucket.remaining, bucket.wait_s(1), bucket.full_in_s) == (0, 31.0, 90.0)
    clock.now += 31
    assert bucket.remaining == 1


def test_one_request_too_many_is_told_when_there_is_room(clock: Clock) -> None:
    alice = account(clock, requests_per_minute=2)
    alice.take_request()
    alice.take_request()
    with pytest.raises(LimitReached) as caught:
        alice.take_request()
    assert (caught.value.limit, caught.value.most, caught.value.retry_after_s) == ("requests", 2, 30.0)
    clock.now += 30
    alice.take_request()


def test_a_refused_request_costs_nothing(clock: Clock) -> None:
    alice = account(clock, requests_per_minute=1)
    alice.take_request()
    for _ in range(5):
        with pytest.raises(LimitReached) as caught:
            alice.take_request()
    assert caught.value.retry_after_s == 60.0


def test_tokens_are_charged_as_they_come_and_hold_back_new_jobs_only(clock: Clock) -> None:
    alice = account(clock, tokens_per_minute=100)
    alice.check_jobs(1)
    alice.spend(40)
    alice.check_jobs(1)
    alice.spend(100)
    with pytest.raises(LimitReached) as caught:
        alice.check_jobs(1)
    assert (caught.value.limit, caught.value.retry_after_s) == ("tokens", pytest.approx(24.6))


def test_jobs_at_once_are_counted_from_begin_to_end(clock: Clock) -> None:
    alice = account(clock, concurrent_jobs=2)
    alice.check_jobs(2)
    alice.begin_job()
    alice.check_jobs(1)
    with pytest.raises(LimitReached) as caught:
        alice.check_jobs(2)
    assert (caught.value.limit, caught.value.retry_after_s) == ("jobs", JOB_RETRY_S)
    alice.end_job()
    alice.check_jobs(2)


def test_without_limits_everything_is_allowed(clock: Clock) -> None:
    alice = account(clock)
    alice.take_request()
    alice.check_jobs(10**6)
    alice.spend(10**9)
    alice.check_jobs(10**6)
    assert repr(alice) == "<Account alice: 0 jobs>"


def test_ending_a_job_that_never_began_is_a_bug(clock: Clock) -> None:
    with pytest.raises(AssertionError):
        account(clock).end_job()
