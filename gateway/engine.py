"""The engine: one thread that turns submitted generations into iterations, and results into streams.

The event loop calls `submit` and `abort`; the thread owns the scheduler and all MPI. Between them stand a queue of
commands one way and one `call_soon_threadsafe` per iteration the other way.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

from msgspec.structs import replace

from common.channel import Channel, growing_pauses
from common.config import Config, ConfigError
from common.model_files import ModelFiles
from common.model_spec import ModelSpec
from common.records import Plan, Result
from gateway.constraints import Constraints, why_no_token
from gateway.generation import Chunk, Failure, Generation, QueueFull, SchedulingTrace, State, Stream, Unavailable
from gateway.pace import Pace
from gateway.pipeline import Interrupted, Pipeline, StageLost
from gateway.recording import Recorder
from gateway.scheduling.job import Job
from gateway.scheduling.scheduler import Outcome, Scheduler
from gateway.start_up import Cluster, Progress, start_up
from gateway.statistics import Statistics
from gateway.streams import JobStream

log = logging.getLogger(__name__)

IDLE_LOOK_S = 0.1  # how often an idle engine looks for a worker's last words
STOP_LOOK_S = 1.0  # how often one that waits looks whether it shall stop
LONGEST_RETRY_S = 60.0
# For which the event loop lets an idle engine's thread wake up and have the interpreter. It would get it half a
# millisecond later, as the event loop has more to do for the request.
WAKING_S = 1e-4


@dataclass(slots=True)
class _Submit:
    stream: JobStream
    generation: Generation


@dataclass(slots=True)
class _End:
    """The client's side ended the job: by a stop string, or because nobody listens any more."""

    stream: JobStream
    complete: bool


