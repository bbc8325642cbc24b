"""What every session of a worker process shares."""

import msgspec

from punie_protocol.permissions import PermissionSettings
from punie_workers.code_mode import CodeMode
from punie_workers.ledger import Ledger
from punie_workers.models import Models


class Services(msgspec.Struct, frozen=True):
    """The models, the pool of sandboxes, the supervisor's journal, and what the user's config
    file permits."""

    models: Models
    code: CodeMode
    ledger: Ledger
    permissions: PermissionSettings
