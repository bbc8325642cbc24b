"""What a program in the sandbox is to see: the parts that decide, with no program started."""

import errno
import os
import socket
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.errors import Denied, PunieError
from punie_protocol.isolation import SandboxSettings
from punie_workers.sandbox import (
    available,
    bubblewrap,
    environment,
    machine,
    outside,
    placeholders,
    repositories,
    seccomp,
    view,
)
from punie_workers.sandbox.bubblewrap import Bubblewrap, Place
from punie_workers.sandbox.confinement import Confinement, ProgramLimits
from punie_workers.sandbox.guard import Census, Guard
from punie_workers.sandbox.names import IN_REPOSITORY, IN_ROOT, Absent
from punie_workers.sandbox.protected import Guarded, guard, tidy
from punie_workers.sandbox.repositories import inner, named_in_config
from punie_workers.sandbox.view import Facts, Hidden, Kind, Mount, Shown

HOME = "/home/me"
ROOT = "/home/me/src/app"
SYSTEM = (Shown("/usr", "/usr"), Shown("/bin", "usr/bin", link=True))
EVERY_OPTION = frozenset({"--disable-userns", "--size"})


def same(path: str) -> Shown:
    return Shown(path, path)


def mounts(facts: Facts, root: str | None = ROOT, **other) -> list[Mount]:
    return list(view.mounts(Confinement(root=root, **other), facts))


def place(found: list[Mount], path: str) -> int:
    """The number of the mount at a path, which must be there once."""
    (number,) = [number for number, mount in enumerate(found) if mount.path == path]
    return number


def refusal(facts: Facts, root: str | None = ROOT, **other) -> str:
    with pytest.raises(PunieError) as caught:
        mounts(facts, root, **other)
    assert isinstance(caught.value.error, Denied)
    assert caught.value.error.hint
    return caught.value.error.message


