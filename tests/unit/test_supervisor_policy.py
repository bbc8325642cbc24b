"""Restart policy, child specs, placement: decisions without processes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.errors import PunieError
from punie_protocol.messages.common import Role
from punie_supervisor import roots
from punie_supervisor.child_spec import ChildSpec, Restart, child_environment
from punie_supervisor.restart_policy import (
    MAX_BACKOFF,
    GiveUp,
    LetRest,
    RestartPolicy,
    StartAgain,
)
from punie_supervisor.worker import HISTORY_CHUNK, history_chunks


@pytest.mark.parametrize(
    ("restart", "failed", "again"),
    [
        (Restart.PERMANENT, True, True),
        (Restart.PERMANENT, False, True),
        (Restart.TRANSIENT, True, True),
        (Restart.TRANSIENT, False, False),
        (Restart.TEMPORARY, True, False),
        (Restart.TEMPORARY, False, False),
    ],
)
def test_restart_types(restart: Restart, failed: bool, again: bool):
    decision = RestartPolicy(restart).ended(0.0, failed=failed)
    assert decision == (StartAgain(0.0) if again else LetRest())


def test_backoff_doubles_and_the_intensity_is_final():
    policy = RestartPolicy(Restart.PERMANENT, intensity=5, period_s=180)
    decisions = [policy.ended(float(t), failed=True) for t in range(6)]
    assert decisions[:5] == [StartAgain(s) for s in (0.0, 0.25, 0.5, 1.0, 2.0)]
    assert isinstance(decisions[5], GiveUp)
    assert "tries again once that time has passed, or after: punie restart" in decisions[5].reason
    assert not policy.may_start(179.9)
    assert policy.may_start(180.0)


def test_a_child_that_cannot_work_is_given_up_at_once():
    decision = RestartPolicy(Restart.PERMANENT).ended(0.0, failed=True, hopeless=True)
    assert isinstance(decision, GiveUp)


def test_forgiving_starts_the_count_anew():
    policy = RestartPolicy(Restart.PERMANENT, intensity=1)
    policy.ended(0.0, failed=True)
    policy.forgive()
    assert policy.ended(1.0, failed=True) == StartAgain(0.0)


@given(
    st.lists(st.integers(0, 100), max_size=60),
    st.integers(1, 8),
    st.integers(1, 300),
)
def test_never_more_restarts_in_a_period_than_the_intensity(
    gaps: list[int], intensity: int, period: int
):
    policy = RestartPolicy(Restart.PERMANENT, intensity=intensity, period_s=period)
    now, restarts = 0, list[int]()
    for gap in gaps:
        now += gap
        match policy.ended(now, failed=True):
            case StartAgain(after_s=delay):
                restarts.append(now)
                assert 0 <= delay <= MAX_BACKOFF
            case GiveUp():
                assert len([t for t in restarts if now - t < period]) == intensity
            case LetRest():
                pytest.fail("a permanent child does not rest")
    for start in restarts:
        assert len([t for t in restarts if start <= t < start + period]) <= intensity


def test_the_control_socket_is_the_only_word_replaced():
    spec = ChildSpec(
        id="x",
        command=("p", "{fd}", "a{fd}b"),
        environment={},
        restart=Restart.PERMANENT,
    )
    assert spec.argv(7) == ["p", "7", "a{fd}b"]


def test_the_environment_is_an_allow_list():
    environ = {
        "HOME": "/h",
        "LC_ALL": "C",
        "PUNIE_HOME": "/p",
        "PUNIE_API_KEY": "no",
        "PUNIE_TOKEN": "no",
        "SSH_AUTH_SOCK": "no",
        "LD_PRELOAD": "no",
        "OPENBLAS_NUM_THREADS": "2",
    }
    shared = {"HOME": "/h", "LC_ALL": "C", "PUNIE_HOME": "/p"}
    assert child_environment(environ, Role.WORKER) == shared
    numeric = {"OPENBLAS_NUM_THREADS": "2"}
    assert child_environment(environ, Role.MODEL_HOST) == shared | numeric


def test_a_project_is_its_real_path(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "file").touch()
    root = roots.resolve_root(str(tmp_path / "link"))
    assert root == str(tmp_path / "a")
    assert len(roots.project_id(root)) == 16
    for wrong in ("relative", str(tmp_path / "file"), str(tmp_path / "none"), "/a\0b"):
        with pytest.raises(PunieError):
            roots.resolve_root(wrong)


@given(st.lists(st.integers(0, 2 * HISTORY_CHUNK), max_size=8))
def test_a_history_is_cut_into_chunks_that_fit(sizes: list[int]):
    whole = memoryview(bytes(2 * HISTORY_CHUNK))
    deltas = [whole[:size] for size in sizes]
    chunks = history_chunks(deltas)  # ty: ignore[invalid-argument-type]  # views: nothing is copied
    assert [delta for chunk in chunks for delta in chunk] == deltas
    assert all(chunks)
    for chunk in chunks:
        assert len(chunk) == 1 or sum(map(len, chunk)) <= HISTORY_CHUNK
