"""Control tokens that stand in a conversation's own texts: a file may contain ``<|im_end|>`` or
``</tool_response>``, and must not end its message by that. They reach the model as the characters
they are."""

import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

from mlx_lm.tokenizer_utils import TokenizerWrapper

_DELIMITER: Final = re.compile(r"<[^\s<>]+>|\[/?[A-Z_]+\]")
"""What an added token looks like that structures a conversation, as ``<tool_call>``: many models
do not flag those. Other added tokens are pieces of ordinary text."""


def control_tokens(tokenizer: TokenizerWrapper) -> tuple[str, ...]:
    """Return the texts that the tokenizer makes control tokens of, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {
        token.content
        for token in added
        if len(token.content) > 1 and (token.special or _DELIMITER.fullmatch(token.content))
    }
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


class Quoting:
    """Of one conversation: `protect` its texts, render, then `encode` what was rendered."""

    def __init__(self, controls: Sequence[str]) -> None:
        self._controls = controls
        self._numbers = {control: n for n, control in enumerate(controls)}
        self._find = re.compile("|".join(map(re.escape, controls))) if controls else None
        self._stand_in = f"quoted{secrets.token_hex(8)}"
        self._quoted = re.compile(rf"{self._stand_in}x(\d+)x")
        self._used = False

    def protect(self, text: str) -> str:
        """Return `text` with a stand-in for each control token."""
        if self._find is None or not self._find.search(text):
            return text
        self._used = True
        return self._find.sub(self._replace, text)

    def protect_json(self, value: Any) -> Any:
        """Return the JSON `value` with all its strings protected, keys too."""
        match value:
            case str():
                return self.protect(value)
            case list():
                return [self.protect_json(item) for item in value]
            case dict():
                return {self.protect(key): self.protect_json(item) for key, item in value.items()}
            case _:
                return value

    def encode(self, tokenizer: TokenizerWrapper, rendered: str) -> list[int]:
        """Return the tokens; a stand-in becomes the tokens of the characters it stands for."""
        if not self._used:
            return tokenizer.encode(rendered, add_special_tokens=False)
        tokens: list[int] = []
        quoted: dict[str, list[int]] = {}
        for n, part in enumerate(self._quoted.split(rendered)):
            if n % 2:
                if part not in quoted:
                    quoted[part] = _characters(tokenizer, self._controls[int(part)])
                tokens += quoted[part]
            elif part:
                tokens += tokenizer.encode(part, add_special_tokens=False)
        return tokens

    def _replace(self, match: re.Match[str]) -> str:
        return f"{self._stand_in}x{self._numbers[match[0]]}x"


def _characters(tokenizer: TokenizerWrapper, control: str) -> list[int]:
    """Return tokens for the text of `control`; neither of its halves is a control token."""
    halves = (control[:1], control[1:])
    return [id for half in halves for id in tokenizer.encode(half, add_special_tokens=False)]