class TestView:
    facts = Facts(system=SYSTEM, home=HOME)

    def test_the_system_is_read_only_and_links_stay_links(self):
        found = mounts(self.facts)
        assert found[0] == Mount(Kind.READ, "/usr", "/usr")
        assert found[1] == Mount(Kind.LINK, "/bin", "usr/bin")

    def test_the_project_lies_over_the_empty_home(self):
        found = mounts(self.facts)
        assert found[place(found, HOME)].kind is Kind.EMPTY
        assert found[place(found, ROOT)] == Mount(Kind.WRITE, ROOT, ROOT)
        assert place(found, HOME) < place(found, ROOT)

    def test_a_project_can_be_read_only_or_absent(self):
        found = mounts(self.facts, writable=False)
        assert found[place(found, ROOT)].kind is Kind.READ
        assert not any(mount.kind is Kind.WRITE for mount in mounts(self.facts, None))

    def test_every_empty_folder_is_bounded(self):
        empty = [mount for mount in mounts(self.facts) if mount.kind is Kind.EMPTY]
        assert {mount.path for mount in empty} >= {"/tmp", "/var/tmp", "/run", "/dev/shm", HOME}
        assert all(0 < mount.size <= view.TEMPORARY for mount in empty)

    def test_what_nothing_is_mounted_on_is_closed_at_the_end(self):
        assert [mount.path for mount in mounts(self.facts)[-3:]] == ["/proc", "/dev", "/"]

    def test_a_place_inside_a_place_lies_over_it(self):
        facts = Facts(home=HOME, read=(same("/data/a/b"),), write=(same("/data"), same("/data/a")))
        found = mounts(facts)
        assert place(found, "/data") < place(found, "/data/a") < place(found, "/data/a/b")
        assert found[place(found, "/data/a/b")].kind is Kind.READ

    def test_a_setting_does_not_make_a_read_only_project_writable(self):
        found = mounts(Facts(home=HOME, write=(same(ROOT),)), writable=False)
        assert found[place(found, ROOT)].kind is Kind.READ

    def test_what_is_hidden_in_the_project_is_masked_after_it(self):
        hidden = (Hidden(f"{ROOT}/state", True), Hidden(f"{ROOT}/run.sock", False))
        found = mounts(Facts(home=HOME, hidden=hidden))
        assert found[place(found, f"{ROOT}/state")].kind is Kind.MASK_FOLDER
        assert found[place(found, f"{ROOT}/run.sock")].kind is Kind.MASK_FILE
        assert place(found, ROOT) < place(found, f"{ROOT}/state")

    def test_what_is_hidden_beats_a_setting(self):
        hidden = (Hidden("/data/state", True),)
        found = mounts(Facts(home=HOME, read=(same("/data/state/db"),), hidden=hidden))
        assert not any(mount.path.startswith("/data") for mount in found)
        link = Shown("/elsewhere", "/data/state")
        assert "/elsewhere" not in [
            mount.path for mount in mounts(Facts(home=HOME, write=(link,), hidden=hidden))
        ]

    def test_what_is_hidden_is_masked_under_each_of_its_names(self):
        facts = Facts(read=(Shown("/alias", "/data"),), hidden=(Hidden("/data/state", True),))
        assert Mount(Kind.MASK_FOLDER, "/alias/state") in mounts(facts)

    def test_what_nobody_sees_needs_no_mask(self):
        found = mounts(Facts(home=HOME, hidden=(Hidden("/home/me/.local/state", True),)))
        assert not any(mount.kind is Kind.MASK_FOLDER for mount in found)

    @pytest.mark.parametrize("root", ["/", "/home", HOME, "/usr", "/tmp", "/var", "/proc"])
    def test_no_program_runs_in_the_home_or_the_system(self, root: str):
        assert root in refusal(self.facts, root)

    def test_no_program_runs_in_what_is_hidden(self):
        assert "never shown" in refusal(Facts(home=HOME, hidden=(Hidden("/home/me/src", True),)))

    @pytest.mark.parametrize("shown", ["/", "/home", HOME])
    def test_a_setting_cannot_show_the_home(self, shown: str):
        assert shown in refusal(Facts(home=HOME, read=(same(shown),)))
        assert shown in refusal(Facts(home=HOME, write=(same(shown),)))

    parts = st.lists(st.sampled_from(["a", "b", "home", "me", "tmp", "usr"]), min_size=1)
    paths = parts.map(lambda parts: "/" + "/".join(parts))

    few = st.lists(paths, max_size=3)

    @given(few, few, few, paths)
    def test_nothing_hidden_is_ever_left_showing(self, read, write, hidden, root):
        facts = Facts(
            system=SYSTEM,
            home=HOME,
            read=tuple(map(same, read)),
            write=tuple(map(same, write)),
            hidden=tuple(Hidden(path, True) for path in hidden),
        )
        try:
            found = list(view.mounts(Confinement(root=root), facts))
        except PunieError:
            return
        shows = [mount for mount in found if mount.kind in (Kind.READ, Kind.WRITE)]
        for path in hidden:
            assert not any(
                view.within(mount.source, path) for mount in shows if mount.path != "/usr"
            )
            for mount in shows:
                if view.within(path, mount.source):
                    assert found.index(Mount(Kind.MASK_FOLDER, path)) > found.index(mount)


class TestWords:
    def test_the_project_goes_in_by_descriptor_with_what_is_protected_over_it(self):
        wanted = Confinement(root=ROOT)
        held = (Guarded(".git", 8, True), Guarded(".git/hooks", 9, False))
        found = bubblewrap.words(
            wanted, [Mount(Kind.WRITE, ROOT, ROOT)], EVERY_OPTION, {ROOT: Place(7, held)}
        )
        assert found[-9:] == [
            *("--bind-fd", "7", ROOT),
            *("--bind-fd", "8", f"{ROOT}/.git"),
            *("--ro-bind-fd", "9", f"{ROOT}/.git/hooks"),
        ]

    def test_the_network_is_left_out_unless_it_is_wanted(self):
        assert "--unshare-net" in bubblewrap.words(Confinement(root=None), [], EVERY_OPTION)
        allowed = bubblewrap.words(Confinement(root=None, network=True), [], EVERY_OPTION)
        assert "--unshare-net" not in allowed
        assert {"--unshare-user", "--unshare-pid", "--new-session", "--die-with-parent"} <= set(
            allowed
        )

    def test_an_older_one_gets_no_options_that_it_does_not_know(self):
        empty = [Mount(Kind.EMPTY, "/tmp", size=10)]
        assert "--size" not in bubblewrap.words(Confinement(root=None), empty, frozenset())
        assert "--size" in bubblewrap.words(Confinement(root=None), empty, EVERY_OPTION)

    def test_one_that_is_too_old_says_what_it_lacks(self):
        assert "--ro-bind-fd" in (Bubblewrap("/b", "bubblewrap 0.4.1\n", "--args FD").lacks() or "")
        assert Bubblewrap("/b", "bubblewrap 0.4.1\n", "").version == "0.4.1"

    def test_limits_are_never_above_our_own(self):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        words = bubblewrap.limited(ProgramLimits(files=10**9, memory=2**31))
        assert words[6] == str(min(10**9, most))
        assert words[4] == str(2**21)


