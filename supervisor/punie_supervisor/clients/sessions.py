"""Finding a session: by its id, by how its id begins, or as a project's last one."""

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from punie_protocol.errors import InvalidRequest, NotFound, PunieError
from punie_supervisor.clients.connection import Client

MIN_PREFIX: Final = 4
"""Characters of an id that may stand for it, when they are of one only."""


class SessionInfo(msgspec.Struct, rename="camel"):
    """A session as ``session/list`` has it; `cwd` is its project's root."""

    session_id: str
    cwd: str


class _Page(msgspec.Struct, rename="camel"):
    sessions: list[SessionInfo]
    next_cursor: str | None = None


async def find(client: Client, name: str) -> SessionInfo:
    """Return the session of that id, or the one whose id begins so. Raises `PunieError`: there is
    none, or several."""
    found: list[SessionInfo] = []
    async for info in _known(client, None):
        if info.session_id == name:
            return info
        if len(name) >= MIN_PREFIX and info.session_id.startswith(name):
            found.append(info)
    match found:
        case [info]:
            return info
        case []:
            raise _none(f"there is no session {name}", name)
        case _:
            text = f"{len(found)} sessions begin with {name}"
            raise PunieError(InvalidRequest(message=text, hint="give more of the id"))


async def last(client: Client, directory: str) -> SessionInfo:
    """Return the session that was prompted last in a project. Raises `PunieError`."""
    async for info in _known(client, directory):
        return info
    raise _none(f"no session in {directory} yet", directory)


async def _known(client: Client, cwd: str | None) -> AsyncIterator[SessionInfo]:
    """Yield the known sessions, most recent first."""
    cursor = None
    while True:
        page = await client.ask_daemon("session/list", {"cwd": cwd, "cursor": cursor}, _Page)
        for info in page.sessions:
            yield info
        cursor = page.next_cursor
        if cursor is None:
            return


def _none(message: str, what: str) -> PunieError:
    hint = "leave it out, or see: punie perf --all"
    return PunieError(NotFound(message=message, hint=hint, what=what))
