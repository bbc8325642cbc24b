"""A filter of system calls, for Linux: what namespaces do not separate is refused.

The kernel's key rings are the user's own in there too, and sockets between a machine and its
virtual machines know no network namespace. The rest are calls that a build or a test does without
and that have often been the way into the kernel. A program of another architecture than the
machine's (32 bits) gets no call at all. Numbers are from ``asm/unistd.h``, the format is that of
``linux/filter.h`` and ``linux/seccomp.h``.
"""

import errno
import struct
from typing import Final, NamedTuple

_LOAD: Final = 0x20
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_ERROR: Final = 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32: Final = 0x40000000
"""Numbers from here on are of a third way to call the kernel on x86-64."""

FAMILIES: Final = (1, 2, 10, 16)
"""Sockets that are allowed: Unix, IPv4, IPv6, and those that ask the kernel about the network."""


class Machine(NamedTuple):
    """What a kernel calls its architecture, and the numbers of its calls."""

    architecture: int
    socket: int
    refused: tuple[int, ...]
    """keyctl, add_key, request_key, bpf, perf_event_open, userfaultfd, kexec_load,
    kexec_file_load, open_by_handle_at, quotactl, acct, swapon, swapoff, reboot."""
    unknown: tuple[int, ...]
    """io_uring_setup, io_uring_enter, io_uring_register: programs then do without."""


MACHINES: Final = {
    "x86_64": Machine(
        0xC000003E,
        41,
        (250, 248, 249, 321, 298, 323, 246, 320, 304, 179, 163, 167, 168, 169),
        (425, 426, 427),
    ),
    "aarch64": Machine(
        0xC00000B7,
        198,
        (219, 217, 218, 280, 241, 282, 104, 294, 265, 60, 89, 224, 225, 142),
        (425, 426, 427),
    ),
}
"""By what ``uname`` says. Others get no filter."""


def program(machine: str) -> bytes | None:
    """Return the filter for a machine, as ``bwrap --seccomp`` reads it. Pure."""
    if (known := MACHINES.get(machine)) is None:
        return None
    refused, unknown = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    lines = [
        _line(_LOAD, _ARCHITECTURE),
        _line(_EQUAL, known.architecture, past=1),
        _line(_RETURN, unknown),
        _line(_LOAD, _NUMBER),
        *_answer(_AT_LEAST, _X32, unknown),
    ]
    for number in known.refused:
        lines += _answer(_EQUAL, number, refused)
    for number in known.unknown:
        lines += _answer(_EQUAL, number, unknown)
    return b"".join([*lines, *_sockets(known.socket), _line(_RETURN, _ALLOW)])


def _sockets(number: int) -> list[bytes]:
    """Return lines that refuse a socket of another family, and leave other calls alone."""
    lines = [_line(_LOAD, _FIRST_ARGUMENT)]
    for family in FAMILIES:
        lines += _answer(_EQUAL, family, _ALLOW)
    lines.append(_line(_RETURN, _ERROR | errno.EAFNOSUPPORT))
    return [_line(_EQUAL, number, other=len(lines)), *lines]


def _answer(test: int, value: int, verdict: int) -> list[bytes]:
    return [_line(test, value, other=1), _line(_RETURN, verdict)]


def _line(code: int, value: int, past: int = 0, other: int = 0) -> bytes:
    """Return one instruction; a test skips `past` lines when it is true, `other` when not."""
    return struct.pack("=HBBI", code, past, other, value)
