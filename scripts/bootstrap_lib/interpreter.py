"""CPython 3.14: the first way of getting one that gives an interpreter which really works."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

from bootstrap_lib import apt, prefix, shell
from bootstrap_lib.layout import Layout
from bootstrap_lib.prefix import PYTHON, Patchelf
from bootstrap_lib.report import BootstrapError
from bootstrap_lib.state import write_text
from bootstrap_lib.uv import CERTIFICATE_FILES, Uv

WANTED = "3.14"
OLDEST_GLIBC = (2, 35)
"""What the mlx wheels are built for; an interpreter on an older one could not load them."""

DOWNLOAD_S = 240

PROBE = """
import concurrent.interpreters, ctypes, json, os, sqlite3, ssl, sys, sysconfig, venv, zlib
libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
paths = ssl.get_default_verify_paths()
print(json.dumps({
    "version": "%d.%d.%d" % sys.version_info[:3],
    "level": sys.version_info.releaselevel,
    "implementation": sys.implementation.name,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "libc": (libc or "").replace("glibc ", ""),
    "has_certificates": bool(paths.cafile or (paths.capath and os.listdir(paths.capath))),
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A CPython 3.14 that runs here, and how it came to be."""

    program: Path
    version: str
    origin: str
    own_libc: bool = False
    """It runs on the C library of its own prefix, not on the machine's."""


class Unusable(Exception):
    """This way gives no usable interpreter; the text says why."""


Strategy = Callable[[Layout, Uv], Interpreter]


def find_or_install(layout: Layout, uv: Uv) -> Interpreter:
    """Try each way in turn; when none works, fail with the reason of each."""
    return first_that_works(STRATEGIES, layout, uv)


def first_that_works(
    strategies: Sequence[tuple[str, Strategy]], layout: Layout, uv: Uv
) -> Interpreter:
    """The interpreter of the first strategy that has one."""
    reasons = []
    remedies = []
    for name, strategy in strategies:
        try:
            return strategy(layout, uv)
        except (Unusable, shell.CommandFailed) as error:
            reasons.append(f"{name}: {error}")
        except BootstrapError as error:
            reasons.append(f"{name}: {error.cause}")
            remedies.append(error.remedy)
    remedies.append(
        f"or install CPython {WANTED} so that `python{WANTED}` is on PATH; then run this again"
    )
    raise BootstrapError(
        "no way to a CPython {} worked\n{}".format(WANTED, "\n".join(reasons)), "\n".join(remedies)
    )


def _existing(layout: Layout, uv: Uv) -> Interpreter:
    """One that is installed already, by us before or by anyone."""
    if prefix.is_complete(layout, PYTHON, prefix.suite_name(rolling=True)):
        return _from_prefix(layout)
    found = uv.run(["python", "find", "--no-project", "--system", WANTED], timeout_s=60).strip()
    return Interpreter(Path(found), probe(Path(found))["version"], f"found at {found}")


def _downloaded_by_uv(layout: Layout, uv: Uv) -> Interpreter:
    """A standalone build, kept in the checkout."""
    patience = {"UV_HTTP_RETRIES": "1", "UV_HTTP_CONNECT_TIMEOUT": "10"}
    uv.run(
        ["python", "install", "--no-bin", WANTED],
        {"UV_PYTHON_DOWNLOADS": "manual", **patience},
        timeout_s=DOWNLOAD_S,
    )
    words = ["python", "find", "--no-project", "--managed-python", WANTED]
    found = Path(uv.run(words, timeout_s=60).strip())
    return Interpreter(found, probe(found)["version"], "downloaded by uv")


def _from_packages(layout: Layout, uv: Uv) -> Interpreter:
    """The rolling suite's packages with the C library they were built for, in a prefix."""
    distribution = apt.this_distribution()
    if distribution is None:
        raise Unusable("this is no Debian-family system with apt-get and dpkg")
    private = apt.PrivateApt(layout.tools / "apt", distribution)
    patchelf = Patchelf(layout)
    prefix.build(
        layout,
        PYTHON,
        private,
        rolling=True,
        finish=lambda part, final: relink(part, final, patchelf),
    )
    return _from_prefix(layout)


def _from_prefix(layout: Layout) -> Interpreter:
    folder = layout.tools / PYTHON.name
    program = folder / "usr" / "bin" / "python3.14"
    facts = probe(program)
    _compile_library(program, folder)
    return Interpreter(program, facts["version"], "distribution packages", own_libc=True)


def _compile_library(program: Path, folder: Path) -> None:
    """Compile the standard library, once: the packages leave that to their installation, and
    without it every start of the interpreter would take several times as long."""
    stamp = folder / ".compiled"
    if not stamp.exists():
        library = folder / "usr" / "lib" / "python3.14"
        words = ["-I", "-m", "compileall", "-q", "-j", "0", library]
        shell.run([program, *words], timeout_s=300)
        write_text(stamp, "")


STRATEGIES: Sequence[tuple[str, Strategy]] = (
    ("an existing interpreter", _existing),
    ("uv python install", _downloaded_by_uv),
    ("distribution packages", _from_packages),
)


def probe(program: Path) -> dict[str, str]:
    """What the interpreter says of itself; `Unusable` when Punie could not run on it."""
    try:
        facts: dict[str, str] = json.loads(shell.run([program, "-I", "-c", PROBE], timeout_s=60))
    except (shell.CommandFailed, ValueError) as error:
        raise Unusable(f"{program} does not work: {error}") from None
    objection = objection_to(facts)
    if objection:
        raise Unusable(f"{program} {objection}")
    return facts


def objection_to(facts: dict[str, str]) -> str:
    """Why an interpreter with these facts cannot be used; empty when it can."""
    if facts["implementation"] != "cpython" or not facts["version"].startswith(WANTED + "."):
        return "is {} {}".format(facts["implementation"], facts["version"])
    if facts["level"] != "final":
        return "is a preview ({} {})".format(facts["version"], facts["level"])
    if facts["free_threaded"]:
        return "is a free-threaded build, which the dependencies do not support"
    libc = tuple(int(part) for part in facts["libc"].split(".") if part.isdigit())
    if libc and libc < OLDEST_GLIBC:
        return "runs on glibc {}, and the mlx wheels need {}.{}".format(
            facts["libc"], *OLDEST_GLIBC
        )
    return ""


def relink(part: Path, final: Path, patchelf: Patchelf) -> None:
    """Make the unpacked interpreter run on its own prefix's loader and libraries.

    The search path is part of the program, not of the environment, so that children are not
    touched by it: they are the machine's programs, on the machine's libraries.
    """
    loaders = sorted(part.glob("usr/lib/*/ld-linux*.so.*"))
    if not loaders:
        raise Unusable("the packages hold no dynamic loader")
    libraries = loaders[0].parent.relative_to(part)
    patchelf.set_search_path(
        part / "usr" / "bin" / "python3.14",
        f"$ORIGIN/../../{libraries}",
        loader=final / loaders[0].relative_to(part),
    )
    _point_at_certificates(part)


def _point_at_certificates(part: Path) -> None:
    """Name the machine's CA bundle where OpenSSL's built-in default is not there."""
    if Path("/usr/lib/ssl/certs").is_dir():
        return
    bundles = [name for name in CERTIFICATE_FILES if Path(name).is_file()]
    if bundles:
        hook = part / "usr" / "lib" / "python3.14" / "sitecustomize.py"
        hook.unlink(missing_ok=True)  # a link to the distribution's own hook
        hook.write_text(
            '"""Points OpenSSL at this machine\'s certificates."""\n\nimport os\n\n'
            f'os.environ.setdefault("SSL_CERT_FILE", {bundles[0]!r})\n',
            encoding="utf-8",
        )
