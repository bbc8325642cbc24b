"""Which model answers a prompt: one of our own host, or a server's."""

from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from punie_protocol import backends
from punie_protocol.backends import Backend
from punie_protocol.client import ModelStatus, Use, UseReport
from punie_protocol.errors import InvalidRequest, PunieError
from punie_supervisor.model import ModelHost
from punie_supervisor.servers import Progress, Servers


class Models:
    """Joins the model host and the servers. `default` is the model of prompts that name none: with
    a server's address our host is started only when somebody asks for a model of ours."""

    def __init__(self, host: ModelHost, servers: Servers, default: str) -> None:
        self.host = host
        self.servers = servers
        self._default = default if backends.is_backend(default) else None

    @property
    def name(self) -> str:
        """The model of a prompt that names none."""
        return self._default or self.host.name

    def start(self, *, rest: bool = False) -> None:
        """Start our host, if it has the default model, unless it is to `rest`; in any case when its
        HTTP door is wanted."""
        needed = self._default is None and not rest
        if needed or self.host.door.wanted is not None:
            self.host.start()

    def check(self, model: str | None) -> None:
        """Raise `PunieError` when a prompt's `model` looks like a server's address and is none."""
        if model is not None and backends.is_backend(model):
            backends.parse(model)

    async def obtain(
        self, model: str | None, progress: Progress, held: ExitStack
    ) -> Backend | None:
        """Wait until `model` answers; of a server, return what the worker needs to ask it. A model
        of our host stays until `held` is closed. Raises `PunieError`."""
        model = model or self._default
        if model is not None and backends.is_backend(model):
            return await self.servers.ready(model, progress)
        await self.host.hold(model, progress)
        held.callback(self.host.release)
        return None

    async def use(self, wish: Use, progress: Progress) -> UseReport:
        """As `ModelHost.use`; a model of ours is then that of prompts that name none. Raises
        `PunieError`, for a server's address too."""
        if wish.model is not None and backends.is_backend(wish.model):
            text = f"{wish.model} is a server's: our model host does not load it"
            hint = f"name it in a prompt, or: punie restart --model {wish.model}"
            raise PunieError(InvalidRequest(message=text, hint=hint))
        report = await self.host.use(wish, progress)
        if self._default is None:
            return report
        if wish.model is None:
            return msgspec.structs.replace(report, model=self._default, folder="")
        self._default = None
        return msgspec.structs.replace(report, changed=True)

    def status(self, rss: Callable[[int | None], int]) -> ModelStatus:
        """Return the model's part of the status report: the server's while our host rests."""
        if self._default is None or not self.host.rests:
            return self.host.status(rss)
        return ModelStatus(name=self._default, folder="", state="server", pid=None, rss_bytes=0)
