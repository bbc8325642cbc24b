"""What an attempt to escape finds around it, and how it is seen whether one got through.

Everything of value is a canary: a text that nothing may show, a file that nothing may change, a
socket that nobody may reach. `tests/data/escapes/README.md` says what the places are called.
"""

import os
import re
import socket
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.support.checking import script, snapshot, write
from tests.support.escapes import FOLDER
from tests.support.repositories import Repository

CANARY: Final = "CANARY-4b1d"
"""Stands in everything that nobody may read."""

_REPEAT: Final = re.compile(r"@REPEAT\[(.*?)\]\*(\d+)@", re.DOTALL)
_SECRETS: Final = (".ssh/id_ed25519", ".aws/credentials", ".netrc", ".config/gh/hosts.yml")


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of a tool."""

    tool: str
    arguments: dict[str, Any] = {}


class Case(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attempt: what is put into the project first, and what is tried then."""

    id: str
    number: int = msgspec.field(name="class")
    target: str
    expect: str
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    hard_links: dict[str, str] = {}
    folders: list[str] = []
    pipes: list[str] = []
    sockets: list[str] = []
    calls: list[Call] = []
    sh: str = ""
    trusted: dict[str, str] = {}
    allow: list[str] = []
    programs: list[str] = []
    git_config: dict[str, str] = {}
    absent: list[str] = []
    hidden: list[str] = []
    protected: list[str] = []
    leaks: list[str] = []
    alike: bool = False
    bites: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    case: list[Case] = []


def cases(file: str) -> list[Case]:
    """Return the cases of one file of the corpus. Raises `msgspec.ValidationError`."""
    return msgspec.convert(tomllib.loads((FOLDER / file).read_text()), _File).case


class Ground:
    """The places of one attempt; `places` are their names in the corpus."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.outside = folder / "outside"
        self.home = folder / "home"
        self.mark = folder / "marks" / "mark"
        self.marker = folder / "marks" / "marker"
        self.secret = self.outside / "secret.txt"
        self.socket = folder / "agent.sock"
        self.reached: list[str] = []
        self.port = 0
        self.more: dict[str, str] = {}
        self._build()
        self._before = self._kept()

    def _build(self) -> None:
        secret = f"{CANARY}\n"
        module = f"PASSWORD = '{CANARY}'\n"
        write(self.outside, {"secret.txt": secret, "secret_module.py": module, "shared.txt": "s\n"})
        write(self.home, dict.fromkeys(_SECRETS, secret))
        write(self.home, {".config/autostart/kept": "", ".profile": "", ".cache/kept": ""})
        write(self.folder / "project-other", {"notes.txt": secret, "code.py": module})
        script(self.marker, f'echo "$0" >>"{self.mark}"')
        self._repository = Repository(self.project)
        self._repository.commit({"README.md": "A project.\n"})

    def prepare(self, case: Case) -> None:
        """Put into the project what the case starts with."""
        for name in case.folders:
            (self.project / name).mkdir(parents=True, exist_ok=True)
        for name, text in case.files.items():
            write(self.project, {self.fill(name): self.fill(text)})
        for name, target in case.links.items():
            self._make(name).symlink_to(self.fill(target))
        for name, target in case.hard_links.items():
            self._make(name).hardlink_to(self.fill(target))
        for name in case.programs:
            script(self.project / name, f'"{self.marker}"; echo "$0" >>"{self.mark}"')
        for name, value in case.git_config.items():
            self._repository.git("config", "--add", name, self.fill(value))
        for name in case.pipes:
            os.mkfifo(self._make(name))
        for name in case.sockets:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(str(self._make(name)))

    def fill(self, text: str) -> str:
        """Return `text` with the places of this ground and what is to be repeated."""
        text = _REPEAT.sub(lambda found: found[1] * int(found[2]), text)
        for name, value in self.places().items():
            text = text.replace(f"@{name}@", value)
        return text

    def filled(self, value: Any) -> Any:
        """Return arguments of a call, filled in."""
        match value:
            case str():
                return self.fill(value)
            case dict():
                return {name: self.filled(one) for name, one in value.items()}
            case list():
                return [self.filled(one) for one in value]
            case _:
                return value

    def places(self) -> Mapping[str, str]:
        """Return what stands for the names of the corpus."""
        return {
            "PROJECT": str(self.project),
            "OUTSIDE": str(self.outside),
            "HOME": str(self.home),
            "SECRET": str(self.secret),
            "MARK": str(self.mark),
            "MARKER": str(self.marker),
            "SOCKET": str(self.socket),
            "PORT": str(self.port),
            "PID": str(os.getpid()),
            **self.more,
        }

    def damage(self) -> list[str]:
        """Return what is not as it was: nothing, if nothing got through."""
        now = self._kept()
        changed = [name for name in now | self._before if now.get(name) != self._before.get(name)]
        return [*changed, *self.reached]

    def shows(self, text: str, case: Case) -> list[str]:
        """Return what `text` shows that it must not."""
        return [leak for leak in (CANARY, *map(self.fill, case.leaks)) if leak in text]

    def _make(self, name: str) -> Path:
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _kept(self) -> dict[str, object]:
        """Return all that must stay: content and modes of everything outside the project."""
        others = ("outside", "home", "project-other", "marks")
        found = {name: snapshot(self.folder / name) for name in others}
        return {f"{name}/{path}": entry for name in others for path, entry in found[name].items()}

    @contextmanager
    def listening(self) -> Generator[None]:
        """Listen on a Unix socket, an abstract one and a port; whoever comes is in `reached`."""
        with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
            unix.bind(str(self.socket))
            tcp.bind(("127.0.0.1", 0))
            self.port = tcp.getsockname()[1]
            for one in (unix, tcp):
                one.listen()
                one.setblocking(False)
            try:
                yield
            finally:
                self.reached += [str(one.getsockname()) for one in (unix, tcp) if _came(one)]


def _came(listener: socket.socket) -> bool:
    """Whether somebody has connected."""
    with suppress(BlockingIOError):
        listener.accept()[0].close()
        return True
    return False
