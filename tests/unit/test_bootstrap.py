"""The parts of `scripts/bootstrap` that decide, without a network or a child program."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from grimp import ImportGraph
from hypothesis import given
from hypothesis import strategies as st

from bootstrap_lib import apt, apt_sources, interpreter, prefix, pypi, sandbox, shell, state, uv
from bootstrap_lib.apt_sources import Source
from bootstrap_lib.interpreter import Interpreter, Unusable
from bootstrap_lib.layout import Layout
from bootstrap_lib.pip_settings import PYPI, index_settings, read_pip_files
from bootstrap_lib.report import BootstrapError
from import_contracts import OnlyContract

DEBIAN = apt_sources.distribution_of('ID=debian\nVERSION_CODENAME="bookworm"\n')
UBUNTU = apt_sources.distribution_of("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A checkout with the files that a fingerprint is made of."""
    (tmp_path / "scripts" / "bootstrap_lib").mkdir(parents=True)
    for name in ("pyproject.toml", "uv.lock", "scripts/bootstrap", "scripts/bootstrap_lib/a.py"):
        (tmp_path / name).write_text(name)
    return Layout(tmp_path)


class TestDistribution:
    def test_knows_the_family_and_where_its_newest_packages_are(self):
        assert DEBIAN is not None
        assert UBUNTU is not None
        assert (DEBIAN.rolling_suites[0], DEBIAN.components) == ("sid", ("main",))
        assert (UBUNTU.rolling_suites[0], UBUNTU.components) == ("devel", ("main", "universe"))

    def test_a_derivative_goes_by_its_parent(self):
        mint = "ID=linuxmint\nID_LIKE='ubuntu debian'\nVERSION_CODENAME=zara\nUBUNTU_CODENAME=noble"
        found = apt_sources.distribution_of(mint)
        assert found is not None
        assert (found.name, found.codenames) == ("Ubuntu", ("noble", "zara"))

    @pytest.mark.parametrize("text", ["", "ID=fedora\n", "ID=arch\nID_LIKE=\n"])
    def test_others_have_none(self, text: str):
        assert apt_sources.distribution_of(text) is None


class TestOneLineSources:
    def test_reads_an_entry_with_its_options(self):
        line = "deb [arch=amd64,arm64 signed-by=/k.gpg lang=en] http://m/debian trixie main contrib"
        (source,) = apt_sources.parse_one_line(f"# mine\n\n{line}  # the mirror\n")
        assert source == Source(
            ("http://m/debian",),
            ("trixie",),
            ("main", "contrib"),
            {"Architectures": "amd64 arm64", "Signed-By": "/k.gpg"},
        )

    @pytest.mark.parametrize(
        "line",
        ["deb-src http://m/debian sid main", "# deb http://m x main", "deb http://m/ ./", "x"],
    )
    def test_passes_over_what_is_no_binary_archive(self, line: str):
        assert apt_sources.parse_one_line(line) == []


class TestDeb822Sources:
    def test_reads_every_enabled_stanza(self):
        text = (
            "Types: deb deb-src\n# a comment\nURIs: http://m/debian http://n/debian\n"
            "Suites: trixie trixie-updates\nComponents: main\nSigned-By: /k.gpg\n\n"
            "Types: deb\nURIs: http://off\nSuites: x\nComponents: main\nEnabled: no\n\n"
            "types: deb\nuris: http://low\nsuites: y\ncomponents: main\n"
        )
        first, last = apt_sources.parse_deb822(text)
        assert first.uris == ("http://m/debian", "http://n/debian")
        assert first.suites == ("trixie", "trixie-updates")
        assert first.options == {"Signed-By": "/k.gpg"}
        assert last.uris == ("http://low",)

    def test_keeps_a_key_that_is_written_into_the_file(self):
        key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP"
        text = f"Types: deb\nURIs: http://m\nSuites: s\nComponents: main\nSigned-By:{key}\n"
        (source,) = apt_sources.parse_deb822(text)
        assert source.options["Signed-By"] == key
        (again,) = apt_sources.parse_deb822(apt_sources.render(source, "amd64"))
        assert again.options["Signed-By"] == key

    def test_an_empty_or_broken_file_has_no_entries(self):
        assert apt_sources.parse_deb822("") == []
        assert apt_sources.parse_deb822("\n\n stray\nnonsense\n") == []

    words = st.lists(st.from_regex(r"[a-z][a-z0-9/:.-]{0,12}", fullmatch=True), min_size=1).map(
        tuple
    )

    @given(words, words, words)
    def test_reads_back_what_it_writes(self, uris, suites, components):
        source = Source(uris, suites, components, {"Signed-By": "/k.gpg"})
        (again,) = apt_sources.parse_deb822(apt_sources.render(source, "arm64"))
        assert again.of(suites, components).uris == uris
        assert (again.suites, again.components) == (suites, components)
        assert again.options == {"Signed-By": "/k.gpg", "Architectures": "arm64"}


