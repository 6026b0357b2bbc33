"""The workers as the engine sees them: plans go to every stage at once, results come from the last."""

import time
from collections.abc import Callable

from msgspec.structs import replace

from common.channel import Channel, receive
from common.config import ConfigError
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

_INTERRUPT_LOOK_S = 0.2
_CLOSE_TIMEOUT_S = 5.0


class StageLost(RuntimeError):
    """A stage failed or fell silent; the message is for the operator."""


class Interrupted(Exception):
    """Somebody asked for the end while this was waiting."""


class Pipeline:
    """Talks to the stages over a channel. One thread uses it.

    All that waits raises StageLost, and ConfigError for a stage that cannot do what the configuration wants.
    """

    def __init__(self, channel: Channel, stages: list[int], timeout_s: float) -> None:
        self._channel = channel
        self.stages = stages
        self._timeout_s = timeout_s
        self._interrupted = False

    def interrupt(self) -> None:
        """Make whoever waits for start-up or for a single plan raise Interrupted. The one call for other threads."""
        self._interrupted = True

    # ------------------------------------------------------------------------------------------ start-up

    def wait_until_loaded(self, timeout_s: float, progress: Callable[[float], None]) -> list[Ready]:
        """Every stage's offer, in stage order. `progress` is told the share that is loaded."""
        ready: dict[int, Ready] = {}
        shares = dict.fromkeys(self.stages, 0.0)
        while len(ready) < len(self.stages):
            rank, report = self._expect((Progress, Ready), timeout_s)
            if isinstance(report, Progress):
                shares[rank] = report.done / max(1, report.total)
            elif isinstance(report, Ready):
                ready[rank], shares[rank] = report, 1.0
            progress(sum(shares.values()) / len(shares))
        return [ready[rank] for rank in self.stages]

    def set_up(self, setup: Setup, timeout_s: float) -> None:
        """Make the stages allocate their pools and connect; returns when all have."""
        self._channel.send(self.stages, encode(setup))
        up: set[int] = set()
        while len(up) < len(self.stages):
            rank, report = self._expect((Up,), timeout_s)
            assert isinstance(report, Up)
            assert report.epoch == setup.epoch
            up.add(rank)

    # ------------------------------------------------------------------------------------------ iterations

    def send(self, plan: Plan) -> None:
        """Only the last stage has logits: the others are spared what is done with them, which can be long."""
        *others, last = self.stages
        payload = encode(plan)
        if others:
            lean = _lean(plan)
            self._channel.send(others, payload if lean is plan else encode(lean))
        self._channel.send([last], payload)

    def poll(self) -> Result | None:
        """The next result if it is there."""
        message = self._channel.poll()
        if message is None:
            return None
        rank, payload = message
        report = _checked(rank, decode_report(payload))
        if not isinstance(report, Result):
            raise StageLost(f"rank {rank} sent {type(report).__name__} where a result was expected")
        return report

    def run(self, plan: Plan) -> Result:
        """Send one plan and wait for its result, with nothing else in flight."""
        self.send(plan)
        _, report = self._expect((Result,), self._timeout_s)
        assert isinstance(report, Result)
        return report

    def stop(self) -> None:
        """Tell every rank of the world to leave, spares too."""
        everybody = [rank for rank in range(self._channel.size) if rank != self._channel.rank]
        self._channel.send(everybody, encode(Stop()))
        self._channel.close(_CLOSE_TIMEOUT_S)

    def _expect(self, kinds: tuple[type[Report], ...], timeout_s: float) -> tuple[int, Report]:
        deadline, message = time.monotonic() + timeout_s, None
        while message is None and time.monotonic() < deadline:
            if self._interrupted:  # Not only when nothing comes: several stages that load always tell of it.
                raise Interrupted
            message = receive(self._channel, _INTERRUPT_LOOK_S)
        if message is None:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise StageLost(f"no {wanted} from ranks {self.stages} within {timeout_s:.0f} s")
        rank, payload = message
        report = _checked(rank, decode_report(payload))
        if not isinstance(report, kinds):
            raise StageLost(f"rank {rank} sent {type(report).__name__} out of turn")
        return rank, report


def _checked(rank: int, report: Report) -> Report:
    if isinstance(report, Fault | LinkDown):
        mistake = isinstance(report, Fault) and report.is_mistake
        raise (ConfigError if mistake else StageLost)(f"rank {rank}: {report.text}")
    return report


def _lean(plan: Plan) -> Plan:
    """Without what only the last stage reads; the same plan if there is nothing of that."""
    if all(entry.shaping is None and not entry.scored for entry in plan.entries):
        return plan
    return replace(plan, entries=[replace(entry, shaping=None, scored=[]) for entry in plan.entries])
