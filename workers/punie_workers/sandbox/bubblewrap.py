"""bubblewrap: a view as words for ``bwrap``, and the life of one sandbox.

Namespaces of its own for users, processes, IPC, host name, control groups and, unless allowed,
the network; no capabilities, no further user namespaces, no terminal to type into, and the end
when its parent ends. What lies in the project is mounted by descriptor: a path could lead
elsewhere by the time ``bwrap`` follows it.
"""

import os
import re
import sys
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, assert_never

from punie_workers import children
from punie_workers.sandbox import environment, machine, outside, protected, seccomp, view
from punie_workers.sandbox.confinement import (
    Confined,
    Confinement,
    ProgramLimits,
    Sandbox,
    broken,
    refused,
)
from punie_workers.sandbox.ending import Ending
from punie_workers.sandbox.protected import Guarded
from punie_workers.sandbox.view import Facts, Kind, Mount

OPTIONS: Final = (
    *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
    *("--hostname", "sandbox"),
)
NEEDED: Final = frozenset({"--ro-bind-fd", "--json-status-fd", "--args", "--perms"})
"""Options that must be there. Two may be missing before version 0.8: then programs may make user
namespaces of their own, and temporary folders may take half of the memory."""
NO_MORE_NAMESPACES: Final = "--disable-userns"
SIZE: Final = "--size"
EXPENDABLE: Final = (
    *("/bin/sh", "-c", '{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null; exec "$@"', "sh"),
)
"""When memory runs short, it is a program in the sandbox that the kernel ends, not Punie. Said
outside: inside, ``/proc`` is read-only, since root could change the kernel's settings there."""
LIMITED: Final = (
    'ulimit -c 0 && ulimit -d "$1" && ulimit -t "$2"'
    ' && ulimit -n "$3" && ulimit -f "$4" && { ulimit -u "$5" || ulimit -p "$5"; } 2>/dev/null'
    ' || exit 126; shift 5; exec "$@"'
)
"""Sets the limits and becomes the program. ``-u`` of bash and busybox is ``-p`` of dash."""
BACKSTOP: Final = 16
"""Processes beyond the limit at which the kernel stops: the guard, which says why, comes first."""
BESIDE_DEPTH: Final = 1
"""Levels down that repositories are looked for in folders beside the project: caches hold many."""
FALLBACK_HOME: Final = "/tmp"


class Place(NamedTuple):
    """A folder that is mounted by descriptor, and what is protected in it where it can be written
    to."""

    fd: int
    guarded: tuple[Guarded, ...]

    def fds(self) -> list[int]:
        """Return the descriptors that ``bwrap`` needs for it."""
        return [self.fd, *(one.fd for one in self.guarded)]


_NO_PLACES: Final[Mapping[str, Place]] = MappingProxyType({})


class Bubblewrap(Sandbox):
    """Programs under ``bwrap``."""

    name = "bubblewrap"

    def __init__(self, path: str, version: str, help: str) -> None:
        """`version` and `help` are what it prints about itself."""
        self.path = path
        self.version = version.strip().removeprefix("bubblewrap").strip()
        self._options = frozenset(re.findall(r"--[a-z0-9-]+", help))

    def lacks(self) -> str | None:
        """Return what an old one cannot do and must."""
        missing = sorted(NEEDED - self._options)
        return f"it is too old: it has no {', '.join(missing)}" if missing else None

    @contextmanager
    def enter(
        self, wanted: Confinement, command: Sequence[str], *, cwd: str
    ) -> Generator[Confined]:
        facts, programs = _facts(wanted)
        mounts = view.mounts(wanted, facts)
        _check_folder(cwd, wanted, mounts)
        with ExitStack() as stack:
            places = _places(stack, wanted, facts, mounts)
            ending = stack.enter_context(Ending())
            options = words(wanted, mounts, self._options, places)
            options += ["--chdir", cwd]
            options += ["--json-status-fd", str(ending.fd)]
            fds = [ending.fd, *(fd for place in places.values() for fd in place.fds())]
            if calls := seccomp.program(os.uname().machine):
                fds.append(_held(stack, "system calls", calls))
                options += ["--seccomp", str(fds[-1])]
            told = _held(stack, "options", b"".join(os.fsencode(f"{one}\0") for one in options))
            home = facts.home or FALLBACK_HOME
            limits = () if wanted.bare else limited(wanted.limits)
            yield Confined(
                (*EXPENDABLE, self.path, "--args", str(told), "--", *limits, *command),
                environment.environment(children.outside(), home, programs, wanted.settings),
                (told, *fds),
                _watch(wanted.root, places),
            )

    def alone(self, mounts: Iterable[Mount], command: Sequence[str]) -> tuple[str, ...]:
        """Return the words that start `command` in ``/`` of a place that has `mounts` and no
        network. They may be used any number of times; what they start ends with who started it."""
        options = words(Confinement(root=None), mounts, self._options)
        return (self.path, *options, "--chdir", "/", "--", *command)