class TestSystemCalls:
    def verdict(self, machine: str, number: int, argument: int = 0, architecture: int = 0) -> int:
        """What the filter says, run as the kernel would."""
        program = seccomp.program(machine)
        assert program is not None
        known = seccomp.MACHINES[machine]
        data = {0: number, 4: architecture or known.architecture, 16: argument}
        lines = list(struct.iter_unpack("=HBBI", program))
        at = loaded = 0
        while True:
            code, past, other, value = lines[at]
            at += 1
            match code:
                case 0x20:
                    loaded = data[value]
                case 0x15:
                    at += past if loaded == value else other
                case 0x35:
                    at += past if loaded >= value else other
                case 0x06:
                    return value
                case _:
                    raise AssertionError(code)

    @pytest.mark.parametrize("machine", seccomp.MACHINES)
    def test_what_is_refused_and_what_is_not(self, machine: str):
        known = seccomp.MACHINES[machine]
        allow, error = 0x7FFF0000, 0x00050000
        assert {self.verdict(machine, number) for number in known.refused} == {error | errno.EPERM}
        assert {self.verdict(machine, number) for number in known.unknown} == {error | errno.ENOSYS}
        assert self.verdict(machine, 0) == allow
        assert self.verdict(machine, 0, architecture=0x40000003) == error | errno.ENOSYS
        assert self.verdict(machine, 0x40000000) == error | errno.ENOSYS
        assert self.verdict(machine, known.socket, socket.AF_UNIX) == allow
        assert self.verdict(machine, known.socket, 40) == error | errno.EAFNOSUPPORT
        assert len(set(known.refused) | set(known.unknown) | {known.socket}) == 18

    def test_an_unknown_machine_gets_none(self):
        assert seccomp.program("pdp11") is None


class TestEnvironment:
    outside = {
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "C",
        "PATH": "/evil",
        "HOME": HOME,
        "PYTHONPATH": "/evil",
        "SSH_AUTH_SOCK": "/run/agent",
        "API_KEY": "secret",
        "GITHUB_TOKEN": "secret",
        "LD_PRELOAD": "/evil.so",
        "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/bus",
    }

    def made(self, *named: str) -> dict[str, str]:
        settings = SandboxSettings(environment=list(named))
        return environment.environment(self.outside, "/private", ["/mine"], settings)

    def test_only_what_is_allowed_gets_in(self):
        found = self.made()
        git = "GIT_DISCOVERY_ACROSS_FILESYSTEM"
        assert found.keys() == {"LANG", "LC_ALL", "PATH", "HOME", "TMPDIR", "TERM", git}
        assert found["HOME"] == "/private"
        assert found["PATH"].startswith("/mine:")
        assert "/evil" not in found["PATH"]

    def test_a_variable_gets_in_when_the_user_names_it_exactly(self):
        assert self.made("API_KEY")["API_KEY"] == "secret"
        assert "GITHUB_TOKEN" not in self.made("API_KEY", "GITHUB_*", "TOKEN", "MISSING")

    def test_variables_of_the_loader_never_get_in(self):
        assert "LD_PRELOAD" not in self.made("LD_PRELOAD")

    def test_what_is_private_stays_so_when_it_is_named(self):
        assert self.made("HOME", "PATH")["HOME"] == "/private"


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def python(prefix: Path) -> Path:
    program(prefix / "bin" / "python3")
    (prefix / "lib" / "python3.14").mkdir(parents=True)
    (prefix / "lib" / "python3.14" / "os.py").touch()
    return prefix


