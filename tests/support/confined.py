"""Programs in the machine's real sandbox, for tests. There must be one: the bootstrap gets it."""

import subprocess
import sys
from pathlib import Path

from punie_workers.sandbox.available import Missing, find
from punie_workers.sandbox.confinement import Confinement, Sandbox

PYTHON = (sys.prefix, sys.base_prefix)
"""What our own Python needs to be seen."""
PATIENCE_S = 15


def the_sandbox() -> Sandbox:
    """This machine's sandbox. A machine without one fails the test, with the reason."""
    found = find()
    assert not isinstance(found, Missing), f"{found.reason}; {found.hint}"
    return found


class Confining:
    """Runs programs in a project. `wanted` are further fields of each `Confinement`."""

    def __init__(self, root: Path, **wanted: object) -> None:
        self.root = root
        self._wanted = wanted

    def run(
        self, *command: str, text: str = "", cwd: Path | None = None, **wanted: object
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, at most `PATIENCE_S` seconds."""
        confinement = Confinement(root=str(self.root), **{**self._wanted, **wanted})  # ty: ignore[invalid-argument-type]
        with the_sandbox().enter(confinement, command, cwd=str(cwd or self.root)) as confined:
            return subprocess.run(
                confined.argv,
                env=confined.environment,
                pass_fds=confined.pass_fds,
                input=text,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=PATIENCE_S,
                check=False,
            )

    def sh(self, script: str, **wanted: object) -> subprocess.CompletedProcess[str]:
        """Run a shell script."""
        return self.run("/bin/sh", "-c", script, **wanted)  # ty: ignore[invalid-argument-type]

    def python(self, program: str, **wanted: object) -> subprocess.CompletedProcess[str]:
        """Run a program of our own Python, which is shown for it."""
        read = {"read": PYTHON, **wanted}
        return self.run(sys.executable, "-I", "-c", program, **read)  # ty: ignore[invalid-argument-type]
