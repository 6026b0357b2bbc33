"""Grammars of outputs: whatever is drawn under them reads as what they promise, in every format and vocabulary."""

import asyncio
import json
import random
from itertools import chain, repeat

import jsonschema
import pytest
from fakes_gateway import END, byte_backend
from fakes_output import merged
from tokenizers import AddedToken

from gateway.text.grammar import Grammar, GrammarError, Grammars, GrammarSource
from gateway.text.output.formats import HERMES, LLAMA, MISTRAL, NEW_MISTRAL, ToolFormat
from gateway.text.output.output_grammar import MAX_CALLS, CallableFunction, OutputGrammar, Thoughts
from gateway.text.output.parser import OutputForm, OutputParser
from gateway.text.output.parts import Content, Part, Reasoning, calls_in, joined
from gateway.text.tokenizer import SpecialTokens, Tokenizer

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 3}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = [CallableFunction("weather", CITY), CallableFunction("weather_now", EMPTY), CallableFunction("now", EMPTY)]
SCHEMAS = {function.name: function.schema for function in FUNCTIONS}
CONTENTS = {
    GrammarSource("json_schema", '{"const": 77}'): "77",
    GrammarSource("choice", '["yes"]'): "yes",
    GrammarSource("regex", "a{2}b"): "aab",
    GrammarSource("lark", 'start: x "b"\nx: "aa"'): "aab",
}
THOUGHTS: list[tuple[Thoughts, str]] = [
    ("none", ""),
    ("possible", ""),
    ("possible", "<think>\nHm</think>\n\n"),
    ("opened", "Hm\n</think>"),
]
MOST_TOKENS = 4000
WRITTEN = [HERMES, LLAMA, MISTRAL, NEW_MISTRAL]


class Language:
    """A byte vocabulary, in which marks are tokens or are not."""

    def __init__(self, tool_format: ToolFormat, *, marks_are_tokens: bool) -> None:
        self.tool_format = tool_format
        backend = byte_backend()
        if marks_are_tokens:
            for i, mark in enumerate(sorted(tool_format.marks | {"<think>", "</think>"})):
                backend.add_tokens([AddedToken(mark, special=i % 2 == 0, normalized=False)])
        self.vocab_size = backend.get_vocab_size()
        self.tokenizer = Tokenizer(backend, SpecialTokens({}))
        self.grammar = OutputGrammar(tool_format.notation, tool_format.marks, self.tokenizer.added_token)

    def compile(self, text: str, content: GrammarSource | None = None) -> Grammar:
        async def compiled() -> Grammar:
            grammars = Grammars(self.tokenizer, self.vocab_size, frozenset({END}))
            return await grammars.compile(GrammarSource("lark", text, content))

        return asyncio.run(compiled())

    def form(self, thoughts: Thoughts, *, one_call: bool = False) -> OutputForm:
        names = frozenset(SCHEMAS)
        return OutputForm(
            self.tool_format,
            names=names,
            one_call=one_call,
            reasons=thoughts != "none",
            reasoning_opened=thoughts == "opened",
        )

    def draw(self, grammar: Grammar, form: OutputForm, seed: int, start: str = "") -> list[Part]:
        """An output that begins with `start` and goes on with any tokens that the grammar allows, to its end."""
        chance = random.Random(seed)
        constraint, detokenizer = grammar.constraint(), self.tokenizer.detokenizer(form.marks)
        parser, parts = OutputParser(form), list[Part]()
        constraint.start(lambda: None)
        for wanted in chain(self.tokenizer.encode(start, add_special_tokens=False), repeat(END, MOST_TOKENS)):
            assert constraint.wait(10.0)
            allowed = [8 * i + bit for i, byte in enumerate(constraint.mask()) for bit in range(8) if byte >> bit & 1]
            assert wanted in allowed or wanted == END, (start, wanted)
            token = wanted if wanted in allowed else chance.choice(allowed)
            if token == END:
                return merged(parts + parser.push(detokenizer.flush()) + parser.flush())
            parts += parser.push(detokenizer.push(token))
            constraint.accept(token)
        raise AssertionError("the output does not end")


