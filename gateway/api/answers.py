"""What answers of the OpenAI API look like, whole and in chunks. Knows no request and no engine."""

from typing import Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from gateway.api.logprob_records import ChatLogprobs, CompletionLogprobs
from gateway.api.schema import ToolCall
from gateway.generation import SchedulingTrace

T = TypeVar("T")

Finish = Literal["stop", "length", "tool_calls"]


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int  # whose KV was there already


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


Traces = SchedulingTrace | list[SchedulingTrace | None] | None


class Answer(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What all answers and chunks are like; they differ in their choices."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[T]
    prompt_token_ids: list[int] | UnsetType = UNSET  # of chats; in streams of the first chunk
    usage: Usage | UnsetType | None = UNSET  # absent in streams without include_usage
    x_sched: Traces | UnsetType = UNSET


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # the same: clients know it by either name
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessage
    finish_reason: Finish
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class FunctionDelta(msgspec.Struct, frozen=True):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True):
    """The first of a call has all fields; of the others clients append the arguments."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: Finish | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    """Of a whole answer and of a chunk: /v1/completions makes no difference."""

    index: int
    text: str
    finish_reason: Finish | None = None
    logprobs: CompletionLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET  # in streams of the choice's first chunk


class Model(msgspec.Struct, frozen=True):
    id: str
    created: int
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "skipjoin"


class ModelList(msgspec.Struct, frozen=True):
    data: list[Model]
    object: Literal["list"] = "list"


class Tokens(msgspec.Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(msgspec.Struct, frozen=True):
    prompt: str


class Version(msgspec.Struct, frozen=True):
    version: str


class Status(msgspec.Struct, frozen=True):
    status: Literal["alive", "ready"]
