"""What the HTTP side asks of the engine, and what it gets back. Both sides of the hand-over are defined here."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from common.records import Logprobs

FinishReason = Literal["stop", "length", "error"]


class Constraint(Protocol):
    """What one job may say next: a function of the tokens that it said so far, made anew for every job.

    The engine takes it as it is. `start` and `accept` return at once and leave the work to others; until that is done
    the constraint is not ready, and its job sits iterations out. No other job waits for it.
    """

    failure: str | None  # why no token is allowed any more, for the client; None: nothing went wrong

    def start(self, on_ready: Callable[[], None]) -> None:
        """Begin with the first mask. `on_ready` is called, in any thread, whenever a mask has become ready."""

    def accept(self, token: int) -> None:
        """The job said `token`, which the mask allowed. Only while ready."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is ready, but no longer than `timeout_s`. Returns whether it is."""

    @property
    def ready(self) -> bool: ...

    def mask(self) -> bytes:
        """The tokens that may come next: a bit each, the lowest of the first byte first. Only while ready."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One job to be: a prompt and how to continue it. Checked at the door; the engine takes it as it is."""

    prompt: list[int]
    max_tokens: int  # 0: only the prompt is computed
    min_tokens: int = 0
    stop_tokens: frozenset[int] = frozenset()  # ends the job; empty with ignore_eos
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0  # unsigned 64 bits; drawn by the caller when the client gave none
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()  # runs of tokens that must not come
    constraint: Constraint | None = None
    logprobs: int | None = None  # how many of the most likely tokens to name; None: no logprobs at all
    prompt_logprobs: bool = False  # with logprobs: of the prompt's tokens as well
    priority: int = 0  # at least 0: among jobs of one level, smaller runs first
    cache_salt: str = ""  # KV is shared among jobs of the same salt only


class SchedulingTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What scheduling did to one job: the `x_sched` of an answer."""

    joined_level: int
    final_level: int
    demotions: int
    promotions: int
    preemptions: int
    recomputes: int
    iterations: int
    cached_tokens: int  # of the prompt, whose KV was in the prefix cache
    offloaded_bytes: int
    uploaded_bytes: int
    queue_s: float  # from arrival to the start of the first iteration
    prefill_s: float  # in iterations that computed prompt tokens (or recomputed lost KV)
    decode_s: float  # in iterations that computed one token
    stalled_s: float  # started, but not in an iteration


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended in an error."""

    message: str  # for the client
    by_request: bool = False  # what it asks for cannot be, and cannot be the next time either


class Chunk(msgspec.Struct, frozen=True):
    """What one iteration gave a job. The last chunk of a job has a `finish_reason`."""

    tokens: tuple[int, ...]  # the stop token itself is not among them
    finish_reason: FinishReason | None = None
    error: Failure | None = None  # with finish_reason "error"
    trace: SchedulingTrace | None = None  # with finish_reason
    logprobs: tuple[Logprobs, ...] = ()  # one per token, where they were asked for
    prompt_logprobs: tuple[Logprobs, ...] = ()  # of all but its first token; with the first chunk, if asked for
    cached_tokens: int = 0  # of the job's prompt, whose KV was in the prefix cache; in every chunk


class QueueFull(Exception):
    """Too many jobs wait. `retry_after_s` estimates when a place will be free."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"queue full, retry after {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class Unavailable(Exception):
    """The engine takes no new jobs: it is loading, draining, or has lost its workers."""

    def __init__(self, state: "State", retry_after_s: float) -> None:
        super().__init__(state)
        self.state = state
        self.retry_after_s = retry_after_s


State = Literal["loading", "ready", "draining", "lost"]


class Stream(Protocol):
    """The tokens of one job, as they come. One reader, on the event loop."""

    def next(self) -> Awaitable[Chunk]:
        """What the next iteration gives. Not to be asked again before that is there, nor after the last chunk.

        Who is cancelled while waiting may lose a chunk: it is for those who want no more.
        """
        ...

    def finish(self) -> None:
        """The text is complete, by a stop string: the last chunk comes soon, with the trace. Harmless after the end."""

    def abort(self) -> None:
        """The client is gone or has enough: free the blocks within one iteration. Harmless after the end."""


class Engine(Protocol):
    """What the HTTP side sees of the engine. All methods are called on the event loop and return at once."""

    @property
    def state(self) -> State: ...

    @property
    def max_context(self) -> int:
        """Most tokens that prompt and output may have together."""
        ...

    def submit(self, generations: list[Generation]) -> list[Stream]:
        """Start jobs, all or none of them. Raises QueueFull or Unavailable."""
        ...
