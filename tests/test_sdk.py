"""Several versions of the official clients, each in an environment of its own, against servers of every mood."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import platformdirs
import pytest
from fakes_gateway import WAIT_S, FakeEngine, serving
from test_errors import BrokenEngine

from common.config import Config
from gateway.api.keys import load_keys

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
ENVIRONMENTS = Path(platformdirs.user_cache_dir("skipjoin-sdk"))
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'


@pytest.fixture
def endless() -> FakeEngine:
    return FakeEngine(lambda job: [97] * job.max_tokens, max_context=2 * 10**6)


@pytest.fixture
def urls(endless: FakeEngine) -> Iterator[dict[str, str]]:
    """Servers that are well, full, slow, loading, broken, ..."""
    full, slow, loading, failing = FakeEngine(), FakeEngine(), FakeEngine(), FakeEngine()
    full.full_for_s = 0.1
    slow.close_gate()
    loading.state = "loading"
    failing.fails = True
    engines = {"plain": FakeEngine(), "full": full, "slow": slow, "loading": loading, "failing": failing}
    engines |= {"broken": BrokenEngine(), "endless": endless}
    engines |= {"json": FakeEngine('{"name":"Oslo"}'), "tools": FakeEngine(CALL)}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(serving(engine)) for name, engine in engines.items()}
        keys = load_keys(Config(), {"SKIPJOIN_API_KEYS": "sk-a"})
        urls["keys"] = stack.enter_context(serving(keys=keys))
        yield urls | {"nowhere": "http://127.0.0.1:9"}


def python_with(version: str) -> Path:
    """A Python that has this version of the client and nothing of ours; "" is the newest."""
    folder = ENVIRONMENTS / f"openai-{version or 'newest'}"
    python = folder / "bin" / "python"
    if not version or not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        requirement = f"openai=={version}" if version else "openai"
        subprocess.run([python, "-m", "pip", "install", "-qq", "--upgrade", requirement], check=True)
        (folder / "installed").touch()
    return python


@pytest.mark.parametrize("version", ["1.109.1", "2.54.0", ""], ids=["1.109.1", "2.54.0", "newest"])
def test_the_python_client_of_this_version_works(version: str, urls: dict[str, str], endless: FakeEngine) -> None:
    command = [python_with(version), HERE / "sdk_client.py", json.dumps(urls)]
    subprocess.run(command, check=True, cwd=ENVIRONMENTS, timeout=300, env=os.environ | {"PYTHONPATH": ""})
    assert all(stream.aborted.wait(WAIT_S) for stream in endless.streams)
    assert len(endless.streams) == 2  # of the synchronous client, and of the asynchronous one


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
def test_the_newest_client_for_node_works(urls: dict[str, str], endless: FakeEngine) -> None:
    folder = ENVIRONMENTS / "node"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "install", "--silent", "--no-save", "openai@latest"], check=True, cwd=folder)
    subprocess.run(["node", HERE / "sdk_client.mjs", json.dumps(urls)], check=True, cwd=folder, timeout=300)
    assert [stream.aborted.wait(WAIT_S) for stream in endless.streams] == [True]
