"""Structured output: schemas, regular expressions and grammars, compiled under limits into constraints of jobs.

llguidance does the work: it imports no torch (xgrammar would, into the gateway) and lets go of the interpreter while it
compiles and computes masks. All of it happens in a few threads of its own, so that hostile input makes nobody else
wait. Knows no request and no engine.

    grammar = await grammars.compile(GrammarSource("json_schema", schema_text))
    Generation(..., constraint=grammar.constraint())  # one for each job
"""

import asyncio
import json
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from gateway.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SOURCE_BYTES = 64 * 2**10
COMPILE_TIMEOUT_S = 0.8
_CACHED_GRAMMARS = 64
_CACHED_S = 1.0  # that all of them took to compile: each second left some 160 MB behind
# What the library needs most time for: quadratic in the first, and in the second to the power of four.
MAX_OPTIONAL_PROPERTIES = 1000
MAX_PATTERN_PROPERTIES = 32
_COMPILERS, _MASKERS = 2, 2  # threads
_LONGEST_REASON = 200  # characters of what the library says

_LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,  # about 10 ms
    step_lexer_fuel=100_000,  # about 7 ms for one mask at most
    step_max_items=20_000,
    max_lexer_states=20_000,  # 1 to 2 kB each
    max_grammar_size=100_000,
    verbose_errors=False,
)
# Without a bound on whitespace a small model can go on with blanks for ever.
_JSON_OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}

Kind = Literal["json_schema", "regex", "choice", "lark"]
_NOWHERE = re.compile(r"(?!)")
_SCHEMA_OPENINGS: dict[Kind, re.Pattern[str]] = {
    "json_schema": re.compile(r"\A\s*"),
    "regex": _NOWHERE,
    "choice": _NOWHERE,
    "lark": re.compile(r"%json\s*"),
}
_JSON = json.JSONDecoder()


class GrammarError(ValueError):
    """What was asked for is no grammar, not a supported one, or too large; the message is for the client."""


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """What an output must look like. For "choice", `text` is a JSON list of strings; for the others it is as named."""

    kind: Kind
    text: str
    content: "GrammarSource | None" = None  # what `@content` stands for in a text in Lark's notation

    @property
    def texts(self) -> list[str]:
        return [self.text] if self.content is None else [self.text, *self.content.texts]


class Grammar:
    """A compiled source. Never changes: each job gets a constraint of its own."""

    def __init__(self, matcher: LLMatcher, compile_s: float, pool: ThreadPoolExecutor, mask_bytes: int) -> None:
        self.compile_s = compile_s  # that it took
        self._matcher = matcher
        self._pool = pool
        self._mask_bytes = mask_bytes

    def constraint(self) -> "GrammarConstraint":
        return GrammarConstraint(self._matcher, self._pool, self._mask_bytes)


