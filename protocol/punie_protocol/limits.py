"""Every limit of the wire, in one place. Sizes are bytes, times are seconds."""

from typing import Final

PROTOCOL: Final = 5
"""Number of the frame protocol; two ends with different numbers refuse each other."""

FRAME_HEADER_SIZE: Final = 4
"""A frame is a big-endian unsigned length followed by that many bytes of MessagePack."""

MAX_FRAME: Final = 16 * 1024 * 1024
"""Largest payload of one frame; a longer one ends the link with ``FrameTooLarge``."""

MAX_CLIENT_MESSAGE: Final = 8 * 1024 * 1024
"""Largest JSON-RPC message a client may send to the supervisor."""

MAX_QUEUED_FRAMES: Final = 1024
"""Received frames a link holds before it stops reading from its peer."""

MAX_QUEUED_BYTES: Final = 32 * 1024 * 1024
"""Unsent bytes a link holds before a slow reader is dropped; received ones before it stops
reading."""

WRITE_HIGH_WATER: Final = 256 * 1024
"""Unsent bytes above which ``FrameLink.send`` waits for the reader."""

HANDSHAKE_TIMEOUT: Final = 10.0
"""From connection to the end of the handshake."""

SEND_TIMEOUT: Final = 30.0
"""A reader that takes nothing for so long is dropped."""

MAX_TOOL_OUTPUT: Final = 64 * 1024
"""Largest text of one tool result as the model sees it."""

MAX_READ_FILE: Final = 2 * 1024 * 1024
"""Largest text returned by one ``read_file``; the rest is cut and said to be."""

MAX_PATH: Final = 4096
MAX_PATTERN: Final = 4096
MAX_CODE: Final = 256 * 1024

MAX_HALVES: Final = 4096
"""Project halves of one worker process: bytes of its breadcrumb file, one a half. A byte is 1 while
the half is inside a call, else 0."""

MAX_TURN_CALLS: Final = 512
"""Tool calls, nested ones too, whose timings are kept with a turn."""
