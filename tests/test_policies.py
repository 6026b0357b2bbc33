"""The policies on a three-job example in the manner of the paper's, whose schedules can be followed by hand.

One job at a time, a decode iteration takes 1, a prefill as many as the prompt has tokens, quanta are 1, 2, 4, 8.
A: prompt 5, 4 tokens (5 + 3 = 8). B: prompt 1, 2 tokens (1 + 1 = 2). C: prompt 6, 2 tokens (6 + 1 = 7).
"""

import pytest
from fakes import Drive, scheduler

from common.config import Policy
from gateway.scheduling.cost import LinearCost

A, B, C = 0, 1, 2
JOBS = {A: (5, 4), B: (1, 2), C: (6, 2)}


def drive(policy: Policy) -> Drive:
    cost = LinearCost(decode=1.0, prefill_per_token=1.0)
    drive = Drive(scheduler(cost, policy=policy, max_batch_jobs=1, aging=0.0), cost)
    for job_id, (prompt, output) in JOBS.items():
        drive.submit(job_id, prompt, output)
    drive.run()
    return drive


def test_fcfs_runs_each_job_to_completion() -> None:
    run = drive("fcfs")
    assert run.schedule == [[A]] * 4 + [[B]] * 2 + [[C]] * 2
    assert run.finished_at == {A: 8, B: 10, C: 17}  # mean 11.67


def test_naive_mlfq_makes_everybody_wait_for_every_prefill() -> None:
    run = drive("mlfq")
    # Prefills of A, B, C at level 0 (to 5, 6, 12), then level 1: A twice, B ends, C ends; A ends at level 2.
    assert run.schedule == [[A], [B], [C], [A], [A], [B], [C], [A]]
    assert run.finished_at == {A: 17, B: 15, C: 16}  # mean 16


def test_skip_join_lets_long_prompts_join_below() -> None:
    run = drive("skip-join")
    # B joins level 0 and ends at 2. A and C join level 3 (quantum 8 covers 5 and 6): A to 10, C to 17.
    assert run.schedule == [[B]] * 2 + [[A]] * 4 + [[C]] * 2
    assert run.finished_at == {A: 10, B: 2, C: 17}  # mean 9.67


def test_srpt_knows_the_lengths() -> None:
    run = drive("srpt")
    assert run.schedule == [[B]] * 2 + [[C]] * 2 + [[A]] * 4
    assert run.finished_at == {A: 17, B: 2, C: 9}  # mean 9.33


def test_static_does_what_fcfs_does_with_one_place() -> None:
    assert drive("static").schedule == drive("fcfs").schedule


def test_skip_join_comes_close_to_srpt_and_beats_fcfs_and_naive_mlfq() -> None:
    mean = {policy: sum(drive(policy).finished_at.values()) / 3 for policy in ("srpt", "skip-join", "fcfs", "mlfq")}
    assert mean["srpt"] < mean["skip-join"] < mean["fcfs"] < mean["mlfq"]
    assert mean["skip-join"] == pytest.approx(1.04 * mean["srpt"], rel=0.01)


def test_a_static_batch_takes_nobody_in_until_all_of_it_is_done() -> None:
    cost = LinearCost(1.0, 0.1)
    run = Drive(scheduler(cost, policy="static", max_batch_jobs=2), cost)
    for job_id, output in enumerate((1, 4, 1)):
        run.submit(job_id, 2, output)
    run.run()
    assert run.schedule == [[0, 1], [1], [1], [1], [2]]


def test_fcfs_fills_a_place_as_soon_as_it_is_free() -> None:
    cost = LinearCost(1.0, 0.1)
    run = Drive(scheduler(cost, policy="fcfs", max_batch_jobs=2), cost)
    for job_id, output in enumerate((1, 4, 1)):
        run.submit(job_id, 2, output)
    run.run()
    assert run.schedule == [[0, 1], [1, 2], [1], [1]]


def test_a_short_job_overtakes_long_ones_that_sank() -> None:
    cost = LinearCost(1.0, 0.1)
    run = Drive(scheduler(cost, policy="skip-join", max_batch_jobs=1, aging=0.0), cost)
    run.submit(0, 2, 50)
    for _ in range(10):
        run.step()
    run.submit(1, 2, 1)
    run.step()
    assert run.schedule[-1] == [1]


def test_a_starving_job_is_promoted_runs_its_minimum_and_goes_back() -> None:
    cost = LinearCost(1.0, 1.0)
    run = Drive(scheduler(cost, policy="skip-join", max_batch_jobs=1, aging=2.0), cost)
    starved = run.submit(0, 16, 40)  # joins level 4
    for job_id in range(1, 100):
        run.submit(job_id, 1, 1)
        run.step()
    assert starved.counts.promotions == 1
    assert starved.joined_level == 4
    assert starved.level == 4  # back where it came from
    first = run.schedule.index([0])
    assert run.schedule[first] == [0]


def test_a_promoted_job_keeps_its_place_for_a_minimum_of_iterations() -> None:
    cost = LinearCost(1.0, 1.0)
    run = Drive(scheduler(cost, policy="skip-join", max_batch_jobs=1, aging=2.0), cost)
    long = run.submit(0, 2, 400)
    while long.level < 3:
        run.step()
    job_id = 1
    while not long.counts.promotions:
        run.submit(job_id, 1, 1)
        run.step()
        job_id += 1
    before = len(run.schedule)
    for _ in range(12):
        run.submit(job_id, 1, 1)
        run.step()
        job_id += 1
    served = [ids == [0] for ids in run.schedule[before - 1 :]]
    assert sum(served) >= 8
