"""Calls as Llama 3 writes them: an answer that is nothing but `{"name": "f", "parameters": {...}}`, or several, with
`;` between them; or the same after `<|python_tag|>`.
"""

from collections.abc import Generator

from gateway.text.output.output_grammar import Notation
from gateway.text.output.source import Source
from gateway.text.output.tool_call import json_call

PYTHON_TAG = "<|python_tag|>"
NOTATION = Notation(
    opening="",
    before_name='{"name": "',
    before_arguments='", "parameters": ',
    after_arguments="}",
    between="; ",
    closing="",
)


def llama(source: Source, names: frozenset[str]) -> Generator[None, None, None]:
    """An answer may be JSON without being a call: only one with the name of a function is."""
    found = (yield from source.peek()) == "{"
    while found or (yield from source.content_until(PYTHON_TAG)):
        while (yield from json_call(source, names)):
            if not (yield from source.skip(";")):
                break
        found = False
