"""What a program prints while a tool runs it, as it is shown on a terminal: the first lines, then
one line that changes. Pure."""

from collections.abc import Iterator
from typing import Final

from punie_supervisor.cli.output import printable

MAX_LINES: Final = 20
"""Lines of one call that are shown; of the rest the last one, and how many."""
MAX_WIDTH: Final = 200
"""Characters of a line."""
_INDENT: Final = "  "


class Live:
    """The output of one call. Holds no more than the line that is not ended yet."""

    def __init__(self) -> None:
        self.hidden = 0
        """Lines that came after `MAX_LINES`."""
        self.last = ""
        """The last of them."""
        self._shown = 0
        self._open = ""

    def add(self, text: str) -> Iterator[str]:
        """Take more output; yield the lines to be shown."""
        *ended, rest = (self._open + text).replace("\r\n", "\n").split("\n")
        self._open = rest[-MAX_WIDTH * 4 :]
        for line in ended:
            yield from self._line(line)

    def end(self) -> Iterator[str]:
        """Yield what is still to be shown: a line without an end, and how many are not shown."""
        if self._open:
            yield from self._line(self._open)
            self._open = ""
        if self.hidden:
            yield f"{_INDENT}… {self.hidden} more {'line' if self.hidden == 1 else 'lines'}"

    def _line(self, line: str) -> Iterator[str]:
        # What a program writes over itself, a bar of progress, is shown as it was last.
        line = printable(line.rstrip("\r").rpartition("\r")[2])
        line = f"{_INDENT}{line[:MAX_WIDTH]}{'…' if len(line) > MAX_WIDTH else ''}"
        if self._shown < MAX_LINES:
            self._shown += 1
            yield line
        else:
            self.hidden += 1
            self.last = line.strip()
