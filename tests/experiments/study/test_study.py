"""Studies: a grid of runs that goes on where it was, its table with standard errors, and its plot."""

import json
import math
import os
import signal
import weakref
from dataclasses import replace

import pytest
import typer
from runs import command, refused, tiny
from typer.testing import CliRunner

from regrow.experiments.errors import UserError
from regrow.experiments.study import runner
from regrow.experiments.study.axes import DENSITY
from regrow.experiments.study.command import command_of
from regrow.experiments.study.density import DENSITY_STUDY
from regrow.experiments.study.execute import run_study
from regrow.experiments.study.runner import Failure, run_all
from regrow.experiments.study.study import Axis, Cell, Figure, Study
from regrow.experiments.terminal import parse_numbers
from regrow.experiments.train.run import Run

GRID = ("--methods", "set,static", "--densities", "0.1,0.2", "--seeds", 2, "--epochs", 1)
TOGETHER = ("study", "density", "digits-mlp", *GRID, "--set", "batch_size=128")
OPTIONS = (*TOGETHER, "--jobs", 1)
FOLDERS = {
    f"{cell}-seed{seed}" for cell in ("dense", "set-0.1", "set-0.2", "static-0.1", "static-0.2") for seed in (0, 1)
}
TIMES = ("seconds_train", "seconds_per_step", "seconds_waiting", "peak_memory_bytes", "threads", "folder")


def timeless(study):
    results = json.loads((study / "study.json").read_text())
    return [{name: value for name, value in result.items() if name not in TIMES} for result in results]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, command(*OPTIONS, "--out", out)


def test_every_run_of_the_grid_once(study):
    out, result = study
    assert result.exit_code == 0
    assert {path.name for path in out.iterdir() if path.is_dir()} == FOLDERS
    asked = [(run["seed"], run["method"], run["density"]) for run in timeless(out)]
    assert asked == [
        (seed, method, density)
        for seed in (0, 1)
        for method, density in (("dense", 1), ("set", 0.1), ("set", 0.2), ("static", 0.1), ("static", 0.2))
    ]


def test_quiet_where_there_is_no_terminal(study):
    _, result = study
    assert result.stderr == ""
    assert "dense" in result.stdout
    assert "100 %" in result.stdout


def test_the_table_is_markdown(study):
    out, _ = study
    results = json.loads((out / "study.json").read_text())
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0] == "### digits-mlp: mean ± standard error"
    assert lines[2].startswith("| method | density | test accuracy, % | 95 % interval | seeds | less dense | training")
    right = [100 * run["test_accuracy"] for run in results if run["method"] == "dense"]
    assert lines[4].startswith(f"| dense | 100 % | {sum(right) / 2:.2f} ± {abs(right[0] - right[1]) / 2:.2f} | ")
    assert [line.split(" | ")[0] for line in lines[5:9]] == ["| set"] * 2 + ["| static"] * 2
    assert lines[4].endswith(" | 2 | - | 100 | 100 |")
    assert lines[5].endswith(" | 10 | 10 |")
    assert lines[10].startswith("### Smallest density whose mean reaches the 95 % interval of dense")


