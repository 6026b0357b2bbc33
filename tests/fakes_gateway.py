"""A scripted engine, a byte tokenizer and a real HTTP server around them, for tests of the gateway's HTTP side."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
import tokenizers
from openai import OpenAI
from prometheus_client import CollectorRegistry
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from common.config import Config
from common.records import Logprobs
from gateway.api.keys import KeyRing
from gateway.app import create_app
from gateway.generation import Chunk, Failure, FinishReason, Generation, QueueFull, SchedulingTrace, State, Unavailable
from gateway.http_server import http_server
from gateway.text.chat_form import chat_form
from gateway.text.detokenizer import BYTE_OF_CHARACTER
from gateway.text.text_model import TextModel
from gateway.text.tokenizer import SpecialTokens, Tokenizer

NAME = "tiny/bytes"
END = 256
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
OPEN = KeyRing({})  # no key is needed
WAIT_S = 10.0  # for what happens in another thread; reached only by a failing test

Script = Callable[[Generation], Sequence[int]]


def byte_backend() -> tokenizers.Tokenizer:
    """Token i is byte i; `<|end|>` is 256."""
    vocab = dict(BYTE_OF_CHARACTER)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    return backend


def byte_text_model(template: str | None = TEMPLATE) -> TextModel:
    special = SpecialTokens({"eos_token": "<|end|>"})
    tokenizer = Tokenizer(byte_backend(), special)
    chat = chat_form(template, tokenizer, "auto", "auto") if template else None
    return TextModel(NAME, tokenizer, chat, frozenset({END}), vocab_size=300)


def trace(**changes: Any) -> SchedulingTrace:
    numbers = dict.fromkeys(SchedulingTrace.__struct_fields__, 0)
    return SchedulingTrace(**(numbers | changes))


class FakeStream:
    """One scripted job. Each token waits for the engine's gate."""

    def __init__(self, engine: "FakeEngine", job: Generation, number: int) -> None:
        self.job = job
        self.aborted = threading.Event()
        self._engine = engine
        self._number = number
        self._chunks = self._told()

    def next(self) -> Awaitable[Chunk]:
        return anext(self._chunks)

    def finish(self) -> None:
        self.aborted.set()

    def abort(self) -> None:
        self.aborted.set()

    async def _told(self) -> AsyncIterator[Chunk]:
        tokens, reason = self._outcome()
        prompt = tuple(said for token in self.job.prompt[1:] for said in self._logprobs(token))
        prompt_logprobs = prompt if self.job.prompt_logprobs else ()
        for token in tokens[:-1]:
            await self._engine.pass_gate()
            yield Chunk((token,), logprobs=self._logprobs(token), prompt_logprobs=prompt_logprobs)
            prompt_logprobs = ()
        await self._engine.pass_gate()
        if self._engine.fails:
            yield Chunk((), "error", self._engine.failure)
            return
        logprobs = self._logprobs(tokens[-1]) if tokens else ()
        end = trace(joined_level=self._number)
        yield Chunk(tuple(tokens[-1:]), reason, None, end, logprobs, prompt_logprobs)

    def _logprobs(self, token: int) -> tuple[Logprobs, ...]:
        """Those of a made-up model that thinks token 120, `x`, likeliest, and the smaller ones likelier."""
        if self.job.logprobs is None:
            return ()
        return (Logprobs(-float(token), [(120 + rank, -0.5 - rank) for rank in range(self.job.logprobs)]),)

    def _outcome(self) -> tuple[list[int], FinishReason]:
        tokens: list[int] = []
        if not self.job.max_tokens:
            return tokens, "length"
        for token in self._engine.script(self.job):
            if token in self.job.stop_tokens and len(tokens) >= self.job.min_tokens:
                return tokens, "stop"
            tokens.append(token)
            if len(tokens) == self.job.max_tokens:
                break
        return tokens, "length"


class FakeEngine:
    """Gives every job the tokens of `script`, as fast as they are read, unless its gate is closed."""

    def __init__(self, script: Script | str | bytes = "Hello, world!", max_context: int = 1000) -> None:
        self.max_context = max_context
        self.state: State = "ready"
        self.full_for_s: float | None = None
        self.fails = False
        self.failure = Failure("A worker was lost.")
        self.streams: list[FakeStream] = []
        self.submitted = threading.Event()
        self.script = script if callable(script) else _says(script)
        self._is_open = True
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def jobs(self) -> list[Generation]:
        return [stream.job for stream in self.streams]

    def close_gate(self) -> None:
        """From now on nothing comes, until the gate opens. Call it before the server has work."""
        self._is_open = False

    def open_gate(self) -> None:
        """From any thread."""
        for passed in self._waiting:
            passed.get_loop().call_soon_threadsafe(lambda passed=passed: passed.done() or passed.set_result(None))
        self._is_open = True

    async def pass_gate(self) -> None:
        if self._is_open:
            await asyncio.sleep(0)
            return
        passed = asyncio.get_running_loop().create_future()
        self._waiting.append(passed)
        await passed

    def submit(self, generations: list[Generation]) -> list[FakeStream]:
        if self.full_for_s is not None:
            raise QueueFull(self.full_for_s)
        if self.state != "ready":
            raise Unavailable(self.state, 3.0)
        streams = [FakeStream(self, job, number) for number, job in enumerate(generations)]
        self.streams += streams
        self.submitted.set()
        return streams


def _says(text: str | bytes) -> Script:
    tokens = [*(text if isinstance(text, bytes) else text.encode()), END]
    return lambda job: tokens if job.stop_tokens else tokens * (job.max_tokens // len(tokens) + 1)


@contextmanager
def serving(
    engine: FakeEngine | None = None,
    text: TextModel | None = None,
    registry: CollectorRegistry | None = None,
    keys: KeyRing = OPEN,
    **options: Any,
) -> Iterator[str]:
    """A real server on a free loopback port, in a thread of its own; gives its URL. `options` are Config's."""
    engine, text = engine or FakeEngine(), text or byte_text_model()
    config = Config(**options)
    app = create_app(config, engine, text, registry or CollectorRegistry(), keys)
    server = http_server(config, app, port=0)
    started = threading.Event()

    async def run() -> None:
        serve = asyncio.ensure_future(server.serve())
        while not server.started and not serve.done():
            await asyncio.sleep(0.001)
        started.set()
        await serve

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(WAIT_S), "the server did not start"
        scheme = "https" if config.ssl_certfile else "http"
        yield f"{scheme}://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)


@contextmanager
def client_of(engine: FakeEngine | None = None, text: TextModel | None = None, **options: Any) -> Iterator[OpenAI]:
    """The official client, connected to such a server."""
    with serving(engine, text, **options) as url, http_client() as http:
        yield OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http)


def http_client() -> httpx2.Client:
    """One that does not spend 0.15 s on certificates, which nobody here has."""
    return httpx2.Client(verify=False, timeout=WAIT_S)
