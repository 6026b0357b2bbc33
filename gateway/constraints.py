"""The constraints of running jobs, as the engine drives them: started, told every token, waited for a moment."""

import time
from collections.abc import Callable, Iterable

from gateway.generation import Failure, Generation
from gateway.scheduling.scheduler import Outcome

# What all masks of an iteration together may hold the next plan up; nearly all are there much sooner. A job whose mask
# takes longer sits the plan out.
GRACE_S = 0.002


class Constraints:
    """Knows no grammar. One thread uses it."""

    def __init__(self, on_ready: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`on_ready` is called, in any thread, when a job can run that could not."""
        self._on_ready = on_ready
        self._clock = clock

    def start(self, generation: Generation) -> None:
        if generation.constraint is not None:
            generation.constraint.start(self._on_ready)

    def advance(self, outcomes: Iterable[Outcome]) -> None:
        """Tell the constraints what their jobs said, and give them a moment to be ready again."""
        told = []
        for outcome in outcomes:
            constraint = outcome.job.generation.constraint
            if constraint is not None and outcome.token is not None and outcome.finish_reason is None:
                constraint.accept(outcome.token)
                told.append(constraint)
        deadline = self._clock() + GRACE_S
        for constraint in told:
            constraint.wait(max(0.0, deadline - self._clock()))


def why_no_token(generation: Generation) -> Failure:
    """What a client is told when no token could be drawn."""
    constraint = generation.constraint
    if constraint is not None and constraint.failure is not None:
        return Failure(constraint.failure, by_request=True)
    if constraint is not None or generation.bad_words or generation.min_tokens:
        return Failure("the request leaves no token that could come next", by_request=True)
    return Failure("the model produced values that are not finite for this request")
