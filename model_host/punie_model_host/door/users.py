"""Whose requests come through the door. Pure."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from punie_model_host.door.limits import MAX_USERS
from punie_model_host.door.wire import CLIENT


class Users:
    """Fairness keys of the requests under way. So many as `MAX_USERS` are told apart at a time,
    who comes then is one with those that name no user: each key is a share of the engine, and a
    request may name any."""

    def __init__(self) -> None:
        self._asking: Counter[str] = Counter()

    @contextmanager
    def share(self, client_id: str) -> Generator[str]:
        """Return the key that a request of `client_id` has while the context is open."""
        named = self._asking.keys() - {CLIENT}
        key = client_id if client_id in named or len(named) < MAX_USERS else CLIENT
        self._asking[key] += 1
        try:
            yield key
        finally:
            self._asking[key] -= 1
            if not self._asking[key]:
                del self._asking[key]
