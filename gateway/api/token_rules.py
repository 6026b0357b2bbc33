"""What a request says about single tokens, checked: which must not come, may come alone, come more often, or end it."""

from gateway.allowed_tokens import AllowedTokens
from gateway.api.errors import invalid_value
from gateway.api.schema import SamplingRequest
from gateway.api.service import Service

MAX_BIASES = 1024
MAX_STOP_TOKENS = 128
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARACTERS = 256


def check_token_ids(service: Service, tokens: list[int], param: str) -> None:
    """Raises ApiError for ids that are not the model's."""
    if tokens and not 0 <= min(tokens) <= max(tokens) < service.text.vocab_size:
        raise invalid_value(f"{param} has token ids that are not from 0 to {service.text.vocab_size - 1}", param)


def logit_bias(service: Service, request: SamplingRequest) -> tuple[tuple[int, float], ...]:
    """Raises ApiError for too many, and for ids that are not the model's."""
    biases = request.logit_bias or {}
    _check_number(len(biases), MAX_BIASES, "logit_bias")
    check_token_ids(service, [*biases], "logit_bias")
    return tuple(biases.items())


def stop_tokens(service: Service, request: SamplingRequest) -> frozenset[int]:
    """The client's own and, unless they are to be ignored, the model's. Raises ApiError as `logit_bias` does."""
    own = request.stop_token_ids or []
    _check_number(len(own), MAX_STOP_TOKENS, "stop_token_ids")
    check_token_ids(service, own, "stop_token_ids")
    return frozenset(own) if request.ignore_eos else service.text.stop_tokens | frozenset(own)


def bad_words(service: Service, request: SamplingRequest) -> tuple[tuple[int, ...], ...]:
    """Each word as tokens, at the beginning of a text and within one; not those that the model has no token for.

    Raises ApiError for too many or too long ones.
    """
    words = request.bad_words or []
    _check_number(len(words), MAX_BAD_WORDS, "bad_words")
    if not all(0 < len(word.strip()) <= MAX_BAD_WORD_CHARACTERS for word in words):
        raise invalid_value(f"a bad word needs 1 to {MAX_BAD_WORD_CHARACTERS} characters", "bad_words")
    encode = service.text.tokenizer.encode
    forms = [form for word in words for form in (word.strip(), " " + word.strip())]
    encoded = dict.fromkeys(tuple(encode(form, add_special_tokens=False)) for form in forms)
    return tuple(tokens for tokens in encoded if tokens and max(tokens) < service.text.vocab_size)


def allowed_tokens(service: Service, request: SamplingRequest) -> AllowedTokens | None:
    """Raises ApiError for none at all, and for ids that are not the model's."""
    tokens = request.allowed_token_ids
    if tokens is None:
        return None
    if not tokens:
        raise invalid_value("allowed_token_ids is an empty list", "allowed_token_ids")
    check_token_ids(service, tokens, "allowed_token_ids")
    return AllowedTokens(tokens, service.text.vocab_size)


def _check_number(number: int, most: int, param: str) -> None:
    if number > most:
        raise invalid_value(f"{param} has {number} entries; at most {most} are allowed", param)
