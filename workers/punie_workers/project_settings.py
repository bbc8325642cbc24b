"""A project's own settings and its AGENTS.md, as they are on the disk.

The files are read each time, whole: all of them in one call of the project half (0.2 ms),
and parsed only when a byte has changed. A look at size and time alone would not do: a file that
is changed twice within a tick of the clock, or put back to its old time, would keep its trust.
"""

import asyncio
from typing import Final

import msgspec

from punie_protocol import interp_codec
from punie_protocol.errors import PunieError, WireError
from punie_protocol.project_settings import (
    MAX_SETTINGS_FILE,
    SETTINGS_FILES,
    ProjectConfig,
    parse_settings,
    settings_digest,
    settings_files,
)
from punie_workers.halves import Halves
from punie_workers.prompts import ProjectParts

AGENTS: Final = "AGENTS.md"
"""What a project tells agents; read as text, never as settings."""
MAX_AGENTS: Final = 16 * 1024
"""Bytes of AGENTS.md that a model is told."""

_LIMITS: Final = dict.fromkeys(SETTINGS_FILES, MAX_SETTINGS_FILE) | {AGENTS: MAX_AGENTS}
_REQUEST: Final = interp_codec.encode_request("read_raw", {"limits": _LIMITS})


class _Raw(msgspec.Struct, frozen=True):
    data: bytes = b""
    cut: bool = False
    problem: str = ""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the disk says. `files` are those with settings and `digest` is of them, empty without
    any; `config` is what they say, or `fault` why it cannot be used. `problems` are lines about
    files that were not read."""

    files: dict[str, bytes]
    digest: str
    config: ProjectConfig = ProjectConfig()
    fault: WireError | None = None
    agents: str = ""
    problems: tuple[str, ...] = ()


class ProjectSettings:
    """One project's. `trusted` is the digest that the user trusts, empty for none."""

    def __init__(self, halves: Halves, name: str, trusted: str) -> None:
        self.name = name
        self.trusted = trusted
        self._halves = halves
        self._raw: dict[str, _Raw] = {}
        self._found = Found(files={}, digest="")

    @property
    def root(self) -> str:
        """The project's folder, an absolute real path."""
        return self._halves.root

    async def load(self) -> Found:
        """Return what is there now. Raises `PunieError` when the project half does not answer."""
        raw = await self._halves.call(_REQUEST, dict[str, _Raw])
        if raw != self._raw:
            found = await asyncio.to_thread(_found, raw)
            self._raw, self._found = raw, found
        return self._found

    def trusts(self, found: Found) -> bool:
        """Whether the user trusts the settings as `found`. Raises `PunieError` for such that
        cannot be used: nothing may go on as if they were not there."""
        if not found.digest or found.digest != self.trusted:
            return False
        if found.fault is not None:
            raise PunieError(found.fault)
        return True

    async def parts(self) -> ProjectParts:
        """Return what a model would be told now, nobody asked. Raises as `load` and `trusts`."""
        found = await self.load()
        return self.parts_of(found, trusted=self.trusts(found))

    def parts_of(self, found: Found, *, trusted: bool) -> ProjectParts:
        """Return what a model is told of `found`."""
        instructions = found.config.instructions if trusted else ""
        return ProjectParts(name=self.name, agents=found.agents, instructions=instructions)


def _found(raw: dict[str, _Raw]) -> Found:
    problems = [_problem(name, one) for name, one in raw.items()]
    usable = {name: one.data for name, one in raw.items() if not _problem(name, one)}
    agents = raw.get(AGENTS, _Raw())
    found = Found(
        files=settings_files(usable),
        digest=settings_digest(usable),
        agents=_text(agents),
        problems=tuple(text for text in problems if text),
    )
    try:
        return msgspec.structs.replace(found, config=parse_settings(usable))
    except PunieError as error:
        return msgspec.structs.replace(found, fault=error.error)


def _problem(name: str, raw: _Raw) -> str:
    if raw.problem:
        return f"{name} is not read: {raw.problem}"
    if raw.cut and name != AGENTS:
        return f"{name} is not read for settings: it is larger than {MAX_SETTINGS_FILE // 1024} KB"
    return ""


def _text(raw: _Raw) -> str:
    text = raw.data.decode("utf-8-sig", "ignore" if raw.cut else "replace").strip()
    if not raw.cut:
        return text
    return f"{text}\n… cut: {AGENTS} is longer than {MAX_AGENTS // 1024} KB"
