"""Jobs that begin alike share KV; tests/test_scheduler_machine.py holds that nobody ever reads what is not his."""

from typing import Any

import pytest
from fakes import Drive, scheduler

from common.records import Plan, Result, unpack_blocks
from gateway.generation import Generation
from gateway.scheduling.cost import LinearCost
from gateway.scheduling.job import Residence
from gateway.scheduling.prefix_cache import PrefixCache

COST = LinearCost(decode=1.0, prefill_per_token=0.1)


def drive(**options: Any) -> Drive:
    """Jobs of the same salt have the same prompts, as far as they go."""
    return Drive(scheduler(COST, **{"block_tokens": 4, **options}), COST)


def shares(run: Drive) -> list[tuple[int, int]]:
    """Where each job began in each iteration, and the tokens that it computed."""
    return [(entry.start, len(entry.tokens)) for plan in run.plans for entry in plan.entries]


def blocks(plan: Plan) -> list[list[int]]:
    return [list(unpack_blocks(entry.blocks)) for entry in plan.entries]


def test_a_second_prompt_computes_only_what_the_first_one_had_not() -> None:
    run = drive()
    run.submit(1, 10, 1, cache_salt="")
    run.run()
    job = run.submit(2, 22, 1, cache_salt="")
    run.run()
    assert shares(run) == [(0, 10), (8, 14)]
    assert blocks(run.plans[0])[0][:2] == blocks(run.plans[1])[0][:2]
    assert job.counts.cached_tokens == 8


def test_the_last_token_of_a_prompt_that_is_there_is_computed_with_its_block() -> None:
    run = drive()
    for job_id in range(2):
        run.submit(job_id, 12, 1, cache_salt="")
        run.run()
    assert shares(run) == [(0, 12), (8, 4)]


def test_what_a_job_has_said_is_found_by_the_next_turn_of_the_chat() -> None:
    run = drive()
    first = run.submit(1, 6, 7, cache_salt="")
    run.run()
    said = first.tokens(0, 13)
    assert said == [0, 1, 2, 3, 4, 5, *[7] * 7]
    follow = run.scheduler.submit(2, Generation(prompt=[*said, 1, 2], max_tokens=1), run.now)
    run.run()
    assert follow.counts.cached_tokens == 12


def test_other_salts_share_nothing() -> None:
    run = drive()
    for job_id, salt in enumerate(("a", "b", "")):
        run.submit(job_id, 10, 1, cache_salt=salt)
        run.run()
    assert shares(run) == [(0, 10)] * 3


def test_who_has_its_prompt_scored_computes_all_of_it() -> None:
    run = drive()
    for job_id in range(2):
        run.submit(job_id, 10, 1, cache_salt="", logprobs=0, prompt_logprobs=True)
        run.run()
    run.submit(2, 10, 1, cache_salt="")
    run.run()
    assert shares(run) == [(0, 10)] * 3


def test_equal_blocks_in_other_places_are_not_equal() -> None:
    run = drive()
    run.submit(1, 8, 1, cache_salt="")
    run.run()
    run.scheduler.submit(2, Generation(prompt=[4, 5, 6, 7, 4, 5, 6, 7, 1], max_tokens=1), run.now)
    run.run()
    assert shares(run)[-1] == (0, 9)


def test_jobs_that_started_together_share_what_both_have_computed() -> None:
    run = drive()
    for job_id in range(2):
        run.submit(job_id, 9, 3, cache_salt="")
    run.run()
    prefilling, decoding = blocks(run.plans[0]), blocks(run.plans[1])
    assert not set(prefilling[0]) & set(prefilling[1])
    first, second = decoding
    assert first[:2] == second[:2]
    assert first[2:] != second[2:]
    assert repr(run.scheduler.ledger.device) == "10000/10000 blocks free"


def test_a_prompt_joins_the_level_of_what_is_left_to_compute() -> None:
    run = drive(aging=0.0)
    assert run.submit(1, 81, 1, cache_salt="").joined_level == 4  # 8.1 s
    run.run()
    assert run.submit(2, 90, 1, cache_salt="").joined_level == 0  # 10 tokens: 1 s
    assert run.submit(3, 120, 1, cache_salt="").joined_level == 2  # 40 tokens: 4 s


def test_the_least_recently_used_are_evicted_and_of_a_prompt_its_end_first() -> None:
    run = drive(device=8, host=0)
    for job_id, salt in enumerate(("old", "new")):
        run.submit(job_id, 16, 1, cache_salt=salt)
        run.run()
    run.submit(2, 8, 1, cache_salt="third")
    run.run()
    again = [run.submit(3 + index, 16, 1, cache_salt=salt) for index, salt in enumerate(("new", "old"))]
    assert [job.pending for job in again] == [4, 8]


