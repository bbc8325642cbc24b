"""Does a model server answer? ``GET {url}/models`` over a bare connection, nothing kept."""

import asyncio
import contextlib
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

import msgspec

PROBE_TIMEOUT: Final = 5.0
"""Seconds one question may take."""
_MAX_STATUS_LINE: Final = 1024
_MAX_TEXT: Final = 200


class Health(StrEnum):
    """What a server does when it is asked."""

    OK = "ok"
    BUSY = "busy"
    """Somebody listens, but does not answer as a model server does that is ready."""
    REFUSED = "refused"
    """It does not take the key."""
    SILENT = "silent"
    """Nobody listens."""


class Answer(msgspec.Struct, frozen=True):
    """A server's health, and a line about it for a person."""

    health: Health
    text: str


async def ask(url: str, key: str) -> Answer:
    """Ask the server at the base address `url`, ``http`` only, once, within `PROBE_TIMEOUT`."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    connected = False
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port, limit=_MAX_STATUS_LINE)
            connected = True
            try:
                writer.write(_request(parts.netloc, f"{parts.path.rstrip('/')}/models", key))
                return _answer(await reader.readline())
            finally:
                await _close(writer)
    except TimeoutError:
        health = Health.BUSY if connected else Health.SILENT
        return Answer(health, f"no answer within {PROBE_TIMEOUT:g} s")
    except (OSError, ValueError) as error:  # ValueError: a line over the limit
        return Answer(Health.BUSY if connected else Health.SILENT, str(error)[:_MAX_TEXT])


async def _close(writer: asyncio.StreamWriter) -> None:
    # What is left of the answer is not read: a close that the server takes badly is no matter.
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _request(host: str, path: str, key: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Accept: application/json"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("ascii")


def _answer(line: bytes) -> Answer:
    words = line.decode("latin-1").split(None, 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1."):
        return Answer(Health.BUSY, "it does not speak HTTP")
    text = " ".join(words[1:]).strip()[:_MAX_TEXT]
    match words[1]:
        case "200":
            health = Health.OK
        case "401" | "403":
            health = Health.REFUSED
        case _:
            health = Health.BUSY
    return Answer(health, f"it answered {text}")
