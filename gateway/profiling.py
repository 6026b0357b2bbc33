"""Measures what iterations cost on this model, device and layout, through all stages, and remembers it on disk."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from common.config import Config
from common.model_files import ModelFiles
from common.records import Entry, Plan, Ready, Sampling, pack_blocks
from gateway.pipeline import Pipeline
from gateway.pools import Pools
from gateway.scheduling.cost import Profile

PROMPT_TOKENS = (16, 64, 256, 1024)
DECODE_JOBS = (1, 4, 8, 16, 64)
DECODE_CONTEXT = 256
LONG_CONTEXT = 1024  # what contexts cost follows from this one and DECODE_CONTEXT
COPIED_BLOCKS = 64
# A point is measured again until it has this many repeats or took this long: long prefills vary little.
REPEATS = 5
POINT_BUDGET_S = 0.6

_FORMAT = 6  # counts what changed the file: an older profile is not found, and measured anew

_GREEDY = Sampling(0.0, 1.0, 0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Point:
    """One kind of iteration to measure."""

    jobs: int
    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What a profile is made of."""

    points: list[Point]  # in order
    copies: list[int]  # blocks of each


class Profiler:
    """Runs made-up iterations on an idle pipeline. Job ids and tokens are arbitrary: only time is looked at."""

    def __init__(self, pipeline: Pipeline, config: Config, pools: Pools, vocab_size: int, max_context: int) -> None:
        self._pipeline = pipeline
        self._config = config
        self._pools = pools
        self._vocab_size = vocab_size
        # In a small pool shorter contexts, so that full batches are measured, not guessed from small ones.
        most = pools.num_device_blocks // config.batch_jobs * config.block_tokens - 1
        self._context = max(1, min(DECODE_CONTEXT, max_context - 1, most))
        self._max_context = max_context
        self._seq = 0

    def measure(self, progress: Callable[[float], None], clock: Callable[[], float] = time.perf_counter) -> Profile:
        prompts, decodes, contexts = self._prompts(), self._decodes(), self._contexts()
        points = self.measured.points
        seconds: dict[Point, float] = {}
        for index, point in enumerate(points):
            seconds[point] = self._quickest(self._batch(point), clock)
            progress((index + 1) / (len(points) + 1))
        copy_s = self._copy_s(clock)
        progress(1.0)
        return Profile(
            prefill=_rising([(point.tokens, seconds[point]) for point in prompts]),
            decode=_rising([(point.jobs, seconds[point]) for point in decodes]),
            decode_context=self._context,
            context_s=_slope([(point.jobs * point.start, seconds[point]) for point in contexts]),
            copy_s=copy_s,
            block_tokens=self._config.block_tokens,
            block_bytes=self._pools.block_bytes,
            stages=self._config.pipeline_parallel,
        )

    @property
    def measured(self) -> Measured:
        points = dict.fromkeys(self._prompts() + self._decodes() + self._contexts())
        return Measured(list(points), self._copies())

    @property
    def num_plans(self) -> int:
        """Plans sent so far: their numbers are used up."""
        return self._seq

    def _prompts(self) -> list[Point]:
        return [Point(1, 0, tokens) for tokens in sorted({min(size, self._max_context) for size in PROMPT_TOKENS})]

    def _decodes(self) -> list[Point]:
        most = self._most_jobs(self._context)
        counts = sorted({count for count in DECODE_JOBS if count < most} | {most})
        return [Point(jobs, self._context, 1) for jobs in counts]

    def _contexts(self) -> list[Point]:
        """The same jobs with two contexts, as far as the pool has room."""
        longest = min(LONG_CONTEXT, self._max_context - 1)
        jobs = self._most_jobs(longest)
        return [Point(jobs, context, 1) for context in sorted({self._context, longest})]

    def _copies(self) -> list[int]:
        """Blocks of each offload."""
        most = min(COPIED_BLOCKS, self._pools.num_device_blocks, self._pools.num_host_blocks)
        return sorted({min(1, most), most})

    def _most_jobs(self, context: int) -> int:
        blocks = -(-(context + 1) // self._config.block_tokens)
        return max(1, min(self._config.batch_jobs, self._pools.num_device_blocks // blocks))

    def _batch(self, point: Point) -> Plan:
        blocks = -(-(point.start + point.tokens) // self._config.block_tokens)
        tokens = [(7919 * i) % self._vocab_size for i in range(point.tokens)]
        entries = [
            Entry(job, point.start, tokens, pack_blocks(range(job * blocks, (job + 1) * blocks)), _GREEDY)
            for job in range(point.jobs)
        ]
        return Plan(0, 0, entries, [], [], False)

    def _copy_s(self, clock: Callable[[], float]) -> float:
        """Seconds per block, from a small and a large offload."""
        sizes = self._copies()
        offloads = [Plan(0, 0, [], [(block, block) for block in range(size)], [], False) for size in sizes]
        return _slope([(size, self._quickest(plan, clock)) for size, plan in zip(sizes, offloads, strict=True)])

    def _quickest(self, plan: Plan, clock: Callable[[], float]) -> float:
        """What the iteration costs when nothing else disturbs the machine: noise only ever adds."""
        self._run(plan)  # the first one pays for allocations
        taken: list[float] = []
        while len(taken) < REPEATS and sum(taken) < POINT_BUDGET_S:
            start = clock()
            self._run(plan)
            taken.append(clock() - start)
        return min(taken)

    def _run(self, plan: Plan) -> None:
        self._seq += 1
        self._pipeline.run(msgspec.structs.replace(plan, seq=self._seq))


def _rising(measured: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """More work never takes less time: what says otherwise was disturbed, and is no more than what follows it."""
    seconds = [taken for _, taken in measured]
    return [(size, min(seconds[index:])) for index, (size, _) in enumerate(measured)]


def _slope(measured: list[tuple[int, float]]) -> float:
    """Seconds per unit between two measurements; 0 where there is only one, or where noise was larger."""
    (small, small_s), (large, large_s) = measured[0], measured[-1]
    return max(0.0, large_s - small_s) / (large - small) if large > small else 0.0


# ---------------------------------------------------------------------------------------------- on disk


def profile_path(
    files: ModelFiles, config: Config, offers: list[Ready], measured: Measured, folder: Path | None = None
) -> Path:
    """Where the profile of this model, device and layout is kept: everything that changes the times is in the name."""
    target = files.path if files.path.is_file() else files.path / "config.json"
    stat = target.stat()
    facts = [
        _FORMAT,
        str(files.path.resolve()),
        stat.st_size,
        stat.st_mtime_ns,
        config.block_tokens,
        config.batch_jobs,
        config.weights,
        config.cuda_graphs,
        measured,
    ]
    facts += [[offer.hostname, offer.device, offer.dtype, offer.fingerprint, offer.block_bytes] for offer in offers]
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
