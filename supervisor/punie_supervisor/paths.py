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
    cache_dir: Path

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
                cache_dir=root / "cache",
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
            cache_dir=Path(dirs.user_cache_dir),
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
    def scratch_project(self) -> Path:
        """Where ``punie bench profile --scratch`` makes its project. Unlike the other folders it is
        one that a worker's tools may see."""
        return self.cache_dir / "scratch-project"

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

    def model(self, text: str) -> str:
        """Return a model that somebody wrote: a name as it is, a path absolute.

        What looks like a path is one: it has a separator, is ``.``, ``..`` or begins with ``~``;
        unless there is none like it here, and in the models directory there is. Raises `PunieError`
        as `absolute` does.
        """
        if os.sep not in text and text not in (os.curdir, os.pardir) and text[:1] != "~":
            return text
        path = absolute(text)
        begins_as_a_path = text[:1] in (os.sep, ".", "~") or os.pardir in Path(text).parts
        if begins_as_a_path or Path(path).exists() or not (self.models_dir / text).is_dir():
            return path
        return text

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


def absolute(text: str) -> str:
    """Return a path that somebody wrote as an absolute one, ``~`` resolved. Raises `PunieError` for
    the home of somebody who does not exist."""
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError:
        message = f"{text[:200]}: there is no such user's home"
        raise PunieError(InvalidRequest(message=message, hint="write the whole path")) from None


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
