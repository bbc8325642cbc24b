"""A project's own settings, as the user is asked to trust them: files, digest, validity."""

import os
import stat
from pathlib import Path

import msgspec

from punie_protocol.errors import Denied, InvalidRequest, PunieError, TooLarge
from punie_protocol.project_settings import (
    MAX_SETTINGS_FILE,
    SETTINGS_FILES,
    parse_settings,
    settings_digest,
    settings_files,
)


class Settings(msgspec.Struct, frozen=True):
    """What is there: `files` by their names in the root, and the digest of their content, empty
    when they have nothing of ours."""

    files: list[str]
    digest: str


def look(root: str, *, check: bool) -> Settings:
    """Return the settings of the project at `root`; blocks on the disk. With `check`, raises
    `PunieError` that names file and key for what is not valid."""
    found = {name: data for name in SETTINGS_FILES if (data := _read(root, name)) is not None}
    if check:
        parse_settings(found)
    return Settings(list(settings_files(found)), settings_digest(found))


def _read(root: str, name: str) -> bytes | None:
    """Return a file's content, ``None`` when there is no such file. No link is followed."""
    *folders, last = name.split("/")
    opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for folder in folders:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened.append(os.open(folder, flags, dir_fd=opened[-1]))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        opened.append(os.open(last, flags, dir_fd=opened[-1]))
        return _content(opened[-1], name)
    except FileNotFoundError:
        return None
    except OSError as error:
        linked = any((Path(root) / part).is_symlink() for part in (name, *folders))
        if isinstance(error, NotADirectoryError) and not linked:
            return None
        text = f"{name} cannot be read: {'a symbolic link' if linked else error.strerror}"
        hint = "settings are read from plain files, never through a symbolic link"
        raise PunieError(Denied(message=text, hint=hint)) from None
    finally:
        for fd in opened:
            os.close(fd)


def _content(fd: int, name: str) -> bytes:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise PunieError(InvalidRequest(message=f"{name} is not a plain file"))
    data = bytearray()
    while chunk := os.read(fd, MAX_SETTINGS_FILE + 1 - len(data)):
        data += chunk
        if len(data) > MAX_SETTINGS_FILE:
            raise PunieError(
                TooLarge(
                    message=f"{name} is over the limit of {MAX_SETTINGS_FILE} bytes",
                    limit=MAX_SETTINGS_FILE,
                    actual=max(status.st_size, len(data)),
                )
            )
    return bytes(data)
