"""What the models of `benchmarks.engine` read and write: words, one a token, and their template.

The template puts one space before each text, so an answer that comes back in the next turn is the
same tokens, whether or not a server strips the space that the first word begins with.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Final

from jinja2 import Environment
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel

type Message = dict[str, str]
"""With ``role`` and ``content``."""

_LETTERS: Final = "abcdefghijklmnopqrst"
WORDS: Final = ["".join(letters) for letters in itertools.product(_LETTERS, repeat=3)]
"""8,000 words of three letters."""
END: Final = "<|im_end|>"
UNKNOWN: Final = "<|unknown|>"
PAD: Final = "<|endoftext|>"
_SPECIAL: Final = (PAD, "<|im_start|>", END, UNKNOWN)
_BARE: Final = ("system", "user", "assistant", "\u010a")
"""What stands without a space before it; the last is a line feed, as byte-level tokenizers write
it."""
FIRST_WORD: Final = len(_SPECIAL) + len(_BARE)
"""The number of the first token that is a word."""
TEMPLATE: Final = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ ' ' ~ (message.content | trim) }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Words:
    """Texts of a given number of tokens, the same ones for the same `seed`."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def text(self, tokens: int) -> str:
        """Return `tokens` random words."""
        return " ".join(self._random.choices(WORDS, k=tokens))

    def asked(self, tokens: int) -> list[Message]:
        """Return a conversation of one question with that many words: no cache can have it."""
        return [{"role": "user", "content": self.text(tokens)}]

    def seconds(self, longest: float) -> float:
        """Return a random time up to `longest` seconds."""
        return self._random.uniform(0.0, longest)


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer in which each word, with the space before it, is one token."""
    words = [*_SPECIAL, *_BARE, *(f"\u0120{word}" for word in WORDS)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    return tokenizer


class Tokens:
    """The tokens of conversations and of answers, as a server of such a model has them."""

    def __init__(self) -> None:
        self._tokenizer = make_tokenizer()
        plain = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
        self._template = plain.from_string(TEMPLATE)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens up to where the answer begins."""
        text = self._template.render(messages=messages, add_generation_prompt=True)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def answer(self, text: str) -> list[int]:
        """Return the tokens of an answer's text."""
        return self._tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids
