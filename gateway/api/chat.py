"""POST /v1/chat/completions: messages in, the assistant's next message out."""

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import read_body
from gateway.api.chat_grammar import chat_grammar
from gateway.api.dialect import Chat, Details
from gateway.api.errors import ApiError, invalid_value
from gateway.api.generations import OutputLength, check_choices, generations, longest_prompt, prompt_too_long, truncated
from gateway.api.messages import for_template
from gateway.api.respond import respond
from gateway.api.schema import ChatRequest, TemplateOptions, decode_chat
from gateway.api.service import Service
from gateway.generation import Generation
from gateway.text.conversation import Conversation
from gateway.text.output.parser import OutputForm
from gateway.text.template import TemplateRefusal
from gateway.text.text_model import ChatPrompt, PromptTooLong


class ChatEndpoint:
    """Serves chat completions."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, request: Request) -> Response:
        service = self._service
        body = decode_chat(await read_body(request, service.config.max_body_bytes))
        service.check_model(body.model)
        check_choices(service, body, num_prompts=1)
        _check_details(body)
        jobs, form = await self.prepare(body, _output_length(body))
        dialect = Chat(Details.of(body, jobs))
        return await respond(service, request, body, jobs, dialect, form=form)

    async def prepare(self, body: ChatRequest, length: OutputLength) -> tuple[list[Generation], OutputForm]:
        """The jobs of a request, and what may be in their outputs. Raises ApiError."""
        service = self._service
        use = body.tool_use()
        prompt = await self.prompt(body)
        form = service.text.output_form(prompt, use.names, one_call=use.one_call)
        grammar = await chat_grammar(service, body, use, form)
        return generations(service, body, [prompt.tokens], length, grammar), form

    async def prompt(self, body: ChatRequest) -> ChatPrompt:
        """What the model is asked. Raises ApiError when it does not fit."""
        service = self._service
        if len(body.messages) > service.engine.max_context:  # each has a token at least; no need to look at them
            raise prompt_too_long(service, f"{len(body.messages)} messages", "messages")
        use = body.tool_use()
        continues = _continues(body)
        messages = for_template(body.messages)
        conversation = Conversation(messages, use.for_template(), _template_options(body), continues)
        try:
            prompt = await service.text.encode_chat(conversation, longest_prompt(service, body))
        except TemplateRefusal as refusal:
            raise ApiError(400, f"{refusal}", code="invalid_messages", param="messages") from None
        except PromptTooLong as error:
            raise prompt_too_long(service, f"{error}", "messages") from None
        return replace(prompt, tokens=truncated(service, body, prompt.tokens, "messages"))


def _output_length(body: ChatRequest) -> OutputLength:
    """By the new name or the old one; all that there is room for when neither is given."""
    if body.max_completion_tokens is not None:
        return OutputLength(body.max_completion_tokens, "max_completion_tokens", None)
    return OutputLength(body.max_tokens, "max_tokens", None)


def _template_options(body: ChatRequest) -> dict[str, bool]:
    """Only what was said: templates have defaults of their own."""
    asked = body.chat_template_kwargs or TemplateOptions()
    said = {"enable_thinking": asked.enable_thinking, "thinking": asked.thinking}
    options = dict.fromkeys(said, False) if body.reasoning_effort == "none" else {}
    if body.add_generation_prompt is False or body.continue_final_message:
        options["add_generation_prompt"] = False
    return options | {name: value for name, value in said.items() if value is not None}


def _continues(body: ChatRequest) -> bool:
    """Is the answer to go on with the last message? Raises ApiError where that makes no sense."""
    if not body.continue_final_message:
        return False
    if body.add_generation_prompt:
        raise invalid_value(
            "add_generation_prompt and continue_final_message exclude each other", "add_generation_prompt"
        )
    if body.messages[-1].role != "assistant" or not body.messages[-1].content:
        raise invalid_value("continue_final_message needs a final message of the assistant", "continue_final_message")
    return True


def _check_details(body: ChatRequest) -> None:
    if body.top_logprobs and not body.logprobs:
        raise invalid_value("top_logprobs needs logprobs to be true", "top_logprobs")
