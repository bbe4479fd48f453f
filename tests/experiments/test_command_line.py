"""The command itself: it starts, helps, lists, is quiet when imported, and says what is not installed."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from runs import command, refused

import regrow
from regrow.experiments.main import main
from regrow.experiments.train.config import TrainConfig
from regrow.experiments.train.methods import METHODS
from regrow.experiments.train.presets import PRESETS

COMMANDS = (
    ["train"],
    ["presets"],
    ["methods"],
    ["layers"],
    ["demo"],
    ["study", "density"],
    ["study", "methods"],
    ["study", "growth"],
    ["study", "mnist"],
    ["study", "adam"],
    ["bench", "layers"],
    ["bench", "train"],
    ["bench", "overhead"],
    ["bench", "accuracy"],
    ["bench", "memory"],
    ["bench", "compare"],
    ["bench", "show"],
    ["data", "list"],
    ["data", "speed"],
)


def test_the_installed_command_runs():
    executable = Path(sys.executable).with_name("regrow")
    done = subprocess.run([executable, "train", "magic"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("regrow: there is no preset 'magic'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_package_runs_as_the_command():
    call = [sys.executable, "-m", "regrow.experiments", "train", "magic"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("regrow: there is no preset 'magic'")


def test_importing_the_command_line_prints_nothing():
    code = "import regrow.experiments.cli"
    environment = {**os.environ, "PYTHONWARNINGS": "default::DeprecationWarning:regrow"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_help_names_every_command():
    result = command("--help")
    assert result.exit_code == 0
    assert all(name[0] in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_has_help(arguments):
    result = command(*arguments, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_help_of_training_names_the_options_of_the_contract():
    text = command("train", "--help").stdout
    options = ("method", "density", "backend", "epochs", "seed", "data", "out", "resume", "set")
    assert all(f"--{option}" in text for option in options)
    assert all(name in text for name in METHODS)


def test_data_sets_are_listed_and_checked(monkeypatch, tmp_path):
    listed = command("data", "list", "--data", tmp_path)
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in ("digits", "mnist", "fashion-mnist", "cifar10", "imagenet"))
    checked = command("data", "check", "digits")
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert checked.stdout == "digits: good: 1437 training and 360 test images, part of scikit-learn\n"
    refused(command("data", "check", "magic"), "no data set is called 'magic'", "cifar10")
    refused(command("data", "fetch", "magic"), "no data set is called 'magic'", "cifar10")


@pytest.mark.parametrize("missing", ["typer", "rich", "yaml", "pydantic"])
def test_what_is_not_installed_is_named(missing, monkeypatch, capsys):
    # What is loaded anew here must not stay: neither modules nor the names that packages have for them.
    import_module("regrow.experiments.cli")
    package = sys.modules["regrow.experiments"]
    for name, child in vars(package).copy().items():
        if sys.modules.get(f"regrow.experiments.{name}") is child:
            monkeypatch.setattr(package, name, child)
    for module in [name for name in sys.modules if name.startswith("regrow.experiments.")]:
        if module != "regrow.experiments.main":
            monkeypatch.delitem(sys.modules, module)
    for module in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    needed = f"regrow: the command line needs {missing}: pip install 'regrow[experiments]'\n"
    assert capsys.readouterr() == ("", needed)


def test_a_module_of_our_own_that_is_missing_is_no_matter_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "regrow.experiments.cli", None)
    with pytest.raises(ModuleNotFoundError, match=r"regrow\.experiments\.cli"):
        main()


def test_the_version_is_told():
    result = command("--version")
    assert (result.exit_code, result.stdout) == (0, f"regrow {regrow.__version__}\n")


def test_methods_are_listed_with_what_they_do():
    text = command("methods").stdout
    assert all(name in text for name in ("dense", *METHODS))
    assert "Grow where the gradient at the update is largest." in text


def test_help_of_training_has_groups_examples_presets_and_every_setting():
    text = command("train", "--help").stdout
    assert "What is trained" in text
    assert "The run" in text
    assert "regrow train digits-mlp --method my_method.py:recipe" in text
    assert all(name in text for name in PRESETS)
    rows = {line.split()[1]: line for line in text.splitlines() if line.startswith("│ ") and len(line.split()) > 2}
    for name, field in TrainConfig.model_fields.items():
        assert field.description, name
        if name not in ("preset", "method_digest"):
            assert name in rows, name
    assert "| 0.1 " in rows["learning_rate"].replace("│", "|")


@pytest.mark.parametrize("preset", ["digits-mlp", "mnist-lenet5"])
@pytest.mark.parametrize("variable", [True, False])
def test_a_data_folder_that_is_not_there_is_an_error(preset, variable, tmp_path, monkeypatch):
    absent = tmp_path / "absent"
    if variable:
        monkeypatch.setenv("REGROW_DATA", str(absent))
    given = [] if variable else ["--data", absent]
    result = command("train", preset, "--out", tmp_path / "run", *given)
    refused(result, f"no data folder {absent}", "--data", "$REGROW_DATA")
