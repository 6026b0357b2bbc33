"""The wire records of /v1/responses: items that come and go, the request, the response, the events of its stream."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.api.logprob_records import TokenLogprob
from gateway.api.schema import Count, JsonSchema, SamplingRequest, TemplateOptions
from gateway.api.tools import FunctionName

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

# ---------------------------------------------------------------------------- items


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an item: input_text, output_text, reasoning_text, refusal, ..."""

    type: str
    text: str | UnsetType = UNSET
    annotations: list[Any] | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType | None = UNSET


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversation is made of. Its type says which fields it has: messages have a role and content, calls a name
    and arguments, results of calls an output, thoughts content.
    """

    type: str = "message"
    id: str | UnsetType | None = UNSET
    status: ItemStatus | UnsetType | None = UNSET
    role: Literal["user", "assistant", "system", "developer"] | UnsetType = UNSET
    content: str | list[Content] | UnsetType | None = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    output: str | list[Content] | UnsetType = UNSET
    summary: list[Content] | UnsetType = UNSET


# ---------------------------------------------------------------------------- the request


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: JsonSchema | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    format: TextFormat | None = None


class ReasoningConfig(msgspec.Struct, frozen=True, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True):
    """Flat, unlike that of a chat."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolReference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A choice of one function by its name, or of some: then it has a mode and tools."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: "list[ToolReference]" = []


class ResponsesRequest(SamplingRequest, frozen=True, kw_only=True):
    """POST /v1/responses"""

    input: str | list[Item] | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolReference | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    # Known, not served: the endpoint refuses them.
    conversation: Any = None
    template: Any = msgspec.field(name="prompt", default=None)

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if "message.output_text.logprobs" in (self.include or []) else None


# ---------------------------------------------------------------------------- the response


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True):
    message: str
    code: Literal["server_error", "invalid_prompt"]  # the client knows these; the second is for all that it asked for


class Incomplete(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """A response as it stands: the request's own words are repeated in it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus = "in_progress"
    background: bool
    error: ResponseError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[Item] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningConfig
    store: bool
    temperature: float | None
    text: TextConfig
    tool_choice: Literal["none", "auto", "required"] | ToolReference
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a stream. Its type says which fields it has."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    item: Item | UnsetType = UNSET
    part: Content | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[TokenLogprob] | UnsetType = UNSET


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
