from typing import Any

import pytest
from fakes import Drive, FixedMask, answer, scheduler

from common.config import KvStrategy
from common.records import UNSEEN, Logprobs, Plan, Result
from gateway.scheduling.cost import LinearCost, Profile
from gateway.scheduling.job import Residence
from gateway.scheduling.scheduler import Expected

COST = LinearCost(decode=1.0, prefill_per_token=0.1)


def drive(**options: Any) -> Drive:
    return Drive(scheduler(COST, **options), COST)


def test_a_job_is_prefilled_then_decoded_and_ends_at_its_length() -> None:
    run = drive()
    job = run.submit(1, prompt=20, output=3)
    run.run()
    entries = [plan.entries[0] for plan in run.plans]
    assert [(entry.start, len(entry.tokens)) for entry in entries] == [(0, 20), (20, 1), (21, 1)]
    assert entries[1].tokens == [7]
    assert job.finish_reason == "length"
    assert repr(run.scheduler) == (
        "<Scheduler <JobQueue 0 cold, 0 resident, 0 away>, 0 in flight | "
        "device 10000/10000 blocks free, host 10000/10000 blocks free>"
    )


def test_a_stop_token_ends_the_job_and_is_not_emitted() -> None:
    run = drive()
    run.submit(1, 4, 10, stop_tokens=frozenset({7}))
    outcomes = run.step()
    assert outcomes is not None
    assert [(outcome.token, outcome.finish_reason) for outcome in outcomes] == [(None, "stop")]


def test_room_to_grow_is_kept_for_jobs_that_are_there_and_not_for_all_places() -> None:
    run = drive(device=20, host=20, max_batch_jobs=256, policy="fcfs")
    for job_id in range(10):
        run.submit(job_id, 4, 8)
    run.step()
    for job_id in range(10, 20):
        run.submit(job_id, 4, 8)
    run.step()
    assert [len(ids) for ids in run.schedule] == [10, 20]


def test_a_job_whose_constraint_is_not_ready_sits_plans_out_and_keeps_nobody_waiting() -> None:
    run = drive()
    slow = FixedMask()
    run.submit(1, 2, 3, constraint=slow)
    run.submit(2, 2, 3)
    for ready in (False, True, False, True):
        slow.ready = ready
        run.step()
    assert run.schedule == [[2], [1, 2], [2], [1]]


def test_logprobs_come_with_their_token_and_not_with_a_stop_token() -> None:
    run = drive()
    run.submit(1, 2, 5, logprobs=1, stop_tokens=frozenset({9}))
    said = Logprobs(-0.5, [(7, -0.5)])
    for token, expected in ((7, said), (9, None)):
        plan = run.scheduler.plan(0.0)
        assert plan is not None
        assert plan.entries[0].logprobs == 1
        [outcome] = run.scheduler.commit(Result(plan.seq, [token], 0.0, 0.0, [said]), 0.0)
        assert outcome.logprobs == expected


def test_scores_of_a_prompt_are_gathered_from_its_chunks_and_not_doubled_when_it_is_computed_again() -> None:
    run = drive(max_batch_tokens=4)
    job = run.submit(1, 10, 5, logprobs=0, prompt_logprobs=True)
    scores = [Logprobs(-float(token), []) for token in range(1, 10)]

    def step() -> None:
        plan = run.scheduler.plan(run.now)
        assert plan is not None
        [entry] = plan.entries
        found = [Logprobs(-float(token), []) for token in entry.scored]
        run.scheduler.commit(Result(plan.seq, [7], 0.0, 0.0, [], [found]), run.now)

    step()
    step()
    assert job.prompt_logprobs == scores[:8]
    run.scheduler.ledger.release(job)
    for _ in range(4):
        step()
    assert job.prompt_logprobs == scores
    assert job.output == [7, 7]


def test_a_job_of_no_tokens_ends_with_its_prompt_whatever_is_drawn() -> None:
    for token in (7, 9, None):
        run = drive(prefill_chunk_tokens=3)
        job = run.submit(1, 5, 0, stop_tokens=frozenset({9}))
        assert run.step() == []  # the first chunk
        plan = run.scheduler.plan(run.now)
        assert plan is not None
        [outcome] = run.scheduler.commit(Result(plan.seq, [token], 0.0, 0.0), run.now)
        assert (outcome.token, outcome.finish_reason, job.output) == (None, "length", [])
        assert run.step() is None


