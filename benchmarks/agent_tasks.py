"""Tasks of several steps on a small project, each done twice with the same knowledge: one tool
call after the other, and in one program of Code Mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from punie_protocol.testing.script import Action, Call, Say

MODULES: Final = 8

PROGRAM_OF_CALLS: Final = """\
for _ in range({}):
    read_file("m0.py", 1, 1)
"""

type Steps = tuple[tuple[Action, ...], ...]


class Task(msgspec.Struct, frozen=True):
    """What the model does in each step. `check` raises when the project is not as it must be."""

    name: str
    sequential: Steps
    code_mode: Steps
    check: Callable[[Path], None]


def make_project(root: Path) -> None:
    """Write the project as it is at first, into the folder that a worker may have open."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(MODULES):
        body = "    total = 0\n" + "".join(f"    total += {line}\n" for line in range(40))
        text = f"import os\n\n\ndef old_name_{number}() -> int:\n{body}    return total\n"
        (root / f"m{number}.py").write_text(text)


def call(name: str, **arguments: object) -> tuple[Action, ...]:
    """Return a step of one tool call."""
    return (Call(name, arguments),)


def say(text: str) -> tuple[Action, ...]:
    """Return the last step."""
    return (Say(text),)


def program(code: str) -> tuple[Action, ...]:
    """Return a step of one program."""
    return call("execute_code", code=code)


def _count_lines() -> Task:
    names = [f"m{number}.py" for number in range(MODULES)]
    return Task(
        "lines of each file",
        (
            call("list_files", pattern="*.py"),
            *(call("read_file", path=name) for name in names),
            say("Each file has 46 lines."),
        ),
        (
            program(
                'for name in list_files("*.py").files:\n'
                "    print(name, read_file(name).total_lines)"
            ),
            say("Each file has 46 lines."),
        ),
        lambda root: None,
    )


def _remove_imports() -> Task:
    names = [f"m{number}.py" for number in range(MODULES)]

    def check(root: Path) -> None:
        if any("import os" in (root / name).read_text() for name in names):
            raise RuntimeError("an import is left")

    return Task(
        "unused imports removed, checked before and after",
        (
            call("ruff_check"),
            *(
                call("edit_file", path=name, old_text="import os\n\n\n", new_text="")
                for name in names
            ),
            call("ruff_check"),
            say("Removed 8 unused imports."),
        ),
        (
            program(
                "for name in sorted({v.file for v in ruff_check().violations}):\n"
                '    edit_file(name, "import os\\n\\n\\n", "")\n'
                "print(ruff_check().ok)"
            ),
            say("Removed 8 unused imports."),
        ),
        check,
    )


def _rename() -> Task:
    def check(root: Path) -> None:
        if "def new_name() -> int" not in (root / "m3.py").read_text():
            raise RuntimeError("the function has its old name")

    edit = call("edit_file", path="m3.py", old_text="def old_name_3()", new_text="def new_name()")
    return Task(
        "a function found, renamed, checked",
        (
            call("search", pattern="old_name_3"),
            call("read_file", path="m3.py", max_lines=10),
            edit,
            call("search", pattern="old_name_3"),
            call("typecheck", path="m3.py"),
            say("Renamed it in m3.py."),
        ),
        (
            program(
                'for file in sorted({m.file for m in search("old_name_3").matches}):\n'
                '    edit_file(file, "def old_name_3()", "def new_name()")\n'
                'print(search("old_name_3").match_count, typecheck("m3.py").ok)'
            ),
            say("Renamed it in m3.py."),
        ),
        check,
    )


TASKS: Final = (_count_lines(), _remove_imports(), _rename())
