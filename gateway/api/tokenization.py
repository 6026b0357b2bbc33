"""POST /tokenize and /detokenize: what text is in the model's tokens, and back. Starts no jobs."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.answers import Text, Tokens
from gateway.api.body import read_body
from gateway.api.chat import ChatEndpoint
from gateway.api.errors import invalid_value
from gateway.api.generations import MAX_CONTEXTS, prompt_too_long
from gateway.api.respond import json_response
from gateway.api.schema import TokenizeRequest, decode_chat, decode_detokenize, decode_tokenize
from gateway.api.service import Service
from gateway.api.token_rules import check_token_ids
from gateway.text.text_model import PromptTooLong


class TokenizationEndpoint:
    """Serves the tokenizer."""

    def __init__(self, service: Service, chat: ChatEndpoint) -> None:
        self._service = service
        self._chat = chat

    async def tokenize(self, request: Request) -> Response:
        """A body with messages is read as that of a chat completion, and has exactly the tokens of its prompt."""
        service = self._service
        body = await read_body(request, service.config.max_body_bytes)
        asked = decode_tokenize(body)
        service.check_model(asked.model)
        if asked.messages is not None:
            tokens = (await self._chat.prompt(decode_chat(body))).tokens
        else:
            tokens = await self._encode(asked)
        strings = await service.text.decode([[token] for token in tokens]) if asked.return_token_strs else None
        return json_response(Tokens(len(tokens), service.engine.max_context, tokens, strings))

    async def detokenize(self, request: Request) -> Response:
        """Special tokens are written out."""
        service = self._service
        body = decode_detokenize(await read_body(request, service.config.max_body_bytes))
        service.check_model(body.model)
        most = MAX_CONTEXTS * service.engine.max_context
        if len(body.tokens) > most:
            raise invalid_value(f"tokens has {len(body.tokens)} of them; at most {most} are allowed", "tokens")
        check_token_ids(service, body.tokens, "tokens")
        return json_response(Text(*await service.text.decode([body.tokens])))

    async def _encode(self, asked: TokenizeRequest) -> list[int]:
        service = self._service
        if asked.prompt is None:
            raise invalid_value("prompt is missing, and so is messages", "prompt")
        try:
            (tokens,) = await service.text.encode([asked.prompt], service.engine.max_context)
        except PromptTooLong as error:
            raise prompt_too_long(service, f"{error}", "prompt") from None
        if len(tokens) > service.engine.max_context:
            raise prompt_too_long(service, f"{len(tokens)} tokens", "prompt")
        return tokens
