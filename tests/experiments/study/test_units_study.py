"""The study of units: its grid, paired differences, and that it goes on where it was."""

import json
from statistics import mean, stdev

import pytest
import torch
from runs import command, refused, tiny

import regrow
from regrow.experiments.study.study import Cell
from regrow.experiments.study.units import UNITS_STUDY
from regrow.experiments.train.checkpoint import list_checkpoints, load_checkpoint

GRID = ("--blocks", "1x1,4x1", "--densities", "0.1", "--seeds", 2, "--epochs", 2, "--jobs", 1)
OPTIONS = ("study", "units", "digits-mlp", *GRID, "--set", "batch_size=128")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, command(*OPTIONS, "--out", out)


def made(method, block, density, accuracies):
    """Rows of a study as `study.json` has them."""
    return [
        {"method": method, "block": block, "density": density, "seed": seed, "test_accuracy": accuracy / 100}
        for seed, accuracy in accuracies.items()
    ]


def test_every_run_of_the_grid_once(study):
    out, result = study
    assert (result.exit_code, result.stderr) == (0, "")
    rows = json.loads((out / "study.json").read_text())
    assert [(row["seed"], row["block"]) for row in rows] == [
        (seed, block) for seed in (0, 1) for block in ("1x1", "4x1")
    ]
    assert {row["growth"] for row in rows} == {str(regrow.growth.window(22))}
    assert len([path for path in out.iterdir() if path.is_dir()]) == 4


def test_runs_have_whole_units(study):
    out, _ = study
    (folder,) = (path for path in out.iterdir() if path.is_dir() and "4x1" in path.name and path.name.endswith("seed0"))
    state = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1])
    masks = [value for name, value in state["model"].items() if name.endswith("_mask")]
    assert masks
    for mask in masks:
        rows = 4 if mask.shape[0] % 4 == 0 else 2  # ten classes
        blocks = mask.view(-1, rows, mask.shape[1])
        assert torch.equal(blocks.any(1), blocks.all(1))


def test_the_difference_is_that_of_each_seed():
    single, units = {0: 90.0, 1: 92.0, 2: 97.0}, {0: 89.0, 1: 90.0, 2: 94.0, 3: 10.0}
    cells = UNITS_STUDY.collect([*made("set", "1x1", 0.1, single), *made("set", "4x1", 0.1, units)])
    apart = [units[seed] - single[seed] for seed in single]
    accuracy, difference = UNITS_STUDY.figures
    assert accuracy.text(cells[0]) == f"{mean(single.values()):.2f} ± {stdev(single.values()) / 3**0.5:.2f}"
    assert difference.text(cells[0]) == "-"
    assert difference.text(cells[1]) == f"{mean(apart):+.2f} ± {stdev(apart) / 3**0.5:.2f}" == "-2.00 ± 0.58"


def test_each_method_and_density_has_its_own_reference():
    rows = [
        *made("set", "1x1", 0.1, {0: 90.0}),
        *made("set", "4x1", 0.1, {0: 89.0}),
        *made("rigl", "1x1", 0.1, {0: 80.0}),
        *made("rigl", "4x1", 0.1, {0: 85.0}),
        *made("rigl", "4x1", 0.2, {0: 85.0}),  # whose single weights were not run
    ]
    assert UNITS_STUDY.markdown(UNITS_STUDY.collect(rows)).splitlines() == [
        "| method | unit | 10 %: test accuracy | less 1x1 | 20 %: test accuracy | less 1x1 |",
        "|---|---|---|---|---|---|",
        "| set | 1x1 | 90.00 | - |  |  |",
        "| set | 4x1 | 89.00 | -1.00 |  |  |",
        "| rigl | 1x1 | 80.00 | - |  |  |",
        "| rigl | 4x1 | 85.00 | +5.00 | 85.00 | - |",
    ]


def test_a_seed_that_only_one_has_is_no_difference():
    reference = Cell(("set", "1x1", 0.1), tuple(made("set", "1x1", 0.1, {0: 90.0})))
    cell = Cell(("set", "4x1", 0.1), tuple(made("set", "4x1", 0.1, {1: 89.0})), reference)
    assert UNITS_STUDY.figures[1].text(cell) == "-"


def test_the_table_and_the_plot_are_of_the_runs(study):
    out, result = study
    cells = UNITS_STUDY.collect(json.loads((out / "study.json").read_text()))
    assert (out / "table.md").read_text() == UNITS_STUDY.markdown(cells) + "\n"
    assert (out / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert "less 1x1" in result.stdout


def test_run_again_it_trains_nothing_anew_and_goes_on_with_more(study, monkeypatch):
    out, result = study
    with monkeypatch.context() as patch:
        patch.setattr("regrow.experiments.train.run.Run.train_step", None)
        assert command(*OPTIONS, "--out", out).stdout == result.stdout
    more = command(*OPTIONS, "--out", out, "--blocks", "1x1,2x1", "--seeds", 1)
    assert (more.exit_code, more.stderr) == (0, "")
    assert len([path for path in out.iterdir() if path.is_dir()]) == 5


def test_dense_stands_beside_once():
    values = {"method": ["dense", "set"], "block": ["1x1", "4x1"], "density": [0.1, 0.2]}
    runs = UNITS_STUDY.runs(tiny(), values, [0])
    assert len(runs) == 1 + 4


def test_mistakes_are_one_line(tmp_path):
    call = ("study", "units", "digits-mlp", "--out", tmp_path)
    refused(command(*call, "--blocks", "4"), "write outputs x inputs")
    refused(command(*call, "--set", "growth=exact"), "leave growth out")
