"""What goes wrong for users: each time a clear error, and the next question works."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from punie_protocol.messages.common import Isolation
from tests.support.cli import COMMAND, Punie, alive, daemon_pids, wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("faults")]

QUESTION = "Find all classes that inherit from ValueError"


def works(user: Punie, projects: Path, *args: str) -> None:
    """Assert that a question is answered."""
    assert "JSONDecodeError" in user.ask(projects / "json", QUESTION, *args)["answer"]


def test_killed_worker(user: Punie, projects: Path, isolation: str) -> None:
    works(user, projects, "--isolation", isolation)
    pids = {worker["pid"] for worker in user.status()["workers"]}
    for pid in pids:
        user.kill(pid)
    works(user, projects, "--isolation", isolation)
    assert not alive(pids)


def test_killed_model_host(user: Punie, projects: Path, isolation: str) -> None:
    works(user, projects, "--isolation", isolation)
    pid = user.status()["model"]["pid"]
    user.kill(pid)
    works(user, projects, "--isolation", isolation)
    assert user.status()["model"]["pid"] != pid


def test_killed_daemon_takes_its_children_along(user: Punie, projects: Path) -> None:
    works(user, projects)
    report = user.status()
    children = {worker["pid"] for worker in report["workers"]} | {report["model"]["pid"]}
    everything = daemon_pids(user.home)
    assert children < everything
    user.kill(report["pid"])
    wait_until(lambda: not alive(everything), "children gone", lambda: str(alive(everything)), 5)
    works(user, projects)


def test_no_daemon(tmp_path: Path, projects: Path) -> None:
    user = Punie(tmp_path)
    try:
        result = user.run("status")
        assert result.returncode == 3
        assert "punie up" in result.stderr
        assert user.run("down").returncode == 0
        result = user.run("ask", "-C", projects / "json", QUESTION)
        assert result.returncode == 0
        assert "starting the daemon" in result.stderr
    finally:
        user.close()


def test_five_questions_race_to_start_the_daemon(tmp_path: Path, projects: Path) -> None:
    user = Punie(tmp_path)
    try:
        asked = [user.popen("ask", "-C", projects / "json", QUESTION) for _ in range(5)]
        for process in asked:
            answer, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert "JSONDecodeError" in answer
    finally:
        user.close()


def test_relative_home_is_one_home(tmp_path: Path, projects: Path) -> None:
    user = Punie(tmp_path)
    user.environ["PUNIE_HOME"] = "punie"
    try:
        assert user.run("ask", "-C", projects / "json", QUESTION).returncode == 0
        assert user.status()["home"] == str(tmp_path / "punie")
    finally:
        user.close()


def test_dead_socket_and_empty_lock_file(tmp_path: Path, projects: Path) -> None:
    user = Punie(tmp_path)
    run = tmp_path / "punie" / "run"
    run.mkdir(parents=True)
    for name in ("punie.sock", "model.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(run / name))
    (run / "punie.lock").touch()
    try:
        status = user.run("status")
        assert status.returncode == 3
        assert "Errno" not in status.stderr or "refused" in status.stderr
        works(user, projects)
    finally:
        user.close()


def test_bad_model_folders(user: Punie, projects: Path, tmp_path: Path) -> None:
    import punie_model_host.embedded

    [folder] = punie_model_host.embedded.__path__
    half = tmp_path / "half"
    half.mkdir()
    for file in Path(folder).iterdir():
        if file.is_file():
            data = file.read_bytes()
            size = len(data) // 2 if file.suffix == ".safetensors" else len(data)
            (half / file.name).write_bytes(data[:size])
    unsupported = tmp_path / "unsupported"
    unsupported.mkdir()
    (unsupported / "config.json").write_text('{"model_type": "perceptron"}')
    assert user.run("up").returncode == 0  # a model that works, whoever ran before
    for model, named in (
        (tmp_path / "nowhere", "nowhere"),
        (half, "model.safetensors"),
        (unsupported, "perceptron"),
    ):
        result = user.run("ask", "-C", projects / "json", "--model", model, QUESTION)
        assert result.returncode == 4, result.stderr
        assert named in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert user.status()["model"]["error"] is None
    works(user, projects)


def test_bad_config_is_a_usage_error(tmp_path: Path) -> None:
    user = Punie(tmp_path)
    config = tmp_path / "punie" / "config" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('modle = "x"\n')
    result = user.run("up")
    assert result.returncode == 2
    assert "config.toml" in result.stderr
    assert "modle" in result.stderr
    user.close()


def test_a_restart_with_a_bad_config_leaves_the_daemon_alone(tmp_path: Path) -> None:
    user = Punie(tmp_path, Isolation.PROCESS)
    try:
        assert user.run("up").returncode == 0
        before = user.status()
        config = Path(before["config"])
        assert f"config   {config} (none)" in user.run("status").stdout
        config.parent.mkdir(parents=True)
        config.write_text('modle = "x"\n')
        result = user.run("restart")
        assert result.returncode == 2
        assert "did you mean 'model'?" in result.stderr
        assert user.status()["pid"] == before["pid"]
        config.unlink()
        assert user.run("restart").returncode == 0
        assert user.status()["pid"] != before["pid"]
    finally:
        user.close()


def test_a_session_of_another_project_is_a_usage_error(user: Punie, projects: Path) -> None:
    session = user.ask(projects / "json", QUESTION)["session_id"]
    assert user.ask(projects / "json", QUESTION, "--session", session)["session_id"] == session
    result = user.run("ask", "-C", projects / "asyncio", "--session", session, QUESTION)
    assert result.returncode == 2
    assert str(projects / "json") in result.stderr
    assert str(projects / "asyncio") in result.stderr


def test_daemon_started_with_a_bad_model_lives_on(tmp_path: Path, projects: Path) -> None:
    user = Punie(tmp_path)
    try:
        result = user.run("ask", "-C", projects / "json", "--model", tmp_path / "nowhere", QUESTION)
        assert result.returncode == 4
        assert "nowhere" in result.stderr
        works(user, projects)
    finally:
        user.close()


@pytest.mark.parametrize("link", [False, True])
def test_a_file_outside_the_root_is_not_read(
    user: Punie, tmp_path: Path, isolation: str, *, link: bool
) -> None:
    (tmp_path / "secret.md").write_text("# Quixotic Marmalade\n")
    project = tmp_path / "project"
    project.mkdir()
    (project / "readme.md").symlink_to(tmp_path / "secret.md")
    name = "readme.md" if link else "../secret.md"
    report = user.ask(project, f"What is the title of {name}?", "--isolation", isolation)
    assert "Quixotic" not in json.dumps(report)
    reads = [call for call in report["tool_calls"] if call["name"] == "read_file"]
    assert reads
    assert not any(call["ok"] for call in reads)


def test_a_question_of_one_megabyte(user: Punie, projects: Path) -> None:
    text = "What is this? " + "word " * 200_000
    first = user.ask(projects / "json", "How many Python files are there?")
    result = user.run(
        "ask", "-C", projects / "json", "--session", first["session_id"], "-", input=text
    )
    assert result.returncode == 1
    assert "tokens" in result.stderr
    assert "2,048" in result.stderr
    assert result.stdout == ""
    again = user.ask(projects / "json", "Which ones?", "--session", first["session_id"])
    assert "decoder.py" in again["answer"]


def test_a_question_over_the_limit_of_a_message(user: Punie, projects: Path) -> None:
    result = user.run("ask", "-C", projects / "json", "-", input="x" * 9_000_000)
    assert result.returncode == 2
    assert "8388608" in result.stderr
    works(user, projects)


def test_interrupt_cancels_the_turn(user: Punie, projects: Path) -> None:
    works(user, projects)
    process = user.popen(
        "ask", "-C", projects / "asyncio", "--format", "jsonl", "Find all Python files"
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["type"] == "accepted"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    works(user, projects)


def test_reader_of_the_answer_goes_away(user: Punie, projects: Path) -> None:
    works(user, projects)
    process = user.popen(
        "ask", "-C", projects / "asyncio", "--format", "jsonl", "Find all Python files"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1
    assert stderr == ""
    works(user, projects)


def test_timeout(user: Punie, projects: Path) -> None:
    works(user, projects)
    result = user.run(
        "ask", "-C", projects / "asyncio", "--timeout", "0.05", "Find all Python files"
    )
    assert result.returncode == 6, result.stderr
    assert "0.05 s" in result.stderr
    works(user, projects)


def test_two_questions_at_once_in_one_conversation(user: Punie, projects: Path) -> None:
    session = user.ask(projects / "json", "Hello")["session_id"]
    questions = {"How many Python files are there?": "Python", "Find all TOML files": "TOML"}
    asked = {
        expected: user.popen(
            "ask", "-C", projects / "json", "--session", session, "--format", "json", text
        )
        for text, expected in questions.items()
    }
    for expected, process in asked.items():
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        report = json.loads(out)
        assert expected in report["answer"]
        outer = [call for call in report["tool_calls"] if call["parent"] is None]
        assert len(outer) <= 1, "tool calls of the other question"


def test_timeout_covers_a_standard_input_that_does_not_end(user: Punie, projects: Path) -> None:
    command = [*COMMAND, "ask", "-C", str(projects / "json"), "--timeout", "1", "What is this?"]
    with subprocess.Popen(
        command,
        env=user.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write("begun, never ended")
        process.stdin.flush()
        assert process.wait(30) == 6
        assert process.stderr is not None
        assert "1 s" in process.stderr.read()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_narrow_terminal_encoding_is_no_failure(user: Punie, projects: Path, encoding: str) -> None:
    narrow = Punie(user.home)
    narrow.environ["PYTHONIOENCODING"] = encoding
    result = narrow.run("ask", "-C", projects / "asyncio", "--format", "json", QUESTION)
    assert result.returncode == 0, result.stderr


def test_closed_output_is_no_failure(user: Punie, projects: Path) -> None:
    shell = '"$@" >&- 2>&-'
    command = ["sh", "-c", shell, "sh", *COMMAND, "ask", "-C", str(projects / "json"), QUESTION]
    assert subprocess.run(command, env=user.environ, timeout=60, check=False).returncode == 0


def test_up_with_another_model_than_the_running_one(user: Punie, projects: Path) -> None:
    works(user, projects)
    result = user.run("up", "--model", "/does/not/exist")
    assert result.returncode == 2
    assert "punie model use /does/not/exist" in result.stderr
    assert user.run("up", "--model", "embedded").returncode == 0


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nowhere", "/tmp/" + 300 * "x"])
@pytest.mark.parametrize("command", ["ask", "up", "down", "status", "logs"])
def test_unusable_home(tmp_path: Path, home: str, command: str) -> None:
    user = Punie(tmp_path)
    user.environ["PUNIE_HOME"] = home
    result = user.run(command, *(["x"] if command == "ask" else []))
    assert "Traceback" not in result.stderr
    assert result.returncode in ((0,) if command in ("down", "logs") else (2, 3))


def test_folder_whose_name_is_not_utf8(user: Punie, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    result = user.run("ask", "-C", folder, "Hello")
    assert result.returncode == 2
    assert "UTF-8" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("ask",), "TEXT"),
        (("ask", ""), "empty"),
        (("ask", "-C", "/does/not/exist", "x"), "/does/not/exist"),
        (("ask", "--isolation", "cell", "x"), "cell"),
        (("ask", "--format", "xml", "x"), "xml"),
        (("ask", "--session", "a", "--last", "x"), "--last"),
        (("ask", "--session", "no-such-session", "x"), "no-such-session"),
        (("ask", "How", "many", "files"), 'in quotes: punie ask "How many files"'),
        (("ask", "--model", "127.0.0.1:1/v1#x", "x"), "write it as http://127.0.0.1:1/v1#x"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_usage_errors(user: Punie, args: tuple[str, ...], named: str) -> None:
    result = user.run(*args)
    assert result.returncode == 2, result.stderr
    assert named in result.stderr
    assert result.stdout == ""
