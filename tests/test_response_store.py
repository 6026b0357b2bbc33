"""What is kept of responses: no more than the bounds say, oldest first, and nothing of what is deleted."""

from typing import Any

import msgspec
import pytest

from gateway.accounts import Account, Limits
from gateway.api.errors import ApiError
from gateway.api.responses.records import Item, ReasoningConfig, Response, TextConfig
from gateway.api.responses.store import EVENT_BYTES, ResponseStore, Stored

ALICE = Account("alice", Limits())


def response(name: str, **changes: Any) -> Response:
    return Response(
        id=name,
        created_at=1,
        background=False,
        instructions=None,
        max_output_tokens=None,
        metadata={},
        model="m",
        parallel_tool_calls=True,
        previous_response_id=None,
        reasoning=ReasoningConfig(),
        store=True,
        temperature=None,
        text=TextConfig(),
        tool_choice="auto",
        tools=[],
        top_logprobs=0,
        top_p=None,
        **changes,
    )


def keep(store: ResponseStore, name: str, text: str = "") -> None:
    items = [Item(role="user", content=text)]
    store.add(Stored(ALICE, items, items, response(name)))


def finish(store: ResponseStore, name: str) -> None:
    store.finish(response(name, status="completed"), keep_events=False)


def kept(store: ResponseStore, *names: str) -> list[str]:
    def has(name: str) -> bool:
        try:
            store.get(name, ALICE)
        except ApiError:
            return False
        return True

    return [name for name in names if has(name)]


def test_only_so_many_are_kept_and_the_oldest_go_first() -> None:
    store = ResponseStore(max_responses=2)
    for name in "abc":
        keep(store, name)
        finish(store, name)
    assert kept(store, *"abc") == ["b", "c"]


def test_only_so_many_bytes_are_kept() -> None:
    size = len(msgspec.json.encode(response("a", status="completed")))
    store = ResponseStore(max_bytes=3 * size)
    for name in "abc":
        keep(store, name, "x" * size)
        finish(store, name)
    assert kept(store, *"abc") == ["c"]


def test_what_a_conversation_holds_counts_when_those_who_began_it_are_gone() -> None:
    store = ResponseStore(max_responses=2, max_bytes=10_000)
    items: list[Item] = []
    for name in "abcde":
        items = [*items, Item(role="user", content="x" * 3000)]
        store.add(Stored(ALICE, items, items[-1:], response(name)))
        finish(store, name)
    assert kept(store, *"abcde") == []
    for name in "ab":
        keep(store, name, "x" * 3000)
        finish(store, name)
    assert kept(store, *"ab") == ["a", "b"]


def test_items_that_responses_share_count_once() -> None:
    store = ResponseStore(max_bytes=10_000)
    asked, said = (Item(role="user", content="x" * 3000) for _ in range(2))
    store.add(Stored(ALICE, [asked], [asked], response("a")))
    store.finish(response("a", status="completed", output=[said]), keep_events=False)
    store.add(Stored(ALICE, [asked, said], [], response("b")))
    finish(store, "b")
    assert kept(store, *"ab") == ["a", "b"]
    for name in "ab":
        store.remove(name)
    assert repr(store) == "<ResponseStore 0 responses, 0 bytes>"


def test_events_that_are_kept_count() -> None:
    class Production:
        num_events = 1000

    store = ResponseStore(max_bytes=EVENT_BYTES * 1500)
    for name in "ab":
        store.add(Stored(ALICE, [], [], response(name), Production()))  # type: ignore[arg-type]
        store.finish(response(name, status="completed"), keep_events=True)
    assert kept(store, *"ab") == ["b"]


def test_what_is_still_being_made_is_never_dropped() -> None:
    store = ResponseStore(max_responses=1)
    for name in "abc":
        keep(store, name)
    finish(store, "c")
    assert kept(store, *"abc") == ["a", "b"]


def test_nothing_is_left_of_what_is_removed() -> None:
    store = ResponseStore()
    keep(store, "a", "x" * 1000)
    finish(store, "a")
    store.remove("a")
    finish(store, "a")
    assert repr(store) == "<ResponseStore 0 responses, 0 bytes>"


def test_others_cannot_have_it() -> None:
    store = ResponseStore()
    keep(store, "a")
    with pytest.raises(ApiError) as caught:
        store.get("a", Account("alice", Limits()))
    assert caught.value.status == 404


def test_an_item_is_found_by_its_owner_as_long_as_its_response_is_kept() -> None:
    store = ResponseStore()
    asked, said = (Item(role="user", content="x", id=name) for name in ("asked", "said"))
    store.add(Stored(ALICE, [asked], [asked], response("a")))
    store.finish(response("a", status="completed", output=[said]), keep_events=False)
    for item in (asked, said):
        assert store.item(str(item.id), ALICE) is item
        assert store.item(str(item.id), Account("alice", Limits())) is None
    store.remove("a")
    assert store.item("asked", ALICE) is store.item("said", ALICE) is None


def test_an_id_that_is_used_again_is_the_later_item() -> None:
    store = ResponseStore()
    first, second = (Item(role="user", content=text, id="mine") for text in "ab")
    store.add(Stored(ALICE, [first], [first], response("a")))
    store.add(Stored(ALICE, [second], [second], response("b")))
    store.remove("a")
    assert store.item("mine", ALICE) is second
