"""How a model is talked to: by its chat template; how it writes tool calls, and does it think before it answers?"""

import logging
from dataclasses import dataclass
from functools import cached_property

from common.config import ReasoningMode, ToolFormatName
from common.model_files import ModelError
from gateway.text.conversation import Conversation
from gateway.text.output import reasoning
from gateway.text.output.formats import FORMATS, HERMES, ToolFormat, format_of
from gateway.text.output.parser import OutputForm
from gateway.text.template import ChatTemplate, TemplateRefusal
from gateway.text.tokenizer import Tokenizer
from gateway.text.tool_prompt import without_tools

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatForm:
    """What one model understands and writes."""

    template: ChatTemplate
    tool_format: ToolFormat
    describes_tools: bool  # we do, in the system's message: the template knows none, or a format that is none of ours
    reasons: bool

    def render(self, conversation: Conversation) -> str:
        """The prompt. Raises TemplateRefusal when the template cannot be applied to the conversation."""
        if self.describes_tools and conversation.uses_tools:
            conversation = without_tools(conversation, takes_system=self._takes_system)
        elif self.tool_format.call_id is not None:
            conversation = conversation.with_call_ids(self.tool_format.call_id)
        return self.template.render(conversation)

    def output_form(self, prompt: str, names: frozenset[str], *, one_call: bool) -> OutputForm:
        """What may be in the answer to `prompt`. `names`: of the functions that were offered."""
        return OutputForm(
            tool_format=self.tool_format if names else None,
            names=names,
            one_call=one_call,
            reasons=self.reasons,
            reasoning_opened=self.reasons and reasoning.opens(prompt),
        )

    @cached_property
    def _takes_system(self) -> bool:
        """Some templates refuse messages of a system."""
        messages = [{"role": role, "content": "Hi"} for role in ("system", "user")]
        try:
            self.template.render(Conversation(messages))
        except TemplateRefusal:
            return False
        return True


def chat_form(source: str, tokenizer: Tokenizer, tool_format: ToolFormatName, mode: ReasoningMode) -> ChatForm:
    """The form of a template's source. Raises ModelError when it is no template, or knows no tools to be formatted."""
    template = ChatTemplate(source, tokenizer.special)
    knows_think = reasoning.OPEN in source or reasoning.CLOSE in source or tokenizer.has_token(reasoning.OPEN)
    reasons = knows_think if mode == "auto" else mode == "on"
    known = _known_format(source, tool_format) if template.knows_tools else None
    if known is not None:
        return ChatForm(template, known, describes_tools=False, reasons=reasons)
    if tool_format not in ("auto", HERMES.name):
        raise ModelError(f"the model's chat template knows no tools; without that only {HERMES.name} calls can be read")
    if template.knows_tools:
        log.warning("the chat template's form of tool calls is not known; tools will be described in Hermes form")
    return ChatForm(template, HERMES, describes_tools=True, reasons=reasons)


def _known_format(source: str, tool_format: ToolFormatName) -> ToolFormat | None:
    taught = format_of(source)
    if tool_format == "auto" or (taught is not None and taught.name == tool_format):
        return taught
    return FORMATS[tool_format]
