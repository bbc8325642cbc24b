"""The gate of a session: real questions over a real link, a real project half, every answer."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from punie_protocol import jsonrpc
from punie_protocol.codec import MessageDecoder
from punie_protocol.errors import (
    Denied,
    Internal,
    InvalidRequest,
    PunieError,
    TimedOut,
    WireError,
)
from punie_protocol.jsonrpc import Envelope
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_supervisor import AgentMessage, ToSupervisor
from punie_protocol.messages.to_worker import ToWorker
from punie_protocol.permissions import (
    Answer,
    Grant,
    Mode,
    PermissionSettings,
    PromptPermissions,
    Rule,
    TrustAnswer,
)
from punie_protocol.project_settings import CONFIG, PYPROJECT, settings_digest
from punie_protocol.tool_types import Permission, Result, Tool, define
from punie_protocol.tools import TOOLS
from punie_protocol.tools_files import DeleteFile, EditResult
from punie_workers import questions as questions_module
from punie_workers.actions import Action, FileDiff, Subject
from punie_workers.dialogs import MAX_DIFFS
from punie_workers.gate import Admission, Gate
from punie_workers.halves import Abandoned, Halves
from punie_workers.outlet import Outlet
from punie_workers.project_settings import MAX_AGENTS, ProjectSettings
from punie_workers.prompts import ProjectParts
from punie_workers.questions import Questions
from punie_workers.updates import title

PATIENCE = 10.0
COMMAND = define(DeleteFile, EditResult, Permission.EXECUTE)
NO_PROMPT = PromptPermissions()


class Rig:
    """A gate, and the other end of its worker's link."""

    def __init__(
        self,
        outlet: Outlet,
        peer: FrameLink[ToSupervisor],
        questions: Questions,
        settings: ProjectSettings,
        user: PermissionSettings,
    ) -> None:
        self.outlet = outlet
        self.peer = peer
        self.questions = questions
        self.settings = settings
        self.grants: list[Grant] = []
        self.trusted: list[str] = []
        self.notices: list[str] = []
        self.store_error: WireError | None = None
        self.on_disk: asyncio.Event | None = None
        self.storing = asyncio.Event()
        self.gate = Gate("s1", questions, user, settings, self.store_grant, self.store_trust)

    async def store_grant(self, grant: Grant) -> None:
        self.storing.set()
        if self.on_disk is not None:
            await self.on_disk.wait()
        if self.store_error is not None:
            raise PunieError(self.store_error)
        self.grants.append(grant)

    async def store_trust(self, digest: str) -> None:
        self.trusted.append(digest)

    async def message(self) -> Envelope:
        """The next message of the session as it is on the wire."""
        async with asyncio.timeout(PATIENCE):
            message = await self.peer.receive()
        assert isinstance(message, AgentMessage)
        return jsonrpc.decode(message.body)

    async def question(self) -> Asked:
        """The next message, which is a question."""
        envelope = await self.message()
        assert envelope.method == "session/request_permission"
        assert isinstance(envelope.params, msgspec.Raw)
        return Asked(self, str(envelope.id), msgspec.json.decode(envelope.params))

    async def closed(self, asked: Asked) -> None:
        """The next message takes that question back."""
        envelope = await self.message()
        assert envelope.method == "$/cancel_request"
        assert isinstance(envelope.params, msgspec.Raw)
        assert msgspec.json.decode(envelope.params) == {"requestId": asked.id}

    async def quiet(self) -> None:
        """Nothing has been sent that was not received."""
        self.outlet.send_nowait(jsonrpc.notification("test/marker", {}))
        assert (await self.message()).method == "test/marker"

    def admit(self, *args: Any, **fields: Any) -> asyncio.Task[None]:
        return asyncio.create_task(self.gate.admit(call(*args, **fields)))

    async def begin(self, prompt: PromptPermissions = NO_PROMPT) -> ProjectParts:
        return await self.gate.begin(prompt, self.notices.append)


