"""What is said about a project while it is being opened: kept in order until it is. Pure.

A disk that does not answer holds up that one project, and nobody else in the process.
"""

from punie_protocol.messages.to_worker import (
    AskCommands,
    ClientMessage,
    CloseProject,
    CloseSession,
    DescribePrompt,
    OpenProject,
    OpenSession,
    SessionHistory,
    SetMode,
    SetUnconfined,
    TrustProject,
)

type OfProject = (
    OpenProject | CloseProject | TrustProject | SetUnconfined | DescribePrompt | AskCommands
)
type OfSession = OpenSession | SessionHistory | CloseSession | SetMode | ClientMessage
type Held = OfProject | OfSession


class Openings:
    """The projects that are being opened, each with what came for it since."""

    def __init__(self) -> None:
        self._held: dict[str, list[Held]] = {}
        self._sessions: dict[str, str] = {}

    def begin(self, project_id: str) -> None:
        """From now on keep what comes for the project."""
        self._held[project_id] = []

    def keep(self, message: Held) -> bool:
        """Keep the message if its project is being opened; return whether that is so."""
        match message:
            case OpenSession(session_id=session_id, project_id=project_id):
                if project_id in self._held:
                    self._sessions[session_id] = project_id
            case SessionHistory() | CloseSession() | SetMode() | ClientMessage():
                project_id = self._sessions.get(message.session_id, "")
            case _:
                project_id = message.project_id
        held = self._held.get(project_id)
        if held is not None:
            held.append(message)
        return held is not None

    def end(self, project_id: str) -> list[Held]:
        """It is open, or failed to: return what came meanwhile, in order."""
        self._sessions = {s: p for s, p in self._sessions.items() if p != project_id}
        return self._held.pop(project_id, [])