def test_logits_that_are_not_finite_fail_that_job_alone() -> None:
    run = drive()
    run.submit(1, 2, 5)
    run.submit(2, 2, 5)
    plan = run.scheduler.plan(0.0)
    assert plan is not None
    outcomes = run.scheduler.commit(Result(plan.seq, [None, 7], 0.0, 0.0), 1.0)
    assert [outcome.finish_reason for outcome in outcomes] == ["error", None]


def test_batches_are_limited_by_jobs_and_by_tokens() -> None:
    run = drive(max_batch_jobs=4, max_batch_tokens=50)
    for job_id, prompt in enumerate((20, 20, 20, 2, 20)):
        run.submit(job_id, prompt, 1)
    run.run()
    # The small prompt joins a higher level. Of the fourth in order 8 tokens fit into the first 50.
    # That iteration took longer than its quantum, so that it goes on behind the fifth.
    assert run.schedule == [[3, 0, 1, 2], [4, 2]]
    assert computed(run) == [[2, 20, 20, 8], [20, 12]]


def computed(run: Drive) -> list[list[int]]:
    """Tokens that each job computes in each iteration."""
    return [[len(entry.tokens) for entry in plan.entries] for plan in run.plans]


def test_a_prompt_longer_than_the_token_budget_is_computed_in_chunks() -> None:
    run = drive(max_batch_tokens=16)
    run.submit(1, 40, 2)
    run.run()
    assert computed(run) == [[16], [16], [8], [1]]
    assert [plan.entries[0].start for plan in run.plans] == [0, 16, 32, 40]
    assert [plan.entries[0].sampling is None for plan in run.plans] == [True, True, False, False]
    assert [token for plan in run.plans for token in plan.entries[0].tokens] == [*range(40), 7]


def test_chunks_run_beside_decoding_jobs_which_go_on_in_every_iteration() -> None:
    run = drive(prefill_chunk_tokens=16)
    run.submit(1, 4, 10)
    run.step()
    run.submit(2, 40, 2)
    run.run()
    shares = [{entry.job_id: len(entry.tokens) for entry in plan.entries} for plan in run.plans]
    assert shares[1:5] == [{1: 1, 2: 16}, {1: 1, 2: 16}, {1: 1, 2: 8}, {1: 1, 2: 1}]


def test_a_chunk_is_shared_by_the_prompts_that_fit_into_it_in_order() -> None:
    run = drive(prefill_chunk_tokens=16, policy="fcfs")
    for job_id, prompt in enumerate((10, 10, 3)):
        run.submit(job_id, prompt, 1)
    run.run()
    # The third fits beside the first, but must not overtake the second.
    assert run.schedule == [[0, 1], [1, 2]]
    assert computed(run) == [[10, 6], [4, 3]]


def test_no_token_comes_before_the_last_chunk_and_every_chunk_is_charged() -> None:
    run = drive(prefill_chunk_tokens=16, aging=0.0)
    job = run.submit(1, 40, 2)
    assert job.joined_level == 2  # covers all 40 tokens: 4 s
    assert [run.step(), run.step()] == [[], []]
    assert job.counts.prefill_s == job.used_s == pytest.approx(3.2)
    outcomes = run.step()
    assert outcomes is not None
    assert [outcome.token for outcome in outcomes] == [7]
    trace = job.trace(run.now, 0)
    assert (trace.iterations, trace.demotions) == (3, 1)


def test_a_job_that_is_preempted_in_the_middle_of_its_prompt_keeps_its_kv_and_goes_on() -> None:
    run = drive(prefill_chunk_tokens=16, max_batch_jobs=1, block_tokens=4, device=12, aging=0.0)
    long = run.submit(1, 40, 2)
    run.step()
    for job_id in range(2, 5):
        run.submit(job_id, 2, 3)
    run.step()
    assert run.schedule == [[1], [2]]
    run.run()
    assert [entry.start for plan in run.plans for entry in plan.entries if entry.job_id == 1] == [0, 16, 32, 40]
    assert long.counts.recomputes == 0


