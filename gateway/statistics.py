"""What the engine has done so far, in numbers."""

from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Counts since the start. Written by the engine thread, read by anybody."""

    iterations: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    preemptions: int = 0
    recomputes: int = 0
    cached_tokens: int = 0  # of prompts, whose KV was in the prefix cache
    offloaded_blocks: int = 0
    uploaded_blocks: int = 0
    busy_s: float = 0.0  # with a plan in flight
    scheduling_s: float = 0.0  # in which the scheduler planned and took results in
    compute_s: float = 0.0  # in which the last stage computed
    stalled_s: float = 0.0  # in which the last stage waited for copies
