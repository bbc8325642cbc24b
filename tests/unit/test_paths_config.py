"""Where files are, and the config file."""

from pathlib import Path

import pytest

from punie_protocol.errors import PunieError
from punie_protocol.messages.common import Isolation
from punie_supervisor.config import Config
from punie_supervisor.paths import Paths


def test_punie_home_overrides_everything(tmp_path: Path) -> None:
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path), "XDG_RUNTIME_DIR": "/run/x"})
    for path in (paths.config_file, paths.models_dir, paths.journal, paths.socket, paths.lock_file):
        assert path.is_relative_to(tmp_path)
    assert paths.home == tmp_path


def test_run_folder_is_the_users_runtime_dir_or_under_state() -> None:
    assert Paths.from_environment({"XDG_RUNTIME_DIR": "/run/x"}).run_dir == Path("/run/x/punie")
    paths = Paths.from_environment({})
    assert paths.run_dir == paths.state_dir / "run"


def test_folders_are_private(tmp_path: Path) -> None:
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path / "home")})
    paths.prepare()
    assert paths.run_dir.stat().st_mode & 0o777 == 0o700
    assert paths.state_dir.stat().st_mode & 0o777 == 0o700


def test_too_long_a_socket_path_says_what_to_do(tmp_path: Path) -> None:
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path / ("x" * 120))})
    with pytest.raises(PunieError, match="bytes long") as caught:
        paths.prepare()
    assert "PUNIE_HOME" in caught.value.error.hint


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(PunieError, match=str(tmp_path / "state")):
        Paths.from_environment({"PUNIE_HOME": str(tmp_path)}).prepare()


def test_a_model_is_a_name_or_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path / "home")})
    (paths.models_dir / "org" / "big").mkdir(parents=True)
    here = tmp_path / "here"
    (here / "org" / "mine").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert paths.model("anything") == "anything"
    assert paths.model("org/big") == "org/big", "as it is listed"
    assert paths.model("./org/big") == str(here / "org" / "big")
    assert paths.model("org/mine") == str(here / "org" / "mine")
    assert paths.model("org/none") == str(here / "org" / "none")
    assert paths.model("org/../org/big") == str(here / "org/../org/big")
    assert paths.model("/m") == "/m"
    assert paths.model("~") == str(Path.home())
    (here / "org" / "big").mkdir()
    assert paths.model("org/big") == str(here / "org" / "big"), "what is here goes before"
    with pytest.raises(PunieError, match="no such user's home"):
        paths.model("~nobody-of-that-name/x")


def config(tmp_path: Path, text: str) -> Config:
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path)})
    paths.config_dir.mkdir()
    paths.config_file.write_text(text)
    return Config.load(paths)


def test_config_defaults(tmp_path: Path) -> None:
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path)})
    assert Config.load(paths) == Config(model="embedded", isolation=Isolation.PROCESS)


def test_config_is_read(tmp_path: Path) -> None:
    text = 'model = "qwen"\nisolation = "interpreter"\n'
    assert config(tmp_path, text) == Config(model="qwen", isolation=Isolation.INTERPRETER)


@pytest.mark.parametrize(
    ("text", "named"),
    [('modle = "x"', "modle"), ("model = 3", "model"), ("model = [", "config.toml")],
)
def test_config_errors_name_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(PunieError, match=named) as caught:
        config(tmp_path, text)
    assert "config.toml" in str(caught.value)
