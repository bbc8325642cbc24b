"""Answers that are waited for, by what they answer."""

import asyncio
from typing import Any

from punie_protocol.errors import LinkClosed, PunieError

type Key = tuple[str, int | str]
"""The kind of the question and its id."""


class Replies:
    """One future for each open question. Once closed, all of them and every later one fail."""

    def __init__(self) -> None:
        self._open: dict[Key, asyncio.Future[Any]] = {}
        self._closed: PunieError | None = LinkClosed("no worker was started")

    def expect(self, kind: str, id: int | str) -> asyncio.Future[Any]:
        """Return the future of an answer. Raises why there will be none."""
        if self._closed is not None:
            raise self._closed
        answer = asyncio.get_running_loop().create_future()
        self._open[kind, id] = answer
        return answer

    def deliver(self, kind: str, id: int | str, answer: object) -> bool:
        """Return whether somebody asked, who has it now."""
        future = self._open.pop((kind, id), None)
        if future is None:
            return False
        if not future.done():
            future.set_result(answer)
        return True

    def open(self) -> None:
        """Take questions again."""
        self._closed = None

    def close(self, why: PunieError) -> None:
        """Fail what is open, and what comes, with `why`."""
        self._closed = why
        for future in self._open.values():
            if not future.done():
                future.set_exception(why)
                future.exception()  # seen: nobody may wait for it any more
        self._open.clear()