def test_the_plot_is_a_png(study):
    out, _ = study
    content = (out / "accuracy.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 5_000


def test_run_again_it_trains_nothing_anew(study, monkeypatch):
    out, result = study
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("regrow.experiments.train.run.Run.train_step", None)
    assert command(*OPTIONS, "--out", out).stdout == result.stdout
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {out / "accuracy.png"}


def test_stopped_it_goes_on(study, tmp_path, monkeypatch):
    train_step, count = Run.train_step, iter(range(1, 100))

    def stopping_step(run, images, labels):
        train_step(run, images, labels)
        if next(count) == 13:  # in the second run
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_step", stopping_step)
        result = command(*OPTIONS, "--out", tmp_path)
    assert result.exit_code == 143
    assert result.stderr == "regrow: stopped after step 3 of 10 (epoch 1), saved; the same command goes on with it\n"
    assert not (tmp_path / "study.json").exists()
    assert command(*OPTIONS, "--out", tmp_path).exit_code == 0
    assert timeless(tmp_path) == timeless(study[0])


@pytest.mark.slow
def test_processes_give_the_same_results(study, tmp_path):
    result = command(*TOGETHER, "--out", tmp_path, "--jobs", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == study[1].stdout
    assert timeless(tmp_path) == timeless(study[0])
    assert (tmp_path / "table.md").read_text() == (study[0] / "table.md").read_text()


def test_a_folder_of_another_study_is_refused(study):
    out, _ = study
    with pytest.raises(UserError, match=r"has learning_rate = 0\.05, not 1\.0"):
        run_study(DENSITY_STUDY, tiny(epochs=1, learning_rate=1.0), {"method": ["set"], "density": [0.1]}, [0], out)


def test_what_is_asked_for_twice_is_run_once():
    values = {"method": ["dense", "set", "dense", "set"], "density": [0.1, 0.1]}
    runs = DENSITY_STUDY.runs(tiny(), values, [0, 0]).values()
    assert [(run.config.method, run.config.density) for run in runs] == [("dense", 1.0), ("set", 0.1)]


def test_two_recipes_of_one_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import regrow\nfirst = regrow.static(every=1, steps=1)\nsecond = regrow.set(every=5, steps=10)\n")
    values = {"method": [f"{file}:first", f"{file}:second"], "density": [0.1]}
    run_study(DENSITY_STUDY, tiny(epochs=1), values, [0], tmp_path / "study", jobs=1)
    assert len(timeless(tmp_path / "study")) == 2


def test_dense_alone_can_be_plotted(tmp_path):
    run_study(DENSITY_STUDY, tiny(epochs=1), {"method": ["dense"], "density": [0.1, 0.2]}, [0], tmp_path, jobs=1)
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("errors", "expected", "text"),
    [
        ((1.0, 2.0, 6.0), math.sqrt(14 / 2) / math.sqrt(3), "3.00 ± 1.53"),
        ((2.0, 2.0), 0.0, "2.00 ± 0.00"),
        ((2.5,), math.nan, "2.50"),
    ],
)
def test_the_standard_error_of_the_mean(errors, expected, text):
    rows = ({"seed": seed, "test_accuracy": 1 - error / 100} for seed, error in enumerate(errors))
    cell = Cell(("set", 0.1), tuple(rows))
    assert cell.error.error == pytest.approx(expected, nan_ok=True)
    assert cell.error.text() == text


def test_results_are_grouped_by_method_and_density():
    runs = [("set", 0.1, 0, 0.9), ("set", 0.2, 0, 0.8), ("set", 0.1, 1, 0.7)]
    cells = SENSITIVITY.collect(
        [dict(zip(("rate", "density", "seed", "test_accuracy"), run, strict=True)) for run in runs]
    )
    assert [(cell.key[1], cell.errors) for cell in cells] == [
        (0.1, pytest.approx({0: 10, 1: 30})),
        (0.2, pytest.approx({0: 20})),
    ]
    shown = replace(SENSITIVITY, figures=(Figure("test error", lambda cell: cell.error.text()),))
    assert shown.markdown(cells).splitlines()[2] == "| set | 20.00 ± 10.00 | 20.00 |"


# A study of one's own


SENSITIVITY = Study(
    name="sensitivity",
    about="Compare prune rates.",
    axes=(
        Axis(
            name="rate",
            option="rates",
            default="0.2,0.5",
            help="Prune rates, separated by commas.",
            settings=lambda rate: {"prune_rate": rate},
            parse=lambda text: parse_numbers(text, "--rates"),
            title="prune rate",
        ),
        DENSITY,
    ),
    figures=(Figure("weights", lambda cell: str(cell.rows[0]["nnz"])),),
    note="a toy",
    shared={"method": "set"},
)


def test_a_study_is_an_object_and_its_command_follows(tmp_path):
    app = typer.Typer()
    app.command(SENSITIVITY.name, help=SENSITIVITY.about)(command_of(SENSITIVITY))
    options = (
        "--rates",
        "0.2,0.3",
        "--densities",
        "0.1",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--jobs",
        "1",
        "--set",
        "batch_size=128",
    )
    done = CliRunner().invoke(app, ["digits-mlp", "--out", str(tmp_path), *options], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, "")
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {f"set-0.1-seed0-prune_rate-{rate}" for rate in (0.2, 0.3)}
    assert [row["rate"] for row in json.loads((tmp_path / "study.json").read_text())] == [0.2, 0.3]
    assert (tmp_path / "table.md").read_text().startswith("| prune rate | 10 % |")
    assert "--rates" in CliRunner().invoke(app, ["--help"]).stdout


def test_the_same_command_goes_on_with_a_study_of_ones_own(tmp_path):
    values = {"rate": [0.2], "density": [0.1]}
    run_study(SENSITIVITY, tiny(epochs=1), values, [0], tmp_path, jobs=1)
    before = (tmp_path / "study.json").read_bytes()
    run_study(SENSITIVITY, tiny(epochs=1), values, [0], tmp_path)
    assert (tmp_path / "study.json").read_bytes() == before


def test_an_empty_grid_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        run_study(SENSITIVITY, tiny(), {"rate": [], "density": [0.1]}, [0], tmp_path)


# Several presets and settings, and runs that fail


def test_presets_and_varied_settings_are_parts_of_one_study(tmp_path):
    options = ("--methods", "set", "--densities", "0.1", "--seeds", 1, "--epochs", 1, "--jobs", 1)
    vary = ("--vary", "batch_size=[128, 256]", "--set", "model_options={hidden: [16]}")
    done = command("study", "density", "digits-mlp", "--out", tmp_path, *options, *vary)
    assert (done.exit_code, done.stderr) == (0, "")
    assert {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*/result.json")} == {
        f"digits-mlp-batch_size-{size}/{run}" for size in (128, 256) for run in ("dense-seed0", "set-0.1-seed0")
    }
    text = (tmp_path / "table.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## digits-mlp, batch_size={size}" for size in (128, 256)
    ]
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["study"] == "density"
    assert plan["command"].startswith("regrow study density digits-mlp --out ")
    assert plan["command"].endswith("--vary 'batch_size=[128, 256]'")
    rows = json.loads((tmp_path / "study.json").read_text())
    assert {row["group"] for row in rows} == set(plan["parts"])
    assert all((tmp_path / row["folder"] / "result.json").exists() for row in rows)


def test_a_list_of_values_is_asked_for(tmp_path):
    refused(command("study", "density", "digits-mlp", "--out", tmp_path, "--vary", "momentum=0.5"), "as a list")
    refused(command("study", "density", "digits-mlp", "--out", tmp_path, "--vary", "preset=[a]"), "preset")


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_fails_is_reported_and_stops_no_other(tmp_path, jobs):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import regrow\n"
        "def fails(layers, dropped, total):\n"
        "    if len(dropped) and next(iter(layers.values())).numel != 4:\n"
        "        raise RuntimeError('out of luck\\nat the second line')\n"
        "    return dict(dropped)\n"
        "recipe = regrow.Recipe(drop=regrow.score.magnitude, redistribute=fails, grow=regrow.score.random,\n"
        "    fraction=regrow.schedule.constant(0.5), update_at=regrow.schedule.every(3, until=100), needs=())\n"
    )
    methods = ("--methods", f"{recipe}:recipe,set", "--densities", "0.1", "--seeds", 1)
    options = (*methods, "--epochs", 1, "--jobs", jobs, "--set", "batch_size=128")
    out = tmp_path / "study"
    done = command("study", "density", "digits-mlp", "--out", out, *options)
    assert done.exit_code == 1
    folder = "mine-recipe-0.1-seed0"
    assert f"{folder}: failed: RuntimeError: out of luck (" in done.stderr
    assert f"regrow: 1 run failed: {folder}; the same command tries again" in done.stderr
    assert "RuntimeError: out of luck" in (out / folder / "error.txt").read_text()
    assert [row["method"] for row in json.loads((out / "study.json").read_text())] == ["dense", "set"]
    assert list(json.loads((out / "plan.json").read_text())["failed"]) == [folder]
    assert "| set |" in (out / "table.md").read_text()


