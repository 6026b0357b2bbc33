"""All that the gateway needs to know of a model to speak its language: tokenizer, chat template, names, limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import ReasoningMode, ToolFormatName
from common.gguf_file import read_gguf
from common.model_files import ModelFiles
from common.model_spec import ModelSpec
from gateway.heavy_work import MOST_INLINE, beside
from gateway.text.chat_form import ChatForm, chat_form
from gateway.text.conversation import Conversation
from gateway.text.echo import Echo, echo_of
from gateway.text.gguf_tokenizer import gguf_tokenizer
from gateway.text.output.output_grammar import OutputGrammar
from gateway.text.output.parser import OutputForm
from gateway.text.template import TemplateRefusal, directory_template
from gateway.text.tokenizer import Tokenizer, load_tokenizer, tokenizer_settings

_MESSAGE_CHARACTERS = 100  # what rendering one message costs, in characters to encode
_PROMPT_CHARACTERS = 20  # the same of beginning with another prompt


class PromptTooLong(ValueError):
    """A prompt that cannot fit; it was not encoded, or not all of it."""

    def __init__(self, fewest: int) -> None:
        super().__init__(f"at least {fewest} tokens")
        self.fewest = fewest


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered conversation."""

    text: str
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class TextModel:
    """A model's language."""

    name: str
    tokenizer: Tokenizer
    chat: ChatForm | None
    stop_tokens: frozenset[int]  # end an answer
    vocab_size: int  # rows of the embedding; token ids are below it

    async def encode(
        self, texts: Sequence[str], max_tokens: int, *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Token ids of raw prompts. Raises PromptTooLong when one certainly has more than `max_tokens`."""
        size = sum(len(text) + _PROMPT_CHARACTERS for text in texts)
        return await beside(
            size, lambda: [self._encode(text, max_tokens, add_special_tokens=add_special_tokens) for text in texts]
        )

    async def encode_chat(self, conversation: Conversation, max_tokens: int) -> ChatPrompt:
        """The prompt of a conversation. Raises TemplateRefusal, and PromptTooLong as `encode` does."""
        size = sum(
            len(message["content"]) + len(message.get("reasoning_content") or "") + _MESSAGE_CHARACTERS
            for message in conversation.messages
        )
        size += MOST_INLINE * conversation.uses_tools  # JSON of any size
        return await beside(size, lambda: self._encode_chat(conversation, max_tokens))

    def output_form(self, prompt: ChatPrompt, names: frozenset[str], *, one_call: bool) -> OutputForm:
        """What may be in the answer to `prompt`. `names`: of the functions that were offered."""
        assert self.chat is not None, prompt
        return self.chat.output_form(prompt.text, names, one_call=one_call)

    def output_grammar(self) -> OutputGrammar:
        """Writes grammars of outputs in this model's form."""
        assert self.chat is not None
        tool_format = self.chat.tool_format
        return OutputGrammar(tool_format.notation, tool_format.marks, self.tokenizer.added_token)

    async def echoes(self, encoded: Sequence[list[int]], prompts: Sequence[str | None]) -> list[Echo]:
        """Prompts token by token. Of a text, special tokens show that are written in it; without a text, all."""

        def work() -> list[Echo]:
            special = self.tokenizer.special_tokens
            shown = [[token for token in special if prompt is None or token in prompt] for prompt in prompts]
            return [
                echo_of(tokens, self.tokenizer.detokenizer(own)) for tokens, own in zip(encoded, shown, strict=True)
            ]

        return await beside(_size(encoded), work)

    async def decode(self, encoded: Sequence[list[int]]) -> list[str]:
        """The texts of tokens, special ones included."""
        return await beside(_size(encoded), lambda: self.tokenizer.decode_all(encoded, skip_special_tokens=False))

    def _encode(self, text: str, max_tokens: int, *, add_special_tokens: bool) -> list[int]:
        fewest = self.tokenizer.fewest_tokens(text, max_tokens)
        if fewest > max_tokens:
            raise PromptTooLong(fewest)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _encode_chat(self, conversation: Conversation, max_tokens: int) -> ChatPrompt:
        if self.chat is None:
            raise TemplateRefusal("this model has no chat template; use /v1/completions")
        text = self.chat.render(conversation)
        # The template writes all special tokens itself.
        return ChatPrompt(text, self._encode(text, max_tokens, add_special_tokens=False))


def _size(encoded: Sequence[list[int]]) -> int:
    return sum(len(tokens) + _PROMPT_CHARACTERS for tokens in encoded)


def load_text_model(
    files: ModelFiles,
    spec: ModelSpec,
    metadata: Mapping[str, Any] | None = None,
    *,
    tool_format: ToolFormatName = "auto",
    reasoning: ReasoningMode = "auto",
) -> TextModel:
    """Read tokenizer and template of a model. `metadata`: of the GGUF file, where somebody has read it already.

    Raises ModelError when the model's tokenizer or template is missing, damaged or not supported.
    """
    if files.format == "gguf":
        metadata = metadata if metadata is not None else read_gguf(files.path).metadata
        tokenizer = gguf_tokenizer(metadata)
        source = metadata.get("tokenizer.chat_template")
    else:
        tokenizer = load_tokenizer(files.path, prepend_bos=spec.family == "opt")
        source = directory_template(files.path, tokenizer_settings(files.path))
    chat = chat_form(source, tokenizer, tool_format, reasoning) if source else None
    # Some checkpoints name ends that their embedding has no row for.
    ends = frozenset(token for token in spec.eos_token_ids if 0 <= token < spec.vocab_size)
    return TextModel(files.name, tokenizer, chat, ends, spec.vocab_size)
