"""Where Punie keeps its files: one answer for the daemon and every client.

``PUNIE_HOME`` overrides everything; otherwise the platform's own folders are used.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec
import platformdirs

from punie_protocol.errors import Denied, InvalidRequest, PunieError, TooLarge

_MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes of ``sun_path`` less its end: unix(7), and sys/un.h on macOS."""


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute folders; files are derived from them."""

    config_dir: Path
    data_dir: Path
    state_dir: Path
    run_dir: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Return the paths that `environ` (default: the process's) asks for; touches no file."""
        environ = os.environ if environ is None else environ
        if home := environ.get("PUNIE_HOME"):
            root = Path(home).expanduser().absolute()
            return cls(
                config_dir=root / "config",
                data_dir=root / "data",
                state_dir=root / "state",
                run_dir=root / "run",
            )
        dirs = platformdirs.PlatformDirs("punie", appauthor=False)
        state = Path(dirs.user_state_dir)
        runtime = environ.get("XDG_RUNTIME_DIR", "")
        if not runtime.startswith("/"):  # relative ones are to be ignored, says the XDG standard
            runtime = ""
        return cls(
            config_dir=Path(dirs.user_config_dir),
            data_dir=Path(dirs.user_data_dir),
            state_dir=state,
            run_dir=Path(runtime) / "punie" if runtime else state / "run",
        )

    @property
    def home(self) -> Path:
        """The folder a person would call Punie's: the common parent with ``PUNIE_HOME``."""
        same = self.state_dir.parent == self.run_dir.parent
        return self.state_dir.parent if same else self.state_dir

    @property
    def config_file(self) -> Path:
        return self.config_dir / "config.toml"

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def journal(self) -> Path:
        return self.state_dir / "journal.db"

    @property
    def prefix_cache(self) -> Path:
        """Keys and values of conversations, which the model host keeps between two starts."""
        return self.state_dir / "prefix-cache"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "punie.log"

    @property
    def openai_key(self) -> Path:
        return self.state_dir / "openai-key"

    @property
    def lock_file(self) -> Path:
        return self.run_dir / "punie.lock"

    @property
    def socket(self) -> Path:
        return self.run_dir / "punie.sock"

    @property
    def model_socket(self) -> Path:
        return self.run_dir / "model.sock"

    def prepare(self) -> None:
        """Make the state and run folders, 0700. Raises `PunieError` when a socket path would be
        too long, or a folder cannot be made or belongs to somebody else."""
        self.check_socket_path()
        for folder in (self.state_dir, self.run_dir):
            _make_private(folder)

    def check_socket_path(self) -> None:
        """Raise `PunieError` when the socket's path does not fit into a socket address."""
        size = len(os.fsencode(self.model_socket))
        if size > _MAX_SOCKET_PATH:
            raise PunieError(
                TooLarge(
                    message=f"socket path {self.socket} is {size} bytes long, "
                    f"the system allows {_MAX_SOCKET_PATH}",
                    hint="set PUNIE_HOME or XDG_RUNTIME_DIR to a shorter path",
                    limit=_MAX_SOCKET_PATH,
                    actual=size,
                )
            )


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.geteuid():
            raise PunieError(
                Denied(
                    message=f"{folder} belongs to another user",
                    hint="set PUNIE_HOME to a folder of your own",
                )
            )
        folder.chmod(0o700)
    except OSError as error:
        raise PunieError(
            InvalidRequest(
                message=f"cannot use folder {folder}: {error.strerror}",
                hint="set PUNIE_HOME to a folder you can write",
            )
        ) from error
