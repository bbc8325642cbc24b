"""Who is next. Pure: interactive before background; within a priority the clients take turns, and
each client's requests keep their order."""

from collections import OrderedDict, deque
from collections.abc import Callable

from punie_protocol.messages.common import Priority


class Scheduler[R]:
    """A bounded queue of requests of type `R`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._queues: dict[Priority, OrderedDict[str, deque[R]]] = {
            priority: OrderedDict() for priority in (Priority.INTERACTIVE, Priority.BACKGROUND)
        }

    def __len__(self) -> int:
        return sum(len(q) for clients in self._queues.values() for q in clients.values())

    def push(self, request: R, client_id: str, priority: Priority) -> bool:
        """Queue `request`; False when the queue is full."""
        if len(self) >= self.limit:
            return False
        self._queues[priority].setdefault(client_id, deque()).append(request)
        return True

    def pop(self) -> R | None:
        """Return the next request, or None."""
        for clients in self._queues.values():
            if clients:
                client_id, queue = clients.popitem(last=False)
                request = queue.popleft()
                if queue:
                    clients[client_id] = queue
                return request
        return None

    def remove(self, matches: Callable[[R], bool]) -> list[R]:
        """Take out every request that `matches`, oldest first within a client."""
        removed: list[R] = []
        for clients in self._queues.values():
            for client_id, queue in list(clients.items()):
                removed += [request for request in queue if matches(request)]
                kept = deque(request for request in queue if not matches(request))
                if kept:
                    clients[client_id] = kept
                else:
                    del clients[client_id]
        return removed
