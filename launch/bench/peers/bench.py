"""`skipjoin bench peers`: what users feel of Skipjoin and of other servers, side by side."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile
from pathlib import Path
from typing import NoReturn

import msgspec
import platformdirs
import uvloop
from tqdm import tqdm

from common.config import ConfigError
from launch.bench.client import Client
from launch.bench.load import Load, LoadResult
from launch.bench.peers.checkpoint import export
from launch.bench.peers.report import OURS, Comparison, Run, draw, medians, report
from launch.bench.peers.servers import Contestant, Home, contestants
from launch.lab.page import machine
from launch.lab.plots import check_picture
from launch.lab.samples import summary
from launch.lab.workload import Request, make_requests

_SINGLE = [Request(0.0, 40, 128)] * 3
_WORKLOAD = "mix"
_REQUESTS_EACH = 3  # of every client of a closed loop, on average
_FEWEST, _MOST = 8, 20_000  # requests of an open loop
_SHORT_TOKENS = 48  # the longest output of a short request in the mix
_TOLD_ERRORS = 3  # of a run
_WARM_UP = [Request(0.0, 300, 24)] * 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersBench:
    """Compare Skipjoin with vLLM, llama.cpp and transformers on the embedded model, all on the same cores.

    Installs the others first, each into an environment of its own; llama.cpp is compiled. In every round each server is
    started in turn. It answers one stream, then closed loops of 4, 16 and 32 clients, then an open loop that asks for
    70 % and one for 130 % of the output tokens per second that it gave while all 32 were busy; Skipjoin is sent what
    each of the others was. Takes about half an hour for each round. The last line of output is JSON.
    """

    peers: tuple[str, ...] = ("vllm", "llama.cpp", "transformers")
    """Servers to compare with."""
    open_loop: tuple[str, ...] = ("vllm", "llama.cpp", "transformers")
    """Those among them to send open loops to."""
    clients: tuple[int, ...] = (4, 16, 32)
    """Clients of the closed loops."""
    shares: tuple[float, ...] = (0.7, 1.3)
    """What open loops ask for: these shares of the output tokens per second that the server gave the most clients."""
    rounds: int = 3
    """Times that all are measured; the medians count."""
    seconds: float = 60.0
    """Time in which the requests of an open loop arrive."""
    threads: int = len(os.sched_getaffinity(0))
    """CPU threads of every server. Default: one for each core that this process may use."""
    directory: Path = platformdirs.user_cache_path("skipjoin") / "peers"
    """Where environments and models are kept."""
    output: Path = Path("peers.json")
    """File for all that was measured; a picture is put beside it."""

    def run(self) -> int:
        """Raises ConfigError."""
        check_picture(self.output.with_suffix(".png"))
        chosen = [contestant for contestant in contestants() if contestant.name in (OURS, *self.peers)]
        if unknown := {*self.peers, *self.open_loop} - {contestant.name for contestant in chosen}:
            raise ConfigError(f"no such peer: {', '.join(sorted(unknown))}")
        home = Home(self.directory, export(self.directory / "model"), self.threads)
        for contestant in chosen:
            contestant.install(home)
        chosen.sort(key=lambda contestant: contestant.name == OURS)  # last: it is sent what the others were
        versions = {contestant.name: contestant.version for contestant in chosen}
        comparison = Comparison(machine(), self.threads, time.strftime("%Y-%m-%d"), [], versions)
        with tqdm(total=self.rounds * len(chosen)) as bar:
            for number in range(self.rounds):
                for contestant in chosen:
                    turn = _Turn(contestant, number, comparison.runs, bar)
                    with contestant.serve(home) as url:
                        uvloop.run(self._measure(turn, url, contestant.model(home)))
                    self.output.write_bytes(msgspec.json.format(msgspec.json.encode(comparison)) + b"\n")
                    bar.update()
        print(*report(comparison), sep="\n")
        draw(comparison, self.output.with_suffix(".png"))
        print(json.dumps({"bench": "peers", "medians": medians(comparison)}))
        return 0

    async def _measure(self, turn: "_Turn", url: str, model: str | None) -> None:
        async with Client(url) as client:
            await client.prepare(model)
            await Load(client, _WARM_UP, f"{turn.round}, warm-up").closed_loop(4)
            await turn.closed(client, "one stream", _SINGLE, 1)
            if not turn.contestant.under_load:
                return
            for clients in self.clients:
                requests = make_requests(_WORKLOAD, _REQUESTS_EACH * clients, seed=turn.round)
                await turn.closed(client, _clients(clients), requests, clients)
            for peer in self.open_loop:
                if turn.contestant.name in (OURS, peer):
                    for share in self.shares:
                        requests = _offered(share * turn.capacity(peer, max(self.clients)), self.seconds, turn.round)
                        await turn.open(client, f"{100 * share:.0f} % of {peer}", requests)


class _Turn:
    """One server in one round."""

    def __init__(self, contestant: Contestant, number: int, runs: list[Run], bar: "tqdm[NoReturn]") -> None:
        self.contestant = contestant
        self.round = number
        self._runs = runs  # of all servers and rounds so far
        self._bar = bar

    async def closed(self, client: Client, load: str, requests: Sequence[Request], clients: int) -> None:
        self._bar.set_description(f"{self.contestant.label}, {load}")
        self._add(load, await self._load(client, load, requests).closed_loop(clients))

    async def open(self, client: Client, load: str, requests: Sequence[Request]) -> None:
        self._bar.set_description(f"{self.contestant.label}, {load}")
        self._add(load, await self._load(client, load, requests).open_loop())

    def capacity(self, peer: str, clients: int) -> float:
        """Output tokens per second that `peer` served to so many busy clients in this round, in its fastest precision.

        Of the whole loop it would be less: towards its end most clients have nothing to ask. In requests that ended it
        would be more: short ones end first.
        """
        return max(
            run.busy_tokens_per_s
            for run in self._runs
            if (run.round, run.load) == (self.round, _clients(clients)) and run.server.split()[0] == peer
        )

    def _load(self, client: Client, load: str, requests: Sequence[Request]) -> Load:
        """With words of its own: those of an earlier load could be in a server's prefix cache."""
        return Load(client, requests, f"{self.round}, {load}")

    def _add(self, load: str, result: LoadResult) -> None:
        if not result.samples:
            raise ConfigError(f"{self.contestant.label} answered nothing: {result.errors[0]}")
        short = [sample for sample in result.samples if sample.output_tokens <= _SHORT_TOKENS]
        self._runs.append(
            Run(
                self.contestant.label,
                load,
                self.round,
                len(result.errors),
                result.tokens_per_s,
                len(result.samples) / result.duration_s,
                summary(result.samples),
                summary(short) if short else {},
                result.busy_tokens_per_s,
                result.errors[:_TOLD_ERRORS],
            )
        )


def _offered(tokens_per_s: float, seconds: float, seed: int) -> list[Request]:
    """Requests that arrive within `seconds`, and ask for so many output tokens per second of it; a few at least."""
    drawn = make_requests(_WORKLOAD, _MOST, seed=seed)
    tokens = accumulate(request.output_tokens for request in drawn)
    count = 1 + sum(1 for _ in takewhile(lambda sum_: sum_ < tokens_per_s * seconds, tokens))
    requests = drawn[: max(_FEWEST, count)]
    stretch = seconds / requests[-1].arrival_s
    return [replace(request, arrival_s=stretch * request.arrival_s) for request in requests]


def _clients(count: int) -> str:
    return f"{count} clients"
