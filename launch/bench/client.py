"""A client for measurements: streams completions from any OpenAI-compatible server, and notes when tokens came.

On a shared machine the client must not be what is measured: its HTTP parser is compiled, and of events it decodes the
few fields that matter.
"""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import aiohttp
import msgspec

from launch.lab.samples import Sample

Endpoint = Literal["completions", "chat"]

# Each is one token in most vocabularies. Random ones in a row share no prefix that a server could have cached.
_COMMON = """the of and to in is that for it was on are as with his they at be this from have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over did
down only way find use may water long little very after words called just where most know"""
_WORDS = _COMMON.split()
_PROBE_WORDS = 48
# Ways to ask for an exact number of tokens, the most exact first: vLLM and Skipjoin, llama.cpp, everybody.
_EXACT: tuple[dict[str, bool | None], ...] = ({"ignore_eos": True, "min_tokens": None}, {"ignore_eos": True}, {})


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(msgspec.Struct):
    completion_tokens: int
    prompt_tokens: int


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


_decode = msgspec.json.Decoder(_Event).decode


class RequestFailed(Exception):
    """The server did not answer as asked; the message has its status and the beginning of its words."""


@dataclass(slots=True)
class _Answer:
    """What has come of an answer."""

    sent_s: float
    times: list[float] = field(default_factory=list)  # of events with text
    usage: _Usage | None = None

    def take(self, event: _Event, now: float) -> None:
        if event.error is not None:
            raise RequestFailed(f"the answer ended with an error: {event.error.get('message')}")
        if event.usage is not None:
            self.usage = event.usage
        if any(choice.text or choice.delta.content for choice in event.choices):
            self.times.append(now)


class Client:
    """One server. Use as an async context manager."""

    def __init__(
        self, url: str, *, endpoint: Endpoint = "completions", api_key: str = "none", timeout_s: float = 600.0
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"}
        self._timeout = aiohttp.ClientTimeout(connect=timeout_s, sock_read=timeout_s)
        self._endpoint = endpoint
        self._exact: dict[str, bool | None] = {}
        self._tokens_per_word = 1.0
        self._frame_tokens = 0.0
        self.model = ""

    async def __aenter__(self) -> "Client":
        # A connection for each request: llama.cpp's server closes one after an answer, and does not say so.
        as_many_as_asked = aiohttp.TCPConnector(limit=0, force_close=True)
        try:
            self._http = aiohttp.ClientSession(
                base_url=f"{self._url}/", headers=self._headers, timeout=self._timeout, connector=as_many_as_asked
            )
        except ValueError:
            raise RequestFailed(f"{self._url!r} is no URL; it begins with http://") from None
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()

    async def prepare(self, model: str | None = None) -> None:
        """Learn the model's name, what makes lengths exact here, and how long words are. Raises RequestFailed."""
        self.model = model or await self._first_model()
        for self._exact in _EXACT:
            try:
                probe = await self.complete(random_words(Random(0), _PROBE_WORDS), 4)
                break
            except RequestFailed:
                if not self._exact:
                    raise
        half = await self.complete(random_words(Random(0), _PROBE_WORDS // 2), 4)
        if probe.prompt_tokens > half.prompt_tokens:  # else the server does not say
            self._tokens_per_word = (probe.prompt_tokens - half.prompt_tokens) / (_PROBE_WORDS - _PROBE_WORDS // 2)
            self._frame_tokens = probe.prompt_tokens - _PROBE_WORDS * self._tokens_per_word

    def prompt(self, rng: Random, tokens: int) -> str:
        """Random words that make about so many tokens, with those that a chat template puts around them."""
        return random_words(rng, max(1, round((tokens - self._frame_tokens) / self._tokens_per_word)))

    async def complete(self, prompt: str, tokens: int, progress: Callable[[int], None] | None = None) -> Sample:
        """One streamed answer of `tokens` tokens; `progress` is told how many events with text have come.

        Raises RequestFailed.
        """
        answer = _Answer(time.perf_counter())
        async for line in self._lines(self._body(prompt, tokens)):
            if line.startswith(b"data: {"):
                answer.take(_decode(line[6:]), time.perf_counter())
                if progress is not None:
                    progress(len(answer.times))
        end_s = time.perf_counter()
        if not answer.times:
            raise RequestFailed("the answer has no text")
        gaps = (after - before for before, after in zip(answer.times, answer.times[1:], strict=False))
        return Sample(
            prompt_tokens=answer.usage.prompt_tokens if answer.usage else 0,
            output_tokens=answer.usage.completion_tokens if answer.usage else len(answer.times),
            ttft_s=answer.times[0] - answer.sent_s,
            jct_s=end_s - answer.sent_s,
            longest_gap_s=max(gaps, default=0.0),
        )

    def _body(self, prompt: str, tokens: int) -> dict[str, object]:
        exact = {name: tokens if value is None else value for name, value in self._exact.items()}
        asked = {"prompt": prompt} if self._endpoint == "completions" else {"messages": [_user(prompt)]}
        common = {"model": self.model, "max_tokens": tokens, "temperature": 0, "stream": True}
        return {**common, "stream_options": {"include_usage": True}, **asked, **exact}

    async def _lines(self, body: dict[str, object]) -> AsyncIterator[bytes]:
        path = "completions" if self._endpoint == "completions" else "chat/completions"
        rest = b""
        try:
            async with self._http.post(path, json=body, allow_redirects=False) as response:
                if response.status != 200:
                    raise RequestFailed(f"{response.status}: {(await response.read())[:300]!r}")
                async for data in response.content.iter_any():
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        yield line
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from None

    async def _first_model(self) -> str:
        try:
            async with self._http.get("models", raise_for_status=True) as response:
                models = await response.json(content_type=None)
            return str(models["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            raise RequestFailed(f"cannot ask {self._url} for its models: {error}") from None


def random_words(rng: Random, count: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(count))


def _user(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}
