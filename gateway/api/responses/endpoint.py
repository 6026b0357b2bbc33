"""/v1/responses and what belongs to it: create, retrieve, delete, cancel, list the input, count its tokens."""

import secrets
import time
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from gateway.api.body import read_body
from gateway.api.chat import ChatEndpoint
from gateway.api.errors import STREAM_FAILED, ApiError, generation_failed, invalid_value, unsupported
from gateway.api.generations import OutputLength
from gateway.api.keys import account_of
from gateway.api.respond import json_response, start, unless_disconnected
from gateway.api.responses.chat_request import as_chat, in_our_words, input_items
from gateway.api.responses.production import Production
from gateway.api.responses.records import (
    Deleted,
    InputTokens,
    Item,
    ItemList,
    ReasoningConfig,
    Response,
    ResponsesRequest,
    TextConfig,
    TextFormat,
)
from gateway.api.responses.store import ResponseStore, Stored
from gateway.api.responses.writer import ResponseWriter
from gateway.api.schema import decode
from gateway.api.service import Service
from gateway.api.sse import StreamResponse
from gateway.generation import Failure

NAME = "responses"  # in metrics
MAX_LISTED = 100


class ResponsesEndpoint:
    """Serves responses, and remembers them for a while."""

    def __init__(self, service: Service, chat: ChatEndpoint) -> None:
        self._service = service
        self._chat = chat
        self._store = ResponseStore()

    async def create(self, request: Request) -> HttpResponse:
        body = await self._body(request)
        own = self._own(request, body)
        items = [*self._earlier(request, body), *own]
        production = await self._produce(request, body, items, own)
        if body.stream:
            return self._stream(request, production, -1, ends_with_client=not body.background)
        if body.background:
            return json_response(production.response)
        try:
            response = await unless_disconnected(request.receive, production.finished())
        finally:
            production.cancel()
        if response.error is not None:
            failure = Failure(response.error.message, by_request=response.error.code == "invalid_prompt")
            raise generation_failed(failure)
        return json_response(response)

    async def retrieve(self, request: Request) -> HttpResponse:
        """As it stands; or as a stream of what has happened since event `starting_after`, of one in the background."""
        stored = self._stored(request)
        if request.query_params.get("stream") != "true":
            return json_response(stored.production.response if stored.production else stored.response)
        if stored.production is None:
            raise invalid_value("Only responses in the background can be streamed again.", "stream")
        after = _number(request, "starting_after", -1)
        return self._stream(request, stored.production, after, ends_with_client=False)

    async def delete(self, request: Request) -> HttpResponse:
        """One that is being made is cancelled first."""
        stored = self._stored(request)
        self._store.remove(stored.response.id)  # first: what ends may make room, and remove this one
        if stored.production is not None:
            stored.production.cancel()
        return json_response(Deleted(id=stored.response.id))

    async def cancel(self, request: Request) -> HttpResponse:
        """One that is done stays as it is."""
        stored = self._stored(request)
        if stored.production is not None:
            stored.production.cancel()
        return json_response(stored.response)

    async def input_items(self, request: Request) -> HttpResponse:
        """Newest first, unless `order` is asc; `limit` of them, after the one with the id `after`."""
        items = list(self._stored(request).items)
        if request.query_params.get("order", "desc") == "desc":
            items.reverse()
        if (after := request.query_params.get("after")) is not None:
            ids = [item.id for item in items]
            items = items[ids.index(after) + 1 :] if after in ids else []
        limit = _number(request, "limit", 20)
        if not 1 <= limit <= MAX_LISTED:
            raise invalid_value(f"limit must be from 1 to {MAX_LISTED}", "limit")
        page = items[:limit]
        first, last = (str(page[0].id), str(page[-1].id)) if page else (None, None)
        return json_response(ItemList(data=page, first_id=first, last_id=last, has_more=len(items) > limit))

    async def count(self, request: Request) -> HttpResponse:
        """The tokens that a request like this would begin with."""
        body = await self._body(request)
        items = [*self._earlier(request, body), *self._own(request, body)]
        try:
            prompt = await self._chat.prompt(as_chat(body, items))
        except ApiError as error:
            raise in_our_words(error) from None
        return json_response(InputTokens(input_tokens=len(prompt.tokens)))

    # ------------------------------------------------------------------------------------------ making one

    async def _body(self, request: Request) -> ResponsesRequest:
        service = self._service
        body: ResponsesRequest = decode(await read_body(request, service.config.max_body_bytes), ResponsesRequest)
        service.check_model(body.model)
        for field, value in {"conversation": body.conversation, "prompt": body.template}.items():
            if value is not None:
                raise unsupported(field)
        if body.num_jobs > 1:
            raise unsupported("n")
        if body.background and body.store is False:
            raise invalid_value("background needs store", "background")
        return body

    def _own(self, request: Request, body: ResponsesRequest) -> list[Item]:
        account = account_of(request)
        return input_items(body, lambda item_id: self._store.item(item_id, account))

    def _earlier(self, request: Request, body: ResponsesRequest) -> list[Item]:
        if body.previous_response_id is None:
            return []
        stored = self._store.get(body.previous_response_id, account_of(request))
        if stored.response.status == "in_progress":
            raise invalid_value("This response is still being made.", "previous_response_id")
        return stored.conversation

    async def _produce(
        self, request: Request, body: ResponsesRequest, items: list[Item], own: list[Item]
    ) -> Production:
        """Start the job. Raises what `start` raises."""
        try:
            chat = as_chat(body, items)
            length = OutputLength(body.max_output_tokens, "max_output_tokens", None)
            jobs, form = await self._chat.prepare(chat, length)
        except ApiError as error:
            raise in_our_words(error) from None
        choices = start(self._service, request, chat, jobs, NAME, form=form)
        response = self._response(body)
        keeps = body.store is not False
        writer = ResponseWriter(response, logprobs=body.num_logprobs is not None)
        keep_events = bool(body.background)
        production = Production(writer, choices, lambda last: self._store.finish(last, keep_events=keep_events))
        if keeps:
            self._store.add(Stored(account_of(request), items, own, response, production))
        return production

    def _response(self, body: ResponsesRequest) -> Response:
        """What is known of it before anything was generated."""
        return Response(
            id="resp_" + secrets.token_hex(24),
            created_at=int(time.time()),
            background=bool(body.background),
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=self._service.served_name,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            reasoning=body.reasoning or ReasoningConfig(),
            store=body.store is not False,
            temperature=body.temperature,
            text=body.text if body.text and body.text.format else TextConfig(format=TextFormat(type="text")),
            tool_choice=body.tool_choice or "auto",
            tools=body.tools or [],
            top_logprobs=body.top_logprobs or 0,
            top_p=body.top_p,
        )

    def _stream(self, request: Request, production: Production, after: int, *, ends_with_client: bool) -> HttpResponse:
        async def events() -> AsyncGenerator[bytes, None]:
            async for event in production.follow(after):
                yield b"event: %b\ndata: %b\n\n" % (event.type.encode(), msgspec.json.encode(event))

        def on_end() -> None:
            if ends_with_client:
                production.cancel()
            if production.response.status == "failed":
                request.scope[STREAM_FAILED] = True

        return StreamResponse(events(), self._service.config.ping_interval, on_end)

    def _stored(self, request: Request) -> Stored:
        return self._store.get(request.path_params["id"], account_of(request))


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise invalid_value(f"{name} must be a number", name)
    return int(text)
