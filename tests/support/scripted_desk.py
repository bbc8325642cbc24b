"""A desk for the HTTP door's tests: no engine; a test says what is answered."""

from collections.abc import Callable

from punie_model_host.desk import Sink
from punie_protocol.engine import EngineStatus
from punie_protocol.errors import LinkClosed
from punie_protocol.messages.common import ModelInfo, PromptStyle, Usage
from punie_protocol.messages.to_model_client import (
    Finished,
    StepTimings,
    StopReason,
    TextDelta,
    ToModelClient,
)
from punie_protocol.messages.to_model_host import Generate

MODEL = ModelInfo(
    name="tiny",
    folder="/models/tiny",
    context_window=4096,
    prompt_style=PromptStyle.TOOLS,
    tool_call_format="hermes",
    max_output_tokens=512,
)
USAGE = Usage(input_tokens=7, cached_tokens=4, output_tokens=3)


def text(*pieces: str) -> list[ToModelClient]:
    """Return an answer."""
    return [*(TextDelta(request_id=1, text=piece) for piece in pieces), finished()]


def finished(reason: StopReason = StopReason.STOP, request_id: int = 1) -> Finished:
    """Return an answer's end."""
    timings = StepTimings(queue=1.0, prefill=2.0, decode=3.0)
    return Finished(request_id=request_id, stop_reason=reason, usage=USAGE, timings=timings)


class ScriptedDesk:
    """Answers each request with `script(request)`, at once; what is said later goes through `say`.
    `inside` are the clients that came and did not leave, `asked` all requests."""

    def __init__(self, script: Callable[[Generate], list[ToModelClient]]) -> None:
        self.model: ModelInfo | None = MODEL
        self.status: EngineStatus | None = None
        self.quiet_s = 0.0
        self.inside: dict[int, Sink] = {}
        self.asked: list[Generate] = []
        self.left = 0
        self._script = script

    def enter(self, sink: Sink, _room: int) -> int:
        number = self.left + len(self.inside) + 1
        self.inside[number] = sink
        return number

    def submit(self, number: int, request: Generate) -> None:
        self.asked.append(request)
        for message in self._script(request):
            self.inside[number].send(message)

    def leave(self, number: int) -> None:
        del self.inside[number]
        self.left += 1

    def say(self, *messages: ToModelClient) -> bool:
        """Send messages to the one client that is inside; return whether it took them."""
        (sink,) = self.inside.values()
        try:
            for message in messages:
                sink.send(message)
        except LinkClosed:
            return False
        return True
