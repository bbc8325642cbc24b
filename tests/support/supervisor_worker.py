"""A worker for the supervisor's tests: speaks the protocol, does what the prompt's text says.

say TEXT      two updates, a delta, an answer with TEXT
history       answers with the deltas it was opened with, and those since
wait          an update, then until $/cancel_request
fill N SIZE   N deltas of SIZE bytes
weigh         answers with the number and the bytes of the deltas
die | exit    SIGKILL to itself | exit code 0, in the middle of a turn
die N         SIGKILL to itself until it is resumed for the Nth time, then answers like "state"
state         answers with the mode, grants, effects and trust that it knows, and the prompt's meta
grant | trust stores a grant | trust in the project
timed META    answers with META, the JSON of a `ResultMeta`; "fails META" with an error that has it
interrupted   an effect that starts and does not finish, then SIGKILL; resumed: answers like "state"
garbage       bytes that are no frame
flood N       N updates of 64 KB
ask           a permission question; answers with the outcome
effect        an effect, started and finished
hang          blocks the loop
crash         SIGKILL to itself while the project's tools are at work; resumed: answers with its pid
hung          says that the project's tools hang, then answers with its pid
programs N    says that N background commands run
eat N         takes N MB of memory, then an update, then waits
sessions      answers with the ids of the sessions that are open
pid           answers with its pid and the level it was told
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from typing import Any

import msgspec

from punie_protocol import handshake
from punie_protocol.client import PromptPart, PromptReport
from punie_protocol.codec import MessageDecoder
from punie_protocol.link import FrameLink
from punie_protocol.messages import to_supervisor, to_worker
from punie_protocol.messages.common import Role
from punie_protocol.permissions import Grant

_decoder = MessageDecoder[to_worker.ToWorker]("worker", to_worker.ToWorker)


class FakeWorker:
    """Everything the fake knows."""

    def __init__(
        self,
        link: FrameLink[to_worker.ToWorker],
        control: socket.socket,
        welcome: to_worker.Welcome,
    ) -> None:
        self.link = link
        self.welcome = welcome
        self.control = control
        self.sessions: dict[str, list[bytes]] = {}
        self.opened: dict[str, to_worker.OpenSession] = {}
        self.trusted: dict[str, str] = {}
        self.roots: dict[str, str] = {}
        self.projects: dict[str, to_worker.OpenProject] = {}
        self.stored: dict[int, asyncio.Future[Any]] = {}
        self.answers: dict[int, asyncio.Future[Any]] = {}
        self.cancelled: dict[str, asyncio.Event] = {}
        self.running: dict[str, int] = {}
        self.ids = iter(range(1, 1_000_000))
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:  # noqa: C901 (one case a message)
        async for message in self.link:
            match message:
                case to_worker.Welcome():
                    raise AssertionError(message)
                case to_worker.OpenProject():
                    self.trusted[message.project_id] = message.trusted
                    self.roots[message.project_id] = message.root
                    self.projects[message.project_id] = message
                    self.send(
                        to_supervisor.ProjectReady(project_id=message.project_id, activate_ms=1)
                    )
                case to_worker.OpenSession():
                    self.sessions[message.session_id] = list(message.deltas)
                    self.opened[message.session_id] = message
                case to_worker.CloseSession(session_id=id):
                    self.opened.pop(id, None)
                case to_worker.SetMode(session_id=id, mode=mode):
                    self.opened[id] = msgspec.structs.replace(self.opened[id], mode=mode)
                case to_worker.TrustProject():
                    self.trusted[message.project_id] = message.trusted
                case to_worker.DescribePrompt():
                    self.describe(message)
                case to_worker.AskCommands(request_id=id):
                    self.send(to_supervisor.CommandsTold(request_id=id))
                case to_worker.SessionHistory():
                    self.sessions[message.session_id] += message.deltas
                case to_worker.ClientMessage():
                    self.client(message.session_id, json.loads(message.body))
                case to_worker.Stored():
                    self.stored.pop(message.request_id).set_result(message.error)
                case to_worker.Ping():
                    self.send(to_supervisor.Pong(nonce=message.nonce, busy=0))
                case to_worker.Stop():
                    return
                case _:
                    pass

    def send(self, message: Any) -> None:
        self.link.send_nowait(message)

    def client(self, session: str, body: dict[str, Any]) -> None:
        match body:
            case {"method": "session/new", "id": id, "params": params}:
                punie = params["_meta"]["punie"]
                self.agent(session, {"id": id, "result": {"sessionId": punie["sessionId"]}})
            case {"method": "session/prompt"}:
                task = asyncio.ensure_future(self.prompt(session, body))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            case {"method": "$/cancel_request", "params": {"requestId": id}}:
                if self.running.get(session) == id:
                    self.cancelled[session].set()
            case {"id": id}:
                self.answers.pop(id).set_result(body)

    def agent(self, session: str, body: dict[str, Any]) -> None:
        raw = json.dumps({"jsonrpc": "2.0"} | body).encode()
        self.send(to_supervisor.AgentMessage(session_id=session, body=raw))

    def update(self, session: str, text: str) -> None:
        content = {"type": "text", "text": text}
        params = {
            "sessionId": session,
            "update": {"sessionUpdate": "agent_message_chunk", "content": content},
            "_meta": {"punie": {"tool": "kept"}, "other": 1.50},
        }
        self.agent(session, {"method": "session/update", "params": params})

    async def prompt(self, session: str, body: dict[str, Any]) -> None:  # noqa: C901
        id, params = body["id"], body["params"]
        prompt = params["_meta"]["punie"]["promptId"]
        verb, _, rest = params["prompt"][0]["text"].partition(" ")
        self.cancelled[session] = asyncio.Event()
        self.running[session] = id
        reason, said = "end_turn", ""
        match verb:
            case "say":
                self.update(session, "one")
                self.update(session, "two")
                assert await self.delta(session, prompt, rest.encode()) is None
                said = rest
            case "history":
                said = ",".join(delta.decode() for delta in self.sessions[session])
            case "wait":
                self.update(session, f"waiting in {os.getpid()}")
                await self.cancelled[session].wait()
                reason = "cancelled"
            case "fill":
                count, size = map(int, rest.split())
                for _ in range(count):
                    assert await self.delta(session, prompt, bytes(size)) is None
            case "weigh":
                deltas = self.sessions[session]
                said = f"{len(deltas)} {sum(map(len, deltas))}"
            case "die" if rest:
                if params["_meta"]["punie"].get("resume", {}).get("attempt", 0) < int(rest):
                    await self.delta(session, prompt, b"before death")
                    os.kill(os.getpid(), signal.SIGKILL)
                said = self.state(session, params)
            case "interrupted":
                if "resume" not in params["_meta"]["punie"]:
                    await self.start_effect(session, prompt, "e2")
                    os.kill(os.getpid(), signal.SIGKILL)
                said = self.state(session, params)
            case "timed":
                meta = {"punie": json.loads(rest)}
                self.agent(session, {"id": id, "result": {"stopReason": reason, "_meta": meta}})
                return
            case "fails":
                data = {"meta": json.loads(rest)}
                error = {"code": -32050, "message": "it failed", "data": data}
                self.agent(session, {"id": id, "error": error})
                return
            case "state":
                said = self.state(session, params)
            case "grant" | "trust":
                said = str(await self.store(session, verb, rest))
            case "die":
                self.update(session, "last words")
                await self.delta(session, prompt, b"before death")
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(0)
            case "garbage":
                self.control.send(b"\0\0\0\5\xc1rubb")
                return
            case "flood":
                for _ in range(int(rest)):
                    self.update(session, "x" * 65536)
                    await asyncio.sleep(0)
            case "ask":
                said = json.dumps(await self.ask(session))
            case "effect":
                said = await self.effect(session, prompt)
            case "crash":
                if "resume" not in params["_meta"]["punie"]:
                    self.leave_crumb(session)
                    os.kill(os.getpid(), signal.SIGKILL)
                said = self.place(session)
            case "hung":
                self.send(
                    to_supervisor.HalfQuarantined(
                        project_id=self.project(session).project_id, operation="search", seconds=30
                    )
                )
                said = self.place(session)
            case "programs":
                id_ = self.project(session).project_id
                self.send(to_supervisor.ProgramsRunning(project_id=id_, count=int(rest)))
            case "eat":
                eaten = bytearray(os.urandom(1024 * 1024) * int(rest))
                self.update(session, f"ate {len(eaten)}")
                await self.cancelled[session].wait()
            case "sessions":
                said = " ".join(self.opened)
            case "pid":
                said = self.place(session)
            case "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)  # noqa: ASYNC251 - a blocked loop is the point
        result = {"stopReason": reason, "_meta": {"punie": {"said": said, "pid": os.getpid()}}}
        self.agent(session, {"id": id, "result": result})

    def project(self, session: str) -> to_worker.OpenProject:
        return self.projects[self.opened[session].project_id]

    def place(self, session: str) -> str:
        return f"{os.getpid()} {self.project(session).isolation}"

    def leave_crumb(self, session: str) -> None:
        with open(self.welcome.crumbs, "r+b") as file:  # noqa: PTH123
            file.seek(self.project(session).slot)
            file.write(b"\1")

    def request(self) -> tuple[int, asyncio.Future[Any]]:
        id = next(self.ids)
        self.stored[id] = asyncio.get_running_loop().create_future()
        return id, self.stored[id]

    async def delta(self, session: str, prompt: str, data: bytes) -> Any:
        id, stored = self.request()
        ordinal = len(self.sessions[session])
        self.sessions[session].append(data)
        self.send(
            to_supervisor.StoreDelta(
                request_id=id, session_id=session, prompt_id=prompt, ordinal=ordinal, data=data
            )
        )
        return await stored

    def state(self, session: str, params: dict[str, Any]) -> str:
        opened = self.opened[session]
        return json.dumps(
            {
                "mode": opened.mode,
                "grants": msgspec.to_builtins(opened.grants),
                "effects": [[e.effect_id, e.tool, e.ok, e.summary] for e in opened.effects],
                "trusted": self.trusted[opened.project_id],
                "permissions": msgspec.to_builtins(self.welcome.permissions),
                "meta": params["_meta"]["punie"],
                "history": [delta.decode() for delta in self.sessions[session]],
            }
        )

    def describe(self, message: to_worker.DescribePrompt) -> None:
        if message.backend and message.backend.name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        root = self.roots[message.project_id]
        model = message.backend.url if message.backend else "ours"
        part = PromptPart(name="core", text=root, tokens=1)
        report = PromptReport(model=model, style="tools", exact=True, tokens=1, parts=[part])
        self.send(to_supervisor.PromptDescribed(request_id=message.request_id, report=report))

    async def store(self, session: str, verb: str, rest: str) -> Any:
        id, stored = self.request()
        grant = Grant(key="edit", allow=rest != "no")
        project = self.opened[session].project_id
        self.send(
            to_supervisor.StoreGrant(request_id=id, session_id=session, grant=grant)
            if verb == "grant"
            else to_supervisor.StoreTrust(request_id=id, project_id=project, digest=rest)
        )
        return await stored

    async def start_effect(self, session: str, prompt: str, effect: str) -> Any:
        id, stored = self.request()
        self.send(
            to_supervisor.EffectStarted(
                request_id=id,
                session_id=session,
                prompt_id=prompt,
                ordinal=len(self.sessions[session]),
                effect_id=effect,
                tool="write_file",
                arguments=b"{}",
            )
        )
        return await stored

    async def effect(self, session: str, prompt: str) -> str:
        first = await self.start_effect(session, prompt, "e1")
        id, stored = self.request()
        self.send(
            to_supervisor.EffectFinished(
                request_id=id, session_id=session, effect_id="e1", ok=True, summary="written"
            )
        )
        return f"{first} {await stored}"

    async def ask(self, session: str) -> Any:
        id = next(self.ids)
        self.answers[id] = answer = asyncio.get_running_loop().create_future()
        params = {"sessionId": session, "options": []}
        self.agent(session, {"id": id, "method": "session/request_permission", "params": params})
        return await answer


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().control_fd)
    print("fake worker starts", file=sys.stderr, flush=True)
    link = await FrameLink.over(control, _decoder, name="supervisor")
    welcome = await handshake.greet_supervisor(link, Role.WORKER, to_worker.Welcome)
    assert isinstance(welcome, to_worker.Welcome)
    await link.send(to_supervisor.Ready())
    await FakeWorker(link, control.dup(), welcome).run()
    link.close()


if __name__ == "__main__":
    asyncio.run(main())
