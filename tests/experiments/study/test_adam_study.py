"""The study of AdamW around updates: its text, its transformer, its runs and tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import command, refused

from regrow.experiments.data import registry
from regrow.experiments.errors import UserError
from regrow.experiments.study import adam, language
from regrow.experiments.study.adam import AdamSettings, around_updates, run_adam_study, train_transformer
from regrow.experiments.study.language import Text, Transformer

TEXT = Text.of("to be or not to be, that is the question: " * 30)
TINY = AdamSettings(steps=110, every=25, warmup=5, batch_size=2, context=8)


@pytest.fixture
def text(monkeypatch):
    monkeypatch.setattr(adam, "read_text", lambda root: "to be or not to be, that is the question: " * 30)


def test_the_transformer_sees_no_later_character():
    model = Transformer(characters=TEXT.characters, context=8, width=16)
    piece = TEXT.train[None, :8].clone()
    before = model(piece)
    piece[0, 5] = (piece[0, 5] + 1) % TEXT.characters
    after = model(piece)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_the_text_is_split_and_numbered():
    assert len(TEXT.train) + len(TEXT.valid) == 42 * 30
    assert set(TEXT.train.tolist()) == set(range(TEXT.characters))


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_runs_of_a_seed_agree_until_an_update(method):
    cold, warm = (train_transformer(TINY, method, state, 3, TEXT) for state in ("zero", "warm"))
    assert cold["updates"] == warm["updates"]
    first = cold["updates"][0]
    assert first == 26  # due after step 25, carried out by the next
    assert cold["losses"][: first + 1] == warm["losses"][: first + 1]
    assert cold["losses"][first + 1 :] != warm["losses"][first + 1 :]


def test_steps_around_updates_need_room():
    with pytest.raises(UserError, match="take more --steps"):
        around_updates([1.0] * 30, [15])


def test_a_study_keeps_what_is_finished(tmp_path, text, monkeypatch):
    table = run_adam_study(TINY, ["rigl"], ["zero", "warm"], range(2), tmp_path)
    assert table == (tmp_path / "table.md").read_text()
    assert table.startswith("rigl:\n\n| step | zero | warm | zero - warm |")
    assert (tmp_path / "around.png").read_bytes()[1:4] == b"PNG"
    one = json.loads((tmp_path / "rigl-warm-seed1.json").read_text())
    assert len(one["losses"]["losses"]) == TINY.steps
    monkeypatch.setattr(adam, "train_transformer", None)
    assert run_adam_study(TINY, ["rigl"], ["zero", "warm"], range(2), tmp_path) == table
    with pytest.raises(UserError, match="other settings"):
        run_adam_study(AdamSettings(), ["rigl"], ["zero"], range(1), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--methods", "magic"], "no method 'magic'"), (["--states", "cold"], "no state 'cold': choose among")],
)
def test_mistakes_are_named(arguments, message, tmp_path, text):
    refused(command("study", "adam", "--out", tmp_path, *arguments), message)


def test_the_text_must_be_there_and_be_the_right_one(tmp_path, monkeypatch):
    monkeypatch.delenv("REGROW_DATA", raising=False)
    published = replace(registry.get("tinyshakespeare"), mirrors=())
    monkeypatch.setitem(registry.DATASETS, "tinyshakespeare", published)
    monkeypatch.setattr("regrow.experiments.data.cache.folder", lambda: tmp_path / "cache")
    with pytest.raises(UserError, match="--data"):
        language.read_text()
    Path(tmp_path / "input.txt").write_text("to be")
    with pytest.raises(UserError, match="digest"):
        language.read_text(tmp_path)