class TestChoosingTheArchive:
    own = Source(("http://m/debian",), ("bookworm", "bookworm-updates"), ("main",))
    security = Source(("http://m/debian-security",), ("bookworm-security",), ("main",))
    foreign = Source(("http://vendor/apt",), ("nodistro",), ("main",))

    def test_takes_the_distribution_s_own(self):
        assert DEBIAN is not None
        sources = [self.foreign, self.security, self.own]
        assert apt_sources.choose_archive(sources, DEBIAN) is self.own

    def test_takes_one_that_is_named_by_its_role(self):
        assert DEBIAN is not None
        stable = self.own.of(["stable"], ["main"])
        assert apt_sources.choose_archive([self.foreign, stable], DEBIAN) is stable

    def test_takes_none_rather_than_a_stranger_or_a_disc(self):
        assert DEBIAN is not None
        disc = Source(("cdrom:[x]/",), ("bookworm",), ("main",))
        sources = [self.foreign, self.security, disc]
        assert apt_sources.choose_archive(sources, DEBIAN) is None


class TestAptErrors:
    source = Source(("http://m/debian",), ("sid",), ("main",))

    @pytest.mark.parametrize(
        ("said", "remedy"),
        [
            ("W: GPG error: NO_PUBKEY 0123\nE: The repository is not signed.", "keyring"),
            ("E: Unable to locate package python3.14", "another"),
            ("E: Failed to fetch http://m Could not resolve 'm'", "network"),
        ],
    )
    def test_name_the_archive_and_what_to_do(self, said: str, remedy: str):
        error = apt.explained(said, self.source)
        assert "http://m/debian sid" in error.cause
        assert "E: " in error.cause
        assert remedy in error.remedy


class TestChoosingAWheel:
    names = (
        "uv-1.2.3-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "uv-1.2.3-py3-none-musllinux_1_1_x86_64.whl",
        "uv-1.2.3-py3-none-macosx_11_0_arm64.whl",
        "uv-1.2.30-py3-none-manylinux_2_17_x86_64.whl",
        "uv-1.2.3.tar.gz",
    )
    links = tuple(pypi.Link(f"https://f/{name}", name, "0" * 64) for name in names)

    @pytest.mark.parametrize(
        ("system", "machine", "libc", "expected"),
        [
            ("linux", "x86_64", "glibc", names[0]),
            ("linux", "x86_64", "musl", names[1]),
            ("darwin", "arm64", "-", names[2]),
        ],
    )
    def test_takes_the_one_for_this_machine(self, system, machine, libc, expected):
        tags = pypi.platform_tags(system, machine, libc)
        assert pypi.choose_wheel(self.links, "uv", "1.2.3", tags).file_name == expected

    def test_says_what_is_missing(self):
        tags = pypi.platform_tags("linux", "riscv64", "glibc")
        with pytest.raises(ValueError, match=r"no wheel of uv 1\.2\.3 .*riscv64"):
            pypi.choose_wheel(self.links, "uv", "1.2.3", tags)

    def test_reads_index_pages_and_leaves_out_files_without_a_checksum(self):
        page = (
            f'<a href="../../f/a-1.whl#sha256={"a" * 64}">a-1.whl</a>'
            f'<A HREF="https://o/b%2B1.whl#sha256={"b" * 64}">b</A><a href="c.whl">c</a><a>d</a>'
        )
        first, second = pypi.read_links(page, "https://i/simple/a/")
        assert first == pypi.Link("https://i/f/a-1.whl", "a-1.whl", "a" * 64)
        assert second.file_name == "b+1.whl"

    def test_credentials_travel_as_a_header(self):
        request = pypi.request_for("https://me:s%40crt@i/simple/")
        assert request.full_url == "https://i/simple/"
        assert request.get_header("Authorization") == "Basic bWU6c0BjcnQ="

    def test_unpacks_programs_and_nothing_else(self, tmp_path: Path):
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("uv-1.data/scripts/uv", "program")
            archive.writestr("uv/__init__.py", "")
        pypi.unpack_programs(wheel.getvalue(), tmp_path / "bin")
        (program,) = (tmp_path / "bin").iterdir()
        assert program.read_text() == "program"
        assert program.stat().st_mode & 0o111 == 0o111


