"""Reports of pytest that it did not write so: torn, forged, huge."""

from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_workers.interp import pytest_output
from punie_workers.interp.failures import Failure, Kind
from punie_workers.interp.pytest_output import BRIEF, MAX_MESSAGE, pytest_run

TAGS = {"failed": "failure", "error": "error", "skipped": "skipped"}
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=60)
TESTS = st.tuples(NAMES, st.sampled_from(["passed", *TAGS]), TEXTS)


def report(tests: list[tuple[str, str, str]]) -> bytes:
    """Return a report as pytest writes it."""
    cases = []
    for name, outcome, text in tests:
        tag = TAGS.get(outcome)
        message = f"<{tag} message={quoteattr(text)}>{escape(text)}</{tag}>" if tag else ""
        where = 'classname="tests.test_a" file="tests/test_a.py" line="3" time="0.25"'
        cases.append(f"<testcase {where} name={quoteattr(name)}>{message}</testcase>")
    body = "".join(cases)
    return f'<?xml version="1.0"?><testsuites><testsuite>{body}</testsuite></testsuites>'.encode()


def status(tests: list[tuple[str, str, str]]) -> int:
    if not tests:
        return 5
    return int(any(outcome in ("failed", "error") for _, outcome, _ in tests))


def kind(output: bytes, code: int = 0) -> Kind:
    with pytest.raises(Failure) as caught:
        pytest_run(output, code, 100, 1.0)
    return caught.value.kind


@given(st.lists(TESTS, min_size=1, max_size=12), st.integers(1, 20))
def test_what_a_report_says(tests: list[tuple[str, str, str]], limit: int) -> None:
    found = pytest_run(report(tests), status(tests), limit, 1.5)
    outcomes = [outcome for _, outcome, _ in tests]
    assert found["ok"] == (status(tests) == 0)
    counts = [found[name] for name in ("passed", "failed", "errors", "skipped")]
    assert counts == [outcomes.count(name) for name in ("passed", "failed", "error", "skipped")]
    assert found["truncated"] == (len(tests) > limit)
    bad = [test for test in tests if test[1] in ("failed", "error")]
    rest = [test for test in tests if test not in bad]
    expected = [(f"tests/test_a.py::{name}", outcome) for name, outcome, _ in bad + rest]
    assert [(one["name"], one["outcome"]) for one in found["tests"]] == expected[:limit]
    assert all(one["duration"] == 0.25 for one in found["tests"])


@given(st.lists(TESTS, min_size=1, max_size=6), st.data())
def test_a_torn_report_is_never_a_result(tests: list[tuple[str, str, str]], data) -> None:
    whole = report(tests)
    torn = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert kind(torn, status(tests)) is Kind.PYTEST_OUTPUT


@given(st.binary(max_size=300))
def test_rubbish_is_never_a_result(output: bytes) -> None:
    assert kind(output) in (Kind.PYTEST_OUTPUT, Kind.PYTEST_FAILED)


@given(st.lists(TESTS, max_size=6), st.integers(-70, 300))
def test_a_result_is_what_status_and_report_both_say(
    tests: list[tuple[str, str, str]], code: int
) -> None:
    bad = any(outcome in ("failed", "error") for _, outcome, _ in tests)
    agrees = (code == 0 and tests and not bad) or (code in (1, 2) and bad)
    if agrees:
        assert pytest_run(report(tests), code, 9, 0.0)["ok"] == (code == 0)
    else:
        none = code == 5 and not bad
        assert kind(report(tests), code) is (Kind.NO_TESTS if none else Kind.PYTEST_FAILED)


FORGED = {
    "entity": b'<!DOCTYPE x [<!ENTITY a "b">]><testsuites>&a;</testsuites>',
    "bomb": b'<!DOCTYPE x [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><testsuites>&b;</testsuites>',
    "outside": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><testsuites>&a;</testsuites>',
    "parameter": b'<!DOCTYPE x SYSTEM "http://localhost/x.dtd"><testsuites/>',
    "other": b"<html><body/></html>",
    "deep": b"<testsuites>" + b"<a>" * 50 + b"</a>" * 50 + b"</testsuites>",
    "encoding": b'<?xml version="1.0" encoding="rot13"?><testsuites/>',
    "two": b"<testsuites/><testsuites/>",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_report_is_refused(name: str) -> None:
    assert kind(FORGED[name]) is Kind.PYTEST_OUTPUT


def test_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = [(f"test_{number}", "failed", f"{number} " + "x" * 20_000) for number in range(4)]
    found = pytest_run(report(tests), 1, 100, 0.0)["tests"]
    assert all(len(one["message"]) <= MAX_MESSAGE + 5 for one in found)
    assert found[2]["message"].startswith("2 xxx")
    monkeypatch.setattr(pytest_output, "MAX_MESSAGES", 9000)
    found = pytest_run(report(tests), 1, 100, 0.0)["tests"]
    sizes = [len(one["message"]) for one in found]
    assert sizes[0] > 10 * BRIEF
    assert sizes[3] <= BRIEF + 5


def test_too_many_tests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest_output, "MAX_TESTS", 3)
    assert kind(report([("a", "passed", "")] * 4)) is Kind.PYTEST_OUTPUT


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"file": "t/test_a.py", "classname": "t.test_a.A.B", "name": "c"}, "t/test_a.py::A::B::c"),
        ({"file": "t/test_a.py", "classname": "t.test_ab", "name": "c"}, "t/test_a.py::c"),
        ({"file": "t/test_a.py", "classname": "", "name": "t.test_a"}, "t/test_a.py"),
        ({"classname": "t.test_a", "name": "c"}, "t.test_a::c"),
        ({"name": "c"}, "c"),
        ({}, ""),
    ],
)
def test_names(attributes: dict[str, str], name: str) -> None:
    case = " ".join(f"{key}={quoteattr(value)}" for key, value in attributes.items())
    output = f"<testsuites><testsuite><testcase {case} time='x'/></testsuite></testsuites>"
    (test,) = pytest_run(output.encode(), 0, 1, 0.0)["tests"]
    assert (test["name"], test["duration"]) == (name, 0.0)
