"""The study of bounds on compute: its grid, its table and plot, and that it goes on where it was."""

import json

import pytest
from runs import command, refused, tiny
from torch import nn

from regrow.experiments import models
from regrow.experiments.study.compute import COMPUTE_STUDY
from regrow.experiments.study.execute import run_study

BOUNDS = ("1", "1.5", "unlimited", "keep", "dense")
GRID = ("--bounds", ",".join(BOUNDS), "--seeds", 2, "--epochs", 2, "--jobs", 1)
SETTINGS = (
    "model=narrowing",
    "model_options={}",
    "density=0.3",
    "batch_size=128",
    "update_every=0.3",
    "backend=masked",
)
OPTIONS = ("study", "compute", "digits-mlp", *GRID, *(part for each in SETTINGS for part in ("--set", each)))


def narrowing(*, image_shape, classes):
    """Build a network whose first weights are used at sixteen times as many positions as the next."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "narrowing", narrowing)
        yield out, command(*OPTIONS, "--out", out)


def rows(study):
    return json.loads((study[0] / "study.json").read_text())


def test_every_run_of_the_grid_once(study):
    out, result = study
    assert (result.exit_code, result.stderr) == (0, "")
    assert [(row["seed"], row["bound"]) for row in rows(study)] == [(seed, name) for seed in (0, 1) for name in BOUNDS]
    settings = {row["bound"]: (row["method"], row["compute"], row["density"]) for row in rows(study)}
    assert settings == {
        "1": ("sparse-momentum", 1.0, 0.3), "1.5": ("sparse-momentum", 1.5, 0.3),
        "unlimited": ("sparse-momentum", None, 0.3), "keep": ("sparse-momentum", None, 0.3),
        "dense": ("dense", None, 1.0),
    }  # fmt: skip
    assert len([path for path in out.iterdir() if path.is_dir()]) == 10


def test_runs_stay_within_their_bounds(study):
    for row in rows(study):
        if row["compute"] is not None:
            assert row["times_uniform"] <= row["compute"] + 1e-3  # what uniform counts lose by being whole
        elif row["bound"] == "unlimited":
            assert row["times_uniform"] > 1.2
        else:
            assert row["times_uniform"] == pytest.approx(1, abs=1e-2)
        assert len(row["curve"]) == 2
        assert row["curve"][-1][1:3] == [row["multiply_adds_train"], row["multiply_adds_train_dense"]]


def test_the_table_has_a_line_for_each_bound(study):
    out, result = study
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0] == (
        "| compute | test accuracy, % | multiply-adds of the training, % of dense | at the end, times uniform |"
        " training, s |"
    )
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in BOUNDS]
    assert " | 100.00 ± 0.00 | 1.00 ± 0.00 | " in lines[-1]
    accuracies = [100 * row["test_accuracy"] for row in rows(study) if row["bound"] == "keep"]
    assert f"| keep | {sum(accuracies) / 2:.2f} ± {abs(accuracies[0] - accuracies[1]) / 2:.2f} |" in lines[-2]
    assert all(name in result.stdout for name in BOUNDS)
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_run_again_it_trains_nothing_anew(study, monkeypatch):
    out, result = study
    monkeypatch.setattr("regrow.experiments.train.run.Run.train_step", None)
    assert command(*OPTIONS, "--out", out).stdout == result.stdout


def test_without_a_validation_set_there_is_still_a_table(tmp_path):
    run_study(COMPUTE_STUDY, tiny(valid_samples=0, epochs=1), {"bound": ["2", "dense"]}, [0], tmp_path, jobs=1)
    assert (tmp_path / "accuracy.png").exists()


def test_what_is_no_bound_is_refused(tmp_path):
    for bounds in ("0", "-1", "much", "1,,2", "inf", "nan"):
        refused(command("study", "compute", "digits-mlp", "--bounds", bounds, "--out", tmp_path / "out"), "--bounds")
    refused(command("study", "compute", "digits-mlp", "--set", "method=dense", "--out", tmp_path / "out"), "dense")