def check_calls(parts: list[Part]) -> int:
    for call in calls_in(parts):
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name], jsonschema.Draft202012Validator)
    return len(calls_in(parts))


@pytest.fixture(
    params=[(form, tokens) for form in WRITTEN for tokens in (True, False)],
    ids=[
        "hermes",
        "hermes as text",
        "llama",
        "llama as text",
        "mistral",
        "mistral as text",
        "new mistral",
        "new mistral as text",
    ],
    scope="module",
)
def language(request: pytest.FixtureRequest) -> Language:
    tool_format, marks_are_tokens = request.param
    return Language(tool_format, marks_are_tokens=marks_are_tokens)


@pytest.mark.parametrize(("thoughts", "start"), THOUGHTS)
def test_calls_that_must_come_do_whatever_is_drawn(language: Language, thoughts: Thoughts, start: str) -> None:
    begins = language.tool_format.notation.trigger or "{"  # or else drawn thoughts never end
    for one_call in (True, False):
        grammar = language.compile(language.grammar.calls(FUNCTIONS, thoughts, one_call=one_call))
        for seed in range(4):
            parts = language.draw(grammar, language.form(thoughts), seed, start + begins)
            assert 1 <= check_calls(parts) <= (1 if one_call else MAX_CALLS)
            assert (joined(parts, Reasoning), joined(parts, Content)) == ("Hm" if start else "", "")


@pytest.mark.parametrize(("thoughts", "start"), THOUGHTS)
def test_content_of_another_grammar_comes_after_the_thoughts(
    language: Language, thoughts: Thoughts, start: str
) -> None:
    for content, expected in CONTENTS.items():
        grammar = language.compile(language.grammar.content(thoughts), content)
        assert joined(language.draw(grammar, language.form(thoughts), 1, start + expected[0]), Content) == expected


@pytest.mark.parametrize(("thoughts", "start"), THOUGHTS)
def test_either_calls_come_or_that_content(language: Language, thoughts: Thoughts, start: str) -> None:
    if not language.grammar.has_trigger:
        pytest.skip("nothing tells calls in this form from content")
    text = language.grammar.content_or_calls(FUNCTIONS, thoughts, one_call=True)
    grammar = language.compile(text, GrammarSource("json_schema", '{"const": 77}'))
    trigger = language.tool_format.notation.trigger
    assert check_calls(language.draw(grammar, language.form(thoughts), 1, start + trigger)) == 1
    assert joined(language.draw(grammar, language.form(thoughts), 1, start + "7"), Content) == "77"


@pytest.mark.parametrize(("thoughts", "start"), THOUGHTS)
def test_calls_within_text_are_as_they_should_be(language: Language, thoughts: Thoughts, start: str) -> None:
    if not language.grammar.has_trigger:
        pytest.skip("nothing tells calls in this form from text")
    grammar = language.compile(language.grammar.text_with_calls(FUNCTIONS, thoughts))
    trigger = language.tool_format.notation.trigger
    assert joined(language.draw(grammar, language.form(thoughts), 1, start + "Hello"), Content) == "Hello"
    for seed in range(4):
        parts = language.draw(grammar, language.form(thoughts), seed, f"{start}So {trigger}")
        assert 1 <= check_calls(parts) <= MAX_CALLS
        assert joined(parts, Content) == "So "


def test_schemas_that_nobody_can_follow_are_said_to_be(language: Language) -> None:
    function = CallableFunction("f", {"type": "object", "properties": 1})
    with pytest.raises(GrammarError):
        language.compile(language.grammar.calls([function], "none", one_call=True))


def test_a_name_that_begins_another_name_is_no_trap(language: Language) -> None:
    grammar = language.compile(language.grammar.calls(FUNCTIONS[:2], "none", one_call=True))
    found = {calls_in(language.draw(grammar, language.form("none"), seed))[0].name for seed in range(12)}
    assert found == {"weather", "weather_now"}