def test_a_job_is_in_at_most_one_plan_and_the_pipeline_is_filled() -> None:
    run = drive(pipeline_parallel=2, max_batch_jobs=8)
    for job_id in range(6):
        run.submit(job_id, 2, 5)
    first, second = run.scheduler.plan(0.0), run.scheduler.plan(0.0)
    assert first is not None
    assert second is not None
    assert run.scheduler.plan(0.0) is None
    ids = [entry.job_id for plan in (first, second) for entry in plan.entries]
    assert sorted(ids) == list(range(6))
    assert len(first.entries) == len(second.entries) == 3


def test_the_chunks_of_a_prompt_follow_each_other_through_the_stages() -> None:
    run = drive(pipeline_parallel=2, prefill_chunk_tokens=8)
    job = run.submit(1, prompt=10, output=2)
    plans = [run.scheduler.plan(0.0), run.scheduler.plan(0.0)]
    assert run.scheduler.plan(0.0) is None
    assert run.scheduler.commit(Result(1, [None], 0.0, 0.0), 1.0) == []
    plans.append(run.scheduler.plan(1.0))
    assert run.scheduler.commit(Result(2, [None], 0.0, 0.0), 2.0) == []
    assert run.scheduler.plan(2.0) is None  # What comes next is drawn by the last chunk, which is in flight.
    entries = [plan.entries[0] for plan in plans if plan is not None]
    assert [(entry.start, len(entry.tokens), entry.sampling is None) for entry in entries] == [
        (0, 4, True),
        (4, 4, True),
        (8, 2, False),
    ]
    run.scheduler.commit(Result(3, [7], 0.0, 0.0), 3.0)
    run.run()
    assert (job.finish_reason, job.output) == ("length", [7, 7])


def test_results_must_come_in_order() -> None:
    run = drive(pipeline_parallel=2)
    for job_id in range(2):
        run.submit(job_id, 2, 5)
    run.scheduler.plan(0.0)
    second = run.scheduler.plan(0.0)
    assert second is not None
    with pytest.raises(AssertionError, match="result 2 for plan 1"):
        run.scheduler.commit(answer(second), 1.0)


def test_aborting_a_waiting_job_frees_it_at_once_and_a_running_one_at_the_commit() -> None:
    run = drive(max_batch_jobs=1)
    running, waiting = run.submit(1, 20, 5), run.submit(2, 20, 5)
    plan = run.scheduler.plan(0.0)
    assert plan is not None
    run.scheduler.abort(waiting)
    run.scheduler.abort(running)
    run.scheduler.abort(running)
    assert len(run.scheduler.queue) == 1
    assert run.scheduler.commit(answer(plan), 1.0) == []
    assert len(run.scheduler.queue) == 0
    assert run.scheduler.ledger.device.num_used == 0


def test_the_trace_says_what_scheduling_did() -> None:
    run = drive(max_batch_jobs=1, aging=0.0)
    long = run.submit(1, 4, 20)
    for _ in range(5):
        run.step()
    run.submit(2, 4, 1)
    run.run()
    trace = long.trace(run.now, block_bytes=100)
    assert (trace.joined_level, trace.preemptions, trace.iterations, trace.recomputes) == (0, 1, 20, 0)
    assert trace.demotions == trace.final_level == 4
    assert (trace.queue_s, trace.prefill_s, trace.decode_s, trace.stalled_s) == (0.0, 1.0, 19.0, 1.0)


def crowded(strategy: KvStrategy, **options: Any) -> Drive:
    """Six jobs of 24 blocks in the end, with room for 30 on the device."""
    run = drive(kv_strategy=strategy, device=30, max_batch_jobs=2, block_tokens=4, **options)
    for job_id in range(6):
        run.submit(job_id, 16, 80)
    run.run(5000)
    assert set(run.finished_at) == set(range(6))
    assert run.scheduler.ledger.device.num_used == run.scheduler.ledger.host.num_used == 0
    return run


def test_proactive_offloads_and_never_makes_a_batch_wait() -> None:
    run = crowded("proactive")
    assert any(plan.offloads for plan in run.plans)
    assert any(plan.uploads for plan in run.plans)
    assert not any(plan.copies_first for plan in run.plans)


