"""How the two endpoints word the same answer, whole or in chunks."""

import secrets
import time
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from gateway.api.schema import (
    Answer,
    ChatChoice,
    ChatMessage,
    ChunkChoice,
    CompletionChoice,
    Delta,
    Finish,
    Traces,
    Usage,
)

_encode = msgspec.json.Encoder().encode


class Dialect(Protocol):
    """The records of one endpoint's choices."""

    endpoint: str  # for metrics
    id_prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, index: int, text: str, finish_reason: Finish) -> object:
        """A choice of a plain answer."""

    def opening(self, index: int) -> object | None:
        """The first chunk of a choice, where the endpoint has one without text."""

    def text(self, index: int, text: str) -> object:
        """A chunk with text."""

    def end(self, index: int, finish_reason: Finish) -> object:
        """The last chunk of a choice."""


class Chat:
    """/v1/chat/completions"""

    endpoint = "chat"
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, index: int, text: str, finish_reason: Finish) -> ChatChoice:
        return ChatChoice(index, ChatMessage(text), finish_reason)

    def opening(self, index: int) -> ChunkChoice:
        return ChunkChoice(index, Delta("assistant", ""))

    def text(self, index: int, text: str) -> ChunkChoice:
        return ChunkChoice(index, Delta(content=text))

    def end(self, index: int, finish_reason: Finish) -> ChunkChoice:
        return ChunkChoice(index, Delta(), finish_reason)


class Completion:
    """/v1/completions"""

    endpoint = "completions"
    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def whole(self, index: int, text: str, finish_reason: Finish) -> CompletionChoice:
        return CompletionChoice(index, text, finish_reason)

    def opening(self, index: int) -> None:
        return None

    def text(self, index: int, text: str) -> CompletionChoice:
        return CompletionChoice(index, text)

    def end(self, index: int, finish_reason: Finish) -> CompletionChoice:
        return CompletionChoice(index, "", finish_reason)


@dataclass(frozen=True, slots=True)
class Letterhead:
    """What is the same in all chunks of an answer."""

    id: str
    kind: str  # the `object` of the wire
    created: int
    model: str
    system_fingerprint: str

    @classmethod
    def new(cls, dialect: Dialect, model: str, fingerprint: str, *, stream: bool) -> "Letterhead":
        kind = dialect.chunk_object if stream else dialect.whole_object
        return cls(dialect.id_prefix + secrets.token_hex(12), kind, int(time.time()), model, fingerprint)

    def write(
        self, choices: list[object], usage: Usage | UnsetType | None = UNSET, x_sched: Traces | UnsetType = UNSET
    ) -> bytes:
        """The JSON of an answer, or of one chunk of it."""
        answer = Answer(
            id=self.id,
            object=self.kind,
            created=self.created,
            model=self.model,
            system_fingerprint=self.system_fingerprint,
            choices=choices,
            usage=usage,
            x_sched=x_sched,
        )
        return _encode(answer)
