"""How long a healthy stream stands still for hostile input, beside how long it does without: the embedded model, HTTP.

What else the machine does is in both numbers, and so are the processors that the senders take from the model.
"""

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import pytest
from test_hostile import (
    BODIES,
    CHAT,
    COMPLETIONS,
    HI,
    IMPOSSIBLE_CHATS,
    IMPOSSIBLE_COMPLETIONS,
    REGEXES,
    SCHEMAS,
    Bystander,
)
from test_mpi import Server, running, skipjoin

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

MOST_STALL_S = 0.2
MOST_REFUSAL_S = 1.0  # of a grammar
ROUNDS = 3
SECONDS = 1.0  # of each round, without and with
SENDERS = 2

Input = tuple[str, bytes]  # path and body


def inputs() -> dict[str, Input]:
    """Those of tests/test_hostile.py. Of what is one token to say, the model says that one."""
    chat, completion = {"messages": [HI], "max_tokens": 1}, {"prompt": "hi", "max_tokens": 1}
    found: dict[str, Input] = {f"body: {name}": (CHAT, body) for name, body in BODIES.items()}
    for fields in IMPOSSIBLE_COMPLETIONS:
        body = json.dumps(completion | fields).encode()
        found[f"completion: {','.join(fields)}, {len(body)} bytes"] = (COMPLETIONS, body)
    found["completion: 1024 prompts of 8000 characters"] = (
        COMPLETIONS,
        json.dumps(completion | {"prompt": ["word " * 1600] * 1024, "max_tokens": 10**6}).encode(),
    )
    echoed = {"prompt": [1] * 1000, "echo": True, "logprobs": 20, "n": 4}
    found["completion: an echo of 1000 tokens with logprobs"] = (COMPLETIONS, json.dumps(completion | echoed).encode())
    found["detokenize: 100000 tokens"] = ("/detokenize", json.dumps({"tokens": [9] * 100_000}).encode())
    strings = {"prompt": "a" * 4000, "return_token_strs": True}
    found["tokenize: 4000 characters, with their tokens' strings"] = ("/tokenize", json.dumps(strings).encode())
    for fields in IMPOSSIBLE_CHATS:
        body = json.dumps(chat | fields).encode()
        found[f"chat: {','.join(fields)}, {len(body)} bytes"] = (CHAT, body)
    for name, schema in SCHEMAS.items():
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        found[f"schema: {name}"] = (CHAT, json.dumps(chat | {"response_format": asked}).encode())
        found[f"tool: {name}"] = (CHAT, json.dumps(chat | {"tools": [tool], "tool_choice": "required"}).encode())
    for regex in REGEXES:
        found[f"regex: {regex}"] = (COMPLETIONS, json.dumps(completion | {"guided_regex": regex}).encode())
    return found


def send(url: str, orders: Connection) -> None:
    """A process: sends an input again and again until it is told to stop, and says what the slowest refusal took."""
    with httpx.Client(trust_env=False, timeout=60, headers={"content-type": "application/json"}) as client:
        while (order := orders.recv()) is not None:
            path, body = order
            slowest_s, served = 0.0, False
            while not orders.poll():
                start = time.monotonic()
                if client.post(url + path, content=body).status_code == 200:
                    served = True
                else:
                    slowest_s = max(slowest_s, time.monotonic() - start)
            orders.recv()
            orders.send((slowest_s, served))


@contextmanager
def sending(server: Server) -> Iterator["Senders"]:
    """Processes of their own, so that what they compute is not the reader's work."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(SENDERS)]
    processes = [context.Process(target=send, args=(server.url.removesuffix("/v1"), theirs)) for _, theirs in pipes]
    for process in processes:
        process.start()
    try:
        yield Senders([ours for ours, _ in pipes])
    finally:
        for (ours, _), process in zip(pipes, processes, strict=True):
            ours.send(None)
            process.join(60)


class Senders:
    """All send the same."""

    def __init__(self, orders: list[Connection]) -> None:
        self._orders = orders

    def begin(self, order: Input) -> None:
        for orders in self._orders:
            orders.send(order)

    def end(self) -> tuple[float, bool]:
        """Returns how long the slowest refusal took, and whether anything was served."""
        for orders in self._orders:
            orders.send("enough")
        ends = [orders.recv() for orders in self._orders]
        return max(slowest_s for slowest_s, _ in ends), any(served for _, served in ends)


@dataclass
class Stall:
    """Seconds; of the gaps the longest of each round."""

    without: list[float]
    hostile: list[float]
    refusal: float
    served: bool  # then it is work like any other, whose prompt takes its share of every iteration

    def __str__(self) -> str:
        numbers = [pick(rounds) for rounds in (self.without, self.hostile) for pick in (statistics.median, max)]
        text = " ".join(f"{number * 1000:6.0f}" for number in (*numbers, self.refusal))
        return text + ("  served " if self.served else "  refused")

    @property
    def longer(self) -> float:
        return statistics.median(self.hostile) - statistics.median(self.without)


def measure(healthy: Bystander, senders: Senders, order: Input) -> Stall:
    stall = Stall([], [], 0.0, served=False)
    for _ in range(ROUNDS):
        healthy.longest_gap_s = 0.0
        time.sleep(SECONDS)
        stall.without.append(healthy.longest_gap_s)
        healthy.longest_gap_s = 0.0
        senders.begin(order)
        time.sleep(SECONDS)
        refusal, served = senders.end()  # after this nothing of it is under way
        stall.refusal = max(stall.refusal, refusal)
        stall.served |= served
        stall.hostile.append(healthy.longest_gap_s)
    return stall


def test_no_hostile_input_stalls_a_healthy_stream(tmp_path: Path) -> None:
    with running(skipjoin(), tmp_path / "log") as server, Bystander(server) as healthy:
        with sending(server) as senders:
            found = {name: measure(healthy, senders, order) for name, order in inputs().items()}
        healthy.stop()
    sys.stderr.write("\nlongest gaps in ms, median and worst of the rounds: without, with; slowest refusal\n")
    for name, stall in sorted(found.items(), key=lambda item: -item[1].longer):
        sys.stderr.write(f"{stall}  {name}\n")
    no_work = {name: stall for name, stall in found.items() if not stall.served or "tokenize" in name}
    assert {name for name, stall in no_work.items() if stall.longer > MOST_STALL_S} == set()
    grammars = {name: stall for name, stall in found.items() if name.startswith(("schema", "tool", "regex"))}
    assert {name for name, stall in grammars.items() if stall.refusal > MOST_REFUSAL_S} == set()
