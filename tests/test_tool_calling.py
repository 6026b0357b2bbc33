"""Tools and thoughts in /v1/chat/completions, through the official client: what is sent, streamed and parsed."""

import asyncio
import json
from typing import Any

import openai
import pytest
from fakes_gateway import NAME, TEMPLATE, FakeEngine, byte_text_model, client_of, serving
from pydantic import BaseModel

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HI: Any = [{"role": "user", "content": "hi"}]
ASK: dict[str, Any] = {"model": NAME, "messages": HI, "tools": [WEATHER]}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
ROOM = 10_000  # tokens: descriptions of tools are long in bytes
THINKER = TEMPLATE + "<think>\n"


def engine_of(text: str) -> FakeEngine:
    return FakeEngine(text, max_context=ROOM)


def prompt_of(engine: FakeEngine) -> str:
    return bytes(engine.jobs[-1].prompt).decode()


def test_a_call_is_a_message_without_content() -> None:
    with client_of(engine_of(CALL)) as client:
        [choice] = client.chat.completions.create(**ASK).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls or []
    assert (call.type, call.id[:5]) == ("function", "call_")
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Zürich"})


def test_content_and_several_calls_are_one_message() -> None:
    with client_of(engine_of(f"Let me see.\n{CALL}\n{CALL}")) as client:
        message = client.chat.completions.create(**ASK).choices[0].message
    assert message.content == "Let me see.\n"
    assert len({call.id for call in message.tool_calls or []}) == 2


def test_a_streamed_call_is_its_name_and_then_its_arguments() -> None:
    with client_of(engine_of(f"So: {CALL}")) as client:
        chunks = list(client.chat.completions.create(**ASK, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert "".join(delta.content or "" for delta in deltas) == "So: "
    first, *rest = [call.model_dump(exclude_unset=True) for call in calls]
    assert first.pop("id").startswith("call_")
    assert first == {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in rest)
    assert len(rest) > 10
    assert "".join(call["function"]["arguments"] for call in rest) == '{"city": "Zürich"}'
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "tool_calls"]


@pytest.mark.parametrize("n", [1, 3])
def test_the_clients_stream_helper_accumulates_calls(n: int) -> None:
    with (
        client_of(engine_of(f"So:\n{CALL}{CALL}")) as client,
        client.chat.completions.stream(**ASK, n=n) as stream,
    ):
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    assert events.count("tool_calls.function.arguments.done") == 2 * n
    for choice in final.choices:
        assert choice.message.content == "So:\n"
        assert [call.function.arguments for call in choice.message.tool_calls or []] == ['{"city": "Zürich"}'] * 2
        assert choice.finish_reason == "tool_calls"


def test_the_client_parses_arguments_into_models() -> None:
    class GetWeather(BaseModel):
        city: str

    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    with client_of(engine_of(CALL)) as client:
        answer = client.chat.completions.parse(model=NAME, messages=HI, tools=[tool])
    [call] = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == GetWeather(city="Zürich")


def test_streams_of_the_asynchronous_client_have_calls_as_well() -> None:
    async def read(url: str) -> list[str]:
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            client.chat.completions.stream(**ASK) as stream,
        ):
            final = await stream.get_final_completion()
        return [call.function.name for call in final.choices[0].message.tool_calls or []]

    with serving(engine_of(CALL)) as url:
        assert asyncio.run(read(url)) == ["get_weather"]


def test_a_call_and_its_result_come_back_to_the_model() -> None:
    engine = engine_of(CALL)
    with client_of(engine) as client:
        message = client.chat.completions.create(**ASK).choices[0].message
        [call] = message.tool_calls or []
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "Rain"}
        client.chat.completions.create(model=NAME, messages=[*HI, message, result], tools=[WEATHER])
    assert CALL in prompt_of(engine)
    assert prompt_of(engine).endswith("user: <tool_response>\nRain\n</tool_response>\nassistant: ")


@pytest.mark.parametrize("choice", ["none", None])
def test_without_tools_or_without_a_wish_for_calls_all_is_content(choice: Any) -> None:
    tools = {} if choice is None else {"tools": [WEATHER], "tool_choice": choice}
    engine = engine_of(CALL)
    with client_of(engine) as client:
        answer = client.chat.completions.create(model=NAME, messages=HI, **tools)
    assert (answer.choices[0].message.content, answer.choices[0].message.tool_calls) == (CALL, None)
    assert prompt_of(engine) == "user: hi\nassistant: "


def test_one_call_is_enough_when_calls_may_not_be_parallel() -> None:
    engine = engine_of(CALL * 2)
    with client_of(engine) as client:
        answer = client.chat.completions.create(**ASK, parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls or []) == 1
    assert answer.choices[0].finish_reason == "tool_calls"
    assert engine.streams[0].aborted.is_set()
    assert answer.usage is not None
    assert answer.usage.completion_tokens < len(CALL.encode())


def test_a_stop_string_ends_a_call_as_it_ends_text() -> None:
    with client_of(engine_of(CALL)) as client:
        [choice] = client.chat.completions.create(**ASK, stop="rich").choices
    [call] = choice.message.tool_calls or []
    assert (call.function.arguments, choice.finish_reason) == ('{"city": "Zü', "tool_calls")


def test_an_output_that_is_too_long_for_its_call_says_so() -> None:
    with client_of(engine_of(CALL)) as client:
        [choice] = client.chat.completions.create(**ASK, max_tokens=len(CALL) - 20).choices
    assert choice.finish_reason == "length"
    assert len(choice.message.tool_calls or []) == 1


def test_tools_of_a_request_that_cannot_be_written_are_the_clients_mistake() -> None:
    deep: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for _ in range(400):
        deep["function"]["parameters"] = {"a": deep["function"]["parameters"]}
    with client_of(engine_of("x")) as client:
        assert client.chat.completions.create(model=NAME, messages=HI, tools=[deep]).choices[0].message.content == "x"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=NAME, messages=HI, tools=[{"type": "custom", "custom": {"name": "x"}}])


def test_thoughts_are_a_field_of_their_own_under_both_names() -> None:
    with client_of(engine_of("Hm.\n</think>\n\nYes."), byte_text_model(THINKER)) as client:
        answer = client.chat.completions.create(model=NAME, messages=HI)
        chunks = list(client.chat.completions.create(model=NAME, messages=HI, stream=True))
    message = answer.choices[0].message
    assert message.content == "Yes."
    assert message.model_extra == {"reasoning": "Hm.", "reasoning_content": "Hm."}
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Yes."
    for name in ("reasoning", "reasoning_content"):
        assert "".join((delta.model_extra or {}).get(name, "") for delta in deltas) == "Hm."


def test_thoughts_are_counted() -> None:
    output = "<think>Hm.</think>Yes."
    with client_of(engine_of(output), byte_text_model(TEMPLATE + "{# </think> #}")) as client:
        answer = client.chat.completions.create(model=NAME, messages=HI)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == len("<think>Hm.</think")


def test_a_client_may_ask_the_template_not_to_think() -> None:
    source = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    engine = engine_of("Yes.")
    with client_of(engine, byte_text_model(source)) as client:
        for extra in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
            client.chat.completions.create(model=NAME, messages=HI, extra_body=extra)
            assert prompt_of(engine).endswith("<think></think>")
        client.chat.completions.create(model=NAME, messages=HI, reasoning_effort="high")
        assert prompt_of(engine).endswith("assistant: ")
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model=NAME, messages=HI, extra_body={"chat_template_kwargs": {"tokenize": True}}
            )
