"""What the host half calls: one project, one operation at a time, bytes in and bytes out.

State of this module is the interpreter's own: `handle` and `close` are of its one project.
"""

import sys
from typing import TYPE_CHECKING, Any

from punie_workers.interp import files, raw, ripgrep, wire
from punie_workers.interp.failures import Failure, Kind, from_os_error
from punie_workers.interp.paths import Root

if TYPE_CHECKING:
    from punie_workers.interp.symbol_index import Index


class Entry:
    """One project, from ``open`` to ``close``."""

    def __init__(self) -> None:
        self._root: Root | None = None
        self._index: Index | None = None

    def handle(self, request: bytes) -> bytes:
        """Return the reply to one request; never raises but for a torn request."""
        operation, arguments = wire.decode_request(request)
        try:
            return wire.encode_ok(self._perform(operation, arguments))
        except Failure as failure:
            return wire.encode_error(failure.kind, failure.message)
        except OSError as error:
            failure = from_os_error(error, str(arguments.get("path", "")))
            return wire.encode_error(failure.kind, failure.message)
        except RecursionError, MemoryError, ValueError:
            name = type(sys.exception()).__name__
            return wire.encode_error(Kind.IO, f"{operation} failed: {name}")

    def close(self) -> None:
        """Forget the project. Idempotent."""
        self._index = None
        if self._root is not None:
            self._root.close()
            self._root = None

    def _perform(self, operation: str, arguments: dict[str, Any]) -> Any:
        match operation:
            case "open":
                self.close()
                self._root = Root(arguments["root"])
                return {"python": sys.version_info[:2]}
            case _:
                return self._work(self._renewed(), operation, arguments)

    def _renewed(self) -> Root:
        """Return the root: another folder in its place has another index."""
        if self._root is None:
            raise Failure(Kind.IO, "no project is open")
        if self._root.renew():
            self._index = None
        return self._root

    def _work(self, root: Root, operation: str, arguments: dict[str, Any]) -> Any:
        match operation:
            case "read_file":
                return files.read_file(root, **arguments)
            case "read_raw":
                return raw.read_raw(root, **arguments)
            case "open_directory":
                fd, path = root.open_directory(arguments["path"])
                return {"fd": fd, "path": path}
            case "list_files":
                return ripgrep.list_files(root, **arguments)
            case "search":
                return ripgrep.search(root, **arguments)
            case "special_files":
                from punie_workers.interp import specials  # which hardly any needs

                return {"found": specials.find(root)}
            case _ if operation.startswith("symbols_"):
                return self._symbols(root, operation, arguments)
            case _ if (family := operation.partition("_")[0]) in _FAMILIES:
                return _FAMILIES[family](root, operation, arguments)
            case _:
                raise ValueError(operation)

    def _symbols(self, root: Root, operation: str, arguments: dict[str, Any]) -> Any:
        if self._index is None:
            from punie_workers.interp.symbol_index import Index  # 2 MB that not all need

            self._index = Index(root)
        match operation:
            case "symbols_place":
                return self._index.place(**arguments)
            case "symbols_folders":
                return self._index.folders(**arguments)
            case "symbols_take":
                return self._index.take(**arguments)
            case "symbols_take_file":
                return self._index.take_file(**arguments)
            case "symbols_refresh":
                return self._index.refresh(**arguments)
            case "symbols_query":
                return self._index.query(**arguments)
            case _:
                raise ValueError(operation)


def _edits(root: Root, operation: str, arguments: dict[str, Any]) -> Any:
    from punie_workers.interp import edits

    match operation:
        case "edits_plan":
            return edits.plan(root, **arguments)
        case "edits_apply":
            return edits.apply(root, **arguments)
        case _:
            raise ValueError(operation)


def _checks(root: Root, operation: str, arguments: dict[str, Any]) -> Any:
    from punie_workers.interp import ruff_output, ty_output  # with json, which not all need

    match operation:
        case "check_place":
            fd, path, name = root.open_place(arguments["path"])
            return {"fd": fd, "path": path, "name": name}
        case "check_types":
            return ty_output.typecheck(root, **arguments)
        case "check_ruff":
            return ruff_output.ruff_check(root, **arguments)
        case _:
            raise ValueError(operation)


def _pytest(_: Root, operation: str, arguments: dict[str, Any]) -> Any:
    from punie_workers.interp import pytest_output  # with a parser of XML, which not all need

    match operation:
        case "pytest_report":
            return pytest_output.pytest_run(**arguments)
        case _:
            raise ValueError(operation)


def _git(root: Root, operation: str, arguments: dict[str, Any]) -> Any:
    from punie_workers.interp import git_output, git_place  # which not all need

    match operation:
        case "git_place":
            return git_place.place(root, **arguments)
        case "git_settings":
            return git_place.settings(**arguments)
        case "git_status":
            return git_output.git_status(**arguments)
        case "git_diff":
            return git_output.git_diff(**arguments)
        case "git_log":
            return git_output.git_log(**arguments)
        case _:
            raise ValueError(operation)


_FAMILIES = {"edits": _edits, "check": _checks, "git": _git, "pytest": _pytest}
"""By the first word of an operation. What a family needs is imported with its first one."""

_here = Entry()

handle, close = _here.handle, _here.close
"""Of the one project of this interpreter."""
