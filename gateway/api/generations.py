"""From a checked request and its prompts to the jobs that the engine gets: limits, defaults, seeds."""

import hashlib
import secrets
from dataclasses import dataclass, replace

from gateway.api.errors import ApiError, context_too_long, invalid_value
from gateway.api.schema import SamplingRequest
from gateway.api.service import Service
from gateway.api.token_rules import allowed_tokens, bad_words, check_token_ids, logit_bias, stop_tokens
from gateway.generation import Generation
from gateway.text.grammar import Grammar

MAX_SCORES = 500_000  # log probabilities of prompts in one answer: each takes some 200 bytes
MAX_CONTEXTS = 16  # how many times the context texts may have that need not fit, as those to be truncated
_SEEDS = 2**64
_WITH_PRIORITIES = ("skip-join", "mlfq")
_GREEDY_BELOW = 1e-5  # logits over a smaller temperature overflow


@dataclass(frozen=True, slots=True)
class OutputLength:
    """How long an output the client wants, and the field it said so with."""

    wanted: int | None
    field: str
    default: int | None  # None: all that the context has room for

    def within(self, room: int) -> int:
        """Tokens to generate at most. Raises ApiError when the client asked for more than there is room for."""
        if self.wanted is None:
            return room if self.default is None else min(self.default, room)
        if self.wanted > room:
            raise context_too_long(
                f"{self.field} is {self.wanted}, but after this prompt the model's context has room for {room} tokens.",
                self.field,
            )
        return self.wanted


def generations(
    service: Service,
    request: SamplingRequest,
    prompts: list[list[int]],
    length: OutputLength,
    grammar: Grammar | None = None,
) -> list[Generation]:
    """The jobs of a request, `num_jobs` per prompt, each held to `grammar`. Raises ApiError for what does not fit."""
    _check_policy(service, request, length)
    _check_scores(request, prompts)
    common = _common(service, request)
    jobs = []
    for prompt in prompts:
        max_tokens = length.within(service.engine.max_context - len(prompt))
        if common.min_tokens > max_tokens:
            raise invalid_value(f"min_tokens is more than the {max_tokens} tokens that there can be", "min_tokens")
        for seed in _seeds(request):
            constraint = common.constraint if grammar is None else grammar.constraint()
            jobs.append(replace(common, prompt=prompt, max_tokens=max_tokens, seed=seed, constraint=constraint))
    return jobs


def check_choices(service: Service, request: SamplingRequest, num_prompts: int) -> None:
    """Raises ApiError for more choices than could wait in an empty queue."""
    num_choices, most = num_prompts * request.num_jobs, service.config.max_waiting_jobs
    if num_choices > most:
        raise invalid_value(f"prompts times n (or best_of) is {num_choices}; at most {most} are allowed", "n")


def longest_prompt(service: Service, request: SamplingRequest) -> int:
    """The tokens that a prompt may have before it is truncated."""
    contexts = 1 if request.truncate_prompt_tokens is None else MAX_CONTEXTS
    return contexts * service.engine.max_context


def truncated(service: Service, request: SamplingRequest, prompt: list[int], param: str) -> list[int]:
    """The last of `prompt`, as much of it as the request keeps. Raises ApiError as `check_prompt` does."""
    kept = prompt if request.truncate_prompt_tokens is None else prompt[-request.truncate_prompt_tokens :]
    check_prompt(service, kept, param)
    return kept


def check_prompt(service: Service, prompt: list[int], param: str) -> None:
    """Raises ApiError unless `prompt` is some tokens of the model, and leaves room for one more."""
    if not prompt:
        raise invalid_value(f"{param} is empty; it needs at least one token", param)
    check_token_ids(service, prompt, param)
    if len(prompt) >= service.engine.max_context:
        raise prompt_too_long(service, f"{len(prompt)} tokens", param)


def prompt_too_long(service: Service, found: str, param: str) -> ApiError:
    most = service.engine.max_context
    return context_too_long(f"The model's context has {most} tokens, but {param} alone has {found}.", param)


def _check_scores(request: SamplingRequest, prompts: list[list[int]]) -> None:
    """Raises ApiError for more log probabilities of prompts than should be kept for one answer."""
    if request.scores_prompt:
        each = 1 + (request.num_logprobs or 0)
        number = sum(map(len, prompts)) * each * request.num_jobs
        if number > MAX_SCORES:
            raise invalid_value(
                f"with echo, these are {number} log probabilities of prompts; at most {MAX_SCORES} are allowed",
                "logprobs",
            )


def _check_policy(service: Service, request: SamplingRequest, length: OutputLength) -> None:
    """Raises ApiError for what the server's policy cannot do, or cannot do without."""
    policy = service.config.policy
    if request.priority and policy not in _WITH_PRIORITIES:
        raise invalid_value(f"The {policy} policy knows no priorities", "priority")
    if policy == "srpt":
        _check_oracle(request, length)


def _check_oracle(request: SamplingRequest, length: OutputLength) -> None:
    if not request.ignore_eos or length.wanted is None or request.stop_strings():
        raise invalid_value(
            f"The srpt policy must know output lengths: set ignore_eos and {length.field}, and no stop", length.field
        )


def _seeds(request: SamplingRequest) -> list[int]:
    """One per choice; the first is the client's own, so that n=1 and n=3 begin with the same choice."""
    first = secrets.randbits(64) if request.seed is None else request.seed % _SEEDS
    return [first, *(_derived_seed(first, i) for i in range(1, request.num_jobs))]


def _derived_seed(seed: int, index: int) -> int:
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(8, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _common(service: Service, request: SamplingRequest) -> Generation:
    """What all jobs of a request have in common."""
    temperature = 1.0 if request.temperature is None else request.temperature
    return Generation(
        prompt=[],
        max_tokens=0,
        min_tokens=request.min_tokens or 0,
        stop_tokens=stop_tokens(service, request),
        temperature=0.0 if temperature < _GREEDY_BELOW else temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        logit_bias=logit_bias(service, request),
        bad_words=bad_words(service, request),
        constraint=allowed_tokens(service, request),
        logprobs=_num_logprobs(request),
        prompt_logprobs=request.scores_prompt,
        priority=request.priority or 0,
    )


def _num_logprobs(request: SamplingRequest) -> int | None:
    """Where only the best of several jobs are wanted, their log probabilities decide."""
    if request.num_jobs > (request.n or 1):
        return request.num_logprobs or 0
    return request.num_logprobs
