"""The grammar of streamed chunks, whatever is said and in whatever order: by random schedules."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from fakes_gateway import byte_text_model, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from common.records import Logprobs
from gateway.api.choices import Choice, Choices
from gateway.api.dialect import Chat, Completion, Details, Dialect, Letterhead
from gateway.api.keys import EVERYBODY
from gateway.api.sse import StreamedAnswer
from gateway.generation import Chunk, FinishReason
from gateway.metrics import HttpMetrics
from gateway.text.output.parser import PLAIN, OutputParser
from gateway.text.output.parts import Content, joined
from gateway.text.stop_strings import StopStrings
from gateway.text.token_log import TokenLog

TOKENIZER = byte_text_model().tokenizer
METRICS = HttpMetrics(CollectorRegistry())
DETAILS = Details(logprobs=True, token_ids=True)


@dataclass(frozen=True)
class Turn:
    """One iteration of one job."""

    delay: int  # turns of the event loop until it comes
    tokens: bytes


class Stream:
    def __init__(self, turns: list[Turn], reason: FinishReason) -> None:
        self._turns = list(turns)
        self._reason = reason
        self._finished = False

    def finish(self) -> None:
        self._finished = True

    def abort(self) -> None:
        self._finished = True

    async def next(self) -> Chunk:
        if self._turns and not self._finished:
            turn = self._turns.pop(0)
            for _ in range(turn.delay):
                await asyncio.sleep(0)
            if not self._finished:
                return Chunk(tuple(turn.tokens), logprobs=tuple(Logprobs(-1.0, []) for _ in turn.tokens))
        return Chunk((), "stop" if self._finished else self._reason, trace=trace())


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[Turn], FinishReason]:
    """Text with characters of one to four bytes, perhaps cut within one, and cut into turns anywhere."""
    text = draw(st.text("STOP é漢😀", max_size=12)).encode()
    text = text[: len(text) - draw(st.integers(0, 2))]
    turns = []
    while text:
        count = draw(st.integers(0, 3))
        turns.append(Turn(draw(st.integers(0, 3)), text[:count]))
        text = text[count:]
    return turns, draw(st.sampled_from(["stop", "length"]))


STOPS = st.lists(st.sampled_from(["STOP", "OP", "é漢", "😀😀", " "]), max_size=2)


def choices_of(made: list[tuple[list[Turn], FinishReason]], stops: list[str], *, awaits_trace: bool) -> Choices:
    matchers = StopStrings(stops)
    return Choices(
        [
            Choice(
                index,
                Stream(turns, reason),
                detokenizer=TOKENIZER.detokenizer(),
                stops=matchers.matcher(),
                parser=OutputParser(PLAIN),
                meter=METRICS.job("test", EVERYBODY),
                awaits_trace=awaits_trace,
                log=TokenLog(TOKENIZER.bytes_of),
            )
            for index, (turns, reason) in enumerate(made)
        ],
        prompt_tokens=5,
    )


async def streamed(choices: Choices, dialect: Dialect, *, include_usage: bool) -> list[Any]:
    letterhead = Letterhead("id", "chunk", 1, "model", "fp")
    answer = StreamedAnswer(choices, dialect, letterhead, include_usage, include_trace=False)
    *events, last, rest = b"".join([some async for some in answer.events()]).split(b"\n\n")
    assert (last, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


async def plain(choices: Choices) -> list[tuple[str, str | None, list[int]]]:
    """Text, reason and token ids of each choice."""
    texts = [""] * len(choices)
    tokens: list[list[int]] = [[] for _ in choices]
    async for choice, parts in choices.parts():
        texts[choice.index] += joined(parts, Content)
        tokens[choice.index] += [said.token for said in choice.said()]
    return [(texts[choice.index], choice.finish_reason, tokens[choice.index]) for choice in choices]


@settings(deadline=None)
@given(st.lists(jobs(), min_size=1, max_size=4), STOPS, st.booleans(), st.booleans())
def test_chat_chunks_follow_the_grammar(
    made: list[tuple[list[Turn], FinishReason]], stops: list[str], include_usage: bool, awaits_trace: bool
) -> None:
    def choices() -> Choices:
        return choices_of(made, stops, awaits_trace=awaits_trace)

    whole = asyncio.run(plain(choices()))
    chunks = asyncio.run(streamed(choices(), Chat(DETAILS), include_usage=include_usage))
    if include_usage:
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 5 + chunks[-1]["usage"]["completion_tokens"]
        chunks.pop()
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    said = [chunk["choices"][0] for chunk in chunks]
    opening = said[: len(made)]
    assert [choice["index"] for choice in opening] == list(range(len(made)))
    assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in opening)
    for index, (text, reason, tokens) in enumerate(whole):
        own = [choice for choice in said[len(made) :] if choice["index"] == index]
        assert not any("role" in choice["delta"] for choice in own)
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + [reason]
        assert own[-1]["delta"] == {}
        assert [token for choice in own for token in choice["token_ids"]] == tokens
        logged = [one for choice in own if choice["logprobs"] for one in choice["logprobs"]["content"]]
        assert [byte for one in logged for byte in one["bytes"]] == tokens


@settings(deadline=None)
@given(st.lists(jobs(), min_size=1, max_size=4), STOPS)
def test_completion_chunks_join_to_the_plain_answer(
    made: list[tuple[list[Turn], FinishReason]], stops: list[str]
) -> None:
    whole = asyncio.run(plain(choices_of(made, stops, awaits_trace=False)))
    chunks = asyncio.run(
        streamed(choices_of(made, stops, awaits_trace=False), Completion(DETAILS), include_usage=False)
    )
    said = [chunk["choices"][0] for chunk in chunks]
    for index, (text, reason, tokens) in enumerate(whole):
        own = [choice for choice in said if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + [reason]
        assert [token for choice in own for token in choice["token_ids"]] == tokens
        offsets = [offset for choice in own if choice["logprobs"] for offset in choice["logprobs"]["text_offset"]]
        assert offsets == sorted(offsets)


@settings(deadline=None)
@given(jobs(), STOPS)
def test_logged_tokens_are_exactly_those_of_the_text(made: tuple[list[Turn], FinishReason], stops: list[str]) -> None:
    turns, _ = made
    [(text, _, tokens)] = asyncio.run(plain(choices_of([made], stops, awaits_trace=True)))
    everything = b"".join(turn.tokens for turn in turns)
    assert everything.startswith(bytes(tokens))
    assert bytes(tokens).decode(errors="replace") == text
