"""A tokenizer from the metadata of a GGUF file. Knows the file's words for pre-tokenizers, and refuses others.

The conversion that transformers does loses how SmolLM splits digits; this one is compared with the original tokenizer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from common.model_files import ModelError
from gateway.text.tokenizer import SPECIAL_NAMES, SpecialTokens, Tokenizer, prepend_token

Metadata = Mapping[str, Any]

_CONTROL, _USER_DEFINED = 3, 4  # kinds of token that are matched before anything else is split
_ID_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

# ---------------------------------------------------------------------------- how words are split before merging

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA_3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def _gpt_2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt_2()])


def _by_regex(pattern: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return lambda: pre_tokenizers.Sequence([split, bytes_only])


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _gpt_2,
    "smollm": _smollm,
    "llama-bpe": _by_regex(_LLAMA_3),
    "qwen2": _by_regex(_QWEN_2),
}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word that is a token is that token, whatever the merges say
_BOS_BY_DEFAULT = {"llama-bpe"}
_NORMALIZED = {"qwen2"}  # to composed characters (NFC)

# ---------------------------------------------------------------------------- public


def gguf_tokenizer(metadata: Metadata) -> Tokenizer:
    """The tokenizer that `metadata` describes. Raises ModelError naming what is missing or not supported."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(metadata)
    else:
        raise ModelError(f"the GGUF file's tokenizer model {kind!r} is not supported (gpt2 is)")
    return Tokenizer(backend, SpecialTokens(_special_tokens(metadata)))


# ---------------------------------------------------------------------------- private


def _byte_level(metadata: Metadata) -> tokenizers.Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise ModelError(f"the GGUF file's pre-tokenizer {pre!r} is not supported ({known} are)")
    tokens = _required(metadata, "tokens")
    merges = [_pair(merge) for merge in _required(metadata, "merges")]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST
    )
    backend = tokenizers.Tokenizer(model)
    if pre in _NORMALIZED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    _add_matched_tokens(backend, metadata)
    if metadata.get("tokenizer.ggml.add_bos_token", pre in _BOS_BY_DEFAULT):
        prepend_token(backend, tokens[_required(metadata, "bos_token_id")])
    return backend


def _add_matched_tokens(backend: tokenizers.Tokenizer, metadata: Metadata) -> None:
    tokens, kinds = _required(metadata, "tokens"), metadata.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, kinds, strict=False):
        if kind == _CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False)])
        elif kind == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])


def _special_tokens(metadata: Metadata) -> dict[str, str]:
    tokens = _required(metadata, "tokens")
    ids = {name: metadata.get(f"tokenizer.ggml.{_ID_NAMES[name]}") for name in SPECIAL_NAMES}
    return {name: tokens[id_] for name, id_ in ids.items() if id_ is not None and id_ < len(tokens)}


def _required(metadata: Metadata, name: str) -> Any:
    try:
        return metadata[f"tokenizer.ggml.{name}"]
    except KeyError:
        raise ModelError(f"the GGUF file has no tokenizer.ggml.{name}") from None


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
