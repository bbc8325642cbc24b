"""Objects that a fork shall share stay shared: their reference counts are never written again.

Each use of an object writes its reference count, and so copies its page into the process that uses
it: 7 MB a worker after some turns, most of it for functions and their constants. CPython gives
immortal objects (``None``, interned strings) a count that nobody writes (PEP 683). The objects of
a process about to be forked all live as long as the process, so they get that count too. CPython
has no function for it before 3.15; the layout here is that of 3.14, checked by a probe before it
is used.
"""

import ctypes
import gc
import sys
import sysconfig
from itertools import batched
from types import CodeType
from typing import Final

_COUNT: Final = 3 << 30
"""What CPython 3.14 gives immortal objects, in the lower half of the first word."""
_IS_IMMORTAL: Final = 1 << 31
_ALIGNMENT: Final = 16
_LARGEST_SMALL: Final = 512
_POOL: Final = 16 * 1024
_POOL_HEADER: Final = 48
"""Of CPython's allocator for small objects, Objects/obmalloc.c."""
_MOST_FREE: Final = 100_000
_BATCH: Final = 4096
_HOLDERS: Final = frozenset({CodeType, tuple})

_count_at = ctypes.c_uint32.from_address


def possible() -> bool:
    """Whether this Python is the one whose objects are laid out as here."""
    known = (
        sys.implementation.name == "cpython"
        and sys.version_info[:2] == (3, 14)
        and sys.maxsize > 1 << 32
        and sys.byteorder == "little"
        and not sysconfig.get_config_var("Py_GIL_DISABLED")
        and not sysconfig.get_config_var("Py_DEBUG")
    )
    return known and _probe()


def make_all() -> None:
    """Make every object of this process immortal: what the collector knows, and all that it refers
    to. What becomes useless later is not given back. Only where `possible`. Takes about 3 us an
    object."""
    for batch in batched(gc.get_objects(), _BATCH, strict=False):
        layer = list(batch)
        while layer:
            _make(set(map(id, layer)))
            layer = _below(layer)


def fill_pools() -> None:
    """Use up the free places between the objects that are here, 0.7 MB of them, for good: new
    objects then come to pages of their own. Only where `possible`."""
    allocate = ctypes.pythonapi.PyObject_Malloc
    allocate.argtypes, allocate.restype = [ctypes.c_size_t], ctypes.c_void_p
    for size in range(_ALIGNMENT, _LARGEST_SMALL + 1, _ALIGNMENT):
        for _ in range(_MOST_FREE):
            if allocate(size) % _POOL == _POOL_HEADER:  # the first place of a fresh pool
                break


def _below(layer: list[object]) -> list[object]:
    """Return what these refer to and the collector does not know. Of that, only codes and tuples
    refer to more."""
    below = gc.get_referents(*layer)
    for code in layer:
        if type(code) is CodeType:  # the collector does not look into it
            below += (code.co_consts, code.co_names, code.co_linetable, code.co_exceptiontable)
            below += (code.co_name, code.co_qualname, code.co_filename)
    holders = [one for one in below if type(one) in _HOLDERS and _is_new(one)]
    _make(set(map(id, below)) - set(map(id, holders)))
    return holders


def _is_new(found: object) -> bool:
    return _count_at(id(found)).value < _IS_IMMORTAL and not gc.is_tracked(found)


def _make(addresses: set[int]) -> None:
    for address in addresses:
        if (count := _count_at(address)).value < _IS_IMMORTAL:
            count.value = _COUNT


def _probe() -> bool:
    """Whether the interpreter takes a list for immortal once that is written to it."""
    probe: list[object] = []
    if sys._is_immortal(probe) or _count_at(id(probe)).value != 1:
        return False
    _count_at(id(probe)).value = _COUNT
    return sys._is_immortal(probe) and _count_at(id(None)).value >= _IS_IMMORTAL