def _places(
    stack: ExitStack, wanted: Confinement, facts: Facts, mounts: Iterable[Mount]
) -> dict[str, Place]:
    """Return the project's folder and others that can be written to, by their paths inside, with
    what is protected in them; they are held as long as `stack` is open. Raises `PunieError`."""
    found: dict[str, Place] = {}
    if wanted.root is not None:
        fd = _open(wanted.root)
        stack.callback(os.close, fd)
        guarded: tuple[Guarded, ...] = ()
        if wanted.writable:
            hidden = view.hidden(wanted, facts)
            guarded = stack.enter_context(protected.guard(fd, hidden, lasting=wanted.lasting))
        found[wanted.root] = Place(fd, guarded)
    for mount in mounts if wanted.writable else ():
        if mount.kind is Kind.WRITE and mount.path not in found and Path(mount.source).is_dir():
            fd = _open(mount.source)
            stack.callback(os.close, fd)
            of = f"'{mount.source}'"
            guard = protected.guard(fd, lasting=wanted.lasting, depth=BESIDE_DEPTH, of=of)
            found[mount.path] = Place(fd, stack.enter_context(guard))
    return found


def _watch(root: str | None, places: Mapping[str, Place]) -> Callable[[], str | None]:
    """Return what tells whether something protected in `places` was replaced; what is in the
    project is named from its root."""
    known = {
        path: (place.fd, [(one.path, os.fstat(one.fd)) for one in place.guarded])
        for path, place in places.items()
    }

    def replaced() -> str | None:
        for path, place in known.items():
            if found := protected.replaced(*place):
                return found if path == root else f"{path}/{found}"
        return None

    return replaced


