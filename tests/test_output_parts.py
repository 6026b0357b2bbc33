"""Parts of an output, put together again."""

from gateway.text.output.parts import Call, CallArguments, CallStart, Content, Part, Reasoning, calls_in, joined

PARTS: list[Part] = [
    Reasoning("Hm"),
    Content("Let "),
    Content("me see."),
    CallStart(0, "f"),
    CallArguments(0, '{"a"'),
    CallArguments(0, ": 1}"),
    CallStart(1, "g"),
]


def test_text_is_joined_by_its_kind() -> None:
    assert joined(PARTS, Content) == "Let me see."
    assert joined(PARTS, Reasoning) == "Hm"
    assert joined([], Content) == ""


def test_calls_are_put_together_in_their_order() -> None:
    assert calls_in(PARTS) == [Call("f", '{"a": 1}'), Call("g", "")]
