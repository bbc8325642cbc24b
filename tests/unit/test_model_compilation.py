"""When fused kernels are compiled for the CPU. What is compiled is left to the benchmark: there may
be no compiler."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from punie_model_host import compilation
from punie_model_host.compilation import QUIET, Compilation
from punie_protocol.engine import Kernels

MODEL = object()


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The models that kernels were compiled for, on a machine with a compiler."""
    models: list[Any] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(compilation.shutil, "which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(compilation, "can_run_metal", lambda: False)
    monkeypatch.setattr(compilation, "_meet", models.append)
    yield models
    mx.disable_compile()


def test_nobody_waits_for_a_compiler(compiled: list[Any]) -> None:
    first = Compilation(Kernels.AUTO)
    first.loaded([MODEL])
    assert (compiled, first.waits) == ([], True)
    first.chore([MODEL], 100.0)
    first.chore([MODEL], 100.0 + QUIET - 1)
    first.work()
    first.chore([MODEL], 100.0 + QUIET + 1)
    assert compiled == []
    first.chore([MODEL], 100.0 + 2 * QUIET + 1)
    assert (compiled, first.waits) == ([MODEL], False)
    first.chore([MODEL], 999.0)
    assert compiled == [MODEL]


def test_kernels_that_are_there_are_used_at_once(compiled: list[Any]) -> None:
    first = Compilation(Kernels.AUTO)
    first.loaded([MODEL])
    first.chore([MODEL], 0.0)
    first.chore([MODEL], QUIET)
    again = Compilation(Kernels.AUTO)
    again.loaded([MODEL])
    assert (len(compiled), again.waits) == (2, False)


def test_each_model_has_its_own(compiled: list[Any]) -> None:
    switch = Compilation(Kernels.ON)
    switch.loaded([MODEL])
    switch.loaded(["other"])
    assert compiled == [MODEL, "other"]


@pytest.mark.parametrize("mode", list(Kernels))
def test_without_a_compiler_or_a_wish_there_are_none(
    compiled: list[Any], monkeypatch: pytest.MonkeyPatch, mode: Kernels
) -> None:
    if mode is not Kernels.OFF:
        monkeypatch.setattr(compilation.shutil, "which", lambda _: None)
    without = Compilation(mode)
    without.loaded([MODEL])
    without.chore([MODEL], 0.0)
    without.chore([MODEL], 2 * QUIET)
    assert (compiled, without.waits) == ([], False)


def test_a_compiler_that_fails_is_not_asked_again(
    compiled: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def fail(model: object) -> None:
        compiled.append(model)
        raise RuntimeError("g++: internal error")

    monkeypatch.setattr(compilation, "_meet", fail)
    broken = Compilation(Kernels.ON)
    broken.loaded([MODEL])
    assert (len(compiled), broken.waits, list(tmp_path.iterdir())) == (1, False, [])
    assert "internal error" in caplog.text


def test_a_load_that_fails_leaves_kernels_on(
    compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To build a model turns them off."""
    calls: list[str] = []
    switch, never = Compilation(Kernels.ON), Compilation(Kernels.OFF)
    switch.loaded([MODEL, "draft"])
    assert compiled == [MODEL, "draft"]
    monkeypatch.setattr(mx, "enable_compile", lambda: calls.append("on"))
    never.resume()
    assert calls == []
    switch.resume()
    assert calls == ["on"]
