"""The records that cross between gateway and workers, and their codec. No pickle: msgpack arrays of known shape."""

from array import array
from collections.abc import Iterable
from typing import Final

import msgspec

# ---------------------------------------------------------------------------- gateway to workers


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How a token is drawn. The draw depends on these, the logits, `seed` and the token's position: on nothing else."""

    temperature: float  # 0: greedy
    top_p: float  # in (0, 1]
    top_k: int  # 0: all
    min_p: float  # in [0, 1]
    seed: int  # unsigned 64 bits


class Penalties(msgspec.Struct, frozen=True, array_like=True):
    """Penalties and the tokens that they look at."""

    presence: float
    frequency: float
    repetition: float  # multiplicative, 1: none; looks at prompt and output
    prompt: list[int]  # empty where repetition is 1
    output: list[int]


class Shaping(msgspec.Struct, frozen=True, array_like=True):
    """What bends a job's logits before the draw; sent only for jobs that have any of it, and only to the last stage."""

    penalties: Penalties | None = None
    bias: list[tuple[int, float]] = []  # (token id, what is added to its logit)
    forbidden: list[int] = []  # token ids that must not be drawn
    allowed: bytes = b""  # a bit per token, the lowest of the first byte first; empty: all may be drawn


UNSEEN = -1
"""In the place of a token that the iteration before will draw for the same job. Only one stage can know it in time."""


BLOCK_CODE: Final = "i"
"""Of block numbers that lie side by side, for array and memoryview: 32 bits, in the machine's order."""


def pack_blocks(blocks: Iterable[int]) -> bytes:
    """For `Entry.blocks`: a long context has thousands of them, and every iteration needs them all."""
    return array(BLOCK_CODE, blocks).tobytes()


def unpack_blocks(packed: bytes) -> "memoryview[int]":
    """The same numbers again, without a copy."""
    return memoryview(packed).cast(BLOCK_CODE)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One job's share of an iteration: `tokens` go into the slots from `start` on of the blocks in `blocks`."""

    job_id: int
    start: int  # tokens whose KV is in the blocks already
    tokens: list[int]  # ids; the last may be UNSEEN
    blocks: bytes  # packed; device blocks of the whole context, enough for start + len(tokens) slots
    sampling: Sampling | None  # None: no token is wanted (all but the last chunk of a prompt)
    shaping: Shaping | None = None
    logprobs: int | None = None  # how many of the most likely tokens to name beside the drawn one; None: no logprobs
    scored: list[int] = []  # what really follows each of `tokens`, where that is to have logprobs too


class Plan(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The order for one iteration: a batch, and KV copies that start as soon as a stage reads it.

    A copy names blocks, not jobs. Offloads read device blocks that nobody writes and uploads write device
    blocks that nobody owns yet, so copies need not wait for earlier iterations. A stage hands plan `seq` on to
    the next stage only when its own copies are done; a result therefore says that all stages are done.
    """

    seq: int
    epoch: int
    entries: list[Entry]
    offloads: list[tuple[int, int]]  # (device block, host block)
    uploads: list[tuple[int, int]]  # (host block, device block)
    copies_first: bool  # the batch needs the copies: compute waits for them (reactive strategy)


class Setup(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Makes ranks into a pipeline: who takes part, how large the pools are, where the store listens."""

    epoch: int
    stages: list[int]  # world ranks, first stage first
    num_device_blocks: int
    num_host_blocks: int
    store_host: str
    store_port: int  # 0: no store needed, one stage


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leave: finish what was received, then exit."""


# ---------------------------------------------------------------------------- workers to gateway


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """How far loading is."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Weights are loaded; what this stage can give."""

    hostname: str
    device: str  # for people: "cpu, 2 threads" or "cuda:0 NVIDIA H200"
    dtype: str
    fingerprint: str  # of what else decides how long iterations take: the worker's code, its kernels, its CPU
    block_bytes: int  # bytes of one KV block in this stage
    device_bytes: int  # KV bytes that fit on the device, were no other stage on it
    host_bytes: int  # KV bytes that fit in host memory
    store_port: int = 0  # of a store that this rank hosts, where the stages of a Setup can meet; 0: it hosts none
    gpu: str = ""  # which one, by its own id, whatever the number by which the rank knows it; empty: none


class Up(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Pools are allocated and links connected: plans of this epoch may come."""

    epoch: int


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities as the model gave them, before anything bends its logits."""

    drawn: float  # of the token that was drawn, or that really follows
    top: list[tuple[int, float]]  # (token id, logprob) of the most likely ones, best first


class Result(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to a plan, from the last stage."""

    seq: int
    tokens: list[int | None]  # per entry; None where no token was wanted, or where the logits were not finite
    stalled_s: float  # seconds in which the last stage waited for copies before or after computing
    compute_s: float  # seconds from the last stage's start of this iteration to its end
    logprobs: list[Logprobs | None] = []  # per entry; empty when no entry wanted any
    scores: list[list[Logprobs]] = []  # per entry, of its `scored`; empty when no entry has any


class Fault(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """This rank cannot go on; the text is for the operator."""

    text: str
    is_mistake: bool = False  # in model or configuration: another start would end alike


class LinkDown(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """This stage is well and waits for a new setup, but a neighbour cannot be reached; the text is for the operator."""

    text: str


Order = Plan | Setup | Stop
Report = Result | Progress | Ready | Up | Fault | LinkDown

_encoder = msgspec.msgpack.Encoder()
_order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(message: Order | Report) -> bytes:
    return _encoder.encode(message)


def decode_order(payload: bytes | memoryview) -> Order:
    """Raises msgspec.ValidationError when the payload is not an order."""
    return _order_decoder.decode(payload)


def decode_report(payload: bytes | memoryview) -> Report:
    """Raises msgspec.ValidationError when the payload is not a report."""
    return _report_decoder.decode(payload)