def test_switched_off_it_keeps_nothing() -> None:
    run = drive(prefix_cache=False)
    for job_id in range(2):
        run.submit(job_id, 10, 1, cache_salt="")
        run.run()
    assert shares(run) == [(0, 10)] * 2
    assert run.scheduler.ledger.device.prefixes.num_idle == 0


def test_an_offload_leaves_shared_blocks_to_the_others_and_an_upload_brings_only_what_is_gone() -> None:
    run = drive()
    jobs = [run.submit(job_id, 17, 9, cache_salt="") for job_id in range(2)]
    run.step()
    ledger, (first, second) = run.scheduler.ledger, jobs
    before = ledger.device.num_free
    pairs = ledger.offload(first)
    assert [device for device, _ in pairs] == list(first.device_blocks)
    assert ledger.departing == 1  # the last block, which nobody shares
    ledger.land_offload(first)
    assert ledger.device.num_free == before + 1
    assert list(second.device_blocks[:4]) == [cached.block for cached in second.prefix]
    assert ledger.missing(first) == 1
    ledger.hold(first)
    assert len(ledger.upload(first)) == 1
    ledger.land_upload(first)
    assert first.device_blocks[:4] == second.device_blocks[:4]
    assert first.residence is Residence.DEVICE
    run.run()
    assert set(run.finished_at) == {0, 1}


def test_a_job_whose_blocks_are_all_still_there_comes_back_without_a_copy() -> None:
    run = drive()
    job = run.submit(1, 8, 5)
    run.step()
    run.scheduler.ledger.offload(job)
    run.scheduler.ledger.land_offload(job)
    assert run.step() == []
    assert (run.plans[-1].entries, run.plans[-1].uploads) == ([], [])
    run.run()
    assert job.finish_reason == "length"


def test_a_job_on_the_host_finds_no_more_than_it_had_computed_itself() -> None:
    """Else it would write again to blocks that it shares."""
    run = drive(prefill_chunk_tokens=6, kv_strategy="defer")  # which brings nobody back
    first = run.submit(1, 20, 1, cache_salt="")
    run.step()
    ledger = run.scheduler.ledger
    ledger.offload(first)
    ledger.land_offload(first)
    run.submit(2, 20, 1, cache_salt="")
    run.run()
    assert ledger.device.prefixes.num_idle == 5
    ledger.look_up(first)
    assert (first.computed, len(first.prefix)) == (6, 1)


def test_twins_that_hold_all_their_blocks_together_are_dropped_together() -> None:
    """Neither alone would make room."""
    run = drive(kv_strategy="recompute", device=4, host=0, max_batch_jobs=2, aging=0.0)
    twins = [run.submit(job_id, 4, 11, cache_salt="") for job_id in range(2)]
    for _ in range(5):
        run.step()
    run.submit(2, 12, 2)
    run.run()
    assert set(run.finished_at) == {0, 1, 2}
    assert [twin.counts.recomputes > 0 for twin in twins] == [True, True]


def test_twins_share_their_blocks_only_when_no_plan_reads_their_own_any_more() -> None:
    run = drive(max_batch_jobs=2)
    twins = [run.submit(job_id, 8, 3, cache_salt="") for job_id in range(2)]
    run.scheduler.plan(0.0)
    ahead = run.scheduler.plan_ahead(0.5)
    assert ahead is not None
    run.scheduler.commit(Result(1, [7, 7], 0.0, 0.0), 1.0)
    assert blocks(ahead) == [list(twin.device_blocks) for twin in twins]
    run.scheduler.commit(Result(2, [7, 7], 0.0, 0.0), 2.0)
    assert twins[0].device_blocks[:2] == twins[1].device_blocks[:2]


def test_a_failed_job_leaves_nothing_behind_that_it_computed_last() -> None:
    run = drive()
    run.submit(1, 10, 1, cache_salt="")
    plan = run.scheduler.plan(0.0)
    assert plan is not None
    run.scheduler.commit(Result(plan.seq, [None], 0.0, 0.0), 1.0)
    assert run.scheduler.ledger.device.prefixes.num_idle == 0


def test_a_block_that_was_evicted_cannot_be_held() -> None:
    cache = PrefixCache()
    path = [cache.add([], b"tokens", 3)]
    cache.let_go(path)
    assert cache.evict(1) == [3]
    assert cache.find([], b"tokens") is None
    with pytest.raises(AssertionError, match="block 3 was evicted"):
        cache.hold(path)
