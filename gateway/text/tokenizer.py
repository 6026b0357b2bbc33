"""From text to token ids: a model's tokenizer, read from its directory. Knows nothing of chats, templates or HTTP."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from common.model_files import ModelError
from gateway.text.detokenizer import Detokenizer, TokenPieces

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_CHARACTERS_PER_TOKEN = 8  # hardly any text has as many
_CONFIG_FILES = ("special_tokens_map.json", "tokenizer_config.json")  # the later one wins


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens that a model's templates call by name, as text: `bos_token` and its like."""

    by_name: Mapping[str, str]

    @property
    def bos(self) -> str | None:
        return self.by_name.get("bos_token")


class Tokenizer:
    """Encodes text and hands out detokenizers. Never changes after construction: threads may share it."""

    def __init__(self, backend: tokenizers.Tokenizer, special: SpecialTokens) -> None:
        """Raises ModelError when the tokenizer's decoder is of a kind that cannot be run token by token."""
        backend.no_truncation()  # some checkpoints ship with a limit that cuts prompts silently
        backend.no_padding()
        self.special = special
        self._backend = backend
        self._pieces = TokenPieces(backend)
        self._added = {token.content: id_ for id_, token in backend.get_added_tokens_decoder().items()}
        self._longest = max(len(token.encode()) for token in backend.get_vocab())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens typed in the text become those tokens, as in transformers.

        `add_special_tokens` frames the text as the model expects a raw prompt (such as a BOS in front); texts from a
        chat template have that already.
        """
        # Not `encode`: that holds the interpreter, and with it all streams, for a second if the text is long.
        [encoding] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def fewest_tokens(self, text: str, enough: int) -> int:
        """A lower bound, got without encoding much more than `enough` tokens: megabytes take a second and more."""
        fewest, beginning = len(text) // self._longest, text[: _CHARACTERS_PER_TOKEN * enough]
        if fewest > enough or len(beginning) == len(text):
            return fewest
        # Where the text is cut, a token may become as many as it has bytes.
        return max(fewest, len(self.encode(beginning, add_special_tokens=False)) - self._longest)

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `tokens`."""
        return self.decode_all([tokens], skip_special_tokens=skip_special_tokens)[0]

    def decode_all(self, texts: Sequence[list[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """The texts of several."""
        # Not `decode`: that holds the interpreter, and with it all streams, for a second if the text is long.
        return self._backend.decode_batch([*texts], skip_special_tokens=skip_special_tokens)

    def bytes_of(self, token: int) -> bytes:
        """What one token is, special or not: perhaps only a part of a character."""
        return self._pieces.bytes_of(token)

    @property
    def special_tokens(self) -> list[str]:
        """The tokens that are no text."""
        return self._pieces.special

    def to_json(self) -> str:
        """The tokenizer as the library writes it to tokenizer.json."""
        return self._backend.to_str()

    def has_token(self, text: str) -> bool:
        """Is `text` one token?"""
        return self._backend.token_to_id(text) is not None

    def added_token(self, text: str) -> int | None:
        """The token that `text` is, if it is one that is matched before all else, as marks of templates are."""
        return self._added.get(text)

    def detokenizer(self, shown: Collection[str] = ()) -> Detokenizer:
        """A new incremental decoder for the output of one job. Of special tokens it shows the `shown` ones only."""
        return self._pieces.detokenizer(shown)


def load_tokenizer(directory: Path, *, prepend_bos: bool = False) -> Tokenizer:
    """The tokenizer of a Hugging Face directory: tokenizer.json, else vocab.json with merges.txt.

    `prepend_bos` holds for the second form, whose files do not say it: OPT wants its `</s>` before every prompt.
    Raises ModelError that says what to do when there is neither, or when they cannot be read.
    """
    special = SpecialTokens(_special_tokens(tokenizer_settings(directory)))
    if (directory / "tokenizer.json").is_file():
        return Tokenizer(_read(directory / "tokenizer.json"), special)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return Tokenizer(_byte_level_bpe(directory, special, prepend_bos), special)
    raise ModelError(
        f"{directory} has no tokenizer.json (nor vocab.json with merges.txt); on a machine with transformers write it: "
        f"AutoTokenizer.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
    )


def tokenizer_settings(directory: Path) -> dict[str, Any]:
    """What special_tokens_map.json and tokenizer_config.json say together. Raises ModelError on broken JSON."""
    settings: dict[str, Any] = {}
    for path in (directory / name for name in _CONFIG_FILES):
        if path.is_file():
            try:
                settings |= json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, TypeError) as error:
                raise ModelError(f"{path} is not readable JSON: {error}") from None
    return settings


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {name: settings.get(name) for name in SPECIAL_NAMES}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ModelError(f"{path} cannot be read as a tokenizer: {error}") from None


def _byte_level_bpe(directory: Path, special: SpecialTokens, prepend_bos: bool) -> tokenizers.Tokenizer:
    """What GPT-2 and OPT mean by vocab.json and merges.txt."""
    try:
        model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    except Exception as error:  # the library raises nothing more precise
        raise ModelError(f"{directory}: vocab.json and merges.txt cannot be read: {error}") from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in set(special.by_name.values())])
    if prepend_bos:
        prepend_token(backend, special.bos or "</s>")
    return backend


def prepend_token(backend: tokenizers.Tokenizer, token: str) -> None:
    """Make `backend` put `token` before every text that it frames. Raises ModelError when it does not know it."""
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise ModelError(f"the tokenizer does not know {token!r}, which the model wants before every prompt")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{token}:0 $A:0", pair=f"{token}:0 $A:0 $B:1", special_tokens=[(token, token_id)]
    )
