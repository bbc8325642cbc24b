"""uv: the one on PATH when it is new enough, else a private one from PyPI."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Mapping, Sequence

from bootstrap_lib import pypi, shell
from bootstrap_lib.layout import Layout
from bootstrap_lib.pip_settings import home_folder
from bootstrap_lib.report import BootstrapError

VERSION = "0.13.8"
OLDEST = (0, 9, 0)

NOTHING: Mapping[str, str] = MappingProxyType({})

CERTIFICATE_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True)
class Uv:
    """A uv that works, and what is set for each of its runs."""

    program: Path
    version: str
    settings: Mapping[str, str]

    def run(
        self,
        words: Sequence[str | Path],
        settings: Mapping[str, str] = NOTHING,
        *,
        timeout_s: float = 900,
    ) -> str:
        """Run it with more `settings`; `shell.CommandFailed` when it fails."""
        env = environment(os.environ, {**self.settings, **settings})
        return shell.run([self.program, *words], env=env, timeout_s=timeout_s)


def find_or_install(layout: Layout) -> tuple[Uv, str]:
    """A usable uv, and where it comes from in words."""
    private = layout.tools / "uv" / "bin" / "uv"
    on_path = shutil.which("uv")
    candidates = [(private, "private")]
    if on_path:
        candidates.insert(0, (Path(on_path), "on PATH"))
    for program, origin in candidates:
        found = version_of(program)
        if found is not None and is_new_enough(found):
            return Uv(program, found, _settings(layout)), origin
    program = pypi.install_program("uv", VERSION, layout.tools / "uv")
    found = version_of(program)
    if found is None:
        raise BootstrapError(
            f"{program} was installed and does not run on this machine",
            "install uv another way (https://docs.astral.sh/uv/) and run this again",
        )
    return Uv(program, found, _settings(layout)), "installed from PyPI"


def version_of(program: Path) -> str | None:
    """The version a uv reports; None when it does not run."""
    try:
        said = shell.run([program, "--version"], timeout_s=20)
    except shell.CommandFailed:
        return None
    match = re.match(r"uv (\d+\.\d+\.\d+)", said)
    return match[1] if match else None


def is_new_enough(version: str) -> bool:
    """Whether this uv reads our lock file and knows Python 3.14."""
    return tuple(int(part) for part in version.split(".")) >= OLDEST


def environment(inherited: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """The environment for uv: ours over the user's, less what names another project.

    A setting without a value takes the variable away.
    """
    dropped = {"VIRTUAL_ENV", "UV_PROJECT", "UV_WORKING_DIR", "PYTHONPATH", "PYTHONHOME"}
    kept = {name: value for name, value in inherited.items() if name not in dropped}
    merged = {**kept, **settings}
    return {name: value for name, value in merged.items() if value}


def _settings(layout: Layout) -> dict[str, str]:
    settings = {
        "UV_PROJECT_ENVIRONMENT": str(layout.venv),
        "UV_PYTHON_INSTALL_DIR": str(layout.tools / "uv-python"),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    if any(Path(name).is_file() for name in CERTIFICATE_FILES):
        settings["UV_SYSTEM_CERTS"] = settings["UV_NATIVE_TLS"] = "1"
    if "UV_CACHE_DIR" not in os.environ and not _has_cache_home():
        settings["UV_CACHE_DIR"] = str(layout.tools / "uv-cache")
    return settings


def _has_cache_home() -> bool:
    """Whether uv's usual cache folder can be written (a service account's home often cannot)."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "uv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
