"""What rounding costs: next-token distributions of a model whose matrices and KV are rounded, beside exact ones."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.config import Config, ConfigError, KvDtype, Stored
from common.model_files import locate
from common.records import Entry, Plan, pack_blocks
from common.spec_reader import read_spec
from gateway.text.text_model import load_text_model
from launch.bench.stage import open_stage

_ROWS = 64  # distributions that are compared at once: they have a number for every token of the vocabulary
_FEWEST = 2  # tokens of a text: one that another follows


@dataclass(slots=True)
class _Keeping:
    """A stage's model that keeps what its layers made of the last batch."""

    model: Any  # StageModel: torch's types would load torch here
    hidden: Any = None

    def forward(self, x: Any, positions: Any, attention: Any) -> Any:
        self.hidden = self.model.forward(x, positions, attention)
        return self.hidden

    def logits(self, hidden: Any) -> Any:
        return self.model.logits(hidden)


@dataclass(slots=True)
class _Sums:
    """Over the tokens of all texts."""

    tokens: int = 0
    divergence: float = 0.0
    same: int = 0
    surprise: float = 0.0  # -log p of what follows, of the rounded model
    exact_surprise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityBench:
    """Measure what rounding costs: a model's next-token distributions on texts, rounded and exact.

    Reports the mean Kullback-Leibler divergence from the exact distributions, how often the most likely token is the
    same, and both perplexities. The last line of output is JSON.
    """

    texts: tuple[Path, ...]
    """Files to read; of each the beginning counts."""
    model: str | None = None
    """Model as for `serve`. Default: the embedded one."""
    weights: Stored = "int8"
    """How matrices are kept, as for `serve`."""
    kv_cache_dtype: KvDtype = "auto"
    """How keys and values are kept, as for `serve`."""
    tokens: int = 512
    """Tokens of each text."""

    def run(self) -> int:
        """Raises ConfigError."""
        files = locate(self.model)
        tokenizer = load_text_model(files, read_spec(files)).tokenizer
        prompts = [tokenizer.encode(_read(path))[: self.tokens] for path in self.texts]
        if not prompts or min(map(len, prompts)) < _FEWEST:
            raise ConfigError("bench quality needs texts of some words each (--texts), and some --tokens of them")
        rounded, exact = self._model(self.weights, self.kv_cache_dtype), self._model("exact", "exact")
        sums = _Sums()
        for prompt in tqdm(prompts, leave=False):
            rounded.read(prompt)
            exact.read(prompt)
            _compare(rounded, exact, prompt, sums)
        followed = sums.tokens - len(prompts)
        found = {
            "tokens": sums.tokens,
            "kl_divergence": sums.divergence / sums.tokens,
            "same_most_likely": sums.same / sums.tokens,
            "perplexity": math.exp(sums.surprise / followed),
            "exact_perplexity": math.exp(sums.exact_surprise / followed),
        }
        print(
            f"{sums.tokens} tokens: mean KL divergence {found['kl_divergence']:.5f}, the same most likely token "
            f"{100 * found['same_most_likely']:.1f} %, perplexity {found['perplexity']:.3f} "
            f"(exact {found['exact_perplexity']:.3f})"
        )
        kept = {"weights": self.weights, "kv_cache_dtype": self.kv_cache_dtype}
        print(json.dumps({"bench": "quality", **kept, **found}))
        return 0

    def _model(self, weights: Stored, kv_cache_dtype: KvDtype) -> "_Model":
        config = Config(
            model=self.model,
            weights=weights,
            kv_cache_dtype=kv_cache_dtype,
            device="cpu",
            max_batch_tokens=self.tokens,
            prefill_chunk_tokens=0,
            prefix_cache=False,
        )
        return _Model.open(config, self.tokens)


@dataclass(frozen=True, slots=True)
class _Model:
    runner: Any
    copies: Any
    kept: _Keeping
    blocks: bytes

    @classmethod
    def open(cls, config: Config, tokens: int) -> "_Model":
        blocks, kept = -(-tokens // config.block_tokens), _Keeping(None)

        def keep(model: Any) -> _Keeping:
            kept.model = model
            return kept

        return cls(*open_stage(config, blocks, keep), kept, pack_blocks(range(blocks)))

    def read(self, prompt: list[int]) -> None:
        entry = Entry(0, 0, prompt, self.blocks, None)
        self.runner.run(Plan(0, 0, [entry], [], [], copies_first=False), self.copies)

    def log_probabilities(self, first: int) -> Any:
        """Of what follows the last prompt's tokens from `first` on: [rows, vocabulary]."""
        return self.kept.logits(self.kept.hidden[first : first + _ROWS]).float().log_softmax(-1)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None


def _compare(rounded: _Model, exact: _Model, prompt: list[int], sums: _Sums) -> None:
    """Add what the distributions after every token of a prompt say that both have read."""
    for first in range(0, len(prompt), _ROWS):
        p, q = exact.log_probabilities(first), rounded.log_probabilities(first)
        sums.tokens += len(p)
        sums.divergence += float((p.exp() * (p - q)).sum())
        sums.same += int((p.argmax(-1) == q.argmax(-1)).sum())
        for row, token in enumerate(prompt[first + 1 : first + 1 + _ROWS]):
            sums.exact_surprise -= float(p[row, token])
            sums.surprise -= float(q[row, token])
