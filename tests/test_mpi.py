"""Real worlds: mpiexec, ranks that are processes, HTTP and the official client. Nothing may be left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from tiny_model import write_tiny_model

from launch.mpiexec import SKIPJOIN, find_mpiexec

pytestmark = pytest.mark.mpi

READY = re.compile(r"Skipjoin serves (.*) at (http\S+?/v1)")
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Server:
    """A server that was started as a user would."""

    process: "subprocess.Popen[str]"
    log: Path
    url: str = ""
    model: str = ""
    children: list[psutil.Process] = field(default_factory=list)
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self) -> openai.OpenAI:
        """A client that is closed with the server."""
        self.clients.append(openai.OpenAI(base_url=self.url, api_key="none", max_retries=0))
        return self.clients[-1]

    def metric(self, name: str) -> float:
        text = httpx.get(self.url.replace("/v1", "/metrics"), trust_env=False, timeout=30).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in\n{text}"
        return float(found[1])

    def wait(self, seconds: float = 30.0) -> int:
        return self.process.wait(seconds)


def said(log: Path) -> str:
    """What is there by now: cut somewhere, perhaps within a character of a progress bar."""
    return log.read_text(errors="replace")


@contextmanager
def running(command: list[str], log: Path, *, status: int = 0) -> Iterator[Server]:
    """The server of a command, ready; it ends with `status`, and leaves neither processes nor shared memory."""
    segments = set(SHARED_MEMORY.iterdir())
    with log.open("w") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True)
    server = Server(process, log)
    try:
        deadline = time.monotonic() + 120
        while not (found := READY.search(said(log))):
            assert process.poll() is None, said(log)
            assert time.monotonic() < deadline, said(log)
            time.sleep(0.05)
        server.model, server.url = found.groups()
        server.children = psutil.Process(process.pid).children(recursive=True)
        yield server
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert server.wait() == status, said(log)
        left = [child for child in server.children if is_alive(child)]
        assert not left, f"left behind: {left}"
    finally:
        for client in server.clients:
            client.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    new = {path for path in SHARED_MEMORY.iterdir() if path.name.startswith("mpich")} - segments
    new = {path for path in new if not in_use(path)}  # by another world on this machine
    assert not new, f"left behind: {new}"


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: whoever inherits it may take his time to note that."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def in_use(segment: Path) -> bool:
    def maps_it(process: psutil.Process) -> bool:
        with suppress(OSError):
            return str(segment) in Path(f"/proc/{process.pid}/maps").read_text()
        return False

    return any(map(maps_it, psutil.process_iter()))


def skipjoin(*options: str) -> list[str]:
    return [*SKIPJOIN, "serve", "--port", "0", *options]


def mpiexec(ranks: int, *options: str) -> list[str]:
    return [str(find_mpiexec()), "-n", str(ranks), *skipjoin(*options)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def say(server: Server, text: str = "hello", tokens: int = 12) -> str:
    answer = server.client().completions.create(model=server.model, prompt=text, max_tokens=tokens, temperature=0)
    return answer.choices[0].text


def until_refused(server: Server) -> None:
    """Ask until the server refuses: a signal takes a moment to arrive."""
    while True:
        say(server, tokens=1)


@pytest.mark.model
def test_the_embedded_model_chats_with_the_official_client(tmp_path: Path) -> None:
    with running(skipjoin(), tmp_path / "log") as server:
        client = server.client()
        assert [model.id for model in client.models.list()] == ["SmolLM2-135M-Instruct"]
        question = [{"role": "user", "content": "What is the capital of France?"}]
        plain = client.chat.completions.create(
            model="SmolLM2-135M-Instruct", messages=question, max_tokens=24, temperature=0
        )
        assert "Paris" in plain.choices[0].message.content
        with client.chat.completions.stream(
            model="SmolLM2-135M-Instruct", messages=question, max_tokens=24, temperature=0
        ) as stream:
            streamed = "".join(event.delta for event in stream if event.type == "content.delta")
        assert streamed == plain.choices[0].message.content


def test_one_command_and_mpiexec_serve_the_same(tiny: str, tmp_path: Path) -> None:
    texts = []
    for number, command in enumerate(
        [
            skipjoin(tiny, "--threads", "1"),
            skipjoin(tiny, "--threads", "1", "--pipeline-parallel", "2"),
            mpiexec(3, tiny, "--threads", "1", "--pipeline-parallel", "2"),
            mpiexec(4, tiny, "--threads", "1", "--pipeline-parallel", "2"),  # the fourth is a spare
        ]
    ):
        with running(command, tmp_path / f"log{number}") as server:
            texts.append(say(server))
    assert len(set(texts)) == 1
    assert texts[0]


def test_a_world_of_the_wrong_size_says_what_is_expected(tiny: str) -> None:
    done = subprocess.run(
        mpiexec(2, tiny, "--pipeline-parallel", "2"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "this MPI world has 2 ranks, but --pipeline-parallel 2 needs 3" in done.stderr
    assert done.stderr.count("skipjoin:") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["/nowhere/at/all"], "no such file or directory: /nowhere/at/all"),
        (["some-organization/some-model"], "hf download some-organization/some-model"),
        (["--quantum-growth", "1"], "--quantum-growth must be greater than 1"),
        (["--kv-device-memory", "1KiB"], "no room for KV"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_line(options: list[str], message: str, tmp_path: Path) -> None:
    for package in ("common", "gateway", "worker", "launch"):  # of somebody else, who happens to be there
        (tmp_path / f"{package}.py").write_text("raise SystemExit('not ours')")
    done = subprocess.run(skipjoin(*options), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said(tiny: str, tmp_path: Path) -> None:
    with running(skipjoin(tiny, "--threads", "1"), tmp_path / "log") as server:
        port = server.url.split(":")[2].split("/")[0]
        done = subprocess.run(
            [*skipjoin(tiny), "--port", port], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(tiny: str, tmp_path: Path, sign: signal.Signals) -> None:
    with running(skipjoin(tiny, "--threads", "1"), tmp_path / "log") as server:
        stream = server.client().completions.create(
            model=server.model, prompt="hello", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        server.process.send_signal(sign)
        with pytest.raises(openai.InternalServerError) as refused:
            until_refused(server)
        assert refused.value.code == "draining"
        assert float(refused.value.response.headers["retry-after"]) > 0
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert server.wait() == 0


def test_the_second_signal_forces_the_end_and_streams_are_told(tiny: str, tmp_path: Path) -> None:
    with running(skipjoin(tiny, "--threads", "1", "--drain-timeout", "60"), tmp_path / "log") as server:
        stream = server.client().completions.create(
            model=server.model, prompt="hello", max_tokens=1000, n=16, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError):
            until_refused(server)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert server.wait() == 0
        assert time.monotonic() - start < 15


def test_clients_that_go_away_in_the_middle_leave_nothing_behind(tiny: str, tmp_path: Path) -> None:
    with running(skipjoin(tiny, "--threads", "1"), tmp_path / "log") as server:
        body = {"prompt": "hello", "max_tokens": 900, "stream": True, "ignore_eos": True}

        def leave_early(number: int) -> None:
            with (
                httpx.Client(trust_env=False, timeout=60) as client,
                client.stream("POST", f"{server.url}/completions", json=body) as response,
            ):
                lines = response.iter_lines()
                for _ in range(3 + number % 5):
                    next(lines)

        with ThreadPoolExecutor(50) as pool:
            list(pool.map(leave_early, range(50)))
        # A job that is gone leaves its blocks to the plan that it was in, for one iteration more.
        used = ("skipjoin_jobs", *(f'skipjoin_kv_blocks_used{{memory="{memory}"}}' for memory in ("device", "host")))
        deadline = time.monotonic() + 10
        while any(map(server.metric, used)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [server.metric(name) for name in used] == [0, 0, 0]
        assert server.metric("skipjoin_aborted_total") == 50
        assert say(server)


def test_a_plain_request_whose_client_goes_away_is_aborted(tiny: str, tmp_path: Path) -> None:
    with running(skipjoin(tiny, "--threads", "1"), tmp_path / "log") as server:
        body = {"prompt": "hello", "max_tokens": 1000, "ignore_eos": True, "n": 8}
        with pytest.raises(httpx.ReadTimeout), httpx.Client(trust_env=False, timeout=0.3) as client:
            client.post(f"{server.url}/completions", json=body)
        deadline = time.monotonic() + 10
        while server.metric("skipjoin_jobs") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.metric("skipjoin_aborted_total") == 8


def test_the_trace_comes_when_it_is_asked_for(tiny: str, tmp_path: Path) -> None:
    with running(skipjoin(tiny, "--threads", "1"), tmp_path / "log") as server:
        body = {"prompt": "hello", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
        headers = {"x-skipjoin-trace": "1"}
        answer = httpx.post(f"{server.url}/completions", json=body, headers=headers, trust_env=False).json()
        assert answer["x_sched"]["iterations"] == 5
        assert "x_sched" not in httpx.post(f"{server.url}/completions", json=body, trust_env=False).json()
        streamed = httpx.post(
            f"{server.url}/completions", json={**body, "stream": True}, headers=headers, trust_env=False
        ).text
        last = json.loads(streamed.strip().split("\n\n")[-2].removeprefix("data: "))
        assert last["x_sched"]["iterations"] == 5
        stopped = {**body, "max_tokens": 200, "stop": answer["choices"][0]["text"][1:3], "temperature": 0}
        answer = httpx.post(f"{server.url}/completions", json=stopped, headers=headers, trust_env=False).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert 2 <= answer["x_sched"]["iterations"] < 200
        assert server.metric("skipjoin_aborted_total") == 0


def test_a_stage_that_falls_silent_is_told_and_ends_the_world_with_status_3(tiny: str, tmp_path: Path) -> None:
    command = skipjoin(tiny, "--threads", "1", "--iteration-timeout", "3")
    with running(command, tmp_path / "log", status=3) as server:
        (stage,) = [child for child in server.children if maps_torch(child)]
        stage.suspend()
        with pytest.raises(openai.APIError, match="no result within"):
            say(server)
        assert server.wait(60) == 3


def maps_torch(process: psutil.Process) -> bool:
    return "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()


def test_when_the_parent_is_killed_the_world_ends(tiny: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(skipjoin(tiny, "--threads", "1"), stdout=output, stderr=output)
    deadline = time.monotonic() + 60
    while not READY.search(said(log)) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()
    assert not alive


def test_a_gateway_that_cannot_leave_in_order_ends_the_world(tiny: str) -> None:
    program = """
import sys
from common.config import Config
from launch.rank import run_rank

def fail(channel):
    raise TimeoutError("the engine did not stop")

sys.exit(run_rank(Config(model=sys.argv[1], threads=1), fail))
"""
    command = [str(find_mpiexec()), "-n", "2", sys.executable, "-P", "-c", program, tiny]
    before = set(Path("/dev/shm").iterdir())
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    for segment in set(Path("/dev/shm").glob("mpich_shm*")) - before:
        segment.unlink()  # who is ended by MPI cleans nothing up
    assert done.returncode == 1
    assert "the engine did not stop" in done.stderr
