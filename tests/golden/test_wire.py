"""The bytes on the wire. A change here is a change of the protocol: raise its number."""

from pathlib import Path

import msgspec
import pytest

from punie_protocol.codec import MessageDecoder, encode_frame
from tests.support.samples import SAMPLES, UNIONS

FILES = Path(__file__).parent / "wire"


def golden(receiver: str) -> list[tuple[str, str]]:
    """Return the recorded (tag, hex frame) lines."""
    lines = (FILES / f"{receiver}.txt").read_text().splitlines()
    return [(tag, frame) for tag, frame in (line.split(" ", 1) for line in lines)]


@pytest.mark.parametrize("receiver", sorted(UNIONS))
def test_frames_are_as_recorded(receiver: str) -> None:
    actual = [
        (str(sample.__struct_config__.tag), encode_frame(sample).hex())
        for sample in SAMPLES[receiver]
    ]
    assert actual == golden(receiver)


@pytest.mark.parametrize("receiver", sorted(UNIONS))
def test_recorded_frames_still_decode(receiver: str) -> None:
    decoder = MessageDecoder[msgspec.Struct](receiver, UNIONS[receiver])
    for (_, frame), sample in zip(golden(receiver), SAMPLES[receiver], strict=True):
        assert decoder.decode(bytes.fromhex(frame)[4:]) == sample
