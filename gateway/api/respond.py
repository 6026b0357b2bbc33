"""From jobs to a response, streamed or plain: what /v1/chat/completions and /v1/completions do alike."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from gateway.accounts import Account
from gateway.api.choices import SAID_SIZE, Choice, Choices, GenerationFailed
from gateway.api.dialect import Dialect, Letterhead
from gateway.api.errors import STREAM_FAILED, generation_failed, invalid_value
from gateway.api.keys import account_of
from gateway.api.schema import SamplingRequest
from gateway.api.service import Service
from gateway.api.sse import StreamedAnswer, StreamResponse
from gateway.generation import Generation
from gateway.heavy_work import beside
from gateway.text.echo import Echo
from gateway.text.output.parser import PLAIN, OutputForm, OutputParser
from gateway.text.output.parts import Part
from gateway.text.stop_strings import StopStrings
from gateway.text.token_log import TokenLog

T = TypeVar("T")

TRACE_HEADER = "x-skipjoin-trace"


async def respond(
    service: Service,
    request: Request,
    body: SamplingRequest,
    jobs: list[Generation],
    dialect: Dialect,
    *,
    form: OutputForm = PLAIN,
    echoes: Sequence[Echo | None] = (),
) -> Response:
    """Start `jobs`, and answer with what they make. `echoes`: what stands before the output of each, if anything.

    Raises LimitReached, QueueFull, Unavailable, ApiError, ClientDisconnect.
    """
    include_trace = _wants_trace(request)
    choices = start(service, request, body, jobs, dialect.endpoint, form=form, echoes=echoes)
    stream = bool(body.stream)
    letterhead = Letterhead.new(dialect, service.served_name, service.fingerprint, stream=stream)
    if stream:
        answer = StreamedAnswer(
            choices, dialect, letterhead, body.wants_usage_chunk, include_trace, body.wants_usage_always
        )

        def on_end() -> None:
            choices.abort()
            if choices.failed:
                request.scope[STREAM_FAILED] = True

        return StreamResponse(answer.events(), service.config.ping_interval, on_end)
    try:
        parts = await unless_disconnected(request.receive, _collect(choices))
    except GenerationFailed as error:
        raise generation_failed(error.failure) from None
    finally:
        choices.abort()
    best = choices.best(body.n or 1, body.num_jobs)

    def whole() -> bytes:
        records = [
            dialect.whole(index, parts[choice.index], choice.finish_reason, choice.said())
            for index, choice in enumerate(best)
            if choice.finish_reason
        ]
        x_sched = choices.traces() if include_trace else UNSET
        return letterhead.write(records, choices.usage(), x_sched, dialect.prompt_token_ids)

    size = SAID_SIZE * sum(choice.num_said for choice in best)
    return Response(await beside(size, whole), media_type="application/json")


def json_response(record: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(record), media_type="application/json")


def _wants_trace(request: Request) -> bool:
    return request.headers.get(TRACE_HEADER) == "1"


def start(
    service: Service,
    request: Request,
    body: SamplingRequest,
    jobs: list[Generation],
    endpoint: str,
    *,
    form: OutputForm,
    echoes: Sequence[Echo | None] = (),
) -> Choices:
    """Hand `jobs` to the engine; somebody has to read or to abort what comes back. `endpoint`: for metrics.

    Raises LimitReached, QueueFull, Unavailable, and ApiError for stop strings.
    """
    account = account_of(request)
    stops = StopStrings(body.stop_strings(), included=bool(body.include_stop_str_in_output))
    tokenizer = service.text.tokenizer
    shown = tokenizer.special_tokens if body.skip_special_tokens is False else form.marks
    if account.most_jobs is not None and len(jobs) > account.most_jobs:  # No waiting helps.
        raise invalid_value(f"this asks for {len(jobs)} jobs at once; this key may use {account.most_jobs}", "n")
    account.check_jobs(len(jobs))
    salt = _cache_salt(account, body)
    streams = service.engine.submit([replace(job, cache_salt=salt) for job in jobs])
    prompt_tokens = sum(len(job.prompt) for job in jobs[:: body.num_jobs])  # each prompt once
    account.spend(prompt_tokens)
    choices = [
        Choice(
            index,
            stream,
            detokenizer=tokenizer.detokenizer(shown),
            stops=stops.matcher(),
            parser=OutputParser(form),
            meter=service.metrics.job(endpoint, account),
            min_tokens=job.min_tokens,
            awaits_trace=_wants_trace(request),
            log=TokenLog(tokenizer.bytes_of) if body.wants_tokens else None,
            echo=echo,
        )
        for index, (job, stream, echo) in enumerate(zip(jobs, streams, echoes or [None] * len(jobs), strict=True))
    ]
    service.metrics.prompt_tokens.labels(endpoint).inc(prompt_tokens)
    return Choices(choices, prompt_tokens, body.num_jobs)


def _cache_salt(account: Account, body: SamplingRequest) -> str:
    """Who shares KV: nobody shall learn from a short wait what holders of other keys, or of other salts, have asked."""
    return msgspec.json.encode((account.name, body.cache_salt)).decode()


async def _collect(choices: Choices) -> list[list[Part]]:
    """All parts of each choice."""
    collected: list[list[Part]] = [[] for _ in choices]
    async for choice, parts in choices.parts():
        collected[choice.index] += parts
    return collected


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. Raises ClientDisconnect then."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
