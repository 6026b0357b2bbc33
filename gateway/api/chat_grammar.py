"""The grammar that the output of a chat is held to: structured content, calls that must come, and thoughts before."""

from typing import Any

from gateway.api.errors import invalid_value
from gateway.api.schema import ChatRequest
from gateway.api.service import Service
from gateway.api.structured import Wish, asked_structure, compiled
from gateway.api.tools import Function, ToolUse
from gateway.text.grammar import Grammar, GrammarSource
from gateway.text.output.output_grammar import CallableFunction
from gateway.text.output.parser import OutputForm

_ANY_ARGUMENTS: dict[str, Any] = {"type": "object"}
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_OPENS = {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref"}
_OPENS |= {"allOf", "anyOf", "oneOf", "if", "dependentSchemas"}  # they may know further properties


async def chat_grammar(service: Service, body: ChatRequest, use: ToolUse, form: OutputForm) -> Grammar | None:
    """None: anything may come. Raises ApiError for what cannot be had, or cannot be compiled within limits.

    1. Calls that must come are all that comes, whatever structure content should have.
    2. Else structured content comes, or calls, if there may be any.
    3. Else text comes, and the calls in it are held to the schemas of strict functions.
    """
    try:
        wish = _wish(service, body, use, form)
    except RecursionError:  # as for any schema: decoded higher up the stack, and too deep to be encoded here
        raise invalid_value("tools are nested too deeply", "tools") from None
    return None if wish is None else await compiled(service, body, wish)


def _wish(service: Service, body: ChatRequest, use: ToolUse, form: OutputForm) -> Wish | None:
    grammar = service.text.output_grammar()
    structure = asked_structure(body)
    if use.must_call:
        return "tools", _lark(grammar.calls(_functions(use), form.thoughts, one_call=use.one_call))
    if structure is not None:
        param, content = structure
        if not use.functions:
            return param, content if form.thoughts == "none" else _lark(grammar.content(form.thoughts), content)
        if not grammar.has_trigger:
            raise invalid_value(f"this model cannot choose between {param} and tools", param)
        either = grammar.content_or_calls(_functions(use), form.thoughts, one_call=use.one_call)
        return param, _lark(either, content)
    if grammar.has_trigger and any(function.strict for function in use.functions):
        return "tools", _lark(grammar.text_with_calls(_functions(use, only_strict=True), form.thoughts))
    return None


def _lark(text: str, content: GrammarSource | None = None) -> GrammarSource:
    return GrammarSource("lark", text, content)


def _functions(use: ToolUse, *, only_strict: bool = False) -> list[CallableFunction]:
    """only_strict: other functions take any arguments."""
    return [
        CallableFunction(function.name, _ANY_ARGUMENTS if only_strict and not function.strict else _schema(function))
        for function in use.functions
    ]


def _schema(function: Function) -> dict[str, Any]:
    """Of the arguments. Where it leaves open whether others may come as well, none may: models would make them up."""
    if not function.parameters:
        return _NO_ARGUMENTS
    schema = {"type": "object", **function.parameters}
    return schema if "properties" not in schema or _OPENS & schema.keys() else schema | {"additionalProperties": False}