class JobEngine:
    """Implements `gateway.generation.Engine`."""

    def __init__(
        self,
        config: Config,
        files: ModelFiles,
        spec: ModelSpec,
        channel: Channel,
        *,
        clock: Callable[[], float] = time.monotonic,
        progress: Progress = lambda what, share: None,
        recorder: Recorder | None = None,
    ) -> None:
        self._config = config
        self._files = files
        self._spec = spec
        self._clock = clock  # what jobs are charged by
        self._progress = progress
        self._recorder = recorder
        stages = list(range(1, config.pipeline_parallel + 1))
        self._pipeline = Pipeline(channel, stages, config.iteration_timeout)
        self._state: State = "loading"
        self._commands: deque[_Submit | _End] = deque()
        self._wake = threading.Event()
        self._constraints = Constraints(self._wake.set)
        self._pace = Pace()
        self._begun: deque[float] = deque()  # when each plan in flight could begin, by the clock of pauses
        self._looked = 0.0  # when there was no result yet, the last time
        self._stopping = False
        self._closed = False  # nobody takes commands any more
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._streams: dict[int, tuple[Job, JobStream]] = {}
        self._jobs: dict[JobStream, Job] = {}
        self._untold: list[tuple[JobStream, Chunk]] = []  # what the event loop has not been told of the last result
        self._next_id = 1
        self._service_s = 0.0  # moving average of seconds per finished job, all jobs together
        self._last_finish = 0.0  # or when the first job came after all had ended
        self.statistics = Statistics()
        self.cluster: Cluster | None = None  # set before the engine is ready, as is the scheduler
        self.scheduler: Scheduler | None = None
        self.failure: str | None = None
        self.is_mistake = False  # the failure is the configuration's: another start would end alike

    # ------------------------------------------------------------------------------------------ on the event loop

    def start(self) -> None:
        """Begin loading, in the thread. Call on the event loop that will use the engine."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._thread.start()

    @property
    def state(self) -> State:
        return self._state

    @property
    def max_context(self) -> int:
        return self.cluster.max_context if self.cluster else self._spec.context_length

    @property
    def num_active(self) -> int:
        """Jobs that are submitted and have not ended."""
        return len(self._streams) + self._num_submitted

    @property
    def num_waiting(self) -> int:
        """Jobs that are submitted and have not run: what the queue's bound counts."""
        return self._num_submitted + (self.scheduler.num_waiting if self.scheduler else 0)

    @property
    def _num_submitted(self) -> int:
        """Jobs that the thread has not taken over yet."""
        return sum(isinstance(command, _Submit) for command in tuple(self._commands))

    def submit(self, generations: list[Generation]) -> list[Stream]:
        if self._state != "ready":
            raise Unavailable(self._state, self._retry_after_s())
        if self.num_waiting + len(generations) > self._config.max_waiting_jobs:
            raise QueueFull(self._retry_after_s())
        streams = [JobStream(self._finish, self._abort) for _ in generations]
        self._commands.extend(map(_Submit, streams, generations))
        if self._closed:  # between the look at the state and now
            raise Unavailable(self._state, self._retry_after_s())
        was_idle = not self._streams
        self._wake.set()
        if was_idle:
            time.sleep(WAKING_S)
        return list(streams)

    async def until(self, *states: State) -> State:
        """Wait until the engine is in one of `states`, and return which."""
        assert self._changed is not None
        while self._state not in states:
            self._changed.clear()
            if self._state not in states:
                await self._changed.wait()
        return self._state

    async def until_idle(self) -> None:
        """Wait until no job is left; only while draining."""
        assert self._changed is not None
        while self.num_active:
            self._changed.clear()
            if self.num_active:
                await self._changed.wait()

    def drain(self) -> None:
        """Take no new jobs; those there are go on."""
        if self._state in ("ready", "loading"):
            self._set_state("draining")

    async def stop(self, timeout_s: float) -> bool:
        """End what still runs, send every rank home and end the thread; False if that took too long."""
        self._stopping = True
        self._pipeline.interrupt()
        self._wake.set()
        await asyncio.to_thread(self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _finish(self, stream: JobStream) -> None:
        self._commands.append(_End(stream, complete=True))
        self._wake.set()

    def _abort(self, stream: JobStream) -> None:
        self._commands.append(_End(stream, complete=False))
        self._wake.set()

    def _retry_after_s(self) -> float:
        """When a place should be free: the measured time per finished job, for each that waits."""
        return min(LONGEST_RETRY_S, max(1.0, self._service_s * max(1, self.num_waiting)))

    # ------------------------------------------------------------------------------------------ the thread

    def _main(self) -> None:
        """The outermost loop of the thread: whatever happens, clients are told and ranks are sent home."""
        try:
            self.cluster = start_up(self._pipeline, self._config, self._files, self._spec, self._progress)
            self.scheduler = self._new_scheduler(self.cluster)
            if self._state == "loading":
                self._set_state("ready")
            self._serve(self.scheduler)
        except Interrupted:
            log.info("stopped before it was ready")
        except ConfigError as error:
            self.failure, self.is_mistake = str(error), True
        except StageLost as lost:
            self.failure = str(lost)
            log.error("the workers are lost: %s", lost)
        except Exception:
            self.failure = "internal error in the engine"
            log.exception("the engine failed")
        finally:
            self._set_state("lost" if self.failure else "draining")  # nobody is let in from here on
            self._closed = True
            self._end_all(self.failure or "the server is shutting down")
            self._pipeline.stop()
            self._note(Recorder.close)

    def _new_scheduler(self, cluster: Cluster) -> Scheduler:
        pools, first_seq = cluster.pools, cluster.plans_used + 1
        return Scheduler(
            cluster.config, cluster.profile, pools.num_device_blocks, pools.num_host_blocks, first_seq=first_seq
        )

    def _serve(self, scheduler: Scheduler) -> None:
        while not self._stopping:
            self._wake.clear()
            self._take_commands(scheduler)
            while self._send(self._timed(scheduler.plan)):
                pass
            if self._config.pipeline_parallel > 1:  # the first stage may be done long before the last one
                self._plan_ahead(scheduler)
            self._record()
            # After the next plans are on their way: text and events are made while the stages compute.
            self._hand_over()
            if not scheduler.num_in_flight:
                self._idle()
            elif (result := self._wait_for_result(scheduler)) is not None:
                self._commit(scheduler, result)
                self._record()

    def _timed(self, plan: Callable[[float], Plan | None]) -> Plan | None:
        start = time.monotonic()
        made = plan(self._clock())
        self.statistics.scheduling_s += time.monotonic() - start
        return made

    def _send(self, plan: Plan | None) -> bool:
        """Whether there was one."""
        if plan is None:
            return False
        self._pipeline.send(plan)
        self._begun.append(time.monotonic())
        self.statistics.offloaded_blocks += len(plan.offloads)
        self.statistics.uploaded_blocks += len(plan.uploads)
        return True

    def _wait_for_result(self, scheduler: Scheduler) -> Result | None:
        """The next result; None when new jobs could use a free slot of the pipeline meanwhile.

        A stage that is alone is sent another plan as late as is safe before it comes, so that new jobs are not kept
        waiting.
        """
        start, begun = time.monotonic(), self._begun[0]
        timeout_s = self._config.iteration_timeout
        full = scheduler.num_in_flight >= self._config.pipeline_parallel
        expected = scheduler.expected()
        if full:
            sure_s = self._pace.sure_s(expected) - (start - begun)
            if (result := self._look(sure_s, repeat(sure_s))) is None:
                if self._config.pipeline_parallel == 1:
                    self._plan_ahead(scheduler)
                ahead = scheduler.num_in_flight > self._config.pipeline_parallel
                result = self._look(timeout_s, self._pace.pauses(time.monotonic() - begun, calm=ahead))
        else:
            result = self._look(timeout_s, growing_pauses(), until_woken=True)
        end = time.monotonic()
        self.statistics.busy_s += end - start
        if result is not None:
            self._pace.took(expected, end - self._begun.popleft())
            if len(self._begun) >= self._config.pipeline_parallel:
                # One that was sent ahead began when this one ended. Who noticed that late must not be late again.
                self._begun[-1] = max(self._begun[-1], self._looked)
        elif end - start > timeout_s:
            raise StageLost(f"no result within {end - start:.0f} s (--iteration-timeout)")
        return result

    def _look(self, seconds: float, pauses: Iterator[float], *, until_woken: bool = False) -> Result | None:
        """The next result, looked for with `pauses` between; None after `seconds`, or when there is something to do."""
        end = time.monotonic() + seconds
        while not self._stopping:
            if (result := self._pipeline.poll()) is not None:
                return result
            self._looked = time.monotonic()
            if self._looked >= end or (until_woken and self._wake.is_set()):
                break
            time.sleep(min(next(pauses), end - self._looked, STOP_LOOK_S))
        return None

    def _plan_ahead(self, scheduler: Scheduler) -> None:
        if self._config.plan_ahead:
            self._take_commands(scheduler)
            self._send(self._timed(scheduler.plan_ahead))

    def _idle(self) -> None:
        if self._state == "draining":
            self._notify()
        if not self._wake.wait(IDLE_LOOK_S):
            unexpected = self._pipeline.poll()
            assert unexpected is None, f"result {unexpected} with no plan in flight"

    def _take_commands(self, scheduler: Scheduler) -> None:
        now = self._clock()
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, _Submit):
                if not self._streams:
                    self._last_finish = now  # the time in which nobody asked says nothing
                self._constraints.start(command.generation)
                job = scheduler.submit(self._next_id, command.generation, now)
                self._next_id += 1
                self._streams[job.id] = (job, command.stream)
                self._jobs[command.stream] = job
            elif (job_ended := self._jobs.get(command.stream)) is not None:
                self._end(scheduler, job_ended, command, now)

    def _end(self, scheduler: Scheduler, job: Job, command: _End, now: float) -> None:
        scheduler.abort(job)
        if command.complete:
            last = Chunk((), "stop", trace=self._trace(job, now), cached_tokens=job.counts.cached_tokens)
            self._note_finish(job, now)
            self._call(_deliver, [(command.stream, last)])
        else:
            self.statistics.aborted += 1
            self._forget(job)

    def _commit(self, scheduler: Scheduler, result: Result) -> None:
        """Take a result in."""
        start, now = time.monotonic(), self._clock()
        outcomes = scheduler.commit(result, now)
        self.statistics.scheduling_s += time.monotonic() - start
        self._constraints.advance(outcomes)
        self.statistics.iterations += 1
        self.statistics.compute_s += result.compute_s
        self.statistics.stalled_s += result.stalled_s
        self._untold = [(self._streams[outcome.job.id][1], self._chunk(outcome, now)) for outcome in outcomes]
        for outcome in outcomes:
            if outcome.finish_reason is not None:
                self._note_finish(outcome.job, now)

    def _chunk(self, outcome: Outcome, now: float) -> Chunk:
        tokens = () if outcome.token is None else (outcome.token,)
        logprobs = () if outcome.logprobs is None else (outcome.logprobs,)
        prompt_logprobs = tuple(outcome.job.prompt_logprobs) if len(outcome.job.output) <= 1 else ()
        chunk = Chunk(
            tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            cached_tokens=outcome.job.counts.cached_tokens,
        )
        if outcome.finish_reason is None:
            return chunk
        error = why_no_token(outcome.job.generation) if outcome.finish_reason == "error" else None
        return replace(chunk, finish_reason=outcome.finish_reason, error=error, trace=self._trace(outcome.job, now))

    def _trace(self, job: Job, now: float) -> SchedulingTrace:
        assert self.cluster is not None
        return job.trace(now, self.cluster.pools.block_bytes)

    def _note_finish(self, job: Job, now: float) -> None:
        counts, statistics = job.counts, self.statistics
        statistics.finished += job.finish_reason != "error"
        statistics.failed += job.finish_reason == "error"
        statistics.preemptions += counts.preemptions
        statistics.recomputes += counts.recomputes
        statistics.cached_tokens += counts.cached_tokens
        self._service_s += 0.1 * (now - self._last_finish - self._service_s)
        self._last_finish = now
        self._forget(job)

    def _forget(self, job: Job) -> None:
        _, stream = self._streams.pop(job.id)
        del self._jobs[stream]
        self._note(lambda recorder: recorder.end(job, self._clock()))

    def _record(self) -> None:
        self._note(lambda recorder: recorder.look((job for job, _ in self._streams.values()), self._clock()))

    def _note(self, note: Callable[[Recorder], None]) -> None:
        """A recording that cannot go on ends; the server does not."""
        if self._recorder is not None:
            try:
                note(self._recorder)
            except OSError as error:
                log.error("the recording is not complete: %s", error)
                with contextlib.suppress(OSError):
                    self._recorder.close()
                self._recorder = None

    def _end_all(self, why: str) -> None:
        """Tell everybody: what there still is, and whose job did not end that it will not."""
        self._hand_over()
        waiting = [stream for _, stream in self._streams.values()]
        waiting += [command.stream for command in tuple(self._commands) if isinstance(command, _Submit)]
        self._commands.clear()
        self._streams.clear()
        self._jobs.clear()
        self._call(_deliver, [(stream, Chunk((), "error", Failure(why))) for stream in waiting])
        self._notify()

    def _hand_over(self) -> None:
        """All of an iteration's tokens to the event loop, in one call."""
        if self._untold:
            untold, self._untold = self._untold, []
            self._call(_deliver, untold)

    def _set_state(self, state: State) -> None:
        self._state = state
        self._notify()

    def _notify(self) -> None:
        assert self._changed is not None
        self._call(self._changed.set)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)


def _deliver(chunks: list[tuple[JobStream, Chunk]]) -> None:
    for stream, chunk in chunks:
        stream.put(chunk)
