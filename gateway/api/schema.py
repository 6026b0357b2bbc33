"""What requests of the OpenAI API may say, as far as that is served; `answers.py` has what answers look like.

Unknown fields are ignored. Known fields that ask for something this server does not do are listed in `REFUSED`, with
the values that ask for nothing. Knows no engine.
"""

from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.api.errors import ApiError, invalid_value, unsupported
from gateway.api.tools import Tool, ToolChoice, ToolUse, tool_use

MAX_CHOICES_PER_PROMPT = 128
MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 4096

Count = Annotated[int, Meta(ge=1, le=2**31)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]

# ---------------------------------------------------------------------------- requests


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # with include_usage: in every chunk


JsonSchema = dict[str, Any] | bool


class JsonSchemaFormat(msgspec.Struct, frozen=True):
    name: str | None = None
    description: str | None = None
    schema: JsonSchema | None = None
    strict: bool | None = None  # every schema is held to, strict or not


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """What other servers take beside `response_format`; one of them."""

    json: JsonSchema | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # in Lark's notation, as llguidance reads it


class SamplingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What both ways to ask for text have in common. None: the client left it to the server."""

    model: str | None = None
    max_tokens: Count | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31)] | None = None  # -1, as 0: all
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-3, le=10)] | None = None  # logits over less may overflow
    ignore_eos: bool | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    priority: Annotated[int, Meta(ge=0, le=2**31)] | None = None  # who asks may step back, not push ahead
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncate_prompt_tokens: Count | None = None  # how many to keep of the prompt's tokens, the last ones
    # Known, not served: looked at by `refuse_unsupported` alone.
    prompt_embeds: Any = None

    def stop_strings(self) -> list[str]:
        """Raises ApiError for empty, too long or too many ones."""
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(strings) > MAX_STOP_STRINGS:
            raise invalid_value(f"stop has {len(strings)} strings; at most {MAX_STOP_STRINGS} are allowed", "stop")
        if not all(0 < len(string) <= MAX_STOP_CHARACTERS for string in strings):
            raise invalid_value(f"a stop string needs 1 to {MAX_STOP_CHARACTERS} characters", "stop")
        return strings

    @property
    def wants_usage_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_always(self) -> bool:
        return self.wants_usage_chunk and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most likely tokens to name for each one that is drawn; None: no logprobs."""
        return None

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens are to have logprobs, too."""
        return False

    @property
    def wants_tokens(self) -> bool:
        """Whether the answer says what tokens its text is made of."""
        return self.num_logprobs is not None or bool(self.return_token_ids)

    @property
    def num_jobs(self) -> int:
        """For each prompt."""
        return self.n or 1


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str  # a JSON object


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None  # the same
    function_call: Any = None


class TemplateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may tell the chat template: no more than whether to think, in the words of two families."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatRequest(SamplingRequest, frozen=True, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None  # of "none" the template is told
    chat_template_kwargs: TemplateOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # Known, not served.
    functions: Any = None
    function_call: Any = None
    chat_template: Any = None

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def tool_use(self) -> ToolUse:
        """Raises ApiError for tools and choices that make no sense."""
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)


class CompletionRequest(SamplingRequest, frozen=True, kw_only=True):
    """POST /v1/completions"""

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=0, le=2**31)] | None = None  # 0: with echo, only the prompt is wanted
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # OpenAI takes 5 at most
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES_PER_PROMPT)] | None = None
    add_special_tokens: bool | None = None
    # Known, not served.
    suffix: Any = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo) and self.logprobs is not None

    @property
    def num_jobs(self) -> int:
        return max(self.n or 1, self.best_of or 1)


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: a raw prompt, or all that a chat completion may say."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]


REFUSED: dict[str, tuple[Any, ...]] = {
    "prompt_embeds": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "chat_template": (),
    "suffix": ("",),
}


def refuse_unsupported(request: msgspec.Struct) -> None:
    """Raises ApiError for the first field that asks for what this server does not do."""
    for field in request.__struct_fields__:
        if field not in REFUSED:
            continue
        value = getattr(request, field)
        # False and 0 are equal in Python, but `logprobs: 0` asks for something and `logprobs: false` does not.
        harmless = value is None or any(type(value) is type(nothing) and value == nothing for nothing in REFUSED[field])
        if not harmless:
            raise unsupported(field)


# ---------------------------------------------------------------------------- decoding


def decode_chat(body: bytes) -> ChatRequest:
    """Raises ApiError for anything but a request that can be served."""
    request: ChatRequest = decode(body, ChatRequest)
    return request


def decode_completion(body: bytes) -> CompletionRequest:
    """Raises ApiError for anything but a request that can be served."""
    request: CompletionRequest = decode(body, CompletionRequest)
    return request


def decode_tokenize(body: bytes) -> TokenizeRequest:
    """Raises ApiError for anything but a request that can be served."""
    request: TokenizeRequest = decode(body, TokenizeRequest)
    return request


def decode_detokenize(body: bytes) -> DetokenizeRequest:
    """Raises ApiError for anything but a request that can be served."""
    request: DetokenizeRequest = decode(body, DetokenizeRequest)
    return request


def decode(body: bytes, kind: Any) -> Any:
    """A record of `kind`. Raises ApiError for anything but a request that can be served."""
    try:
        body.decode()  # fields that are skipped are not checked otherwise
        request = _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        message, param = _explain(str(error))
        raise invalid_value(message, param) from None
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8.", code="invalid_json") from None
    except msgspec.DecodeError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None
    refuse_unsupported(request)
    return request


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _explain(message: str) -> tuple[str, str | None]:
    """msgspec's "Expected `int` >= 1 - at `$.n`" as OpenAI's message and param."""
    problem, _, place = message.partition(" - at `")  # of a dict's key: "key` in `$.logit_bias`"
    param = place.rpartition("$")[2].rstrip("`").lstrip(".") or None
    if param is None and problem.startswith("Object missing required field `"):
        param = problem.removeprefix("Object missing required field `").rstrip("`")
        return f"{param} is missing.", param
    return f"{param or 'The body'}: {problem[:1].lower()}{problem[1:]}.", param
