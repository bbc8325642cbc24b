"""Is there a sandbox on this machine, and does it work? Tried for real, until one is found.

As a program (``python -m punie_workers.sandbox.available --json``) it prints the answer.
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from punie_protocol.errors import PunieError
from punie_workers.sandbox import bubblewrap
from punie_workers.sandbox.bubblewrap import Bubblewrap
from punie_workers.sandbox.confinement import Confinement, Sandbox
from punie_workers.sandbox.seatbelt import Seatbelt

POINTER: Final = "share/punie/bubblewrap.path"
"""In Python's prefix: names the ``bwrap`` that came with Punie. The environment names none."""
INSTALLED: Final = ("/usr/bin/bwrap", "/usr/local/bin/bwrap")
TRIAL_S: Final = 10.0
"""Seconds that ``true`` may take in it."""
AGAIN_S: Final = 3.0
"""Seconds after which one that was missing is looked for again: the user may have installed it."""
_RARELY: Final = 20
"""How much longer than a look without success it is to the next at least."""
RESTRICTED: Final = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
NONE: Final = "bubblewrap is not installed"
INSTALL: Final = (
    "install it (apt-get install bubblewrap, dnf install bubblewrap, pacman -S bubblewrap)"
)
SAY_SO: Final = "or let commands run without one, project by project: punie projects unconfined DIR"
_APPARMOR: Final = (
    "AppArmor forbids namespaces to users: allow them to bwrap with a profile in /etc/apparmor.d"
    " ('profile bwrap /usr/bin/bwrap flags=(unconfined) { userns, }') and reload AppArmor"
)
_NAMESPACES: Final = (
    "let users make namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone);"
    " in a container, run it with a seccomp profile that allows them"
)
_FORBIDDEN: Final = ("namespace", "uid map", "not permitted", "Permission denied", "RTM_NEWADDR")


class Missing(msgspec.Struct, frozen=True):
    """There is no sandbox: why, and what to do about it."""

    reason: str
    hint: str


class _Known(msgspec.Struct):
    """What the last look found, and until when that holds; see `time.monotonic`."""

    found: Sandbox | Missing | None = None
    until: float = 0.0


_known: Final = _Known()


def find() -> Sandbox | Missing:
    """Return the sandbox of this machine, which has run a program, or why there is none. Waits for
    that program, tens of milliseconds, until there is one; but seldom."""
    if _known.found is None or time.monotonic() >= _known.until:
        begun = time.monotonic()
        found, now = _look(), time.monotonic()
        lasts = max(AGAIN_S, _RARELY * (now - begun)) if isinstance(found, Missing) else math.inf
        _known.found, _known.until = found, now + lasts
        return found
    return _known.found


def forget() -> None:
    """Have the next `find` look again."""
    _known.found = None


def _look() -> Sandbox | Missing:
    if sys.platform == "darwin":
        found: Sandbox = Seatbelt()
        reason = trial(found)
        return found if reason is None else Missing(f"{found.path}: {reason}", SAY_SO)
    missing: Missing | None = None
    for path in (_own(), *INSTALLED):
        if path and Path(path).exists():
            found_here = _tried(path)
            if not isinstance(found_here, Missing):
                return found_here
            missing = missing or found_here
    return missing or Missing(NONE, f"{INSTALL}, {SAY_SO}")


def _tried(path: str) -> Sandbox | Missing:
    if not bubblewrap.is_sane(path):
        return Missing(f"{path} can be changed by other users", f"chmod go-w {path}, {SAY_SO}")
    found = Bubblewrap(path, _said(path, "--version"), _said(path, "--help"))
    reason = found.lacks() or trial(found)
    return found if reason is None else Missing(f"{path}: {reason}", explained(reason))


def _own() -> str:
    try:
        return (Path(sys.prefix) / POINTER).read_text("utf-8").strip()
    except OSError, UnicodeDecodeError:
        return ""


def _said(path: str, option: str) -> str:
    """Return what a program prints; nothing when it cannot be run, which its trial will show."""
    try:
        done = subprocess.run([path, option], capture_output=True, timeout=TRIAL_S, check=False)
    except OSError, subprocess.TimeoutExpired:
        return ""
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def trial(sandbox: Sandbox) -> str | None:
    """Return why ``true`` did not run in `sandbox`, or ``None``."""
    try:
        with sandbox.enter(Confinement(root=None), ["true"], cwd="/tmp") as confined:
            done = subprocess.run(
                confined.argv,
                env=confined.environment,
                pass_fds=confined.pass_fds,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TRIAL_S,
                check=False,
            )
    except (PunieError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = done.stderr.decode("utf-8", "replace").strip()
    return said or f"it ended with status {done.returncode}"


def explained(reason: str, *, restricted: bool | None = None) -> str:
    """Return what to do about a sandbox that does not work, by its complaint. `restricted`:
    whether AppArmor keeps users from namespaces, as the machine says when not given."""
    if not any(word in reason for word in _FORBIDDEN):
        return SAY_SO
    if restricted is None:
        restricted = _is_restricted()
    return f"{_APPARMOR if restricted else _NAMESPACES}, {SAY_SO}"


def _is_restricted() -> bool:
    try:
        return Path(RESTRICTED).read_text("utf-8").strip() == "1"
    except OSError:
        return False


def main() -> int:
    """Print what was found as one line of JSON; the status is 0 when there is a sandbox."""
    match find():
        case Missing(reason=reason, hint=hint):
            report = _report("", "", "", reason, hint)
        case found:
            report = _report(found.name, found.version, found.path, "", "")
    print(json.dumps(report))
    return 0 if report["available"] else 1


def _report(name: str, version: str, path: str, reason: str, hint: str) -> dict[str, str | bool]:
    texts = {"name": name, "version": version, "path": path, "reason": reason, "hint": hint}
    return {**texts, "available": bool(name)}


if __name__ == "__main__":
    sys.exit(main())
