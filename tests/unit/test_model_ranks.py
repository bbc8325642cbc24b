"""Which rank a process is, and how a model would be divided. No ranks here: see tests/process."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from punie_model_host.ranks import Place, Sharding, for_ranks, place_of
from punie_model_host.world import World
from punie_protocol.engine import EngineSettings, Kernels, Speculation
from punie_protocol.errors import PunieError

# places


def ring(folder: Path, *ranks: list[str]) -> dict[str, str]:
    file = folder / "hosts"
    file.write_text(json.dumps(ranks) if ranks else "\n")
    return {"MLX_HOSTFILE": str(file), "MLX_RANK": "1"}


def test_without_a_rank_a_process_is_alone():
    assert place_of({}) is None
    assert place_of({"MLX_HOSTFILE": "/nowhere"}) is None


def test_a_ring_is_led_at_the_first_address_of_rank_0(tmp_path: Path):
    environment = ring(tmp_path, ["10.0.0.1:5000", "10.1.0.1:5001"], ["10.0.0.2:5002"])
    place = place_of(environment)
    assert place == Place(1, "10.0.0.1")
    assert not place.leads
    assert place_of(environment | {"MLX_RANK": "0"}) == Place(0, "10.0.0.1")


def test_a_ring_of_one_is_alone(tmp_path: Path):
    assert place_of(ring(tmp_path) | {"MLX_RANK": "0"}) is None
    assert place_of(ring(tmp_path, ["127.0.0.1:5000"]) | {"MLX_RANK": "0"}) is None


def test_jaccl_is_led_at_its_coordinator():
    environment = {"MLX_RANK": "0", "MLX_JACCL_COORDINATOR": "192.168.7.1:32323"}
    assert place_of(environment) == Place(0, "192.168.7.1")


@pytest.mark.parametrize(
    "environment",
    [
        {"MLX_RANK": "one"},
        {"MLX_RANK": "0"},
        {"MLX_RANK": "0", "MLX_HOSTFILE": "/nowhere/hosts"},
    ],
)
def test_half_an_environment_is_refused(environment: dict[str, str]):
    with pytest.raises(PunieError, match="ranks: ") as raised:
        place_of(environment)
    assert "mlx.launch" in raised.value.error.hint


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[[]]", "[1, 2]"])
def test_a_broken_hostfile_is_refused(tmp_path: Path, text: str):
    environment = ring(tmp_path)
    Path(environment["MLX_HOSTFILE"]).write_text(text)
    with pytest.raises(PunieError, match="MLX_HOSTFILE"):
        place_of(environment)


# settings


def test_ranks_do_nothing_that_one_of_them_might_not_do():
    given = EngineSettings(draft_model="small", cpu_kernels=Kernels.ON, max_batch=3)
    settings = for_ranks(given)
    assert settings.draft_model is None
    assert settings.cpu_kernels is Kernels.OFF
    assert settings.speculation is Speculation.NGRAM
    assert settings.max_batch == 3


def test_speculation_that_is_off_stays_off():
    settings = for_ranks(EngineSettings(speculation=Speculation.OFF))
    assert settings.speculation is Speculation.OFF


# dividing


def world(sharding: Sharding = Sharding.AUTO, size: int = 2) -> World:
    group = SimpleNamespace(rank=lambda: 1, size=lambda: size)
    return World(group, sharding)  # ty: ignore[invalid-argument-type]  exchanges nothing


class Model:
    """As mlx-lm's models are: `shard` divides tensors, `model.pipeline` layers."""

    def __init__(self, layers: int = 4, *, tensors: bool = True, pipelines: bool = True) -> None:
        self.divided = ""
        self.model = _Layers(self, layers) if pipelines else SimpleNamespace(layers=[0] * layers)
        if tensors:
            self.shard = lambda _group: setattr(self, "divided", "tensor")


class _Layers:
    def __init__(self, owner: Model, layers: int) -> None:
        self.layers = [0] * layers
        self._owner = owner

    def pipeline(self, _group: object) -> None:
        self._owner.divided = "pipeline"


CONFIG = {"num_attention_heads": 8, "num_key_value_heads": 2}


def divided(model: Model, config: dict[str, Any], sharding: Sharding = Sharding.AUTO) -> str:
    world(sharding).divide(model, config)
    return model.divided


def test_tensors_are_divided_where_they_can_be():
    assert divided(Model(), CONFIG) == "tensor"
    assert divided(Model(), CONFIG, Sharding.PIPELINE) == "pipeline"


def test_layers_are_divided_where_tensors_cannot_be():
    assert divided(Model(tensors=False), CONFIG) == "pipeline"
    assert divided(Model(), CONFIG | {"num_key_value_heads": 3}) == "pipeline"
    assert divided(Model(), {"text_config": CONFIG | {"num_attention_heads": 7}}) == "pipeline"


@pytest.mark.parametrize(
    ("model", "sharding", "reason"),
    [
        (Model(tensors=False, pipelines=False), Sharding.AUTO, "tensor: .*; pipeline: "),
        (Model(tensors=False), Sharding.TENSOR, "tensor: mlx-lm cannot"),
        (Model(pipelines=False), Sharding.PIPELINE, "pipeline: mlx-lm cannot"),
        (Model(3), Sharding.PIPELINE, "pipeline: it has 3 layers"),
    ],
)
def test_a_model_that_cannot_be_divided_says_why(model: Model, sharding: Sharding, reason: str):
    with pytest.raises(PunieError, match=f"among 2 ranks: {reason}"):
        world(sharding).divide(model, CONFIG)
    assert not model.divided


@pytest.mark.parametrize("sharding", [Sharding.TENSOR, Sharding.PIPELINE])
def test_a_rank_has_its_part(sharding: Sharding):
    its = world(sharding)
    its.divide(Model(), CONFIG)
    assert its.part(1000) == 500


def test_alone_nothing_is_divided():
    alone, model = World(), Model()
    alone.divide(model, CONFIG)
    assert not model.divided
    assert (alone.part(1000), alone.least(7), alone.size, alone.rank) == (1000, 7, 1, 0)
    assert alone.together(lambda: 5) == 5
    alone.alike("anything", "as it is")
