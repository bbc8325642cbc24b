"""From pytest's report (junit XML, family ``xunit1``: it names the files) to a `PytestRunResult`.

The report is written by what was tested: it is read with suspicion. Entities and document types
are refused (a small one may stand for gigabytes), a torn report, one of another shape or one that
disagrees with the exit status is a failure: none of them may pass for tests that passed.
"""

from typing import Any, NoReturn
from xml.parsers import expat

from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.plain import plain

PASSED, FAILED, ERROR, SKIPPED = "passed", "failed", "error", "skipped"

MAX_MESSAGE = 4000
"""Characters of one message: the first quarter and the end, where the error stands."""
MAX_MESSAGES = 1_000_000
"""Characters of all messages; those that do not fit are cut to `BRIEF`."""
BRIEF = 200
MAX_TESTS = 200_000
MAX_DEPTH = 20

_OUTCOMES = {"failure": FAILED, "error": ERROR, "skipped": SKIPPED}
_WORST = (FAILED, ERROR, SKIPPED)
_NO_TESTS = 5
_STATUSES = {
    0: "that all tests passed",
    1: "that some failed",
    2: "that it was interrupted",
    3: "that it failed itself",
    4: "that it was called wrongly",
}


def pytest_run(output: bytes, code: int, limit: int, duration: float) -> dict[str, Any]:
    """Return the result of a run that ended with status `code` after `duration` seconds; `output`
    is its report."""
    tests = _Report().read(output)
    outcomes = [test["outcome"] for test in tests]
    counts = {outcome: outcomes.count(outcome) for outcome in (PASSED, FAILED, ERROR, SKIPPED)}
    _check(code, counts, len(tests))
    tests.sort(key=lambda test: test["outcome"] not in (FAILED, ERROR))
    return {
        "ok": code == 0,
        "passed": counts[PASSED],
        "failed": counts[FAILED],
        "errors": counts[ERROR],
        "skipped": counts[SKIPPED],
        "duration": duration,
        "truncated": len(tests) > limit,
        "tests": _bounded(tests[:limit]),
    }


def _check(code: int, counts: dict[str, int], total: int) -> None:
    """Raise `Failure` unless the exit status and the report say the same."""
    bad = counts[FAILED] + counts[ERROR]
    if code == _NO_TESTS and not bad:
        skipped = f": {total} were skipped" if total else " there that matches"
        raise Failure(Kind.NO_TESTS, f"pytest ran no test{skipped}")
    agrees = {0: total and not bad, 1: bad, 2: bad}.get(code, 0)
    if not agrees:
        says = _STATUSES.get(code, "no more")
        report = f"its report has {total} tests, {bad} of them failed"
        message = f"pytest ended with status {code}, which says {says}; {report}"
        raise Failure(Kind.PYTEST_FAILED, message)


def _bounded(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    room = MAX_MESSAGES
    for test in tests:
        room -= len(test["message"])
        if room < 0:
            test["message"] = _cut(test["message"], BRIEF)
    return tests


class _Report:
    """Reads one report. A ``testcase`` with several failures is one test, with the worst outcome
    and all their texts."""

    def __init__(self) -> None:
        self._tests: list[dict[str, Any]] = []
        self._test: dict[str, Any] = {}
        self._reasons: list[tuple[str, str]] = []
        self._path: list[str] = []
        self._text: list[str] = []
        self._size = 0
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._take
        self._parser.StartDoctypeDeclHandler = _refuse
        self._parser.EntityDeclHandler = _refuse

    def read(self, output: bytes) -> list[dict[str, Any]]:
        """Return its tests in order. Raises `Failure`."""
        try:
            self._parser.Parse(output, True)
        except expat.ExpatError as error:
            _unreadable(f"is no XML: {error}")
        except ValueError, LookupError:
            _unreadable("is in an unknown encoding")
        return self._tests

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        inside = self._path[-1] if self._path else ""
        if not inside and name not in ("testsuites", "testsuite"):
            _unreadable(f"is no report but '{plain(name[:50])}'")
        if len(self._path) >= MAX_DEPTH:
            _unreadable("is nested too deeply")
        self._path.append(name)
        if name == "testcase":
            self._begin(attributes)
        elif inside == "testcase" and name in _OUTCOMES:
            self._text = []
            self._size = 0
            self._reasons.append((_OUTCOMES[name], attributes.get("message", "")))

    def _begin(self, attributes: dict[str, str]) -> None:
        if len(self._tests) >= MAX_TESTS:
            _unreadable(f"has more than {MAX_TESTS} tests")
        self._test = {
            "name": _node(attributes),
            "outcome": PASSED,
            "duration": _seconds(attributes.get("time", "0")),
            "message": "",
        }
        self._reasons = []

    def _take(self, text: str) -> None:
        """Keep the text of a failure; what the tests printed is not in the result."""
        if self._path[-1] in _OUTCOMES and self._size < MAX_MESSAGES:
            self._text.append(text)
            self._size += len(text)

    def _end(self, name: str) -> None:
        self._path.pop()
        inside = self._path[-1] if self._path else ""
        if name == "testcase":
            self._finish()
        elif inside == "testcase" and name in _OUTCOMES:
            outcome, message = self._reasons.pop()
            text = message if outcome == SKIPPED else "".join(self._text) or message
            self._reasons.append((outcome, text))

    def _finish(self) -> None:
        outcomes = [outcome for outcome, _ in self._reasons]
        self._test["outcome"] = next((one for one in _WORST if one in outcomes), PASSED)
        texts = [plain(text).strip("\n") for _, text in self._reasons]
        self._test["message"] = _cut("\n\n".join(texts), MAX_MESSAGE)
        self._tests.append(self._test)


def _node(attributes: dict[str, str]) -> str:
    """Return pytest's own name of a test: ``file::Class::test``."""
    file, owner = attributes.get("file", ""), attributes.get("classname", "")
    name = attributes.get("name", "")
    module = file.removesuffix(".py").replace("/", ".")
    if name == module:  # a file that could not be collected
        return plain(file)
    if not file:
        owners = [owner]
    elif f"{owner}.".startswith(f"{module}."):
        owners = owner.removeprefix(module).split(".")
    else:
        owners = []
    return plain("::".join(filter(None, (file, *owners, name))))


def _seconds(text: str) -> float:
    try:
        seconds = float(text.replace(",", ""))
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < float("inf") else 0.0


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n…\n{text[head - limit :]}"


def _refuse(*_: Any) -> NoReturn:
    _unreadable("declares entities or a document type, which pytest never does")


def _unreadable(what: str) -> NoReturn:
    raise Failure(Kind.PYTEST_OUTPUT, f"pytest's report {what}")
