"""One turn of a real worker, for what it leaves behind: modules, caches, validators, all warm.

Everything but the model and the supervisor is the real thing; the project half runs in place, as
a process that holds an interpreter must never be forked. Nothing of the turn stays: no thread, no
descriptor, no file.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from punie_protocol import jsonrpc
from punie_protocol.errors import Internal, PunieError
from punie_protocol.handshake import version
from punie_protocol.limits import PROTOCOL
from punie_protocol.link import FrameLink
from punie_protocol.messages.common import Isolation, Limits, PromptStyle
from punie_protocol.messages.to_supervisor import (
    AgentMessage,
    EffectFinished,
    EffectStarted,
    ProjectFailed,
    ProjectReady,
    StoreDelta,
    StoreGrant,
    StoreTrust,
    ToSupervisor,
)
from punie_protocol.messages.to_worker import (
    ClientMessage,
    CloseProject,
    OpenProject,
    OpenSession,
    Stop,
    Stored,
    ToWorker,
    Welcome,
)
from punie_protocol.permissions import Mode, PermissionSettings
from punie_protocol.testing.loopback import SUPERVISOR, WORKER, loopback
from punie_protocol.testing.script import call, model_info, say
from punie_protocol.testing.scripted_host import ScriptedHost
from punie_workers.code_mode import CodeMode, checker_stubs
from punie_workers.crumbs import Crumb
from punie_workers.in_place import InPlace
from punie_workers.worker import Worker

PATIENCE: Final = 10.0
"""Seconds for all of it."""
_SCRIPT: Final = (
    call("list_files"),
    call("search", pattern="warm"),
    call("read_file", path="a.txt"),
    call("edit_file", path="a.txt", old_text="warm", new_text="hot"),
    call("write_file", path="b.txt", text="cold\n"),
    say("done"),
)
_SESSION: Final = "warm"
_PROMPT_ID: Final = 2


def up() -> None:
    """Import what workers need and play the turn. Raises `PunieError` when it fails."""
    with tempfile.TemporaryDirectory(prefix="punie-warm-") as folder:
        asyncio.run(_within(Path(folder)))
    checker_stubs()  # the turn has no program, and no thread may stay of one
    import watchfiles._rust_notify  # noqa: F401 - nor a watcher


async def _within(folder: Path) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            await _turn(folder)
    except TimeoutError:
        text = f"the warm turn took longer than {PATIENCE:g} s"
        raise PunieError(Internal(message=text)) from None


async def _turn(folder: Path) -> None:
    root = folder / "project"
    root.mkdir()
    (root / "a.txt").write_text("warm\n")
    script = [*_SCRIPT]
    async with (
        ScriptedHost(script=script, model=model_info(PromptStyle.TOOLS)) as host,
        loopback(SUPERVISOR, WORKER) as (ours, theirs),
        _serving(theirs, host.path),
    ):
        await _converse(ours, str(root.resolve()))
        await ours.send(Stop(reason="warm", deadline_s=PATIENCE))


@asynccontextmanager
async def _serving(link: FrameLink[ToWorker], socket: str) -> AsyncGenerator[None]:
    welcome = Welcome(
        protocol=PROTOCOL,
        version=version(),
        limits=Limits(),
        model_socket=socket,
        permissions=PermissionSettings(),
    )
    code = CodeMode()
    await code.close()  # its threads would stay
    serving = asyncio.create_task(Worker(link, welcome, _in_place, code).serve())
    try:
        yield
        await serving
    finally:
        serving.cancel()


def _in_place(root: str, crumb: Crumb) -> InPlace:
    return InPlace(root)


async def _converse(link: FrameLink[ToSupervisor], root: str) -> None:
    """Play the supervisor's part, up to the answer to the prompt."""
    await link.send(
        OpenProject(
            project_id="warm",
            root=root,
            isolation=Isolation.PROCESS,
            client_id="warm",
            trusted="",
        )
    )
    await link.send(
        OpenSession(session_id=_SESSION, project_id="warm", deltas=[], mode=Mode.ACCEPT_EDITS)
    )
    await _ask(link, 1, "session/new", {"cwd": root, "mcpServers": [], "_meta": _meta("sessionId")})
    prompt = [{"type": "text", "text": "warm up"}]
    asked = {"sessionId": _SESSION, "prompt": prompt, "_meta": _meta("promptId")}
    await _ask(link, _PROMPT_ID, "session/prompt", asked)
    async for message in link:
        if await _take(link, message):
            break
    else:
        raise PunieError(Internal(message="the worker of the warm turn ended early"))
    await link.send(CloseProject(project_id="warm", reason="warm"))


async def _ask(link: FrameLink[ToSupervisor], id: int, method: str, params: object) -> None:
    body = jsonrpc.request(id, method, params)
    await link.send(ClientMessage(session_id=_SESSION, body=body))


def _meta(name: str) -> dict[str, dict[str, str]]:
    return {"punie": {name: _SESSION}}


async def _take(link: FrameLink[ToSupervisor], message: ToSupervisor) -> bool:
    """Do with a message what a supervisor does; whether it answers the prompt."""
    match message:
        case StoreDelta() | EffectStarted() | EffectFinished() | StoreGrant() | StoreTrust():
            await link.send(Stored(request_id=message.request_id))
        case AgentMessage(body=body):
            return _is_answer(body)
        case ProjectFailed(error=error):
            raise PunieError(error)
        case ProjectReady():
            pass
        case _:
            raise PunieError(Internal(message=f"unexpected {type(message).__name__}"))
    return False


def _is_answer(body: bytes) -> bool:
    envelope = jsonrpc.decode(body)
    if envelope.method or envelope.id != _PROMPT_ID:
        return False
    if not envelope.result:
        raise PunieError(Internal(message="the prompt of the warm turn failed"))
    return True
