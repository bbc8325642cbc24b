"""Every limit of the HTTP door. Sizes are bytes, times are seconds."""

from typing import Final

from punie_protocol.limits import MAX_FRAME

MAX_BODY: Final = MAX_FRAME
"""Of one request: as much as comes in by the other door, a worker's link. To decode the worst of
that takes a third of a second, in which nobody's tokens move."""
MAX_ITEMS: Final = 10_000
"""Messages of a conversation, and parts of one message."""
MAX_IDS: Final = 1 << 20
"""Token ids of a raw prompt; longer than any model's window."""
MAX_CHOICES: Final = 16
"""Answers that one request may ask for."""
MAX_BODIES: Final = 3 * MAX_BODY
"""Of all requests that are being read at one time."""
MAX_DISCARDED: Final = 4 * MAX_BODY
"""So much of a body that is too large is read and thrown away: who still sends reads no answer."""
MAX_HEAD: Final = 32 * 1024
"""Request line and headers."""
MAX_UNSENT: Final = 1024 * 1024
"""Of an answer that its reader has not taken; with more the request is cancelled."""
SEND_BUFFER: Final = 128 * 1024
"""Of a connection, in the kernel; it would hide a slow reader behind megabytes."""
MAX_CONNECTIONS: Final = 128
HEAD_DEADLINE: Final = 10.0
"""From the first byte (of a new connection, from its beginning) to the end of the headers."""
BODY_DEADLINE: Final = 5.0
"""For which a body may stop coming; ahead of `BODY_PACE` it may not get by more than that."""
BODY_PACE: Final = 1_000_000
"""Bytes a second that a body comes with at least: what was read of it takes others' room."""
KEEP_ALIVE: Final = 60.0
"""For how long a connection without a request stays."""
PULSE: Final = 15.0
"""Between two signs of life in a stream that has nothing to say."""
SEND_DEADLINE: Final = 2 * PULSE
"""A reader that takes nothing for so long is dropped."""
CLOSE_DEADLINE: Final = 1.0
"""For requests under way to end when the door is closed."""
MAX_USER: Final = 64
"""Characters of a `user` that tell clients apart."""
MAX_USERS: Final = 8
"""Such clients with requests under way; each has as large a share of the engine as a project."""
STALLED: Final = 20.0
"""An engine that has work and says nothing for so long is not healthy. It is replaced later than
that: see `watchdog.PROGRESS_DEADLINE`."""
