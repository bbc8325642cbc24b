"""The model host's small pure parts: stop strings, watchdog, BLAS."""

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from punie_model_host import blas
from punie_model_host.stops import StopStrings
from punie_model_host.watchdog import LOOKS, Watchdog


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=5),
)
def test_text_ends_before_the_first_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(at, len(text)) for at in cuts), len(text)]
    stream = StopStrings(stops)
    passed = ""
    for a, b in pairwise(edges):
        passed += stream.feed(text[a:b])
        assert not any(stop in passed for stop in stops)
    passed += stream.finish()
    assert text.startswith(passed)
    assert stream.stopped == any(stop in text for stop in stops)
    if not stream.stopped:
        assert passed == text


def test_a_stop_string_in_pieces_never_leaks() -> None:
    stream = StopStrings(["</end>"])
    assert [stream.feed(text) for text in ("a<", "/e", "x</", "end", ">b")] == [
        "a",
        "",
        "</ex",
        "",
        "",
    ]
    assert stream.stopped


def test_only_a_request_without_progress_for_a_whole_deadline_is_hung() -> None:
    watchdog = Watchdog()
    for progress in (7, None, 7, 8, 7, None):
        readings = [watchdog.is_hung(progress) for _ in range(LOOKS)]
        assert not any(readings), progress
    assert not any(watchdog.is_hung(9) for _ in range(LOOKS))
    assert watchdog.is_hung(9)
    assert not watchdog.is_hung(10)


def test_blas_is_taken_from_the_pointer_or_the_environment(tmp_path: Path) -> None:
    library = tmp_path / "libopenblas.so.0"
    library.touch()
    pointer = tmp_path / "share" / "punie" / "openblas.path"
    assert blas.wanted({}, tmp_path, "linux") is None
    pointer.parent.mkdir(parents=True)
    pointer.write_text(f"{library}\n")
    assert blas.wanted({}, tmp_path, "linux") == library
    assert blas.wanted({}, tmp_path, "darwin") is None
    assert blas.wanted({blas.CHOICE: ""}, tmp_path, "linux") is None
    assert blas.wanted({blas.CHOICE: str(tmp_path / "none.so")}, tmp_path, "linux") is None


def test_blas_leaves_a_core_to_others() -> None:
    assert [blas.threads(cores) for cores in (1, 2, 8)] == [1, 1, 7]
