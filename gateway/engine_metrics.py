"""The engine's counters and gauges for Prometheus, read when somebody scrapes: an iteration pays nothing for them."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.engine import JobEngine
from gateway.scheduling.scheduler import Scheduler

_COUNTERS = {
    "iterations": "Iterations committed.",
    "finished": "Jobs that ended by themselves.",
    "aborted": "Jobs whose client went away or had enough.",
    "failed": "Jobs whose logits were not finite.",
    "preemptions": "Times that a started job was left out of a batch, of jobs that ended.",
    "recomputes": "Times that a job lost its KV, of jobs that ended.",
    "cached_tokens": "Prompt tokens whose KV was in the prefix cache, of jobs that ended.",
    "offloaded_blocks": "KV blocks moved to host memory.",
    "uploaded_blocks": "KV blocks moved back to the device.",
    "busy_s": "Seconds with a plan in flight.",
    "scheduling_s": "Seconds in which the scheduler planned and took results in.",
    "compute_s": "Seconds in which the last stage computed.",
    "stalled_s": "Seconds in which the last stage waited for KV copies.",
}


class EngineCollector(Collector):
    """Exports an engine's statistics and the state of its queue and pools."""

    def __init__(self, engine: JobEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        for name, text in _COUNTERS.items():
            exported = name.replace("_s", "_seconds") if name.endswith("_s") else name
            yield CounterMetricFamily(f"skipjoin_{exported}", text, value=getattr(self._engine.statistics, name))
        yield GaugeMetricFamily("skipjoin_jobs", "Jobs submitted and not ended.", value=self._engine.num_active)
        yield GaugeMetricFamily("skipjoin_jobs_waiting", "Jobs that never ran.", value=self._engine.num_waiting)
        if self._engine.scheduler is not None:
            yield from self._memory(self._engine.scheduler)

    def _memory(self, scheduler: Scheduler) -> Iterator[Metric]:
        lines = GaugeMetricFamily("skipjoin_jobs_by_kv", "Jobs by where their KV is.", labels=["kv"])
        for name in ("cold", "resident", "away"):
            lines.add_metric([name], len(getattr(scheduler.queue, name)))
        yield lines
        used = GaugeMetricFamily("skipjoin_kv_blocks_used", "KV blocks in use.", labels=["memory"])
        total = GaugeMetricFamily("skipjoin_kv_blocks", "KV blocks there are.", labels=["memory"])
        for memory, pool in (("device", scheduler.ledger.device), ("host", scheduler.ledger.host)):
            used.add_metric([memory], pool.num_used)
            total.add_metric([memory], pool.num_blocks)
        yield GaugeMetricFamily(
            "skipjoin_kv_blocks_cached",
            "Device blocks that nobody uses, and whose KV is kept until their room is needed.",
            value=scheduler.ledger.device.prefixes.num_idle,
        )
        yield used
        yield total
