"""`.venv`: Punie itself and every dependency, as the lock file says."""

from __future__ import annotations

from pathlib import Path

from bootstrap_lib import shell
from bootstrap_lib.interpreter import Interpreter
from bootstrap_lib.layout import Layout
from bootstrap_lib.pip_settings import IndexSettings, index_settings
from bootstrap_lib.report import BootstrapError
from bootstrap_lib.state import read_record, remove, write_record
from bootstrap_lib.uv import Uv

INDEX_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")


def sync(layout: Layout, uv: Uv, interpreter: Interpreter) -> str:
    """Bring `.venv` to what the lock file says; return its outcome in words.

    An environment of another place or interpreter, or one whose installation was cut short, is
    made anew: a package that was half written looks installed to uv.
    """
    record = {"place": str(layout.venv), "interpreter": str(interpreter.program)}
    if read_record(layout.venv_marker) != record:
        remove(layout.venv)
    else:
        remove(layout.venv_marker)
    origin = _install(layout, uv, interpreter)
    write_record(layout.venv_marker, record)
    return f"as uv.lock says{origin}"


def _install(layout: Layout, uv: Uv, interpreter: Interpreter) -> str:
    settings = {"UV_PYTHON": str(interpreter.program)}
    try:
        _from_lock(layout, uv, settings)
    except shell.CommandFailed as error:
        mirror = index_settings()
        if mirror.is_pypi:
            raise _cannot(str(error)) from None
        _from_mirror(layout, uv, settings, mirror)
        return ", from the configured index"
    return ""


def _from_lock(layout: Layout, uv: Uv, settings: dict[str, str]) -> None:
    """The plain way. Another default index would make uv call the lock file outdated."""
    words = ["sync", "--locked", "--compile-bytecode", "--project", layout.root]
    uv.run(words, {**settings, **dict.fromkeys(INDEX_VARIABLES, "")})


def _from_mirror(layout: Layout, uv: Uv, settings: dict[str, str], mirror: IndexSettings) -> None:
    """The same versions with the same hashes, from the index this machine is set up for."""
    listed = layout.tools / "requirements.txt"
    project = ("--project", layout.root)
    index = {"UV_DEFAULT_INDEX": mirror.url}
    if mirror.certificates:
        index["SSL_CERT_FILE"] = mirror.certificates
    try:
        uv.run(["export", "--frozen", "--no-emit-project", *project, "--output-file", listed])
        uv.run(["venv", "--clear", layout.venv], {**settings, **index})
        index["UV_PYTHON"] = str(layout.venv_python)
        uv.run(["pip", "sync", "--compile-bytecode", "--require-hashes", listed], index)
        uv.run(["pip", "install", "--no-deps", "--editable", layout.root], index)
    except shell.CommandFailed as error:
        raise _cannot(str(error)) from None


def _cannot(said: str) -> BootstrapError:
    if "lockfile" in said and "needs to be updated" in said:
        remedy = "pyproject.toml was changed without the lock file: `scripts/bootstrap uv lock`"
    else:
        remedy = (
            "check the connection to PyPI (proxy, certificates, UV_DEFAULT_INDEX or PIP_INDEX_URL"
            " for a mirror) and the free disk space; what was fetched is kept, so run this again"
        )
    return BootstrapError(f"uv cannot install the dependencies\n{said}", remedy)


def installed_packages(layout: Layout) -> int:
    """How many distributions the environment holds."""
    return len(list(Path(layout.venv).glob("lib/python*/site-packages/*.dist-info")))
