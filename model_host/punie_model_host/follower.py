"""The process of a rank other than 0: an engine, and nothing that anybody could connect to."""

import logging
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from punie_model_host.lifetime import leave, own_descriptor_limit
from punie_model_host.log import event
from punie_model_host.ranks import Place, Sharding
from punie_protocol.engine import EngineSettings

EXIT_OK: Final = 0
EXIT_ENGINE: Final = 70
EXIT_ORPHAN: Final = 75
_TERM_DEADLINE: Final = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerOptions:
    """What rank 0 has too: every rank is started with the same command."""

    models_dir: Path
    settings: EngineSettings
    place: Place
    sharding: Sharding


def run(options: FollowerOptions) -> int:
    """Follow rank 0 until it ends; return the exit code. After SIGTERM it has `_TERM_DEADLINE` to
    say so: whoever ends one rank mostly ends all. Does not return when rank 0 is gone, the process
    leaves then: its engine may wait for rank 0 in MLX for ever."""
    codes: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    joined = threading.Event()
    arguments = options, codes, joined.set
    threading.Thread(target=_follow, args=arguments, name="engine", daemon=True).start()
    joined.wait()  # until then SIGTERM ends the process by itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 has it too, and decides
    signal.signal(signal.SIGTERM, lambda _number, _frame: codes.put(None))
    if (code := codes.get()) is not None:
        return code
    try:
        return codes.get(timeout=_TERM_DEADLINE) or EXIT_OK
    except queue.Empty:
        return EXIT_OK


def _follow(
    options: FollowerOptions, codes: queue.SimpleQueue[int | None], joined: Callable[[], None]
) -> None:
    rank = options.place.rank
    try:
        with own_descriptor_limit():
            from punie_model_host import player

        player.follow(
            options.models_dir, options.settings, options.place, options.sharding, joined, _lost
        )
    except BaseException as error:  # noqa: BLE001  reported, and the process ends
        _log.critical("rank-failed rank=%d", rank, exc_info=error)
        codes.put(EXIT_ENGINE)
    else:
        event(_log, logging.INFO, "rank-ended", rank=rank)
        codes.put(EXIT_OK)
    finally:
        joined()


def _lost(reason: str) -> None:
    event(_log, logging.CRITICAL, "leader-lost", reason=reason)
    leave(EXIT_ORPHAN)
