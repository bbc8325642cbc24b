"""The package index this machine is set up for: pip's own settings and uv's."""

from __future__ import annotations

import configparser
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping
from urllib.parse import urlsplit

PYPI = "https://pypi.org/simple"


@dataclass(frozen=True)
class IndexSettings:
    """An index in PEP 503 form, and the certificate bundle to trust for it (None: the system's)."""

    url: str = PYPI
    certificates: str | None = None

    @property
    def is_pypi(self) -> bool:
        return urlsplit(self.url).hostname in ("pypi.org", "pypi.python.org")


def index_settings(environ: Mapping[str, str] = os.environ) -> IndexSettings:
    """The index pip or uv would use here; PyPI when nothing else is set."""
    configured = read_pip_files(pip_files(environ))
    url = (
        environ.get("UV_DEFAULT_INDEX")
        or environ.get("UV_INDEX_URL")
        or environ.get("PIP_INDEX_URL")
        or configured.get("index-url")
        or PYPI
    )
    certificates = environ.get("PIP_CERT") or configured.get("cert")
    return IndexSettings(url.rstrip("/"), certificates)


def pip_files(environ: Mapping[str, str]) -> list[Path]:
    """pip's configuration files, the weakest first, as its documentation orders them."""
    home = home_folder()
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        config_home / "pip" / "pip.conf",
        Path(sys.prefix) / "pip.conf",
    ]
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    return [*files, Path(named)] if named else files


def read_pip_files(files: Iterable[Path]) -> dict[str, str]:
    """The `[global]` settings, `[install]` ones over them; unreadable files are passed over."""
    parser = configparser.RawConfigParser(strict=False)
    for path in files:
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, configparser.Error):
            continue
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found.update(parser.items(section))
    return found


def home_folder() -> Path:
    """The user's home; a path that does not exist for an account without one."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")
