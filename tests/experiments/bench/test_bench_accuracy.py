"""Time to accuracy: its tables by hand, and a small measurement that goes on where it was."""

import json

import pytest
from runs import command, refused

from regrow.experiments.bench.accuracy.curves import Curve, Point, levels, runs_table, times_table

CALL = ("bench", "accuracy", "digits-mlp", "--epochs", 2, "--seeds", 1, "--density", 0.3, "--set", "batch_size=128")


def curve(kind, seed, *points):
    return Curve(kind, seed, tuple(Point(*point) for point in points), 0.5)


CURVES = [
    curve("dense", 0, (1.0, 0.5), (2.0, 0.8)),
    curve("sparse", 0, (0.5, 0.4), (1.0, 0.8)),
    curve("dense", 1, (1.0, 0.7), (4.0, 0.9)),
    curve("sparse", 1, (0.5, 0.6), (1.0, 0.7)),
]


def test_times_are_means_over_the_seeds_that_reach_it():
    assert times_table(CURVES, [0.5, 0.8, 0.9, 0.95]).rows == (
        ("50.0%", "1.0 (2 of 2)", "0.8 (2 of 2)", "1.33x"),
        ("80.0%", "3.0 (2 of 2)", "1.0 (1 of 2)", "-"),
        ("90.0%", "4.0 (1 of 2)", "never (0 of 2)", "-"),
        ("95.0%", "never (0 of 2)", "never (0 of 2)", "-"),
    )


def test_levels_are_what_every_run_reaches():
    assert levels(CURVES) == (0.35, 0.52, 0.63, 0.66, 0.7)


def test_runs_are_told_one_by_one():
    assert runs_table(CURVES).rows[2] == ("dense, seed 1", "4.0", "90.00%", "50.00%")


def test_the_command_trains_both_and_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "accuracy"
    done = command(*CALL, "--out", out)
    assert done.exit_code == 0, done.output
    figures = json.loads((out / "accuracy.json").read_text())
    assert [(run["kind"], len(run["points"])) for run in figures["runs"]] == [("dense", 2), ("sparse", 2)]
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "accuracy.md").read_text()
    assert "| dense, seed 0 |" in page
    assert "Sparse: sparse-momentum at 0.3, backend masked, growth as the method has it, redistribution method." in page
    (result,) = [json.loads(path.read_text()) for path in out.glob("sparse-momentum*/result.json")]
    assert (result["backend"], result["density"], result["epochs"]) == ("masked", 0.3, 2)
    metrics = next(out.glob("dense*/metrics.jsonl")).read_text().splitlines()
    assert [point["seconds"] for point in figures["runs"][0]["points"]] == [
        json.loads(one)["seconds"] for one in metrics
    ]
    monkeypatch.setattr("regrow.experiments.train.run.Run.train_step", None)
    assert command(*CALL, "--out", out).stdout == done.stdout


def test_runs_of_another_machine_are_not_set_beside(tmp_path):
    (tmp_path / "machine.txt").write_text("another machine\n")
    refused(command(*CALL, "--out", tmp_path), "begun with another machine", "another --out")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--method", "dense"), "name another --method"),
        (("--accuracies", "high"), "--accuracies high"),
    ],
)
def test_mistakes_are_one_line(options, word, tmp_path):
    refused(command(*CALL, "--out", tmp_path, *options), word)
