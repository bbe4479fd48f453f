"""Checkpoints are checked on load: what is damaged or foreign is named, and the one before is taken."""

import pickle
import signal
from random import Random

import pytest
import torch
from runs import METHODS, assert_same_run, command, refused, same, stop_after, tiny

from regrow.experiments.errors import UserError
from regrow.experiments.train.checkpoint import list_checkpoints, load_checkpoint, load_latest, save_checkpoint
from regrow.experiments.train.loop import train


def state(step):
    return {"step": step, "weights": torch.arange(50.0) + step}


@pytest.fixture
def folder(tmp_path):
    for step in (5, 6, 7):
        save_checkpoint(tmp_path, step, state(step))
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(state(int(path.stem[5:]))["weights"].numpy().tobytes())] ^= 1
    path.write_bytes(content)


def foreign_text(path):
    path.write_text("not a checkpoint")


def foreign_torch_file(path):
    torch.save({"weights": torch.ones(3)}, path)


def foreign_pickle(path):
    torch.save(print, path)


def plain_pickle(path):
    path.write_bytes(pickle.dumps({"format": "regrow-checkpoint", "version": 1, "state": {}}))


def other_version(path):
    torch.save({"format": "regrow-checkpoint", "version": 99, "state": {}}, path)


def a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = pytest.mark.parametrize(
    "damage",
    [truncate, empty, flip, foreign_text, foreign_torch_file, foreign_pickle, plain_pickle, other_version, a_folder],
)


def test_two_are_kept(folder):
    assert [path.name for path in list_checkpoints(folder)] == ["step-000000006.pt", "step-000000007.pt"]
    assert sorted(folder.iterdir()) == list_checkpoints(folder)


@DAMAGES
def test_the_one_before_a_damaged_one_is_taken_with_a_warning(folder, damage):
    newest = list_checkpoints(folder)[-1]
    damage(newest)
    loaded, warnings = load_latest(folder)
    assert same(loaded, state(6))
    assert len(warnings) == 1
    assert str(newest) in warnings[0]


@DAMAGES
def test_without_a_sound_one_nothing_is_guessed(folder, damage):
    for path in list_checkpoints(folder):
        damage(path)
    with pytest.raises(UserError, match=r"no checkpoint in .* is sound; the newest: .*step-000000007\.pt.*: "):
        load_latest(folder)


def refuse_all(path, damaged):
    """Assert that every one of some contents of a checkpoint is refused in one line."""
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)


def with_flipped(whole, bit):
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("tries", [60, pytest.param(20_000, marks=pytest.mark.slow)])
def test_flipped_bits_and_missing_ends_are_noticed(folder, tries):
    path, random = list_checkpoints(folder)[-1], Random(0)
    whole = path.read_bytes()
    refuse_all(path, (with_flipped(whole, random.randrange(8 * len(whole))) for _ in range(tries)))
    refuse_all(path, (whole[: random.randrange(len(whole))] for _ in range(tries)))
    refuse_all(path, (whole + random.randbytes(1 + random.randrange(100)) for _ in range(tries)))


def test_a_flipped_bit_in_the_directory_of_the_archive_is_noticed(folder):
    """The sums that the format itself has do not cover its directory: PyTorch then loads memory as it finds it."""
    path = list_checkpoints(folder)[-1]
    whole = path.read_bytes()
    directory = range(8 * whole.index(b"PK\x01\x02"), 8 * len(whole))
    refuse_all(path, (with_flipped(whole, bit) for bit in directory))


def test_saving_after_a_fallback_keeps_two_sound_ones(folder):
    truncate(list_checkpoints(folder)[-1])
    for step in (6, 7):  # the run goes on from 5, at other times than before
        truncate(save_checkpoint(folder, step + 10, {}))
    save_checkpoint(folder, 7, state(7))
    save_checkpoint(folder, 8, state(8))
    assert [load_checkpoint(path)["step"] for path in list_checkpoints(folder)] == [7, 8]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_from_the_checkpoint_before_and_ends_the_same(small_runs, tmp_path, method):
    config = small_runs(method=method)
    train(config, tmp_path / "whole")
    stop_after(config, tmp_path / "damaged", 13, signal.SIGTERM)
    truncate(list_checkpoints(tmp_path / "damaged" / "checkpoints")[-1])
    train(config, tmp_path / "damaged", resume=True)
    assert_same_run(tmp_path / "damaged", tmp_path / "whole")


def test_the_command_line_warns_and_goes_on(tmp_path):
    stop_after(tiny(save_every_seconds=1e-9), tmp_path, 13, signal.SIGTERM)
    truncate(list_checkpoints(tmp_path / "checkpoints")[-1])
    result = command("train", "digits-mlp", "--out", tmp_path, "--resume")
    assert result.exit_code == 0
    warning, *epochs = result.stderr.splitlines()
    assert warning.startswith(f"warning: checkpoint {tmp_path}/checkpoints/step-000000013.pt is truncated")
    assert all(line.startswith("epoch ") for line in epochs)


def test_the_command_line_refuses_a_run_without_a_sound_checkpoint(tmp_path):
    stop_after(tiny(), tmp_path, 13, signal.SIGTERM)
    foreign_text(list_checkpoints(tmp_path / "checkpoints")[-1])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused(
        command("train", "digits-mlp", "--out", tmp_path, "--resume"), "no checkpoint in", "is sound", "another --out"
    )
    refused(command("train", "digits-mlp", "--out", tmp_path), "unfinished run", "--resume")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"model_options": {"hidden": [20, 10]}}, "size mismatch"),
        ({"model_options": {"hidden": [300]}}, "fc3.weight"),
        ({"method": "dense"}, "dense model"),
        ({"keep_dense": ["first"]}, "fc1.weight"),
    ],
)
def test_weights_and_masks_of_another_model_are_refused(tmp_path, other, words):
    stop_after(tiny(**other), tmp_path / "other", 3, signal.SIGTERM)
    stop_after(tiny(), tmp_path / "run", 4, signal.SIGTERM)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "own")
    (tmp_path / "other" / "checkpoints").rename(tmp_path / "run" / "checkpoints")
    result = command("train", "digits-mlp", "--out", tmp_path / "run", "--resume")
    refused(result, "does not fit this model", words, "take another --out")


def test_a_checkpoint_without_what_belongs_to_it_is_refused(tmp_path):
    stop_after(tiny(), tmp_path, 3, signal.SIGTERM)
    for state_of_something in ({}, {"model": 5}, [], 5):
        save_checkpoint(tmp_path / "checkpoints", 3, state_of_something)
        refused(command("train", "digits-mlp", "--out", tmp_path, "--resume"), "does not fit this model")
