"""Switching a running model host's model, over its control link; and where its kernels go."""

import shutil
import stat
from pathlib import Path

import pytest

from punie_protocol.engine import EngineSettings, Kernels
from punie_protocol.messages.to_model_client import Finished, ModelChanged
from punie_protocol.messages.to_model_host import LoadModel
from punie_protocol.messages.to_supervisor import EngineReport, Load, ModelState
from tests.process.test_model_host import RunningHost, answer, ask, first_text, run_host
from tests.support.packed_models import pack, tune
from tests.support.small_models import Kind, make_small_model
from tests.support.tiny_model import make_tiny_model

KERNELS = "model-host-tmp"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "brief", says=["Hello", " there", "."])
    make_tiny_model(folder / "endless", says=["tick", " tock"], loop=True, context_window=4000)
    plain = make_small_model(folder / "plain", Kind.QWEN3)
    pack(plain, folder / "packed", bits=5)
    tune(folder / "packed", folder / "tuned", named="packed")
    (folder / "tuned" / "profile.toml").write_text('prompt_style = "learned"')
    return folder


async def until(host: RunningHost, request_id: int) -> list[ModelState | EngineReport]:
    """Return what the supervisor is told until that load has ended, the end included."""
    told: list[ModelState | EngineReport] = []
    while True:
        message = await host.control.receive()
        assert isinstance(message, ModelState | EngineReport)
        told.append(message)
        match message:
            case ModelState(request_id=id, state=Load.READY | Load.FAILED) if id == request_id:
                return told
            case _:
                continue


def test_a_chain_of_models_in_one_process(models: Path, tmp_path: Path) -> None:
    """Plain, packed, an adapter on the packed one, one that does not load, and back; requests come
    all the while and each gets an answer."""

    async def test(host: RunningHost) -> None:
        await host.state()
        async with host.client() as link:
            names = []
            for number, model in enumerate(("packed", "tuned", "nothing", "brief"), 1):
                await link.send(ask(number, max_tokens=5))
                await host.control.send(LoadModel(request_id=number, model=model))
                ends = await until(host, number)
                assert isinstance(ends[-1], ModelState)
                assert ends[-1].model is not None
                names.append((ends[-1].state, ends[-1].model.name))
                _, end = await answer(link, number)
                assert isinstance(end, Finished)
            await link.send(ask(9))
            assert (await answer(link, 9))[0] == "Hello there."
        assert names == [
            (Load.READY, "packed"),
            (Load.READY, "packed+tuned"),
            (Load.FAILED, "packed+tuned"),
            (Load.READY, "brief"),
        ]
        assert host.process.poll() is None

    run_host(models, tmp_path, "plain", test)


def test_who_waits_for_a_switch_sees_what_it_waits_for(models: Path, tmp_path: Path) -> None:
    """Requests under way are reported while they end, then the bytes that are read."""

    async def test(host: RunningHost) -> None:
        await host.state()
        async with host.client() as link:
            await link.send(ask(1, max_tokens=1000))
            await first_text(link)
            await host.control.send(LoadModel(request_id=5, model="packed"))
            told = await until(host, 5)
            _, end = await answer(link, 1)
            assert isinstance(end, Finished)
            assert end.usage.output_tokens == 1000
            assert isinstance(changed := await link.receive(), ModelChanged)
            assert changed.model.name == "packed"
        states = [message for message in told if isinstance(message, ModelState)]
        waiting = [m.engine.running for m in told if isinstance(m, EngineReport)]
        assert (states[0].state, states[0].done_bytes) == (Load.LOADING, 0)
        assert states[0].model is not None
        assert states[0].model.name == "endless"
        assert states[0].total_bytes == (models / "packed" / "model.safetensors").stat().st_size
        assert 1 in waiting
        assert max(state.done_bytes for state in states) > 0

    run_host(models, tmp_path, "endless", test)


def test_settings_come_with_a_load(models: Path, tmp_path: Path) -> None:
    async def budget(host: RunningHost) -> int:
        while True:
            message = await host.control.receive()
            if isinstance(message, EngineReport) and message.engine.kv.budget:
                return message.engine.kv.budget

    async def test(host: RunningHost) -> None:
        await host.state()
        async with host.client() as link:
            for number, (model, given, expected) in enumerate(
                (("brief", 48, 48), ("endless", None, 48), ("nothing", 99, 48), ("brief", 64, 64)),
                1,
            ):
                settings = EngineSettings(memory_mb=given) if given else None
                load = LoadModel(request_id=number, model=model, settings=settings)
                await host.control.send(load)
                assert (await host.state(number)).state is not Load.LOADING
                await link.send(ask(number, max_tokens=3))
                assert await budget(host) == expected * 1024**2
                _, end = await answer(link, number)
                assert isinstance(end, Finished)

    run_host(models, tmp_path, "brief", test)


@pytest.mark.timeout(60)
def test_kernels_are_compiled_in_a_private_folder(models: Path, tmp_path: Path) -> None:
    """The compiler's files are code that this user runs: nobody else may write where they are.
    (Metal has its own kernels, and without a compiler there are none.)"""
    expected = shutil.which("g++") is not None
    shared = tmp_path / "everybody"
    shared.mkdir()

    async def test(host: RunningHost) -> None:
        await host.state()
        settings = EngineSettings(cpu_kernels=Kernels.ON)
        await host.control.send(LoadModel(request_id=2, model="brief", settings=settings))
        assert (await host.state(2)).state is Load.READY
        assert ("kernels-compiled" in host.log.read_text()) is expected

    run_host(models, tmp_path, "brief", test, extra={"TMPDIR": str(shared)})
    folder = tmp_path / KERNELS
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert bool(list(folder.rglob("*.so"))) is expected
    assert not list(shared.iterdir())
