"""Which format a chat template teaches."""

import pytest

from gateway.text.output.formats import FORMATS, format_of


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("For each call return a json object within <tool_call></tool_call> XML tags", "hermes"),
        ("{{- '<|python_tag|>' + tool_call.name }}", "llama"),
        (
            'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}',
            "llama",
        ),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
    ],
)
def test_a_template_is_known_by_its_marks(template: str, name: str) -> None:
    assert format_of(template) is FORMATS[name]


@pytest.mark.parametrize("template", ["{{ messages }}", "{{ '<function=' + tools[0].name + '>' }}"])
def test_other_templates_teach_none_of_ours(template: str) -> None:
    assert format_of(template) is None
