"""OpenAI's ``system_fingerprint``: with the same one, a seed gives the same answer, as long as the
model's files and the engine's settings stay. Pure."""

import hashlib
from functools import lru_cache
from importlib.metadata import version

from punie_protocol import handshake
from punie_protocol.messages.common import ModelInfo


@lru_cache(maxsize=4)
def of(model: ModelInfo) -> str:
    """Return a word that is another one for another model, or another version of Punie or of what
    computes."""
    parts = [handshake.version(), version("mlx"), version("mlx-lm"), repr(model)]
    return f"fp_{hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:12]}"
