"""Prompts as what stands before their continuation."""

import asyncio

import pytest
from fakes_gateway import END, byte_text_model

from gateway.text.echo import Echo


def echo(tokens: list[int], prompt: str | None) -> Echo:
    (echo,) = asyncio.run(byte_text_model().echoes([tokens], [prompt]))
    return echo


def test_every_token_has_the_text_that_it_completes() -> None:
    assert echo([*"aé".encode()], None) == Echo("aé", ((97, "a"), (0xC3, ""), (0xA9, "é")))


def test_half_a_character_at_the_end_is_replaced() -> None:
    assert echo([97, 0xC3], None) == Echo("a\ufffd", ((97, "a"), (0xC3, "\ufffd")))


@pytest.mark.parametrize(("prompt", "text"), [(None, "a<|end|>"), ("a<|end|>", "a<|end|>"), ("a", "a")])
def test_special_tokens_show_unless_nobody_wrote_them(prompt: str | None, text: str) -> None:
    assert echo([97, END], prompt).text == text