def test_reactive_copies_on_the_critical_path() -> None:
    run = crowded("reactive")
    assert any(plan.uploads and plan.entries for plan in run.plans)
    assert all(plan.copies_first for plan in run.plans)


def test_recompute_drops_and_prefills_again_with_what_was_emitted() -> None:
    run = crowded("recompute")
    assert not any(plan.offloads or plan.uploads for plan in run.plans)
    again = [entry for plan in run.plans for entry in plan.entries if entry.start == 0 and len(entry.tokens) > 16]
    assert again
    assert again[0].tokens[16:] == [7] * (len(again[0].tokens) - 16)


def test_defer_starts_only_what_fits_to_the_end() -> None:
    run = crowded("defer")
    assert not any(plan.offloads or plan.uploads for plan in run.plans)
    assert all(entry.start > 0 or len(entry.tokens) == 16 for plan in run.plans for entry in plan.entries)


def test_both_memories_full_still_finishes_everybody() -> None:
    for strategy in ("proactive", "reactive"):
        run = drive(kv_strategy=strategy, device=26, host=10, max_batch_jobs=2, block_tokens=4)
        for job_id in range(6):
            run.submit(job_id, 16, 80)
        run.run(5000)
        assert set(run.finished_at) == set(range(6))


def test_started_jobs_are_capped_by_what_both_memories_hold() -> None:
    run = drive(device=30, host=30, max_batch_jobs=2, block_tokens=4)
    jobs = [run.submit(job_id, 40, 8) for job_id in range(50)]
    most = 0
    while run.step() is not None:
        most = max(most, sum(job.residence is not Residence.NOWHERE for job in jobs))
    assert most <= 6
    assert len(run.finished_at) == 50


def test_a_large_job_is_not_starved_by_small_ones() -> None:
    run = drive(policy="fcfs", device=40, host=0, max_batch_jobs=8, block_tokens=4)
    for job_id in range(7):
        run.submit(job_id, 8, 12)
    run.submit(99, 120, 4)
    for job_id in range(100, 400):
        run.submit(job_id, 8, 12)
        run.step()
        if 99 in run.finished_at:
            return
    raise AssertionError("the large job never ran")


def test_no_plan_copies_more_than_an_iteration_hides_unless_one_job_alone_is_larger() -> None:
    # A block takes half an iteration to copy, so two of them are hidden; contexts have 2 to 4 blocks of 4 tokens.
    cost = LinearCost(decode=1.0, prefill_per_token=0.01, copy_s=0.5)
    run = Drive(scheduler(cost, device=12, host=100, max_batch_jobs=2, block_tokens=4, policy="skip-join"), cost)
    for job_id in range(12):
        run.submit(job_id, prompt=6, output=8)
    run.run()
    moved = [max(len(plan.offloads), len(plan.uploads)) for plan in run.plans]
    assert sum(moved) > 0
    for plan, most in zip(run.plans, moved, strict=True):
        assert most <= 1 + 4, f"plan {plan.seq} copies {most} blocks"  # one block of the budget left, and a whole job


def test_where_a_copy_takes_longer_than_an_iteration_jobs_make_room_for_each_other_all_the_same() -> None:
    cost = LinearCost(decode=1.0, prefill_per_token=0.25, copy_s=1.5)
    run = Drive(scheduler(cost, device=8, host=8, max_batch_jobs=3, block_tokens=4), cost)
    for job_id in range(3):
        run.submit(job_id, 7, 20)
    run.run()
    assert len(run.finished_at) == 3


def test_the_oldest_plan_in_flight_should_take_as_long_as_its_prompts_or_its_jobs() -> None:
    cost = Profile(prefill=[(10, 1.0), (90, 5.0)], decode=[(1, 1.0), (2, 1.5)])
    run = Drive(scheduler(cost, max_batch_jobs=2), cost)
    for job in (1, 2):
        run.submit(job, prompt=45, output=3)
    run.scheduler.plan(0.0)
    assert run.scheduler.expected() == Expected(tokens=90, seconds=5.0)
    run.scheduler.plan_ahead(0.0)
    run.scheduler.commit(Result(1, [7, 7], 0.0, 0.0), 5.0)
    assert run.scheduler.expected() == Expected(tokens=2, seconds=1.5)


