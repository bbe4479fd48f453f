"""What a run says of its layers: what updates dropped and grew, and layers that are too thin; and its progress."""

import io
import json
import re

import pytest
import torch
from rich.console import Console
from runs import command, refused, tiny

import regrow
from regrow.experiments.train.changes import ChangeCounts
from regrow.experiments.train.config import override
from regrow.experiments.train.loop import train
from regrow.experiments.train.progress import Lines, ProgressBar
from regrow.experiments.train.run import Run


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("keeps", [True, False])
def test_returning_weights_are_counted_whether_they_are_kept_or_not(keeps):
    ones = torch.ones(2)
    layer = regrow.LayerState(
        regrow.Entries(torch.tensor([0, 2]), torch.tensor([0.1, 3.0]), grad=9 * ones, momentum=9 * ones),
        regrow.Entries(torch.tensor([1, 3]), 0 * ones, grad=ones, momentum=ones),
        numel=4,
        shape=(2, 2),
    )
    recipe = regrow.Recipe(
        drop=regrow.score.magnitude,
        redistribute=regrow.redistribute.keep,
        grow=regrow.score.momentum,
        fraction=regrow.schedule.constant(0.5),
        update_at=regrow.schedule.every(1, until=9),
        keep_returning=keeps,
    )
    counts = ChangeCounts()
    counts.add(regrow.update(recipe, {"a": layer}, 1, torch.Generator()), keeps)
    assert counts.row() == {"a": {"dropped": 1, "grown": 1, "returned": 1, "share": 1.0}}
    assert counts.row() == {}


@pytest.mark.parametrize("method", ["sparse-momentum", "set", "rigl"])
def test_metrics_say_what_updates_did_to_each_layer(method, tmp_path):
    config = override(tiny(epochs=3), {"method": method, "update_every": 0.5})
    train(config, tmp_path)
    rows = rows_of(tmp_path)
    assert sum(row["updates"] for row in rows) > 2
    for before, row in zip([None, *rows], rows, strict=False):
        changes = row["changes_by_layer"]
        if not row["updates"]:
            assert changes == {}
            continue
        assert changes.keys() == row["nonzeros_by_layer"].keys()
        assert sum(change["share"] for change in changes.values()) == pytest.approx(1)
        total = {kind: sum(change[kind] for change in changes.values()) for kind in ("dropped", "grown")}
        assert total["dropped"] == total["grown"] > 0
        for name, change in changes.items():
            assert 0 <= change["returned"] <= min(change["dropped"], change["grown"])
            if before is not None:
                gained = row["nonzeros_by_layer"][name] - before["nonzeros_by_layer"][name]
                assert gained == change["grown"] - change["dropped"]
    shown = command("layers", tmp_path)
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in rows[0]["nonzeros_by_layer"])
    refused(command("layers", tmp_path, "--epoch", 9), "in epoch 9 of 3")


def test_a_layer_with_less_than_one_weight_for_each_output_is_told_once(tmp_path):
    stream = io.StringIO()
    config = override(tiny(epochs=3), {"density": 0.005, "update_every": 0.5})
    train(config, tmp_path / "run", reporters=(Lines(Console(file=stream)),))
    warnings = [line for line in stream.getvalue().splitlines() if line.startswith("warning: ")]
    thin = [line for line in warnings if "outputs see no input" in line]
    names = [line.split()[1] for line in thin]
    assert names
    assert len(names) == len(set(names))
    assert all("--set keep_dense=" in line for line in thin)


def test_layers_with_enough_weights_bring_no_warning():
    assert Run(tiny()).warnings == []


def test_output_that_is_piped_has_a_line_an_epoch(tmp_path):
    result = command("train", "digits-mlp", "--epochs", 3, "--out", tmp_path / "run", "--set", "batch_size=128")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all(len(line) <= 80 for line in lines)


def test_the_bar_fits_80_columns():
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    run = Run(tiny(epochs=250))
    bar = ProgressBar(console)
    bar.start(run)
    run.step = 2345
    bar._last -= 0.3
    bar.step(run)
    stream.truncate(0)
    bar._progress.refresh()
    bar.stop()
    text = stream.getvalue()
    assert "epoch 1/250" in text
    assert "steps/s" in text
    assert "…" not in text
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
    assert all(len(line.strip("\0")) <= 80 for line in lines)
