"""Adapters: what mlx_lm.lora leaves is loaded and answers; whatever is wrong with it is said."""

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_adapters, load_model

from punie_model_host.adapter import WEIGHTS
from punie_model_host.folder import check_folder, find_model
from punie_model_host.kv_tier import fingerprint
from punie_model_host.loading import LoadedModel, build, read_weights
from punie_protocol.engine import EngineSettings, Speculation
from punie_protocol.errors import ModelLoadFailed, PunieError
from punie_protocol.messages.common import PromptStyle
from punie_protocol.messages.to_model_host import Sampling
from tests.support.engine_bench import EngineBench, Oracle, turn
from tests.support.packed_models import edit_config, pack, tune
from tests.support.small_models import Kind, make_small_model

CONFIG = "adapter_config.json"
LIMITS = EngineSettings(memory_mb=64, max_batch=3, disk_mb=0, speculation=Speculation.OFF)
PROMPT = [[40, 41, 42, 43, 44]]


@pytest.fixture(autouse=True)
def lazy_weights_go_away() -> Iterator[None]:
    """A model whose weights were not read holds its files open until it is collected."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a dense model, its packed form and one with experts."""
    folder = tmp_path_factory.mktemp("models")
    dense = make_small_model(folder / "dense", Kind.QWEN3)
    make_small_model(folder / "experts", Kind.QWEN3_MOE)
    pack(dense, folder / "packed", bits=4, group_size=32)
    return folder


@pytest.fixture
def base(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "dense", tmp_path / "models" / "dense"))


@pytest.fixture
def adapter(base: Path, models: Path) -> Path:
    """An adapter that lies beside its model."""
    return tune(models / "dense", base.parent / "tuned", named="dense")


def loaded(folder: Path) -> LoadedModel:
    """Load the model that a folder means."""
    model = build(find_model(str(folder), folder.parent))
    read_weights(model, lambda _done, _total: None)
    return model


def logits(model: Any) -> np.ndarray:
    return np.array(model(mx.array(PROMPT)).astype(mx.float32))


def reference(base: Path, adapter: Path) -> np.ndarray:
    """Return what mlx-lm's own loading computes."""
    model, _ = load_model(base)
    load_adapters(model, str(adapter))
    model.eval()
    model.set_dtype(mx.float32)
    return logits(model)


FITTING = [(base, kind) for base in ("dense", "experts") for kind in ("lora", "dora", "full")]


@pytest.mark.parametrize(("base", "kind"), [*FITTING, ("packed", "lora"), ("packed", "dora")])
def test_an_adapter_computes_what_mlx_lm_computes(
    models: Path, tmp_path: Path, base: str, kind: str
) -> None:
    attention = ["self_attn.q_proj", "self_attn.v_proj"]  # mlx-lm has no DoRA for experts
    keys = attention if kind == "dora" else None
    folder = tune(models / base, tmp_path / "a", kind=kind, keys=keys, dropout=0.5)
    model = loaded(folder)
    found = logits(model.model)
    np.testing.assert_allclose(found, reference(models / base, folder), atol=1e-4)
    assert np.abs(found - logits(loaded(models / base).model)).max() > 0.1
    assert model.info.name == f"{base}+a"
    assert model.info.folder == str(folder)
    sizes = [
        path.stat().st_size
        for path in (*folder.glob("*.saf*"), models / base / "model.safetensors")
    ]
    assert model.folder.weight_bytes == sum(sizes)


@pytest.mark.parametrize("base", ["packed", "experts"])
def test_answers_with_an_adapter_are_what_they_are_alone(
    models: Path, tmp_path: Path, base: str
) -> None:
    shutil.copytree(models / base, folder := tmp_path / base)
    tune(models / base, folder / "tuned", dropout=0.1)
    (folder / "profile.toml").write_text('adapter = "tuned"')
    bench, oracle = EngineBench(folder, LIMITS), Oracle(folder)
    for client in range(3):
        for text in ("Rules for everybody. " * 3, "another"):
            greedy = Sampling(temperature=0.0, max_tokens=10)
            bench.submit(turn(f"{text}{client}"), greedy, client=client)
            bench.step()
    bench.run()
    compared, ties = bench.check(oracle)
    assert (compared, ties) == (60, 0)
    assert oracle.loaded.info.name == f"{base}+tuned"


@pytest.mark.parametrize("place", ["inside", "absolute", "beside"])
def test_a_profile_names_an_adapter(base: Path, models: Path, place: str) -> None:
    where, text = {
        "inside": (base / "tuned", "tuned"),
        "absolute": (base.parent / "tuned", str(base.parent / "tuned")),
        "beside": (base.parent / "tuned", "../tuned"),
    }[place]
    tune(models / "dense", where)
    (base / "profile.toml").write_text(f'adapter = "{text}"')
    model = loaded(base)
    assert model.info.name == "dense+tuned"
    assert model.info.folder == str(base)
    np.testing.assert_allclose(logits(model.model), reference(base, where), atol=1e-4)


def test_names_and_profiles(base: Path, adapter: Path) -> None:
    (base / "profile.toml").write_text('name = "mine"\nadapter = "nowhere"\ncontext_window = 99')
    folder = find_model("tuned", base.parent)
    assert (folder.profile.name, folder.profile.context_window) == ("mine+tuned", 99)
    (adapter / "profile.toml").write_text('name = "yours"\nprompt_style = "learned"')
    folder = find_model("tuned", base.parent)
    assert (folder.profile.name, folder.profile.context_window) == ("yours", 2048)
    assert folder.profile.prompt_style is PromptStyle.LEARNED
    (base / "profile.toml").write_text('name = "mine"\nadapter = "../tuned"')
    assert check_folder(base).profile.name == "mine"


