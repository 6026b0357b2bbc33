"""What the output of a chat is held to: calls that must come, structure, and what cannot be had together."""

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from fakes_gateway import NAME, TEMPLATE, FakeEngine, byte_text_model, client_of

from gateway.generation import Constraint

HI: Any = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LLAMA = TEMPLATE + "{% if tools %}{{ tools }}<|python_tag|>{% endif %}"
JSON: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 7}}}


def tool(name: str = "f", **function: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS} | function}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine("x", max_context=100_000)


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with client_of(engine) as client:
        yield client


class Asked:
    """A request, made anew for every output that is tried on its constraint."""

    def __init__(self, client: openai.OpenAI, engine: FakeEngine, **fields: Any) -> None:
        self._create = lambda: client.chat.completions.create(model=NAME, messages=HI, **fields)
        self._engine = engine

    def allows(self, text: str) -> bool:
        """May the output be `text`, at least in the beginning?"""
        constraint = self.constraint
        assert constraint is not None
        constraint.start(lambda: None)
        for byte in text.encode():
            assert constraint.wait(5.0)
            if not constraint.mask()[byte // 8] >> byte % 8 & 1:
                return False
            constraint.accept(byte)
        return True

    @property
    def constraint(self) -> Constraint | None:
        self._create()
        return self._engine.jobs[-1].constraint


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["f", "g"]),
        ({"type": "function", "function": {"name": "g"}}, ["g"]),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
            },
            ["f"],
        ),
    ],
)
def test_a_call_that_is_required_is_all_that_may_come(
    client: openai.OpenAI, engine: FakeEngine, choice: Any, names: list[str]
) -> None:
    asked = Asked(client, engine, tools=[tool("f"), tool("g")], tool_choice=choice)
    assert [name for name in ("f", "g") if asked.allows(call(name, '{"a": 1}'))] == names
    assert not asked.allows("Hello")
    assert not asked.allows(call(names[0], '{"a": "one"}'))


def test_arguments_are_held_to_the_schema_and_no_others_are_made_up(client: openai.OpenAI, engine: FakeEngine) -> None:
    def asked(**function: Any) -> Asked:
        return Asked(client, engine, tools=[tool(**function)], tool_choice="required")

    assert not asked().allows(call("f", '{"a": 1, "b": 2}'))
    open_ = PARAMETERS | {"additionalProperties": {"type": "integer"}}
    assert asked(parameters=open_).allows(call("f", '{"a": 1, "b": 2}'))
    for parameters in (None, {}):
        assert asked(parameters=parameters).allows(call("f", "{}"))
        assert not asked(parameters=parameters).allows(call("f", '{"a": 1}'))
    assert asked(parameters={"properties": {}}).allows(call("f", "{}"))


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_calls_may_be_forbidden(client: openai.OpenAI, engine: FakeEngine, parallel: bool) -> None:
    asked = Asked(client, engine, tools=[tool()], tool_choice="required", parallel_tool_calls=parallel)
    assert asked.allows("\n".join([call("f", '{"a": 1}')] * 2)) == parallel


def test_a_strict_function_holds_the_calls_that_the_model_makes(client: openai.OpenAI, engine: FakeEngine) -> None:
    asked = Asked(client, engine, tools=[tool(strict=True), tool("g")])
    assert asked.allows("Hello " + call("f", '{"a": 1}') + " bye")
    assert asked.allows(call("g", '{"a": "anything"}'))
    assert not asked.allows("Hello " + call("f", '{"a": "one"}'))
    assert not asked.allows(call("h", "{}"))


@pytest.mark.parametrize("strict", [False, None])
def test_other_functions_hold_nothing(client: openai.OpenAI, engine: FakeEngine, strict: bool | None) -> None:
    assert Asked(client, engine, tools=[tool(strict=strict)]).constraint is None


def test_a_strict_function_holds_nothing_where_calls_have_no_mark() -> None:
    engine = FakeEngine("x", max_context=10_000)
    with client_of(engine, byte_text_model(LLAMA)) as client:
        assert Asked(client, engine, tools=[tool(strict=True)]).constraint is None
        required = Asked(client, engine, tools=[tool()], tool_choice="required")
        assert required.allows('{"name": "f", "parameters": {"a": 1}}')
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=NAME, messages=HI, tools=[tool()], response_format=JSON)
        assert caught.value.param == "response_format.json_schema.schema"


def test_structured_content_and_calls_are_alternatives(client: openai.OpenAI, engine: FakeEngine) -> None:
    asked = Asked(client, engine, tools=[tool()], response_format=JSON)
    assert asked.allows("7")
    assert asked.allows(call("f", '{"a": 1}'))
    assert not asked.allows("8")


def test_a_required_call_comes_whatever_the_structure_of_content(client: openai.OpenAI, engine: FakeEngine) -> None:
    asked = Asked(client, engine, tools=[tool()], tool_choice="required", response_format=JSON)
    assert asked.allows("<")
    assert not asked.allows("7")


def test_structure_comes_after_thoughts() -> None:
    engine = FakeEngine("x", max_context=10_000)
    with client_of(engine, byte_text_model(TEMPLATE + "<think>")) as client:
        asked = Asked(client, engine, response_format=JSON)
        assert asked.allows("Hm</think>\n7")
        assert not asked.allows("Hm</think>\n8")
        required = Asked(client, engine, tools=[tool()], tool_choice="required")
        assert required.allows("Hm</think>\n" + call("f", '{"a": 1}'))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool(parameters={"type": "object", "properties": 1})]}, "tools"),
        (
            {"tools": [tool(parameters={"type": "object", "properties": {"a": {"pattern": "[", "type": "string"}}})]},
            "tools",
        ),
        ({"tools": [tool(parameters={"type": "object", "$ref": "http://example.org/x"})]}, "tools"),
        ({"tools": [tool(parameters={"type": "object", "description": "x" * 70_000})]}, "tools"),
        ({"tools": [tool()], "extra_body": {"ignore_eos": True, "max_tokens": 5}}, "ignore_eos"),
        ({"tools": [tool()], "extra_body": {"min_tokens": 5}}, "min_tokens"),
    ],
)
def test_what_cannot_be_held_to_is_the_clients_mistake(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=HI, tool_choice="required", **fields)
    assert caught.value.param == param


@pytest.mark.parametrize("kind", ["tools", "response_format"])
def test_schemas_of_any_depth_are_the_clients_mistake_at_most(client: openai.OpenAI, kind: str) -> None:
    statuses = set()
    for depth in range(440, 500):  # about as deep as can be decoded
        schema = '{"properties": {"a": ' * depth + "{}" + "}}" * depth
        tools = f'"tools": [{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}]'
        structure = f'"response_format": {{"type": "json_schema", "json_schema": {{"schema": {schema}}}}}'
        fields = f'{tools}, "tool_choice": "required"' if kind == "tools" else structure
        body = f'{{"messages": [{{"role": "user", "content": "hi"}}], {fields}}}'
        url, headers = f"{client.base_url}chat/completions", {"content-type": "application/json"}
        statuses.add(httpx2.post(url, content=body, headers=headers).status_code)
    assert statuses == {400}


def test_parameters_are_those_of_an_object(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=HI, tools=[tool(parameters={"type": "string"})])
    assert (caught.value.code, caught.value.param) == ("invalid_function_parameters", "tools[0].function.parameters")
