"""Bad model folders: each failure names its file and its reason."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from punie_model_host.files import MAX_TEXT
from punie_model_host.folder import EMBEDDED, INDEX, check_folder, resolve
from punie_model_host.loading import build, read_weights
from punie_model_host.profile import ToolCallFormat
from punie_protocol.errors import ModelLoadFailed, PunieError
from punie_protocol.messages.common import PromptStyle
from tests.support.tiny_model import make_tiny_model

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def lazy_weights_go_away() -> Iterator[None]:
    """A model whose weights were not read holds its files open until it is collected."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def edit_json(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_header(folder: Path, old: str, new: str) -> None:
    """Replace text of equal length in the header of the weights."""
    assert len(old) == len(new)
    data = (folder / WEIGHTS).read_bytes()
    assert old.encode() in data
    (folder / WEIGHTS).write_bytes(data.replace(old.encode(), new.encode(), 1))


def write_index(folder: Path, **files: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": files}))


def truncate(folder: Path, size: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])


type Break = Callable[[Path], object]

BROKEN: list[tuple[str, Break, str, str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), "config.json", "is missing"),
    ("config", lambda f: (f / "config.json").write_text("{"), "config.json", "is not JSON"),
    ("list", lambda f: (f / "config.json").write_text("[]"), "config.json", "not a JSON object"),
    ("type", lambda f: edit_json(f, "config.json", model_type=None), "config.json", "model_type"),
    (
        "unsupported",
        lambda f: edit_json(f, "config.json", model_type="gpt-17"),
        "config.json",
        "'gpt-17' is not supported",
    ),
    (
        "code",
        lambda f: edit_json(f, "config.json", model_file="evil.py"),
        "config.json",
        "own model_file",
    ),
    ("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json", "is missing"),
    (
        "tokenizer",
        lambda f: (f / "tokenizer.json").write_text("{"),
        "tokenizer.json",
        "is not JSON",
    ),
    (
        "no template",
        lambda f: (f / "chat_template.jinja").unlink(),
        "chat_template.jinja",
        "no chat template",
    ),
    ("no weights", lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "is missing"),
    ("half-copied", lambda f: truncate(f, -1000), WEIGHTS, "half-copied"),
    ("header only", lambda f: truncate(f, 100), WEIGHTS, "no header"),
    ("empty", lambda f: truncate(f, 0), WEIGHTS, "no header"),
    ("dtype", lambda f: edit_header(f, '"F32"', '"F99"'), WEIGHTS, "unknown type 'F99'"),
    ("extents", lambda f: edit_header(f, "[64]", "[65]"), WEIGHTS, "is damaged"),
    (
        "no shard",
        lambda f: write_index(f, x="model-00002-of-00002.safetensors"),
        "model-00002-of-00002.safetensors",
        "is missing",
    ),
    ("lost tensor", lambda f: write_index(f, lost=WEIGHTS), WEIGHTS, "lacks lost"),
    ("index name", lambda f: write_index(f, x="../w"), INDEX, "names '../w'"),
    ("pipe", lambda f: os.mkfifo(f / "vocab.json"), "vocab.json", "is no ordinary file"),
    (
        "device",
        lambda f: (f / "added_tokens.json").symlink_to("/dev/zero"),
        "added_tokens.json",
        "is no ordinary file",
    ),
    (
        "sparse",
        lambda f: os.truncate(f / "config.json", MAX_TEXT + 1),
        "config.json",
        "which is the limit",
    ),
    (
        "mode",
        lambda f: edit_json(f, "config.json", quantization={"mode": ["affine"]}),
        "config.json",
        "mode ['affine']",
    ),
]


