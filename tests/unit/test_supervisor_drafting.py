"""Settings of the engine that a command line changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_protocol.client import Drafting
from punie_protocol.engine import EngineSettings, Speculation
from punie_protocol.errors import PunieError
from punie_supervisor import drafting, main

WISHES = st.builds(
    Drafting,
    speculation=st.none() | st.sampled_from(Speculation),
    num_draft_tokens=st.none() | st.integers(0, 64),
    draft_model=st.none() | st.sampled_from(["", "small", "org--small =1", "--odd", "/a/b c"]),
)


def test_what_is_not_wished_stays() -> None:
    settings = EngineSettings(
        max_batch=3, speculation=Speculation.OFF, num_draft_tokens=7, draft_model="small"
    )
    assert drafting.applied(settings, drafting.NOTHING) == settings
    changed = drafting.applied(settings, Drafting(speculation=Speculation.NGRAM))
    assert changed == EngineSettings(
        max_batch=3, speculation=Speculation.NGRAM, num_draft_tokens=7, draft_model="small"
    )


def test_zero_and_empty_take_away() -> None:
    settings = EngineSettings(num_draft_tokens=7, draft_model="small")
    wish = Drafting(num_draft_tokens=0, draft_model="")
    assert drafting.applied(settings, wish) == EngineSettings()


def test_drafts_of_a_model_need_one() -> None:
    only = Drafting(speculation=Speculation.DRAFT)
    with pytest.raises(PunieError, match="needs a draft_model") as caught:
        drafting.applied(EngineSettings(), only)
    assert "--draft-model" in caught.value.error.hint
    settings = EngineSettings(draft_model="small", speculation=Speculation.DRAFT)
    assert drafting.applied(EngineSettings(draft_model="small"), only) == settings
    with pytest.raises(PunieError, match="needs a draft_model"):
        drafting.applied(settings, Drafting(draft_model=""))


@pytest.mark.parametrize("mode", [Speculation.OFF, Speculation.NGRAM])
def test_a_draft_model_that_nobody_would_use_is_refused(mode: Speculation) -> None:
    """It was taken, and never looked at: a model that is none, too."""
    settings = EngineSettings(speculation=mode)
    with pytest.raises(PunieError, match=f"speculation {mode} uses no draft model"):
        drafting.applied(settings, Drafting(draft_model="small"))
    wish = Drafting(speculation=Speculation.AUTO, draft_model="small")
    assert drafting.applied(settings, wish) == EngineSettings(draft_model="small")


def test_a_server_drafts_nothing() -> None:
    with pytest.raises(PunieError, match="is a server's address"):
        drafting.applied(EngineSettings(), Drafting(draft_model="http://h:1/v1#x"))


@given(WISHES)
def test_a_daemons_command_line_says_the_same(wish: Drafting) -> None:
    options = main._options(drafting.arguments(wish))
    assert options.drafting == wish
    assert drafting.is_empty(wish) == (drafting.arguments(wish) == [])


@pytest.mark.parametrize(
    ("word", "flag"),
    [
        ("--speculation=perhaps", "--speculation 'perhaps'"),
        ("--num-draft-tokens=many", "--num-draft-tokens 'many'"),
        ("--num-draft-tokens=65", "--num-draft-tokens '65'"),
        (f"--draft-model={'x' * 5000}", "--draft-model 'xxx"),
    ],
)
def test_a_word_that_cannot_be_is_named(
    word: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main._options([word])
    assert caught.value.code == 2
    assert flag in capsys.readouterr().err
