"""The key of the HTTP door in its file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from punie_protocol.errors import Denied, InvalidRequest, NotFound, PunieError
from punie_supervisor import door_key

GOOD = "a" * 43


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path):
    file = tmp_path / "key"
    key = door_key.obtain(file)
    assert len(key) >= 43
    assert file.stat().st_mode & 0o777 == 0o600
    assert door_key.obtain(file) == door_key.read(file) == key
    assert door_key.obtain(tmp_path / "other") != key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "other"]


def test_two_who_make_the_key_at_once_have_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "key"
    write, made = door_key._write, list[str]()

    def write_second(path: Path, key: str) -> None:
        monkeypatch.setattr(door_key, "_write", write)
        made.append(door_key.obtain(file))
        write(path, key)

    monkeypatch.setattr(door_key, "_write", write_second)
    assert door_key.obtain(file) == made[0] == door_key.read(file)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_key_of_one_s_own(tmp_path: Path):
    file = tmp_path / "key"
    file.write_text(f"{GOOD}\n")
    file.chmod(0o600)
    assert door_key.obtain(file) == GOOD


def link(file: Path) -> None:
    target = file.with_name("target")
    target.write_text(GOOD)
    target.chmod(0o600)
    file.symlink_to(target)


def written(text: bytes, mode: int = 0o600) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.write_bytes(text)
        file.chmod(mode)

    return write


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (written(b""), InvalidRequest),
        (written(b"short"), InvalidRequest),
        (written(b"\xff" * 43), InvalidRequest),
        (written(b"a" * 20 + b"\n" + b"b" * 20), InvalidRequest),
        (written(b"a" * 10_000), InvalidRequest),
        (written(GOOD.encode(), 0o640), Denied),
        (written(GOOD.encode(), 0o604), Denied),
        (link, Denied),
        (Path.mkdir, Denied),
        (os.mkfifo, Denied),
    ],
)
def test_what_is_no_private_key_is_refused_and_kept(
    tmp_path: Path, make: Callable[[Path], None], kind: type
):
    file = tmp_path / "key"
    make(file)
    for ask in (door_key.obtain, door_key.read):
        with pytest.raises(PunieError) as caught:
            ask(file)
        assert isinstance(caught.value.error, kind)
        assert caught.value.error.hint
        assert GOOD not in str(caught.value)


def test_a_key_that_is_not_there_is_not_made_by_a_reader(tmp_path: Path):
    with pytest.raises(PunieError) as caught:
        door_key.read(tmp_path / "key")
    assert isinstance(caught.value.error, NotFound)
    with pytest.raises(PunieError, match="cannot write"):
        door_key.obtain(tmp_path / "nowhere" / "key")
