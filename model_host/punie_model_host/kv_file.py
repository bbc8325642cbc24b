"""The file of one span's keys and values.

A safetensors file (https://github.com/huggingface/safetensors#format) that any reader of the format
can open: ``tokens`` first, then ``0.keys``, ``0.values``, ``1.keys`` and so on; of quantized ones
``0.keys``, ``0.keys.scales``, ``0.keys.biases``, ``0.values`` and so on. Its metadata say what it
continues (`parent`, and `at`, how many of the parent's tokens count), its `id`, a hash of all that,
and a `checksum` over every other byte of the file. A file is written once and never changed; the id
can be checked without the tensors, the checksum is whenever they are read.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Buffer, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import mlx.core as mx

from punie_model_host.kv_arrays import LayerKV
from punie_model_host.token_trie import MAX_SPAN, TOKEN_BYTES

FORMAT: Final = "punie-kv-1"
_PARTS: Final = ("keys", "values")
_PACKED_PARTS: Final = tuple(
    f"{part}{what}" for part in _PARTS for what in ("", ".scales", ".biases")
)
_MAX_HEADER: Final = 4 << 20
_BLANK: Final = "0" * 64
_NAMES: Final = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.float32: "F32",
    mx.uint64: "U64",
    mx.int64: "I64",
    mx.float64: "F64",
    mx.complex64: "C64",
}
"""All of MLX's types, by the format's names."""
_DTYPES: Final = {name: dtype for dtype, name in _NAMES.items()}
_MALFORMED: Final = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What using JSON of another shape than expected raises."""


class DamagedFile(Exception):
    """Not a file of ours, or not as it was written; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says of itself; `id` was checked, the tensors were not. `parent` is empty for the
    beginning of a sequence."""

    id: str
    parent: str
    at: int
    tokens: bytes
    size: int
    mtime: float


def span_id(fingerprint: str, parent: str, at: int, tokens: bytes) -> str:
    """Return the id of the span `tokens` after the first `at` tokens of `parent`'s."""
    place = f"{FORMAT} {fingerprint} {parent} {at} ".encode()
    return hashlib.blake2b(place + tokens, digest_size=16).hexdigest()


# writing


