"""/v1/responses, with the official client as the judge."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from fakes_gateway import END, NAME, OPEN, FakeEngine, byte_text_model, client_of, http_client, serving
from prometheus_client import CollectorRegistry

from common.config import Config
from gateway.api.keys import load_keys
from gateway.api.responses import endpoint
from gateway.api.responses.store import ResponseStore
from gateway.generation import Failure

THOUGHTS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: {# <think> #}"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with client_of(engine) as client:
        yield client


def prompts(engine: FakeEngine) -> list[str]:
    return [bytes(token for token in job.prompt if token < END).decode() for job in engine.jobs]


# ---------------------------------------------------------------------------- whole


def test_a_response_has_the_text_and_says_how_long_it_is(client: openai.OpenAI) -> None:
    response = client.responses.create(model=NAME, input="hi", metadata={"a": "b"}, temperature=0.5)
    assert response.output_text == "Hello, world!"
    assert response.status == "completed"
    assert response.id.startswith("resp_")
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert (response.metadata, response.temperature) == ({"a": "b"}, 0.5)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (20, 13, 33)


def test_instructions_and_items_become_messages(client: openai.OpenAI, engine: FakeEngine) -> None:
    items: Any = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"type": "message", "role": "user", "content": "d"},
    ]
    client.responses.create(model=NAME, instructions="be brief", input=items)
    [prompt] = prompts(engine)
    assert prompt == "system: be brief\nsystem: be kind\nuser: a\nb\nassistant: c\nuser: d\nassistant: "


def test_an_output_that_was_cut_is_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model=NAME, input="hi", max_output_tokens=5)
    assert (response.status, response.output_text) == ("incomplete", "Hello")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


def test_an_output_of_nothing_is_an_empty_message() -> None:
    with client_of(FakeEngine("")) as client:
        response = client.responses.create(model=NAME, input="hi")
    assert (response.status, response.output_text, len(response.output)) == ("completed", "", 1)


def test_logprobs_come_when_they_are_asked_for(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.responses.create(model=NAME, input="hi", include=["message.output_text.logprobs"], top_logprobs=3)
    assert engine.jobs[0].logprobs == 3


def test_logprobs_of_text_that_might_have_begun_a_call_are_not_lost() -> None:
    with client_of(FakeEngine("x<y")) as client:
        response = client.responses.create(
            model=NAME, input="hi", tools=[WEATHER], include=["message.output_text.logprobs"], top_logprobs=1
        )
        [message] = response.output
        assert message.type == "message"
        [text] = message.content
        assert text.type == "output_text"
        assert [logprob.token for logprob in text.logprobs or []] == ["x", "<", "y"]


@pytest.mark.parametrize("answer", ["Yes.", "é.", "Oh, 🙂"])
def test_logprobs_are_those_of_the_text_and_not_of_a_thought_before_it(answer: str) -> None:
    with client_of(FakeEngine(f"<think>Hm.</think>\n\n{answer}"), byte_text_model(THOUGHTS), reasoning="on") as client:
        response = client.responses.create(
            model=NAME, input="hi", include=["message.output_text.logprobs"], top_logprobs=1
        )
        message = response.output[-1]
        assert message.type == "message"
        [text] = message.content
        assert text.type == "output_text"
        assert bytes(byte for logprob in text.logprobs or [] for byte in logprob.bytes) == answer.encode()


# ---------------------------------------------------------------------------- streamed


def test_a_stream_has_its_events_in_order_and_numbered(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=NAME, input="hi", max_output_tokens=2, stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(10))


def test_the_clients_stream_helper_puts_the_response_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model=NAME, input="hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == "Hello, world!"
    assert final.usage is not None
    assert [item.id for item in client.responses.retrieve(final.id).output] == [item.id for item in final.output]


def test_the_asynchronous_client_streams_too() -> None:
    async def read(url: str) -> str:
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            client.responses.stream(model=NAME, input="hi") as stream,
        ):
            return (await stream.get_final_response()).output_text

    with serving() as url:
        assert asyncio.run(read(url)) == "Hello, world!"


def test_a_stream_is_kept_alive_by_comments_that_the_client_reads_over(engine: FakeEngine) -> None:
    engine.close_gate()
    opening = threading.Timer(0.1, engine.open_gate)
    with client_of(engine, ping_interval=0.01) as client:
        stream = client.responses.create(model=NAME, input="hi", stream=True)
        opening.start()
        assert list(stream)[-1].type == "response.completed"
    opening.join()


def test_a_failure_within_a_stream_is_an_event_and_without_one_an_error(engine: FakeEngine) -> None:
    engine.fails = True
    with client_of(engine) as client:
        *_, last = client.responses.create(model=NAME, input="hi", stream=True)
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.message == "A worker was lost."
        with pytest.raises(openai.InternalServerError, match="A worker was lost"):
            client.responses.create(model=NAME, input="hi")


def test_a_failure_by_what_was_asked_for_is_no_servers_error(engine: FakeEngine) -> None:
    engine.fails, engine.failure = True, Failure("too complex", by_request=True)
    with client_of(engine) as client:
        *_, last = client.responses.create(model=NAME, input="hi", stream=True)
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.code == "invalid_prompt"
        with pytest.raises(openai.BadRequestError, match="too complex"):
            client.responses.create(model=NAME, input="hi")


def test_a_client_that_leaves_its_stream_ends_the_job(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.close_gate()
    client.responses.create(model=NAME, input="hi", stream=True).close()
    assert engine.submitted.wait(10)
    assert engine.streams[0].aborted.wait(10)


# ---------------------------------------------------------------------------- structure, tools, thoughts


class City(pydantic.BaseModel):
    name: str


def test_a_schema_holds_the_output_and_the_client_parses_it() -> None:
    engine = FakeEngine('{"name":"Oslo"}')
    with client_of(engine) as client:
        response = client.responses.parse(model=NAME, input="Which city?", text_format=City)
    assert response.output_parsed == City(name="Oslo")
    assert engine.jobs[0].constraint is not None


def test_a_call_is_an_item_and_its_result_goes_back_as_one() -> None:
    engine = FakeEngine(CALL)
    with client_of(engine) as client:
        response = client.responses.create(model=NAME, input="Weather in Oslo?", tools=[WEATHER])
        [call] = response.output
        assert call.type == "function_call"
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Oslo"})
        engine.script = lambda job: [*b"Sunny.", END]
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        again = client.responses.create(model=NAME, input=[result], previous_response_id=response.id, tools=[WEATHER])
    assert again.output_text == "Sunny."
    prompt = prompts(engine)[1]
    assert prompt.index("Weather in Oslo?") < prompt.index('{"city": "Oslo"}') < prompt.index("sunny")


def test_a_streamed_call_has_the_same_ids_from_its_beginning_to_its_end() -> None:
    with (
        client_of(FakeEngine("Let me see." + CALL)) as client,
        client.responses.stream(model=NAME, input="Weather?", tools=[WEATHER]) as stream,
    ):
        events = list(stream)
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"]
    added = [event.item for event in events if event.type == "response.output_item.added"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in added] == [item.id for item in done] == [item.id for item in final.output]
    assert added[1].call_id == done[1].call_id
    deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert json.loads(deltas) == {"city": "Oslo"}


ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}


@pytest.mark.parametrize("choice", ["none", "auto", {"type": "function", "name": "weather"}, ALLOWED])
def test_choices_of_tools_are_understood_and_repeated(choice: Any) -> None:
    with serving() as url, http_client() as http:
        body = {"input": "hi", "tools": [WEATHER], "tool_choice": choice}
        response = http.post(f"{url}/v1/responses", json=body).json()
    assert response["tool_choice"] == choice
    assert response["tools"] == [WEATHER]


def test_thoughts_are_an_item_of_their_own() -> None:
    engine = FakeEngine("<think>Hm.</think>Yes.")
    with (
        client_of(engine, byte_text_model(THOUGHTS), reasoning="on") as client,
        client.responses.stream(model=NAME, input="hi") as stream,
    ):
        events = [event.type for event in stream]
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output[0].content[0].text == "Hm."
    assert final.output_text == "Yes."
    assert events.index("response.reasoning_text.done") < events.index("response.output_text.delta")


# ---------------------------------------------------------------------------- kept


def test_a_conversation_goes_on_from_an_earlier_response(client: openai.OpenAI, engine: FakeEngine) -> None:
    first = client.responses.create(model=NAME, input="one", instructions="only here")
    second = client.responses.create(model=NAME, input="two", previous_response_id=first.id)
    third = client.responses.create(model=NAME, input="three", previous_response_id=second.id)
    hello = "assistant: Hello, world!\n"
    assert prompts(engine)[2] == f"user: one\n{hello}user: two\n{hello}user: three\nassistant: "
    assert third.previous_response_id == second.id


def test_items_can_be_named_instead_of_said_again(client: openai.OpenAI, engine: FakeEngine) -> None:
    first = client.responses.create(model=NAME, input="hi")
    [asked] = client.responses.input_items.list(first.id).data
    references: Any = [{"type": "item_reference", "id": item.id} for item in (asked, *first.output)]
    second = client.responses.create(model=NAME, input=[*references, {"role": "user", "content": "and?"}])
    assert prompts(engine)[1] == "user: hi\nassistant: Hello, world!\nuser: and?\nassistant: "
    assert [item.id for item in client.responses.input_items.list(second.id, order="asc").data][:2] == [
        reference["id"] for reference in references
    ]
    client.responses.delete(first.id)
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model=NAME, input=references)
    assert caught.value.param == "input[0].id"


def test_a_response_can_be_retrieved_until_it_is_deleted(client: openai.OpenAI) -> None:
    response = client.responses.create(model=NAME, input="hi")
    assert client.responses.retrieve(response.id) == response
    client.responses.delete(response.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=NAME, input="hi", previous_response_id=response.id)


def test_what_should_not_be_stored_is_not(client: openai.OpenAI) -> None:
    response = client.responses.create(model=NAME, input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_the_input_is_listed_in_pages(client: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": text} for text in "abcde"]
    response = client.responses.create(model=NAME, input=items)
    for order, expected in (("asc", "abcde"), ("desc", "edcba")):
        listed = client.responses.input_items.list(response.id, order=order, limit=2)  # type: ignore[arg-type]
        assert listed.has_more
        assert "".join(item.content[0].text for item in listed) == expected  # the client turns the pages


def test_the_input_can_be_counted_beforehand(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=NAME, input="hi", instructions="be brief")
    used = client.responses.create(model=NAME, input="hi", instructions="be brief").usage
    assert used is not None
    assert counted.input_tokens == used.input_tokens


def test_a_response_in_the_background_is_there_later(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.close_gate()
    response = client.responses.create(model=NAME, input="hi", background=True)
    assert (response.status, response.output) == ("in_progress", [])
    assert client.responses.retrieve(response.id).status == "in_progress"
    engine.open_gate()
    events = list(client.responses.retrieve(response.id, stream=True, starting_after=1))
    assert events[0].sequence_number == 2
    assert events[-1].type == "response.completed"
    assert client.responses.retrieve(response.id).output_text == "Hello, world!"
    assert next(iter(client.responses.retrieve(response.id, stream=True))).type == "response.created"


def test_a_stream_in_the_background_outlives_its_client(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.close_gate()
    stream = client.responses.create(model=NAME, input="hi", background=True, stream=True)
    response_id = next(stream).response.id
    stream.close()
    engine.open_gate()
    *_, last = client.responses.retrieve(response_id, stream=True)
    assert last.response.output_text == "Hello, world!"


def test_cancelling_ends_the_job_and_tells_who_follows(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.close_gate()
    response = client.responses.create(model=NAME, input="hi", background=True)
    stream = client.responses.retrieve(response.id, stream=True)
    assert client.responses.cancel(response.id).status == "cancelled"
    assert engine.streams[0].aborted.wait(10)
    assert list(stream)[-1].type == "response.cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"
    assert client.responses.cancel(response.id).status == "cancelled"


def test_one_that_is_being_made_can_be_deleted_where_no_more_can_be_kept(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "ResponseStore", lambda: ResponseStore(max_responses=0))
    engine.close_gate()
    with client_of(engine) as client:
        response = client.responses.create(model=NAME, input="hi", background=True)
        client.responses.delete(response.id)
        assert engine.streams[0].aborted.wait(10)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)


def test_a_response_belongs_to_the_key_that_asked_for_it() -> None:
    keys = load_keys(Config(), {"SKIPJOIN_API_KEYS": "sk-a,sk-b"})
    with client_of(keys=keys) as client:
        mine, theirs = client.with_options(api_key="sk-a"), client.with_options(api_key="sk-b")
        response = mine.responses.create(model=NAME, input="hi")
        assert mine.responses.retrieve(response.id) == response
        with pytest.raises(openai.NotFoundError):
            theirs.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            theirs.responses.create(model=NAME, input="hi", previous_response_id=response.id)


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"type": "file_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": "x" * 5000}, "input"),
        ({"input": "x", "max_output_tokens": 10**6}, "max_output_tokens"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "n": 2}, "n"),
        ({"input": "x", "background": True, "store": False}, "background"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 1}}}},
            "text.format",
        ),
        ({"input": "x", "metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ],
)
def test_what_cannot_be_served_is_a_bad_request_in_the_words_of_this_endpoint(
    fields: dict[str, Any], param: str
) -> None:
    with serving() as url, http_client() as http:
        answer = http.post(f"{url}/v1/responses", json=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_a_full_queue_and_another_model_are_told_as_everywhere(engine: FakeEngine) -> None:
    engine.full_for_s = 1.0
    with client_of(engine) as client:
        with pytest.raises(openai.RateLimitError):
            client.responses.create(model=NAME, input="hi")
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="other", input="hi")


def test_its_jobs_are_counted_under_its_own_name() -> None:
    registry = CollectorRegistry()
    with serving(registry=registry, keys=OPEN) as url, http_client() as http:
        http.post(f"{url}/v1/responses", json={"input": "hi"})
    assert registry.get_sample_value("skipjoin_http_jobs_total", {"endpoint": "responses", "end": "stop"}) == 1
