"""`skipjoin simulate`: what a policy does to a workload, in seconds and without a model."""

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from common.config import Config, ConfigError, KvStrategy, Policy
from gateway.recording import Recorder, read_recording
from launch.lab.machine import Machine, capacity, find_machine
from launch.lab.plots import check_picture
from launch.lab.simulator import Simulated, Simulation
from launch.lab.timeline import draw_timelines, lives
from launch.lab.workload import Request, make_requests, read_requests

_SHOWN = ("mean_jct_s", "p95_jct_s", "p99_jct_s", "mean_norm_s", "p95_norm_s", "mean_ttft_s", "stall_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulate:
    """Simulate scheduling policies on a workload: the server's own scheduler with a clock and a cost model.

    The last line of output is JSON: for every policy latencies in seconds (JCT, normalized: JCT per output token,
    TTFT), the share of time in which stages waited for KV copies, and preemptions. The same seed gives the same
    numbers.

        skipjoin simulate --policy fcfs,skip-join --load 1.5
        skipjoin simulate --cost-model ~/.cache/skipjoin/profiles/MODEL.json --trace requests.csv
    """

    policy: str = "static,fcfs,mlfq,skip-join,srpt"
    """Policies to compare, separated by commas."""
    kv_strategy: KvStrategy = "proactive"
    """What happens to the KV of waiting jobs when the device pool fills up."""
    workload: str = "sharegpt"
    """Lengths: sharegpt, alpaca, mix, azure, zipf:EXPONENT, uniform:LEAST-MOST or ratio:PROMPT/OUTPUT."""
    trace: str | None = None
    """CSV or JSON lines with arrival, prompt and output, instead of --workload."""
    jobs: int = 400
    """Number of requests."""
    rate: float | None = None
    """Requests per second. Default: --load; of a trace: its own times."""
    load: float = 1.2
    """Requests per second as a share of what full batches can just serve, where no --rate is given."""
    cv: float = 1.0
    """Coefficient of variation of the times between arrivals; 1 is Poisson, more is burstier."""
    seed: int = 0
    """Seed of lengths and arrivals."""
    cost_model: str = "opt-13b"
    """opt-13b, opt-66b or opt-175b on the paper's A100s, or a FILE that `skipjoin profile` wrote."""
    batch: int = 16
    """Most jobs in one iteration."""
    pipeline_parallel: int | None = None
    """Number of pipeline stages. Default: the cost model's."""
    kv_device_memory: str | None = None
    """Device memory for KV per stage, such as 10GiB. Default: the cost model's; of a FILE, no limit."""
    kv_host_memory: str | None = None
    """Host memory for KV per stage. Default: the same."""
    prefill_chunk_tokens: int = Config().prefill_chunk_tokens
    """As `skipjoin serve --prefill-chunk-tokens`."""
    aging: float = Config().aging
    """As `skipjoin serve --aging`."""
    aging_limit_ms: float | None = None
    """As `skipjoin serve --aging-limit-ms`."""
    timeline: Path | None = None
    """Draw who ran, waited or was offloaded when, under each policy; a file such as timeline.svg."""
    record: Path | None = None
    """Folder for a recording of each policy's run, for `skipjoin timeline`."""

    def run(self) -> int:
        """Raises ConfigError."""
        if self.jobs < 1 or self.batch < 1:
            raise ConfigError("--jobs and --batch must be at least 1")
        if self.timeline is not None:
            check_picture(self.timeline)
        policies = parse_policies(self.policy)
        machine = find_machine(self.cost_model)
        if self.pipeline_parallel is not None:
            machine = replace(machine, stages=self.pipeline_parallel)
        requests = self._requests(machine)
        with tempfile.TemporaryDirectory() as temporary:
            folder = self.record or (Path(temporary) if self.timeline else None)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            results = {policy: self._simulate(policy, machine, requests, folder) for policy in policies}
            if self.timeline is not None and folder is not None:
                draw_timelines(
                    {policy: lives(read_recording(recording(folder, policy))) for policy in policies}, self.timeline
                )
        _show(results)
        print(json.dumps({policy: result.summary() for policy, result in results.items()}))
        return 0

    def _requests(self, machine: Machine) -> list[Request]:
        if self.trace is not None:
            return read_requests(self.trace, self.jobs, self.rate)
        rate = self.rate
        if rate is None:
            rate = self.load * capacity(machine, make_requests(self.workload, self.jobs, seed=self.seed), self.batch)
        return make_requests(self.workload, self.jobs, rate, self.cv, self.seed)

    def _simulate(self, policy: Policy, machine: Machine, requests: list[Request], folder: Path | None) -> Simulated:
        config = Config(
            policy=policy,
            kv_strategy=self.kv_strategy,
            max_batch_jobs=self.batch,
            pipeline_parallel=machine.stages,
            kv_device_memory=self.kv_device_memory,
            kv_host_memory=self.kv_host_memory,
            prefill_chunk_tokens=self.prefill_chunk_tokens,
            aging=self.aging,
            aging_limit_ms=self.aging_limit_ms,
        )
        recorder = None if folder is None else Recorder(recording(folder, policy))
        with tqdm(total=len(requests), desc=f"{policy:>10}", leave=False, file=sys.stderr) as bar:
            result = Simulation(config, machine, requests, recorder).run(bar.update)
        if recorder is not None:
            recorder.close()
        return result


def recording(folder: Path, policy: Policy) -> Path:
    return folder / f"{policy}.jsonl"


def parse_policies(text: str) -> list[Policy]:
    """Policies separated by commas. Raises ConfigError."""
    known: dict[str, Policy] = {policy: policy for policy in get_args(Policy)}
    try:
        return [known[name.strip()] for name in text.split(",")]
    except KeyError as error:
        raise ConfigError(f"unknown policy {error}; choose among {', '.join(known)}") from None


def _show(results: dict[Policy, Simulated]) -> None:
    print(f"{'':>10}" + "".join(f"{name:>14}" for name in (*_SHOWN, "preemptions")))
    for policy, result in results.items():
        row = result.summary()
        print(f"{policy:>10}" + "".join(f"{row[name]:14.3f}" for name in _SHOWN) + f"{row['preemptions']:14.0f}")
