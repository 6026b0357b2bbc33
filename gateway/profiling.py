"""Measures what iterations cost on this model, device and layout, through all stages, and remembers it on disk."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from common.config import Config
from common.model_files import ModelFiles
from common.records import Entry, Plan, Ready, Sampling
from gateway.pipeline import Pipeline, Pools
from gateway.scheduling.cost import Profile

PROMPT_TOKENS = (16, 64, 256, 1024)
DECODE_JOBS = (1, 4, 16, 64)
DECODE_CONTEXT = 256
# A point is measured again until it has this many repeats or took this long: long prefills vary little.
REPEATS = 5
POINT_BUDGET_S = 0.6

_GREEDY = Sampling(0.0, 1.0, 0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Point:
    """One kind of iteration to measure."""

    jobs: int
    start: int
    tokens: int


class Profiler:
    """Runs made-up iterations on an idle pipeline. Job ids and tokens are arbitrary: only time is looked at."""

    def __init__(self, pipeline: Pipeline, config: Config, pools: Pools, vocab_size: int, max_context: int) -> None:
        self._pipeline = pipeline
        self._config = config
        self._pools = pools
        self._vocab_size = vocab_size
        self._max_context = max_context
        self._seq = 0

    def measure(self, progress: Callable[[float], None], clock: Callable[[], float] = time.perf_counter) -> Profile:
        points = list(self._points())
        seconds: dict[Point, float] = {}
        for index, point in enumerate(points):
            seconds[point] = self._quickest(point, clock)
            progress((index + 1) / len(points))
        return Profile(
            prefill=_rising([(point.tokens, seconds[point]) for point in points if point.start == 0]),
            decode=_rising([(point.jobs, seconds[point]) for point in points if point.start > 0]),
        )

    @property
    def num_plans(self) -> int:
        """Plans sent so far: their numbers are used up."""
        return self._seq

    def _points(self) -> Iterator[Point]:
        block_tokens = self._config.block_tokens
        for tokens in PROMPT_TOKENS:
            if tokens <= self._max_context:
                yield Point(1, 0, tokens)
        context = min(DECODE_CONTEXT, self._max_context - 1)
        blocks = -(-(context + 1) // block_tokens)
        most = min(self._config.max_batch_jobs, self._pools.num_device_blocks // blocks)
        for jobs in sorted({count for count in DECODE_JOBS if count < most} | {max(1, most)}):
            yield Point(jobs, context, 1)

    def _quickest(self, point: Point, clock: Callable[[], float]) -> float:
        """What the iteration costs when nothing else disturbs the machine: noise only ever adds."""
        self._run(point)  # the first one pays for allocations
        taken: list[float] = []
        while len(taken) < REPEATS and sum(taken) < POINT_BUDGET_S:
            start = clock()
            self._run(point)
            taken.append(clock() - start)
        return min(taken)

    def _run(self, point: Point) -> None:
        blocks = -(-(point.start + point.tokens) // self._config.block_tokens)
        tokens = [(7919 * i) % self._vocab_size for i in range(point.tokens)]
        entries = [
            Entry(job, point.start, tokens, list(range(job * blocks, (job + 1) * blocks)), _GREEDY)
            for job in range(point.jobs)
        ]
        self._seq += 1
        self._pipeline.run(Plan(self._seq, 0, entries, [], [], False))


def _rising(measured: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """More work never takes less time: what says otherwise was disturbed, and is no more than what follows it."""
    seconds = [taken for _, taken in measured]
    return [(size, min(seconds[index:])) for index, (size, _) in enumerate(measured)]


# ---------------------------------------------------------------------------------------------- on disk


def profile_path(files: ModelFiles, config: Config, offers: list[Ready], folder: Path | None = None) -> Path:
    """Where the profile of this model, device and layout is kept: everything that changes the times is in the name."""
    target = files.path if files.path.is_file() else files.path / "config.json"
    stat = target.stat()
    facts = [str(files.path.resolve()), stat.st_size, stat.st_mtime_ns, config.block_tokens, config.max_batch_jobs]
    facts += [[offer.hostname, offer.device, offer.dtype, offer.block_bytes] for offer in offers]
    digest = hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]
    folder = folder or Path(platformdirs.user_cache_dir("skipjoin")) / "profiles"
    return folder / f"{files.name.replace('/', '--')}-{digest}.json"


def load_profile(path: Path) -> Profile | None:
    """The profile in a file, or None if there is none or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except (OSError, msgspec.DecodeError):
        return None


def save_profile(path: Path, profile: Profile) -> None:
    """Written beside and renamed, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1))
    beside.replace(path)
