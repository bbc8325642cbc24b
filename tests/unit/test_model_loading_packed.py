"""Packed weights: every format that MLX has loads, and answers in a batch as alone."""

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from punie_model_host.folder import EMBEDDED, check_folder, resolve
from punie_model_host.loading import LoadedModel, build, read_weights
from punie_protocol.engine import EngineSettings, Speculation
from punie_protocol.errors import ModelLoadFailed, PunieError
from punie_protocol.messages.to_model_client import Finished
from punie_protocol.messages.to_model_host import Sampling
from tests.support.engine_bench import EngineBench, Oracle, turn
from tests.support.packed_models import as_awq, awq_matrix, edit_config, pack, shard
from tests.support.small_models import Kind, make_small_model

LIMITS = EngineSettings(
    memory_mb=64, max_batch=3, step_tokens=32, disk_mb=0, speculation=Speculation.OFF
)
SYSTEM = "What everybody begins with, long enough to be kept. " * 2
BOTH = {"quantization", "quantization_config"}
AFFINE = [(bits, size, "affine") for bits in (4, 5, 6, 8) for size in (32, 64)]
OTHERS = [(4, 32, "mxfp4"), (4, 16, "nvfp4"), (8, 32, "mxfp8"), (3, 64, "affine")]


@pytest.fixture(autouse=True)
def lazy_weights_go_away() -> Iterator[None]:
    """A model whose weights were not read holds its files open until it is collected."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    return cache(lambda kind: make_small_model(tmp_path_factory.mktemp("plain") / kind, kind))


@pytest.fixture
def folder(plain: Callable[[Kind], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain(Kind.QWEN3), tmp_path / "model"))


def check(folder: Path) -> LoadedModel:
    """Answer several requests at once, and some that go on with what is in the prefix cache; each
    gets what it gets alone."""
    bench, oracle = EngineBench(folder, LIMITS), Oracle(folder)
    greedy = Sampling(temperature=0.0, max_tokens=12)
    drawn = Sampling(temperature=0.7, top_k=10, seed=5, max_tokens=12)
    for _ in range(2):
        for client, sampling in enumerate((greedy, drawn, greedy, greedy)):
            bench.submit(turn(f"{SYSTEM}{client}{'x' * 9 * client}"), sampling, client=client)
            bench.step()
        bench.run()
    ends = [bench.end(key) for key in bench.requests]
    assert all(isinstance(end, Finished) and end.usage.cached_tokens for end in ends[4:])
    compared, ties = bench.check(oracle)
    assert compared == 8 * 12
    assert ties <= 1
    return oracle.loaded


@pytest.mark.parametrize(
    ("kind", "bits", "group_size", "mode"),
    [(Kind.QWEN3, *packing) for packing in (*AFFINE, *OTHERS)]
    + [(Kind.QWEN3_MOE, *packing) for packing in (AFFINE[1], AFFINE[-2], *OTHERS[:3])],
)
def test_every_format_answers_as_alone(
    plain: Callable[[Kind], Path],
    tmp_path: Path,
    kind: Kind,
    bits: int,
    group_size: int,
    mode: str,
) -> None:
    folder = pack(plain(kind), tmp_path / "packed", bits=bits, group_size=group_size, mode=mode)
    loaded = check(folder)
    layer = loaded.model.layers[0].self_attn.q_proj
    assert (layer.bits, layer.group_size, layer.mode) == (bits, group_size, mode)
    # bfloat16 in the files: on a CPU its kernels are slow, and those of experts are missing
    kinds = {a.dtype for _, a in tree_flatten(loaded.model.parameters())}  # ty: ignore
    assert kinds <= {mx.float32, mx.uint32, mx.uint8}
    assert loaded.folder.weight_bytes == (folder / "model.safetensors").stat().st_size


def test_weights_are_counted_as_they_are_in_memory(
    plain: Callable[[Kind], Path], tmp_path: Path
) -> None:
    """What is half as wide in its files as it is computed with would take the room of others."""
    folder = Path(shutil.copytree(plain(Kind.QWEN3), tmp_path / "half"))
    file = str(folder / "model.safetensors")
    weights = mx.load(file)
    assert isinstance(weights, dict)
    mx.save_safetensors(file, {name: array.astype(mx.bfloat16) for name, array in weights.items()})
    loaded = build(check_folder(folder))
    numbers = sum(array.size for array in weights.values())
    assert loaded.nbytes == numbers * mx.float32.size
    assert loaded.folder.weight_bytes < loaded.nbytes


def test_the_embedded_model_can_be_packed(tmp_path: Path) -> None:
    folder = pack(resolve(EMBEDDED, tmp_path), tmp_path / "packed", bits=8, group_size=64)
    loaded = build(check_folder(folder))
    read_weights(loaded, lambda _done, _total: None)
    assert loaded.model.layers[0].self_attn.q_proj.bits == 8


def test_layers_differ_and_some_are_not_packed(
    plain: Callable[[Kind], Path], tmp_path: Path
) -> None:
    def layers(path: str, module: Any) -> bool | dict[str, Any]:
        if path.endswith("gate"):
            return {"group_size": 64, "bits": 8}
        return "layers.1.self_attn" not in path

    folder = pack(plain(Kind.QWEN3_MOE), tmp_path / "mixed", layers=layers)
    config = json.loads((folder / "config.json").read_text())["quantization"]
    assert config["model.layers.0.mlp.gate"] == {"group_size": 64, "bits": 8}
    model = check(folder).model
    assert model.layers[0].mlp.gate.bits == 8
    assert not hasattr(model.layers[1].self_attn.q_proj, "bits")


@pytest.mark.parametrize("key", sorted(BOTH))
def test_either_key_of_the_configuration_says_it(
    plain: Callable[[Kind], Path], tmp_path: Path, key: str
) -> None:
    folder = pack(plain(Kind.QWEN3), tmp_path / "packed")
    edit_config(folder, "config.json", **dict.fromkeys(BOTH - {key}))
    loaded = build(check_folder(folder))
    assert loaded.model.layers[0].self_attn.q_proj.bits == 4


def test_several_files(plain: Callable[[Kind], Path], tmp_path: Path) -> None:
    folder = pack(plain(Kind.QWEN3_MOE), tmp_path / "packed", bits=6)
    shard(folder)
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    seen: list[int] = []
    loaded = build(check_folder(folder))
    read_weights(loaded, lambda done, _total: seen.append(done))
    assert len(sizes) == 2
    assert seen[-1] == loaded.folder.weight_bytes == sum(sizes)
    assert seen == sorted(seen)


def test_awq_is_what_it_means(folder: Path) -> None:
    as_awq(folder)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    name = "model.layers.1.mlp.up_proj"
    expected = awq_matrix(weights, name)
    loaded = build(check_folder(folder))
    read_weights(loaded, lambda _done, _total: None)
    layer = loaded.model.layers[1].mlp.up_proj
    packed = layer.weight, layer.scales, layer.biases
    found = mx.dequantize(*packed, group_size=layer.group_size, bits=layer.bits)
    np.testing.assert_allclose(np.array(found), expected, atol=1e-3)


def packed_by(**config: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, "config.json", **config)


MISFITS: list[tuple[str, Callable[[Path], None], str]] = [
    ("seven", packed_by(quantization={"bits": 7, "group_size": 64}), "bits is 7; for affine MLX"),
    ("group", packed_by(quantization={"bits": 4, "group_size": 48}), "group_size is 48"),
    ("none", packed_by(quantization={"bits": 4}), "group_size is None"),
    ("true", packed_by(quantization={"bits": True, "group_size": 64}), "bits is True"),
    ("text", packed_by(quantization="4"), "quantization is not an object"),
    (
        "mode",
        packed_by(quantization={"bits": 4, "group_size": 32, "mode": "gguf"}),
        "mode 'gguf'; MLX has affine, mxfp4",
    ),
    (
        "layer",
        packed_by(quantization={"bits": 4, "group_size": 64, "lm_head": {"bits": 9}}),
        "quantization of lm_head: bits is 9",
    ),
    ("gptq", packed_by(quantization_config={"quant_method": "gptq", "bits": 8}), "by 'gptq': Only"),
]


@pytest.mark.parametrize(
    ("damage", "reason"), [row[1:] for row in MISFITS], ids=[row[0] for row in MISFITS]
)
def test_what_cannot_be_computed_is_said(
    folder: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(folder)
    with pytest.raises(PunieError) as caught:
        build(check_folder(folder))
    error = caught.value.error
    assert isinstance(error, ModelLoadFailed)
    assert (error.folder, error.file) == (str(folder), "config.json")
    assert reason in error.message
    assert "mlx_lm.convert" in error.hint


def test_packed_by_a_library_that_mlx_does_not_know(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.layers.0.mlp.up_proj.weight.absmax"] = mx.zeros((4,))
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(PunieError, match="packed by 'bitsandbytes'") as caught:
        build(check_folder(folder))
    assert "before it was packed" in caught.value.error.hint
