"""What requests say about tools, and what it comes to."""

import json
from typing import Any

import pytest

from gateway.api.errors import ApiError
from gateway.api.schema import decode_chat
from gateway.api.tools import MAX_TOOLS, ToolUse

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def use(**fields: Any) -> ToolUse:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool("f"), tool("g")]} | fields
    return decode_chat(json.dumps(body).encode()).tool_use()


def refused(**fields: Any) -> tuple[str, str]:
    with pytest.raises(ApiError) as caught:
        use(**fields)
    error = caught.value.body["error"]
    assert caught.value.status == 400
    assert error["type"] == "invalid_request_error"
    return error["code"], error["param"]


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        (None, ["f", "g"], False),
        ("auto", ["f", "g"], False),
        ("required", ["f", "g"], True),
        ("none", [], False),
        (named("g"), ["g"], True),
        (allowed("auto", "g", "f", "g"), ["g", "f"], False),
        (allowed("required", "f"), ["f"], True),
    ],
)
def test_a_choice_says_what_may_be_called_and_whether_it_must(choice: Any, names: list[str], must_call: bool) -> None:
    found = use(tool_choice=choice)
    assert ([function.name for function in found.functions], found.must_call) == (names, must_call)


def test_calls_are_parallel_unless_the_client_says_otherwise() -> None:
    assert [use(parallel_tool_calls=said).one_call for said in (None, True, False)] == [False, False, True]


@pytest.mark.parametrize("choice", ["required", named("f"), allowed("required", "f")])
def test_one_call_that_must_come_is_enough_unless_the_client_says_otherwise(choice: Any) -> None:
    said = (None, True, False)
    assert [use(tool_choice=choice, parallel_tool_calls=one).one_call for one in said] == [True, False, True]


@pytest.mark.parametrize("tools", [None, []])
@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_without_tools_nothing_is_called(tools: Any, choice: Any) -> None:
    assert use(tools=tools, tool_choice=choice).names == frozenset()


def test_templates_see_functions_as_the_hub_writes_them() -> None:
    tools = [tool("f", description="Does.", parameters=PARAMETERS, strict=True), tool("g")]
    assert use(tools=tools).for_template() == [
        tool("f", description="Does.", parameters=PARAMETERS),
        tool("g", parameters={"type": "object", "properties": {}}),
    ]


@pytest.mark.parametrize(
    ("tools", "code", "param"),
    [
        ("f", "invalid_value", "tools"),
        ([{"type": "custom", "custom": {"name": "f"}}], "unsupported_parameter", "tools[0].type"),
        ([{"type": "web_search"}], "unsupported_parameter", "tools[0].type"),
        ([{}], "invalid_value", "tools[0]"),
        ([{"type": "function"}], "invalid_value", "tools[0].function"),
        ([tool("f"), {"type": "function", "function": {}}], "invalid_value", "tools[1].function"),
        ([tool("")], "invalid_value", "tools[0].function.name"),
        ([tool("a b")], "invalid_value", "tools[0].function.name"),
        ([tool("x" * 65)], "invalid_value", "tools[0].function.name"),
        ([tool("f\n")], "invalid_value", "tools[0].function.name"),
        ([tool("f", parameters=[])], "invalid_value", "tools[0].function.parameters"),
        ([tool("f", strict="yes")], "invalid_value", "tools[0].function.strict"),
        ([tool("f"), tool("f")], "invalid_value", "tools"),
        ([tool(f"f{i}") for i in range(MAX_TOOLS + 1)], "invalid_value", "tools"),
    ],
)
def test_broken_tools_are_refused_by_place(tools: Any, code: str, param: str) -> None:
    assert refused(tools=tools) == (code, param)


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("maybe", "tool_choice"),
        (5, "tool_choice"),
        ({}, "tool_choice"),
        ({"type": "custom", "custom": {"name": "f"}}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice"),
        (named("h"), "tool_choice.function.name"),
        (allowed("auto", "h"), "tool_choice.allowed_tools.tools"),
        (allowed("auto"), "tool_choice.allowed_tools.tools"),
        (allowed("never", "f"), "tool_choice.allowed_tools.mode"),
    ],
)
def test_choices_that_make_no_sense_are_refused(choice: Any, param: str) -> None:
    assert refused(tool_choice=choice) == ("invalid_value", param)


@pytest.mark.parametrize("choice", ["required", named("f"), allowed("auto", "f")])
def test_a_choice_without_tools_is_refused(choice: Any) -> None:
    assert refused(tools=[], tool_choice=choice) == ("invalid_value", "tool_choice")
