"""The one configuration of a server. The command line is this class's fields, their docstrings its help."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

Policy = Literal["skip-join", "mlfq", "fcfs", "static", "srpt"]
KvStrategy = Literal["proactive", "reactive", "recompute", "defer"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Stored = Literal["exact", "bf16", "int8"]
KvDtype = Literal["auto", "exact", "fp16", "bf16", "int8"]
Device = Literal["auto", "cpu", "cuda"]
ToolFormatName = Literal["auto", "hermes", "llama", "mistral"]
ReasoningMode = Literal["auto", "on", "off"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

_CPU_BATCH_JOBS, _GPU_BATCH_JOBS = 16, 64

_AT_LEAST_ONE = (  # where they are given
    "pipeline_parallel",
    "threads",
    "max_context",
    "block_tokens",
    "kv_device_blocks",
    "max_batch_jobs",
    "max_batch_tokens",
    "max_body_bytes",
    "max_waiting_jobs",
    "num_levels",
)
_AT_LEAST_ZERO = ("kv_host_blocks", "prefill_chunk_tokens", "aging", "drain_timeout")
_MORE_THAN_ZERO = ("quantum_ms", "aging_limit_ms", "ping_interval", "start_timeout", "iteration_timeout")
_LARGEST_PORT = 2**16 - 1
_LARGEST_GROWTH = 1e100  # from the highest level's quantum to the lowest's, so that all are finite


class ConfigError(ValueError):
    """A configuration that cannot work; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a rank needs to know. Every rank of a world parses the same command line into the same Config."""

    model: Annotated[str | None, tyro.conf.Positional] = None
    """A Hugging Face directory (safetensors), a GGUF file, or a hub id. Default: the embedded SmolLM2-135M-Instruct."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    served_model_name: str | None = None
    """The id that clients see in /v1/models. Default: the model's own name."""
    api_key_file: str | None = None
    """TOML file of the keys that clients need, hashed, with their limits; `skipjoin key` makes them. Keys without
    limits may also stand in the environment, as SKIPJOIN_API_KEYS=KEY,KEY. Default: no key is needed."""
    cors_origins: tuple[str, ...] = ()
    """Web pages that may use the server from a browser, such as https://chat.example.org; * for all."""
    ssl_certfile: str | None = None
    """Certificate chain in PEM: serve HTTPS."""
    ssl_keyfile: str | None = None
    """The certificate's private key. Default: it is in the same file."""

    pipeline_parallel: int = 1
    """Number of pipeline stages. A world needs one rank more: the gateway."""
    dtype: Dtype = "auto"
    """Type in which stages compute, and in which they keep weights and KV unless told otherwise. auto: fp32 on a CPU,
    the checkpoint's own type on a GPU."""
    weights: Stored = "exact"
    """How a CPU keeps matrices. exact: in --dtype; where that is fp32 native kernels keep the codes of a GGUF file, and
    other matrices in 16 bits that have all of their numbers. bf16 and int8 (in groups of 256) round them and need less
    memory, which is what small batches wait for. int8 multiplies integers of 16 and 8 bits, and is the fastest for few
    jobs; bf16 is more exact. Where a CPU has AMX, bf16 is as fast at prompts, and meets inputs rounded to bf16, too."""
    kv_cache_dtype: KvDtype = "auto"
    """How a CPU keeps keys and values. exact: as they are computed, in --dtype. fp16 and bf16 halve their memory, and
    the time that attention waits for it, and int8, with a scale for each token and head, nearly quarters it; bf16 and
    int8 are for CPUs with AMX, heads of a multiple of 32, and --block-tokens of a multiple of 16; fp16 is more exact
    than either. auto: where --weights rounds as well, bf16 if that can be, else fp16; exact where matrices are, and
    where torch attends."""
    device: Device = "auto"
    """Where the stages compute. auto: CUDA on every host that has it, else the CPU."""
    threads: int | None = None
    """CPU threads per stage. Default: one for each core that launcher and container leave to it; stages that may use
    the same ones divide them."""
    cuda_graphs: bool = True
    """On CUDA, replay decode iterations as recorded graphs: faster at small batches, for a little memory."""
    max_context: int | None = None
    """Longest prompt plus output in tokens. Default: the model's own, cut to what the device pool holds."""

    tool_format: ToolFormatName = "auto"
    """How the model writes tool calls. auto: as its chat template teaches; to models whose template knows no tools they
    are described in Hermes form."""
    reasoning: ReasoningMode = "auto"
    """Split <think>...</think> from answers. auto: where the model's chat template or tokenizer knows these marks."""

    block_tokens: int = 16
    """Tokens per KV block."""
    kv_device_memory: str | None = None
    """Device memory for KV per stage, such as 2GiB. Default: 80 % of what is free on CUDA, 15 % on a CPU."""
    kv_host_memory: str | None = None
    """Host memory per stage for offloaded KV, such as 4GiB. Default: a quarter of what is free after loading,
    on CUDA twice the device's at most."""
    kv_device_blocks: int | None = None
    """Exact number of device blocks, instead of --kv-device-memory; for experiments."""
    kv_host_blocks: int | None = None
    """Exact number of host blocks, instead of --kv-host-memory; for experiments."""

    policy: Policy = "skip-join"
    """Order of jobs. skip-join: FastServe. mlfq: without the skip. fcfs: run to completion. static: batch by batch.
    srpt: an oracle, for experiments; requests need ignore_eos and max_tokens."""
    kv_strategy: KvStrategy = "proactive"
    """What happens to the KV of waiting jobs when the device pool fills up."""
    max_batch_jobs: int | None = None
    """Most jobs in one iteration. Default: 16; 64 where all stages are on GPUs."""
    max_batch_tokens: int = 2048
    """Most tokens in one iteration."""
    prefill_chunk_tokens: int = 256
    """Most prompt tokens in one iteration, divided by the stages; longer prompts are computed in chunks. 0: as many as
    --max-batch-tokens."""
    plan_ahead: bool = True
    """Send the first stage its next iteration before the result that the last one computes is seen."""
    prefix_cache: bool = True
    """Keep the KV of full blocks after their job ended, and share it with jobs that begin with the same tokens."""
    max_waiting_jobs: int = 1024
    """Jobs that may wait before new requests are told to come back later (429)."""
    num_levels: int = 16
    """Levels of the multi-level feedback queue."""
    quantum_ms: float | None = None
    """Quantum of the highest level. Default: the measured time of one decode iteration."""
    quantum_growth: float = 2.0
    """Each level's quantum over that of the level above."""
    aging: float = 8.0
    """A job is promoted when it waited this many times its attained service (times active jobs per place). 0: never."""

    aging_limit_ms: float | None = None
    """Promote a job that waited this long, whatever it attained: the paper's alpha, instead of --aging. Thrashes under
    overload; for experiments."""

    profile: Literal["cached", "measure"] = "cached"
    """Use the profile cached for this model, version, device and layout, or measure again."""
    ping_interval: float = 10.0
    """Seconds between keep-alive comments on a silent stream."""
    drain_timeout: float = 30.0
    """Seconds that running jobs get to finish after SIGTERM or Ctrl-C."""
    start_timeout: float = 600.0
    """Seconds that loading may take before the start is given up."""
    iteration_timeout: float = 300.0
    """Seconds that one iteration may take before its stage counts as lost."""
    max_body_bytes: int = 8 * 2**20
    """Largest request body."""
    record: str | None = None
    """File to write every job's moves to, for `skipjoin timeline`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Verbosity of the log on standard error."""

    @property
    def batch_jobs(self) -> int:
        """`max_batch_jobs`; where neither that nor a device is given, what it is on a CPU."""
        return self.max_batch_jobs or _CPU_BATCH_JOBS

    def on(self, *devices: str) -> "Config":
        """With what depends on the stages' devices settled. Their names begin as torch's do."""
        are_gpus = all(device.startswith("cuda") for device in devices)
        default = _GPU_BATCH_JOBS if are_gpus else _CPU_BATCH_JOBS
        return replace(self, max_batch_jobs=self.max_batch_jobs or default)

    def __post_init__(self) -> None:
        # Each asks for what is right, so that NaN is not.
        self._require("must be at least 1", lambda value: value >= 1, _AT_LEAST_ONE)
        self._require("must not be negative", lambda value: value >= 0, _AT_LEAST_ZERO)
        self._require("must be greater than 0", lambda value: value > 0, _MORE_THAN_ZERO)
        self._require("must be greater than 1", lambda value: value > 1, ("quantum_growth",))
        self._require(f"must be from 0 to {_LARGEST_PORT}", lambda value: 0 <= value <= _LARGEST_PORT, ("port",))
        if (self.num_levels - 1) * math.log(self.quantum_growth) > math.log(_LARGEST_GROWTH):
            raise ConfigError(
                f"--num-levels {self.num_levels} are too many with --quantum-growth {self.quantum_growth}"
            )
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")
        for name in ("kv_device_memory", "kv_host_memory"):
            value = getattr(self, name)
            if value is not None:
                parse_bytes(value)

    def _require(self, what: str, holds: Callable[[float], bool], names: tuple[str, ...]) -> None:
        """Raises ConfigError for the first of the options that is given and is not so."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ConfigError(f"{_option(name)} {what}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse_bytes(text: str) -> int:
    """Number of bytes in a size such as `512MiB`, `2G` or `1000000`. Units are powers of 1024."""
    size = _SIZE.fullmatch(text.strip())
    if size is None:
        raise ConfigError(f"not a size: {text!r}; write for example 512MiB or 2GiB")
    number, unit = size.groups()
    return int(float(number) * _UNITS[unit.upper()])
