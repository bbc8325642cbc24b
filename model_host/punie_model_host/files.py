"""Reading a model folder's small files; a failure names the file."""

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from punie_model_host.failures import load_failed

MAX_TEXT: Final = 256 * 1024**2
"""Bytes of a file that is read whole; the largest tokenizers have a seventh of it."""


def check_is_folder(folder: Path, what: str) -> None:
    """Raise `PunieError` unless `folder` can be listed, and has no pipes and devices, of which
    there is no end to read; `what` it should be is said in the message."""
    try:
        with os.scandir(folder) as entries:
            endless = [entry.name for entry in entries if _is_endless(entry)]
    except FileNotFoundError:
        hint = "give an absolute path, or put the folder into Punie's models folder"
        raise load_failed(folder, "", f"no such {what}", hint) from None
    except NotADirectoryError:
        hint = "give the folder that holds the files"
        raise load_failed(folder, "", f"is a file, not a {what}", hint) from None
    except (OSError, ValueError) as error:
        raise load_failed(folder, "", _reason(error), "check its permissions") from None
    if endless:
        raise load_failed(folder, min(endless), "is no ordinary file", "remove it")


def _is_endless(entry: os.DirEntry[str]) -> bool:
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link to nothing: whoever needs it says that it is missing
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def expanded(path: str) -> Path:
    """Return a path with the home folder in place of a ``~`` that it begins with; as it is for a
    user that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_text(folder: Path, file: str) -> str:
    """Return a file's text. Raises `PunieError`, also for one of more than `MAX_TEXT` bytes."""
    try:
        with (folder / file).open("rb") as stream:
            content = stream.read(MAX_TEXT + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise load_failed(folder, file, "is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise load_failed(folder, file, _reason(error)) from None
    if len(content) > MAX_TEXT:
        raise load_failed(folder, file, f"has more than {MAX_TEXT} bytes, which is the limit")
    return text


def read_object(folder: Path, file: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises `PunieError`."""
    text = read_text(folder, file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise load_failed(folder, file, f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise load_failed(folder, file, "is not a JSON object")
    return value


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read: {text}"
