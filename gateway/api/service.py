"""What every endpoint works with, and what it asks of it: which model is meant, and how the answers are signed."""

import hashlib
import time
from dataclasses import dataclass, field
from functools import cached_property

from common.config import Config
from gateway.api.errors import ApiError
from gateway.generation import Engine
from gateway.metrics import HttpMetrics
from gateway.text.grammar import Grammars
from gateway.text.text_model import TextModel

_QUOTED_CHARACTERS = 100  # of a name that a client made up


@dataclass(frozen=True)
class Service:
    """One server's parts."""

    config: Config
    engine: Engine
    text: TextModel
    metrics: HttpMetrics
    started: int = field(default_factory=lambda: int(time.time()))  # unix seconds

    @property
    def served_name(self) -> str:
        return self.config.served_model_name or self.text.name

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the same seed may give another output."""
        config = self.config
        kept = f"{config.dtype} {config.weights} {config.kv_cache_dtype}"
        facts = f"{self.text.name} {kept} {config.pipeline_parallel}"
        return "fp_" + hashlib.blake2b(facts.encode(), digest_size=5).hexdigest()

    @cached_property
    def grammars(self) -> Grammars:
        """Of the model's tokenizer."""
        return Grammars(self.text.tokenizer, self.text.vocab_size, self.text.stop_tokens)

    def check_model(self, name: str | None) -> None:
        """Raises ApiError (404) unless `name` is this server's model: as served, or its own name. None: it is."""
        if name not in (None, self.served_name, self.text.name):
            quoted = str(name)[:_QUOTED_CHARACTERS]
            raise ApiError(
                404,
                f"The model `{quoted}` does not exist; this server has `{self.served_name}`.",
                code="model_not_found",
                param="model",
            )