def test_a_plan_made_ahead_goes_on_with_tokens_that_nobody_has_seen() -> None:
    run = drive()
    job = run.submit(1, prompt=20, output=3)
    plans, emitted = [run.scheduler.plan(0.0)], []
    for now in (1.0, 2.0, 3.0):
        plans.append(run.scheduler.plan_ahead(now))
        assert run.scheduler.plan(now) is None
        emitted += run.scheduler.commit(Result(len(emitted) + 1, [7], 0.0, 0.0), now)
    entries = [plan.entries[0] for plan in plans if plan is not None]
    assert [(entry.start, entry.tokens[-1]) for entry in entries] == [(0, 19), (20, UNSEEN), (21, UNSEEN)]
    assert plans[3] is None  # for all that is known, it ends with the third
    assert (job.finish_reason, job.output, len(emitted)) == ("length", [7, 7, 7], 3)
    assert run.scheduler.ledger.device.num_used == 0


def test_what_was_computed_ahead_for_a_job_that_had_ended_is_ignored() -> None:
    run = drive()
    job = run.submit(1, prompt=16, output=9, stop_tokens=frozenset({7}))
    run.scheduler.plan(0.0)
    run.scheduler.plan_ahead(0.9)
    assert [outcome.finish_reason for outcome in run.scheduler.commit(Result(1, [7], 0.0, 0.0), 1.0)] == ["stop"]
    assert run.scheduler.ledger.device.num_used > 0  # The second plan still writes there.
    assert run.scheduler.plan(1.0) is None
    assert run.scheduler.commit(Result(2, [5], 0.0, 0.0), 2.0) == []
    assert (job.output, job.counts.iterations, run.scheduler.ledger.device.num_used) == ([], 1, 0)


def test_a_plan_made_ahead_takes_jobs_in_policy_order_and_new_ones_too() -> None:
    run = drive(policy="srpt", max_batch_jobs=2)
    for job_id, output in ((1, 30), (2, 20)):
        run.submit(job_id, 4, output)
    run.scheduler.plan(0.0)
    run.submit(3, 4, 2)
    ahead = run.scheduler.plan_ahead(0.9)
    assert ahead is not None
    assert [(entry.job_id, entry.tokens[-1]) for entry in ahead.entries] == [(3, 3), (2, UNSEEN)]


def test_an_iteration_that_was_planned_ahead_is_charged_from_the_end_of_the_one_before() -> None:
    run = drive()
    job = run.submit(1, 4, 9)
    run.scheduler.plan(0.0)
    run.scheduler.plan_ahead(0.1)
    run.scheduler.commit(Result(1, [7], 0.0, 0.0), 1.0)
    run.scheduler.commit(Result(2, [7], 0.0, 0.0), 3.0)
    assert (job.counts.prefill_s, job.counts.decode_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 1.0},
        {"logit_bias": ((1, 1.0),)},
        {"constraint": FixedMask()},
        {"min_tokens": 2, "stop_tokens": frozenset({0})},
    ],
)
def test_nothing_is_planned_ahead_where_a_result_decides_what_may_come_next(options: dict[str, Any]) -> None:
    run = drive()
    run.submit(1, 4, 9)
    run.submit(2, 4, 9, **options)
    run.scheduler.plan(0.0)
    assert run.scheduler.plan_ahead(0.9) is None


def test_nothing_is_planned_ahead_while_somebody_lacks_memory() -> None:
    run = drive(device=4, block_tokens=4, max_batch_jobs=2, kv_strategy="recompute", policy="srpt")
    run.submit(1, 8, 8)
    run.scheduler.plan(0.0)
    run.submit(2, 12, 2)
    assert run.scheduler.plan_ahead(0.9) is None
    run.scheduler.commit(Result(1, [7], 0.0, 0.0), 1.0)
    plan = run.scheduler.plan(1.0)
    assert plan is not None
    assert [entry.job_id for entry in plan.entries] == [2]
    assert run.scheduler.plan_ahead(1.0) is None


