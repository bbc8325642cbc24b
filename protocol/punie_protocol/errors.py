"""What can go wrong, on the wire and as exceptions.

On the wire every failure is one Struct of the tagged union `WireError`. Its class says whose
fault it is and whether trying again can help, so no peer guesses from a text::

    PunieError                   root of what Punie raises on purpose; carries a WireError
    ├── RemoteError              the peer answered with a WireError
    ├── LinkClosed               the peer is gone
    ├── MessageTooLarge          a message of ours is over the limit; nothing of it was sent
    └── ProtocolError            the peer does not keep the frame protocol; the link is over
        ├── FrameTooLarge        announced length is over the limit
        ├── FrameTruncated       the stream ended inside a frame
        ├── FrameInvalid         not MessagePack, or not a message of this receiver
        └── VersionMismatch      another protocol number
"""

from enum import StrEnum
from typing import ClassVar

import msgspec


class Fault(StrEnum):
    """Whose fault a failure is."""

    CALLER = "caller"
    PROJECT = "project"
    MODEL = "model"
    PUNIE = "punie"


class Retry(StrEnum):
    """Whether sending the same again can help."""

    NEVER = "never"
    NOW = "now"
    LATER = "later"


class _Error(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """Common part: `message` says what happened, with ids and limits; `hint` what to do next."""

    fault: ClassVar[Fault] = Fault.PUNIE
    retry: ClassVar[Retry] = Retry.NEVER

    message: str
    hint: str = ""


class InvalidRequest(_Error, frozen=True, tag="invalid_request", kw_only=True):
    """A request that does not fit its schema or its state."""

    fault = Fault.CALLER


class TooLarge(_Error, frozen=True, tag="too_large", kw_only=True):
    """Something is over a limit; both in the unit that `unit` names."""

    fault = Fault.CALLER

    limit: int
    actual: int
    unit: str = "bytes"


class NotFound(_Error, frozen=True, tag="not_found", kw_only=True):
    """No session, project, model or file of that name."""

    fault = Fault.CALLER

    what: str


class Denied(_Error, frozen=True, tag="denied", kw_only=True):
    """A permission, or the project's boundary, forbids it. It did not happen."""

    fault = Fault.CALLER


class VersionSkew(_Error, frozen=True, tag="version_skew", kw_only=True):
    """The two ends speak different protocol numbers."""

    ours: int
    theirs: int


class Overloaded(_Error, frozen=True, tag="overloaded", kw_only=True):
    """A bounded queue is full."""

    retry = Retry.LATER


class Cancelled(_Error, frozen=True, tag="cancelled", kw_only=True):
    """Ended because the caller asked for it."""

    fault = Fault.CALLER


class TimedOut(_Error, frozen=True, tag="timed_out", kw_only=True):
    """A deadline passed."""

    retry = Retry.LATER

    limit_s: float


class ModelLoadFailed(_Error, frozen=True, tag="model_load_failed", kw_only=True):
    """A model folder that cannot be loaded; `file` is the file at fault, relative to `folder`."""

    fault = Fault.MODEL

    folder: str
    file: str


class ModelUnavailable(_Error, frozen=True, tag="model_unavailable", kw_only=True):
    """No model is ready to answer."""

    retry = Retry.LATER


class ContextOverflow(_Error, frozen=True, tag="context_overflow", kw_only=True):
    """The conversation is longer than the model's window, in tokens."""

    fault = Fault.CALLER

    tokens: int
    limit: int


class ModelFault(_Error, frozen=True, tag="model_fault", kw_only=True):
    """The model's answer could not be used, or its evaluation failed."""

    fault = Fault.MODEL


class ToolFailed(_Error, frozen=True, tag="tool_failed", kw_only=True):
    """A tool could not do what was asked; `kind` is a stable word such as ``not_text``. `output` is
    what a program had printed and done before it failed."""

    fault = Fault.PROJECT

    kind: str
    output: str = ""


class ProcessLost(_Error, frozen=True, tag="process_lost", kw_only=True):
    """A worker or the model host ended while it was needed. `limit` says which limit it
    was over, if it was ended for that: the same again would end it again."""

    retry = Retry.NOW

    process: str
    pid: int
    limit: str = ""


class Internal(_Error, frozen=True, tag="internal", kw_only=True):
    """A defect of Punie."""


type WireError = (
    InvalidRequest
    | TooLarge
    | NotFound
    | Denied
    | VersionSkew
    | Overloaded
    | Cancelled
    | TimedOut
    | ModelLoadFailed
    | ModelUnavailable
    | ContextOverflow
    | ModelFault
    | ToolFailed
    | ProcessLost
    | Internal
)


def kind_of(error: WireError) -> str:
    """Return the error's tag on the wire, such as ``overloaded``."""
    return str(error.__struct_config__.tag)


class PunieError(Exception):
    """Root of every exception raised on purpose. Owns the `error` that goes on the wire."""

    def __init__(self, error: WireError) -> None:
        super().__init__(error.message)
        self.error = error


class RemoteError(PunieError):
    """The peer answered with a failure; `meta` is what it said besides, as JSON."""

    def __init__(self, error: WireError, meta: bytes | None = None) -> None:
        super().__init__(error)
        self.meta = meta


class LinkClosed(PunieError):
    """The peer closed the link, died, or took nothing until the deadline."""

    def __init__(self, reason: str) -> None:
        super().__init__(Internal(message=f"link closed: {reason}"))
        self.reason = reason


class MessageTooLarge(PunieError):
    """A message to be sent is over the limit of a frame; nothing of it was sent."""

    def __init__(self, message: str, actual: int, limit: int) -> None:
        super().__init__(
            TooLarge(
                message=f"{message} of {actual} bytes is over the limit of {limit} bytes",
                limit=limit,
                actual=actual,
            )
        )


class ProtocolError(PunieError):
    """The peer broke the frame protocol; nothing more can be read from this link."""


class FrameTooLarge(ProtocolError):
    """A frame announces more bytes than the limit."""

    def __init__(self, actual: int, limit: int) -> None:
        super().__init__(
            TooLarge(
                message=f"frame of {actual} bytes is over the limit of {limit} bytes",
                limit=limit,
                actual=actual,
            )
        )


class FrameTruncated(ProtocolError):
    """The stream ended inside a frame."""

    def __init__(self, have: int, need: int) -> None:
        super().__init__(
            InvalidRequest(message=f"stream ended inside a frame: {have} of {need} bytes")
        )


class FrameInvalid(ProtocolError):
    """A payload is not MessagePack, or not a message its receiver knows."""

    def __init__(self, receiver: str, reason: str) -> None:
        super().__init__(InvalidRequest(message=f"not a message for {receiver}: {reason}"))


class VersionMismatch(ProtocolError):
    """The peer speaks another protocol number."""

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__(
            VersionSkew(
                message=f"protocol {theirs} met protocol {ours}",
                hint="run: punie restart",
                ours=ours,
                theirs=theirs,
            )
        )
