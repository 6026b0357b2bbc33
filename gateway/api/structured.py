"""Structured output as requests ask for it, in OpenAI's words or those of other servers. Compiles nothing itself."""

import msgspec

from gateway.api.errors import invalid_value
from gateway.api.schema import JsonSchema, ResponseFormat, SamplingRequest, StructuredOutputs
from gateway.api.service import Service
from gateway.text.grammar import Grammar, GrammarError, GrammarSource

_ANY_OBJECT = GrammarSource("json_schema", '{"type": "object"}')
# They forbid what may be all that a grammar allows.
_NOT_WITH_GRAMMARS = ("ignore_eos", "min_tokens", "bad_words", "allowed_token_ids")

Wish = tuple[str, GrammarSource]  # the field that says it, and what it says


async def asked_grammar(service: Service, request: SamplingRequest) -> Grammar | None:
    """What the output must look like; None: anything. Raises ApiError for what cannot be compiled within limits."""
    wish = asked_structure(request)
    return None if wish is None else await compiled(service, request, wish)


def asked_structure(request: SamplingRequest) -> Wish | None:
    """What the output must look like; None: anything. Raises ApiError for more than one wish."""
    wishes = [*_in_openais_words(request.response_format), *_in_other_words(request)]
    if len(wishes) > 1:
        param = wishes[0][0]
        raise invalid_value(f"{wishes[1][0]} asks for another structure than {param}; only one can be had", param)
    return wishes[0] if wishes else None


async def compiled(service: Service, request: SamplingRequest, wish: Wish) -> Grammar:
    """The grammar of `wish`. Raises ApiError that names what cannot be had, or not together with it."""
    param, source = wish
    for field in _NOT_WITH_GRAMMARS:
        if getattr(request, field):
            raise invalid_value(f"{field} cannot be had together with {param}", field)
    try:
        return await service.grammars.compile(source)
    except GrammarError as error:
        raise invalid_value(f"{param} cannot be used: {error}", param) from None


def _in_openais_words(asked: ResponseFormat | None) -> list[Wish]:
    if asked is None or asked.type == "text":
        return []
    if asked.type == "json_object":
        return [("response_format", _ANY_OBJECT)]
    if asked.json_schema is None or asked.json_schema.schema is None:
        raise invalid_value("response_format.json_schema.schema is missing", "response_format.json_schema.schema")
    return [("response_format.json_schema.schema", _schema_source(asked.json_schema.schema))]


def _in_other_words(request: SamplingRequest) -> list[Wish]:
    old = StructuredOutputs(
        json=request.guided_json,
        regex=request.guided_regex,
        choice=request.guided_choice,
        grammar=request.guided_grammar,
    )
    asked = request.structured_outputs or StructuredOutputs()
    return [*_wishes(asked, "structured_outputs."), *_wishes(old, "guided_")]


def _wishes(asked: StructuredOutputs, prefix: str) -> list[Wish]:
    wishes: list[Wish] = []
    if asked.json is not None:
        wishes.append((f"{prefix}json", _schema_source(asked.json)))
    if asked.json_object:
        wishes.append((f"{prefix}json_object", _ANY_OBJECT))
    if asked.regex is not None:
        wishes.append((f"{prefix}regex", GrammarSource("regex", asked.regex)))
    if asked.choice is not None:
        if not asked.choice:
            raise invalid_value(f"{prefix}choice is an empty list", f"{prefix}choice")
        wishes.append((f"{prefix}choice", GrammarSource("choice", msgspec.json.encode(asked.choice).decode())))
    if asked.grammar is not None:
        wishes.append((f"{prefix}grammar", GrammarSource("lark", asked.grammar)))
    return wishes


def _schema_source(schema: JsonSchema | str) -> GrammarSource:
    try:
        text = schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()
    except RecursionError:  # what could just be decoded may be too deep to be encoded, further down the stack
        raise invalid_value("the schema is nested too deeply", None) from None
    return GrammarSource("json_schema", text)