class Asked:
    """A question that came."""

    def __init__(self, rig: Rig, id: str, params: dict[str, Any]) -> None:
        self.id = id
        self.params = params
        self._rig = rig

    @property
    def tool_call(self) -> dict[str, Any]:
        return self.params["toolCall"]

    def answer(self, body: bytes) -> bool:
        return self._rig.questions.answered(jsonrpc.decode(body))

    def select(self, option: str) -> bool:
        outcome = {"outcome": {"outcome": "selected", "optionId": option}}
        return self.answer(jsonrpc.response(self.id, outcome))

    def fail(self, error: WireError) -> bool:
        return self.answer(jsonrpc.failure(self.id, error))


def call(
    *paths: str,
    tool: Tool = TOOLS["delete_file"],
    command: tuple[str, ...] = (),
    diffs: tuple[FileDiff, ...] = (),
    permissions: PromptPermissions = NO_PROMPT,
) -> Admission:
    async def run() -> Result:
        raise AssertionError("the gate runs nothing")

    return Admission(
        call_id="q1:1",
        tool=tool,
        arguments=DeleteFile(path=paths[0] if paths else "a.py"),
        action=Action(Subject(paths, command), diffs, run),
        title="delete_file: a.py",
        permissions=permissions,
    )


@contextlib.asynccontextmanager
async def rigged(
    root: Path, settings: PermissionSettings | None = None, trusted: str = ""
) -> AsyncGenerator[Rig]:
    ours, theirs = socket.socketpair()
    link = await FrameLink.over(ours, MessageDecoder("worker", ToWorker), name="supervisor")
    peer = await FrameLink.over(theirs, MessageDecoder("supervisor", ToSupervisor), name="worker")
    halves = Halves(real(root), Abandoned(lambda: None))
    await halves.start()
    try:
        outlet = Outlet(link, "s1")
        questions = Questions("s1", outlet)
        project = ProjectSettings(halves, root.name, trusted)
        rig = Rig(outlet, peer, questions, project, settings or PermissionSettings())
        yield rig
    finally:
        link.abort("test over")
        peer.abort("test over")
        halves.stop()
        await asyncio.to_thread(halves._half.join, PATIENCE)


def go(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE):
            await main()

    asyncio.run(bounded())


async def refused(admitting: asyncio.Task[None]) -> str:
    """Why the call may not happen."""
    with pytest.raises(PunieError) as caught:
        await admitting
    assert isinstance(caught.value.error, Denied)
    assert caught.value.error.hint
    return caught.value.error.message


def real(path: Path) -> str:
    return os.path.realpath(path)


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(text)


def test_what_is_decided_is_not_asked(tmp_path: Path) -> None:
    settings = PermissionSettings(
        allow=[Rule(path="src/**")], deny=[Rule(path="src/secret/**"), Rule(command="git push")]
    )

    async def main() -> None:
        async with rigged(tmp_path, settings) as rig:
            await rig.admit("src/a.py")
            text = await refused(rig.admit("src/secret/a.py"))
            assert text == (
                "delete_file was not done: rule deny path=src/secret/** in the user's settings; "
                "do not try it again"
            )
            by_prompt = PromptPermissions(allow=[Permission.EDIT])
            await rig.admit("docs/a.md", permissions=by_prompt)
            await refused(rig.admit("src/secret/a.py", permissions=by_prompt))
            await refused(rig.admit(tool=COMMAND, command=("git", "push")))
            read_only = PromptPermissions(mode=Mode.READ_ONLY)
            assert "read-only mode" in await refused(rig.admit("src/a.py", permissions=read_only))
            await rig.quiet()
            assert rig.grants == []

    go(main)


ANSWERS = [
    # the answer, what the model is told, what is stored, the next call: happens, is refused, asks
    (Answer.ALLOW_ONCE, "", None, "asks"),
    (Answer.ALLOW_FOR_SESSION, "", True, "happens"),
    (Answer.REJECT_ONCE, "the user rejected it", None, "asks"),
    (Answer.REJECT_ALWAYS, "the user rejected it for the rest of the session", False, "refused"),
]