def test_a_pipeline_gets_one_plan_more_than_it_has_stages_where_more_jobs_wait() -> None:
    run = drive(pipeline_parallel=2, max_batch_jobs=2)
    jobs = [run.submit(job_id, 4, 3) for job_id in range(6)]
    plans: list[Plan] = []

    def send(plan: Plan | None) -> None:
        assert plan is not None
        plans.append(plan)

    send(run.scheduler.plan(0.0))
    send(run.scheduler.plan(0.0))
    assert run.scheduler.plan(0.0) is None
    send(run.scheduler.plan_ahead(0.0))
    assert run.scheduler.plan_ahead(0.0) is None
    for now in range(1, 7):
        run.scheduler.commit(answer(plans[now - 1]), float(now))
        assert run.scheduler.plan(float(now)) is None
        send(run.scheduler.plan_ahead(float(now)))
    assert [[entry.job_id for entry in plan.entries] for plan in plans] == [[0, 1], [2, 3], [4, 5]] * 3
    assert [job.counts.preemptions for job in jobs] == [0] * 6


def test_nothing_is_planned_ahead_for_a_pipeline_where_it_would_hold_few_jobs() -> None:
    run = drive(pipeline_parallel=2, max_batch_jobs=2)
    for job_id in range(5):
        run.submit(job_id, 4, 3)
    run.scheduler.plan(0.0)
    assert run.scheduler.plan_ahead(0.0) is None  # a stage would have none
    run.scheduler.plan(0.0)
    assert run.scheduler.plan_ahead(0.0) is None
    run.submit(5, 4, 3)
    assert run.scheduler.plan_ahead(0.0) is not None


def test_a_job_that_waited_for_its_own_result_was_not_preempted_however_many_plans_were_in_flight() -> None:
    run = drive(pipeline_parallel=2, max_batch_jobs=1)
    jobs = [run.submit(job_id, 4, 9) for job_id in range(3)]
    plans = [run.scheduler.plan(0.0), run.scheduler.plan(0.0), run.scheduler.plan_ahead(0.0)]
    first, second, third = [plan for plan in plans if plan is not None]
    run.scheduler.commit(answer(first), 1.0)
    run.scheduler.abort(jobs[1])
    run.scheduler.commit(answer(second), 2.0)
    plan = run.scheduler.plan(2.0)  # nothing was planned meanwhile
    assert plan is not None
    assert [entry.job_id for entry in plan.entries] == [0]
    run.scheduler.commit(answer(third), 3.0)
    assert (jobs[0].counts.preemptions, jobs[2].counts.preemptions) == (0, 0)


def test_an_iteration_of_a_pipeline_is_charged_from_when_it_had_a_stage() -> None:
    run = drive(pipeline_parallel=2, max_batch_jobs=1)
    jobs = [run.submit(job_id, 4, 9) for job_id in range(3)]
    plans = [run.scheduler.plan(0.0), run.scheduler.plan(0.0), run.scheduler.plan_ahead(0.0)]
    for now, plan in zip((1.0, 3.0, 4.0), [plan for plan in plans if plan is not None], strict=True):
        run.scheduler.commit(answer(plan), now)
    assert [job.attained_s for job in jobs] == [1.0, 3.0, 3.0]


def test_nothing_is_planned_ahead_for_a_pipeline_where_somebody_lacks_the_memory_that_others_could_leave() -> None:
    run = drive(device=8, block_tokens=4, pipeline_parallel=2, max_batch_jobs=1, policy="srpt")
    for job_id in range(3):
        run.submit(job_id, 5, 30)
    plans = [run.scheduler.plan(0.0), run.scheduler.plan(0.0), run.scheduler.plan_ahead(0.0)]
    flights = [plan for plan in plans if plan is not None]
    run.submit(3, 12, 2)
    run.scheduler.commit(answer(flights[0]), 1.0)
    assert run.scheduler.plan_ahead(1.0) is None
    run.scheduler.commit(answer(flights[1]), 2.0)
    plan = run.scheduler.plan(2.0)
    assert plan is not None
    assert plan.offloads
    assert run.scheduler.plan_ahead(2.0) is None
