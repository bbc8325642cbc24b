"""Nothing goes out before every rank has said the same."""

from punie_model_host.accord import Accord, Minutes
from punie_model_host.engine_messages import Closed, Emission, Key, StatusIs, ToClient
from punie_protocol.engine import EngineStatus
from punie_protocol.errors import Cancelled, Internal
from punie_protocol.messages.to_model_client import Failed, TextDelta


def text(words: str, request_id: int = 1) -> ToClient:
    return ToClient(Key(1, request_id), TextDelta(request_id=request_id, text=words))


def digest_of(*turns: list[Emission]) -> bytes:
    """What a rank says after its last turn."""
    minutes, digest = Minutes(), b""
    for emissions in turns:
        for emission in emissions:
            minutes.add(emission)
        digest = minutes.close()
    return digest


class Desk:
    """Takes what an accord of ranks 1 and 2 lets out."""

    def __init__(self) -> None:
        self.out: list[Emission] = []
        self.quarrels: list[tuple[int, int]] = []
        self.accord = Accord(
            frozenset({1, 2}), self.out.append, lambda *who: self.quarrels.append(who)
        )

    def turn(self, *emissions: Emission) -> None:
        for emission in emissions:
            self.accord.add(emission)
        self.accord.close_turn()


def test_a_turn_goes_out_when_all_ranks_said_it():
    desk, said = Desk(), text("a")
    desk.turn(said)
    desk.accord.heard(1, 0, digest_of([said]))
    assert desk.out == []
    assert desk.accord.apart is not None
    desk.accord.heard(2, 0, digest_of([said]))
    assert desk.out == [said]
    assert desk.accord.apart is None
    assert desk.quarrels == []


def test_ranks_that_are_done_first_are_believed_later():
    desk, said = Desk(), text("a")
    desk.accord.heard(1, 0, digest_of([said]))
    desk.accord.heard(2, 0, digest_of([said]))
    assert desk.accord.apart is not None
    desk.turn(said)
    assert desk.out == [said]
    assert desk.accord.apart is None


def test_turns_go_out_in_order():
    desk, first, second = Desk(), text("a"), text("b")
    desk.turn(first)
    desk.turn(second)
    for rank in (1, 2):
        desk.accord.heard(rank, 0, digest_of([first]))
        assert desk.out == ([] if rank == 1 else [first])
    for rank in (2, 1):
        desk.accord.heard(rank, 1, digest_of([first], [second]))
    assert desk.out == [first, second]


def test_what_no_client_is_told_waits_only_for_what_came_before():
    desk, status, said = Desk(), StatusIs(EngineStatus()), text("a")
    desk.accord.add(status)
    assert desk.out == [status]
    desk.turn(said, Closed())
    assert desk.out == [status]
    for rank in (1, 2):
        desk.accord.heard(rank, 0, digest_of([said]))
    assert desk.out == [status, said, Closed()]


def test_a_rank_that_says_something_else_stops_everything():
    desk, said = Desk(), text("a")
    desk.turn(said)
    desk.accord.heard(1, 0, digest_of([text("b")]))
    desk.accord.heard(2, 0, digest_of([said]))
    desk.turn(said)
    for rank in (1, 2):
        desk.accord.heard(rank, 1, digest_of([said], [said]))
    assert desk.quarrels == [(1, 0)]
    assert desk.out == []


def test_saying_nothing_where_others_spoke_is_something_else():
    desk, said = Desk(), text("a")
    desk.turn(said)
    desk.accord.heard(1, 0, digest_of([]))
    assert desk.quarrels == [(1, 0)]


def test_the_same_words_to_another_request_are_something_else():
    desk = Desk()
    desk.turn(text("a", request_id=1))
    desk.accord.heard(1, 0, digest_of([text("a", request_id=2)]))
    assert desk.quarrels == [(1, 0)]


def test_errors_are_compared_by_kind():
    def failed(error: Internal | Cancelled) -> ToClient:
        return ToClient(Key(1, 1), Failed(request_id=1, error=error))

    here, there = Internal(message="on rank 0"), Internal(message="on rank 1")
    assert digest_of([failed(here)]) == digest_of([failed(there)])
    assert digest_of([failed(here)]) != digest_of([failed(Cancelled(message="on rank 0"))])


def test_a_turn_that_was_settled_cannot_be_said_again():
    desk = Desk()
    desk.turn()
    for rank in (1, 2):
        desk.accord.heard(rank, 0, digest_of([]))
    desk.accord.heard(1, 0, digest_of([]))
    assert desk.quarrels == [(1, 0)]
