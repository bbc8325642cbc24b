"""What rank 0 tells the other ranks, and what they answer. MessagePack in frames with their length
before them; both ends are the same program, which the secret in `Hello` and the ranks' common
folder of code stand for.

    other ranks  Hello                          once, when they connect
    rank 0       Take · Work · Chore · End      what is done next
    rank 0       Reading · Name · Read          while it is done: what rank 0 decided by itself
    other ranks  Said                           what came out of it
"""

import struct
from typing import Final

import msgspec

from punie_model_host.engine_messages import (
    Cancel,
    Command,
    Key,
    LoadCommand,
    Quit,
    Refused,
    Submit,
)
from punie_model_host.prepare import Prepared
from punie_model_host.ranks import for_ranks
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import WireError
from punie_protocol.limits import MAX_FRAME
from punie_protocol.messages.to_model_host import Generate

MAX_LINE: Final = 8 * MAX_FRAME
"""Bytes of a line. The longest is a `Take` of a conversation, which came in one frame, and its
tokens."""
_MOST: Final = 2**63 - 1
LENGTH: Final = struct.Struct(">I")


class _Line(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The base of all."""


class SubmitLine(_Line, frozen=True):
    """`Submit`."""

    key: Key
    request: Generate
    received: float
    prepared: Prepared | None


class CancelLine(_Line, frozen=True):
    """`Cancel`."""

    key: Key


class RefusedLine(_Line, frozen=True):
    """`Refused`."""

    client_id: str
    kind: str


class LoadLine(_Line, frozen=True):
    """`LoadCommand`."""

    request_id: int
    model: str
    settings: EngineSettings | None = None


type CommandLine = SubmitLine | CancelLine | RefusedLine | LoadLine


class Take(_Line, frozen=True):
    """Take in this command."""

    command: CommandLine


class Work(_Line, frozen=True):
    """Do a step; with `loads` one that loads a model."""

    loads: bool


class Chore(_Line, frozen=True):
    """Do what waits for a quiet moment."""


class End(_Line, frozen=True):
    """End; save until `deadline`, on rank 0's clock."""

    deadline: float


class Reading(_Line, frozen=True):
    """Rank 0's clock, in seconds."""

    seconds: float


class Name(_Line, frozen=True):
    """A tool call's id."""

    text: str


class Read(_Line, frozen=True):
    """A request, read in the engine's thread; or why it cannot be answered."""

    prepared: Prepared | None
    error: WireError | None = None


class Hello(_Line, frozen=True):
    """This is `rank`, of the group that was told `secret`."""

    rank: int
    secret: bytes


class Said(_Line, frozen=True):
    """`digest` is of all that clients are told because of turn number `turn`."""

    turn: int
    digest: bytes


type Turn = Take | Work | Chore | End
type LeaderLine = Turn | Reading | Name | Read
type RankLine = Hello | Said

_encoder = msgspec.msgpack.Encoder()
leader_decoder: msgspec.msgpack.Decoder[LeaderLine] = msgspec.msgpack.Decoder(LeaderLine)
rank_decoder: msgspec.msgpack.Decoder[RankLine] = msgspec.msgpack.Decoder(RankLine)


def frame(line: LeaderLine | RankLine) -> bytes:
    """Return a line as it is sent. Raises `ValueError` for one that cannot be: over `MAX_LINE`, a
    number of more than 64 bits in it, nested too deep."""
    try:
        body = _encoder.encode(line)
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"a line that other ranks cannot be told: {error}") from None
    if len(body) > MAX_LINE:
        raise ValueError(f"a line of {len(body)} bytes for other ranks, the limit is {MAX_LINE}")
    return LENGTH.pack(len(body)) + body


def line_of(command: Command) -> CommandLine | None:
    """Return a command as a line; None for `Quit`, which `End` says."""
    match command:
        case Submit(key, request, received, prepared):
            return SubmitLine(key, _bounded(request), received, prepared)
        case Cancel(key):
            return CancelLine(key)
        case Refused(client_id, kind):
            return RefusedLine(client_id, kind)
        case LoadCommand(request_id, model, settings):
            return LoadLine(request_id, model, settings and for_ranks(settings))
        case Quit():
            return None


def _bounded(request: Generate) -> Generate:
    """Return a request that means the same, or is wrong as it was, without numbers of more than 64
    bits: JSON has them, and a client may be reached by it."""
    wish, prompt = request.sampling, request.prompt
    sampling = msgspec.structs.replace(
        wish,
        seed=None if wish.seed is None else wish.seed % 2**64,
        top_k=None if wish.top_k is None else _whole(wish.top_k),
        max_tokens=None if wish.max_tokens is None else _whole(wish.max_tokens),
        logit_bias={_whole(token): bias for token, bias in wish.logit_bias.items()},
    )
    if isinstance(prompt, list):
        prompt = [_whole(token) for token in prompt]
    return msgspec.structs.replace(request, sampling=sampling, prompt=prompt)


def _whole(number: int) -> int:
    return max(-_MOST, min(number, _MOST))


def command_of(line: CommandLine) -> Command:
    """Return the command that a line is of."""
    match line:
        case SubmitLine(key, request, received, prepared):
            return Submit(key, request, received, prepared)
        case CancelLine(key):
            return Cancel(key)
        case RefusedLine(client_id, kind):
            return Refused(client_id, kind)
        case LoadLine(request_id, model, settings):
            return LoadCommand(request_id, model, settings)
