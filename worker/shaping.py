"""Bends one job's logits before the draw: penalties, then bias, then tokens that must not come. Draws nothing."""

import math

import numpy as np
import torch
from torch import Tensor

from common.records import Penalties, Shaping


def shape(row: Tensor, shaping: Shaping) -> None:
    """Change `row`, fp32 [vocab], in place. Ids that the vocabulary does not have must not occur."""
    if shaping.penalties is not None:
        _penalize(row, shaping.penalties)
    if shaping.bias:
        tokens, amounts = zip(*shaping.bias, strict=True)
        row[torch.tensor(tokens, device=row.device)] += torch.tensor(amounts, device=row.device)
    if shaping.forbidden:
        row[torch.tensor(shaping.forbidden, device=row.device)] = -math.inf
    if shaping.allowed:
        row.masked_fill_(_forbidden_by(shaping.allowed, len(row)).to(row.device), -math.inf)


def _penalize(row: Tensor, penalties: Penalties) -> None:
    """Repetition as in Hugging Face (over prompt and output), frequency and presence as in OpenAI's (over output)."""
    if penalties.repetition != 1.0:
        seen = torch.tensor(sorted({*penalties.prompt, *penalties.output}), dtype=torch.int64, device=row.device)
        scores = row[seen]
        row[seen] = torch.where(scores > 0, scores / penalties.repetition, scores * penalties.repetition)
    output = torch.tensor(penalties.output, dtype=torch.int64, device=row.device)
    tokens, counts = output.unique(return_counts=True)  # type: ignore[no-untyped-call]
    row[tokens] -= penalties.frequency * counts + penalties.presence


def _forbidden_by(allowed: bytes, vocab: int) -> Tensor:
    """Bool [vocab]: the tokens whose bit is not set, and those that are beyond the bits."""
    bits = np.unpackbits(np.frombuffer(allowed, np.uint8), count=vocab, bitorder="little")  # padded with zeros
    return torch.from_numpy(bits == 0)