@pytest.mark.parametrize("named", ["dense", "community/dense", "../models/dense", "absolute"])
def test_where_the_model_of_an_adapter_is_found(base: Path, adapter: Path, named: str) -> None:
    edit_config(adapter, CONFIG, model=str(base) if named == "absolute" else named)
    assert find_model("tuned", base.parent).path == base
    if named == "community/dense":  # as its organisation's, if there is such a folder
        other = shutil.copytree(base, base.parent / named)
        assert find_model("tuned", base.parent).path == other


def test_keys_and_values_with_another_adapter_are_others(
    base: Path, adapter: Path, models: Path
) -> None:
    seen = {fingerprint(base, "float32"), fingerprint(base, "float32", adapter=adapter)}
    edit_config(adapter, CONFIG, lora_parameters={"rank": 4, "scale": 2.0, "dropout": 0.0})
    seen.add(fingerprint(base, "float32", adapter=adapter))
    tune(models / "dense", adapter, rank=8)
    seen.add(fingerprint(base, "float32", adapter=adapter))
    assert len(seen) == 4


type Damage = Callable[[Path], object]


def without(name: str) -> Damage:
    def remove(folder: Path) -> None:
        weights = mx.load(str(folder / WEIGHTS))
        assert isinstance(weights, dict)
        mx.eval(weights)
        kept = {key: value for key, value in weights.items() if key != name}
        mx.save_safetensors(str(folder / WEIGHTS), kept)

    return remove


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def parameters(**values: object) -> Damage:
    merged = {"rank": 4, "scale": 1.0, "dropout": 0.0} | values
    given = {key: value for key, value in merged.items() if value is not None}
    return lambda folder: edit_config(folder, CONFIG, lora_parameters=given)


BROKEN: list[tuple[str, Damage, str, str]] = [
    ("gone", shutil.rmtree, "", "no such"),
    ("no config", lambda f: (f / CONFIG).unlink(), "config.json", "is missing"),
    ("no JSON", lambda f: (f / CONFIG).write_text("{"), CONFIG, "is not JSON"),
    ("list", lambda f: (f / CONFIG).write_text("[]"), CONFIG, "is not a JSON object"),
    ("peft", lambda f: edit_config(f, CONFIG, peft_type="LORA"), CONFIG, "is of PEFT"),
    ("kind", lambda f: edit_config(f, CONFIG, fine_tune_type="x"), CONFIG, "fine_tune_type"),
    ("layers", lambda f: edit_config(f, CONFIG, num_layers=None), CONFIG, "has no num_layers"),
    ("none", lambda f: edit_config(f, CONFIG, lora_parameters=None), CONFIG, "lora_parameters"),
    ("rank", parameters(rank=0), CONFIG, "rank"),
    ("scale", parameters(scale=None), CONFIG, "scale"),
    ("base", lambda f: edit_config(f, CONFIG, model="other"), CONFIG, "for the model 'other'"),
    ("no base", lambda f: edit_config(f, CONFIG, model=None), CONFIG, "does not say which model"),
    ("no weights", lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "is missing"),
    ("cut", cut, WEIGHTS, "half-copied"),
    ("other rank", parameters(rank=5), WEIGHTS, "does not fit the model in"),
    ("other layers", parameters(keys=["mlp.up_proj"]), WEIGHTS, "not an adapter parameter"),
    (
        "half",
        without("model.layers.0.self_attn.q_proj.lora_b"),
        WEIGHTS,
        "lacks model.layers.0.self_attn.q_proj.lora_b and 0 more",
    ),
]


@pytest.mark.parametrize(
    ("damage", "file", "reason"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_what_is_wrong_with_an_adapter_is_said(
    adapter: Path, damage: Damage, file: str, reason: str
) -> None:
    damage(adapter)
    with pytest.raises(PunieError) as caught:
        build(find_model("tuned", adapter.parent))
    error = caught.value.error
    assert isinstance(error, ModelLoadFailed)
    assert (error.folder, error.file) == (str(adapter), file)
    assert reason in error.message
    assert error.hint


def test_an_adapter_that_a_profile_names_has_to_be_there(base: Path) -> None:
    (base / "profile.toml").write_text('adapter = "nowhere"')
    with pytest.raises(PunieError, match="no such adapter folder") as caught:
        check_folder(base)
    assert isinstance(caught.value.error, ModelLoadFailed)
    assert caught.value.error.folder == str(base / "nowhere")


def test_weights_in_place_of_packed_ones(models: Path, tmp_path: Path) -> None:
    folder = tune(models / "packed", tmp_path / "a", kind="full")
    with pytest.raises(PunieError, match="more, which are packed in") as caught:
        build(find_model(str(folder), models))
    assert isinstance(caught.value.error, ModelLoadFailed)
    assert caught.value.error.folder == str(folder)


def test_an_adapter_of_another_model(adapter: Path, models: Path) -> None:
    edit_config(adapter, CONFIG, model=str(models / "experts"))
    with pytest.raises(PunieError, match=r"does not fit the model in .*experts.* more") as caught:
        build(find_model(str(adapter), models))
    assert "the model that it was trained on" in caught.value.error.hint
