"""What the prefix cache is for: chats of several turns, each of which sends all of the earlier ones again."""

import json
import statistics
import time
from dataclasses import dataclass, field
from random import Random

import aiohttp
import uvloop
from tqdm import tqdm

from launch.bench.client import random_words
from launch.bench.server import serving

Message = dict[str, str]

_TIMEOUT_S = 600.0  # without a byte


@dataclass(slots=True)
class _Chat:
    """One conversation so far."""

    messages: list[Message]
    ttfts_s: list[float] = field(default_factory=list)
    cached_tokens: int = 0  # of the last turn
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatBench:
    """Chats of several turns with one system prompt, one after the other: TTFT with and without the prefix cache."""

    rounds: int = 3
    """Times that both are measured; the medians count."""
    chats: int = 2
    """Conversations, which share nothing but the system prompt."""
    turns: int = 8
    """Questions in each."""
    system_words: int = 400
    """Length of the system prompt."""
    question_words: int = 30
    """Length of each question."""
    answer_tokens: int = 24
    """Most tokens of each answer."""

    def run(self) -> int:
        rounds: dict[str, list[list[_Chat]]] = {"--prefix-cache": [], "--no-prefix-cache": []}
        with tqdm(total=self.rounds * len(rounds)) as bar:
            for _ in range(self.rounds):
                for option, results in rounds.items():
                    bar.set_description(option)
                    with serving([option]) as url:
                        results.append(uvloop.run(self._measure(url)))
                    bar.update()
        ttfts = {option: _medians(results) for option, results in rounds.items()}
        first, *later = ttfts["--prefix-cache"]
        first_without, *later_without = ttfts["--no-prefix-cache"]
        last = rounds["--prefix-cache"][0][-1]
        print(f"TTFT of the very first turn: {first:.2f} s with the prefix cache, {first_without:.2f} s without")
        print(
            f"of the {len(later)} others, mean: {statistics.mean(later):.2f} s with, "
            f"{statistics.mean(later_without):.2f} s without; "
            f"the last: {later[-1]:.2f} and {later_without[-1]:.2f} s, "
            f"of {last.prompt_tokens} tokens {last.cached_tokens} cached"
        )
        print(json.dumps({"bench": "chat", "ttft_s": ttfts, "cached": last.cached_tokens, "of": last.prompt_tokens}))
        return 0

    async def _measure(self, url: str) -> list[_Chat]:
        rng = Random(7)
        system = {"role": "system", "content": random_words(rng, self.system_words)}
        chats = [_Chat([system]) for _ in range(self.chats)]
        async with aiohttp.ClientSession(f"{url}/", timeout=aiohttp.ClientTimeout(sock_read=_TIMEOUT_S)) as http:
            for chat in chats:
                for _ in range(self.turns):
                    chat.messages.append({"role": "user", "content": random_words(rng, self.question_words)})
                    chat.messages.append({"role": "assistant", "content": await self._answer(http, chat)})
        return chats

    async def _answer(self, http: aiohttp.ClientSession, chat: _Chat) -> str:
        options = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
        body = {"messages": chat.messages, "max_tokens": self.answer_tokens, "min_tokens": 1, **options}
        pieces: list[str] = []
        start = time.perf_counter()
        async with http.post("chat/completions", json=body, raise_for_status=True) as response:
            async for line in response.content:
                event = json.loads(line[6:]) if line.startswith(b"data: {") else {"choices": []}
                if text := "".join(choice["delta"].get("content", "") for choice in event["choices"]):
                    if not pieces:
                        chat.ttfts_s.append(time.perf_counter() - start)
                    pieces.append(text)
                if usage := event.get("usage"):
                    chat.prompt_tokens = usage["prompt_tokens"]
                    chat.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
        return "".join(pieces)


def _medians(rounds: list[list[_Chat]]) -> list[float]:
    """The TTFT of each turn, chat after chat."""
    turns = ([ttft for chat in chats for ttft in chat.ttfts_s] for chats in rounds)
    return [statistics.median(ttfts) for ttfts in zip(*turns, strict=True)]
