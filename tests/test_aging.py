import math

from fakes import generation

from gateway.scheduling.aging import Aging
from gateway.scheduling.job import Job

QUANTA = [1.0, 2.0, 4.0]


def waiting(job_id: int, level: int, since: float, attained_s: float = 0.0) -> Job:
    return Job(job_id, generation(4, 4), since, level=level, waiting_since=since, attained_s=attained_s)


def test_a_job_starves_after_factor_times_its_quantum() -> None:
    aging, job = Aging(factor=3.0, places=4), waiting(1, level=1, since=0.0)
    aging.watch(job, QUANTA[1])
    assert aging.starving(5.9, active=1, quanta=QUANTA) == []
    assert aging.starving(6.0, active=1, quanta=QUANTA) == [job]


def test_attained_service_makes_the_limit_longer() -> None:
    aging, job = Aging(factor=3.0, places=4), waiting(1, level=1, since=0.0, attained_s=10.0)
    aging.watch(job, QUANTA[1])
    assert aging.starving(29.0, active=1, quanta=QUANTA) == []
    assert aging.starving(31.0, active=1, quanta=QUANTA) == [job]


def test_the_limit_grows_with_the_jobs_per_place() -> None:
    aging, job = Aging(factor=3.0, places=4), waiting(1, level=0, since=0.0)
    aging.watch(job, QUANTA[0])
    assert aging.starving(29.0, active=40, quanta=QUANTA) == []
    assert aging.starving(31.0, active=40, quanta=QUANTA) == [job]


def test_a_job_in_flight_is_not_starving() -> None:
    aging, job = Aging(factor=3.0, places=4), waiting(1, level=0, since=0.0)
    aging.watch(job, QUANTA[0])
    job.in_flight = 1
    assert aging.starving(100.0, active=1, quanta=QUANTA) == []
    job.in_flight = 0
    assert aging.starving(200.0, active=1, quanta=QUANTA) == [job]


def test_factor_zero_promotes_nobody() -> None:
    aging, job = Aging(factor=0.0, places=4), waiting(1, level=0, since=0.0)
    aging.watch(job, QUANTA[0])
    assert aging.starving(1e9, active=1, quanta=QUANTA) == []
    assert aging.seconds_left(job, QUANTA[0], active=1, now=0.0) == math.inf


def test_jobs_that_ended_are_let_go() -> None:
    aging = Aging(factor=1e9, places=4)
    jobs = [waiting(i, level=0, since=0.0) for i in range(200)]
    for job in jobs:
        aging.watch(job, QUANTA[0])
        job.finish_reason = "stop"
    aging.starving(0.0, active=0, quanta=QUANTA)
    assert aging._due == []


def test_an_absolute_limit_takes_no_account_of_service_or_crowds() -> None:
    aging, job = Aging(factor=3.0, places=4, limit_s=0.3), waiting(1, level=2, since=0.0, attained_s=50.0)
    aging.watch(job, QUANTA[2])
    assert aging.starving(0.29, active=400, quanta=QUANTA) == []
    assert aging.starving(0.31, active=400, quanta=QUANTA) == [job]


def test_an_absolute_limit_counts_even_where_relative_aging_is_off() -> None:
    aging, job = Aging(factor=0.0, places=4, limit_s=2.0), waiting(1, level=2, since=0.0)
    assert aging.seconds_left(job, QUANTA[2], active=9, now=0.5) == 1.5
