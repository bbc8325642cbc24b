"""Control tokens that stand in a conversation's own texts: a file may contain ``<|im_end|>``, and
must not end its message by that. They reach the model as the characters they are."""

import re
import secrets
from collections.abc import Sequence

from mlx_lm.tokenizer_utils import TokenizerWrapper


def control_tokens(tokenizer: TokenizerWrapper) -> tuple[str, ...]:
    """Return the texts that the tokenizer makes control tokens of, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {token.content for token in added if token.special and len(token.content) > 1}
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


class Quoting:
    """Of one conversation: `protect` its texts, render, then `encode` what was rendered."""

    def __init__(self, controls: Sequence[str]) -> None:
        self._controls = controls
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

    def encode(self, tokenizer: TokenizerWrapper, rendered: str) -> list[int]:
        """Return the tokens; a stand-in becomes the tokens of the characters it stands for."""
        if not self._used:
            return tokenizer.encode(rendered, add_special_tokens=False)
        tokens: list[int] = []
        for n, part in enumerate(self._quoted.split(rendered)):
            if n % 2:
                control = self._controls[int(part)]
                parts = [control[:1], control[1:]]  # neither half is a control token
            else:
                parts = [part]
            for text in filter(None, parts):
                tokens += tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def _replace(self, match: re.Match[str]) -> str:
        return f"{self._stand_in}x{self._controls.index(match[0])}x"