class TestPrograms:
    def shown(self, path: Path, home: Path) -> list[str]:
        found = outside.programs(f"/usr/bin:relative:{path}", str(home))
        assert "/usr/bin" in found.path
        assert "relative" not in found.path
        return found.shown

    def test_a_link_to_the_system_is_followed(self, tmp_path: Path):
        (tmp_path / "current").symlink_to("/usr")
        found = outside.programs(f"{tmp_path}/current/bin", str(tmp_path))
        assert found == (["/usr/bin"], [])

    def test_a_folder_with_programs_is_shown(self, tmp_path: Path):
        folder = program(tmp_path / "tools" / "bin" / "x").parent
        assert self.shown(folder, tmp_path) == [str(folder)]

    def test_a_folder_without_programs_is_not(self, tmp_path: Path):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "text").write_text("no program")
        assert self.shown(tmp_path / "notes", tmp_path) == []
        assert self.shown(tmp_path / "missing", tmp_path) == []

    def test_an_installation_is_shown_whole_but_no_folder_that_somebody_works_in(self, tmp_path):
        for name in (".pyenv", "work"):
            program(tmp_path / name / "bin" / "x")
            (tmp_path / name / "lib").mkdir()
        assert self.shown(tmp_path / ".pyenv" / "bin", tmp_path) == [str(tmp_path / ".pyenv")]
        assert self.shown(tmp_path / "work" / "bin", tmp_path) == [str(tmp_path / "work" / "bin")]

    def test_secrets_and_the_home_are_not_shown_for_a_program_in_them(self, tmp_path: Path):
        program(tmp_path / ".ssh" / "x")
        program(tmp_path / ".config" / "gcloud" / "x")
        program(tmp_path / ".local" / "share" / "keyrings" / "x")
        program(tmp_path / "x")
        for folder in (".ssh", ".config/gcloud", ".local/share/keyrings", ".local/share", "."):
            assert self.shown((tmp_path / folder).resolve(), tmp_path) == []

    def test_a_link_to_secrets_is_not_shown(self, tmp_path: Path):
        program(tmp_path / ".ssh" / "x")
        (tmp_path / "harmless").symlink_to(tmp_path / ".ssh")
        assert self.shown(tmp_path / "harmless", tmp_path) == []

    def test_what_is_in_the_project_is_on_the_path_and_not_mounted_again(self, tmp_path: Path):
        folder = program(tmp_path / "app" / ".venv" / "bin" / "x").parent
        found = outside.programs(str(folder), "/home/x", str(tmp_path / "app"))
        assert found == ([str(folder)], [])


def needed(root: Path, home: Path | str) -> list[str]:
    """What a project needs, by the names that it has for it."""
    return [one.path for one in outside.of_project(str(root), str(home))]


