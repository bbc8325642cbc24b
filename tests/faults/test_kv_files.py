"""The prefix cache's files damaged, cut off, foreign, in the way: never an exception, never wrong
keys and values, and the host goes on."""

import hashlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from punie_model_host.kv_file import Encoded
from punie_model_host.kv_tier import KVTier
from punie_model_host.prefix_cache import PrefixCache
from tests.support.kv import (
    FINGERPRINT,
    check_trie,
    check_values,
    files_of,
    kv,
    open_tier,
    reader,
)

ROOMY = 1 << 30
BASE = list(range(300))
LEFT, RIGHT = [*BASE[:200], *[901] * 50], [*BASE, *[902] * 50]


def never() -> bool:
    return False


def started(folder: Path) -> PrefixCache:
    return PrefixCache(ROOMY, tier=open_tier(folder), quiet=0.0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tree of files, of which tests damage copies."""
    folder = tmp_path_factory.mktemp("kv")
    cache = started(folder)
    for tokens in (BASE, LEFT, RIGHT):
        cache.put(tokens, reader(tokens))
    cache.flush(never)
    assert len(files_of(folder)) == 4
    return folder


def survives(folder: Path, *, packed: bool = False) -> int:
    """Start on `folder`, borrow everything, check it, keep it again; return how many tokens were
    there."""
    cache = started(folder)
    check_trie(cache._root)
    found = 0
    for tokens in (BASE, LEFT, RIGHT):
        asked = [*tokens, 0]
        while cache.warm(asked, ROOMY):
            pass
        lease = cache.lease(asked)
        check_values(lease.layers, asked[: lease.length])
        found += lease.length
    for tokens in (BASE, LEFT, RIGHT):
        cache.put(tokens, reader(tokens, packed=packed))
        assert cache.lease([*tokens, 0]).length == len(tokens)
    cache.flush(never)
    check_trie(cache._root)
    again = started(folder)
    assert [again.match([*tokens, 0]) for tokens in (BASE, LEFT, RIGHT)] == [300, 250, 350]
    return found


WHOLE = 300 + 250 + 350


def test_sound_files_are_whole(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "kv")
    assert survives(tmp_path / "kv") == WHOLE


@pytest.mark.timeout(120)
def test_any_byte_may_change(sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each region of each file, and many bytes of it: at most what the file was for is lost."""
    rng = random.Random(5)
    for file in files_of(sound):
        content = file.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        places = {0, 1, 7, 8, 9, header - 1, header, header + 3, len(content) - 1}
        places |= {rng.randrange(8, header) for _ in range(40)}
        places |= {rng.randrange(header, len(content)) for _ in range(12)}
        for place in sorted(places):
            target = tmp_path / f"{file.name[:4]}-{place}"
            shutil.copytree(sound, target)
            damaged = bytearray(content)
            damaged[place] ^= 1 << rng.randrange(8)
            (target / FINGERPRINT / file.name).write_bytes(damaged)
            caplog.clear()
            assert survives(target) < WHOLE, f"byte {place} of {file.name} is not checked"
            assert "kv-file-skipped" in caplog.text
            shutil.rmtree(target)


@pytest.fixture(scope="module")
def sound_packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with six arrays a layer."""
    folder = tmp_path_factory.mktemp("packed")
    cache = started(folder)
    for tokens in (BASE, LEFT, RIGHT):
        cache.put(tokens, reader(tokens, packed=True))
    cache.flush(never)
    return folder


def test_any_byte_of_packed_ones_may_change(sound_packed: Path, tmp_path: Path) -> None:
    shutil.copytree(sound_packed, tmp_path / "whole")
    assert survives(tmp_path / "whole", packed=True) == WHOLE
    rng = random.Random(6)
    file = files_of(sound_packed)[0]
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    within = [rng.randrange(8, header) for _ in range(30)]
    for place in (*within, *(rng.randrange(header, len(content)) for _ in range(10))):
        target = tmp_path / str(place)
        shutil.copytree(sound_packed, target)
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        (target / FINGERPRINT / file.name).write_bytes(damaged)
        assert survives(target, packed=True) < WHOLE, f"byte {place} is not checked"


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_the_other_kind_are_given_up(
    sound: Path, sound_packed: Path, tmp_path: Path, packed: bool
) -> None:
    """Another packing has another folder; even in the same one nothing wrong is borrowed."""
    shutil.copytree(sound if packed else sound_packed, tmp_path / "kv")
    cache = started(tmp_path / "kv")
    cache.put(BASE, reader(BASE, packed=packed))
    for tokens in (BASE, LEFT, RIGHT):
        while cache.warm([*tokens, 0], ROOMY):
            pass
        layers = cache.lease([*tokens, 0]).layers
        assert layers is not None
        assert len(layers[0]) == (6 if packed else 2)
    check_trie(cache._root)
    assert survives(tmp_path / "kv", packed=packed)


def test_any_end_may_be_missing(sound: Path, tmp_path: Path) -> None:
    for file in files_of(sound)[:2]:
        content = file.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        ends = [0, 1, 7, 8, 9, header - 1, header, header + 1, header + 100, len(content) - 1]
        for end in ends:
            target = tmp_path / f"{file.name[:4]}-{end}"
            shutil.copytree(sound, target)
            (target / FINGERPRINT / file.name).write_bytes(content[:end])
            assert survives(target) < WHOLE
        longer = tmp_path / f"{file.name[:4]}-longer"
        shutil.copytree(sound, longer)
        (longer / FINGERPRINT / file.name).write_bytes(content + b"\0")
        assert survives(longer) < WHOLE


@pytest.mark.parametrize("which", range(4))
def test_any_file_may_be_missing(sound: Path, tmp_path: Path, which: int) -> None:
    shutil.copytree(sound, tmp_path / "kv")
    files_of(tmp_path / "kv")[which].unlink()
    assert survives(tmp_path / "kv") < WHOLE


@pytest.mark.parametrize("which", range(4))
def test_a_file_may_go_while_the_host_runs(sound: Path, tmp_path: Path, which: int) -> None:
    shutil.copytree(sound, tmp_path / "kv")
    cache = started(tmp_path / "kv")
    files_of(tmp_path / "kv")[which].unlink()
    for tokens in (BASE, LEFT, RIGHT):
        while cache.warm([*tokens, 0], ROOMY):
            pass
        lease = cache.lease([*tokens, 0])
        check_values(lease.layers, tokens[: lease.length])
        assert cache.match([*tokens, 0]) == lease.length
    check_trie(cache._root)


def test_a_file_may_be_replaced_while_the_host_runs(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "kv")
    cache = started(tmp_path / "kv")
    files = files_of(tmp_path / "kv")
    for file, other in zip(files, [*files[1:], files[0]], strict=True):
        file.write_bytes((sound / FINGERPRINT / other.name).read_bytes())
    assert cache.match([*RIGHT, 0]) == 350
    assert not cache.warm([*RIGHT, 0], ROOMY)
    assert cache.lease([*RIGHT, 0]).length == 0


HEADERS = {
    "no object": b"[]",
    "empty object": b"{}",
    "no metadata": b'{"tokens":{"dtype":"U32","shape":[1],"data_offsets":[0,4]}}',
    "metadata of another kind": b'{"__metadata__":3,"tokens":{"shape":[1]}}',
    "tokens of another kind": b'{"__metadata__":{},"tokens":[]}',
    "no shape": b'{"__metadata__":{},"tokens":{"shape":[]}}',
    "a shape of text": b'{"__metadata__":{},"tokens":{"shape":["x"]}}',
    "too many tokens": b'{"__metadata__":{},"tokens":{"dtype":"U32","shape":[1000000000000]}}',
    "no tokens": b'{"__metadata__":{},"tokens":{"dtype":"U32","shape":[0],"data_offsets":[0,0]}}',
    "unknown type": b'{"__metadata__":{},"tokens":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}',
    "deep": b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_of_any_kind(sound: Path, tmp_path: Path, header: bytes) -> None:
    shutil.copytree(sound, tmp_path / "kv")
    file = files_of(tmp_path / "kv")[0]
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\1\0\0\0")
    assert survives(tmp_path / "kv") < WHOLE


def _forged(change: Callable[[dict], None], data: Callable[[bytes], bytes] = bytes) -> bytes:
    """Return a file whose checksum is right and whose header says something else."""
    stream = io.BytesIO()
    tokens = b"\1\0\0\0\2\0\0\0"
    Encoded(FINGERPRINT, "", 0, tokens, kv([1, 2])).write(stream)
    content = stream.getvalue()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    header["__metadata__"]["checksum"] = "0" * 64
    text = json.dumps(header).encode()
    body = data(content[8 + length :])
    digest = hashlib.sha256(text + body).hexdigest().encode()
    return len(text).to_bytes(8, "little") + text.replace(b"0" * 64, digest, 1) + body


def _other_shape(header: dict) -> None:
    header["0.keys"]["shape"] = [1, 1, 4, 3]


def _no_layers(header: dict) -> None:
    for name in list(header)[2:]:
        del header[name]


def _odd_layers(header: dict) -> None:
    header["x"] = header.pop("1.values")


def _flat(header: dict) -> None:
    header["0.keys"]["shape"] = [12]


@pytest.mark.parametrize("change", [_other_shape, _odd_layers, _flat])
def test_a_right_checksum_of_wrong_shapes(tmp_path: Path, change: Callable[[dict], None]) -> None:
    cache = started(tmp_path)
    cache.put([1, 2], reader([1, 2]))
    cache.flush(never)
    (file,) = files_of(tmp_path)
    file.write_bytes(_forged(change))
    again = started(tmp_path)
    assert again.match([1, 2, 3]) == 2
    assert not again.warm([1, 2, 3], ROOMY)
    assert again.lease([1, 2, 3]).length == 0
    assert files_of(tmp_path) == []


def test_a_right_checksum_of_nothing(tmp_path: Path) -> None:
    (tmp_path / FINGERPRINT).mkdir()
    content = _forged(_no_layers, lambda body: body[:8])
    name = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["id"]
    (tmp_path / FINGERPRINT / f"{name}.kv.safetensors").write_bytes(content)
    cache = started(tmp_path)
    assert cache.match([1, 2, 3]) == 2
    assert not cache.warm([1, 2, 3], ROOMY)
    assert cache.match([1, 2, 3]) == 0


@pytest.mark.parametrize("at", [-1, 0, 3, 500])
def test_a_place_that_the_parent_does_not_have(tmp_path: Path, at: int) -> None:
    cache = started(tmp_path)
    cache.put([1, 2], reader([1, 2]))
    cache.flush(never)
    (file,) = files_of(tmp_path)
    child = Encoded(FINGERPRINT, file.name[:32], at, b"\3\0\0\0", kv([3]))
    with (file.parent / f"{child.id}.kv.safetensors").open("wb") as stream:
        child.write(stream)
    assert started(tmp_path).match([1, 2, 3, 3]) == 2
    assert files_of(tmp_path) == [file]


# foreign


def test_another_models_files_are_not_used(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound / FINGERPRINT, tmp_path / ("cd" * 16))
    cache = PrefixCache(ROOMY, tier=KVTier(tmp_path, "cd" * 16, ROOMY, 0))
    assert cache.match([*BASE, 0]) == 0
    assert list((tmp_path / ("cd" * 16)).iterdir()) == []


def test_a_file_under_another_name_is_not_used(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "kv")
    files = files_of(tmp_path / "kv")
    content = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    files[1].write_bytes(content)
    assert survives(tmp_path / "kv") < WHOLE


def test_what_is_not_ours_stays(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kv" / FINGERPRINT
    shutil.copytree(sound, tmp_path / "kv")
    (folder / "notes.txt").write_text("mine")
    (folder / ("9" * 32 + ".kv.safetensors")).mkdir()
    assert survives(tmp_path / "kv") == WHOLE
    assert (folder / "notes.txt").read_text() == "mine"


def test_links_and_pipes_are_not_followed(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kv" / FINGERPRINT
    shutil.copytree(sound, tmp_path / "kv")
    linked, piped, *_ = files_of(tmp_path / "kv")
    outside = tmp_path / "outside"
    linked.rename(outside)
    linked.symlink_to(outside)
    piped.unlink()
    os.mkfifo(piped)
    os.mkfifo(folder / ("9" * 32 + ".kv.safetensors"))
    assert survives(tmp_path / "kv") < WHOLE
    assert outside.exists(), "the link goes, not what it points to"
    assert not linked.is_symlink()


def test_a_linked_folder_is_not_used(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kv").mkdir()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(sound / FINGERPRINT, elsewhere)
    (tmp_path / "kv" / FINGERPRINT).symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    cache = started(tmp_path / "kv")
    assert cache.match([*BASE, 0]) == 0
    cache.put([1], reader([1]))
    assert cache.flush(never) == 0
    assert sorted(elsewhere.iterdir()) == before
    assert caplog.text.count("kv-tier-not-written") == 1


# no disk


def _gone(folder: Path) -> None:
    shutil.rmtree(folder / FINGERPRINT)


def test_a_folder_that_goes_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = started(tmp_path)
    _gone(tmp_path)
    for n in range(5):
        cache.put([n] * 10, reader([n] * 10))
        cache.idle(2.0 * n)
        assert not cache.idle(2.0 * n + 1)
    assert cache.flush(never) == 0
    assert [cache.match([n] * 11) for n in range(5)] == [10] * 5
    assert caplog.text.count("kv-tier-not-written") == 1
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = started(tmp_path / "file")
    cache.put([1] * 10, reader([1] * 10))
    assert cache.flush(never) == 0
    assert cache.match([1] * 11) == 10
    assert len(caplog.records) == 1


@contextmanager
def files_of_at_most(size: int) -> Generator[None]:
    """The kernel takes no more of any file: what a full disk is to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 4000])
