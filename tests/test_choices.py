"""Choices in the making: stop strings, minimum lengths, failures, and the order of several."""

import asyncio

import pytest
from fakes_gateway import byte_text_model, trace
from prometheus_client import CollectorRegistry

from gateway.api.choices import Choice, Choices, GenerationFailed
from gateway.api.keys import EVERYBODY
from gateway.generation import Chunk, Failure
from gateway.metrics import HttpMetrics
from gateway.text.output.parser import PLAIN, OutputForm, OutputParser
from gateway.text.output.parts import Content, joined
from gateway.text.stop_strings import StopStrings


class Stream:
    """Gives its chunks one after the other, each in another turn of the event loop."""

    def __init__(self, *chunks: Chunk) -> None:
        self.aborts = 0
        self._chunks = list(chunks)

    async def next(self) -> Chunk:
        await asyncio.sleep(0)
        return self._chunks.pop(0)

    def finish(self) -> None:
        self.aborts += 1

    def abort(self) -> None:
        self.aborts += 1


def says(*texts: str, reason: str = "stop") -> Stream:
    chunks = [Chunk(tuple(text.encode())) for text in texts]
    return Stream(*chunks[:-1], Chunk(chunks[-1].tokens, reason, trace=trace()))  # type: ignore[arg-type]


def choice(
    stream: Stream,
    index: int = 0,
    stop: tuple[str, ...] = (),
    *,
    min_tokens: int = 0,
    form: OutputForm = PLAIN,
    metrics: HttpMetrics | None = None,
) -> Choice:
    return Choice(
        index,
        stream,
        detokenizer=byte_text_model().tokenizer.detokenizer(),
        stops=StopStrings(stop).matcher(),
        parser=OutputParser(form),
        meter=(metrics or HttpMetrics(CollectorRegistry())).job("test", EVERYBODY),
        min_tokens=min_tokens,
    )


def parts(*choices: Choice) -> list[tuple[int, str]]:
    async def read() -> list[tuple[int, str]]:
        return [(choice.index, joined(parts, Content)) async for choice, parts in Choices(choices, 7).parts()]

    return asyncio.run(read())


def test_text_comes_as_tokens_do_and_the_reason_with_the_last() -> None:
    one = choice(says("ab", "c", "", reason="length"))
    assert parts(one) == [(0, "ab"), (0, "c"), (0, "")]
    assert (one.finish_reason, one.num_tokens, one.trace) == ("length", 3, trace())


def test_a_stop_string_ends_the_choice_and_frees_the_job() -> None:
    stream = says("so ", "EN", "D more", "never read")
    one = choice(stream, stop=("END",))
    assert parts(one) == [(0, "so "), (0, ""), (0, "")]
    assert (one.finish_reason, stream.aborts) == ("stop", 1)
    assert one.num_tokens == 6  # the tokens that made it up, and none after it


def test_a_stop_string_in_the_last_token_is_a_stop_and_not_a_length() -> None:
    one = choice(says("EN", "D", reason="length"), stop=("END",))
    assert parts(one) == [(0, ""), (0, "")]
    assert one.finish_reason == "stop"


def test_held_back_text_comes_in_the_end() -> None:
    assert parts(choice(says("a EN", ""), stop=("END",))) == [(0, "a "), (0, "EN")]


def test_stop_strings_do_not_count_within_the_minimum() -> None:
    one = choice(says("END", "x", "END"), stop=("END",), min_tokens=3)
    assert parts(one) == [(0, "END"), (0, "x"), (0, "")]


def test_half_a_character_at_the_end_is_replaced() -> None:
    one = choice(Stream(Chunk((0xF0, 0x9F), "length")))
    assert parts(one) == [(0, "\ufffd")]


@pytest.mark.parametrize("failure", [Failure("gone"), None])
def test_an_error_of_the_engine_is_a_failure(failure: Failure | None) -> None:
    with pytest.raises(GenerationFailed, match="gone" if failure else "failed"):
        parts(choice(Stream(Chunk((), "error", failure))))


def test_several_choices_come_in_turns_and_all_to_their_end() -> None:
    found = parts(choice(says("a", "b"), 0), choice(says("c"), 1), choice(says("d", "e", "f"), 2))
    assert found == [(0, "a"), (1, "c"), (2, "d"), (0, "b"), (2, "e"), (2, "f")]


def test_a_failure_of_one_choice_ends_the_waiting_for_the_others() -> None:
    async def read() -> None:
        endless = Stream(*[Chunk((97,))] * 10_000)
        choices = Choices([choice(endless, 0), choice(Stream(Chunk((), "error", Failure("gone"))), 1)], 1)
        with pytest.raises(GenerationFailed, match="gone"):
            async for _ in choices.parts():
                pass
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(read())


def test_jobs_that_fail_together_are_all_counted_as_failed() -> None:
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)

    async def read() -> None:
        failed = [Stream(Chunk((), "error", Failure("gone"))) for _ in range(3)]
        choices = Choices([choice(stream, i, metrics=metrics) for i, stream in enumerate(failed)], 1)
        with pytest.raises(GenerationFailed, match="gone"):
            async for _ in choices.parts():
                pass
        choices.abort()

    asyncio.run(read())
    assert registry.get_sample_value("skipjoin_http_jobs_total", {"endpoint": "test", "end": "error"}) == 3


def test_a_reader_that_leaves_leaves_no_task_behind() -> None:
    async def read() -> None:
        choices = Choices([choice(says("a", "b", "c"), i) for i in range(3)], 1)
        reading = choices.parts()
        await anext(reading)
        await reading.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(read())


def test_usage_counts_the_tokens_of_all_choices() -> None:
    pair = [choice(says("abc"), 0), choice(says("de"), 1)]
    parts(*pair)
    usage = Choices(pair, 7).usage()
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 5, 12)


def test_cached_tokens_are_those_of_the_first_choice_of_each_prompt() -> None:
    found = [4, 8, 16, 16]  # of two prompts with two choices each
    four = [choice(Stream(Chunk((97,), "stop", cached_tokens=count)), i) for i, count in enumerate(found)]
    parts(*four)
    assert Choices(four, 50, jobs_per_prompt=2).usage().prompt_tokens_details.cached_tokens == 4 + 16


def test_one_choice_has_a_trace_and_several_have_a_list() -> None:
    one, stopped = choice(says("a")), choice(says("a"), stop=("a",))
    parts(one)
    assert Choices([one], 1).traces() == trace()
    assert Choices([one, stopped], 1).traces() == [trace(), None]


def test_aborting_twice_counts_once() -> None:
    registry = CollectorRegistry()
    stream = says("a")
    meter = HttpMetrics(registry).job("test", EVERYBODY)
    detokenizer = byte_text_model().tokenizer.detokenizer()
    stops, parser = StopStrings([]).matcher(), OutputParser(PLAIN)
    one = Choice(0, stream, detokenizer=detokenizer, stops=stops, parser=parser, meter=meter)
    one.abort()
    one.abort()
    assert registry.get_sample_value("skipjoin_http_jobs_total", {"endpoint": "test", "end": "aborted"}) == 1
