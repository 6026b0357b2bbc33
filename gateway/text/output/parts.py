"""The parts that an output is read into. Joined in order they are the whole output; no record of any endpoint."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text in which the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The beginning of a tool call. Its arguments follow before anything else does."""

    index: int  # of the calls of this output, from 0
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON object that call `index` passes to its function."""

    index: int
    text: str


Part = Content | Reasoning | CallStart | CallArguments


def joined(parts: Iterable[Part], kind: type[Content] | type[Reasoning]) -> str:
    """All text of one kind."""
    return "".join(part.text for part in parts if isinstance(part, kind))


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call, put together."""

    name: str
    arguments: str  # a JSON object, unless the output ended within it


def calls_in(parts: Iterable[Part]) -> list[Call]:
    """All calls, in order."""
    names: list[str] = []
    arguments: list[list[str]] = []
    for part in parts:
        if isinstance(part, CallStart):
            names.append(part.name)
            arguments.append([])
        elif isinstance(part, CallArguments):
            arguments[part.index].append(part.text)
    return [Call(name, "".join(pieces)) for name, pieces in zip(names, arguments, strict=True)]