class TestIndexSettings:
    def test_the_environment_goes_before_the_files(self, tmp_path: Path):
        conf = tmp_path / "pip.conf"
        conf.write_text("[global]\nindex-url = https://a/simple/\ncert = /ca.pem\n")
        environ = {"PIP_CONFIG_FILE": str(conf)}
        assert index_settings(environ).url == "https://a/simple"
        assert index_settings(environ).certificates == "/ca.pem"
        environ["PIP_INDEX_URL"] = "https://b/simple"
        assert index_settings(environ).url == "https://b/simple"
        environ["UV_DEFAULT_INDEX"] = "https://c/simple"
        assert index_settings(environ).url == "https://c/simple"

    def test_without_any_it_is_pypi(self):
        settings = index_settings({"PIP_CONFIG_FILE": "/dev/null"})
        assert (settings.url, settings.certificates) == (PYPI, None)
        assert settings.is_pypi

    def test_later_files_and_the_install_section_win(self, tmp_path: Path):
        first, second = tmp_path / "1", tmp_path / "2"
        first.write_text("[global]\nindex-url=a\ncert=x\n[install]\nindex-url=b\n")
        second.write_text("[install]\nindex-url=c\n")
        missing, broken = tmp_path / "3", tmp_path / "4"
        broken.write_text("no section\n")
        found = read_pip_files([first, second, missing, broken])
        assert found == {"index-url": "c", "cert": "x"}


class TestChoosingAnInterpreter:
    facts = {
        "implementation": "cpython",
        "version": "3.14.2",
        "level": "final",
        "free_threaded": "",
        "libc": "2.36",
    }
    tool = uv.Uv(Path("uv"), "1.0.0", {})

    def test_a_usual_one_is_fine_on_linux_and_on_a_mac(self):
        assert interpreter.objection_to(self.facts) == ""
        assert interpreter.objection_to({**self.facts, "libc": ""}) == ""

    @pytest.mark.parametrize(
        ("fact", "value", "said"),
        [
            ("implementation", "pypy", "is pypy 3.14.2"),
            ("version", "3.13.9", "is cpython 3.13.9"),
            ("level", "candidate", "preview"),
            ("free_threaded", "yes", "free-threaded"),
            ("libc", "2.31", "glibc 2.31"),
        ],
    )
    def test_others_are_refused_with_the_reason(self, fact: str, value: str, said: str):
        assert said in interpreter.objection_to({**self.facts, fact: value})

    def test_the_first_way_that_works_wins(self, layout: Layout):
        def no(_: Layout, __: uv.Uv) -> Interpreter:
            raise Unusable("too old")

        def yes(_: Layout, __: uv.Uv) -> Interpreter:
            return Interpreter(Path("python"), "3.14.2", "here")

        def never(_: Layout, __: uv.Uv) -> Interpreter:
            raise AssertionError("tried although another way had worked")

        ways = [("one", no), ("two", yes), ("three", never)]
        assert interpreter.first_that_works(ways, layout, self.tool).origin == "here"

    def test_when_none_works_every_reason_is_told(self, layout: Layout):
        def refused(_: Layout, __: uv.Uv) -> Interpreter:
            raise Unusable("too old")

        def broken(_: Layout, __: uv.Uv) -> Interpreter:
            raise shell.CommandFailed("exploded")

        def hopeless(_: Layout, __: uv.Uv) -> Interpreter:
            raise BootstrapError("no keyring", "get a keyring")

        ways = [("one", refused), ("two", broken), ("three", hopeless)]
        with pytest.raises(BootstrapError) as caught:
            interpreter.first_that_works(ways, layout, self.tool)
        for reason in ("one: too old", "two: exploded", "three: no keyring"):
            assert reason in caught.value.cause
        assert "get a keyring" in caught.value.remedy
        assert "install CPython 3.14" in caught.value.remedy


