"""POST /v1/completions: one or more raw prompts, as text or as token ids, and their continuations."""

from typing import TypeGuard

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import read_body
from gateway.api.dialect import Completion
from gateway.api.errors import invalid_value
from gateway.api.generations import OutputLength, check_choices, check_prompt, generations, prompt_too_long
from gateway.api.respond import respond
from gateway.api.schema import CompletionRequest, decode_completion
from gateway.api.service import Service
from gateway.api.structured import asked_grammar
from gateway.text.text_model import PromptTooLong

DEFAULT_MAX_TOKENS = 16  # OpenAI's

Prompt = str | list[int]


class CompletionEndpoint:
    """Serves raw completions."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._dialect = Completion()

    async def create(self, request: Request) -> Response:
        """Choices are numbered prompt by prompt: with n=2, the second prompt has choices 2 and 3."""
        service = self._service
        body = decode_completion(await read_body(request, service.config.max_body_bytes))
        service.check_model(body.model)
        prompts = _prompts(body)
        check_choices(service, body, len(prompts))
        grammar = await asked_grammar(service, body)
        encoded = [await self._encode(prompt) for prompt in prompts]
        length = OutputLength(body.max_tokens, "max_tokens", DEFAULT_MAX_TOKENS)
        jobs = generations(service, body, encoded, length, grammar)
        return await respond(service, request, body, jobs, self._dialect)

    async def _encode(self, prompt: Prompt) -> list[int]:
        service = self._service
        try:
            room = service.engine.max_context
            tokens = await service.text.encode(prompt, room) if isinstance(prompt, str) else prompt
        except PromptTooLong as error:
            raise prompt_too_long(service, f"{error}", "prompt") from None
        check_prompt(service, tokens, "prompt")
        return tokens


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
