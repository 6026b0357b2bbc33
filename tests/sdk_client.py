"""What every version of the official client must be able to do with this server. Run by tests/test_sdk.py, in an
environment that has only that version: nothing of ours is imported. Arguments: the servers' URLs by name, as JSON.
"""

import asyncio
import inspect
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import openai
import pydantic

URLS: dict[str, str] = json.loads(sys.argv[1])
MODEL = "tiny/bytes"
HI: Any = [{"role": "user", "content": "hi"}]
HELLO = "Hello, world!"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "parameters": PARAMETERS | {"additionalProperties": False}, "strict": True}
WEATHER: Any = {"type": "function", "function": FUNCTION}
FLAT_WEATHER: Any = {"type": "function", **FUNCTION}


class City(pydantic.BaseModel):
    name: str


class Client:
    """The synchronous or the asynchronous client, used in the same words."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._made: list[Any] = []

    def __call__(self, server: str = "plain", **options: Any) -> Any:
        options = {"api_key": "sk-a", "max_retries": 0, "timeout": 20.0} | options
        self._made.append(self._kind(base_url=f"{URLS[server]}/v1", **options))
        return self._made[-1]

    async def close(self) -> None:
        for client in self._made:
            await value(client.close())


async def value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def items(stream: Any) -> list[Any]:
    return [item async for item in stream] if hasattr(stream, "__aiter__") else list(stream)


@asynccontextmanager
async def opened(manager: Any) -> AsyncIterator[Any]:
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            yield stream
    else:
        with manager as stream:
            yield stream


async def raised(kind: type[BaseException], result: Callable[[], Any]) -> Any:
    """The error of `kind` that comes of it."""
    try:
        await value(result())
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


async def models(client: Client) -> None:
    assert [model.id for model in await items(client().models.list())] == [MODEL]
    assert (await value(client().models.retrieve(MODEL))).id == MODEL


async def chats(client: Client) -> None:
    create = client().chat.completions.create
    answer = await value(create(model=MODEL, messages=HI, n=2))
    assert [choice.message.content for choice in answer.choices] == [HELLO, HELLO]
    usage: Any = {"include_usage": True}
    chunks = await items(await value(create(model=MODEL, messages=HI, stream=True, stream_options=usage)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == HELLO
    assert chunks[-1].usage.total_tokens == 33


async def chat_stream_helper(client: Client) -> None:
    async with opened(client().chat.completions.stream(model=MODEL, messages=HI)) as stream:
        deltas = [event.delta for event in await items(stream) if event.type == "content.delta"]
        final = await value(stream.get_final_completion())
    assert "".join(deltas) == final.choices[0].message.content == HELLO


async def chat_parse(client: Client) -> None:
    parse = client("json").chat.completions.parse
    answer = await value(parse(model=MODEL, messages=HI, response_format=City))
    assert answer.choices[0].message.parsed == City(name="Oslo")


async def tool_calls(client: Client) -> None:
    async with opened(client("tools").chat.completions.stream(model=MODEL, messages=HI, tools=[WEATHER])) as stream:
        await items(stream)
        final = await value(stream.get_final_completion())
    [call] = final.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    assert final.choices[0].finish_reason == "tool_calls"


async def completions(client: Client) -> None:
    create = client().completions.create
    assert (await value(create(model=MODEL, prompt=["a", "b"]))).choices[1].text == HELLO
    chunks = await items(await value(create(model=MODEL, prompt=[1, 2], stream=True)))
    assert "".join(chunk.choices[0].text for chunk in chunks) == HELLO


async def responses(client: Client) -> None:
    api = client().responses
    first = await value(api.create(model=MODEL, input="hi"))
    assert first.output_text == HELLO
    async with opened(api.stream(model=MODEL, input="on", previous_response_id=first.id)) as stream:
        types = [event.type for event in await items(stream)]
        assert (await value(stream.get_final_response())).output_text == HELLO
    assert (types[0], types[-1]) == ("response.created", "response.completed")
    assert (await value(api.retrieve(first.id))).output_text == HELLO
    assert [item.content[0].text for item in await items(api.input_items.list(first.id))] == ["hi"]
    await value(api.delete(first.id))
    await raised(openai.NotFoundError, lambda: api.retrieve(first.id))


async def response_structures(client: Client) -> None:
    parsed = await value(client("json").responses.parse(model=MODEL, input="hi", text_format=City))
    assert parsed.output_parsed == City(name="Oslo")
    async with opened(client("tools").responses.stream(model=MODEL, input="hi", tools=[FLAT_WEATHER])) as stream:
        await items(stream)
        [call] = (await value(stream.get_final_response())).output
    assert (call.type, json.loads(call.arguments)) == ("function_call", {"city": "Oslo"})


async def response_cancel(client: Client) -> None:
    api = client("slow").responses
    response = await value(api.create(model=MODEL, input="hi", background=True))
    assert response.status == "in_progress"
    assert (await value(api.cancel(response.id))).status == "cancelled"


async def errors(client: Client) -> None:
    def chat(server: str = "plain", **options: Any) -> Callable[[], Any]:
        fields = {"model": MODEL, "messages": HI} | options
        return lambda: client(server).chat.completions.create(**fields)

    bad = await raised(openai.BadRequestError, chat(temperature=3))
    assert (bad.code, bad.param, bool(bad.request_id)) == ("invalid_value", "temperature", True)
    assert (await raised(openai.NotFoundError, chat(model="x"))).code == "model_not_found"
    assert (await raised(openai.RateLimitError, chat("full"))).code == "queue_full"
    assert (await raised(openai.InternalServerError, chat("loading"))).code == "model_loading"
    assert (await raised(openai.InternalServerError, chat("broken"))).code == "internal_error"
    keyless = client("keys", api_key="sk-wrong").models.list
    assert (await raised(openai.AuthenticationError, lambda: items_of(keyless))).code == "invalid_api_key"
    assert await items(client("keys").models.list())
    stream = await value(chat("failing", stream=True)())
    assert (await raised(openai.APIError, lambda: items(stream))).code == "generation_failed"
    await raised(openai.APIConnectionError, lambda: client("nowhere").chat.completions.create(model=MODEL, messages=HI))


async def items_of(listing: Callable[[], Any]) -> Any:
    return await items(listing())


async def retries(client: Client) -> None:
    start = time.monotonic()
    patient = client("full", max_retries=2).chat.completions
    error = await raised(openai.RateLimitError, lambda: patient.create(model=MODEL, messages=HI))
    assert error.request.headers["x-stainless-retry-count"] == "2"
    assert 0.2 <= time.monotonic() - start < 5, "retry-after-ms was not obeyed"


async def timeouts(client: Client) -> None:
    hasty = client("slow", timeout=0.3).completions
    await raised(openai.APITimeoutError, lambda: hasty.create(model=MODEL, prompt="x"))


async def cancel_in_the_middle(client: Client) -> None:
    stream = await value(client("endless").completions.create(model=MODEL, prompt="x", stream=True, max_tokens=10**6))
    if hasattr(stream, "__aiter__"):
        await anext(aiter(stream))
    else:
        next(stream)
    await value(stream.close())


CHECKS: list[Callable[[Client], Coroutine[Any, Any, None]]] = [
    *(models, chats, chat_stream_helper, chat_parse, tool_calls, completions, responses, response_structures),
    *(response_cancel, errors, retries, timeouts, cancel_in_the_middle),
]


async def run(check: Callable[[Client], Coroutine[Any, Any, None]], client: Client) -> None:
    try:
        await check(client)
    finally:
        await client.close()


def main() -> None:
    for kind in (openai.OpenAI, openai.AsyncOpenAI):
        for check in CHECKS:
            asyncio.run(run(check, Client(kind)))
            print(f"openai {openai.__version__} {kind.__name__}: {check.__name__}")


if __name__ == "__main__":
    main()