class TestPython:
    def of(self, tmp_path: Path, home: str) -> list[str]:
        root = tmp_path / "app"
        (root / ".venv" / "bin").mkdir(parents=True)
        (root / ".venv" / "pyvenv.cfg").write_text(f"home = {home}\nversion = 3.14\n")
        return needed(root, self.home or tmp_path / "me")

    home: Path | None = None

    def test_the_installation_that_an_environment_names(self, tmp_path: Path):
        prefix = python(tmp_path / "pythons" / "3.14")
        assert self.of(tmp_path, f"{prefix}/bin") == [str(prefix)]

    def test_every_installation_on_the_way_of_its_link(self, tmp_path: Path):
        prefix = python(tmp_path / "pythons" / "3.14.2")
        (tmp_path / "pythons" / "3.14").symlink_to(prefix)
        (tmp_path / "app" / "venv" / "bin").mkdir(parents=True)
        (tmp_path / "app" / "venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
        link = tmp_path / "app" / "venv" / "bin" / "python"
        link.symlink_to(tmp_path / "pythons" / "3.14" / "bin" / "python3")
        found = outside.of_project(str(tmp_path / "app"), str(tmp_path / "me"))
        assert (str(tmp_path / "pythons" / "3.14"), str(prefix)) in found

    def test_a_hostile_one_shows_nothing(self, tmp_path: Path):
        secrets = tmp_path / "me" / ".ssh"
        python(secrets)  # it even looks like one
        plain = tmp_path / "other" / "project"
        plain.mkdir(parents=True)
        self.home = tmp_path / "me"
        for number, home in enumerate((f"{secrets}/bin", f"{plain}/bin", f"{tmp_path}/me", "/")):
            assert self.of(tmp_path / str(number), home) == []

    def test_a_link_that_is_swapped_after_the_look_leads_nowhere_else(self, tmp_path: Path):
        prefix = python(tmp_path / "pythons" / "3.14")
        (tmp_path / "app").mkdir()
        (tmp_path / "app" / "link").symlink_to(prefix)
        assert self.of(tmp_path, f"{tmp_path}/app/link/bin")
        found = outside.of_project(str(tmp_path / "app"), str(tmp_path / "me"))
        assert [one.real for one in found] == [str(prefix)]
        (tmp_path / "app" / "link").unlink()
        (tmp_path / "app" / "link").symlink_to(tmp_path / "me" / ".ssh")
        for one in found:
            assert [shown.source for shown in machine.as_named(*one)] == [one.real]

    def test_what_lies_where_programs_write_is_not_looked_for(self, tmp_path: Path):
        prefix = python(tmp_path / "shared" / "3.14")
        assert self.of(tmp_path, f"{prefix}/bin") == [str(prefix)]
        root, home, shared = (str(tmp_path / name) for name in ("app", "me", "shared"))
        assert outside.of_project(root, home, [shared]) == []

    @pytest.mark.parametrize(
        ("place", "shown"),
        [
            *((".local/share/uv/python/3.14", True), (".pyenv/versions/3.14", True)),
            *(("miniconda3", True), (".local/share/other", False), (".config/x", False)),
        ],
    )
    def test_where_in_the_home_one_may_be(self, tmp_path: Path, place: str, shown: bool):
        prefix = python(tmp_path / "me" / place)
        assert self.of(tmp_path, f"{prefix}/bin") == ([str(prefix)] if shown else [])

    @pytest.mark.parametrize("place", ["me", "me/.local"])
    def test_of_one_that_shares_a_folder_only_its_parts(self, tmp_path: Path, place: str):
        prefix = python(tmp_path / place)
        parts = [f"{prefix}/bin", f"{prefix}/lib/python3.14"]
        assert self.of(tmp_path, f"{prefix}/bin") == parts


class TestRepositories:
    def repository(self, folder: Path) -> Path:
        for name in ("objects", "refs"):
            (folder / name).mkdir(parents=True)
        (folder / "HEAD").write_text("ref: refs/heads/main\n")
        return folder

    def test_of_a_linked_work_tree(self, tmp_path: Path):
        common = self.repository(tmp_path / "main" / ".git")
        linked = common / "worktrees" / "app"
        linked.mkdir(parents=True)
        (tmp_path / "app").mkdir()
        (tmp_path / "app" / ".git").write_text(f"gitdir: {linked}\n")
        assert needed(tmp_path / "app", "/h") == []
        (linked / "gitdir").write_text(f"{tmp_path}/app/.git\n")
        (linked / "commondir").write_text("../..\n")
        assert needed(tmp_path / "app", "/h") == [str(common)]

    def test_one_that_does_not_know_the_project_is_not_shown(self, tmp_path: Path):
        other = self.repository(tmp_path / "secret" / ".git")
        (tmp_path / "app").mkdir()
        (tmp_path / "app" / ".git").write_text(f"gitdir: {other}\n")
        assert needed(tmp_path / "app", "/h") == []
        (other / "config").write_text(f"[core]\n\tworktree = {tmp_path}/app\n")
        assert needed(tmp_path / "app", "/h") == [str(other)]

    def test_of_the_folder_above_but_not_of_the_home(self, tmp_path: Path):
        above = self.repository(tmp_path / "mono" / ".git")
        (tmp_path / "mono" / "app").mkdir()
        root = tmp_path / "mono" / "app"
        assert needed(root, "/h") == [str(above)]
        assert needed(root, tmp_path / "mono" / ".git" / "x") == []
        assert needed(root, tmp_path / "mono") == []


@pytest.fixture
def root(tmp_path: Path):
    """A project's folder, open."""
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def git(folder: Path) -> Path:
    """A repository's own folder, as git would know it."""
    (folder / "hooks").mkdir(parents=True)
    (folder / "HEAD").touch()
    return folder


def guarded(root: int) -> dict[str, bool]:
    """What is held, and whether it stays writable."""
    with guard(root) as found:
        return {one.path: one.writable for one in found}


class TestProtected:
    def test_every_name_that_is_there_or_not(self, root: int, tmp_path: Path):
        git(tmp_path / ".git")
        (tmp_path / ".envrc").touch()
        found = guarded(root)
        assert found[".git"] is True
        assert found[".envrc"] is False
        for name in (".punie", ".vscode", ".git/hooks", ".git/config", ".git/info"):
            assert found[name] is False, name

    def test_placeholders_are_there_meanwhile_and_gone_afterwards(self, root: int, tmp_path: Path):
        with guard(root):
            assert (tmp_path / ".punie").is_dir()
            assert (tmp_path / ".git").is_dir()
        assert list(tmp_path.iterdir()) == []

    def test_a_git_folder_that_is_no_repository_is_held_whole(self, root: int, tmp_path: Path):
        (tmp_path / ".git" / "refs").mkdir(parents=True)
        assert guarded(root)[".git"] is False

    def test_two_at_once_do_not_take_each_other_s_away(self, root: int, tmp_path: Path):
        with guard(root):
            with guard(root):
                pass
            assert (tmp_path / ".punie").is_dir()
        assert list(tmp_path.iterdir()) == []
        first, second = guard(root), guard(root)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert (tmp_path / ".punie").is_dir()
        second.__exit__(None, None, None)
        assert list(tmp_path.iterdir()) == []

    def test_what_a_crash_left_is_removed_by_the_next(self, root: int, tmp_path: Path):
        placeholders.make(root, ".punie", Absent.FOLDER)
        assert (tmp_path / ".punie").is_dir()
        guarded(root)
        assert not (tmp_path / ".punie").exists()

    def test_what_a_crash_left_is_removed_when_the_project_is_opened(
        self, root: int, tmp_path: Path
    ):
        git(tmp_path / ".git")
        (tmp_path / ".zed").mkdir()
        made = [name.partition("/")[0] for name in guarded(root)]
        for rule in IN_ROOT:
            if rule.absent is Absent.FOLDER:
                placeholders.make(root, rule.name, rule.absent)
        placeholders.make(root, ".git/commondir", Absent.HERE)
        assert (tmp_path / ".punie").is_dir()
        tidy(str(tmp_path))
        assert sorted(path.name for path in tmp_path.iterdir()) == [".git", ".zed"]
        assert not (tmp_path / ".git" / "commondir").exists()
        assert ".punie" in made

    def test_opening_a_project_leaves_what_is_in_use(self, root: int, tmp_path: Path):
        with guard(root):
            tidy(str(tmp_path))
            assert (tmp_path / ".punie").is_dir()
        tidy(str(tmp_path / "nowhere"))

    def test_an_empty_folder_of_the_user_s_stays(self, root: int, tmp_path: Path):
        (tmp_path / ".vscode").mkdir()
        guarded(root)
        assert [path.name for path in tmp_path.iterdir()] == [".vscode"]

    def test_what_the_user_put_into_a_placeholder_stays(self, root: int, tmp_path: Path):
        with guard(root):
            (tmp_path / ".vscode" / "settings.json").write_text("{}")
        assert (tmp_path / ".vscode" / "settings.json").read_text() == "{}"
        guarded(root)
        assert (tmp_path / ".vscode" / "settings.json").exists()

    @pytest.mark.parametrize("name", [".git", ".punie", ".vscode", ".git/hooks", ".git/config"])
    def test_a_link_in_its_place_is_refused_by_name(self, root: int, tmp_path: Path, name: str):
        if name.startswith(".git/"):
            git(tmp_path / ".git")
            (tmp_path / ".git" / "hooks").rmdir()
        (tmp_path / "real").mkdir()
        (tmp_path / name).symlink_to(tmp_path / "real")
        with pytest.raises(PunieError, match=f"'{name}' of the project is a symbolic link"):
            guarded(root)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["real"]

    def test_a_file_with_a_second_name_is_refused(self, root: int, tmp_path: Path):
        git(tmp_path / ".git")
        (tmp_path / "x").touch()
        (tmp_path / ".git" / "config").hardlink_to(tmp_path / "x")
        with pytest.raises(PunieError, match="second name"):
            guarded(root)

    def test_repositories_inside_are_found_and_their_way_is_held(self, root: int, tmp_path: Path):
        git(tmp_path / "vendor" / "lib" / ".git")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / ".git").write_text("gitdir: ../.git/modules/sub")
        found = guarded(root)
        assert found["vendor"] is True
        assert found["vendor/lib/.git/hooks"] is False
        assert found["sub/.git"] is False

    def test_submodules_whatever_the_depth_of_their_name(self, root: int, tmp_path: Path):
        git(tmp_path / ".git")
        module = git(tmp_path / ".git" / "modules" / "group" / "one")
        (module / "config").touch()
        assert guarded(root)[".git/modules/group/one/config"] is False

    def test_hooks_and_settings_kept_elsewhere_in_the_project(self, root: int, tmp_path: Path):
        git(tmp_path / ".git")
        (tmp_path / ".git" / "hooks" / "pre-commit").symlink_to("../../scripts/check")
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts" / "check").touch()
        (tmp_path / ".git" / "config").write_text(
            '[core]\n\thooksPath = tools/hooks\n[include]\n\tpath = "../team.gitconfig"\n'
        )
        (tmp_path / "team.gitconfig").touch()
        found = guarded(root)
        assert found["scripts/check"] is False
        assert found["scripts"] is True
        assert found["team.gitconfig"] is False
        assert found["tools"] is False  # nothing can be made in it
        assert not (tmp_path / "tools").exists()

    def test_what_lies_outside_is_not_its_business(self, root: int, tmp_path: Path):
        git(tmp_path / ".git")
        (tmp_path / ".git" / "config").write_text("[core]\n\thooksPath = /etc/hooks\n")
        assert named_in_config(root, ".git") == []

    def test_more_submodules_than_can_be_held_are_refused(self, root: int, tmp_path: Path):
        git(tmp_path / ".git")
        for number in range(repositories.MAX_FOLDERS + 1):
            (tmp_path / ".git" / "modules" / str(number)).mkdir(parents=True)
        with pytest.raises(PunieError, match="more than 2000 folders"):
            guarded(root)

    def test_a_commondir_names_its_own_folder_meanwhile(self, root: int, tmp_path: Path):
        git(tmp_path / ".git")
        assert guarded(root)[".git/commondir"] is False
        with guard(root), guard(root):
            assert (tmp_path / ".git" / "commondir").read_text() == ".\n"
        assert not (tmp_path / ".git" / "commondir").exists()

    def test_the_search_for_repositories_is_bounded(self, root: int, tmp_path: Path):
        (tmp_path / "1" / "2" / "3" / ".git").mkdir(parents=True)
        (tmp_path / "a" / "b" / "c" / "d" / ".git").mkdir(parents=True)
        (tmp_path / "node_modules" / ".git").mkdir(parents=True)
        assert list(inner(root)) == ["1/2/3/.git"]
        assert list(inner(root, 2)) == []

    def test_the_names_are_relative_and_lead_down(self):
        for rule in (*IN_ROOT, *IN_REPOSITORY):
            assert set(rule.name.split("/")).isdisjoint({"", ".", ".."})