@pytest.mark.parametrize(("answer", "told", "stored", "then"), ANSWERS)
@pytest.mark.parametrize(
    ("tool", "command", "key"),
    [
        (TOOLS["delete_file"], (), "edit"),
        (COMMAND, ("git", "push", "a b"), "execute:git push 'a b'"),
    ],
)
def test_every_answer(
    tmp_path: Path,
    answer: Answer,
    told: str,
    stored: bool | None,
    then: str,
    tool: Tool,
    command: tuple[str, ...],
    key: str,
) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            first = rig.admit("a.py", tool=tool, command=command)
            assert (await rig.question()).select(answer)
            if told:
                assert told in await refused(first)
            else:
                await first
            assert rig.grants == ([] if stored is None else [Grant(key=key, allow=stored)])
            second = rig.admit("b.py", tool=tool, command=command)
            match then:
                case "happens":
                    await second
                case "refused":
                    await refused(second)
                case _:
                    assert (await rig.question()).select(Answer.ALLOW_ONCE)
                    await second
            if command:  # another command is another matter
                third = rig.admit(tool=tool, command=(*command, "--force"))
                assert (await rig.question()).select(Answer.ALLOW_ONCE)
                await third
            await rig.quiet()

    go(main)


def test_what_is_shown(tmp_path: Path) -> None:
    long = "x" * 100_000
    changes = [FileDiff("a.py", "old\n", "new\n"), FileDiff("b/c.py", None, long)]
    changes += [FileDiff(f"{n}.py", "", None) for n in range(MAX_DIFFS)]

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            admitting = rig.admit("a.py", "b/c.py", diffs=tuple(changes))
            asked = await rig.question()
            assert asked.params["sessionId"] == "s1"
            assert asked.tool_call["toolCallId"] == "q1:1"
            assert asked.tool_call["title"] == "delete_file: a.py"
            assert asked.tool_call["kind"] == "delete"
            assert asked.tool_call["rawInput"]["path"] == "a.py"
            first, second, *_, rest = asked.tool_call["content"]
            root = real(tmp_path)
            assert first == {
                "type": "diff",
                "path": f"{root}/a.py",
                "oldText": "old\n",
                "newText": "new\n",
            }
            assert second["path"] == f"{root}/b/c.py"
            assert "oldText" not in second
            assert second["newText"].endswith("… cut, 34464 more characters")
            assert len(asked.tool_call["content"]) == MAX_DIFFS + 1
            assert rest["content"]["text"].startswith("2 more files")
            assert [(one["optionId"], one["kind"]) for one in asked.params["options"]] == [
                ("allow-once", "allow_once"),
                ("allow-for-session", "allow_always"),
                ("reject-once", "reject_once"),
                ("reject-always", "reject_always"),
            ]
            asked.select(Answer.ALLOW_ONCE)
            await admitting

    go(main)


def _no_answer(id: str) -> dict[str, bytes]:
    error = TimedOut(message="nobody answered within 600 s", limit_s=600.0)
    return {
        "nobody answered within 600 s": jsonrpc.failure(id, error),
        "nobody allowed it: the question was dismissed": jsonrpc.response(
            id, {"outcome": {"outcome": "cancelled"}}
        ),
        "'maybe' was not among the options": jsonrpc.response(
            id, {"outcome": {"outcome": "selected", "optionId": "maybe"}}
        ),
        "answer could not be read": jsonrpc.response(id, {"outcome": 3}),
        "the client could not ask: no dialogs": jsonrpc.failure(
            id, Internal(message="no dialogs"), code=-32603
        ),
        "the client could not ask: what?": jsonrpc.encode(
            Envelope(id=id, error=msgspec.Raw(b'{"code": "x", "message": "what?"}'))
        ),
        "the client's answer could": jsonrpc.encode(Envelope(id=id, error=msgspec.Raw(b"3"))),
    }


@pytest.mark.parametrize("reason", list(_no_answer("")))
def test_no_answer_is_no(tmp_path: Path, reason: str) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            admitting = rig.admit("a.py")
            asked = await rig.question()
            assert asked.answer(_no_answer(asked.id)[reason])
            assert reason in await refused(admitting)
            assert rig.grants == []
            again = rig.admit("a.py")
            assert (await rig.question()).select(Answer.ALLOW_ONCE)
            await again

    go(main)


def test_a_question_is_not_open_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions_module, "LIMIT", 0.01)

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            admitting = rig.admit("a.py")
            asked = await rig.question()
            assert "nobody answered within" in await refused(admitting)
            await rig.closed(asked)
            assert not asked.select(Answer.ALLOW_ONCE)

    go(main)