def test_a_diverged_run_is_reported_and_the_rest_goes_on(tmp_path):
    options = ("--methods", "set", "--densities", "0.1", "--seeds", 1, "--epochs", 1, "--jobs", 1)
    vary = ("--vary", "learning_rate=[0.05, 1.0e+30]", "--set", "batch_size=128")
    done = command("study", "density", "digits-mlp", "--out", tmp_path, *options, *vary)
    assert done.exit_code == 1
    assert done.stderr.count("no longer finite") == 2
    assert len(json.loads((tmp_path / "study.json").read_text())) == 2


def test_a_mistake_that_fails_all_runs_is_one_line(tmp_path):
    options = ("--densities", "0.1", "--seeds", 1, "--jobs", 1, "--set", "model_options={hiden: [3]}")
    result = command("study", "density", "digits-mlp", "--out", tmp_path, *options)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("regrow: model mlp takes no option hiden")


def test_a_process_that_is_killed_fails_its_run_alone(tmp_path):
    runs = {tmp_path / f"run{seed}": tiny(seed=seed, epochs=1) for seed in range(3)}
    outcomes = run_all(runs, jobs=2, make_run=Killed)
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [False, True, False]
    assert "killed" in outcomes[1].message


def test_one_run_at_a_time_is_in_memory(tmp_path):
    def make_run(config, data_root):
        assert not any(run() for run in made), "the run before is still there"
        made.append(weakref.ref(run := Run(config, data_root)))
        return run

    made = []
    runs = {tmp_path / str(seed): tiny(seed=seed, epochs=1) for seed in range(3)}
    assert not any(isinstance(outcome, Failure) for outcome in run_all(runs, jobs=1, make_run=make_run))


class Killed(Run):
    """A run that the system kills if its seed is 1."""

    def finish_epoch(self):
        if self.config.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().finish_epoch()


def test_as_many_runs_at_a_time_as_cores(monkeypatch, tmp_path):
    runs = {tmp_path / str(seed): tiny(seed=seed, device="cpu") for seed in range(3)}
    monkeypatch.setattr(runner, "_cores", lambda: 8)
    assert runner._default_jobs(runs, 3) == 3
    assert runner._default_jobs(runs, 100) == 8
    assert runner._default_jobs(runs, 0) == 1
    assert runner._default_jobs({tmp_path: tiny(device="cuda:0")}, 3) == 1