class TestUv:
    @pytest.mark.parametrize(
        ("version", "good"), [("0.8.24", False), ("0.9.0", True), ("0.13.8", True), ("1.0.0", True)]
    )
    def test_compares_versions_as_numbers(self, version: str, good: bool):
        assert uv.is_new_enough(version) is good

    def test_environment_sets_ours_and_drops_what_names_another_project(self):
        inherited = {"HOME": "/h", "VIRTUAL_ENV": "/v", "UV_DEFAULT_INDEX": "https://i"}
        ours = {"UV_PYTHON": "/p", "UV_DEFAULT_INDEX": ""}
        assert uv.environment(inherited, ours) == {"HOME": "/h", "UV_PYTHON": "/p"}


class TestPrefix:
    def test_leaves_out_by_package_name(self):
        names = ["libc6_2.43-7_amd64.deb", "libc6-x_1_amd64.deb", "gcc-16-base_16.2_amd64.deb"]
        archives = [Path("/c") / name for name in names]
        assert prefix.wanted(archives, ("libc6", "gcc-*-base")) == [archives[1]]

    def test_is_complete_only_with_the_marker_of_this_place_and_recipe(self, layout: Layout):
        marker = layout.tools / prefix.PYTHON.name / prefix.MARKER
        assert not prefix.is_complete(layout, prefix.PYTHON, "rolling")
        state.write_record(marker, prefix.record(layout, prefix.PYTHON, "rolling"))
        assert prefix.is_complete(layout, prefix.PYTHON, "rolling")
        assert not prefix.is_complete(layout, prefix.PYTHON, "own")
        moved = Layout(layout.root / "elsewhere")
        moved.root.mkdir()
        layout.tools.rename(moved.tools)
        assert not prefix.is_complete(moved, prefix.PYTHON, "rolling")


