"""The timings of turns that ended, out of the journal: read beside its writer, off the loop."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Raw

from punie_protocol.client import ResultMeta, TurnPerf
from punie_protocol.errors import Internal, InvalidRequest, PunieError
from punie_protocol.limits import MAX_CLIENT_MESSAGE

MAX_TURNS: Final = 1000
"""Turns in one report."""
MAX_BYTES: Final = MAX_CLIENT_MESSAGE // 2
"""Bytes of a report's turns; older ones that would be over it are left out. Twice as much would be
a message still, but the loop has to copy it within 10 ms."""
MAX_OUTCOME: Final = 1024 * 1024
"""Bytes of a stored answer that is looked into."""

_QUERY: Final = """
    SELECT p.session_id, p.id, r.root, iif(p.title = '', s.title, p.title), p.accepted_at, p.state,
           p.stop_reason, iif(length(p.response) <= :most, p.response, NULL),
           iif(length(p.error) <= :most, p.error, NULL)
    FROM prompts p JOIN sessions s ON s.id = p.session_id JOIN projects r ON r.id = s.project_id
    WHERE p.state NOT IN ('accepted', 'running')
      AND (:session IS NULL OR p.session_id = :session) AND (:root IS NULL OR r.root = :root)
    ORDER BY p.accepted_at DESC, p.ordinal DESC LIMIT :turns
"""


class _Meta(msgspec.Struct, frozen=True):
    punie: ResultMeta


class _Response(msgspec.Struct, frozen=True):
    meta: _Meta = msgspec.field(name="_meta")


class _Data(msgspec.Struct, frozen=True):
    meta: Raw


class _Failure(msgspec.Struct, frozen=True):
    data: _Data


def check(turns: int) -> None:
    """Raise `PunieError` (`InvalidRequest`) for a number of turns that no report has."""
    if not 1 <= turns <= MAX_TURNS:
        raise PunieError(InvalidRequest(message=f"turns: {turns} is not in 1 to {MAX_TURNS}"))


def report(journal: Path, session_id: str | None, root: str | None, turns: int) -> Raw:
    """Return the JSON of a `PerfReport`: the last `turns` turns, newest first, fewer when they are
    more than `MAX_BYTES`. Blocks on the disk; opens the file for itself. Raises `PunieError`."""
    room, found = MAX_BYTES, list[bytes]()
    values = {"session": session_id, "root": root, "turns": turns, "most": MAX_OUTCOME}
    try:
        with closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)) as db:
            for row in db.execute(_QUERY, values):
                line = msgspec.json.encode(_turn(*row))
                room -= len(line) + 1
                if room < 0:
                    break
                found.append(line)
    except sqlite3.Error as error:
        raise PunieError(Internal(message=f"cannot read journal {journal}: {error}")) from None
    return Raw(b'{"turns":[' + b",".join(found) + b"]}")


def _turn(*row: Any) -> TurnPerf:
    session_id, id, root, title, at, state, stop_reason, response, error = row
    return TurnPerf(
        session_id=session_id,
        prompt_id=id,
        root=root,
        title=title,
        started_at=at,
        state=state,
        stop_reason=stop_reason,
        meta=_of_response(response) if response is not None else _of_error(error),
    )


def _of_response(response: bytes) -> ResultMeta | None:
    # An answer of another version, or of a turn that never reached a worker, has no such thing.
    try:
        return msgspec.json.decode(response, type=_Response).meta.punie
    except msgspec.MsgspecError:
        return None


def _of_error(error: bytes | None) -> ResultMeta | None:
    if error is None:
        return None
    try:
        meta = msgspec.json.decode(error, type=_Failure).data.meta
        return msgspec.json.decode(meta, type=ResultMeta)
    except msgspec.MsgspecError:
        return None
