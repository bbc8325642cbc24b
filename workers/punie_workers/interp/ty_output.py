"""From ``ty check --output-format gitlab`` to a `TypecheckResult`.

Severities: ``info`` and ``minor`` (what ty calls info and warning) are a ``warning``; ``major``
(error), ``critical`` and ``blocker`` (ty itself gave up on the file) are an ``error``.
"""

from typing import Any

from punie_workers.interp import checker_output
from punie_workers.interp.checker_output import Files, number, text
from punie_workers.interp.paths import Root

SEVERITIES = {
    "info": "warning",
    "minor": "warning",
    "major": "error",
    "critical": "error",
    "blocker": "error",
}


def typecheck(root: Root, output: bytes, code: int, folder: str, limit: int) -> dict[str, Any]:
    """Return the result; `folder` is where ty ran, relative to the root."""
    files = Files(root, folder)
    try:
        problems = [_problem(item, files) for item in checker_output.load("ty", output, code)]
    except (KeyError, TypeError, AttributeError) as error:
        checker_output.unreadable("ty", f"a finding of another shape: {error!r}")
    found = [problem for problem in problems if problem["file"] is not None]
    found.sort(key=lambda problem: (problem["file"], problem["line"], problem["column"]))
    errors = sum(problem["severity"] == "error" for problem in found)
    return {
        "ok": not errors,
        "error_count": errors,
        "warning_count": len(found) - errors,
        "truncated": len(found) > limit,
        "errors": found[:limit],
    }


def _problem(item: dict[str, Any], files: Files) -> dict[str, Any]:
    code = text(item, "check_name")
    place = item["location"]
    begin = place["positions"]["begin"]
    return {
        "file": files.path(text(place, "path")),
        "line": number(begin, "line"),
        "column": number(begin, "column"),
        "severity": SEVERITIES[text(item, "severity")],
        "code": code,
        "message": text(item, "description").removeprefix(f"{code}: "),
    }
