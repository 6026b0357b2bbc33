"""Log probabilities as the two endpoints word them, of tokens as the text is made of them."""

from collections.abc import Sequence

import msgspec

from gateway.text.token_log import Likelihood, Said


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    bytes: list[int]  # perhaps only a part of a character: all tokens' joined are the text
    logprob: float
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]  # None: the first token of an echoed prompt, which nothing stands before
    top_logprobs: list[dict[str, float] | None]  # of the most likely tokens, and of the one that was drawn
    text_offset: list[int]  # characters


def chat_logprobs(said: Sequence[Said]) -> ChatLogprobs:
    return ChatLogprobs([_token_logprob(one, one.drawn) for one in said if one.drawn is not None])


def completion_logprobs(said: Sequence[Said]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[token_name(one.piece) for one in said],
        token_logprobs=[None if one.drawn is None else one.drawn.logprob for one in said],
        top_logprobs=[None if one.drawn is None else _by_name([*one.top, one.drawn]) for one in said],
        text_offset=[one.offset for one in said],
    )


def token_name(piece: bytes) -> str:
    """A token as text; one that is no text by itself as OpenAI writes it: `bytes:\\xf0\\x9f`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _token_logprob(said: Said, drawn: Likelihood) -> TokenLogprob:
    top = [TopLogprob(token_name(one.piece), list(one.piece), one.logprob) for one in said.top]
    return TokenLogprob(token_name(said.piece), list(said.piece), drawn.logprob, top)


def _by_name(likelihoods: list[Likelihood]) -> dict[str, float]:
    return {token_name(one.piece): one.logprob for one in likelihoods}
