"""What is wanted of the HTTP door, while several say so at once."""

import asyncio
from pathlib import Path
from typing import cast

from punie_protocol.messages.to_model_host import CloseDoor, OpenDoor
from punie_protocol.messages.to_supervisor import DoorIs
from punie_supervisor.child import Child
from punie_supervisor.door import Door


class Host:
    """A host's link that keeps what it was told."""

    def __init__(self) -> None:
        self.link = self
        self.told: list[OpenDoor | CloseDoor] = []

    def send_nowait(self, message: OpenDoor | CloseDoor) -> None:
        self.told.append(message)

    async def asked(self, count: int) -> OpenDoor | CloseDoor:
        async with asyncio.timeout(5):
            while len(self.told) < count:  # noqa: ASYNC110  a thread reads the key before
                await asyncio.sleep(0.001)
        return self.told[count - 1]


def test_a_door_that_is_closed_while_it_opens_stays_closed(tmp_path: Path):
    async def main() -> None:
        host = Host()
        child = cast("Child", host)
        door = Door(tmp_path / "key", None)
        opening = asyncio.create_task(door.open(child, 8099))
        asked = await host.asked(1)
        closing = asyncio.create_task(door.close(child))
        await asyncio.sleep(0)
        door.told(child, DoorIs(request_id=asked.request_id, port=8099))
        await opening
        asked = await host.asked(2)
        assert isinstance(asked, CloseDoor)
        door.told(child, DoorIs(request_id=asked.request_id, port=None))
        await closing
        assert door.wanted is None
        assert door.status() is None

    asyncio.run(main())
