"""Work that would hold up the event loop, and with it all streams, is done in a thread."""

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

# In units of what encoding one character takes: so many take a few milliseconds.
MOST_INLINE = 8_000

T = TypeVar("T")


async def beside(size: int, work: Callable[[], T]) -> T:
    """Do `work` here when it is little, else in a thread. Whoever gives up waiting does not end it."""
    return work() if size <= MOST_INLINE else await anyio.to_thread.run_sync(work)
