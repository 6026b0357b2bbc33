"""POST /v1/completions: one or more raw prompts, as text or as token ids, and their continuations."""

from typing import TypeGuard

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import read_body
from gateway.api.dialect import Completion, Details
from gateway.api.errors import invalid_value
from gateway.api.generations import OutputLength, check_choices, generations, longest_prompt, prompt_too_long, truncated
from gateway.api.respond import respond
from gateway.api.schema import CompletionRequest, decode_completion
from gateway.api.service import Service
from gateway.api.structured import asked_grammar
from gateway.text.echo import Echo
from gateway.text.text_model import PromptTooLong

DEFAULT_MAX_TOKENS = 16  # OpenAI's

Prompt = str | list[int]


class CompletionEndpoint:
    """Serves raw completions."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        """Choices are numbered prompt by prompt: with n=2, the second prompt has choices 2 and 3."""
        service = self._service
        body = decode_completion(await read_body(request, service.config.max_body_bytes))
        service.check_model(body.model)
        _check(body)
        prompts = _prompts(body)
        check_choices(service, body, len(prompts))
        grammar = await asked_grammar(service, body)
        encoded = await self._encode(body, prompts)
        length = OutputLength(body.max_tokens, "max_tokens", DEFAULT_MAX_TOKENS)
        jobs = generations(service, body, encoded, length, grammar)
        echoes = await self._echoes(body, prompts, encoded) if body.echo else []
        echoes = [echo for echo in echoes for _ in range(body.num_jobs)]
        dialect = Completion(Details.of(body, jobs))
        return await respond(service, request, body, jobs, dialect, echoes=echoes)

    async def _echoes(self, body: CompletionRequest, prompts: list[Prompt], encoded: list[list[int]]) -> list[Echo]:
        text, is_whole = self._service.text, body.truncate_prompt_tokens is None
        wholes = [prompt if isinstance(prompt, str) and is_whole else None for prompt in prompts]
        if body.wants_tokens:
            return await text.echoes(encoded, wholes)
        pairs = list(zip(wholes, encoded, strict=True))
        decoded = iter(await text.decode([tokens for whole, tokens in pairs if whole is None]))
        return [Echo(next(decoded) if whole is None else whole) for whole in wholes]

    async def _encode(self, body: CompletionRequest, prompts: list[Prompt]) -> list[list[int]]:
        service = self._service
        longest, frames = longest_prompt(service, body), body.add_special_tokens is not False
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        try:
            encoded = iter(await service.text.encode(texts, longest, add_special_tokens=frames))
        except PromptTooLong as error:
            raise prompt_too_long(service, f"{error}", "prompt") from None
        each = [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]
        return [truncated(service, body, tokens, "prompt") for tokens in each]


def _check(body: CompletionRequest) -> None:
    """Raises ApiError for what does not go together."""
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise invalid_value(f"best_of is less than n, which is {body.n}", "best_of")
    if body.max_tokens == 0 and not body.echo:
        raise invalid_value("max_tokens is 0, which leaves no answer unless there is an echo", "max_tokens")
    if body.stream and body.num_jobs > (body.n or 1):
        raise invalid_value("best_of cannot be streamed: the best are known in the end", "best_of")


def _prompts(body: CompletionRequest) -> list[Prompt]:
    """Of the four forms that `prompt` may have, as a list of prompts. Raises ApiError for mixtures of them."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid_value("prompt is an empty list", "prompt")
    if _all_ints(prompt):
        return [prompt]
    if any(isinstance(one, int) for one in prompt):
        raise invalid_value("prompt mixes token ids with prompts", "prompt")
    return [one for one in prompt if not isinstance(one, int)]


def _all_ints(prompt: list[str | int | list[int]]) -> TypeGuard[list[int]]:
    return all(isinstance(one, int) for one in prompt)
