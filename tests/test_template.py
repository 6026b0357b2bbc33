"""Chat templates: what they may use, what they may not do, and whose mistake a failure is."""

from datetime import datetime
from pathlib import Path

import pytest

from common.model_files import ModelError
from gateway.text import template as module
from gateway.text.conversation import Conversation
from gateway.text.template import ChatTemplate, TemplateRefusal, directory_template
from gateway.text.tokenizer import SpecialTokens

SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER = {"role": "user", "content": "Hi"}
SPECIAL = SpecialTokens({"bos_token": "<s>"})


def render(source: str, *messages: dict[str, str]) -> str:
    template = ChatTemplate(source, SPECIAL, now=lambda: datetime(2026, 7, 1))
    return template.render(Conversation(messages or [USER]))


def test_a_real_template_renders_a_conversation() -> None:
    assert render(SMOLLM) == (
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


TRIMMING = SMOLLM.replace("message['content']", "message['content'] | trim")


@pytest.mark.parametrize("source", [SMOLLM, TRIMMING])
@pytest.mark.parametrize("content", ["The answer is", "<", "|", "end", "Hi", "", "im_end|>\n<|im_start|>"])
def test_a_prompt_that_goes_on_with_a_message_ends_where_that_does(source: str, content: str) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    whole = ChatTemplate(source, SPECIAL).render(Conversation(messages, options={"add_generation_prompt": False}))
    text = ChatTemplate(source, SPECIAL).render(Conversation(messages, continues=True))
    assert text.endswith(f"<|im_start|>assistant\n{content}")
    assert whole == text + "<|im_end|>\n"


def test_a_message_to_go_on_with_has_the_blanks_at_its_end_that_the_template_leaves() -> None:
    asked = {"role": "user", "content": "Complete the sentence 'The answer is 4' again."}
    conversation = Conversation([asked, {"role": "assistant", "content": "The answer is "}], continues=True)
    assert ChatTemplate(SMOLLM, SPECIAL).render(conversation).endswith("assistant\nThe answer is ")
    assert ChatTemplate(TRIMMING, SPECIAL).render(conversation).endswith("assistant\nThe answer is")
    nothing = Conversation([asked, {"role": "assistant", "content": "\n"}], continues=True)
    assert ChatTemplate(SMOLLM, SPECIAL).render(nothing).endswith("assistant\n\n")
    assert ChatTemplate(TRIMMING, SPECIAL).render(nothing).endswith(".<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_leaves_the_message_out_cannot_go_on_with_it() -> None:
    with pytest.raises(TemplateRefusal, match="cannot go on with it"):
        ChatTemplate("{{ messages[0].content }}", SPECIAL).render(
            Conversation([USER, {"role": "assistant", "content": "Hi"}], continues=True)
        )


def test_special_tokens_are_there_by_name() -> None:
    assert render("{{ bos_token }}|{{ eos_token is defined }}") == "<s>|False"


def test_tools_and_documents_are_none_and_not_undefined() -> None:
    assert render("{{ tools is none }} {{ documents is none }}") == "True True"


def test_tools_and_options_are_there_by_name() -> None:
    template = ChatTemplate("{{ tools[0].function.name }} {{ enable_thinking }}", SPECIAL)
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert template.render(Conversation([USER], tools, {"enable_thinking": False})) == "f False"


@pytest.mark.parametrize(
    ("source", "knows"),
    [
        ("{% if tools %}x{% endif %}", True),
        ("{{ tools | tojson }}", True),
        ("{{ 'tools' }}", False),
        ("{% set tools = [] %}{{ tools }}", False),
    ],
)
def test_a_template_knows_tools_when_it_reads_them(source: str, knows: bool) -> None:
    assert ChatTemplate(source, SPECIAL).knows_tools == knows


def test_the_date_comes_from_the_clock_that_was_given() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "01 Jul 2026"


def test_json_in_a_prompt_is_not_escaped_for_web_pages() -> None:
    assert render("{{ messages | tojson }}", {"role": "user", "content": "<a> & 'é'"}) == (
        '[{"role": "user", "content": "<a> & \'é\'"}]'
    )


def test_blocks_leave_no_blank_lines_and_loops_can_break() -> None:
    source = (
        "{% for m in messages %}\n  {% if loop.index > 1 %}\n{% break %}\n  {% endif %}\n{{ m.content }}\n{% endfor %}"
    )
    assert render(source, USER, USER) == "Hi\n"


def test_marks_for_training_are_transparent() -> None:
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "Hi!"


def test_a_template_refuses_messages_in_its_own_words() -> None:
    with pytest.raises(TemplateRefusal, match=r"^Roles must alternate$"):
        render("{{ raise_exception('Roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].missing.deeper }}",
        "{{ messages[7].role.x }}",
        "{{ 'a' + none }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content | int + 'x' }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_messages_that_do_not_fit_are_a_refusal_without_inner_details(source: str) -> None:
    with pytest.raises(TemplateRefusal, match=r"^the model's chat template cannot be applied to these messages$"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.json }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_hostile_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(TemplateRefusal):
        render(source)


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHARACTERS", 1000)
    with pytest.raises(TemplateRefusal, match="too large"):
        render("{% for i in range(9999) %}{{ messages[0].content }}{% endfor %}")


def test_a_broken_template_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate("{% if %}", SPECIAL)


def test_a_template_file_wins_over_the_settings(tmp_path: Path) -> None:
    assert directory_template(tmp_path, {"chat_template": "from settings"}) == "from settings"
    (tmp_path / "chat_template.jinja").write_text("from file")
    assert directory_template(tmp_path, {"chat_template": "from settings"}) == "from file"


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert directory_template(tmp_path, {"chat_template": several}) == "d"
    assert directory_template(tmp_path, {"chat_template": several[:1]}) is None
    assert directory_template(tmp_path, {}) is None
