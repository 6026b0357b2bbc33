"""A job's share of a plan as a record: what to compute, and how to draw the next token. Decides nothing."""

from common.records import UNSEEN, Entry, Penalties, Shaping
from gateway.generation import Generation
from gateway.scheduling.job import Job
from gateway.scheduling.turn import Share


def entry_of(job: Job, share: Share) -> Entry:
    """The first of the job's pending tokens; with the last of them it draws. Its constraint is ready then."""
    generation, start, count = job.generation, job.computed + job.coming, share.tokens
    tokens, blocks = job.tokens(start, start + count), job.device_blocks.tobytes()
    if len(tokens) < count:
        tokens.append(UNSEEN)
    scored = generation.prompt[start + 1 :][:count] if generation.prompt_logprobs else []
    if not share.gives:
        return Entry(job.id, start, tokens, blocks, None, None, generation.logprobs, scored)
    shaping = _shaping(generation, job.output) if job.is_shaped else None
    return Entry(job.id, start, tokens, blocks, job.sampling, shaping, generation.logprobs, scored)


def _shaping(generation: Generation, output: list[int]) -> Shaping | None:
    """None for nearly all jobs: what is rare costs only those that have it."""
    shaping = Shaping(
        _penalties(generation, output),
        list(generation.logit_bias),
        _forbidden(generation, output),
        b"" if generation.constraint is None else generation.constraint.mask(),
    )
    return None if shaping == Shaping() else shaping


def _penalties(generation: Generation, output: list[int]) -> Penalties | None:
    presence, frequency, repetition = (
        generation.presence_penalty,
        generation.frequency_penalty,
        generation.repetition_penalty,
    )
    if not presence and not frequency and repetition == 1:
        return None
    # Only the repetition penalty looks at the prompt, which may be long.
    return Penalties(presence, frequency, repetition, generation.prompt if repetition != 1 else [], list(output))


def _forbidden(generation: Generation, output: list[int]) -> list[int]:
    """Stop tokens before the minimum is reached, and the last token of every bad word whose others were said."""
    forbidden = set(generation.stop_tokens) if len(output) < generation.min_tokens else set[int]()
    said = output[-1] if output else None
    for word in generation.bad_words:
        # First by one token: there may be hundreds of long words, for every job in every iteration.
        if len(word) == 1 or (word[-2] == said and tuple(output[1 - len(word) :]) == word[:-1]):
            forbidden.add(word[-1])
    return sorted(forbidden)
