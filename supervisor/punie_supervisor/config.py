"""The user's config file, ``config.toml``."""

from typing import Self

import msgspec

from punie_protocol.errors import InvalidRequest, PunieError
from punie_protocol.messages.common import Isolation
from punie_supervisor.paths import Paths


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings with their defaults. `model` is a name or a path, `isolation` that of projects
    which do not say otherwise."""

    model: str = "embedded"
    isolation: Isolation = Isolation.PROCESS

    @classmethod
    def load(cls, paths: Paths) -> Self:
        """Return the settings; defaults when there is no file. Raises `PunieError` that names the
        file and the key."""
        file = paths.config_file
        try:
            return msgspec.toml.decode(file.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (msgspec.MsgspecError, ValueError) as error:
            raise PunieError(InvalidRequest(message=f"{file}: {error}")) from None
        except OSError as error:
            raise PunieError(
                InvalidRequest(message=f"cannot read {file}: {error.strerror}")
            ) from None
