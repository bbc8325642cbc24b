"""What every session of a worker process shares."""

import msgspec

from punie_workers.code_mode import CodeMode
from punie_workers.model_client import ModelClient


class Services(msgspec.Struct, frozen=True):
    """The link to the model host and the pool of sandboxes."""

    model: ModelClient
    code: CodeMode
