"""Workers as threads, talked to as the gateway talks to them."""

import contextlib
import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from multiprocessing.connection import Connection

import pytest
import torch
from fakes_worker import CONFIG, SPEC, FakeJob, fake_model, greedy_tokens

from common.channel import LocalChannel, receive
from common.config import Config
from common.records import (
    Fault,
    LinkDown,
    Plan,
    Progress,
    Ready,
    Report,
    Result,
    Setup,
    Stop,
    Up,
    decode_report,
    encode,
)
from worker.fingerprint import fingerprint
from worker.kv_cache import block_bytes
from worker.link import LocalLink, LocalWiring
from worker.loop import Model, serve_stage


class Workers:
    """Rank 0 of a world whose other ranks are worker threads."""

    def __init__(
        self,
        stages: list[int | None],
        config: Config = CONFIG,
        wiring: LocalWiring | None = None,
        open_model: Callable[[Config], Model] | None = None,
    ) -> None:
        num_stages = sum(stage is not None for stage in stages)
        self.config = replace(config, pipeline_parallel=num_stages)
        self.wiring = wiring or LocalWiring(timeout_s=5.0)
        self.channel, *channels = LocalChannel.world(len(stages) + 1)
        self.statuses: dict[int, int] = {}
        self.threads = [
            threading.Thread(target=self._serve, args=(channel, stage, open_model or fake_model()), daemon=True)
            for channel, stage in zip(channels, stages, strict=True)
        ]
        for thread in self.threads:
            thread.start()

    def _serve(self, channel: LocalChannel, stage: int | None, open_model: Callable[[Config], Model]) -> None:
        self.statuses[channel.rank] = serve_stage(
            channel, self.config, stage, open_model=open_model, connect=self.wiring.connect
        )

    def report(self) -> tuple[int, Report]:
        message = receive(self.channel, 20.0)
        assert message is not None, "no report came"
        return message[0], decode_report(message[1])

    def reports(self, kind: type[Report], count: int) -> dict[int, Report]:
        """One report of this kind from each of `count` ranks; progress does not count."""
        found: dict[int, Report] = {}
        while len(found) < count:
            rank, report = self.report()
            if not isinstance(report, Progress):
                assert isinstance(report, kind), report
                found[rank] = report
        return found

    def set_up(self, stages: list[int], epoch: int = 1, blocks: int = 32, store_port: int = 0) -> None:
        self.send(Setup(epoch, stages, blocks, 16, socket.gethostname(), store_port), stages)
        assert set(self.reports(Up, len(stages)).values()) == {Up(epoch)}

    def send(self, order: Plan | Setup | Stop, ranks: list[int] | None = None) -> None:
        self.channel.send(ranks or range(1, self.channel.size), encode(order))

    def result(self) -> Result:
        _, report = self.report()
        assert isinstance(report, Result), report
        return report

    def generate(self, job: FakeJob, count: int, epoch: int = 1) -> list[int]:
        for i in range(count):
            self.send(Plan(i, epoch, [job.entry()], [], [], False))
            (token,) = self.result().tokens
            assert token is not None
            job.tokens.append(token)
        return job.tokens[-count:]

    def stop(self) -> list[int]:
        self.send(Stop())
        return self.join()

    def join(self) -> list[int]:
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "a worker did not leave"
        return [self.statuses[rank] for rank in sorted(self.statuses)]


@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_worker_loads_reports_is_set_up_computes_and_stops(num_stages: int) -> None:
    workers = Workers(list(range(num_stages)))
    workers.reports(Ready, num_stages)
    workers.set_up(list(range(1, num_stages + 1)))
    job = FakeJob(0, [5, 17, 3], [3, 1, 2])
    assert workers.generate(job, 6) == greedy_tokens([5, 17, 3], 6)
    assert workers.stop() == [0] * num_stages


def test_ready_says_what_the_stage_can_give() -> None:
    workers = Workers([0, 1], replace(CONFIG, kv_device_blocks=7, kv_host_memory="1MiB"))
    ready = workers.reports(Ready, 2)[1]
    assert isinstance(ready, Ready)
    assert (ready.device, ready.dtype, ready.store_port) == ("cpu, 1 thread", "fp32", 0)
    assert ready.fingerprint == fingerprint()
    assert ready.block_bytes == block_bytes(SPEC, 2, CONFIG.block_tokens, torch.float32)
    assert (ready.device_bytes, ready.host_bytes) == (7 * ready.block_bytes, 2**20)
    workers.stop()


