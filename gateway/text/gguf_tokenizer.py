"""A tokenizer from the metadata of a GGUF file. Knows the file's words for pre-tokenizers, and refuses others.

The conversion that transformers does loses how SmolLM splits digits; this one is compared with the original tokenizer.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from common.model_files import ModelError
from gateway.text.tokenizer import SPECIAL_NAMES, SpecialTokens, Tokenizer, prepend_token

Metadata = Mapping[str, Any]

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # kinds of token; the last two are matched before anything else is split
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's
_ID_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

# ---------------------------------------------------------------------------- how words are split before merging

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


# Each one splits the pieces that the one before it made.
_SPLITS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    # llama.cpp's, for files from before the names
    "default": [_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(_GPT_2), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]")],
    "gpt-2": [_split(_GPT_2)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _split(_GPT_2)],  # not \p{N}: Unicode versions differ
    "llama-bpe": [_split(_LLAMA_3)],
    "qwen2": [_split(_QWEN_2)],
}
_WHOLE_WORDS_FIRST = {"llama-bpe"}  # a word that is a token is that token, whatever the merges say
_BOS_BY_DEFAULT = {"llama-bpe"}
_NORMALIZED = {"qwen2"}  # to composed characters (NFC)

# ---------------------------------------------------------------------------- public


def gguf_tokenizer(metadata: Metadata) -> Tokenizer:
    """The tokenizer that `metadata` describes. Raises ModelError naming what is missing or not supported."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in _BUILDERS:
        raise ModelError(f"the GGUF file's tokenizer model {kind!r} is not supported ({' and '.join(_BUILDERS)} are)")
    try:
        backend = _BUILDERS[kind](metadata)
    except ModelError:
        raise
    except Exception as error:  # the library raises nothing more precise
        raise ModelError(f"the GGUF file's vocabulary cannot be used: {error}") from None
    return Tokenizer(backend, SpecialTokens(_special_tokens(metadata)))


# ---------------------------------------------------------------------------- private


def _byte_level(metadata: Metadata) -> tokenizers.Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise ModelError(f"the GGUF file's pre-tokenizer {pre!r} is not supported ({known} are)")
    tokens = _required(metadata, "tokens")
    merges = [_pair(merge) for merge in _required(metadata, "merges")]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST
    )
    backend = tokenizers.Tokenizer(model)
    if pre in _NORMALIZED:
        backend.normalizer = normalizers.NFC()
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*_SPLITS[pre], bytes_only])
    backend.decoder = decoders.ByteLevel()
    _frame(backend, metadata, bos_by_default=pre in _BOS_BY_DEFAULT)
    return backend


def _sentencepiece(metadata: Metadata) -> tokenizers.Tokenizer:
    """BPE as SentencePiece does it: of all neighbours, those whose union has the highest score merge first."""
    tokens = _required(metadata, "tokens")
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=_merges_by_score(tokens, _required(metadata, "scores"), _required(metadata, "token_type")),
        unk_token=tokens[_required(metadata, "unknown_token_id")],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    _frame(backend, metadata, bos_by_default=True)
    return backend


def _merges_by_score(tokens: list[str], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, best first. Equal scores: the longer left part first."""
    score_of = {token: score for token, score, kind in zip(tokens, scores, kinds, strict=True) if kind == _NORMAL}
    ways = [
        (score, i, token)
        for token, score in score_of.items()
        for i in range(1, len(token))
        if token[:i] in score_of and token[i:] in score_of
    ]
    return [(token[:i], token[i:]) for _, i, token in sorted(ways, reverse=True)]


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _frame(backend: tokenizers.Tokenizer, metadata: Metadata, *, bos_by_default: bool) -> None:
    """What is alike in all kinds: tokens that are matched whole, and a BOS before prompts."""
    tokens = _required(metadata, "tokens")
    _add_matched_tokens(backend, metadata)
    if metadata.get("tokenizer.ggml.add_bos_token", bos_by_default):
        prepend_token(backend, tokens[_required(metadata, "bos_token_id")])


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
