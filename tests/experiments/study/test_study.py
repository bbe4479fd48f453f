"""Studies: a grid of runs that goes on where it was, its table with standard errors, and its plot."""

import json
import math
import signal

import pytest
import typer
from runs import command, tiny
from typer.testing import CliRunner

from regrow.experiments.errors import UserError
from regrow.experiments.study.command import command_of
from regrow.experiments.study.methods import DENSITY, METHODS_STUDY
from regrow.experiments.study.study import Axis, Cell, Figure, Study, run_study
from regrow.experiments.terminal import parse_numbers
from regrow.experiments.train.run import Run

GRID = ("--methods", "dense,set,static", "--densities", "0.1,0.2", "--seeds", 2, "--epochs", 1)
OPTIONS = ("study", "methods", "digits-mlp", *GRID, "--set", "batch_size=128")
FOLDERS = {
    f"{cell}-seed{seed}" for cell in ("dense", "set-0.1", "set-0.2", "static-0.1", "static-0.2") for seed in (0, 1)
}
TIMES = ("seconds_train", "seconds_per_step", "peak_memory_bytes", "threads")


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
    assert lines[:2] == ["| method | 10 % | 20 % | dense |", "|---|---|---|---|"]
    errors = [100 * (1 - run["test_accuracy"]) for run in results if run["method"] == "dense"]
    assert lines[2] == f"| dense |  |  | {sum(errors) / 2:.2f} ± {abs(errors[0] - errors[1]) / 2:.2f} |"
    assert [line.split(" | ")[0] for line in lines[3:]] == ["| set", "| static"]


def test_the_plot_is_a_png(study):
    out, _ = study
    content = (out / "errors.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 5_000


def test_run_again_it_trains_nothing_anew(study, monkeypatch):
    out, result = study
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("regrow.experiments.train.run.Run.train_step", None)
    assert command(*OPTIONS, "--out", out).stdout == result.stdout
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before.get(path)} <= {out / "errors.png"}


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


def test_processes_give_the_same_results(study, tmp_path):
    result = command(*OPTIONS, "--out", tmp_path, "--jobs", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == study[1].stdout
    assert timeless(tmp_path) == timeless(study[0])
    assert (tmp_path / "table.md").read_text() == (study[0] / "table.md").read_text()


def test_a_folder_of_another_study_is_refused(study):
    out, _ = study
    with pytest.raises(UserError, match=r"has learning_rate = 0\.05, not 1\.0"):
        run_study(METHODS_STUDY, tiny(epochs=1, learning_rate=1.0), {"method": ["set"], "density": [0.1]}, [0], out)


def test_what_is_asked_for_twice_is_run_once():
    values = {"method": ["dense", "set", "dense", "set"], "density": [0.1, 0.1]}
    runs = METHODS_STUDY.runs(tiny(), values, [0, 0]).values()
    assert [(run.config.method, run.config.density) for run in runs] == [("dense", 1.0), ("set", 0.1)]


def test_two_recipes_of_one_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import regrow\nfirst = regrow.static(every=1, steps=1)\nsecond = regrow.set(every=5, steps=10)\n")
    values = {"method": [f"{file}:first", f"{file}:second"], "density": [0.1]}
    run_study(METHODS_STUDY, tiny(epochs=1), values, [0], tmp_path / "study")
    assert len(timeless(tmp_path / "study")) == 2


def test_dense_alone_can_be_plotted(tmp_path):
    run_study(METHODS_STUDY, tiny(epochs=1), {"method": ["dense"], "density": [0.1, 0.2]}, [0], tmp_path)
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("errors", "expected", "text"),
    [
        ((1.0, 2.0, 6.0), math.sqrt(14 / 2) / math.sqrt(3), "3.00 ± 1.53"),
        ((2.0, 2.0), 0.0, "2.00 ± 0.00"),
        ((2.5,), 0.0, "2.50"),
    ],
)
def test_the_standard_error_of_the_mean(errors, expected, text):
    cell = Cell(("set", 0.1), tuple({"test_accuracy": 1 - error / 100} for error in errors))
    assert cell.standard_error == pytest.approx(expected)
    assert cell.error_with(cell.standard_error) == text


def test_results_are_grouped_by_method_and_density():
    runs = [("set", 0.1, 0.9), ("set", 0.2, 0.8), ("set", 0.1, 0.7)]
    cells = METHODS_STUDY.collect([dict(zip(("method", "density", "test_accuracy"), run, strict=True)) for run in runs])
    assert [(cell.key[1], cell.errors) for cell in cells] == [
        (0.1, pytest.approx((10, 30))),
        (0.2, pytest.approx((20,))),
    ]
    assert METHODS_STUDY.markdown(cells).splitlines()[2] == "| set | 20.00 ± 10.00 | 20.00 |"


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
    options = ("--rates", "0.2,0.3", "--densities", "0.1", "--seeds", "1", "--epochs", "1", "--set", "batch_size=128")
    done = CliRunner().invoke(app, ["digits-mlp", "--out", str(tmp_path), *options], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, "")
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {f"set-0.1-seed0-prune_rate-{rate}" for rate in (0.2, 0.3)}
    assert [row["rate"] for row in json.loads((tmp_path / "study.json").read_text())] == [0.2, 0.3]
    assert (tmp_path / "table.md").read_text().startswith("| prune rate | 10 % |")
    assert "--rates" in CliRunner().invoke(app, ["--help"]).stdout


def test_the_same_command_goes_on_with_a_study_of_ones_own(tmp_path):
    values = {"rate": [0.2], "density": [0.1]}
    run_study(SENSITIVITY, tiny(epochs=1), values, [0], tmp_path)
    before = (tmp_path / "study.json").read_bytes()
    run_study(SENSITIVITY, tiny(epochs=1), values, [0], tmp_path)
    assert (tmp_path / "study.json").read_bytes() == before


def test_an_empty_grid_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        run_study(SENSITIVITY, tiny(), {"rate": [], "density": [0.1]}, [0], tmp_path)
