"""The way to the clients of one session."""

import logging

from punie_protocol.errors import LinkClosed, MessageTooLarge
from punie_protocol.link import FrameLink
from punie_protocol.messages.to_supervisor import AgentMessage
from punie_protocol.messages.to_worker import ToWorker

_log = logging.getLogger(__name__)


class Outlet:
    """Sends ACP messages in order. Never raises for one that cannot be sent: without its link the
    worker ends by itself, and one that is too large is logged and left out."""

    def __init__(self, link: FrameLink[ToWorker], session_id: str) -> None:
        self._link = link
        self._session_id = session_id

    def send_nowait(self, body: bytes) -> None:
        """Send without waiting."""
        try:
            self._link.send_nowait(self._message(body))
        except LinkClosed:
            return
        except MessageTooLarge as error:
            _log.error("session %s: not sent: %s", self._session_id, error)

    async def send(self, body: bytes) -> None:
        """Send at once, then wait while the supervisor is slow. Cancelled, it has sent."""
        try:
            await self._link.send(self._message(body))
        except LinkClosed:
            return
        except MessageTooLarge as error:
            _log.error("session %s: not sent: %s", self._session_id, error)

    def _message(self, body: bytes) -> AgentMessage:
        return AgentMessage(session_id=self._session_id, body=body)
