"""A response in the making: drives the job, keeps the events, and lets anybody follow them from any point."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable

from gateway.api.choices import Choices, GenerationFailed
from gateway.api.responses.records import Event, Response
from gateway.api.responses.writer import ResponseWriter
from gateway.generation import Failure

log = logging.getLogger(__name__)


class Production:
    """Goes on by itself until it is done or cancelled. Lives on the event loop."""

    def __init__(self, writer: ResponseWriter, choices: Choices, on_end: Callable[[Response], None]) -> None:
        self._writer = writer
        self._choices = choices
        self._on_end = on_end
        self._events: list[Event] = []
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @property
    def response(self) -> Response:
        """As it stands."""
        return self._writer.response

    @property
    def num_events(self) -> int:
        return len(self._events)

    @property
    def done(self) -> bool:
        return self.response.status != "in_progress"

    async def finished(self) -> Response:
        """Wait for the end, however it comes."""
        async for _ in self.follow():
            pass
        return self.response

    async def follow(self, after: int = -1) -> AsyncGenerator[Event, None]:
        """The events with numbers above `after`, to the last one."""
        position = after + 1
        while True:
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self.done:
                return
            await self._changed.wait()

    def cancel(self) -> None:
        """Nobody wants the rest. Harmless after the end."""
        if not self.done:
            self._task.cancel()
            self._choices.abort()
            self._tell(self._writer.cancelled())
            self._on_end(self.response)

    async def _run(self) -> None:
        """The outermost loop of the task: whatever happens, whoever follows is told."""
        try:
            self._tell(self._writer.opening())
            async for choice, parts in self._choices.parts():
                self._tell(self._writer.parts(parts, choice.said() if parts else []))
            (choice,) = self._choices
            assert choice.finish_reason is not None
            self._tell(self._writer.finished(choice.finish_reason, self._choices.usage()))
        except GenerationFailed as error:
            self._tell(self._writer.failed(error.failure))
        except Exception:
            log.exception("response %s failed", self.response.id)
            self._tell(self._writer.failed(Failure("The server failed on this response.")))
        finally:
            self._choices.abort()
        self._on_end(self.response)

    def _tell(self, events: Iterable[Event]) -> None:
        self._events += events
        self._changed.set()
        self._changed = asyncio.Event()