def test_a_cancelled_call_takes_its_question_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            admitting, waiting = rig.admit("a.py"), rig.admit("b.py")
            asked = await rig.question()
            admitting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await admitting
            await rig.closed(asked)
            assert not asked.select(Answer.ALLOW_FOR_SESSION)
            assert (await rig.question()).select(Answer.ALLOW_ONCE)
            await waiting
            assert rig.grants == []

    go(main)


def test_an_answer_to_no_question(tmp_path: Path) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            admitting = rig.admit("a.py")
            asked = await rig.question()
            for id in ("q0", 1, None):
                assert not rig.questions.answered(jsonrpc.decode(jsonrpc.response(id, {})))
            assert asked.select(Answer.ALLOW_ONCE)
            assert not asked.select(Answer.REJECT_ONCE), "the first answer wins"
            await admitting

    go(main)


def test_two_calls_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            one, two = rig.admit("a.py"), rig.admit("b.py")
            asked = await rig.question()
            assert asked.tool_call["rawInput"]["path"] == "a.py"
            await rig.quiet()
            asked.select(Answer.ALLOW_ONCE)
            await one
            other = await rig.question()
            assert other.tool_call["rawInput"]["path"] == "b.py"
            assert other.id != asked.id
            other.select(Answer.REJECT_ONCE)
            await refused(two)

    go(main)


@pytest.mark.parametrize("answer", [Answer.ALLOW_FOR_SESSION, Answer.REJECT_ALWAYS])
def test_a_second_call_that_the_answer_covers_is_not_asked_about(
    tmp_path: Path, answer: Answer
) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            calls = [rig.admit("a.py"), rig.admit("b.py")]
            (await rig.question()).select(answer)
            for admitting in calls:
                if answer is Answer.ALLOW_FOR_SESSION:
                    await admitting
                else:
                    await refused(admitting)
            assert len(rig.grants) == 1
            await rig.quiet()

    go(main)


@pytest.mark.parametrize(
    ("mode", "happens"), [(Mode.TRUSTED, True), (Mode.ACCEPT_EDITS, True), (Mode.READ_ONLY, False)]
)
def test_a_mode_counts_at_once(tmp_path: Path, mode: Mode, happens: bool) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            admitting = rig.admit("a.py")
            asked = await rig.question()
            rig.gate.mode = mode
            if happens:
                await admitting
            else:
                assert "read-only mode" in await refused(admitting)
            await rig.closed(asked)
            assert not asked.select(Answer.REJECT_ALWAYS)
            assert rig.grants == []

    go(main)


def test_a_mode_that_decides_nothing_leaves_the_question(tmp_path: Path) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            admitting = rig.admit(tool=COMMAND, command=("ls",))
            asked = await rig.question()
            rig.gate.mode = Mode.ACCEPT_EDITS
            await rig.quiet()
            asked.select(Answer.ALLOW_ONCE)
            await admitting

    go(main)


def test_an_answer_for_the_session_is_durable_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            rig.on_disk = asyncio.Event()
            admitting = rig.admit("a.py")
            (await rig.question()).select(Answer.ALLOW_FOR_SESSION)
            await rig.storing.wait()
            second = rig.admit("b.py")
            await rig.quiet()
            assert not admitting.done()
            assert not second.done()
            rig.on_disk.set()
            await admitting
            await second
            assert rig.grants == [Grant(key="edit", allow=True)]

    go(main)


def test_an_answer_that_cannot_be_stored(tmp_path: Path) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            rig.store_error = Internal(message="disk full")
            admitting = rig.admit("a.py")
            (await rig.question()).select(Answer.ALLOW_FOR_SESSION)
            with pytest.raises(PunieError, match="disk full"):
                await admitting
            again = rig.admit("a.py")
            (await rig.question()).select(Answer.REJECT_ALWAYS)
            with pytest.raises(PunieError, match="disk full"):
                await again
            await refused(rig.admit("a.py"))
            await rig.quiet()

    go(main)


