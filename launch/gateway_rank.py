"""Rank 0: HTTP from the first moment, the engine beside it, progress while it loads, signals that drain."""

import asyncio
import gc
import json
import logging
import signal
import socket
import sys
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry, ProcessCollector

from common.channel import Channel
from common.config import Config, ConfigError
from common.model_files import ModelError, locate
from common.records import Stop, encode
from common.spec_reader import read_spec
from gateway.api.keys import load_keys
from gateway.app import create_app
from gateway.engine import JobEngine
from gateway.engine_metrics import EngineCollector
from gateway.http_server import http_server, raise_open_files_limit
from gateway.recording import Recorder
from gateway.start_up import Cluster
from gateway.text.text_model import load_text_model
from launch.bars import Bars

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_LOST = 3  # the workers are lost: a supervisor should start the job again
STOP_TIMEOUT_S = 10.0
# The engine's thread must not wait 5 ms, Python's default, until the event loop lets go of the interpreter.
GIL_SWITCH_S = 0.0005


def run_gateway(config: Config, channel: Channel) -> int:
    """Serve until a signal, or until the workers are lost. Returns the exit status.

    Raises TimeoutError, or what else makes leaving the world in order impossible.
    """
    sys.setswitchinterval(GIL_SWITCH_S)
    raise_open_files_limit()
    try:
        gateway = _Gateway(config, channel)
    except (ModelError, ConfigError, OSError) as error:
        print(f"skipjoin: {error}", file=sys.stderr)
        return _send_home(channel, EXIT_USAGE)
    except Exception:
        log.exception("the gateway cannot begin")
        return _send_home(channel, EXIT_FAILED)
    return uvloop.run(gateway.run())


def _send_home(channel: Channel, status: int) -> int:
    """Before the engine has begun, and with it its thread: then that does it."""
    channel.send(range(1, channel.size), encode(Stop()))
    channel.close(STOP_TIMEOUT_S)
    return status


class _Gateway:
    """One life of the process, from loading to the last stream's end."""

    def __init__(self, config: Config, channel: Channel) -> None:
        """Raises ModelError, ConfigError, and OSError when the port or a file cannot be had."""
        self._config = config
        self._listener = _listen(config)
        files = locate(config.model)
        spec = read_spec(files)
        text = load_text_model(files, spec, tool_format=config.tool_format, reasoning=config.reasoning)
        recorder = Recorder(Path(config.record)) if config.record else None
        self._engine = JobEngine(config, files, spec, channel, progress=Bars(), recorder=recorder)
        registry = CollectorRegistry()
        registry.register(EngineCollector(self._engine))
        ProcessCollector(registry=registry)
        app = create_app(config, self._engine, text, registry, load_keys(config))
        self._http = http_server(config, app)
        self._name = config.served_model_name or text.name
        self._forced = asyncio.Event()

    async def run(self) -> int:
        http = self._http
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        self._engine.start()
        serving = asyncio.create_task(http.serve(sockets=[self._listener]))
        if await self._engine.until("ready", "draining", "lost") == "ready":
            gc.freeze()  # What is there lives as long as the process; looking through it stopped all streams for 35 ms.
            self._announce()
        await self._engine.until("draining", "lost")
        await self._drain()
        if not await self._engine.stop(STOP_TIMEOUT_S):
            raise TimeoutError(f"the engine did not stop within {STOP_TIMEOUT_S:.0f} s")
        http.should_exit = True
        await serving
        if self._engine.failure is not None:
            print(f"skipjoin: {self._engine.failure}", file=sys.stderr)
            return EXIT_USAGE if self._engine.is_mistake else EXIT_LOST
        return 0

    def _on_signal(self) -> None:
        if self._engine.state == "draining":
            self._forced.set()
            return
        if self._engine.num_active:
            log.info("draining: %d jobs may finish, signal again to drop them", self._engine.num_active)
        self._engine.drain()

    async def _drain(self) -> None:
        """Wait for the jobs there are, within the drain timeout and unless a second signal forces the end."""
        ends = [asyncio.create_task(self._engine.until_idle()), asyncio.create_task(self._forced.wait())]
        await asyncio.wait(ends, timeout=self._config.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()

    # ------------------------------------------------------------------------------------------ for people

    def _announce(self) -> None:
        assert self._engine.cluster is not None
        log.info("%s", describe(self._config, self._engine.cluster))
        scheme = "https" if self._config.ssl_certfile else "http"
        url = f"{scheme}://{reachable(*self._listener.getsockname()[:2])}/v1"
        question = {"role": "user", "content": "Why is the sky blue?"}
        body = json.dumps({"messages": [question], "temperature": 0.2, "stream": True})
        print(f"Skipjoin serves {self._name} at {url}")
        print(f"  curl -N {url}/chat/completions -H 'content-type: application/json' -d '{body}'", flush=True)


def reachable(host: str, port: int) -> str:
    """Where clients on this host find what listens on an address, as URLs write it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(config: Config) -> socket.socket:
    try:
        is_v6 = ":" in config.host
        return socket.create_server(
            (config.host, config.port),
            family=socket.AF_INET6 if is_v6 else socket.AF_INET,
            backlog=2048,
            dualstack_ipv6=config.host == "::" and socket.has_dualstack_ipv6(),  # every interface means both kinds
        )
    except OSError as error:
        where = f"{config.host}:{config.port}"
        raise OSError(f"cannot listen on {where}: {error.strerror}; choose another --port or --host") from None


def describe(config: Config, cluster: Cluster) -> str:
    """What was set up, in one line."""
    pools = cluster.pools
    devices = ", ".join(f"{offer.hostname} {offer.device} {offer.dtype}" for offer in cluster.offers)
    return (
        f"{config.policy}, {config.kv_strategy} KV, batches of {cluster.config.batch_jobs} jobs, "
        f"context {cluster.max_context}; stages: {devices}; "
        f"{pools.num_device_blocks} device and {pools.num_host_blocks} host blocks of {config.block_tokens} tokens, "
        f"{pools.block_bytes / 2**20:.2f} MiB each; decode iteration {1000 * cluster.profile.decode_s(1):.1f} ms "
        f"({'cached' if cluster.profile_was_cached else 'measured'})"
    )