class GrammarConstraint:
    """Implements `gateway.generation.Constraint`: masks are computed in the pool's threads, one at a time."""

    def __init__(self, original: LLMatcher, pool: ThreadPoolExecutor, mask_bytes: int) -> None:
        """`original` is copied when the first mask is, in a thread: it takes as long."""
        self.failure: str | None = None
        self._matcher = original
        self._pool = pool
        self._mask_bytes = mask_bytes
        self._next: Future[bytes] = Future()
        self._on_ready: Callable[[], None] = lambda: None

    def start(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._advance(self._first_mask)

    def accept(self, token: int) -> None:
        assert self.ready, "a token that no mask was made for"
        self._advance(lambda: self._mask_after(token))

    @property
    def ready(self) -> bool:
        return self._next.done()

    def wait(self, timeout_s: float) -> bool:
        try:
            self._next.result(timeout_s)
        except FutureTimeoutError:
            return False
        return True

    def mask(self) -> bytes:
        assert self.ready, "the mask is not ready"
        return self._next.result()

    def _advance(self, step: Callable[[], bytes]) -> None:
        self._next = self._pool.submit(step)
        self._next.add_done_callback(lambda _: self._on_ready())

    def _first_mask(self) -> bytes:
        self._matcher = self._matcher.deep_copy()
        return self._mask()

    def _mask_after(self, token: int) -> bytes:
        self._matcher.consume_token(token)
        return self._mask()

    def _mask(self) -> bytes:
        """All zeros when the library gave up: no token can be drawn then, and the job ends with `failure`."""
        if not self._matcher.is_error():
            mask = self._matcher.compute_bitmask()[: self._mask_bytes]
        if self._matcher.is_error():
            self.failure = f"the output's grammar is too complex: {_reason(self._matcher.get_error())}"
            return bytes(self._mask_bytes)
        return mask


class Grammars:
    """Compiles for one tokenizer, and remembers the latest grammars."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_tokens: frozenset[int]) -> None:
        """`stop_tokens` may come where an output is complete."""
        self._mask_bytes = math.ceil(vocab_size / 8)
        self._compilers = ThreadPoolExecutor(_COMPILERS, "grammar-compiler")
        self._free_compilers = asyncio.Semaphore(_COMPILERS)  # the time limit is for compiling, not for waiting
        self._maskers = ThreadPoolExecutor(_MASKERS, "grammar-masks")
        self._cache: OrderedDict[GrammarSource, Grammar] = OrderedDict()
        self._has_end = bool(stop_tokens)
        self._read = lambda: LLTokenizer(tokenizer.to_json(), n_vocab=vocab_size, eos_token=sorted(stop_tokens))
        self._vocabulary: Future[LLTokenizer] | None = None

    def load(self) -> "Future[LLTokenizer]":
        """Begin to read the vocabulary, which holds the interpreter for a second: better before there are streams."""
        if self._vocabulary is None:
            self._vocabulary = self._compilers.submit(self._read)
        return self._vocabulary

    async def compile(self, source: GrammarSource) -> Grammar:
        """Raises GrammarError. Called on the event loop, which goes on meanwhile."""
        if not self._has_end:
            raise GrammarError("this model has no token that ends an output")
        if sum(len(text) for text in source.texts) > MAX_SOURCE_BYTES or (
            sum(len(text.encode()) for text in source.texts) > MAX_SOURCE_BYTES
        ):
            raise GrammarError(f"it is longer than {MAX_SOURCE_BYTES} bytes")
        grammar = self._cache.get(source) or await self._compile(source)
        self._cache[source] = grammar
        self._cache.move_to_end(source)
        while (
            len(self._cache) > _CACHED_GRAMMARS or sum(cached.compile_s for cached in self._cache.values()) > _CACHED_S
        ):
            self._cache.popitem(last=False)
        return grammar

    async def _compile(self, source: GrammarSource) -> Grammar:
        try:
            vocabulary = await asyncio.wrap_future(self.load())
        except ValueError as error:
            raise GrammarError(f"this model's vocabulary cannot be used for it: {_reason(str(error))}") from None
        await self._free_compilers.acquire()
        compiling = asyncio.get_running_loop().run_in_executor(self._compilers, _matcher, vocabulary, source)
        compiling.add_done_callback(self._compiled)
        try:
            async with asyncio.timeout(COMPILE_TIMEOUT_S):
                # A thread cannot be interrupted: it ends by its limits.
                matcher, compile_s = await asyncio.shield(compiling)
        except TimeoutError:
            raise GrammarError(f"it takes longer than {COMPILE_TIMEOUT_S} s to compile") from None
        return Grammar(matcher, compile_s, self._maskers, self._mask_bytes)

    def _compiled(self, compiling: asyncio.Future[tuple[LLMatcher, float]]) -> None:
        self._free_compilers.release()
        if not compiling.cancelled():
            compiling.exception()  # taken note of: nobody may be waiting for it any more


def _matcher(vocabulary: LLTokenizer, source: GrammarSource) -> tuple[LLMatcher, float]:
    """And the seconds that it took. Runs in a compiler's thread, which nobody can interrupt. Raises GrammarError."""
    begun = time.thread_time()
    for schema in _schemas(source):
        _check_size(schema)
    try:
        matcher = LLMatcher(vocabulary, _form(source), log_level=0, limits=_LIMITS)
    except ValueError as error:  # no JSON
        raise GrammarError(_reason(f"{error}")) from None
    if not matcher.is_error():
        matcher.compute_bitmask()  # the first one is the dearest, and some grammars fail only here
    if matcher.is_error():
        raise GrammarError(_reason(matcher.get_error()))
    return matcher, time.thread_time() - begun


def _schemas(source: GrammarSource) -> Iterator[Any]:
    """The JSON schemas in `source`, as far as they are JSON: of what is not, the library says so."""
    for opening in _SCHEMA_OPENINGS[source.kind].finditer(source.text):
        with suppress(ValueError, RecursionError):
            yield _JSON.raw_decode(source.text, opening.end())[0]
    if source.content is not None:
        yield from _schemas(source.content)


def _check_size(schema: Any) -> None:
    """Raises GrammarError for more properties than can be compiled in about a second."""
    num_optional = num_patterns = 0
    left = [schema]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            num_optional += len(_names(node.get("properties")) - _names(node.get("required")))
            num_patterns += len(_names(node.get("patternProperties")))
            left += node.values()
        elif isinstance(node, list):
            left += node
    if num_optional > MAX_OPTIONAL_PROPERTIES:
        raise GrammarError(f"it has {num_optional} properties that are not required; {MAX_OPTIONAL_PROPERTIES} at most")
    if num_patterns > MAX_PATTERN_PROPERTIES:
        raise GrammarError(f"it has {num_patterns} patterns of properties; {MAX_PATTERN_PROPERTIES} at most")


def _names(value: Any) -> set[str]:
    """Of an object or a list, where it is one."""
    return {name for name in value if isinstance(name, str)} if isinstance(value, dict | list) else set()


def _form(source: GrammarSource) -> str:
    """As the library takes it."""
    form = _FORMS[source.kind](source.text)
    if source.content is None:
        return form
    inner = _form(source.content)
    content = json.loads(inner)["grammars"][0] if source.content.kind in _MADE_JSON else {"lark_grammar": inner}
    return json.dumps({"grammars": [{"lark_grammar": form}, {**content, "name": "content"}]})


def _json_schema(text: str) -> str:
    return LLMatcher.grammar_from_json_schema(text, defaults=_JSON_OPTIONS)


def _choice(text: str) -> str:
    alternatives = (json.dumps(one, ensure_ascii=False) for one in json.loads(text))
    return LLMatcher.grammar_from_lark("start: " + " | ".join(alternatives))


_FORMS: dict[Kind, Callable[[str], str]] = {
    "json_schema": _json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "choice": _choice,
    "lark": LLMatcher.grammar_from_lark,
}


_MADE_JSON = (
    "json_schema",
    "regex",
)  # kinds for which the library makes its own JSON; it leaves Lark's notation as it is


def _reason(said: str) -> str:
    """The library's words in one line, and not too many of them."""
    return " ".join(said.split())[:_LONGEST_REASON]
