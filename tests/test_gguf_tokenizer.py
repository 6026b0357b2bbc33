"""Tokenizers from GGUF metadata, compared with the originals token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from fakes_gateway import byte_backend
from hypothesis import given, settings
from hypothesis import strategies as st

from common.gguf_file import read_gguf
from common.model_files import ModelError, locate
from gateway.text.detokenizer import BYTE_OF_CHARACTER
from gateway.text.gguf_tokenizer import gguf_tokenizer
from gateway.text.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"
ORIGINAL = Path(__file__).parents[2] / "shared" / "reference" / "smollm2-tokenizer" / "tokenizer.json"
SNIPPETS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "  ",
    "\n\n",
    "\t",
    "123",
    "½",
    "٣",
    "'s",
    "ﷺ",
    "👩‍👩‍👧",
    "e\u0301",
]


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    try:
        return gguf_tokenizer(read_gguf(locate(None).path).metadata)
    except ModelError as error:
        pytest.skip(str(error))


def metadata(**fields: Any) -> dict[str, Any]:
    """A byte-level vocabulary of the bytes and two more tokens."""
    tokens = [*BYTE_OF_CHARACTER, "<s>", "<tool>"]
    standard = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": [], "bos_token_id": 256}
    standard["token_type"] = [1] * 256 + [3, 4]
    return {f"tokenizer.ggml.{name}": value for name, value in (standard | fields).items()}


def sentencepiece(**fields: Any) -> dict[str, Any]:
    """A vocabulary that SentencePiece made, with scores."""
    golden = json.loads((DATA / "sentencepiece_tokens.json").read_text())
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    arrays = {name: golden[name] for name in ("tokens", "scores", "token_type")}
    return {f"tokenizer.ggml.{name}": value for name, value in ({"model": "llama"} | arrays | ids | fields).items()}


def test_the_embedded_model_encodes_as_its_original(smollm: Tokenizer) -> None:
    for text, tokens in json.loads((DATA / "smollm2_tokens.json").read_text()):
        assert smollm.encode(text) == tokens, text


def test_the_lower_bound_of_a_long_text_never_exceeds_the_number_of_its_tokens(smollm: Tokenizer) -> None:
    pieces = st.one_of(st.text(max_size=12), st.sampled_from(SNIPPETS))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(pieces, min_size=1, max_size=6).map("".join), st.integers(1, 500), st.integers(1, 200))
    def check(text: str, times: int, enough: int) -> None:
        assert smollm.fewest_tokens(text * times, enough) <= len(smollm.encode(text * times))

    check()


def test_the_embedded_model_knows_its_special_tokens(smollm: Tokenizer) -> None:
    assert smollm.special.by_name == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }


@pytest.mark.skipif(not ORIGINAL.exists(), reason="the original tokenizer is not beside this checkout")
def test_any_text_encodes_and_decodes_as_in_the_original(smollm: Tokenizer) -> None:
    original = tokenizers.Tokenizer.from_file(str(ORIGINAL))
    pieces = st.one_of(st.text(max_size=12), st.sampled_from(SNIPPETS))

    @settings(max_examples=250, deadline=None, derandomize=True)
    @given(st.lists(pieces, max_size=6).map("".join))
    def check(text: str) -> None:
        expected = original.encode(text).ids
        assert smollm.encode(text) == expected
        assert smollm.decode(expected) == original.decode(expected)

    check()


@pytest.mark.skipif(not ORIGINAL.exists(), reason="the original tokenizer is not beside this checkout")
def test_every_digit_of_unicode_splits_as_in_the_original(smollm: Tokenizer) -> None:
    original = tokenizers.Tokenizer.from_file(str(ORIGINAL))
    numeric = [chr(c) for c in range(0x20000) if chr(c).isnumeric() or 0x11DE0 <= c <= 0x11DE9]
    text = "".join(f"a{c}{c} " for c in numeric)
    assert smollm.encode(text) == original.encode(text).ids


def test_a_sentencepiece_vocabulary_encodes_as_sentencepiece_does() -> None:
    golden = json.loads((DATA / "sentencepiece_tokens.json").read_text())
    tokenizer = gguf_tokenizer(sentencepiece())
    for text, tokens in golden["cases"]:
        assert tokenizer.encode(text) == [1, *tokens], text


def test_sentencepiece_without_a_space_in_front() -> None:
    tokens = sentencepiece()["tokenizer.ggml.tokens"]
    tokenizer = gguf_tokenizer(sentencepiece(add_space_prefix=False, add_bos_token=False))
    assert tokens[tokenizer.encode("the")[0]][0] != "▁"
    assert tokenizer.decode(tokenizer.encode(" the 漢")) == " the 漢"


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["a", " 1234", " .", "  ", " don", "'t"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", " .", "  ", " don", "'t"]),
        ("llama-bpe", ["a", " ", "123", "4", " .", "  ", " don", "'t"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", " .", "  ", " don", "'t"]),
        ("default", ["a", " ", "123", "4", " ", ".", "  ", " don", "'", "t"]),
    ],
)
def test_each_name_splits_words_its_own_way(pre: str, words: list[str]) -> None:
    # One merge list that joins everything: the tokens are then the words.
    text = "a 1234 .   don't"
    disguise = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    merges, tokens = _merges_for(["".join(disguise[b] for b in word.encode()) for word in words])
    tokenizer = gguf_tokenizer(metadata(pre=pre, tokens=[*BYTE_OF_CHARACTER, *tokens], merges=merges, token_type=[]))
    found = [tokenizer.decode([token]) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert found == words


def _merges_for(words: list[str]) -> tuple[list[str], list[str]]:
    """Merges that build every word from its left end, and the tokens that they make."""
    prefixes = dict.fromkeys(word[:i] for word in words for i in range(2, len(word) + 1))
    return [f"{prefix[:-1]} {prefix[-1]}" for prefix in prefixes], list(prefixes)


def test_control_tokens_vanish_from_text_and_user_defined_ones_do_not() -> None:
    tokenizer = gguf_tokenizer(metadata())
    assert tokenizer.encode("<s><tool>") == [256, 257]
    assert tokenizer.decode([256, 257]) == "<tool>"


def test_bos_comes_first_where_the_file_says_so_or_its_kind_implies_it() -> None:
    assert gguf_tokenizer(metadata(add_bos_token=True)).encode("")[:1] == [256]
    assert gguf_tokenizer(metadata(pre="llama-bpe")).encode("")[:1] == [256]
    assert gguf_tokenizer(metadata(pre="llama-bpe", add_bos_token=False)).encode("") == []
    assert gguf_tokenizer(metadata()).encode("") == []


def test_qwen_composes_characters_before_it_encodes() -> None:
    qwen = gguf_tokenizer(metadata(pre="qwen2"))
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "rwkv"}, "rwkv"),
        ({"model": None}, "None"),
        ({"pre": "tekken"}, "tekken"),
        ({"model": "llama"}, "scores"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        gguf_tokenizer(metadata(**fields))


def test_a_file_without_merges_is_refused() -> None:
    incomplete = metadata()
    del incomplete["tokenizer.ggml.merges"]
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.merges"):
        gguf_tokenizer(incomplete)


def test_merges_of_unknown_tokens_are_refused() -> None:
    with pytest.raises(ModelError, match="vocabulary"):
        gguf_tokenizer(metadata(merges=["zz zz"]))


def test_the_byte_tokenizer_of_the_tests_is_what_it_says() -> None:
    assert byte_backend().encode("é").ids == [0xC3, 0xA9]
