"""Grammars: what constraints of every kind let through, and what hostile sources cost."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from fakes_gateway import END, byte_text_model

from gateway.text import grammar as grammar_file
from gateway.text.grammar import (
    MAX_OPTIONAL_PROPERTIES,
    MAX_SOURCE_BYTES,
    Grammar,
    GrammarConstraint,
    GrammarError,
    Grammars,
    GrammarSource,
)

T = TypeVar("T")


def with_grammars(use: Callable[[Grammars], Awaitable[T]]) -> T:
    async def run() -> T:
        text = byte_text_model()
        return await use(Grammars(text.tokenizer, text.vocab_size, text.stop_tokens))

    return asyncio.run(run())


def compiled(kind: grammar_file.Kind, text: str) -> Grammar:
    return with_grammars(lambda grammars: grammars.compile(GrammarSource(kind, text)))


def schema(value: Any) -> Grammar:
    return compiled("json_schema", json.dumps(value))


def started(grammar: Grammar) -> GrammarConstraint:
    constraint = grammar.constraint()
    constraint.start(lambda: None)
    assert constraint.wait(5.0)
    return constraint


def allowed(constraint: GrammarConstraint) -> list[int]:
    mask = constraint.mask()
    return [token for token in range(8 * len(mask)) if mask[token // 8] >> token % 8 & 1]


def say(constraint: GrammarConstraint, text: str) -> None:
    for token in text.encode():
        assert token in allowed(constraint), (text, bytes([token]))
        constraint.accept(token)
        assert constraint.wait(5.0)


def may_say(grammar: Grammar, text: str) -> bool:
    """Whether `text` can be a complete output."""
    constraint = started(grammar)
    try:
        say(constraint, text)
    except AssertionError:
        return False
    return END in allowed(constraint)


def any_output(grammar: Grammar, seed: int, most_tokens: int = 400) -> str | None:
    """Tokens drawn evenly from those that are allowed; None when they do not end."""
    rng, constraint, said = random.Random(seed), started(grammar), bytearray()
    for _ in range(most_tokens):
        token = rng.choice(allowed(constraint))
        if token == END:
            return said.decode()
        said.append(token)
        constraint.accept(token)
        assert constraint.wait(5.0)
    return None


@pytest.mark.parametrize(
    ("kind", "text", "good", "bad"),
    [
        ("json_schema", '{"type": "object"}', ["{}", '{"a": [1, null]}', '{\n "é": "😀"}'], ["[]", "{", '{"a"}', ""]),
        ("json_schema", '{"enum": ["x", 5]}', ['"x"', "5"], ['"y"', "55"]),
        ("json_schema", '"{}"'[1:-1], ["1", "[true]"], ["x"]),
        ("regex", r"[0-9]{3}-[a-z]+", ["123-abc"], ["12-a", "123-", "123-abc!"]),
        ("choice", '["yes", "no\\n\\"é", "yes!"]', ["yes", 'no\n"é', "yes!"], ["no", "ye", "maybe"]),
        ("lark", 'start: "a" start | "b"', ["b", "aaab"], ["a", "bb"]),
    ],
)
def test_outputs_are_what_the_grammar_says(kind: grammar_file.Kind, text: str, good: list[str], bad: list[str]) -> None:
    grammar = compiled(kind, text)
    assert [may_say(grammar, output) for output in good] == [True] * len(good)
    assert [may_say(grammar, output) for output in bad] == [False] * len(bad)


def test_blanks_between_json_tokens_do_not_go_on_for_ever() -> None:
    grammar = schema({"type": "object"})
    assert may_say(grammar, "{" + " " * 40 + "}")
    assert not may_say(grammar, "{" + " " * 41 + "}")


def test_a_mask_depends_on_the_tokens_of_its_job_alone() -> None:
    grammar = schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    first, second = started(grammar), started(grammar)
    say(first, '{"a": 1')
    assert allowed(second) == allowed(started(grammar))
    say(second, '{"a": 1')
    assert first.mask() == second.mask()


def test_who_waits_for_masks_is_told_about_each() -> None:
    told: list[int] = []
    constraint = compiled("regex", "abc").constraint()
    constraint.start(lambda: told.append(1))
    for token in b"ab":
        assert constraint.wait(5.0)
        constraint.accept(token)
    assert constraint.wait(5.0)
    deadline = time.monotonic() + 5.0
    while len(told) < 3:
        assert time.monotonic() < deadline, told
    assert constraint.ready


def test_a_token_that_was_not_allowed_ends_it_with_a_reason() -> None:
    constraint = started(compiled("regex", "abc"))
    constraint.accept(ord("c"))
    assert constraint.wait(5.0)
    assert allowed(constraint) == []
    assert constraint.failure is not None


def test_grammars_are_remembered_but_not_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_file, "_CACHED_GRAMMARS", 2)

    async def use(grammars: Grammars) -> None:
        first, second, third = (GrammarSource("regex", letter) for letter in "abc")
        kept = await grammars.compile(first)
        await grammars.compile(second)
        assert await grammars.compile(first) is kept
        await grammars.compile(third)
        assert list(grammars._cache) == [first, third]

    with_grammars(use)


def test_grammars_that_took_long_are_large_and_few_of_them_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.4  # looked at twice for each
        return now

    monkeypatch.setattr("gateway.text.grammar.time.thread_time", clock)

    async def use(grammars: Grammars) -> None:
        sources = [GrammarSource("regex", letter) for letter in "abc"]
        for source in sources:
            await grammars.compile(source)
        assert list(grammars._cache) == sources[1:]

    with_grammars(use)


def test_a_model_that_never_ends_an_output_has_no_grammars() -> None:
    async def compile_without_end() -> None:
        await Grammars(byte_text_model().tokenizer, 300, frozenset()).compile(GrammarSource("regex", "a"))

    with pytest.raises(GrammarError, match="no token that ends"):
        asyncio.run(compile_without_end())


def optional(count: int) -> dict[str, Any]:
    return {f"{i:x}": True for i in range(count)}


MANY_PATTERNS = json.dumps({"patternProperties": {f"^a{i}$": {} for i in range(400)}})  # would take ten seconds


def nested(depth: int) -> str:
    return '{"properties": {"a": ' * depth + "{}" + "}}" * depth


HOSTILE: dict[str, tuple[grammar_file.Kind, str]] = {
    "no JSON": ("json_schema", "{"),
    "no schema": ("json_schema", "[]"),
    "unknown type": ("json_schema", '{"type": "wizard"}'),
    "properties that are none": ("json_schema", '{"type": "object", "properties": 1}'),
    "an unsupported keyword": ("json_schema", '{"type": "array", "uniqueItems": true}'),
    "remote reference": ("json_schema", '{"$ref": "http://127.0.0.1:1/schema.json"}'),
    "dangling reference": ("json_schema", '{"$ref": "#/$defs/none"}'),
    "nothing but itself": ("json_schema", '{"$ref": "#"}'),
    "nothing fits": ("json_schema", "false"),
    "deeply nested": ("json_schema", nested(2000)),
    "broken pattern": ("json_schema", '{"type": "string", "pattern": "["}'),
    "too many ways": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"properties": {f"{i}_{j}": {}}} for j in range(5)]} for i in range(20)]}),
    ),
    "many properties": ("json_schema", json.dumps({"properties": optional(4800)})),
    "many in all": ("json_schema", json.dumps({"allOf": [{"properties": optional(600)}] * 2})),
    "many patterns": ("json_schema", MANY_PATTERNS),
    "many patterns in a grammar": ("lark", 'start: "%json" x\nx: %json  ' + MANY_PATTERNS),
    "many patterns and a list of names that hides nothing": (
        "json_schema",
        json.dumps({"items": json.loads(MANY_PATTERNS), "required": [f"p{i}" for i in range(9000)]}),
    ),
    "huge multiple": ("json_schema", '{"type": "integer", "multipleOf": 1000000007}'),
    "broken regex": ("regex", "["),
    "deep regex": ("regex", "(" * 5000 + "a" + ")" * 5000),
    "look-ahead": ("regex", "(?=a)b"),
    "backreference": ("regex", r"(a)\1"),
    "long regex": ("regex", "a" * (MAX_SOURCE_BYTES + 1)),
    "long in bytes": ("regex", "é" * (MAX_SOURCE_BYTES // 2 + 1)),
    "choice of what is no text": ("choice", "[1]"),
    "broken grammar": ("lark", "start: ("),
    "a grammar that reads files": ("lark", '%import /etc/passwd\nstart: "a"'),
}


# Takes most of a second to compile: nothing counts what is merged.
SLOW = json.dumps(
    {
        "$defs": {"many": {"type": "object", "properties": optional(MAX_OPTIONAL_PROPERTIES - 50)}},
        "properties": {
            f"p{i}": {"allOf": [{"$ref": "#/$defs/many"}, {"properties": {f"q{i}": {}}}]} for i in range(20)
        },
    }
)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_grammar_is_refused_within_a_second(name: str) -> None:
    begun = time.monotonic()
    with pytest.raises(GrammarError) as refused:
        compiled(*HOSTILE[name])
    assert time.monotonic() - begun < 1.0 + SLACK_S
    assert 5 < len(str(refused.value)) < 300


HARMLESS: dict[str, tuple[grammar_file.Kind, str]] = {
    "catastrophic elsewhere": ("regex", "(a+)+$"),
    "exponential when determinized": ("regex", "(x|y)*x(x|y){30}"),
    "nested repeats": ("regex", "((a{1,100}){1,100}){1,100}"),
    "many properties that must come": (
        "json_schema",
        json.dumps({"properties": optional(2000), "required": list(optional(2000))}),
    ),
    "a tree": ("json_schema", '{"type": "object", "properties": {"c": {"$ref": "#"}}}'),
    "long strings": ("json_schema", '{"type": "string", "minLength": 1000000}'),
    "long arrays": ("json_schema", '{"type": "array", "minItems": 1000000}'),
    "pattern": ("json_schema", '{"type": "string", "pattern": "(a{1,1000}){1,1000}"}'),
    "ambiguous": ("lark", "start: start start | "),
}
SLACK_S = 1.0  # for a machine that does other things as well


@pytest.mark.parametrize("name", HARMLESS)
def test_what_would_hurt_others_is_compiled_in_no_time(name: str) -> None:
    begun = time.monotonic()
    started(compiled(*HARMLESS[name]))
    assert time.monotonic() - begun < 0.8 + SLACK_S


def longest_stall_s(use: Callable[[Grammars], Awaitable[None]]) -> float:
    """The longest that the event loop stood still meanwhile; the shortest of three tries, on a machine that is busy."""

    async def watched(grammars: Grammars) -> float:
        longest_s = 0.0

        async def watch() -> None:
            nonlocal longest_s
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                longest_s = max(longest_s, time.monotonic() - before)

        await grammars.compile(GrammarSource("regex", "a"))
        watching = asyncio.create_task(watch())
        await use(grammars)
        watching.cancel()
        return longest_s

    return min(with_grammars(watched) for _ in range(3))


def test_the_event_loop_goes_on_while_grammars_are_compiled() -> None:
    sources = [GrammarSource(kind, text) for kind, text in [*HOSTILE.values(), *HARMLESS.values()]]
    sources.append(GrammarSource("json_schema", SLOW))

    async def use(grammars: Grammars) -> None:
        answers = await asyncio.gather(*map(grammars.compile, sources), return_exceptions=True)
        assert [answer for answer in answers if not isinstance(answer, (Grammar, GrammarError))] == []

    assert longest_stall_s(use) < 0.2


def test_who_waits_for_others_to_be_compiled_is_not_refused_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_file, "COMPILE_TIMEOUT_S", 0.25)
    monkeypatch.setattr(grammar_file, "_COMPILERS", 1)

    async def use(grammars: Grammars) -> None:
        await grammars.compile(GrammarSource("regex", "a"))
        waiting = [grammars.compile(GrammarSource("json_schema", SLOW)), grammars.compile(GrammarSource("regex", "b"))]
        refused, answer = await asyncio.gather(*waiting, return_exceptions=True)
        assert str(refused) == "it takes longer than 0.25 s to compile"
        assert isinstance(answer, Grammar)

    with_grammars(use)
