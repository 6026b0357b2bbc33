"""A model's language from its files, whatever their form."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio.to_thread
import pytest
from fakes_gateway import TEMPLATE, byte_backend, byte_text_model
from test_gguf_tokenizer import metadata
from test_tokenizer import save_vocab_and_merges

from common.model_files import ModelFiles
from common.model_spec import Family, ModelSpec
from gateway.text.conversation import Conversation
from gateway.text.template import TemplateRefusal
from gateway.text.text_model import PromptTooLong, load_text_model

USER = {"role": "user", "content": "hi"}


def spec(family: Family = "llama") -> ModelSpec:
    return ModelSpec(
        family=family,
        architecture="test",
        num_layers=1,
        hidden_size=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        ffn_size=8,
        vocab_size=300,
        context_length=64,
        dtype="fp32",
        activation="silu",
        norm_eps=1e-5,
        tied_embeddings=True,
        eos_token_ids=(256, 7),
        bos_token_id=None,
    )


def test_a_directory_gives_tokenizer_template_and_ends(tmp_path: Path) -> None:
    byte_backend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    text = load_text_model(ModelFiles("safetensors", tmp_path, "m"), spec())
    assert (text.name, text.stop_tokens, text.vocab_size) == ("m", frozenset({256, 7}), 300)
    assert asyncio.run(text.encode_chat(Conversation([USER]), 100)).tokens == list(b"user: hi\nassistant: ")


def test_ends_that_the_embedding_has_no_row_for_never_come(tmp_path: Path) -> None:
    byte_backend().save(str(tmp_path / "tokenizer.json"))
    files = ModelFiles("safetensors", tmp_path, "m")
    assert load_text_model(files, replace(spec(), vocab_size=256)).stop_tokens == {7}
    assert load_text_model(files, replace(spec(), eos_token_ids=(-1,))).stop_tokens == frozenset()


def test_opt_has_its_token_in_front_of_prompts(tmp_path: Path) -> None:
    save_vocab_and_merges(tmp_path)
    text = load_text_model(ModelFiles("safetensors", tmp_path, "m"), spec("opt"))
    assert text.tokenizer.encode("")[:1] == [2]
    assert text.chat is None


def test_gguf_metadata_that_was_read_already_is_not_read_again(tmp_path: Path) -> None:
    fields = metadata() | {"tokenizer.chat_template": "{{ bos_token }}!"}
    text = load_text_model(ModelFiles("gguf", tmp_path / "missing.gguf", "m"), spec(), fields)
    assert asyncio.run(text.encode_chat(Conversation([USER]), 100)).tokens == [256, 0]


def test_a_chat_text_gets_no_second_frame(tmp_path: Path) -> None:
    fields = metadata(add_bos_token=True) | {"tokenizer.chat_template": "{{ bos_token }}!"}
    text = load_text_model(ModelFiles("gguf", tmp_path / "missing.gguf", "m"), spec(), fields)
    assert asyncio.run(text.encode_chat(Conversation([USER]), 100)).tokens == [256, 0]
    assert asyncio.run(text.encode(["!", "!!"], 100)) == [[256, 0], [256, 0, 0]]


@pytest.mark.parametrize("size", [10, 100_000])
def test_small_and_large_texts_encode_alike(size: int) -> None:
    text = byte_text_model()
    conversation = Conversation([{"role": "user", "content": "x" * size}])
    assert asyncio.run(text.encode(["x" * size], size)) == [[120] * size]
    assert len(asyncio.run(text.encode_chat(conversation, 2 * size + 40)).tokens) == size + 18


def test_many_small_texts_are_encoded_in_a_thread_as_a_large_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    in_threads = []

    async def run_sync(work: Callable[[], object]) -> object:
        in_threads.append(work)
        return work()

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_sync)
    text = byte_text_model()
    asyncio.run(text.encode(["x"] * 10, 10))
    assert not in_threads
    assert asyncio.run(text.encode(["x" * 100] * 100, 100)) == [[120] * 100] * 100
    assert asyncio.run(text.decode([[120] * 100] * 100)) == ["x" * 100] * 100
    assert len(asyncio.run(text.echoes([[120] * 100] * 100, [None] * 100))) == 100
    assert len(in_threads) == 3


@pytest.mark.parametrize("size", [1000, 100_000])
def test_what_cannot_fit_is_not_even_encoded(size: int) -> None:
    text = byte_text_model()
    with pytest.raises(PromptTooLong, match=str(size // 7)):
        asyncio.run(text.encode(["x" * size], 10))
    with pytest.raises(PromptTooLong):
        asyncio.run(text.encode_chat(Conversation([{"role": "user", "content": "x" * size}]), 10))


def test_without_a_template_there_is_no_chat() -> None:
    with pytest.raises(TemplateRefusal, match="/v1/completions"):
        asyncio.run(byte_text_model(template=None).encode_chat(Conversation([USER]), 10))
