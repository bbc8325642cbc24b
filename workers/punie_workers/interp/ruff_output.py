"""From ``ruff check --output-format json`` to a `RuffCheckResult`."""

from typing import Any

from punie_workers.interp import checker_output
from punie_workers.interp.checker_output import Files, number, text
from punie_workers.interp.paths import Root

SYNTAX_ERROR = "syntax-error"
"""Code of a file that is no Python, whatever the version of ruff calls it."""

_NO_PYTHON = frozenset({None, "invalid-syntax", SYNTAX_ERROR})


def ruff_check(root: Root, output: bytes, code: int, folder: str, limit: int) -> dict[str, Any]:
    """Return the result; `folder` is where ruff ran, relative to the root."""
    files = Files(root, folder)
    try:
        violations = [_violation(item, files) for item in checker_output.load("ruff", output, code)]
    except (KeyError, TypeError, AttributeError) as error:
        checker_output.unreadable("ruff", f"a violation of another shape: {error!r}")
    found = [violation for violation in violations if violation["file"] is not None]
    found.sort(key=lambda violation: (violation["file"], violation["line"], violation["column"]))
    return {
        "ok": not found,
        "violation_count": len(found),
        "fixable_count": sum(violation["fixable"] for violation in found),
        "truncated": len(found) > limit,
        "violations": found[:limit],
    }


def _violation(item: dict[str, Any], files: Files) -> dict[str, Any]:
    place = item["location"]
    return {
        "file": files.path(text(item, "filename")),
        "line": number(place, "row"),
        "column": number(place, "column"),
        "code": SYNTAX_ERROR if item["code"] in _NO_PYTHON else text(item, "code"),
        "message": text(item, "message"),
        "fixable": _fixable(item["fix"]),
    }


def _fixable(fix: dict[str, Any] | None) -> bool:
    """Whether ruff has a fix that keeps the meaning of the code."""
    return fix is not None and text(fix, "applicability") == "safe"
