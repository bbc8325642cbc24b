"""macOS: a `Confinement` as a profile for ``sandbox-exec``, and the life of one sandbox.

Its rules are about paths, so a protected name that does not exist needs no placeholder, and
repositories at any depth are covered. The last rule that matches decides. What differs from
Linux: no process namespace (ending the process group is the caller's; a program that leaves the
group and the session outlives it), no private ``/tmp`` (``TMPDIR`` and ``HOME`` are a folder made
for the program), memory is not limited by the kernel. `sandbox-exec` is marked as deprecated by
Apple and still what browsers and package managers use.

Tested as text: the continuous integration has no Mac, so this was not run there.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from punie_workers import children
from punie_workers.sandbox import environment, machine, outside
from punie_workers.sandbox.confinement import (
    Confined,
    Confinement,
    ProgramLimits,
    Sandbox,
    broken,
    refused,
)
from punie_workers.sandbox.names import IN_REPOSITORY, IN_ROOT
from punie_workers.sandbox.view import Facts, within

PROGRAM: Final = "/usr/bin/sandbox-exec"
SYSTEM: Final = (
    *("/usr", "/bin", "/sbin", "/opt", "/System", "/Library/Developer", "/Library/Frameworks"),
    *("/Library/Apple", "/Library/Java", "/Applications/Xcode.app", "/private/etc/ssl/certs"),
    *("/private/var/db/dyld", "/private/var/db/timezone", "/private/var/db/xcode_select_link"),
    *("/private/var/select", "/nix"),
)
"""Folders of programs and libraries."""
FILES: Final = (
    *("/", "/etc", "/tmp", "/var", "/private/etc/hosts", "/private/etc/localtime"),
    *("/private/etc/passwd", "/private/etc/group", "/private/etc/shells", "/private/etc/services"),
    *("/private/etc/protocols", "/private/etc/gitconfig", "/private/etc/ssl/cert.pem"),
    *("/private/etc/ssl/openssl.cnf", "/private/etc/paths", "/dev", "/dev/tty"),
    *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/dtracehelper"),
)
"""Single files and folders that may be read; of a folder, what is in it by name."""
NETWORK_FILES: Final = ("/private/etc/resolv.conf", "/private/var/run/resolv.conf")
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/tty", "/dev/dtracehelper")
SERVICES: Final = (
    *("com.apple.system.opendirectoryd.libinfo", "com.apple.system.opendirectoryd.membership"),
    *("com.apple.system.logger", "com.apple.system.notification_center"),
)
"""Of the system's services: user names, logging. None starts a program."""
NETWORK: Final = """\
(allow network-outbound (remote ip "*:*"))
(allow network-inbound (local ip "*:*"))
(allow network-bind (local ip "*:*"))
(allow system-socket)
(allow network-outbound (literal "/private/var/run/mDNSResponder"))"""
"""Where the network is allowed: no Unix socket but the one that resolves names."""
NETWORK_SERVICES: Final = (
    *("com.apple.SystemConfiguration.configd", "com.apple.SystemConfiguration.DNSConfiguration"),
    "com.apple.trustd.agent",
)
BASE: Final = """\
(version 1)
(deny default)
(allow process-exec*)
(allow process-fork)
(allow process-info* (target same-sandbox))
(allow signal (target same-sandbox))
(allow sysctl-read)
(allow ipc-posix-sem)
(allow ipc-posix-shm)
"""
LIMITED: Final = (
    'ulimit -c 0 && ulimit -t "$1" && ulimit -n "$2" && ulimit -f "$3" || exit 126; shift 3;'
    ' exec "$@"'
)
"""Sets the limits that macOS keeps for each process, and becomes the program: memory is not one
of them, and the number of processes is counted for the user, not for a sandbox."""


class Seatbelt(Sandbox):
    """Programs under ``sandbox-exec``."""

    name = "sandbox-exec"

    def __init__(self, path: str = PROGRAM, version: str = "") -> None:
        self.path = path
        self.version = version

    @contextmanager
    def enter(
        self, wanted: Confinement, command: Sequence[str], *, cwd: str
    ) -> Generator[Confined]:
        home = machine.home()
        facts, programs = _facts(wanted, home)
        private = _private()
        try:
            text = profile(wanted, facts, private)
            if wanted.root is not None and not within(cwd, wanted.root):
                raise refused(f"'{cwd}' is outside the project", "use a folder of the project")
            environ = environment.environment(
                children.outside(), private, programs, wanted.settings
            )
            limits = () if wanted.bare else limited(wanted.limits)
            argv = (self.path, "-p", text, *limits, *command)
            yield Confined(argv, environ | {"TMPDIR": private}, ())
        finally:
            shutil.rmtree(private, ignore_errors=True)


