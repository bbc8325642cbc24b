"""Fused kernels on the CPU. MLX has them compiled by the system's C++ compiler at first use, most
of a second each, and keeps them in ``$TMPDIR``; Metal's need none of this.

Nobody is made to wait for a compiler: kernels that are there are used, missing ones are compiled
after a quiet time. For the engine's thread.
"""

import logging
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import can_run_metal

from punie_model_host.log import event
from punie_protocol.engine import Kernels

QUIET: Final = 20.0
"""Seconds without work after which kernels are compiled."""

_log = logging.getLogger(__name__)


class Compilation:
    """Whether models are computed with fused kernels, in this process. They are loaded without."""

    def __init__(self, mode: Kernels) -> None:
        self._mode = Kernels.OFF if can_run_metal() or shutil.which("g++") is None else mode
        self._marker = Path(tempfile.gettempdir()) / f"kernels-{version('mlx')}"
        self._tried = True
        self._on = False
        self._quiet_since: float | None = None

    @property
    def waits(self) -> bool:
        """Whether there is something to compile in a quiet moment."""
        return self._mode is Kernels.AUTO and not self._tried

    def loaded(self, models: Sequence[Any]) -> None:
        """`models` were loaded: compute them with kernels that are there, or have to be."""
        self._tried = False
        if self._mode is Kernels.ON or (self._mode is Kernels.AUTO and self._marker.exists()):
            self._compile(models)

    def resume(self) -> None:
        """A load is over, which may have failed: use kernels as before."""
        if self._on:
            mx.enable_compile()

    def work(self) -> None:
        """There is something else to do now."""
        self._quiet_since = None

    def chore(self, models: Sequence[Any], now: float) -> None:
        """Compile what `models` need, if it was quiet for long enough; takes a second or two."""
        if self._quiet_since is None:
            self._quiet_since = now
        if self.waits and now - self._quiet_since >= QUIET:
            self._compile(models)

    def _compile(self, models: Sequence[Any]) -> None:
        self._tried = True
        mx.enable_compile()
        try:
            for model in models:
                _meet(model)
            self._marker.touch()
        except Exception as error:  # noqa: BLE001  without fused kernels everything works too
            mx.disable_compile()
            event(_log, logging.WARNING, "kernels-not-compiled", error=str(error)[:300])
        else:
            self._on = True
            event(_log, logging.INFO, "kernels-compiled")


def _meet(model: Any) -> None:
    """Compute a prompt, a token after it, and one of two rows: what is compiled depends on which
    arrays have gaps, not on their sizes."""
    cache = make_prompt_cache(model)
    for tokens in ([[1, 2, 3]], [[4]]):
        mx.eval(model(mx.array(tokens), cache=cache))
    mx.eval(model(mx.array([[1], [2]]), cache=make_prompt_cache(model)))
