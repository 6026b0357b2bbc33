"""Bends one job's logits before the draw: penalties, then bias, then tokens that must not come. Draws nothing."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.records import Penalties, Shaping
from worker.transfer import to_device


def shape(row: Tensor, shaping: Shaping) -> None:
    """Change `row`, fp32 [vocab], in place. Ids that the vocabulary does not have must not occur."""
    if shaping.penalties is not None:
        _penalize(row, shaping.penalties)
    if shaping.bias:
        tokens, amounts = zip(*shaping.bias, strict=True)
        row[to_device(np.array(tokens), row.device)] += to_device(np.array(amounts, dtype=np.float32), row.device)
    if shaping.forbidden:
        row.index_fill_(0, to_device(np.array(shaping.forbidden), row.device), -math.inf)
    if shaping.allowed:
        row.masked_fill_(to_device(_forbidden_by(shaping.allowed, len(row)), row.device), -math.inf)


def _penalize(row: Tensor, penalties: Penalties) -> None:
    """Repetition as in Hugging Face (over prompt and output), frequency and presence as in OpenAI's (over output)."""
    if penalties.repetition != 1.0:
        tokens = np.array(sorted({*penalties.prompt, *penalties.output}), dtype=np.int64)
        seen = to_device(tokens, row.device)
        scores = row[seen]
        row[seen] = torch.where(scores > 0, scores / penalties.repetition, scores * penalties.repetition)
    said, counts = np.unique(np.array(penalties.output, dtype=np.int64), return_counts=True)
    row[to_device(said, row.device)] -= penalties.frequency * to_device(counts, row.device) + penalties.presence


def _forbidden_by(allowed: bytes, vocab: int) -> NDArray[np.bool_]:
    """Bool [vocab]: the tokens whose bit is not set, and those that are beyond the bits."""
    bits = np.unpackbits(np.frombuffer(allowed, np.uint8), count=vocab, bitorder="little")  # padded with zeros
    return np.logical_not(bits)
