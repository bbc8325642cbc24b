"""The profile for ``sandbox-exec``, as text: no Mac is needed, and none was."""

import re
from pathlib import Path

import pytest

from punie_protocol.errors import Denied, PunieError
from punie_workers.sandbox import seatbelt
from punie_workers.sandbox.confinement import Confinement, ProgramLimits
from punie_workers.sandbox.seatbelt import Seatbelt
from punie_workers.sandbox.view import Facts, Hidden, Shown

PRIVATE = "/private/var/folders/ab/T/punie-1"
FACTS = Facts(
    home="/Users/me",
    read=(Shown("/Users/me/.local/bin", "/Users/me/.local/bin"),),
    hidden=(Hidden("/Users/me/Library/Application Support/punie", True),),
)


def profile(root: str | None = "/Users/me/src/app", facts: Facts = FACTS, **other) -> list[str]:
    """The rules of a profile."""
    wanted = Confinement(root=root, **other)
    return seatbelt.profile(wanted, facts, PRIVATE).splitlines()


def rules(lines: list[str], verdict: str, operation: str) -> str:
    """All rules of a verdict that name an operation, one after the other."""
    return "\n".join(line for line in lines if re.match(rf"\({verdict} .*{operation}", line))


def protects(lines: list[str], path: str) -> bool:
    """Whether a deny rule with a pattern meets the path."""
    patterns = re.findall(r'#"([^"]*)"', rules(lines, "deny", r"file-write\*"))
    return any(re.search(pattern, path) for pattern in patterns)


class TestProfile:
    def test_denies_what_it_does_not_name(self):
        lines = profile()
        assert lines[:2] == ["(version 1)", "(deny default)"]
        assert "(allow default)" not in lines
        assert not any("file-read* file-write*)" in line for line in lines)

    def test_every_parenthesis_is_closed(self):
        for line in profile(network=True):
            bare = re.sub(r'#?"(\\.|[^"\\])*"', "", line)
            assert bare.count("(") == bare.count(")"), line

    def test_the_home_is_looked_up_and_not_read(self):
        lines = profile()
        assert '(literal "/Users/me")' in rules(lines, "allow", "file-read-metadata")
        assert '"/Users/me")' not in rules(lines, "allow", r"file-read\*")
        assert '(subpath "/Users/me/.local/bin")' in rules(lines, "allow", r"file-read\*")

    def test_the_project_and_the_private_folder_are_writable(self):
        written = rules(profile(), "allow", r"file-write\*")
        assert '(subpath "/Users/me/src/app")' in written
        assert f'(subpath "{PRIVATE}")' in written

    def test_a_project_can_be_read_only(self):
        lines = profile(writable=False)
        assert "/Users/me/src/app" not in rules(lines, "allow", r"file-write\*")
        assert '(subpath "/Users/me/src/app")' in rules(lines, "allow", r"file-read\*")

    def test_without_a_project_there_is_none(self):
        assert not any("/Users/me/src/app" in line for line in profile(root=None))

    def test_what_is_hidden_is_denied_last(self):
        last = profile(network=True)[-1]
        assert last.startswith("(deny file-read* file-write* network*")
        assert '"/Users/me/Library/Application Support/punie"' in last

    def test_the_network_is_closed_unless_it_is_asked_for(self):
        assert not any(" ip " in line for line in profile())
        lines = profile(network=True)
        assert '(allow network-outbound (remote ip "*:*"))' in lines
        assert "(allow network*)" not in lines

    def test_no_service_that_starts_programs_or_holds_secrets(self):
        named = rules(profile(network=True), "allow", "mach-lookup")
        for service in ("launchservicesd", "appleevents", "SecurityServer", "securityd"):
            assert service not in named

    def test_words_of_a_path_cannot_become_rules(self):
        lines = profile(root='/Users/me/a") (allow default) ("')
        assert "(allow default)" not in lines
        assert r"/Users/me/a\") (allow default) (\"" in rules(lines, "allow", r"file-write\*")

    def test_a_path_with_a_line_break_is_refused(self):
        with pytest.raises(PunieError) as caught:
            profile(root="/Users/me/a\n(allow default)")
        assert isinstance(caught.value.error, Denied)

    @pytest.mark.parametrize(
        "path",
        [
            *(".punie/config.toml", ".PUNIE", ".vscode/tasks.json", ".envrc", ".mcp.json"),
            *(".git/hooks/pre-commit", ".GIT/Hooks/x", ".git/config", ".git/modules/a/b/config"),
            *("deep/down/inner/.git/hooks/x", ".git/info/attributes", ".git/commondir"),
        ],
    )
    def test_protected_names_cannot_be_written(self, path: str):
        assert protects(profile(), f"/Users/me/src/app/{path}")

    @pytest.mark.parametrize(
        "path",
        [
            *("src/config", "hooks/x", ".git/index", ".git/refs/heads/config", ".gitignore"),
            *(".github/workflows/a.yml", ".git/objects/info/x", "a.vscode", ".envrc.example"),
        ],
    )
    def test_other_names_can(self, path: str):
        assert not protects(profile(), f"/Users/me/src/app/{path}")

    @pytest.mark.parametrize("root", ["/", "/Users", "/Users/me"])
    def test_the_home_is_no_project(self, root: str):
        with pytest.raises(PunieError, match="your home folder is part of it"):
            profile(root=root)

    def test_nothing_runs_in_what_is_hidden(self):
        root = "/Users/me/Library/Application Support/punie/state"
        with pytest.raises(PunieError, match="never shown"):
            profile(root=root)


class TestEnter:
    def test_the_private_folder_is_there_as_long_as_the_program(self, tmp_path: Path):
        wanted = Confinement(root=str(tmp_path.resolve()), limits=ProgramLimits(cpu_s=7))
        with Seatbelt().enter(wanted, ["make", "-k"], cwd=str(tmp_path.resolve())) as confined:
            assert confined.argv[:2] == ("/usr/bin/sandbox-exec", "-p")
            assert confined.argv[-2:] == ("make", "-k")
            assert "7" in confined.argv
            private = Path(confined.environment["TMPDIR"])
            assert confined.environment["HOME"] == str(private)
            assert private.stat().st_mode & 0o777 == 0o700
        assert not private.exists()

    def test_a_folder_outside_the_project_is_refused(self, tmp_path: Path):
        wanted = Confinement(root=str(tmp_path.resolve()))
        with pytest.raises(PunieError, match="outside the project"):
            Seatbelt().enter(wanted, ["true"], cwd="/usr").__enter__()