class TestGuard:
    guard = Guard(ProgramLimits(processes=10, memory=1000))

    def test_within_the_limits(self):
        assert self.guard.judged(Census(10, 1000, 5.0)) is None

    @pytest.mark.parametrize(
        ("census", "what"), [(Census(11, 0, 0.0), "processes"), (Census(1, 1001, 0.0), "memory")]
    )
    def test_over_one_of_them(self, census: Census, what: str):
        over = self.guard.judged(census)
        assert over is not None
        assert over.what == what
        assert "allowed" in over.message


def fake(path: Path, does: str, help: str = "--ro-bind-fd --json-status-fd --args --perms") -> str:
    """A program that says of itself what ``bwrap`` does, and does something else."""
    program(path).write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"  --help) echo '{help}';;\n"
        "  --version) echo bubblewrap 0.8.0;;\n"
        f"  *) {does};;\n"
        "esac\n"
    )
    return str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")
class TestFind:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """A machine where nothing was found yet, and nothing came with Punie."""
        monkeypatch.setattr(available, "POINTER", str(tmp_path / "none"))
        available.forget()
        yield
        available.forget()

    def missing(self, monkeypatch: pytest.MonkeyPatch, *installed: str) -> available.Missing:
        monkeypatch.setattr(available, "INSTALLED", installed)
        found = available.find()
        assert isinstance(found, available.Missing)
        assert "punie projects unconfined DIR" in found.hint
        return found

    def test_none_is_installed(self, monkeypatch):
        found = self.missing(monkeypatch)
        assert found.reason == "bubblewrap is not installed"
        assert "apt-get install bubblewrap" in found.hint

    def test_one_that_the_machine_forbids(self, monkeypatch, tmp_path: Path):
        says = "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"
        found = self.missing(monkeypatch, fake(tmp_path / "bwrap", says))
        assert "uid map: Permission denied" in found.reason
        assert "namespaces" in found.hint

    def test_one_that_is_too_old(self, monkeypatch, tmp_path: Path):
        found = self.missing(monkeypatch, fake(tmp_path / "bwrap", "exec true", "--args --perms"))
        assert "too old" in found.reason

    def test_one_that_others_can_change(self, monkeypatch, tmp_path: Path):
        path = fake(tmp_path / "bwrap", "exec true")
        Path(path).chmod(0o777)
        assert "changed by other users" in self.missing(monkeypatch, path).reason

    def test_one_that_works_beats_one_that_does_not(self, monkeypatch, tmp_path: Path):
        bad, good = fake(tmp_path / "1", "exit 9"), fake(tmp_path / "2", "exec true")
        monkeypatch.setattr(available, "INSTALLED", (bad, good))
        found = available.find()
        assert isinstance(found, Bubblewrap)
        assert (found.path, found.version) == (good, "0.8.0")

    def test_one_that_is_installed_later_is_found(self, monkeypatch, tmp_path: Path):
        monkeypatch.setattr(available, "AGAIN_S", 0.0)
        monkeypatch.setattr(available, "_RARELY", 0)
        path = tmp_path / "bwrap"
        self.missing(monkeypatch, str(path))
        fake(path, "exec true")
        assert isinstance(available.find(), Bubblewrap)

    def test_one_that_is_missing_is_not_looked_for_at_each_command(self, monkeypatch, tmp_path):
        monkeypatch.setattr(available, "AGAIN_S", 1000.0)
        path = tmp_path / "bwrap"
        first = self.missing(monkeypatch, str(path))
        fake(path, "exec true")
        assert available.find() is first

    def test_the_environment_names_none(self, monkeypatch, tmp_path: Path):
        monkeypatch.setenv("PUNIE_BWRAP", fake(tmp_path / "evil", "exec true"))
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        fake(tmp_path / "bwrap", "exec true")
        self.missing(monkeypatch)


class TestExplained:
    def test_what_forbids_namespaces_is_named(self):
        complaint = "bwrap: setting up uid map: Permission denied"
        assert "AppArmor" in available.explained(complaint, restricted=True)
        assert "max_user_namespaces" in available.explained(complaint, restricted=False)

    def test_the_way_without_one_is_always_named(self):
        for complaint in ("bwrap: setting up uid map: Permission denied", "anything"):
            assert "punie projects unconfined DIR" in available.explained(complaint)

    def test_a_program_that_others_can_change_is_not_sane(self, tmp_path: Path):
        mine = program(tmp_path / "bwrap")
        assert bubblewrap.is_sane(str(mine))
        mine.chmod(0o777)
        assert not bubblewrap.is_sane(str(mine))
        assert not bubblewrap.is_sane(str(tmp_path / "missing"))
