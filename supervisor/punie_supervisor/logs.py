"""The daemon's log: one logfmt line per event, to stderr or to a file of bounded size."""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

# structlog imports rich for its development console whenever rich is installed: 30 ms and 5 MB
# that the daemon never uses. A None entry makes that optional import fail.
_hidden = "rich" not in sys.modules
if _hidden:
    sys.modules["rich"] = None  # type: ignore[assignment]  # ty: ignore[invalid-assignment]
try:
    import structlog
finally:
    if _hidden:
        del sys.modules["rich"]

MAX_LOG_BYTES: Final = 4 * 1024 * 1024
"""Size at which the log file becomes ``<name>.1``, replacing the one before."""


class RotatingFile:
    """Appends whole lines to `path`, 0600; never more than twice `limit` bytes on disk."""

    def __init__(self, path: Path, *, limit: int = MAX_LOG_BYTES) -> None:
        self._path = path
        self._limit = limit
        self._open()

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        if self._size and self._size + len(data) > self._limit:
            os.close(self._fd)
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._open()
        self._size += os.write(self._fd, data)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        os.close(self._fd)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        os.fchmod(self._fd, 0o600)  # it may be there already, made by somebody less careful
        self._size = os.fstat(self._fd).st_size


class LineLimit:
    """Lets `limit` lines a second through. How many were not is told to `dropped`: before the
    first line of a later second, and at `close`."""

    def __init__(
        self,
        limit: int,
        dropped: Callable[[int], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._dropped = dropped
        self._clock = clock
        self._second = self._lines = 0

    def passes(self) -> bool:
        """Count one line; return whether it is to be logged."""
        now = int(self._clock())
        if now != self._second:
            self.close()
            self._second = now
        self._lines += 1
        return self._lines <= self._limit

    def close(self) -> None:
        """Tell what has not been told yet."""
        if self._lines > self._limit:
            self._dropped(self._lines - self._limit)
        self._lines = 0


class _ToStructlog(logging.Handler):
    """Brings warnings of asyncio and websockets into the same log."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record) if record.exc_info else record.getMessage()
        structlog.get_logger().log(
            record.levelno, "library.message", library=record.name, text=text
        )


def configure(output: RotatingFile | IO[str]) -> None:
    """Send every log line of this process to `output`."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], bool_as_flag=False
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=_WriterFactory(output),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(logging.WARNING)


class _Writer:
    """structlog's bottom: one rendered line."""

    def __init__(self, output: RotatingFile | IO[str]) -> None:
        self._output = output
        self._lost = 0

    def msg(self, line: str) -> None:
        # A full disk or a closed terminal must not stop the daemon; the next line that can be
        # written tells how many could not.
        lost = f"{self._lost} log lines were lost\n" if self._lost else ""
        try:
            self._output.write(f"{lost}{line}\n")
            self._output.flush()
            self._lost = 0
        except OSError, ValueError:
            self._lost += 1

    log = debug = info = warn = warning = error = critical = exception = fatal = msg


class _WriterFactory:
    def __init__(self, output: RotatingFile | IO[str]) -> None:
        self._writer = _Writer(output)

    def __call__(self, *args: Any) -> _Writer:
        return self._writer


def get(**ids: Any) -> Any:
    """Return a logger whose lines carry `ids`."""
    return structlog.get_logger().bind(**ids) if ids else structlog.get_logger()
