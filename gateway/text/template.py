"""A model's chat template: messages in, prompt text out. The template comes with the model, never from a request, and
runs in Jinja's sandbox all the same: checkpoints are other people's files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.model_files import ModelError
from gateway.text.conversation import ChatMessage, Conversation
from gateway.text.tokenizer import SpecialTokens

MAX_CHARACTERS = 64 * 2**20  # of one rendered prompt; far above what any request can ask for honestly

# What a template can raise when messages are not what it expects, such as a sum of a text and nothing.
_MISFITS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


# Ends with a blank, see `_up_to_mark`. No message has it: it is of characters for private use.
_MARK = "\ue000the answer goes on here\ue001 "


class TemplateRefusal(ValueError):
    """The template cannot be applied to these messages; the message is for the client."""


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, special: SpecialTokens, *, now: Callable[[], datetime] = datetime.now) -> None:
        """Raises ModelError when `source` is not a template."""
        environment = _environment(now)
        try:
            self._template = environment.from_string(source)
            self.knows_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template cannot be compiled: {error}") from None
        # Templates ask whether tools and documents are none, not only whether they are defined.
        self._context = {"add_generation_prompt": True, "tools": None, "documents": None, **special.by_name}

    def render(self, conversation: Conversation) -> str:
        """The prompt for the next message of the assistant. Raises TemplateRefusal when the messages do not fit."""
        messages = _marked(conversation.messages) if conversation.continues else conversation.messages
        context = {**self._context, **conversation.options}
        if conversation.tools:
            context["tools"] = conversation.tools
        pieces: list[str] = []
        room = MAX_CHARACTERS
        try:
            for piece in self._template.generate(messages=messages, **context):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise TemplateRefusal("the rendered prompt is too large")
        except TemplateRefusal:
            raise
        except _MISFITS:
            raise TemplateRefusal("the model's chat template cannot be applied to these messages") from None
        text = "".join(pieces)
        return _up_to_mark(text, conversation.messages[-1]["content"]) if conversation.continues else text


def _marked(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The last message with a mark at its end. Looking for its content itself could find that elsewhere, too."""
    *others, last = messages
    return [*others, {**last, "content": f"{last['content']}{_MARK}"}]


def _up_to_mark(text: str, content: str) -> str:
    """Without what the template writes after the last message, such as the token of its end. `content`: of that.

    A template that takes blanks from messages' ends took that of the mark, and would have taken the content's own.
    """
    begin = text.rfind(_MARK.rstrip())
    if begin < 0:
        raise TemplateRefusal("the model's chat template does not write the final message: it cannot go on with it")
    if text.startswith(_MARK, begin):
        return text[:begin]
    blanks = content[len(content.rstrip()) :] if content.strip() else ""
    return text[:begin].removesuffix(blanks)


def directory_template(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """The source of a Hugging Face directory's template: its own file, else what tokenizer_config.json has."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = settings.get("chat_template")
    if isinstance(source, list):  # several, each with a name
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    return source if isinstance(source, str) else None


# ---------------------------------------------------------------------------- what templates expect to find


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


def _raise_exception(message: str) -> NoReturn:
    """What a template calls to refuse messages, in its author's words."""
    raise TemplateRefusal(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own, leaves `<`, `>`, `&` and quotes as they are: a prompt is not a web page."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
