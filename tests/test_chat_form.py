"""How models are talked to: which templates take tools, in which form, and what may be in the answers."""

import logging
from typing import Any

import pytest
from fakes_gateway import TEMPLATE, byte_backend

from common.config import ReasoningMode, ToolFormatName
from common.model_files import ModelError
from gateway.text.chat_form import ChatForm, chat_form
from gateway.text.conversation import Conversation
from gateway.text.output.formats import HERMES, LLAMA, MISTRAL
from gateway.text.template import TemplateRefusal
from gateway.text.tokenizer import SpecialTokens, Tokenizer

QWEN = "{% if tools %}<tools>{{ tools | tojson }}</tools><tool_call>{% endif %}{{ messages[-1].content }}"
MISTRALS = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}{{ messages[0].tool_calls[0].id }} {{ messages[1].tool_call_id }}"
STRANGE = "{% if tools %}<function={{ tools[0].function.name }}>{% endif %}{{ messages[0].content }}"
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
USER = {"role": "user", "content": "Hi"}
TURN = [
    {"role": "assistant", "content": "", "tool_calls": [{"id": "call_abc", "function": {"name": "f"}}]},
    {"role": "tool", "content": "1", "tool_call_id": "call_abc"},
]


def form(source: str, tool_format: ToolFormatName = "auto", mode: ReasoningMode = "auto", *tokens: str) -> ChatForm:
    backend = byte_backend()
    backend.add_tokens(list(tokens))
    return chat_form(source, Tokenizer(backend, SpecialTokens({})), tool_format, mode)


def test_a_template_that_takes_tools_gets_them() -> None:
    known = form(QWEN)
    assert (known.tool_format, known.describes_tools) == (HERMES, False)
    assert known.render(Conversation([USER], TOOLS)).startswith('<tools>[{"type": "function"')


def test_to_a_template_that_takes_none_they_are_described() -> None:
    plain = form(TEMPLATE)
    assert (plain.tool_format, plain.describes_tools) == (HERMES, True)
    assert plain.render(Conversation([USER], TOOLS)).startswith("system: You can call functions.")
    assert plain.render(Conversation([USER])) == "user: Hi\nassistant: "


def test_a_template_that_refuses_a_system_gets_the_description_from_the_user() -> None:
    picky = form("{% if messages[0].role == 'system' %}{{ raise_exception('No') }}{% endif %}" + TEMPLATE)
    assert picky.render(Conversation([USER], TOOLS)).startswith("user: You can call functions.")


def test_a_form_of_calls_that_nobody_here_reads_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        strange = form(STRANGE)
    assert (strange.tool_format, strange.describes_tools) == (HERMES, True)
    assert "You can call functions." in strange.render(Conversation([USER], TOOLS))
    assert "is not known" in caplog.text


def test_an_option_overrides_what_the_template_looks_like() -> None:
    assert form(QWEN, "llama").tool_format is LLAMA
    assert form(STRANGE, "mistral").tool_format is MISTRAL
    assert form(TEMPLATE, "hermes").describes_tools


def test_an_option_that_the_template_cannot_follow_is_said_at_the_start() -> None:
    with pytest.raises(ModelError, match="knows no tools"):
        form(TEMPLATE, "mistral")


def test_mistrals_templates_get_ids_of_nine_characters() -> None:
    first, second = form(MISTRALS).render(Conversation(TURN)).split()
    assert first == second
    assert len(first) == 9
    assert first.isalnum()


def test_other_templates_get_the_ids_that_clients_send() -> None:
    source = QWEN + "{{ messages[1].tool_call_id }}"
    assert form(source).render(Conversation(TURN)).endswith("call_abc")


def test_a_tool_that_the_template_cannot_write_is_a_refusal() -> None:
    with pytest.raises(TemplateRefusal):
        form(QWEN + "{{ tools[0].function.name.x.y }}").render(Conversation([USER], TOOLS))


@pytest.mark.parametrize(
    ("source", "mode", "tokens", "reasons"),
    [
        (TEMPLATE, "auto", (), False),
        (TEMPLATE, "auto", ("<think>",), True),
        (TEMPLATE + "{# </think> #}", "auto", (), True),
        (TEMPLATE, "on", (), True),
        (TEMPLATE, "off", ("<think>",), False),
    ],
)
def test_a_model_reasons_when_its_template_or_tokenizer_knows_the_marks(
    source: str, mode: ReasoningMode, tokens: tuple[str, ...], reasons: bool
) -> None:
    assert form(source, "auto", mode, *tokens).reasons == reasons


def test_an_answer_may_have_calls_only_of_functions_that_were_offered() -> None:
    found = form(QWEN).output_form("prompt", frozenset({"f"}), one_call=True)
    assert (found.tool_format, found.names, found.one_call) == (HERMES, {"f"}, True)
    assert form(QWEN).output_form("prompt", frozenset(), one_call=False).is_plain


def test_a_prompt_may_open_the_thoughts() -> None:
    thinker = form(TEMPLATE, "auto", "on")
    assert thinker.output_form("assistant: <think>\n", frozenset(), one_call=False).reasoning_opened
    assert not thinker.output_form("assistant: ", frozenset(), one_call=False).reasoning_opened
    assert form(TEMPLATE).output_form("assistant: <think>\n", frozenset(), one_call=False).is_plain
