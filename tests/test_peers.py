"""The comparison with other servers: the model that they are given, the rounds, and what is told of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes_gateway import FakeEngine, serving

from common.gguf_file import read_gguf
from common.gguf_spec import gguf_spec
from common.hf_spec import hf_spec
from gateway.text.gguf_tokenizer import gguf_tokenizer
from gateway.text.tokenizer import load_tokenizer
from launch.bench.peers import bench
from launch.bench.peers.bench import PeersBench
from launch.bench.peers.checkpoint import Checkpoint, export
from launch.bench.peers.report import Comparison, Run, draw, medians, report
from launch.bench.peers.servers import Contestant, Home, contestants
from worker.gguf_weights import GgufWeights
from worker.safetensors_weights import SafetensorsWeights


@pytest.mark.model
def test_others_are_given_the_embedded_model_in_bf16_and_without_an_end(tmp_path: Path) -> None:
    checkpoint = export(tmp_path / "model")
    file = read_gguf(checkpoint.packed)
    ours, theirs = gguf_spec(file), hf_spec(checkpoint.directory)
    assert theirs == replace(ours, architecture=theirs.architecture, dtype="bf16", eos_token_ids=())
    text = "In 1984, 12345 cats\n\tsang: ça va? 🙂"
    assert load_tokenizer(checkpoint.directory).encode(text) == gguf_tokenizer(file.metadata).encode(text)
    device, dtype = torch.device("cpu"), torch.bfloat16
    name, shape = "model.layers.29.self_attn.q_proj.weight", (576, 576)
    given = SafetensorsWeights(checkpoint.directory, device, dtype).get(name, *shape)
    assert torch.equal(given, GgufWeights(file, ours, device, dtype).get(name, *shape))


@pytest.mark.model
def test_transformers_finds_all_that_it_looks_for_in_that_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - seconds

    _, found = AutoModelForCausalLM.from_pretrained(export(tmp_path).directory, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


@pytest.mark.parametrize("tokens_per_s", [50.0, 700.0])
def test_an_open_loop_asks_for_as_many_tokens_per_second_as_it_is_told(tokens_per_s: float) -> None:
    requests = bench._offered(tokens_per_s, 60.0, seed=3)
    tokens = sum(request.output_tokens for request in requests)
    assert 60 * tokens_per_s <= tokens < 60 * tokens_per_s + 400
    assert requests[-1].arrival_s == 60.0


def test_every_server_has_a_name_of_its_own() -> None:
    labels = [contestant.label for contestant in contestants()]
    assert len(set(labels)) == len(labels)


def test_each_round_sends_the_same_loads_to_all_and_ours_those_of_every_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed: list[str] = []
    engines: list[FakeEngine] = []

    def contestant(name: str, *, under_load: bool = True) -> Contestant:
        @contextmanager
        def serve(home: Home) -> Iterator[str]:
            engines.append(FakeEngine("abc"))
            with serving(engines[-1]) as url:
                yield f"{url}/v1"

        return Contestant(name, "1.0", "bf16", lambda home: installed.append(name), serve, under_load=under_load)

    monkeypatch.setattr(
        bench,
        "contestants",
        lambda: [contestant("skipjoin"), contestant("vllm"), contestant("llama.cpp", under_load=False)],
    )
    monkeypatch.setattr(bench, "export", lambda directory: Checkpoint(directory, directory))
    output = tmp_path / "peers.json"
    peers = PeersBench(
        peers=("vllm", "llama.cpp"), open_loop=("vllm",), rounds=2, seconds=0.01, directory=tmp_path, output=output
    )
    assert peers.run() == 0

    assert installed == ["skipjoin", "vllm", "llama.cpp"]
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["medians"]
    under_load = {"4 clients", "16 clients", "32 clients", "70 % of vllm", "130 % of vllm"}
    assert found.keys() == {"one stream"} | under_load
    for load, servers in found.items():
        assert servers.keys() == {"vllm bf16", "skipjoin bf16"} | (
            {"llama.cpp bf16"} if load == "one stream" else set()
        )
    assert "short JCT P95, s" not in found["one stream"]["vllm bf16"]  # no request was short
    for engine in engines:
        _, _, *sent = engine.jobs  # after the client has learnt how long words are
        prompts = [tuple(job.prompt[:64]) for job in sent if len(job.prompt) > 64]
        assert len(prompts) >= 8
        assert len(set(prompts)) == len(prompts), "a server could have the beginning of a prompt in its prefix cache"
    assert json.loads(output.read_text())["versions"] == dict.fromkeys(("skipjoin", "vllm", "llama.cpp"), "1.0")
    runs = json.loads(output.read_text())["runs"]
    assert [run["round"] for run in runs if run["server"] == "llama.cpp bf16"] == [0, 1]
    assert output.with_suffix(".png").stat().st_size > 0


def run(server: str, round_: int, tokens_per_s: float) -> Run:
    figures = {f"{kind}_{name}_s": 1.0 for kind in ("mean", "p95") for name in ("ttft", "tpot", "jct")}
    return Run(server, "one stream", round_, 0, tokens_per_s, 1.0, figures, {})


def test_the_medians_of_the_rounds_are_told(tmp_path: Path) -> None:
    runs = [run("a", 0, 1.0), run("b", 0, 5.0), run("a", 1, 9.0), run("a", 2, 3.0)]
    comparison = Comparison("2 cores", 2, "2026-01-01", runs)
    found = medians(comparison)["one stream"]
    assert {server: figures["tok/s"] for server, figures in found.items()} == {"a": 3.0, "b": 5.0}
    assert found["a"]["TTFT, ms"] == 1000.0
    assert found["a"]["failed"] == 0
    _, head, first, second = "\n".join(report(comparison)).split("\n")
    assert head.split()[:3] == ["one", "stream", "tok/s"]
    assert [first.split()[0], second.split()[0]] == ["a", "b"]
    draw(comparison, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0
