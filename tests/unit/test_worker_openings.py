"""What comes for a project while it is being opened."""

from punie_protocol.messages.to_worker import (
    ClientMessage,
    CloseProject,
    CloseSession,
    OpenSession,
    SetMode,
    TrustProject,
)
from punie_protocol.permissions import Mode
from punie_workers.openings import Openings


def test_what_comes_for_it_waits_in_order_and_nothing_else_does() -> None:
    openings = Openings()
    openings.begin("p")
    of_it = [
        OpenSession(session_id="s", project_id="p", deltas=[]),
        TrustProject(project_id="p", trusted="x"),
        ClientMessage(session_id="s", body=b"{}"),
        SetMode(session_id="s", mode=Mode.ASK),
        CloseSession(session_id="s", reason="over"),
        CloseProject(project_id="p", reason="over"),
    ]
    of_others = [
        OpenSession(session_id="t", project_id="q", deltas=[]),
        ClientMessage(session_id="t", body=b"{}"),
        CloseProject(project_id="q", reason="over"),
    ]
    assert [openings.keep(message) for message in of_it] == [True] * len(of_it)
    assert [openings.keep(message) for message in of_others] == [False] * len(of_others)
    assert openings.end("p") == of_it
    assert openings.end("p") == []
    assert not openings.keep(of_it[2])