def test_answers_from_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with rigged(tmp_path) as rig:
            rig.gate.restore([Grant(key="edit", allow=True), Grant(key="execute:ls", allow=False)])
            await rig.admit("a.py")
            await refused(rig.admit(tool=COMMAND, command=("ls",)))
            await rig.quiet()

    go(main)


def test_rules_that_can_do_nothing_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with rigged(tmp_path, PermissionSettings(deny=[Rule(tool="read_file")])):
            raise AssertionError

    with pytest.raises(PunieError, match=r"permissions.deny\[0\].tool"):
        go(main)


# the project's own settings

SETTINGS = """\
[tool.punie]
instructions = "Be brief."
[tool.punie.permissions]
mode = "accept-edits"
allow = [{ command = "make test" }]
deny = [{ path = "*.lock" }]
"""


def test_a_project_without_settings(tmp_path: Path) -> None:
    write(tmp_path, PYPROJECT, "[project]\nname = 'x'\n")

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            assert await rig.begin() == ProjectParts(name=tmp_path.name)
            await rig.quiet()
            assert rig.notices == []

    go(main)


def test_trusted_once(tmp_path: Path) -> None:
    write(tmp_path, PYPROJECT, SETTINGS)

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            beginning = asyncio.create_task(rig.begin())
            asked = await rig.question()
            assert PYPROJECT in asked.tool_call["title"]
            effect, file = [one["content"]["text"] for one in asked.tool_call["content"]]
            assert effect.splitlines()[1:] == [
                "mode: accept-edits",
                "allow command=make test",
                "deny path=*.lock",
                "tell the model:",
                "Be brief.",
            ]
            assert SETTINGS in file
            assert [(one["optionId"], one["kind"]) for one in asked.params["options"]] == [
                ("trust-settings", "allow_always"),
                ("ignore-settings", "reject_once"),
            ]
            asked.select(TrustAnswer.TRUST)
            parts = await beginning
            assert parts == ProjectParts(name=tmp_path.name, instructions="Be brief.")
            digest = settings_digest({PYPROJECT: SETTINGS.encode()})
            assert rig.trusted == [digest] == [rig.settings.trusted]
            await rig.admit("a.py")
            await rig.admit(tool=COMMAND, command=("make", "test", "-j"))
            assert "project's settings" in await refused(rig.admit("uv.lock"))
            assert await rig.begin() == parts == await rig.settings.parts()
            await rig.quiet()

    go(main)


@pytest.mark.parametrize("dismissed", [True, False])
def test_ignored_for_the_session_until_a_byte_changes(tmp_path: Path, dismissed: bool) -> None:
    write(tmp_path, PYPROJECT, SETTINGS)

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            beginning = asyncio.create_task(rig.begin())
            asked = await rig.question()
            if dismissed:
                asked.fail(TimedOut(message="nobody", limit_s=1.0))
            else:
                asked.select(TrustAnswer.IGNORE)
            assert (await beginning).instructions == ""
            assert (await rig.begin()).instructions == ""
            assert (await rig.settings.parts()).instructions == ""
            admitting = rig.admit("a.py")
            assert (await rig.question()).select(Answer.ALLOW_ONCE)
            await admitting
            before = (tmp_path / PYPROJECT).stat()
            write(tmp_path, PYPROJECT, SETTINGS.replace("brief", "Brief"))
            os.utime(tmp_path / PYPROJECT, ns=(before.st_atime_ns, before.st_mtime_ns))
            beginning = asyncio.create_task(rig.begin())
            assert (await rig.question()).select(TrustAnswer.TRUST)
            assert (await beginning).instructions == "Be Brief."
            assert len(rig.trusted) == 1

    go(main)


DISMISSED = {"outcome": {"outcome": "cancelled"}}


