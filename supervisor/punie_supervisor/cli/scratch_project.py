"""A small project that is the same everywhere, for figures that can be compared."""

from pathlib import Path
from typing import Final

from punie_protocol.errors import InvalidRequest, PunieError

_NAMES: Final = ("orders", "prices", "stock", "shipping", "billing", "customers", "reports")
_MODULE: Final = '''\
"""{title} of the shop."""


class {name}Error(ValueError):
    """{title} are wrong."""


class {name}:
    """All {plain}, by number."""

    def __init__(self) -> None:
        self.found: dict[int, str] = {{}}

    def add(self, number: int, text: str) -> None:
        """Add one. Raises `{name}Error` when it is there."""
        if number in self.found:
            raise {name}Error(f"{{number}} is there")
        self.found[number] = text  # TODO: keep the one before
'''
_README: Final = "# Shop\n\nA project that Punie generated to measure itself in.\n"


def files() -> dict[str, str]:
    """Return its texts by path."""
    modules = {
        f"shop/{name}.py": _MODULE.format(title=name.title(), name=name.title(), plain=name)
        for name in _NAMES
    }
    return {"README.md": _README, "shop/__init__.py": '"""The shop."""\n'} | modules


def make(folder: Path) -> str:
    """Write it there, and return the real path. What is there already stays as it is. Raises
    `PunieError` when that cannot be done."""
    try:
        for name, text in files().items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists() or file.read_text() != text:
                file.write_text(text)
    except OSError as error:
        text = f"cannot make the project {folder}: {error.strerror}"
        hint = "measure in one of yours: punie bench profile -C DIR"
        raise PunieError(InvalidRequest(message=text, hint=hint)) from None
    return str(folder.resolve())
