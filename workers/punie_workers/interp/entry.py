"""What the host half calls: one project, one operation at a time, bytes in and bytes out.

State of this module is the interpreter's own: one interpreter serves one project.
"""

import sys
from typing import TYPE_CHECKING, Any

from punie_workers.interp import files, raw, ripgrep, wire
from punie_workers.interp.failures import Failure, Kind, from_os_error
from punie_workers.interp.paths import Root

if TYPE_CHECKING:
    from punie_workers.interp.symbol_index import Index

_roots: list[Root] = []
_indexes: list[Index] = []


def handle(request: bytes) -> bytes:
    """Return the reply to one request; never raises but for a torn request."""
    operation, arguments = wire.decode_request(request)
    try:
        if _roots and operation != "close" and _roots[0].renew():
            _indexes.clear()
        return wire.encode_ok(_perform(operation, arguments))
    except Failure as failure:
        return wire.encode_error(failure.kind, failure.message)
    except OSError as error:
        failure = from_os_error(error, str(arguments.get("path", "")))
        return wire.encode_error(failure.kind, failure.message)
    except RecursionError, MemoryError, ValueError:
        name = type(sys.exception()).__name__
        return wire.encode_error(Kind.IO, f"{operation} failed: {name}")


def _perform(operation: str, arguments: dict[str, Any]) -> Any:
    match operation:
        case "open":
            _roots.append(Root(arguments["root"]))
            return {"python": sys.version_info[:2]}
        case "read_file":
            return files.read_file(_roots[0], **arguments)
        case "read_raw":
            return raw.read_raw(_roots[0], **arguments)
        case "open_directory":
            fd, path = _roots[0].open_directory(arguments["path"])
            return {"fd": fd, "path": path}
        case "list_files":
            return ripgrep.list_files(_roots[0], **arguments)
        case "search":
            return ripgrep.search(_roots[0], **arguments)
        case _ if (family := operation.partition("_")[0]) in _FAMILIES:
            return _FAMILIES[family](operation, arguments)
        case "close":
            _indexes.clear()
            while _roots:
                _roots.pop().close()
            return None
        case _:
            raise ValueError(operation)


def _edits(operation: str, arguments: dict[str, Any]) -> Any:
    from punie_workers.interp import edits

    match operation:
        case "edits_plan":
            return edits.plan(_roots[0], **arguments)
        case "edits_apply":
            return edits.apply(_roots[0], **arguments)
        case _:
            raise ValueError(operation)


def _symbols(operation: str, arguments: dict[str, Any]) -> Any:
    if not _indexes:
        from punie_workers.interp.symbol_index import Index  # 2 MB that not every project needs

        _indexes.append(Index(_roots[0]))
    match operation:
        case "symbols_place":
            return _indexes[0].place(**arguments)
        case "symbols_folders":
            return _indexes[0].folders(**arguments)
        case "symbols_take":
            return _indexes[0].take(**arguments)
        case "symbols_take_file":
            return _indexes[0].take_file(**arguments)
        case "symbols_refresh":
            return _indexes[0].refresh(**arguments)
        case "symbols_query":
            return _indexes[0].query(**arguments)
        case _:
            raise ValueError(operation)


def _checks(operation: str, arguments: dict[str, Any]) -> Any:
    from punie_workers.interp import ruff_output, ty_output  # with json, which not all need

    match operation:
        case "check_place":
            fd, path, name = _roots[0].open_place(arguments["path"])
            return {"fd": fd, "path": path, "name": name}
        case "check_types":
            return ty_output.typecheck(_roots[0], **arguments)
        case "check_ruff":
            return ruff_output.ruff_check(_roots[0], **arguments)
        case _:
            raise ValueError(operation)


def _git(operation: str, arguments: dict[str, Any]) -> Any:
    from punie_workers.interp import git_output, git_place  # which not all need

    match operation:
        case "git_place":
            return git_place.place(_roots[0], **arguments)
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


_FAMILIES = {"edits": _edits, "symbols": _symbols, "check": _checks, "git": _git}
"""By the first word of an operation. What a family needs is imported with its first one."""
