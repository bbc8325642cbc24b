"""`punie model use` and `list`, and the flags of `up`, as a user has them: one daemon all along."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import trees
from tests.support.cli import Punie, wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("use")]

QUESTION = "How many Python files are there?"


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Punie]:
    """A user with a second model: the embedded one under another name."""
    punie = Punie(tmp_path_factory.mktemp("u"))
    embedded = next(
        model["path"] for model in listed(punie)["models"] if model["name"] == "embedded"
    )
    models = Path(listed(punie)["models_dir"])
    shutil.copytree(embedded, models / "mine" / "copy")
    yield punie
    punie.close()


def listed(user: Punie) -> dict[str, Any]:
    done = user.run("model", "list", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def use(user: Punie, *args: str) -> dict[str, Any]:
    done = user.run("model", "use", "--json", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def states(user: Punie) -> dict[str, str]:
    return {model["name"]: model["state"] for model in listed(user)["models"]}


def test_no_daemon_is_needed_for_the_list(user: Punie) -> None:
    assert states(user) == {"embedded": "default", "mine/copy": ""}
    lines = user.run("model", "list").stdout.splitlines()
    assert lines[0].split() == ["model", "weights", "size", "context", "type"]
    assert lines[1].split() == ["embedded", "bfloat16", "6", "MB", "2048", "qwen3", "default"]
    assert user.run("status").returncode == 3, "none was started"


def test_another_model_without_another_daemon(user: Punie, projects: Path) -> None:
    assert user.run("up").returncode == 0
    before = user.status()
    done = user.run("model", "use", "mine/copy")
    assert (done.returncode, done.stdout) == (0, "model mine/copy, speculation auto\n")
    assert "loading model" in done.stderr
    assert states(user) == {"embedded": "default", "mine/copy": "in use"}
    after = user.status()
    assert (after["pid"], after["model"]["pid"]) == (before["pid"], before["model"]["pid"])
    report = user.ask(projects / "json", QUESTION)
    assert str(len(trees.files(projects / "json", ".py"))) in report["answer"]
    assert use(user, "mine/copy")["changed"] is False
    assert user.run("up", "--model", "mine/copy").returncode == 0, "it is there"
    other = user.run("up", "--model", "embedded2", "--speculation", "off")
    assert other.returncode == 2
    assert "punie model use --speculation=off embedded2" in other.stderr
    assert use(user, "embedded")["changed"] is True


def test_one_that_is_none_leaves_the_one_in_use(user: Punie) -> None:
    use(user, "embedded")
    before = user.status()["model"]["settings"]
    done = user.run("model", "use", "/does/not/exist", "--speculation", "off")
    assert (done.returncode, done.stdout) == (4, "")
    assert "/does/not/exist: no such model folder" in done.stderr
    assert user.status()["model"]["settings"] == before
    assert states(user)["embedded"] == "in use"


def test_flags_of_up_hold_for_the_daemon_that_runs_and_for_its_next_host(user: Punie) -> None:
    use(user, "embedded")
    done = user.run("up", "--speculation", "ngram", "--num-draft-tokens", "4")
    assert done.returncode == 0, done.stderr
    model = user.status()["model"]
    chosen = ("ngram", 4, None)
    names = ("speculation", "num_draft_tokens", "draft_model")
    assert tuple(model["settings"][name] for name in names) == chosen
    assert "speculation ngram, at most 4 drafted tokens" in user.run("status").stdout
    user.kill(model["pid"])
    wait_until(lambda: user.status()["model"]["pid"] not in (None, model["pid"]), "another host")
    wait_until(lambda: user.status()["model"]["state"] == "ready", "its model")
    after = user.status()["model"]
    assert tuple(after["settings"][name] for name in names) == chosen
    assert use(user, "--speculation", "auto", "--num-draft-tokens", "0")["settings"] == (
        after["settings"] | {"speculation": "auto", "num_draft_tokens": None}
    )


def test_a_draft_model(user: Punie, projects: Path) -> None:
    told = use(user, "embedded", "--draft-model", "mine/copy")
    assert told["settings"]["draft_model"] == "mine/copy"
    assert states(user) == {"embedded": "in use", "mine/copy": "drafts"}
    report = user.ask(projects / "json", QUESTION)
    assert str(len(trees.files(projects / "json", ".py"))) in report["answer"]
    assert "draft model " in user.run("status").stdout
    done = user.run("model", "use", "--draft-model", "/does/not/exist")
    assert (done.returncode, done.stdout) == (4, "")
    assert "/does/not/exist: no such model folder" in done.stderr
    assert states(user) == {"embedded": "in use", "mine/copy": "drafts"}, "as it was"
    assert use(user, "--draft-model", "")["settings"]["draft_model"] is None
    assert states(user) == {"embedded": "in use", "mine/copy": ""}


def test_a_daemon_begins_without_a_draft_model_that_is_none(user: Punie) -> None:
    done = user.run("restart", "--draft-model", "/does/not/exist")
    assert done.returncode == 4
    assert "/does/not/exist: no such model folder" in done.stderr
    assert user.status()["model"]["state"] == "ready"
    assert user.run("restart").returncode == 0


def test_a_daemon_that_is_started_for_a_wish_says_what_became_of_it(user: Punie) -> None:
    assert user.run("down").returncode == 0
    done = user.run("model", "use", "--draft-model", "/does/not/exist")
    assert (done.returncode, done.stdout) == (4, "")
    assert "/does/not/exist: no such model folder" in done.stderr
    assert user.run("down").returncode == 0
    done = user.run("model", "use", "mine/copy")
    assert (done.returncode, done.stdout) == (0, "model mine/copy, speculation auto\n")
    assert user.run("restart").returncode == 0


def test_flags_of_a_restart_are_the_new_daemons(user: Punie) -> None:
    done = user.run("restart", "--speculation", "off")
    assert done.returncode == 0, done.stderr
    assert user.status()["model"]["settings"]["speculation"] == "off"
    refused = user.run("restart", "--speculation", "draft")
    assert refused.returncode == 2
    assert "needs a draft_model" in refused.stderr
    assert user.status()["model"]["settings"]["speculation"] == "off", "nothing was stopped"
    assert user.run("restart").returncode == 0
    assert user.status()["model"]["settings"]["speculation"] == "auto", "they end with a daemon"


def test_serving_takes_the_flags_too(user: Punie) -> None:
    done = user.run("model", "serve", "--speculation", "ngram", "--json")
    assert done.returncode == 0, done.stderr
    assert user.status()["model"]["settings"]["speculation"] == "ngram"
    assert user.status()["model"]["door"]["url"] == json.loads(done.stdout)["url"]
    assert user.run("model", "serve", "--stop").returncode == 0


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["http://127.0.0.1:1/v1#x"],
        ["--speculation", "x"],
        ["--num-draft-tokens", "65"],
        ["--speculation", "draft"],
        ["--draft-model", "http://127.0.0.1:1/v1#x"],
    ],
)
def test_what_makes_no_sense_is_refused(user: Punie, args: list[str]) -> None:
    assert user.run("up").returncode == 0
    done = user.run("model", "use", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
