"""The simulator against schedules that can be followed by hand, and against laws that hold for every policy."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config, ConfigError, Policy
from common.records import Entry, Plan, Sampling, pack_blocks
from gateway.recording import Recorder, read_recording
from gateway.scheduling.cost import LinearCost
from launch.lab.machine import PRESETS, UNLIMITED, Machine
from launch.lab.simulator import Simulated, Simulation, Workers
from launch.lab.workload import Request, make_requests

COST = LinearCost(decode=1.0, prefill_per_token=0.1)
POLICIES: list[Policy] = ["skip-join", "mlfq", "fcfs", "static", "srpt"]
GREEDY = Sampling(0.0, 1.0, 0, 0.0, 0)


def machine(cost: LinearCost = COST, device_bytes: int = UNLIMITED, host_bytes: int = UNLIMITED) -> Machine:
    return Machine(cost, cost.decode, block_bytes=16.0, device_bytes=device_bytes, host_bytes=host_bytes)


def simulate(requests: list[Request], policy: Policy = "fcfs", **options: object) -> Simulated:
    config = Config(**{"policy": policy, "max_batch_jobs": 2, **options})  # type: ignore[arg-type]
    return Simulation(config, machine(), requests).run()


def plan(*, jobs: int = 1, offloads: int = 0, uploads: int = 0, first: bool = False) -> Plan:
    entries = [Entry(job, 9, [7], pack_blocks([0]), GREEDY) for job in range(jobs)]
    moved = [(block, block) for block in range(9)]
    return Plan(1, 0, entries, moved[:offloads], moved[:uploads], first)


def test_a_lone_job_takes_its_prefill_and_its_tokens() -> None:
    run = simulate([Request(5.0, 30, 4)])
    assert [(s.ttft_s, s.jct_s, s.longest_gap_s) for s in run.samples] == [(3.0, 6.0, 1.0)]
    assert run.makespan_s == 6.0


def test_time_passes_while_nobody_is_there() -> None:
    run = simulate([Request(0.0, 1, 2), Request(100.0, 1, 2)])
    assert [sample.jct_s for sample in run.samples] == [2.0, 2.0]
    assert run.busy_s == 4.0


def test_who_finds_the_batch_full_waits_for_a_place() -> None:
    run = simulate([Request(0.0, 1, 4), Request(0.0, 1, 2), Request(0.5, 1, 1)])
    # The third joins when the second is done, at 2.
    assert [sample.jct_s for sample in run.samples] == [4.0, 2.0, 2.5]


def test_copies_beside_the_batch_cost_nothing_until_they_take_longer() -> None:
    cost = LinearCost(decode=1.0, prefill_per_token=0.1, copy_s=0.25)
    assert Workers(cost, 1).run(plan(offloads=4, uploads=2), now=0.0) == (1.0, 0.0)
    assert Workers(cost, 1).run(plan(offloads=6, uploads=2), now=0.0) == (1.5, 0.5)


def test_a_batch_that_needs_its_copies_waits_for_them_first() -> None:
    cost = LinearCost(decode=1.0, prefill_per_token=0.1, copy_s=0.25)
    assert Workers(cost, 1).run(plan(uploads=4, first=True), now=0.0) == (2.0, 1.0)


def test_stages_work_on_different_plans_at_the_same_time() -> None:
    workers = Workers(COST, stages=2)
    assert workers.run(plan(), now=0.0) == (1.0, 0.0)
    assert workers.run(plan(), now=0.0) == (1.5, 0.0)


def test_two_stages_have_nearly_twice_the_throughput() -> None:
    requests = [Request(0.0, 1, 50)] * 8
    one, two = simulate(requests), simulate(requests, pipeline_parallel=2)
    assert 1.9 < one.makespan_s / two.makespan_s <= 2.0


def test_kv_moves_when_the_device_is_small_and_every_job_ends() -> None:
    requests = make_requests("uniform:20-120", 40, rate=1.0, seed=1)
    config = Config(policy="skip-join", max_batch_jobs=4, kv_device_blocks=40, kv_host_blocks=400)
    run = Simulation(config, machine(LinearCost(1.0, 0.01, copy_s=0.01)), requests).run()
    assert run.offloaded_blocks > 0
    assert [sample.output_tokens for sample in run.samples] == [request.output_tokens for request in requests]


def test_a_machines_memory_counts_where_no_other_is_configured() -> None:
    requests = [Request(0.0, 16, 16)] * 100
    simulation = Simulation(Config(), machine(device_bytes=160, host_bytes=320), requests)
    assert simulation.scheduler.ledger.device.num_blocks == 10
    assert simulation.scheduler.ledger.host.num_blocks == 20


def test_memory_that_is_configured_is_that_of_each_stage() -> None:
    requests = [Request(0.0, 16, 16)] * 100
    config = Config(pipeline_parallel=2, kv_device_memory="160", kv_host_memory="320")
    ledger = Simulation(config, replace(machine(), stages=2), requests).scheduler.ledger
    assert (ledger.device.num_blocks, ledger.host.num_blocks) == (20, 40)


def test_a_request_that_no_server_would_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 3 KV blocks, and the device has 2"):
        Simulation(Config(kv_device_blocks=2), machine(), [Request(0.0, 16, 16), Request(0.0, 16, 17)])


def test_the_same_requests_give_the_same_numbers() -> None:
    requests = make_requests("sharegpt", 60, rate=3.0, seed=5)
    config = Config(policy="skip-join", max_batch_jobs=16)
    first, second = (Simulation(config, PRESETS["opt-13b"], requests).run() for _ in range(2))
    assert first.summary() == second.summary()
    assert first.samples == second.samples


def test_a_recording_tells_every_jobs_life(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.jsonl")
    Simulation(
        Config(policy="fcfs", max_batch_jobs=1), machine(), [Request(0.0, 1, 2), Request(0.5, 1, 1)], recorder
    ).run()
    recorder.close()
    lives: dict[int, list[tuple[float, str]]] = {}
    for change in read_recording(tmp_path / "run.jsonl"):
        lives.setdefault(change.job, []).append((change.at, change.place))
    assert lives[0] == [(0.0, "runs"), (1.0, "device"), (1.0, "runs"), (2.0, "ended")]
    assert lives[1] == [(0.5, "cold"), (2.0, "runs"), (3.0, "ended")]


REQUESTS = st.lists(
    st.builds(Request, st.floats(0.0, 60.0), st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=25
).map(lambda requests: sorted(requests, key=lambda request: request.arrival_s))


@settings(deadline=None, max_examples=60)
@given(requests=REQUESTS)
def test_no_policy_changes_the_work_while_memory_lasts(requests: list[Request]) -> None:
    for policy in POLICIES:
        run = simulate(requests, policy)
        # All prompts once, and all output tokens but the last, which nobody feeds back.
        assert run.computed_tokens == sum(r.prompt_tokens + r.output_tokens - 1 for r in requests)
        assert [sample.output_tokens for sample in run.samples] == [r.output_tokens for r in requests]
        assert run.recomputes == run.offloaded_blocks == 0


@settings(deadline=None, max_examples=60)
@given(requests=REQUESTS, policy=st.sampled_from(POLICIES), stages=st.integers(1, 3))
def test_no_policy_idles_while_there_is_work(requests: list[Request], policy: Policy, stages: int) -> None:
    run = simulate(requests, policy, pipeline_parallel=stages)
    waiting_or_running = 0.0
    ends: list[tuple[float, float]] = sorted(
        (request.arrival_s, request.arrival_s + sample.jct_s)
        for request, sample in zip(requests, run.samples, strict=True)
    )
    covered = ends[0][0]
    for start, end in ends:
        waiting_or_running += max(0.0, end - max(covered, start))
        covered = max(covered, end)
    assert run.busy_s == pytest.approx(waiting_or_running)
