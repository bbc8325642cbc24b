"""The key of the HTTP door: made once, kept in a file that only this user can read."""

import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Final

from punie_protocol.errors import Denied, InvalidRequest, NotFound, PunieError

_BYTES: Final = 32
"""Of chance in a key that is made here."""
_SHORTEST: Final = 16
_LONGEST: Final = 512
"""Characters of a key that somebody wrote into the file."""


def obtain(file: Path) -> str:
    """Return the key; make one when there is no file. Raises `PunieError` as `read` does, and when
    the file cannot be made."""
    try:
        return read(file)
    except PunieError as error:
        if not isinstance(error.error, NotFound):
            raise
    key = secrets.token_urlsafe(_BYTES)
    try:
        _write(file, key)
    except FileExistsError:
        return read(file)  # somebody else made one meanwhile
    except OSError as error:
        text = f"cannot write the HTTP door's key to {file}: {error.strerror}"
        raise PunieError(InvalidRequest(message=text)) from None
    return key


def read(file: Path) -> str:
    """Return the key. Raises `PunieError`: `NotFound`, `Denied` for a file that others may read or
    that is somebody else's, `InvalidRequest` for one that has no key in it."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        text = f"there is no key of the HTTP door ({file})"
        raise PunieError(NotFound(message=text, what="key")) from None
    except OSError as error:
        text = f"cannot read the HTTP door's key {file}: {error.strerror}"
        raise PunieError(Denied(message=text, hint="remove it; a new one is made")) from None
    try:
        _check_owner(file, os.fstat(fd))
        text = os.read(fd, _LONGEST + 2).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    if not _SHORTEST <= len(text) <= _LONGEST or not (text.isprintable() and text.isascii()):
        problem = f"{file} is no key: {_SHORTEST} to {_LONGEST} printable ASCII characters"
        raise PunieError(InvalidRequest(message=problem, hint="remove it; a new one is made"))
    return text


def _check_owner(file: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PunieError(Denied(message=f"{file} is not a file", hint="remove it"))
    if found.st_uid != os.geteuid():
        text = f"{file}, the HTTP door's key, belongs to another user"
        raise PunieError(Denied(message=text, hint="remove it; a new one is made"))
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        text = f"others may read {file}, the HTTP door's key (its mode is {mode:o})"
        hint = f"remove it, and a new one is made; or, if nobody read it: chmod 600 {file}"
        raise PunieError(Denied(message=text, hint=hint))


def _write(file: Path, key: str) -> None:
    """Write it whole or not at all. Raises `FileExistsError` for a file that is there."""
    fd, name = tempfile.mkstemp(dir=file.parent, prefix=".key-")  # 0600
    try:
        with os.fdopen(fd, "w") as made:
            made.write(f"{key}\n")
            made.flush()
            os.fsync(fd)
        file.hardlink_to(name)
    finally:
        Path(name).unlink(missing_ok=True)
