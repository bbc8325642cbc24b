"""Permission questions, as a client gets them, and who answers."""

from collections.abc import Callable
from typing import Any

import msgspec

from punie_protocol.jsonrpc import Envelope
from punie_protocol.testing.turns import Json, decode_object

METHOD = "session/request_permission"
CANCEL = "$/cancel_request"


class Question(msgspec.Struct):
    """One ``session/request_permission``. `answered` is the option chosen, `cancelled` when the
    agent took the question back."""

    id: int | str | None
    session_id: str
    params: Json
    answered: str | None = None
    cancelled: bool = False

    @property
    def call(self) -> Json:
        """The tool call it is about, as ACP shows it."""
        return self.params["toolCall"]

    @property
    def options(self) -> list[str]:
        """The ids of the options, in order."""
        return [option["optionId"] for option in self.params["options"]]

    @property
    def is_open(self) -> bool:
        """Whether it waits for an answer."""
        return self.answered is None and not self.cancelled


type Policy = Callable[[Question], str | None]
"""Returns the option to answer with, or ``None`` to leave the question open."""


def always(option: str) -> Policy:
    """Return the policy that gives every question one answer; one that is not offered is left
    open."""
    return lambda question: option if option in question.options else None


def nobody(question: Question) -> str | None:
    """Answer nothing: the test does, or nobody."""
    return None


def outcome(option: str | None) -> dict[str, Any]:
    """Return the result of a question: an option, or that the client closed the dialog."""
    if option is None:
        return {"outcome": {"outcome": "cancelled"}}
    return {"outcome": {"outcome": "selected", "optionId": str(option)}}


def asked(session_id: str, envelope: Envelope) -> Question:
    """Return the question in a request."""
    assert isinstance(envelope.params, msgspec.Raw)
    id = None if isinstance(envelope.id, msgspec.UnsetType) else envelope.id
    return Question(id=id, session_id=session_id, params=decode_object(envelope.params))


def taken_back(envelope: Envelope) -> int | str | None:
    """Return the id of the request that a `CANCEL` takes back."""
    assert isinstance(envelope.params, msgspec.Raw)
    return decode_object(envelope.params)["requestId"]
