"""A project's own settings: which files, what may stand in them, what trust is bound to.

They count only while the user trusts them as they are: trust is a digest of the files' content.
Both ends read files their own way and use these functions, so that they agree.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.permissions import Mode, Rules, check_rules

CONFIG: Final = ".punie/config.toml"
PYPROJECT: Final = "pyproject.toml"
SETTINGS_FILES: Final = (CONFIG, PYPROJECT)
"""Where a project's own settings may stand, relative to its root; of the second only
``[tool.punie]``. Where both say something once, the first wins."""

MAX_SETTINGS_FILE: Final = 256 * 1024
"""Bytes of the largest file that is read for settings."""
MAX_INSTRUCTIONS: Final = 16 * 1024
"""Characters of one file's `instructions`."""


class ProjectPermissions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[permissions]`` of a project, the meaning as in `PermissionSettings`."""

    mode: Mode | None = None
    allow: Rules = []
    deny: Rules = []


class ProjectConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a project says of itself. `instructions` are for the model."""

    permissions: ProjectPermissions = ProjectPermissions()
    instructions: Annotated[str, Meta(max_length=MAX_INSTRUCTIONS)] = ""


class _Tool(msgspec.Struct, frozen=True):
    punie: dict[str, object] = {}


class _PyProject(msgspec.Struct, frozen=True):
    tool: _Tool = _Tool()


_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def settings_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return those of `files` (content by name) that have settings, in order. One that mentions
    Punie and is no TOML may have, so it counts."""
    return {name: files[name] for name in SETTINGS_FILES if name in files and _ours(name, files)}


def settings_digest(files: Mapping[str, bytes]) -> str:
    """Return what trust is bound to: another one after any changed byte of `settings_files`; empty
    when there are none, and nothing to trust."""
    ours = settings_files(files)
    if not ours:
        return ""
    digest = hashlib.sha256()
    for name, data in ours.items():
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()


def parse_settings(files: Mapping[str, bytes]) -> ProjectConfig:
    """Return what `files` say together: rules and instructions of all, the mode of the first that
    has one. Raises `PunieError` (`InvalidRequest`) that names file and key."""
    configs = [_parse(name, data) for name, data in settings_files(files).items()]
    permissions = [config.permissions for config in configs]
    return ProjectConfig(
        permissions=ProjectPermissions(
            mode=next((one.mode for one in permissions if one.mode is not None), None),
            allow=[rule for one in permissions for rule in one.allow],
            deny=[rule for one in permissions for rule in one.deny],
        ),
        instructions="\n\n".join(one.instructions for one in configs if one.instructions),
    )


def _ours(name: str, files: Mapping[str, bytes]) -> bool:
    if name == PYPROJECT and b"punie" not in files[name]:
        return False
    try:
        return bool(_table(name, files[name]))
    except _UNREADABLE:
        return True


def _parse(name: str, data: bytes) -> ProjectConfig:
    where = name if name == CONFIG else f"{name}: [tool.punie]"
    try:
        config = msgspec.convert(_table(name, data), ProjectConfig)
        check_rules("permissions.allow", config.permissions.allow)
        check_rules("permissions.deny", config.permissions.deny)
    except PunieError as error:
        fault = InvalidRequest(message=f"{where}: {error}", hint=error.error.hint)
        raise PunieError(fault) from None
    except RecursionError:
        raise PunieError(InvalidRequest(message=f"{where}: too deeply nested")) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise PunieError(InvalidRequest(message=f"{where}: {error}")) from None
    return config


def _table(name: str, data: bytes) -> dict[str, object]:
    """Return the settings of a file, unchecked. Raises one of `_UNREADABLE`."""
    if name == CONFIG:
        return msgspec.toml.decode(data, type=dict[str, object])
    return msgspec.toml.decode(data, type=_PyProject).tool.punie
