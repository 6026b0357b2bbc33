"""How the two endpoints word the same answer, whole or in chunks."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from gateway.api.answers import (
    Answer,
    ChatChoice,
    ChatMessage,
    ChunkChoice,
    CompletionChoice,
    Delta,
    Finish,
    FunctionDelta,
    ToolCallDelta,
    Traces,
    Usage,
)
from gateway.api.logprob_records import chat_logprobs, completion_logprobs
from gateway.api.schema import CalledFunction, SamplingRequest, ToolCall
from gateway.generation import Generation
from gateway.text.output.parts import CallArguments, CallStart, Content, Part, Reasoning, calls_in, joined
from gateway.text.token_log import Said

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Details:
    """What a request wants to know of the tokens of its text."""

    logprobs: bool = False
    token_ids: bool = False
    prompts: Sequence[list[int]] = ()  # of each choice, with token_ids

    @classmethod
    def of(cls, body: SamplingRequest, jobs: Sequence[Generation]) -> "Details":
        """`jobs`: `body.num_jobs` for each prompt, of which `body.n` become choices."""
        wanted = jobs[:: body.num_jobs] if body.return_token_ids else ()
        prompts = [job.prompt for job in wanted for _ in range(body.n or 1)]
        return cls(body.num_logprobs is not None, bool(body.return_token_ids), prompts)

    def prompt_ids(self, index: int) -> list[int] | UnsetType:
        return self.prompts[index] if self.prompts else UNSET

    def ids(self, said: Sequence[Said]) -> list[int] | UnsetType:
        return [one.token for one in said] if self.token_ids else UNSET


class Dialect(Protocol):
    """The records of one endpoint's choices. `said`: the tokens that their text is made of, where that is asked for."""

    endpoint: str  # for metrics
    id_prefix: str
    whole_object: str
    chunk_object: str
    prompt_token_ids: list[int] | UnsetType  # where the answer says them, rather than its choices

    def whole(self, index: int, parts: list[Part], finish_reason: Finish, said: Sequence[Said] = ()) -> object:
        """A choice of a plain answer."""

    def opening(self, index: int) -> object | None:
        """The first chunk of a choice, where there is one without text."""

    def part(self, index: int, part: Part, said: Sequence[Said] = ()) -> object:
        """A chunk with more of a choice."""

    def end(self, index: int, finish_reason: Finish, said: Sequence[Said] = ()) -> object:
        """The last chunk of a choice."""


class Chat:
    """/v1/chat/completions"""

    endpoint = "chat"
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, details: Details = Details()) -> None:
        self._details = details
        self.prompt_token_ids = details.prompt_ids(0)

    def whole(self, index: int, parts: list[Part], finish_reason: Finish, said: Sequence[Said] = ()) -> ChatChoice:
        logprobs = chat_logprobs(said) if self._details.logprobs else None
        return ChatChoice(index, _message(parts), finish_reason, logprobs, self._details.ids(said))

    def opening(self, index: int) -> ChunkChoice:
        return ChunkChoice(index, Delta(role="assistant", content=""))

    def part(self, index: int, part: Part, said: Sequence[Said] = ()) -> ChunkChoice:
        return self._chunk(index, _delta(part), None, said)

    def end(self, index: int, finish_reason: Finish, said: Sequence[Said] = ()) -> ChunkChoice:
        return self._chunk(index, Delta(), finish_reason, said)

    def _chunk(self, index: int, delta: Delta, reason: Finish | None, said: Sequence[Said]) -> ChunkChoice:
        logprobs = chat_logprobs(said) if said and self._details.logprobs else None
        return ChunkChoice(index, delta, reason, logprobs, self._details.ids(said))


class Completion:
    """/v1/completions"""

    endpoint = "completions"
    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"
    prompt_token_ids: list[int] | UnsetType = UNSET

    def __init__(self, details: Details = Details()) -> None:
        self._details = details

    def whole(
        self, index: int, parts: list[Part], finish_reason: Finish, said: Sequence[Said] = ()
    ) -> CompletionChoice:
        logprobs = completion_logprobs(said) if self._details.logprobs else None
        text, ids, prompt = joined(parts, Content), self._details.ids(said), self._details.prompt_ids(index)
        return CompletionChoice(index, text, finish_reason, logprobs, ids, prompt)

    def opening(self, index: int) -> CompletionChoice | None:
        prompt = self._details.prompt_ids(index)
        return None if prompt is UNSET else CompletionChoice(index, "", token_ids=[], prompt_token_ids=prompt)

    def part(self, index: int, part: Part, said: Sequence[Said] = ()) -> CompletionChoice:
        assert isinstance(part, Content), part
        return self._chunk(index, part.text, None, said)

    def end(self, index: int, finish_reason: Finish, said: Sequence[Said] = ()) -> CompletionChoice:
        return self._chunk(index, "", finish_reason, said)

    def _chunk(self, index: int, text: str, reason: Finish | None, said: Sequence[Said]) -> CompletionChoice:
        logprobs = completion_logprobs(said) if said and self._details.logprobs else None
        return CompletionChoice(index, text, reason, logprobs, self._details.ids(said))


def _message(parts: list[Part]) -> ChatMessage:
    reasoning = joined(parts, Reasoning) or UNSET
    calls = [ToolCall(_new_call_id(), CalledFunction(call.name, call.arguments)) for call in calls_in(parts)]
    content = joined(parts, Content)
    return ChatMessage(
        content=None if calls and not content else content,
        reasoning=reasoning,
        reasoning_content=reasoning,
        tool_calls=calls or UNSET,
    )


def _delta(part: Part) -> Delta:
    match part:
        case Content(text):
            return Delta(content=text)
        case Reasoning(text):
            return Delta(reasoning=text, reasoning_content=text)
        case CallStart(index, name):
            return Delta(tool_calls=[ToolCallDelta(index, FunctionDelta("", name), _new_call_id(), "function")])
        case CallArguments(index, text):
            return Delta(tool_calls=[ToolCallDelta(index, FunctionDelta(text))])


def _new_call_id() -> str:
    return "call_" + secrets.token_hex(12)


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
        self,
        choices: list[object],
        usage: Usage | UnsetType | None = UNSET,
        x_sched: Traces | UnsetType = UNSET,
        prompt_token_ids: list[int] | UnsetType = UNSET,
    ) -> bytes:
        """The JSON of an answer, or of one chunk of it."""
        answer = Answer(
            id=self.id,
            object=self.kind,
            created=self.created,
            model=self.model,
            system_fingerprint=self.system_fingerprint,
            choices=choices,
            prompt_token_ids=prompt_token_ids,
            usage=usage,
            x_sched=x_sched,
        )
        return _encode(answer)
