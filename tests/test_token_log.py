"""Which tokens a text is made of, when only some of the text is certain."""

from common.records import Logprobs
from gateway.text.token_log import Likelihood, Said, TokenLog


def log(*tokens: tuple[int, str]) -> TokenLog:
    made = TokenLog(lambda token: bytes([token]))
    for token, text in tokens:
        made.add(token, text, None)
    return made


def ids(said: list[Said]) -> list[int]:
    return [one.token for one in said]


def test_a_token_is_given_when_its_text_is_certain_and_once() -> None:
    made = log((1, "ab"), (2, "c"), (3, "de"))
    assert ids(made.take(0)) == []
    assert ids(made.take(2)) == [1]
    assert ids(made.take(4)) == [2, 3]
    assert ids(made.take(5)) == []


def test_the_tokens_of_one_character_come_together() -> None:
    made = log((1, "a"), (0xC3, ""), (0xA9, "é"), (2, "b"))
    assert ids(made.take(1)) == [1]
    assert [one.offset for one in made.take(2)] == [1, 1]


def test_a_token_that_breaks_a_character_off_begins_behind_it() -> None:
    made = log((ord("a"), "a"), (0xC3, ""), (ord("b"), "\ufffdb"), (ord("c"), "c"))
    assert [one.offset for one in made.rest()] == [0, 1, 2, 3]
    made = log((ord("a"), "a"), (0xC3, ""), (0xC3, "\ufffd"), (0xA9, "é"), (ord("b"), "b"))
    assert [one.offset for one in made.rest()] == [0, 1, 2, 2, 3]


def test_what_comes_after_all_text_comes_in_the_end() -> None:
    made = log((1, "a"), (0xC3, ""))
    assert ids(made.take(1)) == [1]
    assert ids(made.rest()) == [0xC3]
    assert made.rest() == []


def test_log_probabilities_are_of_tokens_as_bytes() -> None:
    made = TokenLog(lambda token: bytes([token]))
    made.add(97, "a", Logprobs(-1.0, [(98, -0.5), (97, -1.0)]))
    [said] = made.rest()
    assert said == Said(97, b"a", 0, Likelihood(b"a", -1.0), (Likelihood(b"b", -0.5), Likelihood(b"a", -1.0)))
