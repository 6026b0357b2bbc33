"""The prefix cache: full device blocks, found by the tokens in them and in all blocks before them. Knows no jobs.

A tree: the children of a block are the blocks that followed it, under their tokens. Tokens are compared, not only
hashed, so nobody ever gets KV of other tokens than his own; and as Python hashes bytes with a secret of the process,
nobody can make entries collide. A salt, before the tokens of a first block, gives its users a tree of their own.

A block stays where it is as long as anybody holds it, and nobody writes to it. Who holds a block holds all blocks
before it. So blocks become idle from the leaves on, and are evicted in that order: the least recently used first.
"""

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class CachedBlock:
    """A full block in the tree."""

    block: int
    key: bytes
    siblings: "dict[bytes, CachedBlock]"
    children: "dict[bytes, CachedBlock]" = field(default_factory=dict)
    cached: bool = True  # False: evicted, whoever remembers it
    holders: int = 0  # jobs that have it in their block tables
    leaving: int = 0  # those of them that are on their way to the host: when all are, the block departs


Path = list[CachedBlock]  # from a first block on, each the child of the one before


class PrefixCache:
    """Decides nothing: says which blocks are known, counts who holds them, and evicts those that nobody does."""

    def __init__(self) -> None:
        self._first: dict[bytes, CachedBlock] = {}
        self._idle: OrderedDict[CachedBlock, None] = OrderedDict()  # held by nobody, least recently used first
        self.num_departing = 0  # blocks that will be idle when all who are leaving have left

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def find(self, path: Path, key: bytes) -> CachedBlock | None:
        """The block that follows `path`."""
        return (path[-1].children if path else self._first).get(key)

    def add(self, path: Path, key: bytes, block: int) -> CachedBlock:
        """Put a full block behind `path`, held by the one who filled it."""
        siblings = path[-1].children if path else self._first
        assert key not in siblings, f"block {siblings[key].block} is known already"
        siblings[key] = added = CachedBlock(block, key, siblings, holders=1)
        return added

    def hold(self, path: Path) -> None:
        for cached in path:
            assert cached.cached, f"block {cached.block} was evicted"
            if not cached.holders:
                del self._idle[cached]
            elif cached.holders == cached.leaving:
                self.num_departing -= 1
            cached.holders += 1

    def let_go(self, path: Path) -> None:
        """The leaves first, so that they are the first to be evicted."""
        for cached in reversed(path):
            cached.holders -= 1
            if not cached.holders:
                self._idle[cached] = None
            elif cached.holders == cached.leaving:
                self.num_departing += 1

    def depart(self, path: Path) -> None:
        """A holder begins to leave for the host; it holds on until it has left."""
        for cached in path:
            cached.leaving += 1
            self.num_departing += cached.holders == cached.leaving

    def leave(self, path: Path) -> None:
        for cached in path:
            self.num_departing -= cached.holders == cached.leaving
            cached.leaving -= 1
        self.let_go(path)

    def evict(self, count: int) -> list[int]:
        """Forget `count` idle blocks."""
        evicted = [self._idle.popitem(last=False)[0] for _ in range(count)]
        for cached in evicted:
            assert not cached.children, f"block {cached.block} is evicted before its children"
            del cached.siblings[cached.key]
            cached.cached = False
        return [cached.block for cached in evicted]
