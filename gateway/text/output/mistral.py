"""Calls as Mistral's models write them: `[TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...]`; the newer ones
`[TOOL_CALLS]f[ARGS]{...}`, with a `[CALL_ID]` between or even without the `[ARGS]`.
"""

import hashlib
import string
from collections.abc import Generator

from gateway.text.output.output_grammar import Notation
from gateway.text.output.source import Malformed, Source
from gateway.text.output.tool_call import json_call

OPEN, CALL_ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
LIST_NOTATION = Notation(
    opening=f"{OPEN} [",
    before_name='{"name": "',
    before_arguments='", "arguments": ',
    after_arguments="}",
    between=", ",
    closing="]",
    trigger=OPEN,
)
NAMED_NOTATION = Notation(
    opening="",
    before_name=OPEN,
    before_arguments=ARGUMENTS,
    after_arguments="",
    between="",
    closing="",
    trigger=OPEN,
)

_WORD = frozenset(string.ascii_letters + string.digits + "_-")


def mistral(source: Source, names: frozenset[str]) -> Generator[None, None, None]:
    """Any text, then calls, in either form."""
    while (yield from source.content_until(OPEN)):
        if (yield from source.skip("[")):
            yield from _list(source)
        else:
            yield from _named_call(source)


def _list(source: Source) -> Generator[None, None, None]:
    while (yield from json_call(source)):
        if (yield from source.skip(",")):
            continue
        if (yield from source.skip("]")):
            source.drop()
        return


def _named_call(source: Source) -> Generator[None, None, None]:
    try:
        yield from source.skip_space()
        name = yield from source.word(_WORD, most=64)
        if (yield from source.skip(CALL_ID)):
            yield from source.skip_space()
            yield from source.word(_WORD, most=64)
        yield from source.skip(ARGUMENTS)
        if not name or (yield from source.peek()) != "{":
            raise Malformed
        source.begin_call(name)
        yield from source.coming_arguments()
        source.end_call()
    except Malformed:
        return


def call_id(id_: str) -> str:
    """Nine letters and digits for any id: the templates refuse others."""
    return hashlib.blake2b(id_.encode(), digest_size=5).hexdigest()[:9]