def limited(limits: ProgramLimits) -> tuple[str, ...]:
    """Return the words that go before a command to keep it to `limits`."""
    numbers = (limits.cpu_s, limits.files, limits.file_size // 512)
    return ("/bin/sh", "-c", LIMITED, "sh", *map(str, numbers))


def profile(wanted: Confinement, facts: Facts, private: str) -> str:
    """Return the profile; `private` is the folder that is ``TMPDIR`` and ``HOME``. Pure. Raises
    `PunieError` with `Denied` for a project that is the home or above it, or is hidden."""
    _check(wanted, facts)
    return BASE + "".join(f"{rule}\n" for rule in _rules(wanted, facts, private))


def _rules(wanted: Confinement, facts: Facts, private: str) -> Iterator[str]:
    network = wanted.network
    writable = [private, *(shown.path for shown in facts.write)]
    readable = [*SYSTEM, *(shown.path for shown in facts.read)]
    if wanted.root is not None:
        (writable if wanted.writable else readable).append(wanted.root)
    single = [*FILES, *(NETWORK_FILES if network else ())]
    on_the_way = _above([*readable, *writable])
    yield _rule("allow", "file-read-metadata", _each("literal", on_the_way))
    yield _rule("allow", "file-read*", [*_each("literal", single), '(subpath "/dev/fd")'])
    yield _rule("allow", "file-read*", _each("subpath", [*readable, *writable]))
    yield _rule("allow", "file-write* network*", _each("subpath", writable))
    yield _rule("allow", "file-write-data file-ioctl", _each("literal", DEVICES))
    yield _rule("allow", "mach-lookup", _each("global-name", SERVICES))
    if network:
        yield NETWORK
        yield _rule("allow", "mach-lookup", _each("global-name", NETWORK_SERVICES))
    if wanted.writable:
        for place in dict.fromkeys([wanted.root, *(shown.path for shown in facts.write)]):
            yield from _protected(place) if place is not None else ()
    if facts.hidden:
        paths = [hidden.path for hidden in facts.hidden]
        yield _rule("deny", "file-read* file-write* network*", _each("subpath", paths))


def _protected(root: str) -> Iterator[str]:
    """Yield rules for protected names, whatever their case: the usual file system takes ``.GIT``
    for ``.git``. What contains one cannot be given another name."""
    start = f"^{_pattern(root)}/"
    names = "|".join(_any_case(rule.name) for rule in IN_ROOT)
    git = _any_case(".git")
    parts = "|".join(_any_case(rule.name) for rule in IN_REPOSITORY)
    yield _rule("deny", "file-write*", [_regex(f"{start}({names})(/|$)")])
    yield _rule(
        "deny", "file-write*", [_regex(f"{start}(.*/)?{git}/(modules/(.*/)?)?({parts})(/|$)")]
    )
    yield _rule("deny", "file-write-unlink", [_regex(f"{start}(.*/)?{git}$")])
    yield _rule("deny", "file-write-unlink", _each("literal", [root]))


def _check(wanted: Confinement, facts: Facts) -> None:
    if wanted.root is None:
        return
    if wanted.root == "/" or (facts.home and within(facts.home, wanted.root)):
        message = f"no program is run in '{wanted.root}': your home folder is part of it"
        raise refused(message, "open a folder of its own as the project")
    for hidden in facts.hidden:
        if within(wanted.root, hidden.path):
            message = f"no program is run in '{wanted.root}': '{hidden.path}' is never shown to one"
            raise refused(message, "open a folder elsewhere as the project")


def _above(paths: Iterable[str]) -> list[str]:
    """Return the folders on the way to `paths`: they are looked up, what is in them is not read."""
    found: dict[str, None] = {}
    for path in paths:
        while (path := path.rpartition("/")[0]) != "":
            found[path] = None
    return list(found)


def _rule(verdict: str, operations: str, filters: Iterable[str]) -> str:
    return f"({verdict} {operations} {' '.join(filters)})"


def _each(kind: str, values: Iterable[str]) -> list[str]:
    return [f"({kind} {_quoted(value)})" for value in values]


def _quoted(text: str) -> str:
    if any(ord(character) < ord(" ") for character in text):
        raise refused(f"the path {text!r} cannot be confined", "rename the folder")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _regex(pattern: str) -> str:
    return f'(regex #"{pattern}")'


def _pattern(text: str) -> str:
    """Return a pattern that matches `text`. A quotation mark would end the pattern: any character
    may stand in its place."""
    return re.sub(r"([.^$*+?()\[\]{}|\\])", r"\\\1", text).replace('"', ".")


def _any_case(name: str) -> str:
    return "".join(
        f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else _pattern(letter)
        for letter in name
    )


def _private() -> str:
    try:
        return os.path.realpath(tempfile.mkdtemp(prefix="punie-"))
    except OSError as error:
        raise broken(f"no private folder for the program: {error.strerror}") from None


def _facts(wanted: Confinement, home: str) -> tuple[Facts, list[str]]:
    programs = outside.programs(os.environ.get("PATH", ""), home, wanted.root)
    read = [*wanted.read, *wanted.settings.read, *programs.shown]
    write = tuple(machine.shown(wanted.settings.write, home))
    facts = Facts(
        home=home,
        read=(*machine.shown(read, home), *outside.shown(wanted.root, home, write)),
        write=write,
        hidden=tuple(machine.hidden(wanted.hidden)),
    )
    return facts, programs.path
