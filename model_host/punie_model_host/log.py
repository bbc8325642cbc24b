"""Log lines on stderr: ``level event key=value ...``. Never a prompt or an answer."""

import logging
import sys
from typing import Any


def configure() -> None:
    """Send every record of level INFO to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


def event(logger: logging.Logger, level: int, name: str, /, **values: Any) -> None:
    """Log an event with its values; those with spaces are quoted."""
    pairs = [f"{key}={_quoted(str(value))}" for key, value in values.items()]
    logger.log(level, "%s", " ".join([name, *pairs]))


def _quoted(text: str) -> str:
    return text if text and not any(c.isspace() or c == '"' for c in text) else repr(text)


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().formatMessage(record)
