"""The corpus of escape attempts against the OS sandbox: shell texts that run inside it."""

import subprocess
from pathlib import Path

import psutil
import pytest

from punie_workers.sandbox import available
from punie_workers.sandbox.confinement import Confinement, ProgramLimits, Sandbox
from tests.support.checking import snapshot, until
from tests.support.escape_ground import CANARY, Case, Ground, cases

CONTAINED, ENDED = "contained", "ended"
LIMITS = ProgramLimits(
    memory=512 * 1024**2, cpu_s=5, processes=200, files=256, file_size=16 * 1024**2
)
TIMEOUT = 15.0


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    ground = Ground(tmp_path)
    monkeypatch.setenv("HOME", str(ground.home))
    for name in ("AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_LIBRARY_PATH", "GIT_SSH_COMMAND"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(ground.socket))
    return ground


@pytest.mark.parametrize("case", cases("host.toml"), ids=lambda case: case.id)
def test_nothing_gets_out(case: Case, ground: Ground) -> None:
    with ground.listening():
        ground.prepare(case)
        before = _protected(ground, case)
        printed = _run(ground, case)
    assert not ground.shows(printed, case), printed
    if case.expect == CONTAINED:
        assert printed.endswith("DONE\n"), printed
    elif case.expect != ENDED:
        assert printed == case.expect
    assert ground.damage() == []
    assert _protected(ground, case) == before
    until(lambda: not _left(ground))


@pytest.mark.parametrize(
    "case", [case for case in cases("host.toml") if case.bites], ids=lambda case: case.id
)
def test_without_the_sandbox_it_would(case: Case, ground: Ground) -> None:
    """What is held is held by the sandbox, not by a mistake in the case."""
    with ground.listening():
        ground.prepare(case)
        before = _protected(ground, case)
        done = subprocess.run(
            ["/bin/sh", "-c", ground.fill(case.sh)],
            cwd=ground.project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
    printed = done.stdout.decode(errors="replace")
    harm = (
        bool(ground.shows(printed, case) or ground.damage()) or _protected(ground, case) != before
    )
    assert harm or case.expect not in (CONTAINED, printed)


def _run(ground: Ground, case: Case) -> str:
    """Run the case in the sandbox; return what it printed. Whatever it started is gone then."""
    sandbox = available.find()
    assert isinstance(sandbox, Sandbox), sandbox
    root = str(ground.project)
    wanted = Confinement(
        root=root,
        hidden=tuple(str(ground.project / name) for name in case.hidden),
        limits=LIMITS,
    )
    with (
        ground.secret.open(),  # a descriptor that must not be inherited
        sandbox.enter(wanted, ["/bin/sh", "-c", ground.fill(case.sh)], cwd=root) as confined,
    ):
        process = subprocess.Popen(
            confined.argv,
            env=confined.environment,
            pass_fds=confined.pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with process:
            try:
                return process.communicate(timeout=TIMEOUT)[0].decode(errors="replace")
            finally:
                process.kill()


def _protected(ground: Ground, case: Case) -> list[object]:
    """Return all that is at the protected places of the case."""
    return [_content(ground.project / name) for name in case.protected]


def _content(path: Path) -> object:
    if path.is_symlink():
        return path.readlink()
    if path.is_dir():
        return {name: (mode, data) for name, (mode, _, data) in snapshot(path).items()}
    return path.read_bytes() if path.exists() else None


def _left(ground: Ground) -> list[str]:
    """Return the processes that still are at work in the project."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        cwd = process.info["cwd"] or ""
        if cwd.startswith(str(ground.project)):
            found.append(f"{process.pid} {process.info['cmdline']}")
    return found
