"""The choices of one answer in the making: tokens in from the engine's streams, the parts of their text out.

Streamed and plain answers, chat and completions all read the same choices. Knows no JSON.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import aclosing
from itertools import repeat

from msgspec import UNSET

from common.records import Logprobs
from gateway.api.answers import (
    CompletionDetails,
    Finish,
    PromptDetails,
    Traces,
    Usage,
)
from gateway.generation import Chunk, Failure, SchedulingTrace, Stream
from gateway.heavy_work import beside
from gateway.metrics import End, JobMeter
from gateway.text.detokenizer import Detokenizer
from gateway.text.echo import Echo
from gateway.text.output.parser import OutputParser
from gateway.text.output.parts import Content, Part
from gateway.text.stop_strings import StopMatcher
from gateway.text.token_log import Said, TokenLog

# What noting a token with twenty likely ones takes, and so does writing it down, in the units of `beside`.
SAID_SIZE = 80


class GenerationFailed(Exception):
    """A job ended in an error."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Choice:
    """One job's output, as it grows."""

    def __init__(
        self,
        index: int,
        stream: Stream,
        *,
        detokenizer: Detokenizer,
        stops: StopMatcher,
        parser: OutputParser,
        meter: JobMeter,
        min_tokens: int = 0,
        awaits_trace: bool = False,
        log: TokenLog | None = None,
        echo: Echo | None = None,
    ) -> None:
        """Stop strings in the text of the first `min_tokens` tokens do not count.

        awaits_trace: after a stop string, wait for the engine's last chunk, which takes up to an iteration.
        log: where somebody asks what tokens the text is made of. echo: stands before the output.
        """
        self.index = index
        self.cached_tokens = 0  # of the prompt
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.finish_reason: Finish | None = None
        self.trace: SchedulingTrace | None = None
        self._stream = stream
        self._detokenizer = detokenizer
        self._stops = stops
        self._parser = parser
        self._meter = meter
        self._min_tokens = min_tokens
        self._awaits_trace = awaits_trace
        self._log = log
        self._echo = echo
        self._opening: list[Part] = []  # what stands before the output, not taken yet
        self._num_characters = 0  # certain ones
        self._said: list[Said] = []  # what the certain text is made of, not taken yet
        self._logprob_sum = 0.0
        self._how_ended: End | None = None

    def next(self) -> Awaitable[Chunk]:
        """What the next iteration gives this job. Not after `finish_reason` is set."""
        return self._stream.next()

    def take(self, chunk: Chunk) -> list[Part]:
        """What is certain with `chunk`; sets `finish_reason` with the last one, or where the output is complete.

        Raises GenerationFailed when the engine gives up on the job.
        """
        if chunk.finish_reason == "error":
            self._end("error")
            raise GenerationFailed(chunk.error or Failure("The server failed on this generation."))
        self.cached_tokens = chunk.cached_tokens
        if self._echo is not None:
            self.open(chunk)
        parts = self._parser.push(self._text(chunk))
        if self._opening:
            parts, self._opening = self._opening + parts, []
        if self._parser.in_reasoning:
            self.num_reasoning_tokens = self.num_tokens
        is_complete = self._is_complete
        if is_complete:
            self._stream.finish()
        if chunk.finish_reason is not None or (is_complete and not self._awaits_trace):
            parts += self._parser.flush()
            self._finish(chunk)
        return parts

    def leave(self, chunk: Chunk) -> None:
        """Nobody takes `chunk`. What it says of the job's end still counts."""
        if chunk.finish_reason == "error":
            self._end("error")

    @property
    def num_said(self) -> int:
        """How many tokens `said` would give."""
        return len(self._said)

    def said(self) -> list[Said]:
        """The tokens of the text that has become certain since the last call; always none without a log."""
        said, self._said = self._said, []
        return said

    @property
    def failed(self) -> bool:
        """The engine gave up on the job."""
        return self._how_ended == "error"

    @property
    def mean_logprob(self) -> float:
        """Of all tokens, those of a stop string included; where logprobs were asked for."""
        return self._logprob_sum / max(1, self.num_tokens)

    def abort(self) -> None:
        """Nobody wants the rest. Harmless after the end."""
        self._stream.abort()
        self._end("aborted")

    @property
    def _is_complete(self) -> bool:
        """Whatever the job still makes is not wanted."""
        return self._stops.stopped or self._parser.complete

    @property
    def num_echoed(self) -> int:
        """Tokens that `open` has to look at."""
        return 0 if self._echo is None else len(self._echo.pieces)

    def open(self, chunk: Chunk) -> None:
        """Note what stands before the output. `take` does it with the first chunk; for who does not want to wait.

        Of thousands of tokens it takes a while, and may be done in another thread meanwhile.
        """
        assert self._echo is not None
        echo, self._echo = self._echo, None
        self._num_characters = len(echo.text)
        if self._log is not None:
            nothing_before = [None] * (len(echo.pieces) - len(chunk.prompt_logprobs))
            for (token, text), logprobs in zip(echo.pieces, [*nothing_before, *chunk.prompt_logprobs], strict=True):
                self._log.add(token, text, logprobs)
        self._opening = [Content(echo.text)] if echo.text else []

    def _text(self, chunk: Chunk) -> str:
        """The text that is certain with `chunk`."""
        text, before = "", self.num_tokens
        for token, logprobs in zip(chunk.tokens, chunk.logprobs or repeat(None), strict=False):
            if self._is_complete:
                break
            text += self._take_token(token, logprobs)
        self._meter.tokens(self.num_tokens - before)
        if chunk.finish_reason is not None:
            text += self._stops.push(self._detokenizer.flush())
            text += self._stops.flush()
        if self._log is not None:
            self._num_characters += len(text)
            self._said += self._log.take(self._num_characters)
            if chunk.finish_reason is not None and not self._stops.stopped:
                self._said += self._log.rest()
        return text

    def _take_token(self, token: int, logprobs: Logprobs | None) -> str:
        self.num_tokens += 1
        piece = self._detokenizer.push(token)
        if logprobs is not None:
            self._logprob_sum += logprobs.drawn
        if self._log is not None:
            self._log.add(token, piece, logprobs)
        return piece if self.num_tokens <= self._min_tokens else self._stops.push(piece)

    def _finish(self, chunk: Chunk) -> None:
        assert chunk.finish_reason != "error", chunk
        reason = "stop" if self._is_complete or chunk.finish_reason is None else chunk.finish_reason
        self.finish_reason = "tool_calls" if reason == "stop" and self._parser.num_calls else reason
        self.trace = chunk.trace
        self._end(self.finish_reason)

    def _end(self, end: End) -> None:
        if self._how_ended is None:
            self._how_ended = end
            self._meter.end(end)


