"""A repository in which whatever git can be told to run leaves a mark."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.checking import script, write
from tests.support.repositories import ENVIRONMENT, Repository

ATTRIBUTES = (
    "* filter=evil diff=evil\n*.odd filter=odd.na=me\n*.proc filter=process\n*.must filter=must\n"
    "*.late filter=late\n"
)

FILES = {name: f"{name}\n" for name in ("a.txt", "b.odd", "c.proc", "d.must", "e.late")}


class Hostile:
    """Its `root`, an environment as hostile, and the marks that were left."""

    expected = frozenset(
        {"fsmonitor", "clean", "clean-odd", "clean-must", "late", "process", "textconv",
         "external", "signature", "uploadpack", "submodule-fsmonitor", "hook"}
    )  # fmt: skip
    """What a plain git runs of it; the others are there in case another version does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._marks = folder / "marks"
        self._repo = Repository(folder / "repo")
        self.root = self._repo.root
        self._build()
        self.environment = self._environment()
        self.missing = self._forget_a_blob()

    def marks(self) -> list[str]:
        """What ran, in order."""
        return self._marks.read_text().split() if self._marks.exists() else []

    def arm(self) -> None:
        """Forget the marks, and have each file differ from the index in its times."""
        self._marks.unlink(missing_ok=True)
        write(self.root, FILES | {"a.txt": "3\n"})
        write(self.root / "module", {"m.txt": "2\n"})

    def plain(self, *arguments: str) -> None:
        """Run a git without guards; what it says and how it ends does not matter."""
        subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=15,
        )

    def _marker(self, name: str, then: str = "/bin/cat 2>/dev/null; true") -> str:
        lines = f'echo {name} >>"{self._marks}"\n{then}'
        return str(script(self._folder / "bin" / name, lines))

    def _build(self) -> None:
        repo = self._repo
        repo.commit(FILES)
        self._add_submodule()
        repo.commit({"a.txt": "2\n"})
        self._sign_a_commit()
        write(self.root, {".git/info/attributes": ATTRIBUTES})
        for name, value in self._settings().items():
            repo.git("config", "--add", name, value)
        self._include()
        for hook in ("post-index-change", "reference-transaction", "pre-commit"):
            script(self.root / ".git" / "hooks" / hook, f'echo hook >>"{self._marks}"')

    def _settings(self) -> Mapping[str, str]:
        mark = self._marker
        return {
            "core.fsmonitor": mark("fsmonitor"),
            "core.untrackedCache": "true",
            "core.pager": mark("pager"),
            "core.editor": mark("editor"),
            "core.sshCommand": mark("ssh"),
            "core.askPass": mark("askpass"),
            "core.gitProxy": mark("proxy"),
            "core.alternateRefsCommand": mark("alternate"),
            "credential.helper": mark("credential"),
            "pager.status": mark("pager-status"),
            "pager.diff": mark("pager-diff"),
            "pager.log": mark("pager-log"),
            "alias.status": "!" + mark("alias"),
            "alias.diff": "!" + mark("alias"),
            "alias.log": "!" + mark("alias"),
            "diff.external": mark("external"),
            "diff.evil.textconv": mark("textconv"),
            "diff.evil.command": mark("external"),
            "filter.evil.clean": mark("clean"),
            "filter.evil.smudge": mark("smudge"),
            "filter.odd.na=me.clean": mark("clean-odd"),
            "filter.process.process": mark("process", "exit 1"),
            "filter.must.clean": mark("clean-must"),
            "filter.must.required": "true",
            "gpg.program": mark("signature"),
            "log.showSignature": "true",
            "diff.submodule": "log",
            "status.submoduleSummary": "true",
            "submodule.recurse": "true",
            "color.ui": "always",
            "diff.noprefix": "true",
            "log.follow": "true",
            "format.pretty": "%H nothing",
        }

    def _include(self) -> None:
        """Settings that only an include brings in."""
        write(self.root, {".git/more": f'[filter "late"]\nclean = {self._marker("late")}\n'})
        self._repo.git("config", "includeIf.gitdir:**.path", "more")

    def _add_submodule(self) -> None:
        """One whose own configuration is as hostile: a git that recurses into it obeys it."""
        module = Repository(self.root / "module")
        module.commit({"m.txt": "1\n"})
        module.git("config", "core.fsmonitor", self._marker("submodule-fsmonitor"))
        write(self.root, {".gitmodules": '[submodule "module"]\npath = module\nurl = ./module\n'})
        self._repo.commit({})
        self._repo.git("config", "submodule.module.url", "./module")

    def _sign_a_commit(self) -> None:
        """A commit with a signature: showing it has a program check it."""
        raw = self._repo.git("cat-file", "commit", "HEAD")
        head, _, message = raw.partition("\n\n")
        signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----"
        path = write(self._folder, {"commit": f"{head}\n{signature}\n\n{message}"}) / "commit"
        name = self._repo.git("hash-object", "-t", "commit", "-w", str(path)).strip()
        self._repo.git("update-ref", "HEAD", name)

    def _forget_a_blob(self) -> str:
        """Make it a partial clone that lacks a blob: reading it fetches, which runs a program."""
        git = self._repo.git
        settings = {"core.fsmonitor": "false", "core.hooksPath": "/dev/null"}
        quiet = [word for pair in settings.items() for word in ("-c", "=".join(pair))]
        missing = git(*quiet, "rev-parse", "HEAD~1:a.txt").strip()
        (self.root / ".git" / "objects" / missing[:2] / missing[2:]).unlink()
        git(*quiet, "config", "remote.origin.url", str(self.root))
        git(*quiet, "config", "remote.origin.promisor", "true")
        git(*quiet, "config", "remote.origin.partialclonefilter", "blob:none")
        git(*quiet, "config", "remote.origin.uploadpack", self._marker("uploadpack", "exit 1"))
        git(*quiet, "config", "extensions.partialClone", "origin")
        git(*quiet, "config", "core.repositoryFormatVersion", "1")
        return missing

    def _environment(self) -> dict[str, str]:
        """What a user's shell, or whoever started us, might hold."""
        names = ("GIT_EXTERNAL_DIFF", "GIT_PAGER", "PAGER", "GIT_SSH", "GIT_SSH_COMMAND",
                 "GIT_ASKPASS", "SSH_ASKPASS", "GIT_EDITOR", "GIT_PROXY_COMMAND")  # fmt: skip
        home = write(self._folder / "home", {
            ".gitconfig": f"[core]\nfsmonitor = {self._marker('home-fsmonitor')}\n"
            f"[filter \"evil\"]\nprocess = {self._marker('home-process', 'exit 1')}\n",
        })  # fmt: skip
        return {name: self._marker(name) for name in names} | {
            "HOME": str(home),
            "GIT_DIR": "/nowhere",
            "GIT_WORK_TREE": "/",
            "GIT_INDEX_FILE": "/nowhere",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "core.fsmonitor",
            "GIT_CONFIG_VALUE_0": self._marker("environment-fsmonitor"),
            "GIT_TRACE": str(self._folder / "trace"),
        }
