"""A model host that no supervisor started, but a person or ``mlx.launch``: it ends with whoever
started it, says on stderr how its model is, and opens its own HTTP door."""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from punie_model_host.log import event
from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.to_model_host import OpenDoor
from punie_protocol.messages.to_supervisor import Load, ModelState

MIN_KEY: Final = 16
_STDIN: Final = 0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DoorPlan:
    """The HTTP door to open: `port` 0 is any free one, the key is what `key_file` holds."""

    port: int
    key_file: Path

    def request(self) -> OpenDoor:
        """Return the message that opens it. Raises `PunieError` for a file without a key."""
        try:
            key = self.key_file.read_text().strip()
        except (OSError, UnicodeError) as error:
            raise _no_key(f"{self.key_file} cannot be read: {error}") from None
        if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise _no_key(f"{self.key_file} holds no key of {MIN_KEY} letters or more, in one line")
        return OpenDoor(request_id=0, port=self.port, key=key)


def _no_key(reason: str) -> PunieError:
    hint = "write one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
    return PunieError(InvalidRequest(message=f"--openai-key-file: {reason}", hint=hint))


def watch_launcher(gone: Callable[[], None]) -> None:
    """Call `gone`, in the running loop, when the other end of stdin closes, as it does when the
    launcher ends: if it is a pipe, or the terminal that ``mlx.launch`` has on another machine. What
    comes from there is thrown away."""
    remote = "MLX_RANK" in os.environ and os.isatty(_STDIN)
    if not remote and not stat.S_ISFIFO(os.fstat(_STDIN).st_mode):
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(_STDIN, 65_536):
            loop.remove_reader(_STDIN)
            gone()

    loop.add_reader(_STDIN, read)


def log_state(state: ModelState) -> None:
    """Say how the model is."""
    match state.state:
        case Load.READY:
            event(_log, logging.INFO, "ready", model=state.name)
        case Load.FAILED if state.error is not None:
            event(_log, logging.CRITICAL, "not-ready", error=state.error.message)
        case _:
            pass


def refuse_live_socket(path: Path) -> None:
    """Raise `PunieError` when somebody serves `path`: another host's socket is not taken away."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    message = f"--socket {path}: another process serves it"
    raise PunieError(InvalidRequest(message=message, hint="take another path"))
