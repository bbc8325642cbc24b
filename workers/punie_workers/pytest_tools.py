"""`pytest_run`: the project's tests, by its own pytest, in the sandbox.

Its environment is the project's ``.venv`` or ``venv``, else the ``python3`` on the ``PATH`` of the
sandbox. The report goes to a private folder outside the project, which the project half reads.
Where nothing may be changed, the project is read-only for them and caches go to that folder too.
"""

import asyncio
import os
import posixpath
import re
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from punie_protocol.errors import PunieError, ToolFailed
from punie_protocol.interp_codec import encode_request
from punie_protocol.tool_types import Result
from punie_protocol.tools_commands import PytestRun, PytestRunResult
from punie_workers.actions import Action, Subject
from punie_workers.command_tools import Show, check_end, deed, describe, followed, status, unseen
from punie_workers.halves import Halves, Opened
from punie_workers.launching import Launch, Launcher
from punie_workers.printed import Printed

MAX_REPORT: Final = 32 * 1024**2

_ENVIRONMENTS: Final = (".venv/bin/python", "venv/bin/python")
_REPORT: Final = "report.xml"
_MISSING: Final = "No module named pytest"
_COMPLAINT: Final = re.compile(
    r"(?:^|\.\.\. )((?:ERROR: |INTERNALERROR> [\w.]*(?:Error|Exception)|(?:E   )?\w+Error: ).*"
    r"|\S+ -m pytest: error: .*)",
    re.MULTILINE,
)
_SAID: Final = 3
_NO_PYTEST: Final = "pytest_missing"


class _Place(Opened):
    path: str
    name: str


class PytestTools:
    """Tests of one project. `read` returns the report that is in a folder, as `read_report`."""

    def __init__(
        self,
        halves: Halves,
        launcher: Launcher,
        read: Callable[[str], bytes | None] | None = None,
    ) -> None:
        self._halves = halves
        self._launcher = launcher
        self._read = read or read_report

    async def prepare(
        self, wanted: PytestRun, show: Show = unseen, *, writable: bool = True
    ) -> Action:
        """Return what the call would do; nothing has happened yet. Without `writable` the tests
        cannot change the project. Raises `PunieError`."""
        what = await self._place(wanted.path)
        sandbox = await self._launcher.sandbox()
        python = await asyncio.to_thread(find_python, self._halves.root)
        select = (f"-k{wanted.select}",) if wanted.select else ()
        launch = Launch(
            command=(python, "-m", "pytest", *select, what),
            folder=".",
            timeout=wanted.timeout,
            sandbox=sandbox,
            writable=writable,
            name="pytest",
            advice="give it more time (timeout), or run fewer tests (path, select)",
        )
        subject = Subject(
            command=launch.command,
            network=sandbox is None,
            confined=sandbox is not None,
            harmless=not writable,
            any_arguments=True,
        )
        text = describe(launch, wanted.timeout)
        return deed(subject, text, lambda: self._run(launch, wanted, show))

    async def _place(self, path: str) -> str:
        """Return a path, or a test in a file (``a.py::test_b``), as an argument of pytest. Raises
        `PunieError` when it is not in the project."""
        file, separator, test = path.partition("::")
        async with self._halves.opened(encode_request("check_place", {"path": file}), _Place) as at:
            return f"./{posixpath.join(at.path, at.name)}{separator}{test}"

    async def _run(self, launch: Launch, wanted: PytestRun, show: Show) -> Result:
        begun = time.monotonic()
        printed = Printed()
        async with _folder() as folder:
            ended = await followed(self._launcher, _reporting(launch, folder), printed, show)
            check_end(launch, ended, printed)
            code = status(ended)
            report = await asyncio.to_thread(self._read, folder)
        if report is None:
            raise PunieError(_no_report(launch, code, printed))
        arguments = {
            "output": report,
            "code": code,
            "limit": wanted.limit,
            "duration": round(time.monotonic() - begun, 3),
        }
        try:
            request = encode_request("pytest_report", arguments)
            return await self._halves.call(request, PytestRunResult)
        except PunieError as error:
            if not isinstance(error.error, ToolFailed):
                raise
            raise PunieError(_in_its_words(error.error, printed)) from None


def find_python(root: str) -> str:
    """Return the Python whose pytest is the project's."""
    places = [posixpath.join(root, place) for place in _ENVIRONMENTS]
    return next((place for place in places if os.path.lexists(place)), "python3")


def _reporting(launch: Launch, folder: str) -> Launch:
    """Return the launch with a report, and with caches where there is room for them."""
    python, _, _, *rest = launch.command
    options = [
        "-v",
        "--color=no",
        "--rootdir=.",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={folder}/{_REPORT}",
    ]
    unwritten = []
    if not launch.writable:
        unwritten = ["-B"]
        options += ["-o", f"cache_dir={folder}/cache"]
    command = (python, *unwritten, "-m", "pytest", *options, *rest)
    return msgspec.structs.replace(launch, command=command, write=(folder,))


@asynccontextmanager
async def _folder() -> AsyncGenerator[str]:
    """Yield a private folder for one report."""
    folder = await asyncio.to_thread(_new_folder)
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _new_folder() -> str:
    return os.path.realpath(tempfile.mkdtemp(prefix="punie-tests-"))


def read_report(folder: str) -> bytes | None:
    """Return the report, ``None`` when there is none. Raises `PunieError` for what pytest does not
    leave there: what was tested could write to the folder too."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(f"{folder}/{_REPORT}", flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _unusable("is no file")
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_REPORT + 1)
    if len(data) > MAX_REPORT:
        raise _unusable(f"is larger than {MAX_REPORT // 1024**2} MB; ask for fewer tests")
    return data


def _unusable(what: str) -> PunieError:
    return PunieError(ToolFailed(kind="pytest_output", message=f"pytest's report {what}"))


def _no_report(launch: Launch, code: int, printed: Printed) -> ToolFailed:
    """Return why there is no report."""
    python = launch.command[0]
    if _MISSING in printed.text():
        return ToolFailed(
            kind=_NO_PYTEST,
            message=f"the project's Python ({python}) has no pytest",
            hint=f"install it there: {python} -m pip install pytest (needs the network)",
        )
    message = f"pytest ended with status {code} before it reported anything"
    return _in_its_words(ToolFailed(kind="pytest_failed", message=message), printed)


def _in_its_words(error: ToolFailed, printed: Printed) -> ToolFailed:
    """Return the failure with what pytest said of it, and the end of what it printed."""
    said = _COMPLAINT.findall(printed.text())
    message = "; ".join([error.message, *said[:_SAID]])
    return msgspec.structs.replace(error, message=message, output=printed.recent().rstrip("\n"))