class Encoded:
    """A file's content, not yet hashed. `size` in bytes."""

    def __init__(
        self, fingerprint: str, parent: str, at: int, tokens: bytes, layers: Sequence[LayerKV]
    ) -> None:
        self.id = span_id(fingerprint, parent, at, tokens)
        parts = _PARTS if len(layers[0]) == len(_PARTS) else _PACKED_PARTS
        names = [f"{n}.{part}" for n in range(len(layers)) for part in parts]
        arrays = [array for layer in layers for array in layer]
        self._data: list[Buffer] = [tokens, *(memoryview(a.view(mx.uint8)) for a in arrays)]
        header: dict[str, Any] = {
            "__metadata__": {
                "format": FORMAT,
                "fingerprint": fingerprint,
                "id": self.id,
                "parent": parent,
                "at": str(at),
                "checksum": _BLANK,
            }
        }
        shapes = [("U32", [len(tokens) // TOKEN_BYTES])]
        shapes += [(_NAMES[a.dtype], list(a.shape)) for a in arrays]
        end = 0
        for name, (kind, shape), data in zip(["tokens", *names], shapes, self._data, strict=True):
            start, end = end, end + memoryview(data).nbytes
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        self._header = text.ljust(-len(text) % 8 + len(text))
        self.size = 8 + len(self._header) + end

    def write(self, stream: BinaryIO) -> None:
        """Write all of it. Raises `OSError`."""
        digest = _digest(self._header, self._data)
        stream.write(len(self._header).to_bytes(8, "little"))
        stream.write(self._header.replace(_BLANK.encode(), digest.encode(), 1))
        for data in self._data:
            stream.write(data)


def _digest(header: bytes, data: Sequence[Buffer]) -> str:
    """SHA-256: processors have instructions for it; BLAKE2 takes 2.5 times as long."""
    total = hashlib.sha256(header)
    for part in data:
        total.update(part)
    return total.hexdigest()


# reading


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file of this user; not a link, and without waiting for a pipe's other end.
    Raises `OSError`, `DamagedFile`."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    info = os.fstat(descriptor)
    if stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid():
        return cast("BinaryIO", os.fdopen(descriptor, "rb", buffering=0))
    os.close(descriptor)
    raise DamagedFile("is not a regular file of this user")


def read_head(path: Path, fingerprint: str) -> Head:
    """Return what `path` says of itself, without its tensors. Raises `OSError`, `DamagedFile`."""
    with open_plain(path) as stream:
        info = os.fstat(stream.fileno())
        length = int.from_bytes(_exactly(stream, 8), "little")
        if length > _MAX_HEADER:
            raise DamagedFile("has no header")
        header = _parse(_exactly(stream, length))
        try:
            said, count = header["__metadata__"], header["tokens"]["shape"][0]
            if not 0 < count <= MAX_SPAN or info.st_size != 8 + length + _end(header):
                raise DamagedFile("is cut off or has another size than its header says")
            tokens = _exactly(stream, count * TOKEN_BYTES)
            head = Head(
                said["id"], said["parent"], int(said["at"]), tokens, info.st_size, info.st_mtime
            )
            ours = (said["format"], said["fingerprint"]) == (FORMAT, fingerprint)
        except _MALFORMED as error:
            raise DamagedFile("has a damaged header") from error
    if not ours:
        raise DamagedFile("belongs to another model or format")
    if head.id != span_id(fingerprint, head.parent, head.at, tokens):
        raise DamagedFile("has another id than its tokens give")
    return head


def read_layers(path: Path, id: str) -> list[LayerKV]:
    """Return the keys and values of the file, which must be the one of `id`, checked against its
    checksum. Raises `OSError`, `DamagedFile`."""
    with open_plain(path) as stream:
        data = memoryview(_exactly(stream, os.fstat(stream.fileno()).st_size))
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, _MAX_HEADER):
        raise DamagedFile("is cut off: it ends in its header")
    text, body = bytes(data[8 : 8 + length]), data[8 + length :]
    header = _parse(text)
    try:
        said = header.pop("__metadata__")
        blank = text.replace(said["checksum"].encode(), _BLANK.encode(), 1)
        if _digest(blank, [body]) != said["checksum"] or said["id"] != id:
            raise DamagedFile("has another checksum than its content gives")
        return _layers(header, body)
    except (*_MALFORMED, RuntimeError) as error:  # MLX's
        raise DamagedFile("has a damaged header") from error


def _layers(header: dict[str, Any], body: memoryview) -> list[LayerKV]:
    count = header["tokens"]["shape"][0]
    parts = _PACKED_PARTS if f"0.{_PACKED_PARTS[1]}" in header else _PARTS
    layers = [
        tuple(_tensor(header[f"{n}.{part}"], body) for part in parts)
        for n in range((len(header) - 1) // len(parts))
    ]
    if not layers or any(a.ndim != 4 or a.shape[2] != count for kv in layers for a in kv):
        raise DamagedFile("has tensors of other lengths than its tokens")
    mx.eval(layers)
    return layers


def _tensor(entry: dict[str, Any], body: memoryview) -> mx.array:
    start, end = entry["data_offsets"]
    raw = mx.array(cast("Any", body[start:end]))  # any buffer will do, its stub does not say
    return raw.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile("has a header that is not JSON") from error
    if not isinstance(header, dict):
        raise DamagedFile("has a header that is no JSON object")
    return header


def _end(header: dict[str, Any]) -> int:
    """Return where the last tensor ends; each begins where the one before it does."""
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        size = math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].size
        if entry["data_offsets"] != [end, end + size]:
            raise DamagedFile("has a damaged header")
        end += size
    return end


def _exactly(stream: BinaryIO, size: int) -> bytes:
    parts, left = [], size
    while left > 0 and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    if left > 0:
        raise DamagedFile("is cut off")
    return parts[0] if len(parts) == 1 else b"".join(parts)
