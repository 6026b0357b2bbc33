"""One stage's part in one epoch: its plans in order, their copies, its link. Over when a neighbour is lost."""

from collections import deque

from common.records import Plan, Result
from worker.copier import Copies, open_copier
from worker.kv_cache import KvCache
from worker.link import Link
from worker.runner import Runner


class Epoch:
    """A plan's copies start, and its activations may come, when it is taken, however many plans wait before it.

    Iterations run one by one.
    """

    def __init__(self, number: int, runner: Runner, cache: KvCache, link: Link) -> None:
        self.number = number
        self._runner = runner
        self._copier = open_copier(cache)
        self._link = link
        self._waiting: deque[tuple[Plan, Copies]] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def take(self, plan: Plan) -> None:
        """Start the plan's copies and queue its batch."""
        assert plan.epoch == self.number, f"plan {plan.seq} of epoch {plan.epoch} in {self!r}"
        self._runner.expect(plan)
        self._waiting.append((plan, self._copier.start(plan.offloads, plan.uploads)))

    def advance(self) -> Result | None:
        """Run the oldest plan; the last stage returns its result. Raises LinkLost."""
        return self._runner.run(*self._waiting.popleft())

    def close(self) -> None:
        """Finish the copies, drop the plans, disconnect."""
        self._waiting.clear()
        self._link.close()
        self._copier.close()

    def __repr__(self) -> str:
        return f"<Epoch {self.number}: {len(self._waiting)} plans waiting>"