@pytest.mark.parametrize("how", ["dismissed", "nobody", "faulty"])
def test_changed_settings_end_the_turn_unless_somebody_answers(tmp_path: Path, how: str) -> None:
    write(tmp_path, CONFIG, "modes = 1\n" if how == "faulty" else 'instructions = "new"\n')

    async def main() -> None:
        async with rigged(tmp_path, trusted="other settings") as rig:
            for _ in range(2):
                beginning = asyncio.create_task(rig.begin())
                if how == "dismissed":
                    asked = await rig.question()
                    asked.answer(jsonrpc.response(asked.id, DISMISSED))
                elif how == "nobody":
                    (await rig.question()).fail(TimedOut(message="nobody", limit_s=1.0))
                with pytest.raises(PunieError) as caught:
                    await beginning
                error = caught.value.error
                assert isinstance(error, Denied)
                assert error.message.startswith(
                    "this project's settings have changed since you trusted them"
                )
                assert CONFIG in error.message
                assert "punie trust" in error.hint
            await rig.begin(PromptPermissions(mode=Mode.READ_ONLY))
            assert [f"({CONFIG}) are ignored: they have changed" in one for one in rig.notices] == [
                how != "faulty"
            ]
            if how != "faulty":
                beginning = asyncio.create_task(rig.begin())
                assert (await rig.question()).select(TrustAnswer.IGNORE)
                assert (await beginning).instructions == ""
                await rig.begin()
            await rig.quiet()

    go(main)


def test_only_a_question_is_a_wait(tmp_path: Path) -> None:
    write(tmp_path, CONFIG, 'instructions = "x"\n')
    waits = list[str]()

    @contextlib.contextmanager
    def asking() -> Generator[None]:
        waits.append("asks")
        yield
        waits.append("answered")

    async def main() -> None:
        async with rigged(tmp_path, PermissionSettings(allow=[Rule(path="src/**")])) as rig:
            read_only = PromptPermissions(mode=Mode.READ_ONLY)
            await rig.gate.begin(read_only, rig.notices.append, asking)
            await rig.gate.admit(call("src/a.py"), asking)
            with pytest.raises(PunieError):
                await rig.gate.admit(call("a.py", permissions=read_only), asking)
            assert waits == []
            beginning = asyncio.create_task(rig.gate.begin(NO_PROMPT, rig.notices.append, asking))
            asked = await rig.question()
            assert waits == ["asks"]
            assert asked.select(TrustAnswer.TRUST)
            await beginning
            admitting = asyncio.create_task(rig.gate.admit(call("a.py"), asking))
            asked = await rig.question()
            assert waits == ["asks", "answered", "asks"]
            assert asked.select(Answer.ALLOW_ONCE)
            await admitting
            assert waits == ["asks", "answered"] * 2

    go(main)


def test_a_move_is_shown_as_two_places(tmp_path: Path) -> None:
    diffs = (FileDiff("big.txt", "x", None), FileDiff("e/big.txt", None, "x"))

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            admitting = rig.admit("big.txt", "e/big.txt", tool=TOOLS["move_file"], diffs=diffs)
            asked = await rig.question()
            assert "content" not in asked.tool_call
            assert asked.select(Answer.ALLOW_ONCE)
            await admitting

    assert title("move_file", {"path": "big.txt", "destination": "e/big.txt"}) == (
        "move_file: big.txt → e/big.txt"
    )
    assert title("delete_file", {"path": "README.md"}) == "delete_file: README.md"
    go(main)


def test_a_cancelled_turn_asks_again(tmp_path: Path) -> None:
    write(tmp_path, PYPROJECT, SETTINGS)

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            beginning = asyncio.create_task(rig.begin())
            asked = await rig.question()
            beginning.cancel()
            with pytest.raises(asyncio.CancelledError):
                await beginning
            await rig.closed(asked)
            beginning = asyncio.create_task(rig.begin())
            assert (await rig.question()).select(TrustAnswer.IGNORE)
            await beginning
            assert rig.trusted == []

    go(main)


@pytest.mark.parametrize("whose", ["prompt", "session"])
def test_read_only_says_that_settings_are_ignored(tmp_path: Path, whose: str) -> None:
    write(tmp_path, CONFIG, 'instructions = "x"\n')

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            prompt = PromptPermissions(mode=Mode.READ_ONLY if whose == "prompt" else None)
            rig.gate.mode = Mode.READ_ONLY if whose == "session" else None
            for _ in range(2):
                assert (await rig.begin(prompt)).instructions == ""
            assert rig.notices == [
                f"this project's settings ({CONFIG}) are ignored: nobody said to trust them"
            ]
            await rig.quiet()

    go(main)


