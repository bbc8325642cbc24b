"""What the benchmarks of speculation rest on: edits that are what they say, tokens that are Qwen's,
answers that are the recorded ones or fail."""

import ast
import json
from pathlib import Path

import pytest

from benchmarks import code_tokens, edit_answers, edit_tasks, edits, engine_summary, engine_table
from benchmarks.edit_answers import Shown
from benchmarks.engine_forced import ForcedEngine
from punie_model_host.calls.formats import ToolCallFormat
from punie_protocol.engine import EngineSettings, Speculation
from tests.support import small_models
from tests.support.toolcall_corpus import Entry, Outcome, outcome

EDITS = edit_tasks.all_edits()


def test_edits_are_real_and_the_same_every_time() -> None:
    assert len(EDITS) >= 30
    for edit in EDITS:
        assert edit.before != edit.after
        ast.parse(edit.after)
        again = edits.edit(edit.path, edit.before, edit_tasks.SEED)
        assert again == edit
    asked = " ".join(edit.asked for edit in EDITS)
    for kind in (
        "rename the argument",
        "everywhere it is used",
        "docstring",
        "log",
        "None at once",
    ):
        assert kind in asked
    for kind in ("RuntimeError", "by default", "make it"):
        assert kind in asked


def test_pieces_make_the_edit_one_after_the_other() -> None:
    for edit in EDITS:
        text = edit.before
        for name, arguments in edit_answers.replace(edit):
            assert name == "edit_file"
            assert text.count(arguments["old_text"]) == 1, edit.path
            text = text.replace(arguments["old_text"], arguments["new_text"])
        assert text == edit.after, edit.path


@pytest.mark.parametrize("make", [edit_tasks.rewrite, edit_tasks.replace])
def test_answers_are_calls(make) -> None:
    for edit in EDITS[:12]:
        task = make(edit)
        text = task.answer.removesuffix(edit_answers.END)
        said = Entry(
            id="x", kind="x", format=ToolCallFormat.QWEN3_CODER, text=text, expect=Outcome()
        )
        calls = outcome(said, [text]).calls
        assert [(call.name, call.arguments) for call in calls] == list(task.calls)


def test_the_file_is_shown_as_tools_show_it() -> None:
    edit = EDITS[0]
    plain, quoted = (edit_answers.conversation(edit, shown)[-1].text for shown in Shown)
    assert plain == edit.before
    assert json.loads(quoted)["text"] == edit.before


def test_a_part_of_the_vocabulary_cuts_its_corpus_as_the_whole_does() -> None:
    corpus = [edit.before for edit in EDITS[:8]]
    tokenizer = code_tokens.make_tokenizer(code_tokens.vocabulary(corpus))
    for text in corpus:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cut = [tokenizer.decode([number]) for number in ids]
        assert cut == [token.decode() for token in code_tokens.tokens(text)]
    for text in ("what no corpus has: žluťoučký 🐎", "<|im_start|>user\n<tool_call>"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_misleading_prompts_mislead_everywhere() -> None:
    prompt, answer = edit_tasks.misleading(60, 200, "x")
    assert len({*answer}) == len(answer) == 60
    followed = {tuple(prompt[at : at + 3]): prompt[at + 3] for at in range(0, len(prompt), 4)}
    assert len(followed) == 57
    for at in range(57):
        assert followed[tuple(answer[at : at + 3])] != answer[at + 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.make_small_model(tmp_path_factory.mktemp("forced"), small_models.Kind.QWEN3)


@pytest.mark.parametrize("speculation", [Speculation.OFF, Speculation.NGRAM])
def test_forced_answers_come_out_as_they_are(folder: Path, speculation: Speculation) -> None:
    engine = ForcedEngine(folder, EngineSettings(disk_mb=0, speculation=speculation))
    pairs = [([8 + at] * 3 + [9, 10, 11] * 12, [9, 10, 11] * 20) for at in range(3)]
    sample = engine.answer_tokens(pairs)
    assert sample.tokens == 180
    assert sample.decoded < 180
    assert bool(sample.drafts.get("ngram")) is (speculation is Speculation.NGRAM)


def test_an_answer_that_is_not_the_recorded_one_fails(folder: Path) -> None:
    engine = ForcedEngine(folder, EngineSettings(disk_mb=0))
    asked = engine._ask_tokens([9, 10, 11], [12, 13, 14, 15])
    asked.target = [12, 13, 16, 15]
    with pytest.raises(RuntimeError, match="different from token 2"):
        engine._measured([asked])


def side(tok_s: float, proposed: int = 0, accepted: int = 0) -> dict:
    drafts = {"ngram": {"proposed": proposed, "accepted": accepted, "emitted": 0}}
    return {"tok_s": tok_s, "whole_tok_s": tok_s / 2, "tokens_a_step": 2.0, "drafts": drafts}


def test_speedups_are_with_drafts_over_without() -> None:
    rounds = [
        {"rewrite_1": {"off": side(10.0), "ngram": side(x, 10, 8)}} for x in (20.0, 30.0, 40.0)
    ]
    rounds[0] |= {
        "nomatch_code": {"off": side(10.0), "ngram": side(12.5)},
        "nomatch_misled": {"off": side(10.0), "ngram": side(8.0)},
    }
    found = engine_summary.of({"speculation": {"ours": [{"rounds": rounds}]}})
    assert found["rewrite_speedup_1"] == found["rewrite_speedup_1_whole"] == 3.0
    assert found["rewrite_speedup_4"] is None
    assert found["nomatch_slowdown"] == 1.25
    assert found["acceptance"]["rewrite_1"] == 0.8
    assert found["acceptance"]["nomatch_code"] is None


def test_drafts_of_any_length_are_to_give_the_same_answers() -> None:
    sample = {"tok_s": 10.0, "acceptance": 0.5, "mlx_peak_mb": 1.0, "process_peak_mb": 2.0}
    none = sample | {"acceptance": None, "answers": ["a"]}
    some = sample | {"answers": ["a"]}
    found = engine_summary.of({"drafts/0": {"ours": [none]}, "drafts/3": {"ours": [some]}})
    assert found["draft_k"]["3"]["acceptance"] == 0.5
    assert found["draft_k"]["0"]["acceptance"] is None
    assert not found["draft_answers_differ"]
    other = some | {"answers": ["b"]}
    found = engine_summary.of({"drafts/0": {"ours": [none]}, "drafts/3": {"ours": [other]}})
    assert found["draft_answers_differ"]


def test_the_page_takes_the_figures() -> None:
    result = engine_summary.of({}) | {
        "machine": {
            "system": "Linux x86_64",
            "cpu_count": 2,
            "memory_gb": 25.3,
            "python": "3.14.0",
            "load_average": [1.0],
        },
        "versions": {"mlx": "1.0"},
        "rewrite_speedup_1": 1.75,
    }
    text = engine_table.table(result)
    assert "| `rewrite_speedup_1` | 1.75 | ≥ 1.6 |" in text
    assert "| `rewrite_speedup_4` | – | ≥ 1.6 |" in text
    page = engine_table.PAGE.read_text()
    filled = engine_table.filled(page, text)
    assert engine_table.filled(filled, text) == filled
    assert filled.startswith(page.partition(engine_table.BEGIN)[0])
    with pytest.raises(ValueError, match="has no"):
        engine_table.filled("nothing", text)
