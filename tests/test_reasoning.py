"""Thoughts: at the beginning of an output or already within the prompt, without their margins."""

import pytest
from fakes_output import NAMES, read

from gateway.text.output.formats import HERMES
from gateway.text.output.parser import OutputForm, OutputParser
from gateway.text.output.parts import CallArguments, CallStart, Content, Part, Reasoning
from gateway.text.output.reasoning import opens


def reasoned(text: str, *, opened: bool = False) -> list[Part]:
    return read(OutputForm(reasons=True, reasoning_opened=opened), text)


def test_thoughts_come_apart_from_the_answer_and_without_margins() -> None:
    assert reasoned("<think>\nLet me\n\nthink.\n</think>\n\nYes. ") == [Reasoning("Let me\n\nthink."), Content("Yes. ")]
    assert reasoned("\n <think>Hm</think>Yes") == [Reasoning("Hm"), Content("Yes")]


def test_empty_thoughts_are_none() -> None:
    assert reasoned("<think>\n\n</think>\n\nYes") == [Content("Yes")]


def test_thoughts_that_the_prompt_has_opened_need_no_mark() -> None:
    assert reasoned("Hm</think>Yes", opened=True) == [Reasoning("Hm"), Content("Yes")]
    assert reasoned("<think>Hm</think>Yes", opened=True) == [Reasoning("Hm"), Content("Yes")]


def test_thoughts_that_never_end_are_all_there_is() -> None:
    assert reasoned("<think>Hm </thi") == [Reasoning("Hm </thi")]


@pytest.mark.parametrize("text", ["Yes", " Yes <think>no</think>", "<thin", "</think>", "  "])
def test_without_the_mark_at_the_beginning_all_is_content_to_the_character(text: str) -> None:
    assert reasoned(text) == [Content(text)]


def test_calls_are_read_after_the_thoughts_and_not_within() -> None:
    call = '<tool_call>{"name": "f"}</tool_call>'
    form = OutputForm(HERMES, names=NAMES, reasons=True)
    assert read(form, f"<think>{call}</think>\n{call}") == [
        Reasoning(call),
        CallStart(0, "f"),
        CallArguments(0, "{}"),
    ]


def test_white_space_within_thoughts_waits_for_what_follows_it() -> None:
    parser = OutputParser(OutputForm(reasons=True))
    seen = [parser.push(piece) for piece in ("<think>a ", "\n", "b\n", "</think>", "\nc")]
    assert seen == [[Reasoning("a")], [], [Reasoning(" \nb")], [], [Content("c")]]


def test_the_parser_tells_where_the_thoughts_end() -> None:
    parser = OutputParser(OutputForm(reasons=True))
    seen = [(parser.push(piece), parser.in_reasoning)[1] for piece in ("<th", "ink>", "a", "</think", ">", "b")]
    assert seen == [False, True, True, True, False, False]


def test_a_prompt_opens_thoughts_when_it_ends_with_the_mark() -> None:
    assert opens("<|im_start|>assistant\n<think>\n")
    assert not opens("<think>\n\n</think>\n\n")
    assert not opens("Say <think>!")
