"""What must hold whatever the weights are: rendering, tokens, and programs that really run.

Needs jinja2 for the template and pydantic-monty for the programs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2

from punie_model_host.training import programs
from punie_model_host.training.conversations import Generator
from punie_model_host.training.render import render
from punie_model_host.training.tokenizer import Encoder, load

_SOURCE = """\
class A(X):
class B(m.X, Y):
class C(XY):
class D(YX):
class E(Y, metaclass=X):
class F[T](X[T]):
import X
from X.y import z
import a, X
import XY
def foo():
async def test_foo():
X = 3
""".splitlines()
_ODD_TEXTS = ("p\u00e4th/\u65e5\u672c x\t\r\n  \u00e9 \U0001f680", 'a_b.CamelHTTPServer2 "a_b"', "")


def check_rendering(folder: Path, count: int = 300) -> None:
    """The shipped template renders conversations as training did, whole and cut before answers."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string((folder / "chat_template.jinja").read_text("utf-8"))
    generator = Generator(1)
    for _ in range(count):
        messages = generator.conversation().messages
        assert template.render(messages=messages) == render(messages)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                cut = template.render(messages=messages[:i], add_generation_prompt=True)
                assert cut == render(messages[:i], True)


def check_tokens(folder: Path, count: int = 300) -> None:
    """Decoding gives back every text, and the mask covers just what the assistant writes."""
    encoder = Encoder(load(folder))
    generator = Generator(2)
    for _ in range(count):
        messages = generator.conversation().messages
        ids, mask = encoder.encode(messages)
        decode = encoder.tokenizer.decode
        assert decode(ids, skip_special_tokens=False) == render(messages)
        learned = decode([t for t, m in zip(ids, mask, strict=True) if m])
        said = [m for m in messages if m["role"] == "assistant"]
        texts = [render([m]).removeprefix("<|im_start|>assistant\n") for m in said]
        assert learned == "".join(t.removesuffix("<|im_end|>\n") for t in texts)
    for text in _ODD_TEXTS:
        assert encoder.tokenizer.decode(encoder.tokenizer.encode(text).ids) == text


@dataclass
class Match:
    """A line that ``search`` found."""

    file: str
    line: int
    text: str


@dataclass
class Result:
    """What any of the three tools gives; the fields of all of them."""

    count: int = 43
    match_count: int = 0
    total_lines: int = 12
    truncated: bool = False
    text: str = "---\nintro\n# My title \n"
    files: list[str] | None = None
    matches: list | None = None


def _tools() -> dict:
    from pydantic_monty import ClassInstance

    def search(pattern: str, glob: str = "*", path: str = ".", limit: int = 200) -> ClassInstance:
        numbered = enumerate(_SOURCE, 1)
        found = [Match("a.py", i, line) for i, line in numbered if re.search(pattern, line)]
        shown = [ClassInstance(match, eager_attrs="all") for match in found]
        return ClassInstance(Result(match_count=len(found), matches=shown), eager_attrs="all")

    def list_files(pattern: str = "*", path: str = ".", limit: int = 1000) -> ClassInstance:
        return ClassInstance(Result(files=[f"f{i}.py" for i in range(43)]), eager_attrs="all")

    def read_file(path: str, start_line: int = 1, max_lines: int = 2000) -> ClassInstance:
        return ClassInstance(Result(), eager_attrs="all")

    return {"search": search, "list_files": list_files, "read_file": read_file}


def run_program(code: str) -> str:
    """What a program prints in Monty, with tools that answer from fixed data."""
    from pydantic_monty import CollectString, Monty

    printed = CollectString()
    with Monty() as pool, pool.checkout() as session:
        session.feed_run(code, external_lookup=_tools(), print_callback=printed)
    return printed.output.rstrip("\n")


_FILES = "43\n" + "\n".join(f"f{i}.py" for i in range(40)) + "\n\u2026 and 3 more"
PRINTED = {
    programs.find("*.py", "src"): _FILES,
    programs.count("*.py"): "43",
    programs.total_lines("*.py"): f"43\n{43 * 12}",
    programs.title("README.md"): "My title",
    programs.lines("a.py"): "12",
    programs.grep("X = 3"): "1\na.py:13",
    programs.grep_count("Y", "*.py", "src"): "5",
    programs.subclasses("q.X"): "3\nA (a.py:1)\nB (a.py:2)\nF (a.py:6)",
    programs.definition("X", "src"): "1\na.py:13",
    programs.definition("a.foo"): "1\na.py:11",
    programs.importers("X"): "1\na.py",
    programs.importers("X", "src"): "1\na.py",
    programs.count_symbols(programs.CLASSES): "6",
    programs.count_symbols(programs.FUNCTIONS, "a.py"): "2",
    programs.count_symbols(programs.TESTS): "1",
    programs.list_symbols(programs.FUNCTIONS): "2\nfoo (a.py:11)\ntest_foo (a.py:12)",
}
"""Every program and what it prints for the fixed data."""


def check_programs() -> None:
    """Every program runs in Monty and prints what its answers are copied from."""
    for code, expected in PRINTED.items():
        assert run_program(code) == expected, code


def main(folder: Path) -> None:
    """Runs all checks; an AssertionError says which failed."""
    check_rendering(folder)
    check_tokens(folder)
    check_programs()
    print("template, tokens and programs agree")
