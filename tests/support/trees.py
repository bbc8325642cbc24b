"""Source trees nobody wrote for these tests, and what is true of them, found without Punie."""

import ast
import asyncio
import json
import shutil
from pathlib import Path
from types import ModuleType

import mlx_lm


def copy_package(module: ModuleType, target: Path) -> Path:
    """Copy an installed package's sources to `target` and return it."""
    assert module.__file__ is not None
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(Path(module.__file__).parent, target, ignore=ignore)
    return target


def json_tree(folder: Path) -> Path:
    """The standard library's `json` package."""
    return copy_package(json, folder / "json")


def asyncio_tree(folder: Path) -> Path:
    """The standard library's `asyncio` package."""
    return copy_package(asyncio, folder / "asyncio")


def third_party_tree(folder: Path) -> Path:
    """A large installed package, with Markdown pages."""
    return copy_package(mlx_lm, folder / "mlx_lm")


def files(tree: Path, suffix: str) -> set[str]:
    """Return the files of a kind, relative."""
    return {path.relative_to(tree).as_posix() for path in tree.rglob(f"*{suffix}")}


def subclasses(tree: Path, base: str) -> set[str]:
    """Return the names of the classes that name `base` as a base, by the syntax tree."""
    return {
        node.name
        for path in tree.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and base in map(_last_name, node.bases)
    }


def lines_with(tree: Path, word: str) -> int:
    """Return how many lines contain `word`."""
    return sum(word in line for path in tree.rglob("*") if path.is_file() for line in _lines(path))


def title(page: Path) -> str:
    """Return the first heading of a Markdown page."""
    return next(line[2:].strip() for line in _lines(page) if line.startswith("# "))


def _last_name(base: ast.expr) -> str:
    match base:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError:
        return []
