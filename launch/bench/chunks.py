"""What chunked prefill is for: how decoding jobs fare while long prompts arrive, by the size of the chunks."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import uvloop
from tqdm import tqdm

from launch.bench.client import Client, random_words
from launch.bench.server import serving


@dataclass(slots=True)
class _Round:
    """What one server did under the load."""

    gaps_s: list[float] = field(default_factory=list)  # between two tokens of a decoding job
    ttfts_s: list[float] = field(default_factory=list)  # of the long prompts
    tokens_per_s: float = 0.0  # prompt and output tokens of all jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunksBench:
    """Jobs decode while long prompts arrive one after the other: gaps between tokens, TTFT and throughput, by chunk."""

    chunks: tuple[int, ...] = (0, 512, 256, 128)
    """Values of --prefill-chunk-tokens to compare; each gets a server of its own, in turn."""
    rounds: int = 3
    """Times that all are measured; the medians count."""
    decoding_jobs: int = 4
    """Jobs that decode all the time."""
    output_tokens: int = 96
    """Tokens of each of them."""
    prompts: int = 3
    """Long prompts, each submitted when the one before has ended."""
    prompt_words: int = 1000
    """Length of the long prompts."""

    def run(self) -> int:
        rounds: dict[int, list[_Round]] = {chunk: [] for chunk in self.chunks}
        with tqdm(total=self.rounds * len(self.chunks)) as bar:
            for _ in range(self.rounds):
                for chunk in self.chunks:
                    bar.set_description(f"chunks of {chunk}")
                    with serving(["--prefill-chunk-tokens", str(chunk)]) as url:
                        rounds[chunk].append(uvloop.run(self._measure(url)))
                    bar.update()
        rows = list(self._rows(rounds))
        for row in rows:
            print(
                f"chunks of {row['chunk']:5}: gap median {row['gap_ms']:6.0f} ms, P99 {row['gap_p99_ms']:6.0f} ms, "
                f"mean (TPOT) {row['tpot_ms']:6.0f} ms; TTFT of long prompts {row['ttft_s']:5.2f} s; "
                f"{row['tokens_per_s']:6.1f} tok/s"
            )
        print(json.dumps({"bench": "chunks", "rows": rows}))
        return 0

    async def _measure(self, url: str) -> _Round:
        result, rng = _Round(), Random(5)
        prompts = [random_words(rng, self.prompt_words) for _ in range(self.prompts)]
        async with Client(url) as client:
            await client.prepare()
            start = time.perf_counter()
            decoding = [
                asyncio.create_task(_token_times(client, f"Story {index}:", self.output_tokens))
                for index in range(self.decoding_jobs)
            ]
            result.ttfts_s = [(await client.complete(prompt, 2)).ttft_s for prompt in prompts]
            for times in await asyncio.gather(*decoding):
                result.gaps_s += [later - earlier for earlier, later in pairwise(times)]
            seconds = time.perf_counter() - start
        tokens = self.decoding_jobs * self.output_tokens + self.prompts * self.prompt_words
        result.tokens_per_s = tokens / seconds
        return result

    def _rows(self, rounds: dict[int, list[_Round]]) -> Iterator[dict[str, float]]:
        """Medians over the rounds."""
        for chunk, results in rounds.items():
            gaps = [sorted(result.gaps_s) for result in results]
            yield {
                "chunk": chunk,
                "gap_ms": 1000 * statistics.median(map(statistics.median, gaps)),
                "gap_p99_ms": 1000 * statistics.median(ordered[int(0.99 * len(ordered))] for ordered in gaps),
                "tpot_ms": 1000 * statistics.median(map(statistics.mean, gaps)),
                "ttft_s": statistics.median(statistics.median(result.ttfts_s) for result in results),
                "tokens_per_s": statistics.median(result.tokens_per_s for result in results),
            }


async def _token_times(client: Client, prompt: str, tokens: int) -> list[float]:
    """When each token of a completion came."""
    times: list[float] = []

    def progress(count: int) -> None:
        if count > len(times):
            times.append(time.perf_counter())

    await client.complete(prompt, tokens, progress)
    return times
