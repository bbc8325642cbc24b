"""What the sandbox promises, each by a real program in it that tries."""

import asyncio
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from punie_protocol.errors import Denied, PunieError
from punie_protocol.isolation import SandboxSettings
from punie_workers.sandbox import protected, seccomp
from punie_workers.sandbox.confinement import Confined, Confinement, ProgramLimits
from punie_workers.sandbox.counting_anywhere import Anywhere
from punie_workers.sandbox.counting_linux import Linux
from punie_workers.sandbox.guard import Counting, Guard, Over, Replaced
from tests.support.confined import PATIENCE_S, PYTHON, Confining, the_sandbox
from tests.support.repositories import Repository

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")

SECRET = "the-secret-of-this-test"
RUNS = 15
"""How often a program is run while somebody swaps names."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with secrets in it, and what else a program must not see."""
    home = tmp_path / "me"
    for name in (".ssh/id_ed25519", ".aws/credentials", ".netrc", "other/project/notes"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(SECRET)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def project(home: Path) -> Confining:
    """A project in that home."""
    root = home / "src" / "app"
    root.mkdir(parents=True)
    return Confining(root.resolve())


@pytest.fixture
def repository(project: Confining) -> Confining:
    """The same project with a repository and a commit."""
    Repository(project.root).commit({"a.txt": "one\n"})
    return project


class TestFiles:
    @pytest.mark.parametrize("name", [".ssh/id_ed25519", ".aws/credentials", ".netrc"])
    def test_secrets_of_the_home_are_not_there(self, project: Confining, home: Path, name: str):
        done = project.sh(f"cat ~/{name}; cat {home}/{name}; ls -A ~")
        assert SECRET not in done.stdout
        assert done.stdout.split() == ["src"]

    def test_nor_are_other_projects_nor_what_root_alone_may_read(self, project, home: Path):
        done = project.sh(f"cat {home}/other/project/notes ../../other/project/notes /etc/shadow")
        assert done.stdout == ""
        assert done.returncode != 0

    def test_nothing_outside_the_project_can_be_written(self, project: Confining, home: Path):
        places = ["/x", "/usr/x", "/etc/x", "/opt/x", "/proc/x", "/dev/x"]
        assert project.sh("".join(f"echo > {place};" for place in places)).stderr.count("\n") >= 6
        assert not any(Path(place).exists() for place in places)
        assert project.sh(f"echo x > ~/x && echo x > {home}/other/x").returncode != 0
        assert project.sh("echo x > ~/x && echo x > /tmp/x && cat ~/x /tmp/x").stdout == "x\nx\n"
        assert not (home / "x").exists()

    def test_the_kernel_s_settings_cannot_be_changed_not_even_by_root(self, project: Confining):
        done = project.sh(
            "cat /proc/sys/kernel/core_pattern > /tmp/x; cat /tmp/x > /proc/sys/kernel/core_pattern"
        )
        assert done.returncode != 0
        assert "Read-only" in done.stderr or "ermission denied" in done.stderr

    def test_the_project_can_be_written_and_is_the_real_one(self, project: Confining):
        (project.root / "in").write_text("here")
        assert project.sh("cat in; echo there > out").stdout == "here"
        assert (project.root / "out").read_text() == "there\n"

    def test_a_read_only_project_cannot(self, project: Confining):
        assert project.sh("echo > out", writable=False).returncode != 0
        assert list(project.root.iterdir()) == []
        assert project.sh("echo > /tmp/out", writable=False).returncode == 0

    def test_a_link_to_the_outside_leads_nowhere(self, project: Confining, home: Path):
        (project.root / "link").symlink_to(home / ".ssh" / "id_ed25519")
        assert project.sh("cat link").returncode != 0

    def test_places_that_the_user_names_are_shown(self, project: Confining, home: Path):
        (home / "sdk").mkdir()
        (home / "sdk" / "file").write_text("sdk")
        (home / "cache").mkdir()
        settings = SandboxSettings(read=["~/sdk"], write=[str(home / "cache")])
        done = project.sh("cat ~/sdk/file; echo > ~/sdk/x; echo > ~/cache/x", settings=settings)
        assert done.stdout == "sdk"
        assert [path.name for path in (home / "cache").iterdir()] == ["x"]
        assert [path.name for path in (home / "sdk").iterdir()] == ["file"]

    def test_what_is_hidden_is_not_even_in_the_project(self, project: Confining):
        (project.root / "state").mkdir()
        (project.root / "state" / "journal").write_text(SECRET)
        with bound(project.root / "run.sock") as listener:
            hidden = (str(project.root / "state"), str(project.root / "run.sock"))
            done = project.sh("ls state; cat state/journal; touch state/x", hidden=hidden)
            program = "import socket; socket.socket(socket.AF_UNIX).connect('run.sock')"
            refused = project.python(program, hidden=hidden)
            assert done.stdout == ""
            assert refused.returncode != 0
            assert nobody_came(listener)
        assert [path.name for path in (project.root / "state").iterdir()] == ["journal"]

    def test_a_project_in_what_is_hidden_is_refused(self, project: Confining, home: Path):
        with pytest.raises(PunieError, match="never shown"):
            project.sh("true", hidden=(str(home / "src"),))

    def test_the_home_is_no_project(self, home: Path):
        with pytest.raises(PunieError) as caught:
            Confining(home.resolve()).sh("true")
        assert isinstance(caught.value.error, Denied)


@contextmanager
def bound(path: Path | str) -> Generator[socket.socket]:
    """A listening Unix socket; a name that begins with NUL is abstract."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        yield listener


def nobody_came(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


class TestProtected:
    LIST = ("find", ".", "-not", "-name", ".", "-print")

    def test_hooks_settings_and_editors_cannot_be_changed(self, repository: Confining):
        (repository.root / ".vscode").mkdir()
        before = snapshot(repository.root)
        attempts = [
            *("echo evil > .git/hooks/pre-commit", "echo evil >> .git/config", "rm .git/config"),
            *("mv .git .got", "mv .git/hooks .git/h", "rm -rf .git/hooks", "mkdir .punie/x"),
            *("echo evil > .punie/config.toml", "echo evil > .vscode/tasks.json", "rmdir .punie"),
            *("ln .git/config c", "rm -rf .idea; ln -s x .idea", "git config core.pager evil"),
            *("echo '* filter=x' > .git/info/attributes", "echo evil > .git/config.worktree"),
            *("chmod 777 .git/hooks", "mount --bind . .git/hooks", "umount .git/config"),
            "git config core.hooksPath x",
        ]
        for attempt in attempts:
            assert repository.sh(attempt).returncode != 0, attempt
        left = {path: text for path, text in snapshot(repository.root).items() if "/x" not in path}
        assert left == before

    def test_a_commondir_never_names_another(self, repository: Confining):
        """Not for a moment: the user's git may look while the command runs."""
        attempts = ("echo ../x > .git/commondir", "rm .git/commondir", "mv x .git/commondir")
        for attempt in attempts:
            assert repository.sh(f"touch x; {attempt}").returncode != 0, attempt
            assert not (repository.root / ".git" / "commondir").exists()

    def test_git_works_beside_the_placeholders(self, repository: Confining):
        git = Repository(repository.root).git
        root = os.open(repository.root, os.O_PATH)
        with protected.guard(root):
            os.close(root)
            git("checkout", "-q", "-b", "other")
            git("worktree", "add", "-q", "../linked")
            assert git("status", "--short", "--untracked-files=no").strip() == ""
            git("fsck")

    def test_nothing_is_left_where_nothing_was(self, project: Confining):
        done = project.sh("ls -A; mkdir .git/hooks; echo x > .punie/config.toml; git init")
        assert {".git", ".punie", ".vscode"} <= set(done.stdout.split())
        assert list(project.root.iterdir()) == []

    def test_nested_repositories_too(self, project: Confining):
        inner = Repository(project.root / "vendor" / "lib")
        inner.commit({"a": "b"})
        assert project.sh("echo x > vendor/lib/.git/hooks/post-checkout").returncode != 0
        assert project.sh("mv vendor other").returncode != 0
        assert project.sh("cd vendor/lib && echo c > a && git status --short").stdout == " M a\n"

    def test_a_link_in_the_place_of_hooks_is_refused(self, repository: Confining):
        hooks = repository.root / ".git" / "hooks"
        with suppress(FileNotFoundError):
            hooks.rename(repository.root / "githooks")
        hooks.symlink_to("../githooks")
        with pytest.raises(PunieError, match=r"'\.git/hooks' of the project is a symbolic link"):
            repository.sh("true")

    def test_a_name_that_is_swapped_for_a_link_shows_nothing(self, project: Confining, home: Path):
        editor = project.root / ".vscode"
        with swapping(editor, home / ".ssh"):
            seen = [self.look(project) for _ in range(RUNS)]
        assert not any(SECRET in one for one in seen)
        assert (home / ".ssh" / "id_ed25519").read_text() == SECRET

    def look(self, project: Confining) -> str:
        """What a program sees in the folder, or why none was run."""
        try:
            done = project.sh("cat .vscode/id_ed25519; echo evil > .vscode/id_ed25519; ls .vscode")
        except PunieError as error:
            return str(error)
        return done.stdout + done.stderr

    def test_two_programs_at_once_protect_both(self, project: Confining):
        with started(project, "cat") as first:
            assert (project.root / ".punie").is_dir()
            assert project.sh("echo x > .punie/config.toml").returncode != 0
            assert (project.root / ".punie").is_dir()
            first.communicate(timeout=PATIENCE_S)
        assert list(project.root.iterdir()) == []

    def test_a_worker_that_is_killed_leaves_what_the_next_removes(self, project: Confining):
        program = (
            "import os, signal\n"
            "from tests.support.confined import the_sandbox\n"
            "from punie_workers.sandbox.confinement import Confinement\n"
            f"wanted = Confinement(root={str(project.root)!r})\n"
            f"with the_sandbox().enter(wanted, ['true'], cwd={str(project.root)!r}):\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        died = subprocess.run([sys.executable, "-c", program], check=False, timeout=PATIENCE_S)
        assert died.returncode == -signal.SIGKILL
        assert (project.root / ".punie").is_dir()
        project.sh("true")
        assert list(project.root.iterdir()) == []

    def test_a_worker_that_is_killed_leaves_no_commondir_of_another(self, repository: Confining):
        evil = 'printf "[core]\\n\\tfsmonitor = touch pwned\\n" >> evil/config'
        script = f"cp -r .git evil; {evil}; echo ../evil > .git/commondir; echo"
        died = killed_after(repository, script)
        assert died.returncode == -signal.SIGKILL
        assert (repository.root / "evil" / "config").exists()
        git = Repository(repository.root).git
        git("add", "--all")
        git("status")
        assert not (repository.root / "pwned").exists()

    def test_what_git_replaces_outside_stays_closed_to_one_that_lasts(self, repository: Confining):
        script = "read x; echo evil >> .git/config; echo x > .git/hooks/x; touch .git/x; cat a.txt"
        command = ("sh", "-c", script)
        with started(repository, *command, lasting=True) as process:
            Repository(repository.root).git("config", "user.name", "z")
            out, said = process.communicate(b"go\n", timeout=PATIENCE_S)
            assert out == b"one\n"
            assert said.count(b"Read-only") == 3
        assert "evil" not in (repository.root / ".git" / "config").read_text()

    def test_what_is_replaced_outside_is_noticed(self, repository: Confining):
        wanted, cwd = Confinement(root=str(repository.root)), str(repository.root)
        with the_sandbox().enter(wanted, ["true"], cwd=cwd) as confined:
            assert confined.replaced() is None
            (repository.root / "a.txt").write_text("two\n")
            assert confined.replaced() is None
            Repository(repository.root).git("config", "user.name", "z")
            assert confined.replaced() == ".git/config"
        with the_sandbox().enter(wanted, ["true"], cwd=cwd) as confined:
            (repository.root / ".vscode").rmdir()
            assert confined.replaced() == ".vscode"

    def test_places_that_the_user_names_are_protected_alike(self, project: Confining, home: Path):
        sibling = home / "src" / "c"
        Repository(sibling).commit({"a": "b"})
        settings = SandboxSettings(write=[str(sibling)])
        script = "echo x > ../c/.git/hooks/evil; echo x > ../c/.vscode/x; echo c > ../c/a"
        project.sh(script, settings=settings)
        assert not (sibling / ".git" / "hooks" / "evil").exists()
        assert not (sibling / ".vscode").exists()
        assert (sibling / "a").read_text() == "c\n"
        done = project.sh("cd ../c && git status --short", settings=settings)
        assert done.stdout.startswith(" M a\n")


def killed_after(project: Confining, script: str) -> subprocess.CompletedProcess[bytes]:
    """A process that is killed once a script that it runs in the sandbox has printed a line."""
    program = (
        "import os, signal, subprocess\n"
        "from tests.support.confined import the_sandbox\n"
        "from punie_workers.sandbox.confinement import Confinement\n"
        f"wanted, root = Confinement(root={str(project.root)!r}), {str(project.root)!r}\n"
        f"command = ['sh', '-c', {script + '; cat'!r}]\n"
        "with the_sandbox().enter(wanted, command, cwd=root) as confined:\n"
        "    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "    pipes |= dict(env=confined.environment, pass_fds=confined.pass_fds)\n"
        "    subprocess.Popen(confined.argv, **pipes).stdout.readline()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    return subprocess.run([sys.executable, "-c", program], check=False, timeout=PATIENCE_S)


@contextmanager
def swapping(name: Path, target: Path) -> Generator[None]:
    """Another process that makes `name` a folder and a link to `target` in turn, all the time."""
    program = (
        "import ctypes, sys\n"
        "from os import fsencode\n"
        "libc, here, exchange = ctypes.CDLL(None), -100, 2\n"
        "name, link = map(fsencode, sys.argv[1:])\n"
        "while True:\n"
        "    libc.renameat2(here, name, here, link, exchange)\n"
    )
    link = name.with_name(f"{name.name}.link")
    name.mkdir()
    link.symlink_to(target)
    process = subprocess.Popen([sys.executable, "-c", program, str(name), str(link)])
    try:
        wait_until(name.is_symlink)
        yield
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def snapshot(root: Path) -> dict[str, str]:
    """The files below a folder with their texts, the git objects and index left out."""
    return {
        str(path): path.read_text(errors="replace") if path.is_file() else "folder"
        for path in sorted(root.rglob("*"))
        if ".git/objects" not in str(path) and path.name != "index"
    }


@contextmanager
def started(
    project: Confining, *command: str, **wanted: object
) -> Generator[subprocess.Popen[bytes]]:
    """A program that runs in the sandbox until its input ends."""
    confinement = Confinement(root=str(project.root), **wanted)  # ty: ignore[invalid-argument-type]
    with the_sandbox().enter(confinement, command, cwd=str(project.root)) as confined:
        process = popen(confined)
        try:
            assert process.stdin is not None
            yield process
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE_S)


def line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line that a program prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def popen(confined: Confined) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        confined.argv,
        env=confined.environment,
        pass_fds=confined.pass_fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


class TestNetwork:
    CONNECT = (
        "import socket, sys\n"
        "where = sys.stdin.read().replace('@', chr(0))\n"
        "kind = socket.AF_INET if ':' in where else socket.AF_UNIX\n"
        "host, _, port = where.partition(':')\n"
        "with socket.socket(kind) as s:\n"
        "    s.settimeout(5); s.connect((host, int(port)) if port else where)\n"
    )

    def test_neither_local_ports_nor_abstract_sockets_nor_the_machine_s(self, project: Confining):
        with socket.create_server(("127.0.0.1", 0)) as server, bound(abstract()) as listener:
            server.setblocking(False)
            for where in (f"127.0.0.1:{server.getsockname()[1]}", f"@{abstract()[1:]}"):
                assert project.python(self.CONNECT, text=where).returncode != 0
            assert nobody_came(server)
            assert nobody_came(listener)

    def test_the_same_program_gets_through_where_it_is_allowed(self, project: Confining):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            where = f"127.0.0.1:{server.getsockname()[1]}"
            done = project.python(self.CONNECT, text=where, network=True)
            assert (done.returncode, done.stderr) == (0, "")
            assert not nobody_came(server)

    def test_the_metadata_service_of_a_cloud_is_out_of_reach(self, project: Confining):
        done = project.python(self.CONNECT, text="169.254.169.254:80")
        assert "unreachable" in done.stderr

    def test_no_name_is_looked_up(self, project: Confining):
        program = "import socket; socket.getaddrinfo('secret.example.org', 80)"
        assert "gaierror" in project.python(program).stderr
        assert project.sh("cat /etc/resolv.conf").returncode != 0

    def test_no_socket_of_the_desktop_or_of_docker_is_there(self, project: Confining):
        assert project.sh("ls -A /run").stdout == ""
        assert project.sh("ls -A /var/run /tmp/.X11-unix ~/.docker").stdout == ""


def abstract() -> str:
    """A name of an abstract Unix socket, of this process."""
    return f"\0punie-test-{os.getpid()}"


class TestProcesses:
    def test_no_others_are_seen(self, project: Confining):
        pids = project.sh("echo /proc/[0-9]*").stdout.split()
        assert len(pids) <= 3
        assert f"/proc/{os.getpid()}" not in pids

    def test_the_parent_can_be_neither_killed_nor_traced_nor_read(self, project: Confining):
        me = os.getpid()
        done = project.sh(f"kill -9 {me}; kill -9 $PPID; kill -9 -1; cat /proc/{me}/environ")
        assert done.stdout == ""
        assert psutil.pid_exists(me)
        traced = project.python(
            "import ctypes, os\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"print(libc.ptrace(16, {me}, 0, 0), os.strerror(ctypes.get_errno()))\n"
        )
        assert traced.stdout == "-1 No such process\n"

    def test_the_words_it_was_started_with_tell_nothing(self, project: Confining, home: Path):
        hidden = (str(home / "other"),)
        seen = project.sh("cat /proc/1/cmdline /proc/1/environ", hidden=hidden).stdout
        assert "other" not in seen

    def test_no_descriptor_is_inherited(self, project: Confining):
        with ExitStack() as stack:
            for path in ("/", str(project.root), "/etc/passwd"):
                fd = os.open(path, os.O_RDONLY)
                os.set_inheritable(fd, True)
                stack.callback(os.close, fd)
            program = "import os; print(*sorted(os.listdir('/proc/self/fd')))"
            assert project.python(program).stdout == "0 1 2 3\n"  # 3 is of the listing
            assert project.python(program, writable=False).stdout == "0 1 2 3\n"

    def test_no_privileges_can_be_gained(self, project: Confining):
        status = project.sh("cat /proc/self/status").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["NoNewPrivs"] == "1"
        for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"):
            assert int(fields[name], 16) == 0
        mounts = project.sh("cat /proc/self/mountinfo").stdout.splitlines()
        assert all("nosuid" in line.split()[5] for line in mounts)
        assert project.sh("unshare -Ur true").returncode != 0

    def test_calls_that_no_namespace_separates_are_refused(self, project: Confining):
        machine = seccomp.MACHINES[os.uname().machine]
        program = (
            "import ctypes, errno, socket\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"for number in {[*machine.refused, *machine.unknown]}:\n"
            "    done = libc.syscall(number, 0, 0, 0, 0, 0)\n"
            "    print(errno.errorcode[ctypes.get_errno()] if done == -1 else done)\n"
            "for family in (socket.AF_VSOCK, socket.AF_PACKET):\n"
            "    try:\n"
            "        socket.socket(family, socket.SOCK_STREAM)\n"
            "    except OSError as error:\n"
            "        print(errno.errorcode[error.errno])\n"
            "socket.socketpair(); socket.socket(); socket.socket(socket.AF_INET6)\n"
        )
        done = project.python(program)
        expected = ["EPERM"] * len(machine.refused) + ["ENOSYS"] * len(machine.unknown)
        assert done.stdout.split() == [*expected, "EAFNOSUPPORT", "EAFNOSUPPORT"]
        assert done.returncode == 0

    def test_one_with_a_session_of_its_own_does_not_outlive_it(self, project: Confining):
        number = f"98{os.getpid()}"
        done = project.sh(f"setsid sleep {number} >/dev/null 2>&1 & setsid -f sleep {number}")
        assert done.returncode == 0
        assert not running(number)

    def test_all_end_with_the_process_that_started_them(self, project: Confining):
        number = f"97{os.getpid()}"
        with started(project, "sh", "-c", f"setsid -f sleep {number}; echo; cat") as process:
            assert line(process) == b"\n"
            assert running(number)
            process.kill()
            wait_until(lambda: not running(number))

    def test_nothing_can_be_typed_into_the_terminal(self, project: Confining):
        ours, theirs = pty.openpty()
        try:
            program = (
                "import fcntl, termios\n"
                "for fd in (0, 1):\n"
                "    for letter in b'evil':\n"
                "        fcntl.ioctl(fd, termios.TIOCSTI, bytes([letter]))\n"
            )
            wanted = Confinement(root=str(project.root), read=PYTHON)
            command = [sys.executable, "-I", "-c", program]
            with the_sandbox().enter(wanted, command, cwd=str(project.root)) as confined:
                done = subprocess.run(
                    confined.argv,
                    env=confined.environment,
                    pass_fds=confined.pass_fds,
                    stdin=theirs,
                    stdout=theirs,
                    stderr=subprocess.PIPE,
                    timeout=PATIENCE_S,
                    check=False,
                )
            assert done.returncode != 0
            assert b"PermissionError" in done.stderr or b"OSError" in done.stderr
            os.set_blocking(ours, False)
            with pytest.raises(BlockingIOError):
                os.read(ours, 10)
        finally:
            os.close(ours)
            os.close(theirs)


def running(number: str) -> bool:
    return any(number in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


def wait_until(true) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


class TestEnvironment:
    def test_only_what_is_allowed_is_in_it(self, project: Confining, home: Path, monkeypatch):
        for name in ("API_KEY", "GITHUB_TOKEN", "PYTHONPATH", "SSH_AUTH_SOCK", "BASH_ENV", "ENV"):
            monkeypatch.setenv(name, SECRET)
        monkeypatch.setenv("LC_ALL", "C.UTF-8")
        found = dict(line.split("=", 1) for line in project.sh("env").stdout.splitlines())
        assert SECRET not in found.values()
        assert found.keys() <= {
            *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "COLUMNS", "LINES", "PATH", "HOME"),
            *("TMPDIR", "TERM", "PWD", "OLDPWD", "SHLVL", "_", "GIT_DISCOVERY_ACROSS_FILESYSTEM"),
        }
        assert found["HOME"] == str(home.resolve())
        settings = SandboxSettings(environment=["API_KEY"])
        assert f"API_KEY={SECRET}" in project.sh("env", settings=settings).stdout


class TestLimits:
    def limits(self, **limits: int) -> dict[str, ProgramLimits]:
        return {"limits": ProgramLimits(**limits)}

    def test_memory_of_one_program(self, project: Confining):
        program = "x = bytearray(2**30)"
        assert project.python(program).returncode == 0
        done = project.python(program, **self.limits(memory=512 * 1024**2))
        assert "MemoryError" in done.stderr

    def test_size_of_a_file(self, project: Confining):
        done = project.sh("head -c 2000000 /dev/zero > big", **self.limits(file_size=1024**2))
        assert done.returncode != 0
        assert (project.root / "big").stat().st_size <= 1024**2

    def test_descriptors_and_core_files(self, project: Confining):
        assert project.sh("ulimit -n; ulimit -c", **self.limits(files=64)).stdout == "64\n0\n"

    def test_cpu_seconds(self, project: Confining):
        done = project.sh("while :; do :; done", **self.limits(cpu_s=1))
        assert done.returncode in (128 + signal.SIGXCPU, 128 + signal.SIGKILL)

    def test_temporary_folders(self, project: Confining):
        done = project.sh("df -Pk /tmp /var/tmp /run /dev/shm ~ | awk 'NR > 1 {print $2}'")
        sizes = [int(size) for size in done.stdout.split()]
        assert len(sizes) == 5
        assert max(sizes) <= 1024**2
        assert project.sh("head -c 80000000 /dev/zero > /dev/shm/x").returncode != 0


class TestGuard:
    def ended(
        self,
        project: Confining,
        script: str,
        limits: ProgramLimits,
        how: Counting | None = None,
    ) -> Over | Replaced | None:
        """What the guard says of a script that it watches, once that has ended."""
        with started(project, "sh", "-c", script, read=PYTHON) as process:
            over = asyncio.run(watched(Guard(limits, how), process.pid))
            process.wait(PATIENCE_S)
            return over

    @pytest.mark.parametrize("how", [Linux(), Anywhere()])
    def test_a_fork_bomb_ends_also_of_root(self, project: Confining, how: Counting):
        number = f"96{os.getpid()}"
        program = (
            "import os, signal, sys\n"
            "while True:\n"
            "    try:\n"
            "        os.fork() or signal.pause()\n"
            "    except OSError:\n"
            "        pass\n"
        )
        bomb = f"{sys.executable} -I -c '{program}' {number}"
        over = self.ended(project, bomb, ProgramLimits(processes=40), how)
        assert isinstance(over, Over)
        assert (over.what, over.limit) == ("processes", 40)
        assert "40 are allowed" in over.message
        wait_until(lambda: not running(number))

    @pytest.mark.parametrize("how", [Linux(), Anywhere()])
    def test_memory_of_many_programs_together(self, project: Confining, how: Counting):
        program = "import signal; x = b'1' * 40_000_000; signal.pause()"
        script = f'for i in 1 2 3 4; do {sys.executable} -I -c "{program}" & done; wait'
        over = self.ended(project, script, self.memory, how)
        assert isinstance(over, Over)
        assert (over.what, over.limit) == ("memory", self.memory.memory)
        assert over.actual > self.memory.memory

    @pytest.mark.parametrize(
        "bomb",
        [
            "head -c 150000000 /dev/zero > /tmp/x",
            "head -c 150000000 /dev/zero > ~/x",
            "mkdir /tmp/x && cd /tmp/x && seq 150000 | xargs touch",
        ],
    )
    def test_files_in_temporary_folders_count_as_memory(self, project: Confining, bomb: str):
        over = self.ended(project, f"{bomb}; cat", self.memory)
        assert isinstance(over, Over)
        assert over.what == "memory"

    @pytest.mark.parametrize("how", [Linux(), Anywhere()])
    def test_cpu_of_programs_that_each_take_little(self, project: Confining, how: Counting):
        script = "while :; do timeout 0.3 sh -c 'while :; do :; done'; done"
        over = self.ended(project, script, ProgramLimits(together_s=1), how)
        assert over == Over("cpu", 1, 1)

    memory = ProgramLimits(memory=100_000_000)

    def test_one_that_keeps_within_is_left_alone(self, project: Confining):
        assert self.ended(project, "true", ProgramLimits()) is None

    def test_those_with_a_session_of_their_own_are_counted(self, project: Confining):
        number = f"95{os.getpid()}"
        script = f"for i in 1 2 3; do setsid -f sleep {number}; done; echo; cat"
        with started(project, "sh", "-c", script) as process:
            assert line(process) == b"\n"
            found = Linux().census(process.pid)
            assert found.processes >= 5
            assert found.memory > 0


async def watched(guard: Guard, pid: int) -> Over | Replaced | None:
    async with asyncio.timeout(PATIENCE_S):
        return await guard.watch(pid)


class TestOrdinaryWork:
    def test_git_as_usual(self, repository: Confining):
        (repository.root / "a.txt").write_text("two\n")
        script = """
            export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@b
            export GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@b
            git status --short && git add a.txt && git commit -qm x && git log --oneline | wc -l
            git stash list && git checkout -q -b other && git gc --quiet
        """
        done = repository.sh(script)
        assert (done.returncode, done.stdout.split()) == (0, ["M", "a.txt", "2"])
        assert done.stderr == ""

    def test_git_in_a_folder_of_a_repository(self, project: Confining):
        above = Repository(project.root / "mono")
        above.commit({"app/a.txt": "one\n", "other/b.txt": "two\n"})
        inner = Confining(project.root / "mono" / "app")
        done = inner.sh("git log --oneline -- a.txt | wc -l; cat ../other/b.txt; git gc 2>&1")
        assert done.stdout.splitlines()[0] == "1"
        assert "two" not in done.stdout

    def test_git_in_a_linked_work_tree(self, repository: Confining):
        linked = repository.root.parent / "linked"
        Repository(repository.root).git("worktree", "add", str(linked))
        done = Confining(linked).sh("git log --oneline | wc -l; git status --short; echo x > a.txt")
        assert (done.returncode, done.stdout) == (0, "1\n")
        assert Confining(linked).sh("echo x >> ../app/.git/config").returncode != 0

    def test_pytest_in_the_project_s_own_environment(self, project: Confining):
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", ".venv"],
            cwd=project.root,
            check=True,
            timeout=PATIENCE_S,
        )
        (packages,) = (project.root / ".venv" / "lib").glob("python3*/site-packages")
        (packages / "ours.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n")
        (project.root / "test_it.py").write_text(
            "def test_it(tmp_path):\n    assert tmp_path.exists()\n"
        )
        done = project.run(".venv/bin/python", "-m", "pytest", "-q", read=(sys.prefix,))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout

    def test_nothing_is_said_that_the_program_did_not_say(self, project: Confining):
        Path("/proc/self/oom_score_adj").write_text("600")  # less is not ours to ask for
        try:
            done = project.sh("cat /proc/self/oom_score_adj")
            assert done.stderr == ""
            assert int(done.stdout) == 1000  # before all else, however large that is
        finally:
            with suppress(PermissionError):
                Path("/proc/self/oom_score_adj").write_text("0")

    def test_a_pipe_an_exit_status_and_a_missing_program(self, project: Confining):
        assert project.sh("seq 3 | sort -r | head -1; exit 7").stdout == "3\n"
        assert project.sh("exit 7").returncode == 7
        assert project.run("no-such-program").returncode == 127
        assert project.sh("kill -TERM $$").returncode == 128 + signal.SIGTERM

    def test_input_and_a_folder_of_the_project(self, project: Confining):
        (project.root / "sub").mkdir()
        done = project.run("sh", "-c", "pwd; cat", text="in", cwd=project.root / "sub")
        assert done.stdout == f"{project.root}/sub\nin"
        with pytest.raises(PunieError, match="outside"):
            project.run("true", cwd=Path("/usr"))

    def test_a_name_with_everything_in_it(self, home: Path):
        root = home / "a 'b' \"c\" $d\n-é"
        root.mkdir()
        assert Confining(root.resolve()).sh("echo x > y && cat y").stdout == "x\n"
