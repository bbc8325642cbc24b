"""Who shares which worker process."""

from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.messages.common import Isolation
from punie_supervisor import crumbs
from punie_supervisor.placement import MAX_SHARING, Placement

ALONE, SHARED = Isolation.PROCESS, Isolation.INTERPRETER


def test_one_alone_is_alone_and_the_others_share():
    placement = Placement()
    a, b = placement.assign("a", ALONE), placement.assign("b", ALONE)
    c, d = placement.assign("c", SHARED), placement.assign("d", SHARED)
    assert len({a.worker_id, b.worker_id, c.worker_id}) == 3
    assert c == d
    assert placement.sharing(c.worker_id) == ["c", "d"]
    assert placement.assign("a", ALONE) == a


def test_a_shared_worker_takes_only_so_many():
    placement = Placement()
    placed = [placement.assign(str(n), SHARED).worker_id for n in range(MAX_SHARING + 1)]
    assert len(set(placed[:-1])) == 1
    assert placed[-1] != placed[0]


def test_turns_that_begin_while_it_drains_go_elsewhere():
    placement = Placement()
    old = placement.assign("a", SHARED)
    placement.assign("b", SHARED)
    assert placement.drain(old.worker_id, "it hangs")
    assert not placement.drain(old.worker_id, "again")
    assert placement.draining(old.worker_id) == "it hangs"
    assert placement.of("a") == old  # what runs there stays there
    new = placement.assign("a", SHARED)
    assert new.worker_id != old.worker_id
    assert placement.assign("b", SHARED) == new
    placement.retired(old.worker_id)
    assert placement.draining(old.worker_id) == ""
    assert placement.assign("c", SHARED) == new


def test_a_project_alone_whose_worker_drains_gets_another_of_its_own():
    placement = Placement()
    old = placement.assign("a", ALONE)
    placement.drain(old.worker_id, "it hangs")
    new = placement.assign("a", ALONE)
    assert new.worker_id not in (old.worker_id, placement.assign("b", ALONE).worker_id)


def test_another_level_is_another_place():
    placement = Placement()
    shared = placement.assign("a", SHARED)
    alone = placement.assign("a", ALONE)
    assert shared != alone
    assert placement.sharing(shared.worker_id) == []
    assert placement.leave("a") == alone
    assert placement.of("a") is None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["assign", "leave", "drain", "retire"]),
        st.sampled_from("abcdef"),
        st.sampled_from([ALONE, SHARED]),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_happens_one_alone_shares_with_nobody(
    events: list[tuple[str, str, Isolation]],
) -> None:
    placement = Placement()
    for event, project, isolation in events:
        placed = placement.of(project)
        match event:
            case "assign":
                now = placement.assign(project, isolation)
                assert now.isolation is isolation
                assert not placement.draining(now.worker_id)
            case "leave":
                placement.leave(project)
            case "drain" if placed:
                placement.drain(placed.worker_id, "for a reason")
            case "retire" if placed:
                placement.retired(placed.worker_id)
        for one in placement.projects:
            where = placement.of(one)
            assert where is not None
            others = [p for p in placement.sharing(where.worker_id) if p != one]
            assert where.isolation is SHARED or not others


def test_suspects_are_those_inside_a_call():
    slots = {"a": 0, "b": 2, "c": 5000}
    assert crumbs.suspects(b"\1\1\0", slots) == ["a"]
    assert crumbs.suspects(b"\0\1\1", slots) == ["b"]
    assert crumbs.suspects(b"", slots) == []
