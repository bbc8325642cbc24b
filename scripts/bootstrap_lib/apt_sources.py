"""The machine's package archives: reading apt's two formats, choosing one, writing our own entry.

Formats: sources.list(5), both the one-line style and the deb822 style. Pure: text in, text out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Iterator, Mapping, Sequence

OPTION_FIELDS = {
    "signed-by": "Signed-By",
    "trusted": "Trusted",
    "arch": "Architectures",
    "by-hash": "By-Hash",
    "check-valid-until": "Check-Valid-Until",
    "check-date": "Check-Date",
    "allow-insecure": "Allow-Insecure",
    "allow-weak": "Allow-Weak",
    "allow-downgrade-to-insecure": "Allow-Downgrade-To-Insecure",
    "inrelease-path": "InRelease-Path",
}
"""One-line options that we carry over, and what deb822 calls them."""

CARRIED_FIELDS = {name.lower(): name for name in OPTION_FIELDS.values()}

STABLE_NAMES = {"oldoldstable", "oldstable", "stable", "testing", "unstable", "sid", "devel"}


@dataclass(frozen=True)
class Source:
    """One entry of the machine's archive list."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)

    def of(self, suites: Sequence[str], components: Sequence[str]) -> Source:
        """The same archive, with other suites and components."""
        return replace(self, suites=tuple(suites), components=tuple(components))


@dataclass(frozen=True)
class Distribution:
    """What `os-release` says, as far as archives depend on it."""

    name: str
    codenames: tuple[str, ...]
    components: tuple[str, ...]
    rolling_suites: tuple[str, ...]
    """Where the newest packages are, under names that never change; the first is tried first."""


def distribution_of(os_release: str) -> Distribution | None:
    """The Debian-family distribution a machine runs; None for any other."""
    facts = dict(_os_release_pairs(os_release))
    family = {facts.get("ID", ""), *facts.get("ID_LIKE", "").split()}
    names = [facts.get("UBUNTU_CODENAME"), facts.get("DEBIAN_CODENAME")]
    codenames = tuple(name for name in [*names, facts.get("VERSION_CODENAME")] if name)
    if "ubuntu" in family:
        return Distribution("Ubuntu", codenames, ("main", "universe"), ("devel",))
    if "debian" in family:
        return Distribution("Debian", codenames, ("main",), ("sid", "testing"))
    return None


def _os_release_pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, found, value = line.strip().partition("=")
        if found and not name.startswith("#"):
            yield name, value.strip("\"'")


def parse_one_line(text: str) -> list[Source]:
    """The enabled binary entries of a `.list` file; lines apt would refuse are passed over."""
    parsed = (_one_line_entry(line.partition("#")[0].strip()) for line in text.splitlines())
    return [source for source in parsed if source is not None]


def _one_line_entry(line: str) -> Source | None:
    match = re.fullmatch(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(\S.*)", line)
    if match is None:
        return None
    options, uri, suite, components = match.groups()
    return Source((uri,), (suite,), tuple(components.split()), _one_line_options(options or ""))


def _one_line_options(text: str) -> dict[str, str]:
    found = {}
    for word in text.split():
        name, _, value = word.partition("=")
        if name.lower() in OPTION_FIELDS:
            found[OPTION_FIELDS[name.lower()]] = value.replace(",", " ")
    return found


def parse_deb822(text: str) -> list[Source]:
    """The enabled binary entries of a `.sources` file."""
    parsed = (_deb822_entry(fields) for fields in _stanzas(text))
    return [source for source in parsed if source is not None]


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """Fields of each paragraph, names in lower case; continuation lines stay as they are."""
    fields: dict[str, str] = {}
    last = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t" and last:
            fields[last] += "\n" + line
        else:
            name, _, value = line.partition(":")
            last = name.strip().lower()
            fields[last] = value.strip()


def _deb822_entry(fields: Mapping[str, str]) -> Source | None:
    if "deb" not in fields.get("types", "").split():
        return None
    if fields.get("enabled", "yes").lower() in ("no", "false", "0", "off", "without"):
        return None
    options = {CARRIED_FIELDS[name]: fields[name] for name in fields if name in CARRIED_FIELDS}
    lists = [tuple(fields.get(name, "").split()) for name in ("uris", "suites", "components")]
    return Source(lists[0], lists[1], lists[2], options)


def choose_archive(sources: Sequence[Source], distribution: Distribution) -> Source | None:
    """The entry for the distribution's own archive: not security, not a third party's."""
    usable = [source for source in sources if "main" in source.components and _is_whole(source)]
    for names in [*({name} for name in distribution.codenames), STABLE_NAMES]:
        for source in usable:
            if names.intersection(source.suites):
                return source
    return None


def _is_whole(source: Source) -> bool:
    fetched = [uri for uri in source.uris if not uri.startswith("cdrom:")]
    return bool(fetched) and not any("security" in uri for uri in source.uris)


def render(source: Source, architecture: str) -> str:
    """A `.sources` file with this one entry, for one architecture and its package lists alone."""
    options = {**source.options, "Architectures": architecture}
    fields = {
        "Types": "deb",
        "URIs": " ".join(source.uris),
        "Suites": " ".join(source.suites),
        "Components": " ".join(source.components),
        "Targets": "Packages",
        "PDiffs": "no",
        **options,
    }
    return "".join("{}: {}\n".format(*item) for item in fields.items())
