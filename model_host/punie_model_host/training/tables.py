"""Reads the data files beside this module."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any


def tables(name: str) -> dict[str, Any]:
    """The tables of ``data/<name>.toml``."""
    path = Path(__file__).parent / "data" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))
