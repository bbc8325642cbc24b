"""The one place where a session's tool calls with effects are let through, asked for, or refused.

What decides is `policy`; here is who is asked, what an answer means from then on, and whether the
project's own settings count.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from punie_protocol.errors import Denied, PunieError, WireError
from punie_protocol.permissions import (
    NEEDS_MORE,
    Answer,
    Grant,
    Mode,
    PermissionSettings,
    PromptPermissions,
    TrustAnswer,
    check_settings,
)
from punie_protocol.project_settings import ProjectPermissions
from punie_workers import dialogs
from punie_workers.dialogs import Admission
from punie_workers.policy import Decision, Rights, Verdict, decide, grant_key
from punie_workers.project_settings import Found, ProjectSettings
from punie_workers.prompts import ProjectParts
from punie_workers.questions import Questions, Reply

_GONE: Final = (
    "this project's settings, which you trusted, are gone, and their rules with them; "
    "if that is right: punie trust --revoke"
)

type Notice = Callable[[str], None]
"""Shows the user one line."""
type Asking = Callable[[], AbstractContextManager[None]]
"""Its context is open while somebody is asked."""


class Gate:
    """One session's. Making one raises `PunieError` when the user's rules cannot be used.

    `store_grant` and `store_trust` make an answer durable; what they raise goes to who asked.
    """

    def __init__(
        self,
        session_id: str,
        questions: Questions,
        settings: PermissionSettings,
        project: ProjectSettings,
        store_grant: Callable[[Grant], Awaitable[None]],
        store_trust: Callable[[str], Awaitable[None]],
    ) -> None:
        check_settings(settings)
        self._session_id = session_id
        self._questions = questions
        self._user = settings
        self._project = project
        self._store_grant = store_grant
        self._store_trust = store_trust
        self._grants: dict[str, bool] = {}
        self._mode: Mode | None = None
        self._found: Found | None = None
        self._ignored: set[str] = set()
        self._told: set[str] = set()
        self._asking = asyncio.Lock()
        self._open: Admission | None = None

    @property
    def mode(self) -> Mode | None:
        """The session's mode, ``None`` while it has none of its own. Set, it counts at once: a
        question that it decides is closed."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode | None) -> None:
        self._mode = mode
        if self._open is not None and self._decide(self._open).verdict is not Verdict.ASK:
            self._questions.withdraw()

    def restore(self, grants: Iterable[Grant]) -> None:
        """Take the session's answers from before."""
        self._grants |= {grant.key: grant.allow for grant in grants}

    async def begin(
        self, prompt: PromptPermissions, notice: Notice, asking: Asking = nullcontext
    ) -> ProjectParts:
        """Find out, at the start of a turn, whether the project's own settings count, and return
        what the model is told of the project. They hold, as they are now, until the next `begin`.

        Settings that are not trusted as they are, are asked about once a session; in a read-only
        prompt or session they are ignored. Raises `PunieError` for trusted ones that cannot be
        used, with `Denied` when others were trusted and nobody says what counts now, and when the
        answer cannot be stored.
        """
        self._found = None
        found = await self._project.load()
        for problem in found.problems:
            self._say_once(notice, problem)
        if found.digest and not self._project.trusts(found):
            await self._settle(found, prompt, notice, asking)
        elif self._project.trusted and not found.digest:
            self._say_once(notice, _GONE)
        trusted = self._project.trusts(found)
        self._found = found if trusted else None
        return self._project.parts_of(found, trusted=trusted)

    async def admit(self, call: Admission, asking: Asking = nullcontext) -> None:
        """Return when `call` may happen; ask when nothing else decides. Raises `PunieError` with
        `Denied`, for the model, when it may not, and what storing an answer raises: then nothing
        may happen either. Cancelled, it has closed its question."""
        decision = self._decide(call)
        if decision.verdict is Verdict.ASK:
            with asking():
                decision = await self._ask_in_turn(call)
        if decision.verdict is not Verdict.ALLOW:
            raise _denied(call, decision)

    def is_read_only(self, prompt: PromptPermissions) -> bool:
        """Whether a call of that prompt may change nothing, as things are now."""
        return self._rights(prompt).mode is Mode.READ_ONLY

    def _decide(self, call: Admission) -> Decision:
        rights = self._rights(call.permissions)
        return decide(call.tool.permission, call.tool.name, call.action.subject, rights)

    def _rights(self, prompt: PromptPermissions) -> Rights:
        return Rights(
            user=self._user,
            project=self._of_project(),
            session_mode=self._mode,
            prompt=prompt,
            grants=self._grants,
        )

    def _of_project(self) -> ProjectPermissions:
        """Return what the project's settings say, while the user trusts them."""
        found = self._found
        if found is None or found.digest != self._project.trusted:
            return ProjectPermissions()
        return found.config.permissions

    async def _ask_in_turn(self, call: Admission) -> Decision:
        async with self._asking:  # one dialog after the other, in order
            return await self._ask(call)

    async def _ask(self, call: Admission) -> Decision:
        """Ask until it is decided: by an answer, or by what changed meanwhile."""
        while (decision := self._decide(call)).verdict is Verdict.ASK:
            self._open = call
            try:
                reply = await self._questions.ask(dialogs.about_call(call, self._project.root))
            finally:
                self._open = None
            if not reply.withdrawn:
                return await self._take(call, reply, decision)
        return decision

    async def _take(self, call: Admission, reply: Reply, asked: Decision) -> Decision:
        """Return what an answer decides; one for the session is durable before. Without one it is
        said why it was `asked` about, where more than leave for its class would have helped."""
        match reply.option:
            case Answer.ALLOW_ONCE:
                return Decision(Verdict.ALLOW, "the user allowed it")
            case Answer.ALLOW_FOR_SESSION:
                await self._grant(call, allow=True)
                return Decision(Verdict.ALLOW, "the user allowed it")
            case Answer.REJECT_ONCE:
                return Decision(Verdict.DENY, "the user rejected it")
            case Answer.REJECT_ALWAYS:
                await self._grant(call, allow=False)
                return Decision(Verdict.DENY, "the user rejected it for the rest of the session")
            case _:
                more = f"; {asked.reason}" if asked.reason in NEEDS_MORE else ""
                return Decision(Verdict.DENY, f"{reply.reason}{more}")

    async def _grant(self, call: Admission, *, allow: bool) -> None:
        key = grant_key(call.tool.permission, call.tool.name, call.action.subject)
        if not allow:
            self._grants[key] = False  # a no holds even when it cannot be stored
        await self._store_grant(Grant(key=key, allow=allow))
        self._grants[key] = allow

    async def _settle(
        self, found: Found, prompt: PromptPermissions, notice: Notice, asking: Asking
    ) -> None:
        """Say or ask whether settings that are not trusted shall count."""
        names, is_changed = " and ".join(found.files), bool(self._project.trusted)
        is_read_only = (prompt.mode or self._mode) is Mode.READ_ONLY
        if found.fault is not None:
            if is_changed and not is_read_only:
                raise _spoilt(found.fault)
            self._say_once(notice, f"this project's settings are ignored: {found.fault.message}")
        elif is_read_only:
            changed = "they have changed since you trusted them"
            why = changed if is_changed else "nobody said to trust them"
            self._say_once(notice, f"this project's settings ({names}) are ignored: {why}")
        elif found.digest not in self._ignored:
            with asking():
                await self._ask_for_trust(found)

    async def _ask_for_trust(self, found: Found) -> None:
        """Ask. Without an answer, settings that were never trusted are ignored; such as replace
        trusted ones are not: whoever relies on a rule there has not taken it back."""
        async with self._asking:
            reply = await self._questions.ask(dialogs.about_settings(self._session_id, found))
        if reply.option == TrustAnswer.TRUST:
            await self._store_trust(found.digest)
            self._project.trusted = found.digest
        elif reply.option is None and self._project.trusted:
            raise _changed(found)
        else:
            self._ignored.add(found.digest)

    def _say_once(self, notice: Notice, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            notice(text)


def _changed(found: Found) -> PunieError:
    names = " and ".join(found.files)
    return PunieError(
        Denied(
            message=f"this project's settings have changed since you trusted them: {names}",
            hint="look at them, then: punie trust",
        )
    )


def _spoilt(fault: WireError) -> PunieError:
    text = "this project's settings have changed since you trusted them, and cannot be used"
    return PunieError(
        Denied(
            message=f"{text}: {fault.message}",
            hint="mend them, or take the trust back: punie trust --revoke",
        )
    )


def _denied(call: Admission, decision: Decision) -> PunieError:
    return PunieError(
        Denied(
            message=f"{call.tool.name} was not done: {decision.reason}; do not try it again",
            hint="say what you wanted to do, and go on without it",
        )
    )