class TestState:
    def test_fingerprint_follows_every_input(self, layout: Layout):
        before = state.fingerprint(layout)
        assert state.fingerprint(layout) == before
        for path in layout.inputs:
            old = path.read_text()
            path.write_text(old + "!")
            assert state.fingerprint(layout) != before
            path.write_text(old)
        assert state.fingerprint(layout) == before

    def test_a_torn_record_counts_as_none(self, tmp_path: Path):
        path = tmp_path / "deep" / "record.json"
        assert state.read_record(path) == {}
        state.write_record(path, {"a": "b"})
        assert state.read_record(path) == {"a": "b"}
        path.write_text(path.read_text()[:5])
        assert state.read_record(path) == {}
        path.write_text("[1]")
        assert state.read_record(path) == {}

    def test_ready_means_same_inputs_a_finished_environment_and_a_blas_that_is_there(
        self, layout: Layout, monkeypatch
    ):
        monkeypatch.setattr(shell, "run", lambda *_, **__: "")
        assert not state.is_ready(layout)
        state.write_record(layout.stamp, {"fingerprint": state.fingerprint(layout)})
        assert not state.is_ready(layout)
        state.write_record(layout.venv_marker, {})
        assert state.is_ready(layout)
        state.write_text(layout.openblas_path, "/nowhere/libopenblas.so.0\n")
        assert not state.is_ready(layout)
        state.write_text(layout.openblas_path, f"{layout.stamp}\n")
        assert state.is_ready(layout)
        (layout.root / "uv.lock").write_text("another")
        assert not state.is_ready(layout)

    def test_not_ready_when_the_sandbox_that_was_found_is_gone(self, layout: Layout, monkeypatch):
        monkeypatch.setattr(shell, "run", lambda *_, **__: "")
        state.write_record(layout.stamp, {"fingerprint": state.fingerprint(layout)})
        state.write_record(layout.venv_marker, {})
        state.write_text(layout.bubblewrap_path, "/nowhere/bwrap\n")
        assert not state.is_ready(layout)
        state.write_text(layout.bubblewrap_path, f"{layout.stamp}\n")
        assert state.is_ready(layout)

    def test_not_ready_when_the_interpreter_does_not_run(self, layout: Layout, monkeypatch):
        def fails(*_: object, **__: object) -> str:
            raise shell.CommandFailed("no such file")

        state.write_record(layout.stamp, {"fingerprint": state.fingerprint(layout)})
        state.write_record(layout.venv_marker, {})
        monkeypatch.setattr(shell, "run", fails)
        assert not state.is_ready(layout)

    def test_swapping_in_leaves_one_folder(self, tmp_path: Path):
        part, final = tmp_path / "x.part", tmp_path / "x"
        for content in ("first", "second"):
            state.fresh_folder(part)
            (part / "file").write_text(content)
            state.swap_in(part, final)
            assert (final / "file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_removes_files_links_and_trees_alike(self, tmp_path: Path):
        kept = tmp_path / "kept"
        kept.mkdir()
        link, tree = tmp_path / "link", tmp_path / "tree"
        link.symlink_to(kept)
        (tree / "deep").mkdir(parents=True)
        for path in (link, tree, tmp_path / "missing"):
            state.remove(path)
        assert list(tmp_path.iterdir()) == [kept]


class TestSandbox:
    """Finding or fetching bubblewrap; `shell.run` stands for the programs."""

    help = "--ro-bind-fd"

    def machine(self, monkeypatch, works: dict[Path, str]) -> list[Path]:
        """A machine where some programs work and others complain; return what gets tried."""
        tried: list[Path] = []

        def run(words: list[object], **_: object) -> str:
            program = Path(str(words[0]))
            if "--help" in words:
                tried.append(program)
                return self.help
            if complaint := works.get(program, "no such file"):
                raise shell.CommandFailed(complaint)
            return "bubblewrap 0.8.0\n"

        installed = [program for program in works if program.is_relative_to("/usr")]
        monkeypatch.setattr(sandbox, "INSTALLED", [*map(Existing, installed)])
        monkeypatch.setattr(sandbox.shell, "run", run)
        monkeypatch.setattr(sandbox.apt, "this_distribution", lambda: None)
        monkeypatch.setattr(sandbox.sys, "platform", "linux")
        return tried

    def test_an_installed_one_that_works_is_used_and_needs_no_record(self, layout, monkeypatch):
        state.write_text(layout.bubblewrap_path, "/old\n")
        tried = self.machine(monkeypatch, {Path("/usr/bin/bwrap"): ""})
        assert sandbox.provide(layout) == "bubblewrap 0.8.0, /usr/bin/bwrap"
        assert set(tried) == {Path("/usr/bin/bwrap")}
        assert not layout.bubblewrap_path.exists()

    def test_one_that_is_too_old_gives_way_to_our_own(self, layout: Layout, monkeypatch):
        own = layout.tools / "bubblewrap" / "usr" / "bin" / "bwrap"
        record = prefix.record(layout, prefix.BUBBLEWRAP, "own")
        state.write_record(layout.tools / "bubblewrap" / prefix.MARKER, record)
        self.machine(monkeypatch, {Path("/usr/bin/bwrap"): "unknown option", own: ""})
        assert sandbox.provide(layout) == f"bubblewrap 0.8.0, {own}"
        assert layout.bubblewrap_path.read_text() == f"{own}\n"

    def test_where_the_machine_forbids_it_nothing_is_fetched(self, layout: Layout, monkeypatch):
        complaint = "bwrap: setting up uid map: Permission denied"
        self.machine(monkeypatch, {Path("/usr/bin/bwrap"): complaint})
        monkeypatch.setattr(sandbox, "_build", never)
        said = sandbox.provide(layout)
        assert said.startswith("none: commands and tests will be refused")
        assert complaint in said

    def test_without_any_it_says_so_and_does_not_fail(self, layout: Layout, monkeypatch):
        state.write_text(layout.bubblewrap_path, "/old\n")
        self.machine(monkeypatch, {})
        assert "no system with apt-get" in sandbox.provide(layout)
        assert not layout.bubblewrap_path.exists()

    def test_one_without_the_newest_option_is_not_taken(self, layout: Layout, monkeypatch):
        self.help = "--ro-bind"
        self.machine(monkeypatch, {Path("/usr/bin/bwrap"): ""})
        assert "it is too old" in sandbox.provide(layout)

    def test_it_finds_its_libraries_beside_it(self, tmp_path: Path):
        class Patched(prefix.Patchelf):
            def set_search_path(self, file: Path, search_path: str, *, loader=None) -> None:
                found.append((file, search_path))

        found: list[tuple[Path, str]] = []
        for name in ("lib/x86/libcap.so.2", "usr/lib/x86/libpcre2-8.so.0", "usr/bin/bwrap"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        sandbox.relink(tmp_path, Patched(Layout(tmp_path)))
        places = "$ORIGIN/../../lib/x86:$ORIGIN/../../usr/lib/x86"
        assert found == [(tmp_path / "usr" / "bin" / "bwrap", places)]


class Existing(Path):
    """A path that exists, whatever this machine has."""

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return True


def never(*_: object) -> Path:
    raise AssertionError("it was fetched")


class TestOnlyContract:
    """The import contract that names what is allowed."""

    def contract(self, *allowed: str) -> OnlyContract:
        options = {"source": "p.core", "allowed": list(allowed)}
        return OnlyContract(name="core", session_options={}, contract_options=options)

    def graph(self, *imports: tuple[str, str]) -> ImportGraph:
        graph = ImportGraph()
        for module in ("p", "p.core", "p.core.deep", "p.other"):
            graph.add_module(module)
        for module in {imported for _, imported in imports} - graph.modules:
            graph.add_module(module, is_squashed=True)
        for importer, imported in imports:
            graph.add_import(importer=importer, imported=imported)
        return graph

    @pytest.mark.parametrize("imported", ["json", "p.core", "msgspec"])
    def test_allows_the_standard_library_itself_and_what_is_named(self, imported: str):
        graph = self.graph(("p.core.deep", imported), ("p.other", "numpy"))
        assert self.contract("msgspec").check(graph, verbose=False).kept

    @pytest.mark.parametrize("imported", ["numpy", "p.other", "p", "msgspecx", "jsonx"])
    def test_refuses_everything_else(self, imported: str):
        found = self.contract("msgspec").check(self.graph(("p.core.deep", imported)), verbose=False)
        assert not found.kept
        assert found.metadata["wrong"] == [("p.core.deep", imported)]

    def test_a_source_that_is_gone_breaks_it(self):
        found = self.contract().check(ImportGraph(), verbose=False)
        assert not found.kept


def test_a_download_is_refused_when_its_checksum_differs(monkeypatch, tmp_path: Path):
    good = hashlib.sha256(b"the wheel").hexdigest()
    name = "tool-1-py3-none-manylinux_2_17_x86_64.whl"
    page = f'<a href="{name}#sha256={good}">{name}</a>'.encode()
    answers = {"https://i/simple/tool/": page, f"https://i/simple/tool/{name}": b"another wheel"}
    monkeypatch.setenv("PIP_INDEX_URL", "https://i/simple")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.delenv("UV_INDEX_URL", raising=False)
    monkeypatch.setattr(pypi, "platform_tags", lambda: [r"manylinux_2_\d+_x86_64"])
    monkeypatch.setattr(pypi, "_get", lambda url, _: answers[url])
    with pytest.raises(ValueError, match="checksum"):
        pypi._fetch_and_unpack("tool", "1", tmp_path)
    assert list(tmp_path.iterdir()) == []