class Choices:
    """All choices of one request, prompt by prompt."""

    def __init__(self, choices: Sequence[Choice], prompt_tokens: int, jobs_per_prompt: int = 1) -> None:
        self._choices = choices
        self._prompt_tokens = prompt_tokens
        self._jobs_per_prompt = jobs_per_prompt

    def __len__(self) -> int:
        return len(self._choices)

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._choices)

    @property
    def finished(self) -> bool:
        return all(choice.finish_reason is not None for choice in self._choices)

    @property
    def failed(self) -> bool:
        return any(choice.failed for choice in self._choices)

    def best(self, n: int, of: int) -> list[Choice]:
        """Of every `of` choices in a row the `n` likeliest by the mean of their tokens, likeliest first."""
        if n == of:
            return list(self._choices)
        groups = (self._choices[i : i + of] for i in range(0, len(self._choices), of))
        return [choice for group in groups for choice in sorted(group, key=lambda c: -c.mean_logprob)[:n]]

    async def parts(self) -> AsyncGenerator[tuple[Choice, list[Part]], None]:
        """Parts of any choice as they become certain, until all are finished. Raises GenerationFailed."""
        if len(self._choices) == 1:  # nearly always, so without the detour
            (only,) = self._choices
            while only.finish_reason is None:
                chunk = await only.next()
                if only.num_echoed:
                    await _open(only, chunk)
                yield only, only.take(chunk)
            return
        async with aclosing(_in_turns(self._choices)) as turns:
            async for choice, chunk in turns:
                if choice.num_echoed:
                    await _open(choice, chunk)
                yield choice, choice.take(chunk)

    def abort(self) -> None:
        """The client is gone, or has enough. Harmless after the end."""
        for choice in self._choices:
            choice.abort()

    def usage(self) -> Usage:
        completion_tokens = sum(choice.num_tokens for choice in self._choices)
        reasoning_tokens = sum(choice.num_reasoning_tokens for choice in self._choices)
        cached_tokens = sum(choice.cached_tokens for choice in self._choices[:: self._jobs_per_prompt])
        return Usage(
            self._prompt_tokens,
            completion_tokens,
            self._prompt_tokens + completion_tokens,
            PromptDetails(cached_tokens),
            CompletionDetails(reasoning_tokens) if reasoning_tokens else UNSET,
        )

    def traces(self) -> Traces:
        """One choice: its trace; more: theirs, in order."""
        traces = [choice.trace for choice in self._choices]
        return traces[0] if len(traces) == 1 else traces


async def _open(choice: Choice, chunk: Chunk) -> None:
    if chunk.finish_reason != "error":
        await beside(SAID_SIZE * choice.num_echoed, lambda: choice.open(chunk))


async def _in_turns(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, Chunk], None]:
    """Chunks in the order in which they come; of those that come together, in the order of the choices."""
    turns = {asyncio.ensure_future(choice.next()): choice for choice in choices}
    try:
        while turns:
            done, _ = await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED)
            for turn in sorted(done, key=lambda turn: turns[turn].index):
                choice = turns.pop(turn)
                yield choice, turn.result()
                if choice.finish_reason is None:
                    turns[asyncio.ensure_future(choice.next())] = choice
    finally:
        for turn, choice in turns.items():
            if not turn.cancel():  # it is there, and nobody takes it
                choice.leave(turn.result())
        await asyncio.gather(*turns, return_exceptions=True)
