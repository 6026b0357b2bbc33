"""Calls as Hermes and Qwen 2.5 and 3 write them: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`."""

from collections.abc import Generator

from gateway.text.output.output_grammar import Notation
from gateway.text.output.source import Source
from gateway.text.output.tool_call import json_call

OPEN, CLOSE = "<tool_call>", "</tool_call>"
NOTATION = Notation(
    opening="",
    before_name=f'{OPEN}\n{{"name": "',
    before_arguments='", "arguments": ',
    after_arguments=f"}}\n{CLOSE}",
    between="\n",
    closing="",
    trigger=OPEN,
)


def hermes(source: Source, names: frozenset[str]) -> Generator[None, None, None]:
    """Any text with calls between. Models forget the closing mark, and make up names: the client should hear of it."""
    while (yield from source.content_until(OPEN)):
        if (yield from json_call(source)) and (yield from source.skip(CLOSE)):
            source.drop()
