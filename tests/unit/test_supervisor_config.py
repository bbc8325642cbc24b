"""The config file: permissions and servers."""

from pathlib import Path

import msgspec
import pytest

from punie_protocol import backends
from punie_protocol.backends import Server
from punie_protocol.engine import EngineSettings
from punie_protocol.errors import PunieError
from punie_protocol.isolation import SandboxSettings, WorkerLimits
from punie_protocol.permissions import Mode, PermissionSettings, Rule
from punie_supervisor.child_spec import Programs, model_host_spec
from punie_supervisor.config import Config, key_of
from punie_supervisor.main import _absolute
from punie_supervisor.paths import Paths

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "config.md"


def load(tmp_path: Path, text: str) -> Config:
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path)})
    paths.config_dir.mkdir()
    paths.config_file.write_text(text)
    return Config.load(paths)


def test_permissions_and_servers_are_read(tmp_path: Path):
    config = load(
        tmp_path,
        """
        model = "http://localhost:1234/v1#coder"
        [permissions]
        mode = "accept-edits"
        wait_s = 5
        allow = [{tool = "execute", command = "make test"}]
        [[servers]]
        url = "http://localhost:1234/v1/"
        key_env = "KEY"
        command = ["server", "--port", "1234"]
        [[servers]]
        url = "https://example.com/v1"
        """,
    )
    assert config.permissions.mode is Mode.ACCEPT_EDITS
    assert config.permissions.wait_s == 5
    assert config.permissions.allow == [Rule(tool="execute", command="make test")]
    assert [server.url for server in config.servers] == [
        "http://localhost:1234/v1/",
        "https://example.com/v1",
    ]