def test_what_is_trusted_holds_for_the_turn_and_no_longer(tmp_path: Path) -> None:
    write(tmp_path, PYPROJECT, SETTINGS)
    digest = settings_digest({PYPROJECT: SETTINGS.encode()})

    async def main() -> None:
        async with rigged(tmp_path, trusted=digest) as rig:
            assert (await rig.begin()).instructions == "Be brief."
            write(tmp_path, PYPROJECT, SETTINGS.replace("accept-edits", "trusted"))
            await rig.admit("a.py")
            waiting = rig.admit(tool=COMMAND, command=("ls",))
            assert (await rig.question()).select(Answer.REJECT_ONCE)
            await refused(waiting)
            beginning = asyncio.create_task(rig.begin())
            assert (await rig.question()).select(TrustAnswer.IGNORE)
            await beginning
            waiting = rig.admit("a.py")
            assert (await rig.question()).select(Answer.REJECT_ONCE)
            await refused(waiting)

    go(main)


def test_trust_that_is_taken_back_ends_at_once(tmp_path: Path) -> None:
    write(tmp_path, PYPROJECT, SETTINGS)
    digest = settings_digest({PYPROJECT: SETTINGS.encode()})

    async def main() -> None:
        async with rigged(tmp_path, trusted=digest) as rig:
            await rig.begin()
            await rig.admit("a.py")
            rig.settings.trusted = ""
            waiting = rig.admit("a.py")
            assert (await rig.question()).select(Answer.REJECT_ONCE)
            await refused(waiting)

    go(main)


def test_a_trusted_project_takes_no_deny_rule_back(tmp_path: Path) -> None:
    text = '[permissions]\nmode = "trusted"\nallow = [{ tool = "edit" }]\n'
    write(tmp_path, CONFIG, text)
    digest = settings_digest({CONFIG: text.encode()})

    async def main() -> None:
        settings = PermissionSettings(deny=[Rule(path="secret/**")])
        async with rigged(tmp_path, settings, digest) as rig:
            await rig.begin()
            await rig.admit("a.py")
            assert "user's settings" in await refused(rig.admit("secret/key"))

    go(main)


def test_faulty_settings(tmp_path: Path) -> None:
    write(tmp_path, CONFIG, "[permissions]\nmodes = 1\n")
    fault = ".punie/config.toml: Object contains unknown field `modes` - at `$.permissions`"

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            await rig.begin()
            await rig.begin()
            assert rig.notices == [f"this project's settings are ignored: {fault}"]
            await rig.quiet()
            rig.settings.trusted = (await rig.settings.load()).digest
            for loading in (rig.begin(), rig.settings.parts()):
                with pytest.raises(PunieError) as caught:
                    await loading
                assert caught.value.error == InvalidRequest(message=fault)

    go(main)


def test_agents_md(tmp_path: Path) -> None:
    write(tmp_path, "AGENTS.md", "\ufeffUse tabs.\n")

    async def main() -> None:
        async with rigged(tmp_path) as rig:
            assert (await rig.begin()).agents == "Use tabs."
            write(tmp_path, "AGENTS.md", "ä" * MAX_AGENTS)
            agents = (await rig.begin()).agents
            assert agents == "ä" * (MAX_AGENTS // 2) + "\n… cut: AGENTS.md is longer than 16 KB"
            (tmp_path / "AGENTS.md").unlink()
            assert (await rig.begin()).agents == ""
            assert rig.notices == []

    go(main)


def test_files_that_are_not_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path, "outside.toml", 'instructions = "x"')
    root.mkdir()
    write(root, PYPROJECT, SETTINGS + "#" * 300_000)
    (root / ".punie").mkdir()
    (root / CONFIG).symlink_to("../../outside.toml")
    (root / "AGENTS.md").mkdir()

    async def main() -> None:
        async with rigged(root) as rig:
            assert await rig.begin() == ProjectParts(name="root")
            assert sorted(rig.notices) == [
                ".punie/config.toml is not read: '.punie/config.toml' is outside this project",
                "AGENTS.md is not read: 'AGENTS.md' is a folder, not a file",
                "pyproject.toml is not read for settings: it is larger than 256 KB",
            ]
            await rig.quiet()

    go(main)
