"""POST /v1/chat/completions: messages in, the assistant's next message out."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import read_body
from gateway.api.dialect import Chat
from gateway.api.errors import ApiError, invalid_value, unsupported
from gateway.api.generations import OutputLength, check_choices, check_prompt, generations, prompt_too_long
from gateway.api.respond import respond
from gateway.api.schema import ChatRequest, Message, decode_chat
from gateway.api.service import Service
from gateway.text.template import TemplateRefusal
from gateway.text.text_model import PromptTooLong


class ChatEndpoint:
    """Serves chat completions."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._dialect = Chat()

    async def create(self, request: Request) -> Response:
        service = self._service
        body = decode_chat(await read_body(request, service.config.max_body_bytes))
        service.check_model(body.model)
        check_choices(service, body, num_prompts=1)
        prompt = await self.prompt(body)
        jobs = generations(service, body, [prompt], _output_length(body))
        return await respond(service, request, body, jobs, self._dialect)

    async def prompt(self, body: ChatRequest) -> list[int]:
        """The token ids of a conversation. Raises ApiError when they do not fit."""
        service = self._service
        messages = [_for_template(message, f"messages[{i}]") for i, message in enumerate(body.messages)]
        try:
            prompt = await service.text.encode_chat(messages, service.engine.max_context)
        except TemplateRefusal as refusal:
            raise ApiError(400, f"{refusal}", code="invalid_messages", param="messages") from None
        except PromptTooLong as error:
            raise prompt_too_long(service, f"{error}", "messages") from None
        check_prompt(service, prompt, "messages")
        return prompt


def _output_length(body: ChatRequest) -> OutputLength:
    """By the new name or the old one; all that there is room for when neither is given."""
    if body.max_completion_tokens is not None:
        return OutputLength(body.max_completion_tokens, "max_completion_tokens", None)
    return OutputLength(body.max_tokens, "max_tokens", None)


def _for_template(message: Message, param: str) -> dict[str, str]:
    """A message as chat templates expect it. Raises ApiError for content that is not text."""
    if message.role in ("tool", "function"):
        raise unsupported(f"{param}.role")
    for field in ("tool_calls", "function_call"):
        if getattr(message, field):
            raise unsupported(f"{param}.{field}")
    role = "system" if message.role == "developer" else message.role  # templates know no developers
    named = {} if message.name is None else {"name": message.name}
    return {"role": role, "content": _content(message, f"{param}.content"), **named}


def _content(message: Message, param: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise invalid_value(f"{param} is missing", param)
    for i, part in enumerate(message.content):
        if part.type != "text":
            raise unsupported(f"{param}[{i}].type")
        if part.text is None:
            raise invalid_value(f"{param}[{i}].text is missing", f"{param}[{i}].text")
    return "\n".join(part.text or "" for part in message.content)
