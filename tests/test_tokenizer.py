"""Tokenizers from directories: every form that Hugging Face models come in."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes_gateway import END, byte_backend
from tokenizers import models

from common.model_files import ModelError
from gateway.text.detokenizer import BYTE_OF_CHARACTER
from gateway.text.tokenizer import SpecialTokens, Tokenizer, load_tokenizer, prepend_token, tokenizer_settings

SETTINGS = {"bos_token": {"content": "</s>"}, "eos_token": "</s>", "pad_token": None, "model_max_length": 5}


def save_vocab_and_merges(directory: Path) -> None:
    """As OPT has it: special tokens first, then the bytes."""
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", *BYTE_OF_CHARACTER])}
    models.BPE(vocab=vocab, merges=[]).save(str(directory))
    (directory / "tokenizer_config.json").write_text(json.dumps(SETTINGS))


def test_a_tokenizer_json_is_read_and_its_own_limit_is_lifted(tmp_path: Path) -> None:
    backend = byte_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("abcdef") == list(b"abcdef")
    assert tokenizer.encode("a") == [97]


def share_of_time_that_others_stood_still(work: Callable[[], object]) -> float:
    """The longest pause of another thread, as a share of what `work` took."""
    pauses, done = [0.0], threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not done.wait(0.001):
            pauses.append(time.monotonic() - last)
            last = time.monotonic()
        pauses.append(time.monotonic() - last)

    other = threading.Thread(target=tick)
    other.start()
    start = time.monotonic()
    work()
    seconds = time.monotonic() - start
    done.set()
    other.join()
    return max(pauses) / seconds


def test_others_go_on_while_a_long_text_is_encoded() -> None:
    tokenizer = Tokenizer(byte_backend(), SpecialTokens({}))
    text = "once upon a time " * 20_000
    shares = [share_of_time_that_others_stood_still(lambda: tokenizer.encode(text)) for _ in range(3)]
    assert min(shares) < 0.5


def test_opt_wants_its_end_token_before_every_prompt(tmp_path: Path) -> None:
    save_vocab_and_merges(tmp_path)
    opt = load_tokenizer(tmp_path, prepend_bos=True)
    assert opt.encode("")[:1] == [2]
    assert opt.encode("hi") == [2, *opt.encode("hi", add_special_tokens=False)]
    assert opt.decode(opt.encode("hi")) == "hi"


def test_gpt_2_has_nothing_before_a_prompt(tmp_path: Path) -> None:
    save_vocab_and_merges(tmp_path)
    gpt_2 = load_tokenizer(tmp_path)
    assert len(gpt_2.encode("hi")) == 2
    assert gpt_2.encode("</s>") == [2]


def test_special_tokens_are_known_by_name_whatever_their_form(tmp_path: Path) -> None:
    save_vocab_and_merges(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"unk_token": {"content": "<s>"}, "eos_token": "wrong"}')
    assert load_tokenizer(tmp_path).special.by_name == {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<s>"}


def test_a_directory_without_a_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ModelError, match="save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    save_vocab_and_merges(tmp_path)
    (tmp_path / name).write_text('{"version": ')
    with pytest.raises(ModelError, match=name):
        load_tokenizer(tmp_path)


def test_damaged_merges_are_named(tmp_path: Path) -> None:
    save_vocab_and_merges(tmp_path)
    (tmp_path / "merges.txt").write_text("#version\nnot a pair\n")
    with pytest.raises(ModelError, match=r"merges\.txt"):
        load_tokenizer(tmp_path)


def test_a_token_that_must_come_first_must_exist() -> None:
    with pytest.raises(ModelError, match="<nope>"):
        prepend_token(byte_backend(), "<nope>")


def test_settings_of_the_configuration_win(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "a", "bos_token": "b"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "c"}')
    assert tokenizer_settings(tmp_path) == {"eos_token": "c", "bos_token": "b"}


def test_special_tokens_in_a_text_become_those_tokens() -> None:
    tokenizer = Tokenizer(byte_backend(), SpecialTokens({}))
    assert tokenizer.encode("a<|end|>b<|end") == [97, END, 98, *b"<|end"]


def test_the_lower_bound_is_got_from_the_length_where_that_is_enough() -> None:
    tokenizer = Tokenizer(byte_backend(), SpecialTokens({}))
    assert tokenizer.fewest_tokens("<|end|>" * 10, 9) == 10 == len(tokenizer.encode("<|end|>" * 10))
    assert tokenizer.fewest_tokens("x" * 70, 9) == 10


def test_the_lower_bound_is_got_from_the_beginning_of_a_text_that_is_clearly_too_long() -> None:
    backend = byte_backend()
    backend.add_special_tokens(["<|a token of 25 letters|>"])
    tokenizer = Tokenizer(backend, SpecialTokens({}))
    assert tokenizer.fewest_tokens("x" * 801, 100) == 8 * 100 - 25
    assert tokenizer.fewest_tokens("x" * 799, 100) == 799 // 25


def test_threads_share_one_tokenizer() -> None:
    tokenizer = Tokenizer(byte_backend(), SpecialTokens({}))
    texts = [f"thread {i} " * 50 for i in range(50)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == [list(text.encode()) for text in texts]