def test_limits_and_sandbox_are_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        idle_s = 60
        [limits]
        memory_mb = 8192
        [sandbox]
        read = ["/opt", "~/x"]
        environment = ["CI"]
        """,
    )
    assert config.idle_s == 60
    assert config.limits == WorkerLimits(memory_mb=8192)
    assert config.sandbox == SandboxSettings(read=["/opt", "~/x"], environment=["CI"])


def test_the_engines_settings_are_read_and_reach_the_model_host(tmp_path: Path) -> None:
    config = load(tmp_path, "[engine]\nmemory_mb = 2000\nmax_batch = 4\nopenai_port = 0\n")
    assert config.engine == EngineSettings(memory_mb=2000, max_batch=4, openai_port=0)
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path)})
    spec = model_host_spec(paths, "embedded", {}, Programs(), config.engine)
    given = spec.command[spec.command.index("--settings") + 1]
    assert msgspec.json.decode(given, type=EngineSettings) == config.engine


SERVER = '[[servers]]\nurl = "http://h:1/v1"\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('model = "http://"', "is not a server's address"),
        (
            '[permissions]\nmode = "fly"',
            r"\[permissions\] mode: 'fly' is not one of: read-only, ask, ",
        ),
        ("[permissions]\nwait_s = 0", r"\[permissions\] wait_s: it must be a number > 0"),
        ("[permissions]\nallow = [{}]", r"\[permissions\] allow\[0\]: an empty rule"),
        (
            '[permissions]\ndeny = [{tol = "x"}]',
            r"\[permissions\] deny\[0\]: there is no key 'tol'",
        ),
        ("idle_s = 0", "idle_s: it must be a number > 0"),
        ("[limits]\nmemory_mb = 1", r"\[limits\] memory_mb: it must be a whole number >= 256"),
        ("[limits]\nfiles = 'x'", r"\[limits\] files: it must be a whole number, this is a text"),
        ("[limits]\nmemory = 1", "limits: there is no key 'memory'"),
        ("[engine]\nmemory_mb = 8", r"\[engine\] memory_mb: it must be a whole number >= 16"),
        (
            "[engine]\nmemory_mb = 'all'",
            r"\[engine\] memory_mb: it must be a whole number, this is a",
        ),
        ("[engine]\nmax_batch = 1000", r"\[engine\] max_batch: it must be a whole number <= 256"),
        ("[engine]\nopenai_port = -1", r"\[engine\] openai_port: it must be a whole number >= 0"),
        ("[engine]\ndisk_gb = 1", "engine: there is no key 'disk_gb'"),
        ("[sandbox]\nread = '/opt'", r"\[sandbox\] read: it must be a list, this is a text"),
        ("[sandbox]\nwrite = ['/x', 'x']", r"\[sandbox\] write\[1\]: 'x' is not an absolute path"),
        ("[sandbox]\nread = ['~']", r"\[sandbox\] read\[0\]: '~' is your home"),
        ("[sandbox]\nenvironment = ['A=1']", r"\[sandbox\] environment\[0\]: 'A=1' is no var"),
        ("[sandbox]\nread = ['']", r"\[sandbox\] read\[0\]: it must be a text .* length >= 1"),
        ("model = 3", "model: it must be a text in quotes, this is a whole number"),
        ("permissions = 3", "permissions: it must be a table, this is a whole number"),
        ("isolation = 3", "isolation: this is not one of: process, interpreter"),
        ("[[servers]]", r"servers\[0\]: the key 'url' is missing"),
        ('[[servers]]\nurl = "h:1"', r"servers\[0\]\.url"),
        ('[[servers]]\nurl = "http://:1"', "is not a server's address"),
        ('[[servers]]\nurl = "http://h:1/v1#x"', r"servers\[0\]\.url: only the base"),
        ('[[servers]]\nurl = "http://h:1/v1?x=1"', r"servers\[0\]\.url: .* no '\?'"),
        ('[[servers]]\nurl = "http://u:p@h:1/v1"', r"servers\[0\]\.url: .* no password"),
        ('model = "http://u:p@h:1/v1"', "may hold no password"),
        ('[[servers]]\nurl = "http://h:0"', r"servers\[0\]\.url: .*not a server's address"),
        (SERVER + '[[servers]]\nurl = "HTTP://H:1/v1"', r"servers\[1\]\.url: servers\[0\] has"),
        ("x = " + "[" * 5000, "too deeply nested"),
        (SERVER + '[[servers]]\nurl = "http://h:1/v1/"', r"servers\[1\]\.url: servers\[0\] has"),
        (SERVER + 'key = "a"\nkey_env = "B"', r"servers\[0\]\.key: there is a key_env too"),
        (SERVER + "context_window = 1", "context_window"),
        (SERVER + 'command = [""]', "command"),
        (SERVER + 'command = ["a\\u0000"]', r"servers\[0\]\.command"),
        (SERVER + 'command = ["a"]\ncwd = "here"', r"servers\[0\]\.cwd"),
        ('[[servers]]\nurl = "https://h/v1"\ncommand = ["a"]', r"servers\[0\]\.command"),
        (SERVER + "ready = 1", r"servers\[0\]: there is no key 'ready'"),
    ],
)
def test_what_is_wrong_is_refused_with_file_and_key(tmp_path: Path, text: str, named: str):
    with pytest.raises(PunieError, match=named) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "config" / "config.toml") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('modle = "x"', "did you mean 'model'? keys there: model, isolation, permissions, servers"),
        ("[permission]", "did you mean 'permissions'? "),
        ("[limits]\nmemory = 1", "did you mean 'memory_mb'? keys there: memory_mb, cpu_s"),
        ("[engine]\nstep_token = 64", "did you mean 'step_tokens'? keys there: memory_mb, disk_mb"),
        ("[sandbox]\nenv = []", "keys there: read, write, environment"),
        (SERVER + "ready = 1", "did you mean 'ready_s'? "),
        ("[permissions]\ndeny = [{zzz = 1}]", "keys there: tool, path, command"),
    ],
)
def test_a_key_that_there_is_not_comes_with_those_there_are(
    tmp_path: Path, text: str, hint: str
) -> None:
    with pytest.raises(PunieError) as caught:
        load(tmp_path, text)
    assert caught.value.error.hint.startswith(hint)


def test_a_key_comes_from_the_file_or_the_environment():
    assert key_of(Server(url="http://h"), {}) == ""
    assert key_of(Server(url="http://h", key="k"), {}) == "k"
    assert key_of(Server(url="http://h", key_env="K"), {"K": "v"}) == "v"
    for environ in ({}, {"K": ""}):
        with pytest.raises(PunieError, match="environment variable K"):
            key_of(Server(url="http://h", key_env="K"), environ)
    with pytest.raises(PunieError, match="characters that no key has") as caught:
        key_of(Server(url="http://h", key="a\r\nX: secret"), {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("model", ["http://h:1/v1#n", "HTTPS://h", "http:x", "http://["])
def test_addresses_are_told_from_names(model: str):
    assert backends.is_backend(model)


@pytest.mark.parametrize("model", ["embedded", "/http://x", "org/http", "//[x", ""])
def test_names_and_paths_are_no_addresses(model: str):
    assert not backends.is_backend(model)


def test_an_address_on_the_command_line_is_not_taken_for_a_path():
    paths = Paths.from_environment({})
    assert _absolute("http://h:1/v1#org/name", paths) == "http://h:1/v1#org/name"
    assert _absolute("embedded", paths) == "embedded"
    assert Path(_absolute("a/b", paths)).is_absolute()
    with pytest.raises(PunieError, match="is not a server's address"):
        _absolute("http://[", paths)


@pytest.mark.parametrize("address", ["http://me:secret@h:1/v1", "http://me:secret@h:x/v1"])
def test_a_password_in_a_models_name_is_refused_and_not_repeated(address: str):
    with pytest.raises(PunieError, match="may hold no password") as caught:
        _absolute(f"{address}#n", Paths.from_environment({}))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('speculation = "draft"', "needs a draft_model"),
        ('draft_model = "http://h:1/v1"', "is a server's address"),
        ('speculation = "often"', "speculation"),
        ("num_draft_tokens = 0", "num_draft_tokens"),
    ],
)
def test_speculation_that_cannot_be_is_refused(tmp_path: Path, text: str, what: str):
    paths = Paths.from_environment({"PUNIE_HOME": str(tmp_path)})
    paths.config_dir.mkdir()
    paths.config_file.write_text(f"[engine]\n{text}\n")
    with pytest.raises(PunieError, match=what):
        Config.load(paths)


def test_every_key_is_documented():
    text = DOCS.read_text()
    for kind in (
        Config,
        Server,
        PermissionSettings,
        Rule,
        WorkerLimits,
        SandboxSettings,
        EngineSettings,
    ):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in text, (kind.__name__, field.name)


@pytest.mark.parametrize("key", ["read", "write"])
@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("~", "your home"),
        ("~/", "your home"),
        ("~/x/..", "your home"),
        ("{home}", "your home"),
        ("{home}/..", "a folder that your home is in"),
        ("/", "a folder that your home is in"),
        ("{link}", "your home"),
    ],
)
def test_the_home_is_refused_when_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, place: str, what: str
) -> None:
    home, link = tmp_path / "home", tmp_path / "link"
    home.mkdir()
    link.symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    named = place.format(home=home, link=link)
    with pytest.raises(PunieError) as failed:
        load(tmp_path, f"[sandbox]\n{key} = ['/opt', '{named}']")
    assert f"[sandbox] {key}[1]: '{named}' is {what}, which is never shown" in str(failed.value)
    assert "~/.cache/uv" in failed.value.error.hint