def test_a_full_disk(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    cache = started(tmp_path)
    tokens = list(range(1000))
    cache.put(tokens, reader(tokens))
    cache.idle(0.0)
    with files_of_at_most(size):
        assert not cache.idle(1.0)
        assert cache.flush(never) == 0
    assert caplog.text.count("kv-tier-not-written") == 1
    assert len(caplog.records) == 1
    assert len(list((tmp_path / FINGERPRINT).iterdir())) == 1, "half a file is left"
    assert cache.match([*tokens, 0]) == 1000
    assert started(tmp_path).match([*tokens, 0]) == 256


# killed

WRITER = """
import sys
from pathlib import Path
from punie_model_host.kv_tier import KVTier
from punie_model_host.prefix_cache import PrefixCache
from tests.support.kv import FINGERPRINT, open_tier, reader

cache = PrefixCache(1 << 30, tier=open_tier(Path(sys.argv[1])))
print("ready", flush=True)
for n in range(1000):
    tokens = [n] * 1000
    cache.put(tokens, reader(tokens))
    cache.flush(lambda: False)
"""


@pytest.mark.timeout(60)
def test_killed_while_it_writes(tmp_path: Path) -> None:
    """Whatever the moment, what is left is sound and nothing half is kept."""
    for files in (3, 10, 25):
        folder = tmp_path / str(files)
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 30
            while len(files_of(folder)) < files and time.monotonic() < deadline:
                pass
            writer.send_signal(signal.SIGKILL)
        left = len(files_of(folder))
        assert left >= files
        cache = started(folder)
        assert sum(cache.match([n] * 1001) for n in range(1000)) == sum(
            node.length for node in cache._root.below()
        )
        assert len({node.stored for node in cache._root.below()}) == left
        for n in range(left // 4 + 1):
            while cache.warm([n] * 1001, ROOMY):
                pass
            lease = cache.lease([n] * 1001)
            check_values(lease.layers, [n] * lease.length)


def test_what_a_kill_left_is_removed(sound: Path, tmp_path: Path) -> None:
    """The moment between the write and the new name."""
    shutil.copytree(sound, tmp_path / "kv")
    folder = tmp_path / "kv" / FINGERPRINT
    file = files_of(tmp_path / "kv")[0]
    half = folder / f".{file.name[:32]}.0123abcd.tmp"
    file.rename(half)
    started(tmp_path / "kv")
    assert not half.exists()
    assert survives(tmp_path / "kv") < WHOLE


def test_a_loss_of_the_cache_is_all_that_an_orphan_costs(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the first file none of the others can be used; they are deleted."""
    shutil.copytree(sound, tmp_path / "kv")
    caplog.set_level(logging.WARNING)
    cache = started(tmp_path / "kv")
    (root,) = cache._root.children.values()
    assert root.stored is not None
    (tmp_path / "kv" / FINGERPRINT / f"{root.stored.id}.kv.safetensors").unlink()
    again = started(tmp_path / "kv")
    assert list(again._root.below()) == []
    assert files_of(tmp_path / "kv") == []
    assert caplog.text.count("kv-file-skipped") == 3
