"""The ways in which models write tool calls, by name; and which of them a chat template teaches."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

from gateway.text.output import hermes, llama, mistral
from gateway.text.output.source import Source

Grammar = Callable[[Source, frozenset[str]], Generator[None, None, None]]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write tool calls."""

    name: str
    read: Grammar  # all of an output after the reasoning, given the names of the functions that were offered
    marks: frozenset[str]  # that may be special tokens: they must be seen to be read
    signs: tuple[str, ...]  # one of them is in a template that teaches this format
    call_id: Callable[[str], str] | None = None  # what templates want for a client's id of a call


HERMES = ToolFormat("hermes", hermes.hermes, frozenset({hermes.OPEN, hermes.CLOSE}), ("<tool_call>",))
LLAMA = ToolFormat("llama", llama.llama, frozenset({llama.PYTHON_TAG}), ("<|python_tag|>", '"parameters": dictionary'))
MISTRAL = ToolFormat(
    "mistral",
    mistral.mistral,
    frozenset({mistral.OPEN, mistral.CALL_ID, mistral.ARGUMENTS}),
    ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
    mistral.call_id,
)
FORMATS = {tool_format.name: tool_format for tool_format in (HERMES, LLAMA, MISTRAL)}


def format_of(template: str) -> ToolFormat | None:
    """The format that a template teaches; None where it is none of ours."""
    return next((f for f in FORMATS.values() if any(sign in template for sign in f.signs)), None)
