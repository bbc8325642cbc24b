"""A journal in memory: what a worker asks to be durable, kept by the rules of the real one."""

from collections.abc import Callable

import msgspec

from punie_protocol.errors import InvalidRequest, NotFound, PunieError, WireError
from punie_protocol.messages.to_supervisor import (
    EffectFinished,
    EffectStarted,
    StoreDelta,
    StoreGrant,
    StoreTrust,
)
from punie_protocol.messages.to_worker import Effect
from punie_protocol.permissions import Grant, Mode

type StoreMessage = StoreDelta | EffectStarted | EffectFinished | StoreGrant | StoreTrust
type Refuse = Callable[[StoreMessage], WireError | None]


class StoredEffect(msgspec.Struct):
    """A tool call with effects, and where it stands: in the step before delta `ordinal`."""

    prompt_id: str
    ordinal: int
    effect: Effect


class SessionRecord(msgspec.Struct):
    """One session. `prompts` are the ids of the prompts that the deltas belong to."""

    project_id: str
    mode: Mode | None = None
    deltas: list[bytes] = msgspec.field(default_factory=list[bytes])
    prompts: list[str] = msgspec.field(default_factory=list[str])
    effects: dict[str, StoredEffect] = msgspec.field(default_factory=dict[str, StoredEffect])
    grants: list[Grant] = msgspec.field(default_factory=list[Grant])

    def open_effects(self) -> list[Effect]:
        """The effects of the step that no delta has ended, as `OpenSession` carries them."""
        last = len(self.deltas)
        return [one.effect for one in self.effects.values() if one.ordinal >= last]

    def stored(self, prompt_id: str) -> int:
        """How many deltas a prompt has."""
        return self.prompts.count(prompt_id)


class FakeJournal:
    """Keeps everything until it is dropped. With `refuse`, a message for which that returns an
    error is not stored, and answered with it."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionRecord] = {}
        self.trusts: dict[str, str] = {}
        self.messages: list[StoreMessage] = []
        self.refuse: Refuse | None = None

    def store(self, message: StoreMessage) -> WireError | None:
        """Store and return ``None``, or return why not."""
        self.messages.append(message)
        if self.refuse is not None and (error := self.refuse(message)) is not None:
            return error
        try:
            self._store(message)
        except PunieError as error:
            return error.error
        return None

    def _store(self, message: StoreMessage) -> None:
        match message:
            case StoreDelta():
                self._delta(message)
            case EffectStarted():
                self._started(message)
            case EffectFinished():
                self._finished(message)
            case StoreGrant(session_id=session_id, grant=grant):
                grants = self.session(session_id).grants
                grants[:] = [*(one for one in grants if one.key != grant.key), grant]
            case StoreTrust(project_id=project_id, digest=digest):
                self.trusts[project_id] = digest

    def session(self, session_id: str) -> SessionRecord:
        """Return a session. Raises `PunieError` when there is none."""
        if session_id not in self.sessions:
            message = f"no session {session_id}: it was never opened"
            raise PunieError(NotFound(message=message, what="session"))
        return self.sessions[session_id]

    def _delta(self, message: StoreDelta) -> None:
        record = self.session(message.session_id)
        if message.ordinal != len(record.deltas):
            text = f"delta {message.ordinal}: {len(record.deltas)} was expected"
            raise PunieError(InvalidRequest(message=text))
        record.deltas.append(message.data)
        record.prompts.append(message.prompt_id)

    def _started(self, message: EffectStarted) -> None:
        effects = self.session(message.session_id).effects
        if message.effect_id in effects:
            text = f"effect {message.effect_id} was begun before"
            raise PunieError(InvalidRequest(message=text))
        effect = Effect(
            effect_id=message.effect_id,
            tool=message.tool,
            arguments=message.arguments,
            ok=None,
            summary="",
        )
        effects[message.effect_id] = StoredEffect(message.prompt_id, message.ordinal, effect)

    def _finished(self, message: EffectFinished) -> None:
        found = self.session(message.session_id).effects.get(message.effect_id)
        if found is None or found.effect.ok is not None:
            text = f"effect {message.effect_id} is not under way"
            raise PunieError(InvalidRequest(message=text))
        found.effect = msgspec.structs.replace(found.effect, ok=message.ok, summary=message.summary)
