"""Forced calls through the real engine and the embedded model, at temperature 1: all that is complete is valid."""

import asyncio
import json

import jsonschema
import pytest
from world import run_world

from common.model_files import locate
from common.spec_reader import read_spec
from gateway.generation import Generation
from gateway.text.conversation import Conversation
from gateway.text.grammar import Grammar, Grammars, GrammarSource
from gateway.text.output.output_grammar import CallableFunction
from gateway.text.output.parser import OutputParser
from gateway.text.output.parts import Content, calls_in, joined
from gateway.text.text_model import ChatPrompt, TextModel, load_text_model

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

SEEDS = 2
WHEN = {"type": "object", "properties": {"day": {"enum": ["today", "tomorrow"]}}, "required": ["day"]}
FUNCTIONS = [
    CallableFunction(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1, "maxLength": 12},
                "when": WHEN | {"additionalProperties": False},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "when"],
            "additionalProperties": False,
        },
    ),
    CallableFunction(
        "add",
        {
            "type": "object",
            "properties": {"terms": {"type": "array", "items": {"type": "integer", "maximum": 999}, "maxItems": 4}},
            "required": ["terms"],
            "additionalProperties": False,
        },
    ),
]


def jobs_of(
    language: TextModel, prompt: ChatPrompt, functions: list[CallableFunction], one_call: bool
) -> list[Generation]:
    async def compiled() -> Grammar:
        text = language.output_grammar().calls(functions, "none", one_call=one_call)
        grammars = Grammars(language.tokenizer, language.vocab_size, language.stop_tokens)
        return await grammars.compile(GrammarSource("lark", text))

    grammar = asyncio.run(compiled())
    return [
        Generation(
            prompt=prompt.tokens,
            max_tokens=80,
            stop_tokens=language.stop_tokens,
            seed=seed,
            constraint=grammar.constraint(),
        )
        for seed in range(SEEDS)
    ]


def test_the_embedded_model_calls_what_it_must() -> None:
    files = locate(None)
    language = load_text_model(files, read_spec(files))
    # The tools are not described, which would only be more to compute: the grammar knows them.
    question = {"role": "user", "content": "What is the weather in Paris?"}
    prompt = asyncio.run(language.encode_chat(Conversation([question]), 100))
    choices = [(FUNCTIONS, False), (FUNCTIONS, True), (FUNCTIONS[:1], True), (FUNCTIONS[1:], True)]
    jobs = [job for functions, one_call in choices for job in jobs_of(language, prompt, functions, one_call)]
    answers = run_world(jobs)
    complete = [index for index, answer in enumerate(answers) if answer.finish_reason == "stop"]
    assert len(complete) >= 0.75 * len(answers)
    for index in complete:
        functions, one_call = choices[index // SEEDS]
        check(language, prompt, functions, one_call, answers[index].tokens)


def check(
    language: TextModel, prompt: ChatPrompt, functions: list[CallableFunction], one_call: bool, tokens: list[int]
) -> None:
    schemas = {function.name: function.schema for function in functions}
    parser = OutputParser(language.output_form(prompt, frozenset(schemas), one_call=False))
    parts = parser.push(language.tokenizer.decode(tokens)) + parser.flush()
    calls = calls_in(parts)
    assert len(calls) == 1 if one_call else len(calls) >= 1
    assert joined(parts, Content) == ""
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name], jsonschema.Draft202012Validator)
