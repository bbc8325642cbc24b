"""The read tools of one project: typed arguments in, typed result out.

Called directly by the agent and from Code Mode alike. They raise `PunieError`; `ToolFailed` for
what the model is to be told. Cancelling a call ends its ripgrep.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

from punie_protocol.errors import Internal, PunieError
from punie_protocol.interp_codec import encode_request
from punie_protocol.tools import (
    Arguments,
    ListFiles,
    ListFilesResult,
    ReadFile,
    ReadFileResult,
    Result,
    Search,
    SearchResult,
)
from punie_workers import rg
from punie_workers.project_half import ProjectHalf


class _Directory(msgspec.Struct):
    """A folder that the project half opened; the descriptor is the host half's to close."""

    fd: int
    path: str


class ReadTools:
    """Files and searches of one project."""

    def __init__(self, half: ProjectHalf) -> None:
        self._half = half

    async def run(self, arguments: Arguments) -> Result:
        """Return the result of one tool call."""
        match arguments:
            case ReadFile():
                request = encode_request("read_file", msgspec.structs.asdict(arguments))
                return await self._half.call(request, ReadFileResult)
            case ListFiles():
                return await self._list_files(arguments)
            case Search():
                return await self._search(arguments)
            case _:
                raise PunieError(Internal(message=f"{type(arguments).__name__} is no read tool"))

    async def _list_files(self, wanted: ListFiles) -> ListFilesResult:
        async with self._directory(wanted.path) as folder:
            output = await rg.files(folder.fd, at_root=not folder.path)
            request = _parse("list_files", output, folder, wanted.pattern, wanted.limit)
            return await self._half.call(request, ListFilesResult)

    async def _search(self, wanted: Search) -> SearchResult:
        async with self._directory(wanted.path) as folder:
            output = await rg.search(
                folder.fd,
                wanted.pattern,
                wanted.glob,
                ignore_case=wanted.ignore_case,
                at_root=not folder.path,
            )
            request = _parse("search", output, folder, wanted.glob, wanted.limit)
            return await self._half.call(request, SearchResult)

    @asynccontextmanager
    async def _directory(self, path: str) -> AsyncGenerator[_Directory]:
        folder = await self._half.call(encode_request("open_directory", {"path": path}), _Directory)
        try:
            yield folder
        finally:
            os.close(folder.fd)


def _parse(operation: str, output: rg.Output, folder: _Directory, glob: str, limit: int) -> bytes:
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
