"""The folder of a run: one process at a time, nothing of the user's touched, and no code run on its word."""

import os

import pytest
import torch
import yaml
from runs import Stopper, command, refused, stop_after, tiny

import regrow
from regrow.experiments.errors import UserError
from regrow.experiments.files import lock_folder, remove_left_overs, write_text
from regrow.experiments.train.config import override, read_config
from regrow.experiments.train.loop import train
from regrow.experiments.train.methods import run_name
from regrow.experiments.train.run import Run

RECIPE = "import regrow\n\n\ndef mine(every, steps):\n    return regrow.set(every=every, steps=steps)\n"
DATACLASS = """
from __future__ import annotations
import dataclasses
import regrow

@dataclasses.dataclass
class Rate:
    start: float = 0.3
    kind: dataclasses.InitVar[int] = 0

def mine(every, steps):
    return regrow.set(every=every, steps=steps, prune_rate=Rate().start)
"""


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_refused_while_the_first_loads_its_data(tmp_path, resume):
    def slow_to_load(config, data_root):
        with pytest.raises(UserError, match="another process is at work"):
            train(config, tmp_path, resume=resume)
        return Run(config, data_root)

    train(tiny(epochs=1), tmp_path, make_run=slow_to_load)


def test_a_finished_run_is_not_overwritten_where_its_settings_are_gone(tmp_path):
    train(tiny(epochs=1), tmp_path)
    (tmp_path / "config.yaml").unlink()
    before = contents(tmp_path)
    refused(command("train", "digits-mlp", "--out", tmp_path), "holds a finished run")
    assert contents(tmp_path) == before


def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    train(tiny(epochs=1), tmp_path)
    with pytest.raises(UserError, match="has learning_rate"):
        train(tiny(epochs=1, learning_rate=0.3), tmp_path, resume=True)


def test_a_lock_leaves_folders_that_were_there_or_hold_something(tmp_path):
    with lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "mine"]


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    (read, write), (ready, tell) = os.pipe(), os.pipe()
    with lock_folder(tmp_path):
        process = os.fork()
        if not process:
            os.close(write)
            os.write(tell, b"1")
            os.read(read, 1)  # until the parent is done
            os._exit(0)
        os.read(ready, 1)
    try:
        with lock_folder(tmp_path):
            pass
    finally:
        os.close(write)
        os.waitpid(process, 0)


def test_files_of_the_user_are_kept(tmp_path):
    names = (".notes.tmp", ".config.yaml.tmp", "checkpoints/.mine.tmp")
    (tmp_path / "checkpoints").mkdir()
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder.1.tmp").mkdir()
    (tmp_path / f".folder.regrow-{'0' * 16}.tmp").mkdir()
    train(tiny(epochs=1), tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_what_a_killed_process_left_is_deleted(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: os._exit(0))
        if not (process := os.fork()):
            write_text(tmp_path / "file", "half of it")
        os.waitpid(process, 0)
    assert len(list(tmp_path.iterdir())) == 1
    remove_left_overs(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_link_under_a_temporary_name_is_not_followed(tmp_path, monkeypatch):
    target, out = tmp_path / "target", tmp_path / "out"
    target.write_text("mine")
    out.mkdir()
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 16)
    links = [out / f".config.yaml.{os.getpid()}.tmp", out / f".config.yaml.regrow-{'0' * 16}.tmp"]
    for link in links:
        link.symlink_to(target)
    result = command("train", "digits-mlp", "--epochs", 1, "--out", out)
    assert target.read_text() == "mine"
    refused(result, "cannot write", "File exists", status=1)


@pytest.fixture
def with_recipe(tmp_path):
    """A stopped run whose recipe is in a file."""
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    stop_after(tiny(method=f"{file}:mine"), tmp_path / "run", 3, 15)
    return tmp_path / "run", file


def test_the_file_that_a_folder_names_is_not_run(with_recipe, tmp_path):
    out, _ = with_recipe
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    settings = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump({**settings, "method": f"{evil}:mine"}))
    result = command("train", "digits-mlp", "--out", out, "--resume")
    assert not (tmp_path / "ran").exists()
    refused(result, "no file runs on the word of a folder", f"--method {evil}:mine")


def test_a_run_goes_on_with_its_recipe(with_recipe):
    out, file = with_recipe
    refused(command("train", "digits-mlp", "--out", out, "--resume"), f"add --method {file}:mine")
    assert command("train", "digits-mlp", "--out", out, "--resume", "--method", f"{file}:mine").exit_code == 0


def test_a_recipe_that_changed_is_not_run(with_recipe, tmp_path):
    out, file = with_recipe
    digest = read_config(out / "config.yaml").method_digest
    before = contents(out)
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{RECIPE}")
    again = ("train", "digits-mlp", "--out", out, "--resume", "--method", f"{file}:mine")
    refused(command(*again), "not what it was when the run started", digest, "put that file back", "another --out")
    assert not (tmp_path / "ran").exists()
    assert contents(out) == before
    file.write_text(RECIPE)
    assert command(*again).exit_code == 0


def test_settings_without_the_digest_of_the_recipe_are_refused(with_recipe):
    out, file = with_recipe
    settings = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump({**settings, "method_digest": None}))
    refused(command("train", "digits-mlp", "--out", out, "--resume", "--method", f"{file}:mine"), "lack the digest of")


def test_the_message_of_a_stop_names_the_recipe(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    monkeypatch.setattr("regrow.experiments.cli.Lines", lambda _: Stopper(15, lambda step: step == 1))
    result = command("train", "digits-mlp", "--out", tmp_path / "run", "--method", f"{file}:mine")
    assert f" --method {file}:mine" in refused(result, "stopped after step 1", status=143)


def test_a_recipe_file_with_a_dataclass_and_annotations_as_strings(tmp_path):
    (tmp_path / "mine.py").write_text(DATACLASS)
    train(tiny(epochs=1, method=f"{tmp_path}/mine.py:mine"), tmp_path / "run")


def test_units(tmp_path):
    config = override(tiny(epochs=1, density=0.1, keep_dense="last"), {"block": "4x1"})
    assert run_name(config) == "sparse-momentum-4x1-0.1-seed0"
    made = []

    def keep(config, data_root):
        made.append(Run(config, data_root))
        return made[0]

    train(config, tmp_path, make_run=keep)
    assert "block: 4x1\n" in (tmp_path / "config.yaml").read_text()
    mask = regrow.masks(made[0].model)["fc1.weight"]
    units = mask.unflatten(0, (-1, 4)).sum(1)
    assert set(torch.unique(units).tolist()) == {0, 4}
