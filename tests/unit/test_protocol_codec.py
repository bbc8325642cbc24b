"""Frames and messages: what goes in comes out; everything else is one typed error."""

from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.codec import FrameDecoder, MessageDecoder, encode_frame
from punie_protocol.errors import (
    FrameInvalid,
    FrameTooLarge,
    FrameTruncated,
    MessageTooLarge,
    ProtocolError,
)
from punie_protocol.limits import FRAME_HEADER_SIZE
from punie_protocol.messages import to_supervisor, to_worker
from tests.support.messages import messages_of
from tests.support.samples import SAMPLES, UNIONS

WORKER = MessageDecoder[to_worker.ToWorker]("worker", to_worker.ToWorker)


def decode_all(data: bytes, pieces: list[int]) -> list[bytes]:
    """Feed `data` cut at `pieces` and return the payloads."""
    decoder = FrameDecoder()
    payloads: list[bytes] = []
    cuts = sorted({min(piece, len(data)) for piece in pieces} | {0, len(data)})
    for start, end in pairwise(cuts):
        decoder.feed(data[start:end])
        payloads += decoder.payloads()
    decoder.finish()
    return payloads


@pytest.mark.parametrize("receiver", sorted(UNIONS))
@given(data=st.data())
def test_any_message_round_trips(receiver: str, data: st.DataObject) -> None:
    message = data.draw(messages_of(UNIONS[receiver]))
    [payload] = decode_all(bytes(encode_frame(message)), [])
    assert MessageDecoder(receiver, UNIONS[receiver]).decode(payload) == message


@pytest.mark.parametrize("receiver", sorted(UNIONS))
def test_samples_cover_every_message(receiver: str) -> None:
    kinds = {type(sample) for sample in SAMPLES[receiver]}
    assert kinds == set(UNIONS[receiver].__value__.__args__)


@given(
    messages=st.lists(messages_of(to_worker.ToWorker), max_size=5),
    pieces=st.lists(st.integers(0, 2000), max_size=10),
)
def test_pieces_do_not_matter(messages: list[to_worker.ToWorker], pieces: list[int]) -> None:
    data = b"".join(encode_frame(message) for message in messages)
    assert [WORKER.decode(payload) for payload in decode_all(data, pieces)] == messages


@given(messages_of(to_worker.ToWorker), st.data())
def test_truncated_stream_is_one_error(message: to_worker.ToWorker, data: st.DataObject) -> None:
    frame = bytes(encode_frame(message))
    size = data.draw(st.integers(1, len(frame) - 1))
    decoder = FrameDecoder()
    decoder.feed(frame[:size])
    assert list(decoder.payloads()) == []
    with pytest.raises(FrameTruncated, match=f"{size} of"):
        decoder.finish()


@given(st.binary(max_size=300))
def test_garbage_is_a_message_or_one_error(data: bytes) -> None:
    decoder = FrameDecoder(limit=1000)
    decoder.feed(data)
    with suppress(ProtocolError):  # any other exception fails the test
        for payload in decoder.payloads():
            WORKER.decode(payload)
        decoder.finish()


@given(st.binary(max_size=300))
def test_garbage_payload_is_invalid(payload: bytes) -> None:
    with suppress(FrameInvalid):  # any other exception fails the test
        assert isinstance(WORKER.decode(payload), to_worker.ToWorker.__value__)


def test_oversized_length_is_refused_before_the_payload_is_kept() -> None:
    decoder = FrameDecoder(limit=10)
    decoder.feed((11).to_bytes(FRAME_HEADER_SIZE))
    with pytest.raises(FrameTooLarge, match="11 bytes is over the limit of 10"):
        list(decoder.payloads())


def test_oversized_message_is_refused_by_its_sender() -> None:
    with pytest.raises(MessageTooLarge, match="AgentMessage of"):
        encode_frame(to_supervisor.AgentMessage(session_id="s", body=b"x" * 100), limit=50)


def test_frames_before_a_bad_one_are_delivered() -> None:
    decoder = FrameDecoder(limit=1000)
    good = bytes(encode_frame(to_worker.Ping(nonce=1)))
    decoder.feed(good + (5000).to_bytes(FRAME_HEADER_SIZE))
    payloads = decoder.payloads()
    assert WORKER.decode(next(payloads)) == to_worker.Ping(nonce=1)
    with pytest.raises(FrameTooLarge):
        next(payloads)


def test_a_message_for_another_receiver_is_invalid() -> None:
    payload = msgspec.msgpack.encode(to_supervisor.Pong(nonce=1, busy=0))
    with pytest.raises(FrameInvalid, match="not a message for worker"):
        WORKER.decode(payload)


def test_deeply_nested_payload_does_not_end_the_process() -> None:
    with pytest.raises(FrameInvalid):
        WORKER.decode(b"\x91" * 100_000)
