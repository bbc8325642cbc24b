"""The how-to page of the test kit: every example on it runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "test-an-extension.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_the_page_passes(tmp_path: Path, number: int) -> None:
    (tmp_path / "test_example.py").write_text(EXAMPLES[number])
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=t", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_command_of_the_page_plays_its_script(tmp_path: Path) -> None:
    shell = re.search(r"```sh\necho '(.*?)' > script.json", PAGE.read_text())
    assert shell
    (tmp_path / "script.json").write_text(shell[1])
    command = [sys.executable, "-m", "punie_protocol.testing.scripted_host"]
    with subprocess.Popen(
        [*command, "--socket", "model.sock", "--script", "script.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as host:
        try:
            assert host.stdout
            assert host.stdout.readline() == "listening\n"
            assert (tmp_path / "model.sock").is_socket()
        finally:
            host.kill()


def test_a_wrong_script_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text('[{"actions": [{"type": "sing"}]}]')
    command = [sys.executable, "-m", "punie_protocol.testing.scripted_host"]
    result = subprocess.run(
        [*command, "--socket", str(tmp_path / "s"), "--script", str(tmp_path / "script.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    assert result.returncode == 2
    assert "script.json is no script: Invalid value 'sing'" in result.stderr
    assert "it is a list like" in result.stderr