@pytest.mark.parametrize(
    ("damage", "file", "reason"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_broken_files(folder: Path, damage: Break, file: str, reason: str) -> None:
    damage(folder)
    with pytest.raises(PunieError) as caught:
        check_folder(folder)
    error = caught.value.error
    assert isinstance(error, ModelLoadFailed)
    assert (error.folder, error.file) == (str(folder), file)
    assert reason in error.message
    assert str(folder / file) in error.message
    assert error.hint


MISFITS: list[tuple[str, Break, str, str]] = [
    ("shape", lambda f: edit_json(f, "config.json", hidden_size=32), "config.json", "do not fit"),
    (
        "template",
        lambda f: (f / "chat_template.jinja").write_text("{% for %}"),
        "chat_template.jinja",
        "cannot be used",
    ),
    (
        "tokenizer",
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json",
        "no usable tokenizer",
    ),
    ("toml", lambda f: (f / "profile.toml").write_text("="), "profile.toml", "Invalid"),
    ("key", lambda f: (f / "profile.toml").write_text("nme = 'x'"), "profile.toml", "`nme`"),
    (
        "style",
        lambda f: (f / "profile.toml").write_text("prompt_style = 'loud'"),
        "profile.toml",
        "$.prompt_style",
    ),
    (
        "number",
        lambda f: (f / "profile.toml").write_text("[sampling]\ntop_p = 'x'"),
        "profile.toml",
        "$.sampling.top_p",
    ),
    (
        "range",
        lambda f: (f / "profile.toml").write_text("[sampling]\ntop_p = 3.0"),
        "profile.toml",
        "$.sampling.top_p",
    ),
    (
        "window",
        lambda f: (f / "profile.toml").write_text("context_window = 2"),
        "profile.toml",
        "context_window",
    ),
]


@pytest.mark.parametrize(
    ("damage", "file", "reason"), [row[1:] for row in MISFITS], ids=[row[0] for row in MISFITS]
)
def test_parts_that_do_not_fit(folder: Path, damage: Break, file: str, reason: str) -> None:
    damage(folder)
    with pytest.raises(PunieError) as caught:
        build(check_folder(folder))
    error = caught.value.error
    assert isinstance(error, ModelLoadFailed)
    assert error.file == file
    assert reason in error.message


def test_code_and_pickles_in_a_folder_are_not_touched(folder: Path) -> None:
    mark = folder / "mark"
    code = f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n"
    for name in ("evil.py", "modeling.py", "tokenization.py"):
        (folder / name).write_text(code)
    (folder / "pytorch_model.bin").write_bytes(b"cbuiltins\nexec\n.")
    edit_json(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    maps = {"AutoTokenizer": ["tokenization.Evil", None]}
    edit_json(folder, "tokenizer_config.json", auto_map=maps)
    loaded = build(check_folder(folder))
    read_weights(loaded, lambda _done, _total: None)
    assert not mark.exists()


def test_no_folder_and_no_access(tmp_path: Path) -> None:
    with pytest.raises(PunieError, match="no such model folder") as caught:
        check_folder(tmp_path / "none")
    assert isinstance(caught.value.error, ModelLoadFailed)
    (tmp_path / "file").touch()
    with pytest.raises(PunieError, match="is a file"):
        check_folder(tmp_path / "file")


def test_profile_defaults_come_from_the_folder(folder: Path) -> None:
    values = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": "x"}
    (folder / "generation_config.json").write_text(json.dumps(values))
    profile = build(check_folder(folder)).profile
    assert profile.name == "model"
    assert not profile.check_fences
    assert profile.prompt_style is PromptStyle.TOOLS
    assert profile.context_window == 1024
    assert profile.tool_call_format is ToolCallFormat.QWEN3_CODER
    assert (profile.sampling.temperature, profile.sampling.top_k) == (0.7, 20)
    assert (profile.sampling.top_p, profile.sampling.max_tokens) == (1.0, 512)


def test_profile_file_wins(folder: Path) -> None:
    text = 'name = "mine"\nprompt_style = "learned"\ncontext_window = 99\nstop_tokens = ["<think>"]'
    text += "\ncheck_fences = true"
    (folder / "profile.toml").write_text(f"{text}\n[sampling]\nmax_tokens = 7")
    loaded = build(check_folder(folder))
    think = loaded.tokenizer.encode("<think>", add_special_tokens=False)
    assert loaded.info.name == "mine"
    assert loaded.info.check_fences
    assert (loaded.info.context_window, loaded.info.max_output_tokens) == (99, 7)
    assert loaded.info.prompt_style is PromptStyle.LEARNED
    assert loaded.stop_ids == {*think, loaded.tokenizer.eos_token_id}


def test_what_a_model_name_means(tmp_path: Path) -> None:
    assert resolve(EMBEDDED, tmp_path).name == "embedded"
    assert resolve("org/name", tmp_path) == tmp_path / "org/name"
    assert resolve("/some/where", tmp_path) == Path("/some/where")
    assert resolve("~/model", tmp_path) == Path.home() / "model"
    assert resolve("~nobody-knows/model", tmp_path) == tmp_path / "~nobody-knows/model"
    for bad in ("", "../other", "a/../../b"):
        with pytest.raises(PunieError, match="names no model"):
            resolve(bad, tmp_path)
