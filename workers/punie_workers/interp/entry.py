"""What the host half calls: one project, one operation at a time, bytes in and bytes out.

State of this module is the interpreter's own: one interpreter serves one project.
"""

import sys
from typing import Any

from punie_workers.interp import files, ripgrep, wire
from punie_workers.interp.failures import Failure, Kind, from_os_error
from punie_workers.interp.paths import Root

_roots: list[Root] = []


def handle(request: bytes) -> bytes:
    """Return the reply to one request; never raises but for a torn request."""
    operation, arguments = wire.decode_request(request)
    try:
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
        case "open_directory":
            fd, path = _roots[0].open_directory(arguments["path"])
            return {"fd": fd, "path": path}
        case "list_files":
            return ripgrep.list_files(_roots[0], **arguments)
        case "search":
            return ripgrep.search(_roots[0], **arguments)
        case "close":
            while _roots:
                _roots.pop().close()
            return None
        case _:
            raise ValueError(operation)
