"""The tokenizer: byte-level BPE of 2,048 pieces in which a name is always the same pieces.

Names split at case changes, digits stand one by one, punctuation and spaces alone, so that a
name has the same pieces after a space, a quote or a line break; only common words of the
generator's own phrases carry their leading space. Chat and tool markers and whole program
fragments are single tokens.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from punie_model_host.training import names
from punie_model_host.training.conversations import Generator
from punie_model_host.training.programs import FRAGMENTS
from punie_model_host.training.render import MARKERS, TOOL_MARKERS, render

SIZE = 2048
"""Vocabulary, markers and fragments included."""
CONTEXT = 2048
"""Positions of the model, in tokens."""
_LINES = ["\n- ", "… and "]


def _samples(count: int, seed: int = 7) -> list[list[dict]]:
    generator = Generator(seed)
    return [generator.conversation().messages for _ in range(count)]


def common_words(samples: list[list[dict]], most: int = 420) -> list[str]:
    """Lower-case words that are frequent in phrases and answers and are no name."""
    pool = set(names.WORDS) - {
        "file",
        "list",
        "find",
        "search",
        "name",
        "line",
        "show",
        "check",
        "test",
        "project",
    }
    counts: Counter[str] = Counter()
    for messages in samples:
        for message in messages:
            if message["role"] != "tool":
                counts.update(re.findall(r"(?<= )[a-z]{2,}(?![\w/.(-])", message["content"]))
    ranked = [word for word, _ in counts.most_common() if word not in pool]
    return sorted(ranked[:most])


def pattern(words: list[str]) -> str:
    """The splitting expression (Oniguruma); the parts cover every text."""
    spaced = "|".join(sorted(words, key=lambda w: (-len(w), w)))
    return (
        rf" (?:{spaced})(?![A-Za-z0-9_/.(-])"
        r"|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]| {2,}| |\n|[^\sA-Za-z0-9]|\s"
    )


def build(sample_count: int = 20000) -> Tokenizer:
    """Trains the tokenizer on the generator's text; takes about ten seconds."""
    samples = _samples(sample_count)
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern(common_words(samples))), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    added = [*TOOL_MARKERS, *FRAGMENTS, *_LINES]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(added),
        special_tokens=MARKERS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = re.compile("|".join(map(re.escape, sorted([*added, *MARKERS], key=len, reverse=True))))
    texts = [" ".join(plain.split(render(messages))) for messages in samples]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    return tokenizer


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def config(template: str) -> dict:
    """``tokenizer_config.json`` as transformers and mlx-lm read it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": template,
    }


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.dumps(config(template), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


class Encoder:
    """Conversations to token ids and to the mask of what the model itself writes."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.start, self.end = (tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
        self.role = tokenizer.encode("assistant\n").ids

    def encode(self, messages: list[dict]) -> tuple[list[int], list[bool]]:
        """Ids, and for each id whether it is learned (assistant turns up to ``<|im_end|>``)."""
        ids = self.tokenizer.encode(render(messages)).ids
        mask, learned, skip = [], False, 0
        for i, token in enumerate(ids):
            if token == self.start:
                learned = ids[i + 1 : i + 1 + len(self.role)] == self.role
                skip = len(self.role) + 1
            mask.append(learned and skip <= 0)
            skip -= 1
            if token == self.end:
                learned = False
        return ids, mask