def test_keys_and_values_in_fp16_make_blocks_half_as_large() -> None:
    workers = Workers([0], replace(CONFIG, kv_cache_dtype="fp16"))
    ready = workers.reports(Ready, 1)[1]
    assert isinstance(ready, Ready)
    assert ready.dtype == "fp32, KV in fp16"
    assert ready.block_bytes == block_bytes(SPEC, 3, CONFIG.block_tokens, torch.float16)
    workers.set_up([1])
    assert len(workers.generate(FakeJob(0, [5, 17, 3], [3, 1, 2]), 6)) == 6
    workers.stop()


def test_plans_in_flight_are_answered_in_order() -> None:
    workers = Workers([0, 1])
    workers.reports(Ready, 2)
    workers.set_up([1, 2])
    jobs = [FakeJob(i, [5 + i, 6], [i]) for i in range(5)]
    for i, job in enumerate(jobs):
        workers.send(Plan(i, 1, [job.entry()], [], [], False))
    answers = [workers.result() for _ in jobs]
    assert [answer.seq for answer in answers] == list(range(5))
    assert [answer.tokens for answer in answers] == [greedy_tokens([5 + i, 6], 1) for i in range(5)]
    workers.stop()


def test_stop_lets_the_plans_before_it_finish() -> None:
    workers = Workers([0])
    workers.reports(Ready, 1)
    workers.set_up([1])
    for i in range(3):
        workers.send(Plan(i, 1, [FakeJob(i, [5], [i]).entry()], [], [], False))
    assert workers.stop() == [0]
    assert [workers.result().seq for _ in range(3)] == [0, 1, 2]


def test_a_new_epoch_drops_plans_of_the_old_one_and_keeps_the_weights() -> None:
    loads: list[int] = []

    def open_model(config: Config) -> Model:
        model = fake_model()(config)
        return Model(model.spec, lambda stage, *rest: loads.append(stage.index) or model.load(stage, *rest))

    workers = Workers([0, 1], open_model=open_model)
    workers.reports(Ready, 2)
    workers.set_up([1, 2], epoch=1)
    workers.generate(FakeJob(0, [5], [0, 1]), 2)
    workers.set_up([1, 2], epoch=2, blocks=16)
    workers.send(Plan(9, 1, [FakeJob(0, [5], [0]).entry()], [], [], False))
    assert workers.generate(FakeJob(0, [5, 6], [0, 1]), 3, epoch=2) == greedy_tokens([5, 6], 3)
    assert workers.stop() == [0, 0]
    assert sorted(loads) == [0, 1]


def test_a_stage_that_lost_its_neighbour_waits_for_a_new_setup_and_a_spare_takes_the_place() -> None:
    workers = Workers([0, 1, None], wiring=LocalWiring(timeout_s=0.2))
    workers.reports(Ready, 2)
    workers.set_up([1, 2])
    # Only the last stage hears of this plan: its activations never come.
    workers.send(Plan(0, 1, [FakeJob(0, [5], [0]).entry()], [], [], False), [2])
    assert list(workers.reports(LinkDown, 1)) == [2]
    workers.set_up([3, 2], epoch=2)
    assert workers.generate(FakeJob(0, [5, 6], [0, 1]), 3, epoch=2) == greedy_tokens([5, 6], 3)
    assert workers.stop() == [0, 0, 0]


def test_a_stage_that_is_never_set_up_again_gives_up_at_last() -> None:
    workers = Workers([0, 1], replace(CONFIG, start_timeout=0.1), wiring=LocalWiring(timeout_s=0.05))
    workers.reports(Ready, 2)
    workers.set_up([1, 2])
    workers.send(Plan(0, 1, [FakeJob(0, [5], [0]).entry()], [], [], False), [2])
    workers.reports(LinkDown, 1)
    rank, report = workers.report()
    assert rank == 2
    assert isinstance(report, Fault)
    assert "no new setup" in report.text
    workers.stop()
    assert workers.statuses == {1: 0, 2: 1}


def test_a_model_that_is_not_there_is_the_operators_mistake_and_no_crash(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers([0], replace(CONFIG, model="/nowhere/model.gguf"), open_model=Model.open)
    assert workers.join() == [2]
    _, report = workers.report()
    assert isinstance(report, Fault)
    assert report.text.startswith("no such file or directory: /nowhere/model.gguf")
    assert report.is_mistake
    assert "Traceback" not in caplog.text


def test_an_order_that_makes_no_sense_is_a_fault() -> None:
    workers = Workers([0])
    workers.reports(Ready, 1)
    workers.channel.send([1], b"\x93\x01\x02\x03")
    assert workers.join() == [1]
    _, report = workers.report()
    assert isinstance(report, Fault)


def test_a_fault_is_told_before_the_neighbours_are_left_whatever_comes_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers([0, 1])
    workers.reports(Ready, 2)
    workers.set_up([1, 2])
    told: list[bool] = []

    def close(link: LocalLink) -> None:
        told.append(bool(workers.channel._inboxes[0]))
        raise RuntimeError("the group cannot be destroyed")

    monkeypatch.setattr(LocalLink, "close", close)
    workers.channel.send([1], b"\x93\x01\x02\x03")
    workers.threads[0].join(20.0)
    assert told == [True]
    assert list(workers.reports(Fault, 1)) == [1]
    workers.stop()
    assert workers.statuses == {1: 1, 2: 0}


class PipeChannel:
    """A channel between processes, for workers that must be able to die."""

    def __init__(self, rank: int, ends: dict[int, Connection]) -> None:
        self.rank = rank
        self.size = len(ends) + 1
        self._ends = ends

    def send(self, peers: Iterable[int], payload: bytes) -> None:
        for peer in peers:
            with contextlib.suppress(KeyError, BrokenPipeError):  # What is sent to a dead rank is lost.
                self._ends[peer].send_bytes(payload)

    def poll(self) -> tuple[int, bytes] | None:
        for peer, end in list(self._ends.items()):
            try:
                if end.poll():
                    return peer, end.recv_bytes()
            except (EOFError, ConnectionResetError):
                del self._ends[peer]
        return None

    def close(self, timeout_s: float) -> bool:
        return True


def serve_in_process(rank: int, end: Connection, stage: int | None) -> None:
    config = replace(CONFIG, pipeline_parallel=2)
    raise SystemExit(serve_stage(PipeChannel(rank, {0: end}), config, stage, open_model=fake_model()))


class WorkerProcesses(Workers):
    """Workers that are processes, linked by torch.distributed."""

    def __init__(self, stages: list[int | None]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fakes_worker"])  # importing torch in every process takes most of the time
        ends: dict[int, Connection] = {}
        self.processes = {}
        for rank, stage in enumerate(stages, 1):
            ends[rank], theirs = context.Pipe()
            self.processes[rank] = context.Process(target=serve_in_process, args=(rank, theirs, stage), daemon=True)
            self.processes[rank].start()
            theirs.close()
        self.channel = PipeChannel(0, ends)

    def join(self) -> list[int]:
        for process in self.processes.values():
            process.join(20)
        return [process.exitcode for process in self.processes.values()]


def test_a_killed_process_is_replaced_by_a_spare_and_the_job_goes_on() -> None:
    workers = WorkerProcesses([0, 1, None])
    ready = workers.reports(Ready, 2)
    workers.set_up([1, 2], store_port=ready[1].store_port)
    prompt = [5, 17, 3]
    before = workers.generate(FakeJob(0, list(prompt), [3, 1, 2]), 3)
    workers.processes[1].kill()
    workers.processes[1].join(10)
    # The dead rank's store is gone with it.
    workers.set_up([3, 2], epoch=2, store_port=ready[2].store_port)
    after = workers.generate(FakeJob(0, prompt + before, [0, 1, 2]), 3, epoch=2)
    assert before + after == greedy_tokens(prompt, 6)
    workers.send(Stop(), [2, 3])
    assert workers.join() == [-9, 0, 0]
