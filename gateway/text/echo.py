"""A prompt that stands before its continuation, as text and as the tokens that the text is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.text.detokenizer import Detokenizer


@dataclass(frozen=True, slots=True)
class Echo:
    """What an answer begins with."""

    text: str
    pieces: tuple[tuple[int, str], ...] = ()  # tokens and the text that each completes, where tokens are asked for


def echo_of(prompt: Sequence[int], detokenizer: Detokenizer) -> Echo:
    """A prompt with its tokens: its text is what they decode to."""
    pieces = [(token, detokenizer.push(token)) for token in prompt]
    token, text = pieces.pop()
    pieces.append((token, text + detokenizer.flush()))
    return Echo("".join(text for _, text in pieces), tuple(pieces))
