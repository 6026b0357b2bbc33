"""How requests ask for structured output, and what is said about what cannot be had."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fakes_gateway import END, NAME, FakeEngine, byte_text_model, client_of

HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine("x")


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with client_of(engine) as client:
        yield client


def first_bytes(engine: FakeEngine, job: int = -1) -> set[int]:
    """What the last job may begin with."""
    constraint = engine.jobs[job].constraint
    assert constraint is not None
    constraint.start(lambda: None)
    assert constraint.wait(5.0)
    mask = constraint.mask()
    return {token for token in range(END) if mask[token // 8] >> token % 8 & 1}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, b"{ \n\r\t"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, b"{ \n\r\t"),
        ({"structured_outputs": {"json": {"const": 7}}}, b"7 \n\r\t"),
        ({"structured_outputs": {"json": '{"const": 7}'}}, b"7 \n\r\t"),
        ({"structured_outputs": {"json_object": True}}, b"{ \n\r\t"),
        ({"structured_outputs": {"regex": "[ab]c"}}, b"ab"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, b"yn"),
        ({"structured_outputs": {"grammar": 'start: "x" | "y"'}}, b"xy"),
        ({"guided_json": {"const": 7}}, b"7 \n\r\t"),
        ({"guided_regex": "[ab]c"}, b"ab"),
        ({"guided_choice": ["yes", "no"]}, b"yn"),
        ({"guided_grammar": 'start: "x" | "y"'}, b"xy"),
    ],
    ids=str,
)
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_every_way_to_ask_constrains_the_job(
    client: openai.OpenAI, engine: FakeEngine, endpoint: str, fields: dict[str, Any], expected: bytes
) -> None:
    if endpoint == "chat":
        client.chat.completions.create(model=NAME, messages=HI, extra_body=fields)
    else:
        client.completions.create(model=NAME, prompt="x", extra_body=fields)
    assert first_bytes(engine) - set(b" \n\r\t") == set(expected) - set(b" \n\r\t")


def test_asking_for_text_constrains_nothing(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.chat.completions.create(model=NAME, messages=HI, response_format={"type": "text"})
    assert engine.jobs[-1].constraint is None


def test_every_choice_has_a_constraint_of_its_own(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.chat.completions.create(model=NAME, messages=HI, n=2, response_format={"type": "json_object"})
    first, second = (engine.jobs[job].constraint for job in (-2, -1))
    assert first is not None
    assert first is not second


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "wizard"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wizard"}}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"structured_outputs": {"grammar": "start: ("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.regex"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a", "min_tokens": 1}, "min_tokens"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=HI, extra_body=fields)
    assert (caught.value.code, caught.value.param) == ("invalid_value", param)


def test_the_clients_own_parser_gets_what_it_asked_for() -> None:
    with client_of(FakeEngine('{"a": 5}'), text=byte_text_model()) as client:
        parsed = client.chat.completions.parse(
            model=NAME,
            messages=HI,
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        )
    assert parsed.choices[0].message.content == '{"a": 5}'
