"""A constraint that is a list of tokens, the same at every position."""

from collections.abc import Callable, Iterable

import numpy as np


class AllowedTokens:
    """Implements `gateway.generation.Constraint`. Has no state: jobs may share it."""

    def __init__(self, tokens: Iterable[int], vocab_size: int) -> None:
        """`tokens` are of the vocabulary."""
        self.failure: str | None = None
        bits = np.zeros(vocab_size, np.uint8)
        bits[list(tokens)] = 1
        self._mask = np.packbits(bits, bitorder="little").tobytes()

    def start(self, on_ready: Callable[[], None]) -> None:
        on_ready()

    def accept(self, token: int) -> None:
        pass

    def wait(self, timeout_s: float) -> bool:
        return True

    @property
    def ready(self) -> bool:
        return True

    def mask(self) -> bytes:
        return self._mask
