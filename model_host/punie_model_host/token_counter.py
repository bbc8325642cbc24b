"""How many tokens a conversation is for the loaded model."""

from collections.abc import Sequence
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from punie_model_host.chat import render
from punie_model_host.loading import load_tokenizer_of
from punie_model_host.quoting import control_tokens
from punie_protocol.messages.common import ModelInfo
from punie_protocol.messages.to_model_host import AnyChatMessage, ToolSchema


class TokenCounter:
    """Counts with a tokenizer of its own: the engine's is used in the engine's thread, and is not
    made for two. Read at the first count, kept while the model is the same. For one thread."""

    def __init__(self) -> None:
        self._folder = ""
        self._tokenizer: TokenizerWrapper | None = None
        self._controls: tuple[str, ...] = ()

    def count(
        self, info: ModelInfo, messages: Sequence[AnyChatMessage], tools: Sequence[ToolSchema]
    ) -> int:
        """Return the tokens of a conversation, rendered as for an answer but without the opening
        of one. Raises `PunieError`."""
        tokenizer = self._of(info.folder)
        prompt = render(
            tokenizer, messages, tools, info.prompt_style, self._controls, to_answer=False
        )
        return len(prompt.tokens)

    def _of(self, folder: str) -> TokenizerWrapper:
        if self._tokenizer is None or folder != self._folder:
            self._tokenizer = load_tokenizer_of(Path(folder))
            self._controls = control_tokens(self._tokenizer)
            self._folder = folder
        return self._tokenizer
