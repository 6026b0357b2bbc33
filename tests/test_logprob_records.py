"""The words for tokens and their likelihoods; the rest is tested through the client, in test_chat and others."""

import pytest

from gateway.api.logprob_records import completion_logprobs, token_name
from gateway.text.token_log import Likelihood, Said


@pytest.mark.parametrize(
    ("piece", "name"),
    [
        (b"word", "word"),
        (" é".encode(), " é"),
        (b"", ""),
        (b"\xf0\x9f", "bytes:\\xf0\\x9f"),
        (b"a\x80", "bytes:\\x61\\x80"),
    ],
)
def test_what_is_no_text_by_itself_is_named_by_its_bytes(piece: bytes, name: str) -> None:
    assert token_name(piece) == name


def test_the_drawn_token_is_always_among_the_likeliest() -> None:
    said = Said(1, b"b", 3, Likelihood(b"b", -5.0), (Likelihood(b"a", -0.1),))
    assert completion_logprobs([said]).top_logprobs == [{"a": -0.1, "b": -5.0}]


def test_a_token_that_nothing_stands_before_has_no_likelihood() -> None:
    record = completion_logprobs([Said(1, b"b", 0)])
    assert (record.tokens, record.token_logprobs, record.top_logprobs) == (["b"], [None], [None])
