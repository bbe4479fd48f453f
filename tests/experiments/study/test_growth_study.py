"""The study of growth sources: its grid, what it counts, and that it goes on where it was."""

import json

import pytest
import torch
from runs import command, refused, stop_after, tiny

from regrow.experiments.errors import UserError
from regrow.experiments.study.execute import run_study
from regrow.experiments.study.growth import GROWTH_STUDY, in_common
from regrow.experiments.study.overlap import ComparedRun
from regrow.experiments.train.config import override
from regrow.experiments.train.loop import train
from regrow.experiments.train.run import Run

GRID = (
    "--sources",
    "static,set,candidates:4:1,window:40,exact",
    "--densities",
    "0.1",
    "--seeds",
    2,
    "--epochs",
    3,
    "--jobs",
    1,
)
OPTIONS = ("study", "growth", "digits-mlp", *GRID, "--set", "batch_size=128")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, command(*OPTIONS, "--out", out)


def test_every_run_of_the_grid_once(study):
    out, result = study
    assert (result.exit_code, result.stderr) == (0, "")
    rows = json.loads((out / "study.json").read_text())
    sources = ["static", "set", "candidates:4:1", "window:40", "exact"]
    assert [(row["seed"], row["source"]) for row in rows] == [(seed, name) for seed in (0, 1) for name in sources]
    assert len([path for path in out.iterdir() if path.is_dir()]) == 10


def test_exact_growth_has_all_in_common_with_itself_and_random_growth_little(study):
    rows = json.loads((study[0] / "study.json").read_text())
    share = {cell.key[0]: in_common(cell) for cell in GROWTH_STUDY.collect(rows)}
    assert share["static"] is None
    assert share["exact"] == share["window:40"] == 1  # the window is longer than the training
    assert 0 <= share["set"] < 0.3
    assert share["set"] < share["candidates:4:1"] < 1


def test_comparing_changes_nothing(tmp_path):
    """A run that counts what it has in common ends as one that does not."""
    config = override(tiny(), {"growth": "candidates:4:1", "backend": "masked"})
    compared, plain = (make(config) for make in (ComparedRun, Run))
    for run in (compared, plain):
        torch.manual_seed(0)
        for _ in range(2):
            for images, labels in run.data.train.epoch():
                run.train_step(images, labels)
            run.finish_epoch()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(compared.model.state_dict()[name], tensor)


def test_counts_survive_a_stop(study, tmp_path):
    (planned,) = GROWTH_STUDY.runs(tiny(), {"source": ["candidates:4:1"], "density": [0.1]}, [0]).values()
    config = planned.config
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, whole, make_run=ComparedRun)
    stop_after(config, stopped, 15, 15, make_run=ComparedRun)
    train(config, stopped, resume=True, make_run=ComparedRun)
    last = [json.loads((out / "metrics.jsonl").read_text().splitlines()[-1]) for out in (whole, stopped)]
    assert sum(last[0]["grown_by_layer"].values()) > 0
    for name in ("grown_by_layer", "in_common_by_layer"):
        assert last[0][name] == last[1][name]


def test_run_again_it_trains_nothing_anew(study, monkeypatch):
    out, result = study
    monkeypatch.setattr("regrow.experiments.train.run.Run.train_step", None)
    assert command(*OPTIONS, "--out", out).stdout == result.stdout


def test_the_table_is_markdown(study):
    out, _ = study
    lines = (out / "table.md").read_text().splitlines()
    assert lines[:2] == ["| growth | 10 %: test error | in common | training FLOPs |", "|---|---|---|---|"]
    assert lines[2].endswith("| - | 10 |")
    cells = GROWTH_STUDY.collect(json.loads((out / "study.json").read_text()))
    assert GROWTH_STUDY.markdown(cells).splitlines() == lines


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    for source in ("windows:4", "window", "window:-1", "window:0", "candidates:4", "candidates:4:0"):
        result = command("study", "growth", "digits-mlp", "--sources", source, "--out", tmp_path)
        refused(result, "growth")


def test_without_momentum_there_is_nothing_to_compare(tmp_path):
    base, values = tiny(momentum=0.0, nesterov=False), {"source": ["exact"], "density": [0.1]}
    with pytest.raises(UserError, match="momentum"):
        run_study(GROWTH_STUDY, base, values, [0], tmp_path)
