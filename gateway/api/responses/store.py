"""The responses that can still be asked for: in memory, bounded, each for its own account. The oldest go first."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from gateway.accounts import Account
from gateway.api.errors import ApiError
from gateway.api.responses.production import Production
from gateway.api.responses.records import Item, Response

MAX_RESPONSES = 2000
MAX_BYTES = 64 * 2**20
EVENT_BYTES = 300  # that an event takes: a record, a few numbers, and a text that is mostly short
REFERENCE_BYTES = 8  # that an earlier item takes in a conversation


@dataclass(slots=True)
class Stored:
    """A response, what it answered, and who makes it as long as it is being made."""

    account: Account
    items: Sequence[Item]  # all that came before its output, earlier responses included
    own_items: Sequence[Item]  # of those, what came with its request
    response: Response
    production: Production | None = None
    output: Sequence[Item] = ()  # once it has ended
    size: int = 0  # bytes of what it shares with nobody: its items may be in responses that follow it, too

    @property
    def conversation(self) -> list[Item]:
        """What a response that follows this one goes on from."""
        return [*self.items, *self.output]


class _Items:
    """The bytes of items that several responses hold, each counted once, for as long as one of them is kept."""

    def __init__(self) -> None:
        self.bytes = 0
        self._held: dict[int, tuple[int, int]] = {}  # by identity: by how many, and its bytes

    def hold(self, items: Iterable[Item]) -> None:
        for item in items:
            times, size = self._held.get(id(item)) or (0, len(msgspec.json.encode(item)))
            self.bytes += 0 if times else size
            self._held[id(item)] = times + 1, size

    def release(self, items: Iterable[Item]) -> None:
        for item in items:
            times, size = self._held.pop(id(item))
            if times > 1:
                self._held[id(item)] = times - 1, size
            else:
                self.bytes -= size


class ResponseStore:
    """By id. Keeps what runs, whatever the bounds say: that is bounded by the queue."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._items: dict[tuple[Account, str], Item] = {}  # by whose they are and their id
        self._shared = _Items()
        self._own_bytes = 0

    def __repr__(self) -> str:
        return f"<ResponseStore {len(self._stored)} responses, {self._bytes} bytes>"

    @property
    def _bytes(self) -> int:
        return self._shared.bytes + self._own_bytes

    def add(self, stored: Stored) -> None:
        stored.size = REFERENCE_BYTES * len(stored.items)
        self._stored[stored.response.id] = stored
        self._items |= _by_id(stored.account, stored.own_items)
        self._shared.hold(stored.items)
        self._own_bytes += stored.size

    def finish(self, response: Response, *, keep_events: bool) -> None:
        """Its last state. Without its events it can be asked for, but no longer followed."""
        stored = self._stored.get(response.id)
        if stored is None:
            return
        stored.response = response
        stored.output = tuple(response.output)
        self._items |= _by_id(stored.account, response.output)
        self._shared.hold(stored.output)
        size = len(msgspec.json.encode(replace(response, output=[])))
        if not keep_events:
            stored.production = None
        elif stored.production is not None:
            size += EVENT_BYTES * stored.production.num_events
        stored.size += size
        self._own_bytes += size
        self._make_room()

    def get(self, response_id: str, account: Account) -> Stored:
        """Raises ApiError (404) when there is none, or it is somebody else's."""
        stored = self._stored.get(response_id)
        if stored is None or stored.account is not account:
            quoted = response_id[:100]
            raise ApiError(404, f"Response with id '{quoted}' not found.", code="not_found", param="response_id")
        return stored

    def item(self, item_id: str, account: Account) -> Item | None:
        """One that came with a request or a response that is still kept, and is the account's own."""
        return self._items.get((account, item_id))

    def remove(self, response_id: str) -> None:
        stored = self._stored.pop(response_id)
        self._own_bytes -= stored.size
        self._shared.release([*stored.items, *stored.output])
        for key, item in _by_id(stored.account, [*stored.own_items, *stored.output]).items():
            if self._items.get(key) is item:  # else a later one has taken its id
                del self._items[key]

    def _make_room(self) -> None:
        for response_id, stored in list(self._stored.items()):
            if len(self._stored) <= self._max_responses and self._bytes <= self._max_bytes:
                return
            if stored.response.status != "in_progress":
                self.remove(response_id)


def _by_id(account: Account, items: Sequence[Item]) -> dict[tuple[Account, str], Item]:
    return {(account, str(item.id)): item for item in items}
