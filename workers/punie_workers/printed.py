"""What a program printed: kept within bounds, and told as plain text. Pure."""

from typing import Final

from punie_workers.interp.plain import plain

HEAD: Final = 8 * 1024
TAIL: Final = 24 * 1024
"""Bytes that are kept of the beginning and of the end: what was tried stands there, and what went
wrong here."""
RECENT: Final = 4 * 1024
"""Bytes at the end that are shown while it runs."""


class Printed:
    """Takes bytes as they come; keeps the first `HEAD` and the last `TAIL` of them."""

    def __init__(self) -> None:
        self.size = 0
        self._head = bytearray()
        self._tail = bytearray()

    @property
    def truncated(self) -> bool:
        """Whether some are not kept."""
        return self.size > HEAD + TAIL

    def add(self, data: bytes) -> None:
        """Take more. The work is bounded by what is kept."""
        self.size += len(data)
        room = HEAD - len(self._head)
        self._head += data[:room]
        self._tail += data[max(room, len(data) - TAIL) :]
        if len(self._tail) > 2 * TAIL:
            del self._tail[:-TAIL]

    def text(self) -> str:
        """Return it as plain text; between the whole lines that are kept a note says how much is
        missing."""
        if not self.truncated:
            return _decoded(self._head + self._tail[-TAIL:])
        begun, _, _ = self._head.rpartition(b"\n")
        _, _, end = self._tail[-TAIL:].partition(b"\n")
        head, tail = begun or self._head, end or self._tail[-TAIL:]
        missing = self.size - len(head) - len(tail)
        return f"{_decoded(head)}\n… {missing} bytes are left out here …\n{_decoded(tail)}"

    def recent(self) -> str:
        """Return the last lines as plain text, about `RECENT` bytes; who is shown them can tell
        by its end whether the last one is whole."""
        data = (self._head + self._tail)[-RECENT:]
        if self.size > RECENT:
            data = data.partition(b"\n")[2] or data
        return _plain(data)


def _decoded(data: bytes | bytearray) -> str:
    return _plain(data).rstrip("\n")


def _plain(data: bytes | bytearray) -> str:
    return plain(data.decode("utf-8", "replace"))
