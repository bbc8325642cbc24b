"""Training: Muon for matrices, AdamW for embeddings and norms, batches bucketed by length."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from punie_model_host.training.conversations import Generator
from punie_model_host.training.export import export
from punie_model_host.training.model import Model
from punie_model_host.training.tokenizer import CONTEXT, Encoder, load

BUCKETS = (64, 96, 128, 192, 256, 384, 640, 1024, CONTEXT)
"""Padded lengths, in tokens."""
_CHUNK = 4096
"""Conversations drawn at a time, then sorted by length."""


@dataclass(frozen=True)
class Plan:
    """One phase of training. Times in seconds, sizes in tokens."""

    minutes: float
    seed: int = 1
    batch_tokens: int = 8192
    warmup_steps: int = 40
    muon_rate: float = 0.02
    adam_rate: float = 4e-3
    decay_from: float = 0.5
    drill_until: float = 0.06
    short_until: float = 0.1
    export_every: float = 300
    compiled: bool = True


Batch = tuple[Tensor, Tensor]
"""Ids ``(batch, length)`` and targets of the same shape; -100 where nothing is learned."""


def _pad(rows: list[tuple[list[int], list[bool]]], length: int) -> Batch:
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), -100, dtype=torch.long)
    for i, (row, mask) in enumerate(rows):
        tokens = torch.tensor(row)
        ids[i, : len(row)] = tokens
        learned = torch.where(torch.tensor(mask), tokens, -100)
        targets[i, : len(row) - 1] = learned[1:]
    return ids, targets


def refill(rows: list, generator: Generator, encoder: Encoder, limit: int, drills: float) -> None:
    """Adds encoded conversations of at most ``limit`` tokens, up to ``_CHUNK`` rows."""
    while len(rows) < _CHUNK:
        drill = generator.rng.random() < drills
        conversation = generator.drill() if drill else generator.conversation()
        row = encoder.encode(conversation.messages)
        if len(row[0]) <= limit:
            rows.append(row)


def batches(rows: list, batch_tokens: int, rng: random.Random) -> Iterator[Batch]:
    """Batches of one bucket each, in random order; what fills no batch stays in ``rows``.

    So every bucket has one shape, and is compiled once.
    """
    buckets: dict[int, list] = {}
    for row in rows:
        length = next(b for b in BUCKETS if len(row[0]) <= b)
        buckets.setdefault(length, []).append(row)
    cut, left = [], []
    for length, members in buckets.items():
        size = max(1, batch_tokens // length)
        full = len(members) // size * size
        cut += [(length, members[i : i + size]) for i in range(0, full, size)]
        left += members[full:]
    rows[:] = left
    rng.shuffle(cut)
    for length, members in cut:
        yield _pad(members, length)


def orthogonal(g: Tensor) -> Tensor:
    """The nearest half-orthogonal matrix of each in ``(n, a, b)``; Newton-Schulz, 5 steps.

    Coefficients from Jordan et al., "Muon", 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


torch._dynamo.config.recompile_limit = 4 * len(BUCKETS)


class Muon:
    """Momentum with orthogonalized updates; matrices of one shape are treated together."""

    def __init__(self, weights: list[Tensor], momentum: float = 0.95, decay: float = 0.01):
        groups: dict[tuple, list[Tensor]] = {}
        for weight in weights:
            groups.setdefault(tuple(weight.shape), []).append(weight)
        self.groups = list(groups.values())
        self.moments = [torch.stack([torch.zeros_like(w) for w in group]) for group in self.groups]
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Applies the gradients and clears them."""
        for group, moment in zip(self.groups, self.moments, strict=True):
            grads = torch.stack([w.grad for w in group])
            moment.lerp_(grads, 1 - self.momentum)
            update = orthogonal(grads.lerp(moment, self.momentum))
            scale = max(1, update.shape[-2] / update.shape[-1]) ** 0.5
            for weight, change in zip(group, update, strict=True):
                weight.mul_(1 - rate * self.decay).sub_(change, alpha=rate * scale)
                weight.grad = None


class Trainer:
    """One phase of training; ``run`` returns when its time is over."""

    def __init__(self, plan: Plan, tokenizer_folder: Path, out: Path, start: Path | None = None):
        self.plan, self.out, self.tokenizer_folder = plan, out, tokenizer_folder
        torch.manual_seed(plan.seed)
        self.model = Model()
        if start:
            self.model.load_state_dict(torch.load(start, weights_only=True))
        named = dict(self.model.named_parameters())
        matrices = [w for n, w in named.items() if w.dim() == 2 and "embed" not in n]
        others = [w for n, w in named.items() if w.dim() != 2 or "embed" in n]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
        self.encoder = Encoder(load(tokenizer_folder))
        self.generator = Generator(plan.seed)
        self.hidden = (
            torch.compile(self.model.hidden, dynamic=False) if plan.compiled else self.model.hidden
        )
        self.tokens = self.steps = 0

    def progress(self) -> float:
        """The share of the time that has passed."""
        return min(1.0, (time.monotonic() - self.began) / 60 / self.plan.minutes)

    def rate(self) -> float:
        """The factor on the learning rates: warm-up, flat, then linear to zero."""
        plan, done = self.plan, self.progress()
        warm = min(1.0, (self.steps + 1) / plan.warmup_steps)
        return warm * min(1.0, max(0.01, (1 - done) / (1 - plan.decay_from)))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy over the learned tokens."""
        with torch.autocast("cpu", torch.bfloat16):
            states = self.hidden(ids)
            learned = targets >= 0
            logits = self.model.logits(states[learned])
        return F.cross_entropy(logits.float(), targets[learned])

    def step(self, batch: Batch) -> float:
        """One update; returns the loss."""
        loss = self.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], 1.0)
        rate = self.rate()
        self.muon.step(self.plan.muon_rate * rate)
        self.adam.param_groups[0]["lr"] = self.plan.adam_rate * rate
        self.adam.step()
        self.adam.zero_grad()
        self.steps += 1
        return loss.item()

    def save(self) -> None:
        """Writes the state and a complete model folder."""
        self.out.mkdir(parents=True, exist_ok=True)
        partial = self.out / "state.pt.new"
        torch.save(self.model.state_dict(), partial)
        partial.replace(self.out / "state.pt")
        export(self.model, self.tokenizer_folder, self.out / "model")

    def run(self) -> None:
        """Trains until the time of the plan is over; prints a line every 20 steps."""
        self.began = saved = time.monotonic()
        recent: list[float] = []
        rows: list = []
        while self.progress() < 1:
            done = self.progress()
            limit = 256 if done < self.plan.short_until else CONTEXT
            drills = 0.25 if done < self.plan.drill_until else 0
            refill(rows, self.generator, self.encoder, limit, drills)
            for batch in batches(rows, self.plan.batch_tokens, self.generator.rng):
                recent.append(self.step(batch))
                self.tokens += int((batch[0] != 0).sum())
                if self.steps % 20 == 0:
                    self._report(recent)
                    recent.clear()
                if time.monotonic() - saved > self.plan.export_every:
                    saved = time.monotonic()
                    self.save()
                if self.progress() >= 1:
                    break
        self.save()

    def _report(self, recent: list[float]) -> None:
        seconds = time.monotonic() - self.began
        mean = math.fsum(recent) / len(recent)
        speed = self.tokens / seconds
        print(
            f"{seconds / 60:.1f} min, step {self.steps}, {self.tokens / 1e6:.2f} M tokens, "
            f"{speed:.0f}/s, loss {mean:.4f}",
            flush=True,
        )
