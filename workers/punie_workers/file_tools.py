"""The file tools that read: typed arguments in, typed result out.

Called directly by the agent and from Code Mode alike. They raise `PunieError`; `ToolFailed` for
what the model is to be told. Cancelling a call ends its ripgrep. What ``.gitignore`` and
``.punieignore`` hide is neither listed nor searched, nor are ``__pycache__`` and ``node_modules``.
"""

from contextlib import AbstractAsyncContextManager

import msgspec

from punie_protocol.errors import Internal, PunieError
from punie_protocol.interp_codec import encode_request
from punie_protocol.tool_types import Arguments, Result
from punie_protocol.tools_files import (
    ListFiles,
    ListFilesResult,
    ReadFile,
    ReadFileResult,
    Search,
    SearchResult,
)
from punie_workers import rg
from punie_workers.halves import Halves, Opened
from punie_workers.readers import Folder, Reader, nowhere


class Directory(Opened):
    """A folder of the project; its path, relative to the root."""

    path: str


class FileTools:
    """Files and searches of one project."""

    def __init__(self, halves: Halves, reader: Reader | None = None) -> None:
        self._halves = halves
        self._reader = reader or Reader(halves, find=nowhere)

    async def run(self, arguments: Arguments) -> Result:
        """Return the result of one tool call."""
        match arguments:
            case ReadFile():
                request = encode_request("read_file", msgspec.structs.asdict(arguments))
                return await self._halves.call(request, ReadFileResult)
            case ListFiles():
                return await self._list_files(arguments)
            case Search():
                return await self._search(arguments)
            case _:
                raise PunieError(Internal(message=f"{type(arguments).__name__} is no read tool"))

    async def _list_files(self, wanted: ListFiles) -> ListFilesResult:
        async with self.directory(wanted.path) as folder:
            output = await self.files(folder)
            request = _parse("list_files", output, folder, wanted.pattern, wanted.limit)
            return await self._halves.call(request, ListFilesResult)

    async def _search(self, wanted: Search) -> SearchResult:
        async with self.directory(wanted.path) as folder:
            output = await rg.search(
                self._reader,
                Folder(folder.fd, folder.path),
                wanted.pattern,
                wanted.glob,
                ignore_case=wanted.ignore_case,
            )
            request = _parse("search", output, folder, wanted.glob, wanted.limit)
            return await self._halves.call(request, SearchResult)

    async def files(self, folder: Directory) -> rg.Output:
        """Return what ripgrep lists below `folder`. Raises `PunieError`."""
        return await rg.files(self._reader, Folder(folder.fd, folder.path))

    def directory(self, path: str) -> AbstractAsyncContextManager[Directory]:
        """Yield the folder at `path`, open. Raises `PunieError`."""
        return self._halves.opened(encode_request("open_directory", {"path": path}), Directory)


def _parse(operation: str, output: rg.Output, folder: Directory, glob: str, limit: int) -> bytes:
    return encode_request(
        operation,
        {
            "output": output.data,
            "complete": output.complete,
            "prefix": folder.path,
            "pattern": glob,
            "limit": limit,
        },
    )
