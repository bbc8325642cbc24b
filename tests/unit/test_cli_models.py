"""`punie model list`: what folders say of themselves, and which is in use."""

import json
from pathlib import Path
from typing import Any

import pytest

from punie_protocol.client import ModelStatus, UseReport
from punie_protocol.engine import DraftModelStatus, EngineSettings, EngineStatus
from punie_supervisor.cli.model_list import Model, _folders, _name, read, render, with_state
from punie_supervisor.cli.use import line

QWEN = {
    "model_type": "qwen3_moe",
    "max_position_embeddings": 262_144,
    "torch_dtype": "bfloat16",
    "quantization": {"bits": 4, "group_size": 64},
}


def folder(at: Path, config: Any, weights: int = 100) -> Path:
    at.mkdir(parents=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (at / "config.json").write_text(text)
    if weights:
        (at / "model-1.safetensors").write_bytes(b"x" * (weights // 2))
        (at / "model-2.safetensors").write_bytes(b"x" * (weights - weights // 2))
    return at


def status(folder: str, *, draft: str = "", loaded: str = "") -> ModelStatus:
    return ModelStatus(
        name="m",
        folder=folder,
        state="ready",
        pid=7,
        rss_bytes=0,
        settings=EngineSettings(draft_model=draft or None),
        engine=EngineStatus(draft_model=DraftModelStatus(name=loaded)),
    )


def test_a_folder_of_packed_weights(tmp_path: Path) -> None:
    at = folder(tmp_path / "qwen", QWEN, weights=1001)
    assert read("qwen", at) == Model(
        name="qwen",
        path=str(at),
        type="qwen3_moe",
        bytes=1001,
        bits=4,
        group_size=64,
        dtype="bfloat16",
        context_window=262_144,
    )
    head, row, *_ = render([read("qwen", at)], tmp_path)
    assert head.split() == ["model", "weights", "size", "context", "type"]
    assert row.split() == ["qwen", "4-bit,", "group", "64", "0", "MB", "262144", "qwen3_moe"]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{", "config.json: "),
        ("[]", "config.json: it is no object"),
        ("[" * 100_000, "config.json: "),
        ('{"quantization": 3, "max_position_embeddings": "x", "model_type": 4}', ""),
    ],
)
def test_a_faulty_folder_is_listed_with_its_fault(
    tmp_path: Path, config: str, problem: str
) -> None:
    found = read("x", folder(tmp_path / "x", config))
    assert found.problem.startswith(problem)
    assert bool(found.problem) == bool(problem)
    _, row, *_ = render([found], tmp_path)
    assert found.problem[:40] in row


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert "safetensors" in read("x", folder(tmp_path / "x", QWEN, weights=0)).problem


def test_settings_beside_a_server_are_said_to_be_of_our_own_models() -> None:
    settings = EngineSettings(num_draft_tokens=3)
    report = UseReport(model="http://h:1/v1#big", folder="", settings=settings, changed=True)
    assert line(report) == (
        "model http://h:1/v1#big (a server); models of our own: speculation auto, "
        "at most 3 drafted tokens"
    )


def test_an_adapter_is_used_like_a_model_and_so_it_is_listed(tmp_path: Path) -> None:
    """One that was in use stood there as a folder that cannot be read."""
    at = tmp_path / "tuned"
    at.mkdir()
    (at / "adapter_config.json").write_text('{"model": "org/qwen", "fine_tune_type": "lora"}')
    assert "adapters.safetensors" in read("tuned", at).problem
    (at / "adapters.safetensors").write_bytes(b"x" * 3_000_000)
    assert list(_folders(tmp_path)) == [at]
    found = with_state(read("tuned", at), status(str(at)), "embedded")
    assert (found.base, found.bytes, found.problem) == ("org/qwen", 3_000_000, "")
    _, row, *_ = render([found], tmp_path)
    assert row.split() == ["tuned", "adapter", "3", "MB", "-", "of", "org/qwen", "in", "use"]
    (at / "adapter_config.json").write_text("[]")
    assert read("tuned", at).problem == "adapter_config.json: it is no object"
    assert read("gone", tmp_path / "gone").problem == "config.json: No such file or directory"


def test_folders_of_folders_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b", "org/a", "org/deep/c", ".hidden/d", "b/inside"):
        folder(tmp_path / name, QWEN)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    found = [_name(one, tmp_path) for one in _folders(tmp_path)]
    assert found == ["b", "org/a"]
    assert list(_folders(tmp_path / "none")) == []


def test_what_is_in_use() -> None:
    one = Model(name="big", path="/m/big")
    small = Model(name="small", path="/m/small")
    assert with_state(one, None, "big").state == "default"
    assert with_state(one, None, "/m/big").state == "default"
    assert with_state(one, status("/m/big"), "embedded").state == "in use"
    assert with_state(small, status("/m/big"), "embedded").state == ""
    drafts = status("/m/big", draft="small", loaded="small")
    assert with_state(small, drafts, "embedded").state == "drafts"
    by_path = status("/m/big", draft="/m/small", loaded="small")
    assert with_state(small, by_path, "embedded").state == "drafts"
    refused = status("/m/big", draft="small")
    assert with_state(small, refused, "embedded").state == "", "it is asked for and not used"
