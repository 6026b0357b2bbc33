"""How long one iteration's scheduling takes: plan and commit, with 16 jobs running and many waiting."""

import json
import statistics
import time
from dataclasses import dataclass

from tqdm import tqdm

from common.config import Config, KvStrategy, Policy
from common.records import Result
from gateway.generation import Generation
from gateway.scheduling.cost import LinearCost
from gateway.scheduling.scheduler import Scheduler

_PROMPTS = (24, 57, 130, 411)
_COST = LinearCost(decode=0.04, prefill_per_token=0.0015)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerBench:
    """Time the scheduler's work per iteration (plan + commit), by number of waiting jobs."""

    waiting: tuple[int, ...] = (1_000, 10_000)
    """Numbers of waiting jobs to measure."""
    policy: Policy = "skip-join"
    """Policy to measure."""
    kv_strategy: KvStrategy = "proactive"
    """KV strategy to measure."""
    iterations: int = 2_000
    """Iterations per measurement."""
    shared_tokens: int = 0
    """Tokens with which all prompts begin alike."""
    prefix_cache: bool = True
    """Whether there is a prefix cache."""

    def run(self) -> int:
        results = [self._measure(waiting, crowded) for waiting in self.waiting for crowded in (False, True)]
        for row in results:
            print(
                f"{row['waiting']:7d} waiting, {row['memory']:>8} memory: plan {row['plan_ms']:.3f} ms, "
                f"commit {row['commit_ms']:.3f} ms, both {row['median_ms']:.3f} ms (P99 {row['p99_ms']:.3f} ms)"
            )
        print(
            json.dumps({"bench": "scheduler", "policy": self.policy, "kv_strategy": self.kv_strategy, "rows": results})
        )
        return 0

    def _measure(self, waiting: int, crowded: bool) -> dict[str, float | int | str]:
        """crowded: the device holds about 60 contexts, so that KV moves all the time."""
        config = Config(
            policy=self.policy, kv_strategy=self.kv_strategy, max_batch_jobs=16, prefix_cache=self.prefix_cache
        )
        scheduler = Scheduler(config, _COST, 1_000 if crowded else 1_000_000, 4_000 if crowded else 1_000_000)
        plans, commits, ids, now = [], [], iter(range(10**9)), 0.0
        for _ in tqdm(range(self.iterations), desc=f"{waiting} waiting", leave=False):
            while scheduler.num_waiting < waiting:
                job = next(ids)
                prompt = [0] * self.shared_tokens + [job + 1] * _PROMPTS[job % len(_PROMPTS)]
                generation = Generation(prompt=prompt, max_tokens=10 + job % 200)
                scheduler.submit(job, generation, now)
            start = time.perf_counter()
            plan = scheduler.plan(now)
            planned = time.perf_counter()
            assert plan is not None
            now += 0.1
            result = Result(plan.seq, [7] * len(plan.entries), 0.0, 0.0)
            resumed = time.perf_counter()
            scheduler.commit(result, now)
            commits.append(time.perf_counter() - resumed)
            plans.append(planned - start)
        both = sorted(1000 * (plan_s + commit_s) for plan_s, commit_s in zip(plans, commits, strict=True))
        return {
            "waiting": waiting,
            "memory": "crowded" if crowded else "ample",
            "plan_ms": 1000 * statistics.median(plans),
            "commit_ms": 1000 * statistics.median(commits),
            "median_ms": statistics.median(both),
            "p99_ms": both[int(0.99 * len(both))],
        }
