"""The public test kit's scripted host, under the name that tests here use."""

from punie_protocol.testing.script import (
    Action,
    Call,
    Die,
    Fail,
    Reply,
    Say,
    Step,
    Think,
    Wait,
    model_info,
    reply,
)
from punie_protocol.testing.scripted_host import ScriptedHost

__all__ = [
    "Action",
    "Call",
    "Die",
    "Fail",
    "Reply",
    "Say",
    "ScriptedHost",
    "Step",
    "Think",
    "Wait",
    "model_info",
    "reply",
]
