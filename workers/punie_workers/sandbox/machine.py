"""Facts of this machine that a view is made of: the system's folders, the home, what exists."""

import os
import pwd
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from punie_workers.sandbox.view import Hidden, Shown, within

SYSTEM: Final = (
    *("usr", "bin", "sbin", "lib*", "opt"),
    *("nix/store", "nix/var/nix/profiles", "gnu/store"),
)
"""Folders of programs and libraries. The rest of ``/nix`` holds the socket of a daemon that builds
things outside any sandbox, with the network."""

ETC: Final = (
    *(
        "alternatives",
        "ca-certificates",
        "crypto-policies",
        "fonts",
        "gitconfig",
        "group",
        "hosts",
        "java*",
    ),
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "maven", "mime.types"),
    *("nsswitch.conf", "os-release", "passwd", "pki/ca-trust", "pki/tls/cert.pem", "pki/tls/certs"),
    *("pki/tls/openssl.cnf", "protocols", "python*", "services", "ssl/cert.pem", "ssl/certs"),
    *("ssl/openssl.cnf", "static"),
)
"""What of ``/etc`` is shown: what programs cannot do without, and nothing secret, as ``shadow`` or
``ssl/private``. Each entry costs a mount, a fifth of a millisecond."""

ETC_NETWORK: Final = ("resolv.conf",)
"""What of ``/etc`` is shown besides where the network is allowed."""


def folders() -> list[str]:
    """Return the folders of programs and libraries that exist, links too."""
    return [str(path) for name in SYSTEM for path in sorted(Path("/").glob(name))]


def system(*, network: bool, bare: bool = False) -> tuple[Shown, ...]:
    """Return what every program sees of the machine, of what exists; `bare` without ``/etc``."""
    names = () if bare else (*ETC, *ETC_NETWORK) if network else ETC
    settings = [str(path) for name in names for path in sorted(Path("/etc").glob(name))]
    real = [path for path in folders() if not Path(path).is_symlink()]
    shown = [_as_it_is(Path(path), real) for path in (*folders(), *settings)]
    return tuple(one for one in shown if one is not None)


def _as_it_is(path: Path, folders: list[str]) -> Shown | None:
    """Return a link as a link when it leads to something that is shown, else what it leads to."""
    source = path.resolve()
    if path.is_symlink() and any(within(str(source), folder) for folder in folders):
        return Shown(str(path), str(path.readlink()), link=True)
    return Shown(str(path), str(source)) if source.exists() else None


def home() -> str:
    """Return the user's home as a real path; empty when there is none of their own."""
    named = os.environ.get("HOME", "")
    if not named.startswith("/"):
        named = _home_of_user()
    real = os.path.realpath(named) if named else ""
    return real if real != "/" and Path(real).is_dir() else ""


def _home_of_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def shown(paths: Iterable[str], home: str) -> Iterator[Shown]:
    """Yield those of absolute `paths` that exist, each under its own and its real name. ``~`` is
    `home`."""
    for path in paths:
        if path == "~" or path.startswith("~/"):
            path = home + path[1:]
        real = os.path.realpath(path)
        if not path.startswith("/") or not Path(real).exists():
            continue
        yield from as_named(path, real)


def as_named(path: str, real: str) -> Iterator[Shown]:
    """Yield what is at a `real` path, also under the name `path` unless that is a link."""
    yield Shown(real, real)
    if (written := os.path.normpath(path)) != real and not Path(written).is_symlink():
        yield Shown(written, real)


def hidden(paths: Iterable[str]) -> Iterator[Hidden]:
    """Yield those of absolute `paths` that exist, by their real names."""
    for path in dict.fromkeys(os.path.realpath(path) for path in paths):
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        yield Hidden(path, stat.S_ISDIR(mode))
