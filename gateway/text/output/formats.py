"""The ways in which models write tool calls, by name; and which of them a chat template teaches."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

from gateway.text.output import hermes, llama, mistral
from gateway.text.output.output_grammar import Notation
from gateway.text.output.source import Source

Grammar = Callable[[Source, frozenset[str]], Generator[None, None, None]]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write tool calls."""

    name: str
    read: Grammar  # all of an output after the reasoning, given the names of the functions that were offered
    notation: Notation
    marks: frozenset[str]  # that may be special tokens: they must be seen to be read
    signs: tuple[str, ...]  # one of them is in a template that teaches this format
    call_id: Callable[[str], str] | None = None  # what templates want for a client's id of a call


HERMES = ToolFormat(
    "hermes", hermes.hermes, hermes.NOTATION, frozenset({hermes.OPEN, hermes.CLOSE}), signs=(hermes.OPEN,)
)
LLAMA = ToolFormat(
    "llama",
    llama.llama,
    llama.NOTATION,
    frozenset({llama.PYTHON_TAG}),
    signs=(llama.PYTHON_TAG, '"parameters": dictionary'),
)
MISTRAL = ToolFormat(
    "mistral",
    mistral.mistral,
    mistral.LIST_NOTATION,
    frozenset({mistral.OPEN, mistral.CALL_ID, mistral.ARGUMENTS}),
    signs=(mistral.OPEN, "[AVAILABLE_TOOLS]"),
    call_id=mistral.call_id,
)
NEW_MISTRAL = replace(MISTRAL, notation=mistral.NAMED_NOTATION, signs=(mistral.ARGUMENTS,))  # reads the same
FORMATS = {tool_format.name: tool_format for tool_format in (HERMES, LLAMA, MISTRAL)}


def format_of(template: str) -> ToolFormat | None:
    """The format that a template teaches; None where it is none of ours."""
    known = (HERMES, LLAMA, NEW_MISTRAL, MISTRAL)
    return next((f for f in known if any(sign in template for sign in f.signs)), None)
