"""What requests say about single tokens, and how it reaches the job."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes_gateway import END, FakeEngine, byte_text_model
from prometheus_client import CollectorRegistry

from common.config import Config
from gateway.api import token_rules
from gateway.api.errors import ApiError
from gateway.api.schema import CompletionRequest, decode_completion
from gateway.api.service import Service
from gateway.metrics import HttpMetrics

SERVICE = Service(Config(), FakeEngine(), byte_text_model(), HttpMetrics(CollectorRegistry()))
VOCAB = SERVICE.text.vocab_size


def request(**fields: Any) -> CompletionRequest:
    return decode_completion(json.dumps({"prompt": "x"} | fields).encode())


def test_biases_are_of_token_ids() -> None:
    assert token_rules.logit_bias(SERVICE, request(logit_bias={"97": -100, "5": 1.5})) == ((97, -100.0), (5, 1.5))
    assert token_rules.logit_bias(SERVICE, request()) == ()


def test_stop_tokens_are_the_models_and_the_clients() -> None:
    assert token_rules.stop_tokens(SERVICE, request()) == {END}
    assert token_rules.stop_tokens(SERVICE, request(stop_token_ids=[5, 6])) == {END, 5, 6}
    assert token_rules.stop_tokens(SERVICE, request(stop_token_ids=[5], ignore_eos=True)) == {5}


def test_bad_words_are_bad_at_the_beginning_and_after_a_blank() -> None:
    assert token_rules.bad_words(SERVICE, request(bad_words=["no", " a "])) == (
        (110, 111),
        (32, 110, 111),
        (97,),
        (32, 97),
    )


def test_what_the_model_has_no_row_for_need_not_be_forbidden() -> None:
    # A fine-tune's tokenizer may have more tokens than the embedding: forbidding one would index beyond the logits.
    service = replace(SERVICE, text=replace(SERVICE.text, vocab_size=END))
    assert token_rules.bad_words(service, request(bad_words=["<|end|>", "a"])) == ((97,), (32, 97))


def test_allowed_tokens_are_the_bits_of_a_mask() -> None:
    allowed = token_rules.allowed_tokens(SERVICE, request(allowed_token_ids=[0, 9, VOCAB - 1]))
    assert allowed is not None
    assert allowed.ready
    assert allowed.wait(0.0)
    mask = allowed.mask()
    assert [token for token in range(VOCAB) if mask[token // 8] >> token % 8 & 1] == [0, 9, VOCAB - 1]
    assert token_rules.allowed_tokens(SERVICE, request()) is None


@pytest.mark.parametrize(
    ("rule", "field", "values"),
    [
        (token_rules.logit_bias, "logit_bias", [{"300": 1}, {"-1": 1}, {str(i): 1 for i in range(300_000)}]),
        (token_rules.stop_tokens, "stop_token_ids", [[-1], [300], [2**63], [0] * 129]),
        (token_rules.bad_words, "bad_words", [[""], [" "], ["x" * 257], ["x"] * 129]),
        (token_rules.allowed_tokens, "allowed_token_ids", [[], [-1], [300]]),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(rule: Callable[..., Any], field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ApiError) as caught:
            rule(SERVICE, request(**{field: value}))
        error = caught.value.body["error"]
        assert (error["code"], error["param"]) == ("invalid_value", field)
