"""A job: one generation that the scheduler orders. Its only mutable record."""

from array import array
from dataclasses import dataclass, field
from enum import Enum

from common.records import BLOCK_CODE, Logprobs, Sampling
from gateway.generation import FinishReason, Generation, SchedulingTrace
from gateway.scheduling.prefix_cache import Path

Rank = tuple[float, int, int]  # (level or remaining work, priority, sequence): smaller runs first


class Residence(Enum):
    """Where a job's KV is."""

    NOWHERE = "nowhere"
    DEVICE = "device"
    OFFLOADING = "offloading"
    HOST = "host"
    UPLOADING = "uploading"


_TRANSITIONS: dict[Residence, dict[str, Residence]] = {
    Residence.NOWHERE: {"allocate": Residence.DEVICE, "release": Residence.NOWHERE},
    Residence.DEVICE: {"offload": Residence.OFFLOADING, "release": Residence.NOWHERE},
    Residence.OFFLOADING: {"land": Residence.HOST},
    Residence.HOST: {"upload": Residence.UPLOADING, "release": Residence.NOWHERE},
    Residence.UPLOADING: {"land": Residence.DEVICE},
}


@dataclass(slots=True, eq=False)
class Counts:
    """What happened to a job, for its trace."""

    demotions: int = 0
    promotions: int = 0
    preemptions: int = 0
    recomputes: int = 0
    iterations: int = 0
    cached_tokens: int = 0  # of its prompt, found in the prefix cache when it started
    offloaded_blocks: int = 0
    uploaded_blocks: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """Identity semantics: a job equals only itself."""

    id: int
    generation: Generation
    arrival: float

    output: list[int] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)  # of its prompt from the second token on
    computed: int = 0  # leading tokens of prompt + output whose KV exists, its own or in the prefix cache
    finish_reason: FinishReason | None = None
    aborted: bool = False

    # Where it stands. `rank` is the key under which the queue holds it: only the queue changes it.
    rank: Rank = (0.0, 0, 0)
    level: int = 0
    joined_level: int = 0
    home_level: int | None = None  # where a promoted job goes back to
    allowance_s: float = 0.0  # what it may use at this level
    used_s: float = 0.0  # what it used of it
    attained_s: float = 0.0  # service in all
    waiting_since: float = 0.0

    # Where its KV is. Only the ledger changes these.
    residence: Residence = Residence.NOWHERE
    device_blocks: "array[int]" = field(default_factory=lambda: array(BLOCK_CODE))
    host_blocks: list[int] = field(default_factory=list)
    prefix: Path = field(default_factory=list)  # what its first device blocks are, or, without any, could be
    block_keys: list[bytes] = field(default_factory=list)  # of its first full blocks, as far as they were needed

    in_flight: int = 0  # plans that it is in and that are not committed
    coming: int = 0  # tokens that those plans compute
    last_seq: int | None = None  # the newest plan that it was in, or that could not know its last result
    passed_over: int = 0  # turns in which it did not fit, in a row
    started_at: float | None = None
    counts: Counts = field(default_factory=Counts)

    # Looked at many times in every turn, so kept rather than derived.
    context: int = field(init=False)  # tokens of prompt and output, with one for each that a plan in flight will give
    is_shaped: bool = field(init=False)  # more than the logits decides about its tokens
    sampling: Sampling = field(init=False)

    def __post_init__(self) -> None:
        self.context = len(self.generation.prompt) + len(self.output)
        self.is_shaped = _is_shaped(self.generation)
        self.sampling = _sampling(self.generation)

    def depart(self, tokens: int, *, gives: bool) -> None:
        """Be in a plan that computes so many tokens, and gives the next one or does not."""
        self.in_flight += 1
        self.coming += tokens
        self.context += gives

    def land(self, tokens: int) -> None:
        """A plan that computed so many is committed."""
        self.in_flight -= 1
        self.coming -= tokens
        self.computed += tokens

    @property
    def can_run(self) -> bool:
        """Nothing but memory, its turn and a plan in flight keeps it from being in the next plan."""
        constraint = self.generation.constraint
        return not self.aborted and self.finish_reason is None and (constraint is None or constraint.ready)

    def may_join(self, *, ahead: bool) -> bool:
        """Whether the plans that it is in allow another one: what that computes is known, or will be just in time.

        ahead: to the worker, which then has drawn what nobody else has seen.
        """
        unseen = self.context > len(self.generation.prompt) + len(self.output)
        return (ahead or not unseen) and self.remaining > 0

    @property
    def pending(self) -> int:
        """Tokens to compute before it gets its next one, beside those that plans in flight compute."""
        return self.context - self.computed - self.coming

    @property
    def prefills(self) -> bool:
        """Whether its next iteration computes more than the token that the last one gave it."""
        # Not by `pending`: this is asked four times for each job in each iteration.
        several = self.context - self.computed - self.coming > 1
        return several or (not self.output and self.context == len(self.generation.prompt))

    @property
    def remaining(self) -> int:
        """Output tokens still to come, at most, beside those that plans in flight give."""
        return self.generation.max_tokens - self.context + len(self.generation.prompt)

    def tokens(self, start: int, end: int) -> list[int]:
        """Those of prompt and output, as one list."""
        prompt, output = self.generation.prompt, self.output
        if start >= len(prompt):
            return output[start - len(prompt) : end - len(prompt)]
        return prompt[start:end] + output[: max(0, end - len(prompt))]

    @property
    def cache_salt(self) -> str:
        """Who has its prompt scored must compute all of it: it shares with nobody."""
        salt = self.generation.cache_salt
        return f"{salt} {self.id}" if self.generation.prompt_logprobs else salt

    def take_scores(self, scores: list[Logprobs]) -> None:
        """Those of the prompt's tokens from `computed` + 1 on. What was computed again says nothing new."""
        assert not scores or len(self.prompt_logprobs) >= self.computed, f"job {self.id} left some out"
        self.prompt_logprobs += scores[len(self.prompt_logprobs) - self.computed :]

    def relocate(self, event: str) -> None:
        """Change residence. Raises AssertionError, and changes nothing, where the table has no such transition."""
        after = _TRANSITIONS[self.residence].get(event)
        assert after is not None, f"job {self.id}: no {event!r} while {self.residence.value}"
        self.residence = after

    def trace(self, now: float, block_bytes: int) -> SchedulingTrace:
        counts = self.counts
        started_at = now if self.started_at is None else self.started_at
        return SchedulingTrace(
            joined_level=self.joined_level,
            final_level=self.level,
            demotions=counts.demotions,
            promotions=counts.promotions,
            preemptions=counts.preemptions,
            recomputes=counts.recomputes,
            iterations=counts.iterations,
            cached_tokens=counts.cached_tokens,
            offloaded_bytes=counts.offloaded_blocks * block_bytes,
            uploaded_bytes=counts.uploaded_blocks * block_bytes,
            queue_s=started_at - self.arrival,
            prefill_s=counts.prefill_s,
            decode_s=counts.decode_s,
            stalled_s=max(0.0, now - started_at - counts.prefill_s - counts.decode_s),
        )


def _sampling(generation: Generation) -> Sampling:
    return Sampling(generation.temperature, generation.top_p, generation.top_k, generation.min_p, generation.seed)


def _is_shaped(generation: Generation) -> bool:
    penalized = generation.presence_penalty or generation.frequency_penalty or generation.repetition_penalty != 1
    kept_going = generation.min_tokens and generation.stop_tokens
    limited = kept_going or generation.bad_words or generation.constraint is not None
    return bool(penalized or limited or generation.logit_bias)
