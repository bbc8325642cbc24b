"""The user's config file, ``config.toml``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from punie_protocol import backends
from punie_protocol.backends import Server
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import InvalidRequest, ModelUnavailable, PunieError
from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_protocol.messages.common import Isolation
from punie_protocol.permissions import PermissionSettings, check_settings
from punie_supervisor import config_faults, drafting
from punie_supervisor.paths import Paths

EMBEDDED: Final = "embedded"
"""The model that comes with Punie."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings with their defaults. `model` is a name, a path or a server's address, `isolation`
    that of projects which do not say otherwise; one that is idle for `idle_s` seconds becomes
    passive. `engine` is our own model host's, `servers` are model servers besides it, no two with
    one address."""

    model: str = EMBEDDED
    isolation: Isolation = Isolation.PROCESS
    permissions: PermissionSettings = PermissionSettings()
    servers: list[Server] = []
    idle_s: Annotated[float, Meta(gt=0, le=604_800)] = 900.0
    limits: WorkerLimits = WorkerLimits()
    sandbox: SandboxSettings = SandboxSettings()
    engine: EngineSettings = EngineSettings()

    @classmethod
    def load(cls, paths: Paths) -> Self:
        """Return the settings; defaults when there is no file. Raises `PunieError` that names the
        file and the key."""
        file = paths.config_file
        try:
            config = msgspec.toml.decode(file.read_bytes(), type=cls)
            config.check()
        except FileNotFoundError:
            return cls()
        except PunieError as error:
            text = config_faults.in_words(str(error))
            fault = InvalidRequest(message=f"{file}: {text}", hint=error.error.hint)
            raise PunieError(fault) from None
        except RecursionError:
            fault = InvalidRequest(message=f"{file}: it is too deeply nested")
            raise PunieError(fault) from None
        except msgspec.ValidationError as error:
            text, hint = config_faults.explain(str(error), cls)
            raise PunieError(InvalidRequest(message=f"{file}: {text}", hint=hint)) from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise PunieError(InvalidRequest(message=f"{file}: {error}")) from None
        except OSError as error:
            raise PunieError(
                InvalidRequest(message=f"cannot read {file}: {error.strerror}")
            ) from None
        return config

    def check(self) -> None:
        """Raise `PunieError` that names the key for what types alone cannot refuse."""
        if backends.is_backend(self.model):
            backends.parse(self.model)
        check_settings(self.permissions)
        drafting.check(self.engine)
        _check_sandbox(self.sandbox)
        seen: dict[str, int] = {}
        for number, server in enumerate(self.servers):
            where = f"servers[{number}]"
            _check_server(where, server)
            first = seen.setdefault(address(server), number)
            if first != number:
                raise _refused(f"{where}.url: servers[{first}] has the address {server.url} too")


def address(server: Server) -> str:
    """Return the base URL as `backends.parse` gives it."""
    return backends.parse(server.url)[0]


def key_of(server: Server, environ: Mapping[str, str]) -> str:
    """Return the server's key, empty when it needs none. Raises `PunieError` when the variable
    that should hold it is not set (`ModelUnavailable`), or for a key that can be none."""
    key = environ.get(server.key_env, "") if server.key_env else server.key
    if not key.isascii() or not key.isprintable():
        raise _refused(f"the key of {server.url} has characters that no key has")
    if key or not server.key_env:
        return key
    raise PunieError(
        ModelUnavailable(
            message=f"the key of {server.url} should be in the environment variable "
            f"{server.key_env}, which the daemon does not have",
            hint="set it, then: punie restart",
        )
    )


def _check_sandbox(sandbox: SandboxSettings) -> None:
    for key, places in (("read", sandbox.read), ("write", sandbox.write)):
        for number, place in enumerate(places):
            _check_place(f"sandbox.{key}[{number}]", place)
    for number, name in enumerate(sandbox.environment):
        if not name.isidentifier():
            raise _refused(f"sandbox.environment[{number}]: {name!r} is no variable's name")


def _check_place(where: str, place: str) -> None:
    """Raise `PunieError` unless it is a path that can be shown: the home, and what has it in it,
    never are."""
    hint = "name a folder in your home, such as ~/.cache/uv"
    if place != "~" and not place.startswith(("/", "~/")):
        text = f"{where}: {place[:200]!r} is not an absolute path"
        raise _refused(text, "begin it with / or with ~/ and a folder in your home")
    home = Path.home()
    named = Path(os.path.normpath(Path(place).expanduser()))
    for one, other in ((named, home), (Path(os.path.realpath(named)), home.resolve())):
        if other.is_relative_to(one):
            what = "your home" if one == other else "a folder that your home is in"
            raise _refused(f"{where}: {place[:200]!r} is {what}, which is never shown", hint)


def _check_server(where: str, server: Server) -> None:
    if not backends.is_backend(server.url):
        raise _refused(f"{where}.url: {server.url[:200]!r} does not begin with http:// or https://")
    try:
        backends.parse(server.url)
    except PunieError as error:
        raise _refused(f"{where}.url: {error}", error.error.hint) from None
    if "#" in server.url:
        raise _refused(f"{where}.url: only the base address belongs here, without '#'")
    if server.key and server.key_env:
        raise _refused(f"{where}.key: there is a key_env too", "keep one of them")
    if server.command:
        _check_command(where, server)


def _check_command(where: str, server: Server) -> None:
    if urlsplit(server.url).scheme != "http":
        raise _refused(f"{where}.command: a server that Punie starts is asked by http://")
    if any("\0" in word for word in server.command):
        raise _refused(f"{where}.command: a word has a zero byte")
    if server.cwd and not Path(server.cwd).expanduser().is_absolute():
        raise _refused(f"{where}.cwd: {server.cwd!r} is not an absolute path")


def _refused(message: str, hint: str = "") -> PunieError:
    return PunieError(InvalidRequest(message=message, hint=hint))
