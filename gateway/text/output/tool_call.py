"""Tool calls as JSON: `{"name": "f", "arguments": {...}}`, as all formats write them in one dress or another."""

import json
import re
from collections.abc import Generator

from gateway.text.output.source import Malformed, Source

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # OpenAI's rule

_ARGUMENTS = ("arguments", "parameters")


def json_call(source: Source, names: frozenset[str] | None = None) -> Generator[None, None, bool]:
    """Read a call. False where there is none, or where it breaks; what is left of it is content then.

    The call begins as soon as its name is known and its arguments come; from there on they are what was written, to the
    character. `names`: no other name is a call.
    """
    try:
        yield from _call(source, names)
    except Malformed:
        return False
    return True


def _call(source: Source, names: frozenset[str] | None) -> Generator[None, None, None]:
    """The members in any order; those that nobody knows are skipped. Raises Malformed."""
    name: str | None = None
    arguments = "null"  # for those that have to wait for the name
    has_begun = False
    yield from source.expect("{")
    while True:
        key = _string((yield from source.value()))
        yield from source.expect(":")
        if key == "name" and name is None:
            name = _name((yield from source.value()), names)
        elif key in _ARGUMENTS and name is not None and not has_begun and (yield from source.peek()) == "{":
            has_begun = True
            source.begin_call(name)
            yield from source.coming_arguments()
        else:
            value = yield from source.value()
            arguments = value if key in _ARGUMENTS else arguments
        if (yield from source.expect(",", "}")) == "}":
            break
    if name is None:
        raise Malformed
    if not has_begun:
        arguments = _as_object(arguments)
        source.begin_call(name)
        source.arguments(arguments)
    source.end_call()


def _string(value: str) -> str:
    if not value.startswith('"'):
        raise Malformed
    return str(json.loads(value))


def _name(value: str, names: frozenset[str] | None) -> str:
    name = _string(value)
    if not FUNCTION_NAME.fullmatch(name) or (names is not None and name not in names):
        raise Malformed
    return name


def _as_object(value: str) -> str:
    """The JSON object that `value` is, or is a string of; an empty one for null. Raises Malformed for all others."""
    if value.startswith("{"):
        return value
    try:
        inner = json.loads(value) if value.startswith('"') else {"null": "{}"}[value]
        if isinstance(json.loads(inner), dict) and inner.encode():
            return str(inner)
    except (ValueError, KeyError, RecursionError):
        pass
    raise Malformed
