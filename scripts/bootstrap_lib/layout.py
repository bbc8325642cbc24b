"""Where everything lies, below the root of the checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Paths of one checkout. Nothing is ever written outside of it, save uv's own cache."""

    root: Path

    @property
    def tools(self) -> Path:
        """Private programs and libraries, never under HOME."""
        return self.root / ".tools"

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def venv_python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def venv_marker(self) -> Path:
        """Exists only in an environment whose installation ran to its end."""
        return self.venv / ".complete.json"

    @property
    def openblas_path(self) -> Path:
        """Text file with the absolute path of the BLAS that the model host is to load."""
        return self.venv / "share" / "punie" / "openblas.path"

    @property
    def bubblewrap_path(self) -> Path:
        """Text file with the absolute path of the `bwrap` that the workers are to use; missing
        where an installed one works, and where there is none."""
        return self.venv / "share" / "punie" / "bubblewrap.path"

    @property
    def stamp(self) -> Path:
        return self.tools / "bootstrap.json"

    @property
    def lock(self) -> Path:
        return self.tools / "bootstrap.lock"

    @property
    def inputs(self) -> list[Path]:
        """The files that decide what a set-up checkout looks like."""
        library = sorted((self.root / "scripts" / "bootstrap_lib").glob("*.py"))
        return [
            self.root / "pyproject.toml",
            self.root / "uv.lock",
            self.root / "scripts" / "bootstrap",
            *library,
        ]
