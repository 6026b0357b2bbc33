"""Text from tokens, one by one: never half a character, and in the end exactly what decoding at once gives."""

import pytest
import tokenizers
from fakes_gateway import END, byte_backend
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_gguf_tokenizer import sentencepiece
from tokenizers import decoders

from common.model_files import ModelError
from gateway.text.detokenizer import TokenPieces
from gateway.text.gguf_tokenizer import gguf_tokenizer
from gateway.text.tokenizer import SpecialTokens, Tokenizer

BYTES = byte_backend()
PIECES = TokenPieces(BYTES)
SENTENCEPIECE = gguf_tokenizer(sentencepiece())
BYTE_TOKENS = [i for i, token in enumerate(sentencepiece()["tokenizer.ggml.tokens"]) if token.startswith("<0x")]


def increments(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*map(detokenizer.push, tokens), detokenizer.flush()]


def byte_increments(data: bytes | list[int]) -> list[str]:
    detokenizer = PIECES.detokenizer()
    return [*map(detokenizer.push, data), detokenizer.flush()]


def test_a_character_comes_with_its_last_byte() -> None:
    assert byte_increments("é😀".encode()) == ["", "é", "", "", "", "😀", ""]


def test_an_incomplete_character_is_replaced_at_the_end_only() -> None:
    assert byte_increments("a😀".encode()[:-1]) == ["a", "", "", "", "\ufffd"]


def test_a_broken_character_is_replaced_as_soon_as_it_is_certain() -> None:
    assert byte_increments(b"\xe6a\xff") == ["", "\ufffda", "\ufffd", ""]


def test_special_tokens_and_ids_beyond_the_vocabulary_are_silent() -> None:
    # Models pad their embeddings: ids without a token can be sampled.
    assert byte_increments([0xC3, END, 100_000, 0xA9]) == ["", "", "", "é", ""]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 300), max_size=30))
@example(list("👩‍👩‍👧 漢".encode()))
def test_byte_level_increments_join_to_the_full_text(tokens: list[int]) -> None:
    assert "".join(byte_increments(tokens)) == BYTES.decode(tokens)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=20))
def test_no_increment_of_valid_text_has_a_replacement(text: str) -> None:
    text = text.replace("\ufffd", "")
    assert "\ufffd" not in "".join(byte_increments(text.encode()))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 620) | st.sampled_from(BYTE_TOKENS), max_size=30))
def test_byte_fallback_increments_join_to_the_full_text(tokens: list[int]) -> None:
    text = "".join(increments(SENTENCEPIECE, tokens))
    special = {SENTENCEPIECE._backend.token_to_id(token) for token in SENTENCEPIECE.special_tokens}
    assert text == b"".join(SENTENCEPIECE.bytes_of(one) for one in tokens if one not in special).decode(
        errors="replace"
    )
    if "\ufffd" not in text:
        assert text == SENTENCEPIECE.decode(tokens)


def test_byte_fallback_keeps_the_space_that_continues_a_prompt() -> None:
    # As Llama 2 has it: decoding a whole text takes its first space away; an output is no whole text.
    backend = tokenizers.Tokenizer.from_str(SENTENCEPIECE._backend.to_str())
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    llama = Tokenizer(backend, SpecialTokens({}))
    tokens = llama.encode("the the", add_special_tokens=False)
    assert llama.decode(tokens) == "the the"
    assert "".join(increments(llama, tokens)) == " the the"


def test_characters_made_of_byte_tokens_come_one_by_one() -> None:
    tokens = SENTENCEPIECE.encode("😀é the", add_special_tokens=False)
    assert [text for text in increments(SENTENCEPIECE, tokens) if text] == [" ", "😀", "é", " the"]


def test_byte_tokens_that_are_cut_off_lose_their_last_character_only() -> None:
    tokens = SENTENCEPIECE.encode("éé😀", add_special_tokens=False)[:-1]
    assert "".join(increments(SENTENCEPIECE, tokens)) == " éé\ufffd"


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.Metaspace(), None])
def test_decoders_that_cannot_run_token_by_token_are_refused(decoder: decoders.Decoder | None) -> None:
    backend = byte_backend()
    backend.decoder = decoder
    with pytest.raises(ModelError, match="decodes with"):
        TokenPieces(backend)


def test_a_decoder_with_a_regular_expression_is_refused() -> None:
    backend = byte_backend()
    backend.decoder = decoders.Sequence([decoders.Replace(tokenizers.Regex("▁+"), " "), decoders.ByteFallback()])
    with pytest.raises(ModelError, match="regular expression"):
        TokenPieces(backend)


@pytest.mark.parametrize("backend", [BYTES, None])
def test_special_tokens_that_somebody_must_read_are_shown(backend: tokenizers.Tokenizer | None) -> None:
    tokenizer = Tokenizer(byte_backend(), SpecialTokens({})) if backend else SENTENCEPIECE
    mark = "<|end|>" if backend else "<s>"
    tokens = [*tokenizer.encode("é", add_special_tokens=False), *tokenizer.encode(mark, add_special_tokens=False)]
    shown = tokenizer.detokenizer({mark, "no token"})
    assert "".join(map(shown.push, tokens)) + shown.flush() == tokenizer.decode(tokens) + mark
    assert "".join(increments(tokenizer, tokens)) == tokenizer.decode(tokens)
