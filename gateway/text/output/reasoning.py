"""`<think>` … `</think>`: how models mark the text in which they think before they answer."""

from collections.abc import Generator

from gateway.text.output.source import Source

OPEN, CLOSE = "<think>", "</think>"


def think(source: Source, *, opened: bool) -> Generator[None, None, None]:
    """Read the thoughts at the beginning of an output, if there are any. `opened`: the prompt ends within them."""
    if (yield from source.skip(OPEN)) or opened:
        source.drop()
        if (yield from source.reasoning_until(CLOSE)):
            source.drop()


def opens(prompt: str) -> bool:
    """Does `prompt` end with the beginning of the model's thoughts?"""
    return prompt.rstrip().endswith(OPEN)
