"""Tokens of an answer to messages for the client: detokenizer, stop strings, parser."""

from collections.abc import Callable, Sequence
from typing import assert_never

from mlx_lm.tokenizer_utils import TokenizerWrapper

from punie_model_host.answer import Call, Malformed, Piece, Text, Thinking
from punie_model_host.parsers import Parser
from punie_model_host.stops import StopStrings
from punie_protocol.errors import ModelFault
from punie_protocol.messages.to_model_client import TextDelta, ThinkingDelta, ToolCall

type Delta = TextDelta | ThinkingDelta | ToolCall


class Output:
    """The answer of one request. `is_complete` turns true at a stop string; `fault` is set by a
    tool call beyond repair, after which nothing comes out; `is_cut` by one that the limit of tokens
    ended, which is no fault of the model's. An answer that `continues` a text begins
    with the space that it begins with; one that is a text of its own does not."""

    def __init__(
        self,
        request_id: int,
        tokenizer: TokenizerWrapper,
        parser: Parser,
        stops: Sequence[str],
        new_call_id: Callable[[], str],
        *,
        continues: bool = False,
    ) -> None:
        self._request_id = request_id
        self._detokenizer = tokenizer.detokenizer
        if continues:
            self._begin_amid_text(tokenizer)
        self._parser = parser
        self._stops = StopStrings(stops)
        self._new_call_id = new_call_id
        self.fault: ModelFault | None = None
        self.is_cut = False

    def _begin_amid_text(self, tokenizer: TokenizerWrapper) -> None:
        """Have the detokenizer believe that some text was there: it drops a space before any."""
        for token in tokenizer.encode("x", add_special_tokens=False):
            self._detokenizer.add_token(token)
        assert self._detokenizer.last_segment, "a letter is readable at once"

    @property
    def is_complete(self) -> bool:
        """Whether a stop string ended the answer."""
        return self._stops.stopped

    @property
    def calls(self) -> int:
        """Tool calls so far."""
        return self._parser.calls

    def add(self, token: int) -> list[Delta]:
        """Take the next token, return what became readable by it."""
        self._detokenizer.add_token(token)
        return self._parse(self._detokenizer.last_segment)

    def finish(self, *, cut: bool) -> list[Delta]:
        """Return the rest. `cut` says that the answer ended at the limit of tokens."""
        self._detokenizer.finalize()
        deltas = self._parse(self._detokenizer.last_segment)
        deltas += self._convert(self._parser.feed(self._stops.finish()))
        return deltas + self._convert(self._parser.finish(cut=cut))

    def _parse(self, segment: str) -> list[Delta]:
        text = self._stops.feed(segment)
        return self._convert(self._parser.feed(text)) if text else []

    def _convert(self, pieces: Sequence[Piece]) -> list[Delta]:
        deltas = [self._message(piece) for piece in pieces]
        return [delta for delta in deltas if delta is not None]

    def _message(self, piece: Piece) -> Delta | None:
        match piece:
            case Text(text):
                return TextDelta(request_id=self._request_id, text=text)
            case Thinking(text):
                return ThinkingDelta(request_id=self._request_id, text=text)
            case Call(name, arguments):
                return ToolCall(
                    request_id=self._request_id,
                    call_id=self._new_call_id(),
                    name=name,
                    arguments=arguments,
                )
            case Malformed(is_cut=True):
                self.is_cut = True
                return None
            case Malformed(reason, start):
                hint = "ask again; a larger model makes fewer such mistakes"
                message = f"unusable tool call: {reason}; it began: {start!r}"
                self.fault = ModelFault(message=message, hint=hint)
                return None
            case _:
                assert_never(piece)
