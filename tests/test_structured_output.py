"""Structured output through the real engine and real stages: valid whatever is drawn and however it is scheduled."""

import asyncio
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tiny_model import write_tiny_model
from world import Answer, run_world

from common.model_files import locate
from common.spec_reader import read_spec
from gateway.generation import Generation
from gateway.text.conversation import Conversation
from gateway.text.grammar import Grammar, Grammars, GrammarSource
from gateway.text.text_model import TextModel, load_text_model

SEEDS = 5


def thing(**properties: Any) -> dict[str, Any]:
    """An object that has all of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def text(most: int = 6, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, **more}


WHOLE = {"type": "integer", "minimum": 0, "maximum": 999}
POINT = thing(x=WHOLE, y=WHOLE)
TREE = {
    "$defs": {"node": thing(name=text(3), left={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
    "$ref": "#/$defs/node",
}
SCHEMAS: list[Any] = [
    {"type": "object"},
    {"type": "null"},
    {"type": "boolean"},
    {"const": {"a": [1, "é"]}},
    {"enum": ["red", "green", 3, None, "日本"]},
    {"type": ["integer", "null"]},
    WHOLE,
    {"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 5},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    text(8),
    text(8, minLength=8),
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "pattern": "^(foo|bar)+$", "maxLength": 12},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "email"},
    {"type": "array", "items": WHOLE, "maxItems": 4},
    {"type": "array", "items": text(3), "minItems": 2, "maxItems": 3},
    {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 3},
    {"type": "array", "prefixItems": [WHOLE, text(3)], "items": False, "minItems": 2},
    {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 5},
    POINT,
    thing(name=text(), age=WHOLE),
    thing(a=thing(b=thing(c=thing(d={"type": "boolean"})))),
    thing(points={"type": "array", "items": POINT, "minItems": 1, "maxItems": 3}),
    {"type": "object", "properties": {"a": WHOLE, "b": text(2), "c": {"type": "null"}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": WHOLE}, "required": ["a"], "additionalProperties": {"type": "boolean"}},
    {"type": "object", "additionalProperties": WHOLE},
    {"anyOf": [WHOLE, {"type": "boolean"}, thing(x={"type": "null"})]},
    {"anyOf": [thing(kind={"const": "cat"}, lives=WHOLE), thing(kind={"const": "dog"}, good={"type": "boolean"})]},
    thing(**{"schöner Name 🎉": WHOLE, 'quoted "key"': {"type": "boolean"}, "back\\slash": {"type": "null"}}),
    TREE,
    {"$defs": {"p": POINT}, "type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 2},
    {"allOf": [{"properties": {"a": WHOLE}, "required": ["a"]}, thing(a=WHOLE, b={"type": "boolean"})]},
    {"type": "object", "patternProperties": {"^x[0-9]$": WHOLE}, "additionalProperties": False},
    thing(name=text(5), tags={"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}, at=POINT),
    {"title": "Step", "description": "with annotations", **thing(explanation=text(10), output=text(10))},
]

# As in test_end_to_end.py: jobs take turns, and the device holds about three of them.
CROWDED: dict[str, Any] = {
    "quantum_ms": 1000,
    "quantum_growth": 1.001,
    "num_levels": 400,
    "aging": 0.0,
    "kv_device_blocks": 40,
    "max_batch_jobs": 2,
    "max_context": 240,
    "kv_host_blocks": 3000,
}


def ten_seconds_each_time() -> Callable[[], float]:
    return map(float, count(0, 10)).__next__


def compiled(language: TextModel, schemas: list[Any]) -> list[Grammar]:
    async def compile_all() -> list[Grammar]:
        grammars = Grammars(language.tokenizer, language.vocab_size, language.stop_tokens)
        return [await grammars.compile(GrammarSource("json_schema", json.dumps(schema))) for schema in schemas]

    return asyncio.run(compile_all())


def jobs_of(language: TextModel, schemas: list[Any], prompt: list[int], **options: Any) -> list[Generation]:
    """One for each schema and seed, at temperature 1."""
    return [
        Generation(
            prompt=prompt, seed=seed, stop_tokens=language.stop_tokens, constraint=grammar.constraint(), **options
        )
        for grammar in compiled(language, schemas)
        for seed in range(SEEDS)
    ]


def language_of(model: str | None) -> TextModel:
    files = locate(model)
    return load_text_model(files, read_spec(files))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def check(language: TextModel, schemas: list[Any], answers: list[Answer]) -> int:
    """Every complete output is valid. Returns how many were complete."""
    complete = 0
    for index, answer in enumerate(answers):
        schema = schemas[index // SEEDS]
        if answer.finish_reason == "stop":
            output = json.loads(language.tokenizer.decode(answer.tokens))
            jsonschema.validate(output, schema, jsonschema.Draft202012Validator)
            complete += 1
        assert answer.finish_reason in ("stop", "length"), (schema, answer)
    return complete


def test_complete_outputs_are_valid_on_every_schedule(tiny: Path) -> None:
    language = language_of(str(tiny))
    assert len(SCHEMAS) >= 40

    def run(**options: Any) -> list[Answer]:
        jobs = jobs_of(language, SCHEMAS, [5, 60, 7], max_tokens=200)
        return run_world(jobs, model=str(tiny), threads=1, device="cpu", **options)

    together = run()
    assert check(language, SCHEMAS, together) >= 0.8 * len(together)
    crowded = run(clock=ten_seconds_each_time(), **CROWDED)
    assert [answer.tokens for answer in crowded] == [answer.tokens for answer in together]
    assert sum(answer.trace.offloaded_bytes > 0 for answer in crowded) > len(crowded) / 4
    assert [answer.tokens for answer in run(pipeline_parallel=2)] == [answer.tokens for answer in together]


def test_an_output_that_is_cut_says_so_and_is_the_beginning_of_a_valid_one(tiny: Path) -> None:
    language = language_of(str(tiny))
    schema = thing(name=text(3, minLength=3), numbers={"type": "array", "items": WHOLE, "minItems": 3, "maxItems": 3})
    cut = run_world(jobs_of(language, [schema], [5], max_tokens=9), model=str(tiny), threads=1)
    whole = run_world(jobs_of(language, [schema], [5], max_tokens=400), model=str(tiny), threads=1)
    assert {answer.finish_reason for answer in cut} == {"length"}
    assert check(language, [schema], whole) == SEEDS
    assert [answer.tokens for answer in cut] == [answer.tokens[:9] for answer in whole]


@pytest.mark.model
def test_the_embedded_model_fills_schemas_in() -> None:
    language = language_of(None)
    assert language.chat is not None
    question = {"role": "user", "content": "Describe a person as JSON."}
    prompt = language.tokenizer.encode(language.chat.render(Conversation([question])), add_special_tokens=False)
    schemas = [thing(name=text(), age=WHOLE)]
    answers = run_world(jobs_of(language, schemas, prompt, max_tokens=60))
    assert check(language, schemas, answers) >= len(answers) - 1
