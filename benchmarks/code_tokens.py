"""Code as Qwen's tokenizers cut it: byte-pair encoding with the ranks of a file of the dashscope
package (resources/qwen.tiktoken), which is all that is needed of it; nothing is downloaded.

The whole vocabulary has 151,643 tokens. A benchmark's small model would spend most of its time on
the head of such a one, as no large model does, so `Vocabulary` is the part of it that a corpus
uses: the texts of that corpus come to the very tokens that they come to with the whole, renumbered.
"""

import base64
import itertools
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

import regex
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

PAD: Final = "<|endoftext|>"
END: Final = "<|im_end|>"
SPECIAL: Final = (PAD, "<|im_start|>", END)
TAGS: Final = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Added tokens that are not special: what a model writes of them is text."""
_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's pre-tokenizer, as in its tokenizer.json."""
_PIECES: Final = regex.compile(_PATTERN)


@cache
def ranks() -> dict[bytes, int]:
    """Return the whole vocabulary: a token's bytes, its rank."""
    file = distribution("dashscope").locate_file("dashscope/resources/qwen.tiktoken")
    pairs = (line.split() for line in Path(str(file)).read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def tokens(text: str) -> Iterator[bytes]:
    """Return the tokens of a text without control tokens."""
    return itertools.chain.from_iterable(
        _merged(m.group().encode()) for m in _PIECES.finditer(text)
    )


@cache
def _merged(piece: bytes, below: int | None = None) -> tuple[bytes, ...]:
    """Merge the bytes of a piece, the lowest rank first; none that is not `below` a rank."""
    known, parts = ranks(), [piece[at : at + 1] for at in range(len(piece))]
    while len(parts) > 1:
        pairs = [known.get(left + right) for left, right in itertools.pairwise(parts)]
        best = min((rank for rank in pairs if rank is not None), default=None)
        if best is None or (below is not None and best >= below):
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return tuple(parts)


def vocabulary(corpus: Iterable[str]) -> list[bytes]:
    """Return the tokens that texts of `corpus` come to and those they are merged from, every byte
    among them, by rank."""
    used = {bytes([byte]) for byte in range(256)}
    waiting = {token for text in corpus for token in tokens(text)} - used
    while waiting:
        used |= waiting
        waiting = {part for token in waiting for part in _parts(token)} - used
    return sorted(used, key=ranks().__getitem__)


def _parts(token: bytes) -> tuple[bytes, bytes]:
    """Return what a token is merged from."""
    left, right = _merged(token, below=ranks()[token])
    return left, right


def make_tokenizer(vocabulary: Iterable[bytes]) -> Tokenizer:
    """Return the tokenizer of a part of Qwen's vocabulary; the special tokens come first."""
    known, named = list(vocabulary), _byte_names()

    def name(token: bytes) -> str:
        return "".join(named[byte] for byte in token)

    numbers = {text: n for n, text in enumerate([*SPECIAL, *TAGS, *map(name, known)])}
    pairs = [_parts(token) for token in known if len(token) > 1]
    merges = [(name(left), name(right)) for left, right in pairs]
    tokenizer = Tokenizer(BPE(vocab=numbers, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in TAGS])
    return tokenizer


def _byte_names() -> list[str]:
    """Return the character that stands for each byte in byte-level vocabularies (GPT-2's)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]