def _held(stack: ExitStack, name: str, data: bytes) -> int:
    """Return a descriptor to read `data` from, as long as `stack` is open. The options of ``bwrap``
    go that way too: a program in the sandbox sees the words that it was started with, and is not
    to learn from them what is hidden."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def words(
    wanted: Confinement,
    mounts: Iterable[Mount],
    known: Container[str],
    places: Mapping[str, Place] = _NO_PLACES,
) -> list[str]:
    """Return the options of a ``bwrap`` that has those that are `known`. `places` are folders that
    are mounted by descriptor, by their paths inside. Pure."""
    argv = [*OPTIONS] if wanted.network else [*OPTIONS, "--unshare-net"]
    if NO_MORE_NAMESPACES in known:
        argv.append(NO_MORE_NAMESPACES)
    for mount in mounts:
        if mount.kind in (Kind.READ, Kind.WRITE) and (place := places.get(mount.path)):
            argv += _by_descriptor(place.fd, mount.path, writable=mount.kind is Kind.WRITE)
            for one in place.guarded if mount.kind is Kind.WRITE else ():
                argv += _by_descriptor(one.fd, f"{mount.path}/{one.path}", writable=one.writable)
        else:
            argv += _words(mount, bounded=SIZE in known)
    return argv


def _by_descriptor(fd: int, path: str, *, writable: bool) -> list[str]:
    return ["--bind-fd" if writable else "--ro-bind-fd", str(fd), path]


def _words(mount: Mount, *, bounded: bool) -> list[str]:
    match mount.kind:
        case Kind.READ:
            return ["--ro-bind", mount.source, mount.path]
        case Kind.WRITE:
            return ["--bind", mount.source, mount.path]
        case Kind.LINK:
            return ["--symlink", mount.source, mount.path]
        case Kind.EMPTY:
            size = [SIZE, str(mount.size)] if bounded else []
            return ["--perms", "0700", *size, "--tmpfs", mount.path]
        case Kind.PROC:
            return ["--proc", mount.path]
        case Kind.DEVICES:
            return ["--dev", mount.path]
        case Kind.MASK_FILE:
            return ["--ro-bind", os.devnull, mount.path]
        case Kind.MASK_FOLDER:
            return ["--tmpfs", mount.path, "--remount-ro", mount.path]
        case Kind.CLOSE:
            return ["--remount-ro", mount.path]
        case _:
            assert_never(mount.kind)


def limited(limits: ProgramLimits) -> tuple[str, ...]:
    """Return the words that go before a command to keep it to `limits`, of which none is above
    what this process itself may have."""
    import resource

    def at_most(wanted: int, kind: int) -> int:
        _, most = resource.getrlimit(kind)
        return wanted if most == resource.RLIM_INFINITY else min(wanted, most)

    numbers = (
        at_most(limits.memory, resource.RLIMIT_DATA) // 1024,
        at_most(limits.cpu_s, resource.RLIMIT_CPU),
        at_most(limits.files, resource.RLIMIT_NOFILE),
        at_most(limits.file_size, resource.RLIMIT_FSIZE) // 512,
        at_most(limits.processes + BACKSTOP, resource.RLIMIT_NPROC),
    )
    return ("/bin/sh", "-c", LIMITED, "sh", *map(str, numbers))


def _facts(wanted: Confinement) -> tuple[Facts, list[str]]:
    """Return the facts, and the folders of programs that go on ``PATH``."""
    home = machine.home()
    hidden = tuple(machine.hidden(wanted.hidden))
    path = "" if wanted.bare else os.environ.get("PATH", "")
    programs = outside.programs(path, home, wanted.root)
    read = [*wanted.read, *wanted.settings.read, *programs.shown]
    write = tuple(machine.shown(wanted.settings.write, home))
    facts = Facts(
        system=machine.system(network=wanted.network, bare=wanted.bare),
        home=home,
        read=(*machine.shown(read, home), *outside.shown(wanted.root, home, write)),
        write=write,
        hidden=hidden,
    )
    return facts, programs.path


def _open(root: str) -> int:
    """Return a descriptor of the project's folder. Raises `PunieError` unless `root` is its real
    path."""
    assert sys.platform == "linux"
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(root, flags)
    except OSError as error:
        raise broken(f"the project's folder {root} cannot be opened: {error.strerror}") from None
    if str(Path(f"/proc/self/fd/{fd}").readlink()) == root:
        return fd
    os.close(fd)
    raise refused(f"'{root}' is not the real path of a folder", "open the project by its real path")


def _check_folder(cwd: str, wanted: Confinement, mounts: Iterable[Mount]) -> None:
    places = [wanted.root] if wanted.root is not None else [mount.path for mount in mounts]
    if not any(view.within(cwd, place) for place in places if place != "/"):
        raise refused(f"'{cwd}' is outside what the sandbox shows", "use a folder of the project")


def is_sane(path: str) -> bool:
    """Whether `path` is a program that only root or this user can have put there."""
    try:
        status = Path(path).stat()
    except OSError:
        return False
    ours = status.st_uid in (0, os.getuid())
    return ours and not status.st_mode & 0o022 and os.access(path, os.X_OK)
