"""Packages of the machine's distribution, fetched by apt in a state of its own.

The system is neither read for what is installed nor changed: own lists, own cache, an empty
package status. Mirror, keyring, proxies and every other setting are the machine's.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Sequence

from bootstrap_lib import apt_sources, shell
from bootstrap_lib.apt_sources import Distribution, Source
from bootstrap_lib.report import BootstrapError
from bootstrap_lib.state import remove, write_text

SETTINGS = """\
Dir::State "{folder}/state";
Dir::State::lists "{folder}/state/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "{folder}/log";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{folder}/preferences";
APT::Sandbox::User "root";
APT::Get::Assume-Yes "true";
APT::Get::List-Cleanup "false";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Default-Release "";
APT::Update::Error-Mode "any";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Dpkg::Use-Pty "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
"""


class PrivateApt:
    """apt over one folder. Cheap to make; `download` does the work."""

    def __init__(self, folder: Path, distribution: Distribution) -> None:
        self._folder = folder
        self._distribution = distribution
        self._updated: tuple[str, ...] = ()

    def download(self, name: str, packages: Sequence[str], *, rolling: bool) -> list[Path]:
        """Fetch packages and all they depend on, from a rolling suite or the machine's own ones.

        `name` keeps what belongs together apart: what an interrupted run fetched under it is used
        again. Raises `BootstrapError`.
        """
        archive = choose_machine_archive(self._distribution)
        newest = [(suite,) for suite in self._distribution.rolling_suites]
        errors = []
        for suites in newest if rolling else [archive.suites]:
            source = archive.of(suites, self._distribution.components)
            try:
                return self._download(source, self._folder / "archives" / name, packages)
            except shell.CommandFailed as error:
                errors.append(explained(str(error), source))
        raise errors[0]

    def _download(self, source: Source, folder: Path, packages: Sequence[str]) -> list[Path]:
        (folder / "partial").mkdir(parents=True, exist_ok=True)
        if self._updated != source.suites:
            self._configure(source)
            self._apt_get(folder, "update")
            self._updated = source.suites
        self._apt_get(folder, "autoclean")  # what the archive no longer has
        self._apt_get(folder, "--download-only", "install", *packages)
        return sorted(folder.glob("*.deb"))

    def forget(self) -> None:
        """Free the space; nothing in it is needed once the packages are unpacked."""
        remove(self._folder)
        self._updated = ()

    def _configure(self, source: Source) -> None:
        for name in ("state/lists/partial", "cache", "preferences", "log"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        architecture = shell.run(["dpkg", "--print-architecture"]).strip()
        entry = apt_sources.render(source, architecture)
        write_text(self._folder / "sources" / "punie.sources", entry)
        write_text(self._folder / "status", "")
        write_text(self._folder / "apt.conf", SETTINGS.format(folder=self._folder))

    def _apt_get(self, archives: Path, *words: str) -> None:
        settings = ["-c", str(self._folder / "apt.conf"), "-o", f"Dir::Cache::archives={archives}"]
        shell.run(["apt-get", "-q", *settings, *words])


def this_distribution() -> Distribution | None:
    """The distribution, when it is of the Debian family and its tools are there."""
    if not all(shutil.which(tool) for tool in ("apt-get", "apt-config", "dpkg")):
        return None
    try:
        return apt_sources.distribution_of(Path("/etc/os-release").read_text(encoding="utf-8"))
    except OSError:
        return None


def choose_machine_archive(distribution: Distribution) -> Source:
    """The entry of the machine's source lists for its own distribution."""
    found = apt_sources.choose_archive(machine_sources(), distribution)
    if found is None:
        raise BootstrapError(
            f"apt's source lists name no {distribution.name} archive",
            "add the distribution's own archive to /etc/apt/sources.list and run this again",
        )
    return found


def machine_sources() -> list[Source]:
    """Every enabled entry of the machine's source lists, in apt's order."""
    said = shell.run(
        [
            "apt-config",
            "shell",
            "LIST",
            "Dir::Etc::sourcelist/f",
            "PARTS",
            "Dir::Etc::sourceparts/d",
        ]
    )
    where = dict(re.findall(r"^(LIST|PARTS)='([^']*)'", said, re.MULTILINE))
    files = [Path(where.get("LIST", "/etc/apt/sources.list"))]
    files += sorted(Path(where.get("PARTS", "/etc/apt/sources.list.d")).glob("*"))
    return [source for path in files for source in _sources_in(path)]


def _sources_in(path: Path) -> list[Source]:
    readers = {".list": apt_sources.parse_one_line, ".sources": apt_sources.parse_deb822}
    if path.suffix not in readers or not path.is_file():
        return []
    return readers[path.suffix](path.read_text(encoding="utf-8", errors="replace"))


def explained(said: str, source: Source) -> BootstrapError:
    """What went wrong with apt, with the remedy that fits."""
    where = "{} {}".format(" ".join(source.uris), " ".join(source.suites))
    lines = [line for line in said.splitlines() if line.startswith(("E:", "W:"))]
    cause = "apt cannot get packages from {}\n{}".format(where, "\n".join(lines) or said)
    return BootstrapError(cause, _remedy(said))


def _remedy(said: str) -> str:
    if re.search(r"NO_PUBKEY|not signed|signatures? (?:couldn't|could not)|Missing key", said):
        return (
            "the machine's archive keyring does not know the key of that suite: install a newer"
            " one (apt-get install debian-archive-keyring, or ubuntu-keyring)"
        )
    if re.search(r"Unable to locate|no installation candidate|unmet dep|held broken", said):
        return "the mirror does not carry that suite in full: try again later or name another one"
    return "check the network, and the mirror and proxy in /etc/apt"
