"""From token ids to text, one token at a time and never half a character. Knows two kinds of vocabulary: byte-level
(GPT-2, Llama 3, Qwen) and byte-fallback (SentencePiece as in Llama 2 and Mistral).

The library's own DecodeStream decodes everything twice per token, raises on some sequences, and keeps text back for as
long as it ends in a replacement character, even one that is really there.
"""

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

import tokenizers

from common.model_files import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer(Protocol):
    """Decodes the output of one job. All that it returned, joined, is the text of the tokens pushed."""

    def push(self, token: int) -> str:
        """The text that `token` completes; often one word, empty in the middle of a character."""

    def flush(self) -> str:
        """What is left at the end: an incomplete character as U+FFFD, or nothing."""


class TokenPieces:
    """What each token of a vocabulary contributes to a text; looked up once, then remembered."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises ModelError for decoders other than byte-level and byte-fallback."""
        self._backend = backend
        self._skipped = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
        steps = _decoder_steps(backend)
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            self._new: Callable[[Mapping[int, str]], Detokenizer] = self._byte_level
            self._plain_bytes = self._bytes
        elif "ByteFallback" in kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
            # Strip takes a space from the start of a whole text; an output continues its prompt, so nothing is taken.
            self._replacements = list(_replacements(steps))
            self._new = self._byte_fallback
            self._plain_bytes = self._fallback_bytes
        else:
            raise ModelError(f"the tokenizer decodes with {' + '.join(kinds) or 'nothing'}, which is not supported")
        self._known_bytes: dict[int, bytes] = {}
        self._known_text: dict[int, str | int | None] = {}

    def detokenizer(self, shown: Collection[str] = ()) -> Detokenizer:
        """Of special tokens it shows the `shown` ones only."""
        ids = {self._backend.token_to_id(token): token for token in shown}
        return self._new({id_: token for id_, token in ids.items() if id_ in self._skipped})

    def bytes_of(self, token: int) -> bytes:
        """What `token` is, special or not; nothing for ids beyond the vocabulary."""
        if token in self._skipped:
            return (self._backend.id_to_token(token) or "").encode()
        return self._plain_bytes(token)

    @property
    def special(self) -> list[str]:
        """The tokens that are no text."""
        return [token for token in map(self._backend.id_to_token, self._skipped) if token is not None]

    def _byte_level(self, shown: Mapping[int, str]) -> Detokenizer:
        as_bytes = {id_: token.encode() for id_, token in shown.items()}
        return _ByteLevel((lambda token: as_bytes.get(token) or self._bytes(token)) if shown else self._bytes)

    def _byte_fallback(self, shown: Mapping[int, str]) -> Detokenizer:
        return _ByteFallback((lambda token: shown.get(token) or self._text(token)) if shown else self._text)

    def _token(self, token: int) -> str | None:
        """None for special tokens, and for ids beyond the vocabulary (models pad their embeddings)."""
        return None if token in self._skipped else self._backend.id_to_token(token)

    def _bytes(self, token: int) -> bytes:
        piece = self._known_bytes.get(token)
        if piece is None:
            piece = self._known_bytes[token] = _byte_level_bytes(self._token(token) or "")
        return piece

    def _text(self, token: int) -> str | int | None:
        """Text, or the value of a byte token, or None where there is nothing."""
        if token not in self._known_text:
            self._known_text[token] = _fallback_piece(self._token(token), self._replacements)
        return self._known_text[token]

    def _fallback_bytes(self, token: int) -> bytes:
        piece = self._text(token)
        return bytes([piece]) if isinstance(piece, int) else (piece or "").encode()


class _ByteLevel:
    """Tokens are bytes; Python's own decoder replaces wrong ones exactly as the library does."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._rest = b""  # the beginning of a character

    def push(self, token: int) -> str:
        # As its incremental decoder does, without the calls in between.
        data = self._rest + self._piece(token)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._rest = data[used:]
        return text

    def flush(self) -> str:
        rest, self._rest = self._rest, b""
        return rest.decode(errors="replace")


class _ByteFallback:
    """Tokens are text, or single bytes, which are decoded as they come.

    The library makes a U+FFFD of every byte in a row of which one is wrong, such as the last one of an answer that was
    cut off; here only what is wrong is lost.
    """

    def __init__(self, piece: Callable[[int], str | int | None]) -> None:
        self._piece = piece
        self._rest = b""  # the beginning of a character

    def push(self, token: int) -> str:
        piece = self._piece(token)
        if piece is None:
            return ""
        if isinstance(piece, int):
            data = self._rest + bytes((piece,))
            text, used = codecs.utf_8_decode(data, "replace", False)
            self._rest = data[used:]
            return text
        return self.flush() + piece if self._rest else piece

    def flush(self) -> str:
        rest, self._rest = self._rest, b""
        return rest.decode(errors="replace")


def _decoder_steps(backend: tokenizers.Tokenizer) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    decoder = json.loads(backend.decoder.__getstate__())
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _replacements(steps: Iterable[dict[str, Any]]) -> Iterable[tuple[str, str]]:
    for step in steps:
        if step["type"] == "Replace":
            if "String" not in step["pattern"]:
                raise ModelError("the tokenizer's decoder replaces by a regular expression, which is not supported")
            yield step["pattern"]["String"], step["content"]


def _fallback_piece(token: str | None, replacements: Iterable[tuple[str, str]]) -> str | int | None:
    if token is None:
        return None
    for old, new in replacements:
        token = token.replace(old, new)
    byte = _BYTE_TOKEN.fullmatch(token)
    return int(byte[1], 16) if byte else token


def _byte_level_bytes(token: str) -> bytes:
    """The bytes that the characters of `token` stand for; its own UTF-8 where one of them stands for none."""
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's disguise of bytes as printable characters: printable ones stay, the others move to U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_characters()
