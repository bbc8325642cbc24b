"""The file tools that write: each is planned, shown and allowed, and then done or not at all.

Both steps run in the project half; `punie_workers.interp.edits` says what they promise.
"""

from collections.abc import Callable, Sequence

import msgspec

from punie_protocol.errors import Internal, PunieError, ToolFailed
from punie_protocol.interp_codec import encode_request
from punie_protocol.tool_types import Arguments
from punie_protocol.tools_files import DeleteFile, EditFile, EditResult, MoveFile, WriteFile
from punie_workers.actions import Action, FileDiff, Subject
from punie_workers.half_calls import Deed
from punie_workers.halves import Halves


class _Plan(msgspec.Struct, frozen=True):
    """What the project half worked out; `apply` is the request that does it."""

    paths: tuple[str, ...]
    files: tuple[tuple[str, str | None, str | None], ...]
    result: EditResult
    apply: bytes


class _Applied(msgspec.Struct, frozen=True):
    """It was done; `trouble` is what went wrong after that."""

    trouble: str


class EditTools:
    """Changes to the files of one project. `changed` is told the paths of each that happened."""

    def __init__(self, halves: Halves, changed: Callable[[Sequence[str]], None]) -> None:
        self._halves = halves
        self._changed = changed

    async def prepare(self, arguments: Arguments) -> Action:
        """Return what the call would do; nothing has happened yet. Raises `PunieError`."""
        match arguments:
            case EditFile() | WriteFile() | DeleteFile() | MoveFile():
                return await self._plan(str(arguments.__struct_config__.tag), arguments)
            case _:
                raise PunieError(Internal(message=f"{type(arguments).__name__} is no edit tool"))

    async def _plan(self, tool: str, arguments: Arguments) -> Action:
        fields = msgspec.structs.asdict(arguments)
        request = encode_request("edits_plan", {"tool": tool, "arguments": fields})
        plan = await self._halves.call(request, _Plan)
        deed = Deed()

        async def run() -> EditResult:
            return await self._apply(plan, deed)

        return Action(
            subject=Subject(paths=plan.paths),
            diffs=tuple(FileDiff(path, old, new) for path, old, new in plan.files),
            run=run,
            happened=lambda: deed.happened,
        )

    async def _apply(self, plan: _Plan, deed: Deed) -> EditResult:
        try:
            applied = await self._halves.call(plan.apply, _Applied, deed=deed)
        finally:
            if deed.happened:
                self._changed(plan.paths)
        if applied.trouble:
            raise PunieError(ToolFailed(kind="io", message=applied.trouble))
        return plan.result
