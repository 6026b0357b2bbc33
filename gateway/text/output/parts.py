"""The parts that an output is read into. Joined in order they are the whole output; no record of any endpoint."""

from collections.abc import Iterable

import msgspec


class Content(msgspec.Struct, frozen=True):
    """Text for the user."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """Text in which the model thinks before it answers."""

    text: str


class CallStart(msgspec.Struct, frozen=True):
    """The beginning of a tool call. Its arguments follow before anything else does."""

    index: int  # of the calls of this output, from 0
    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """A piece of the JSON object that call `index` passes to its function."""

    index: int
    text: str


Part = Content | Reasoning | CallStart | CallArguments


def joined(parts: Iterable[Part], kind: type[Content] | type[Reasoning]) -> str:
    """All text of one kind."""
    return "".join(part.text for part in parts if isinstance(part, kind))


class Call(msgspec.Struct, frozen=True):
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
