"""`regrow train` and `regrow study` in several processes: the result of one, from the share of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import assert_same_run, final_state, metrics, same, tiny

from regrow.experiments import processes
from regrow.experiments.data import Share, load
from regrow.experiments.data.batches import Normalise, TensorBatches
from regrow.experiments.errors import RankError, StoppedError, ToldError, UserError
from regrow.experiments.study.runner import run_all
from regrow.experiments.train.loop import train

SETTINGS = {"epochs": 2, "batch_size": 130, "train_samples": 1200, "update_every": 0.5}  # the last batch has 30


def trained(rank, size, out, resume=False, **changes):
    return train(tiny(**{**SETTINGS, **changes}), Path(out), resume=resume)


def alone(out, **changes):
    return train(tiny(**{**SETTINGS, **changes}), out)


def close(left, right):
    """Tell whether nested numbers are equal to rounding, times left out."""
    if isinstance(left, dict):
        times = {name for name in left if "seconds" in name}
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left.keys() - times)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right))
    return left == pytest.approx(right, rel=2e-4) if isinstance(left, float) else left == right


@pytest.mark.parametrize(
    "changes", [{"backend": "masked"}, {"backend": "cpu", "growth": "window:3"}, {"method": "deep-r"}]
)
def test_two_processes_make_the_result_of_one(pair, tmp_path, changes):
    one = alone(tmp_path / "one", **changes)
    first, second = pair(trained, str(tmp_path / "two"), **changes)
    assert {name: first[name] for name in first if "seconds" not in name and "memory" not in name} == {
        name: second[name] for name in second if "seconds" not in name and "memory" not in name
    }
    assert json.loads((tmp_path / "two" / "result.json").read_text()) == first
    left_out = ("peak_memory_bytes",)
    assert close(
        {k: v for k, v in first.items() if k not in left_out}, {k: v for k, v in one.items() if k not in left_out}
    )
    assert close(metrics(tmp_path / "two"), metrics(tmp_path / "one"))
    masks = [
        {
            name: value
            for name, value in final_state(tmp_path / run)["model"].items()
            if name.endswith(("mask", "index"))
        }
        for run in ("one", "two")
    ]
    assert same(*masks)


def stopped(rank, size, out, step):
    """Train until the second process gets a signal after a step, then go on."""
    from runs import Stopper

    reporter = Stopper(15, lambda now: now == step)
    try:
        train(tiny(**SETTINGS, save_every_seconds=60), Path(out), reporters=(reporter,))
    except StoppedError as error:
        told = str(error)
    else:
        told = ""
    train(tiny(**SETTINGS, save_every_seconds=60), Path(out), resume=True)
    return told


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(pair, tmp_path):
    pair(trained, str(tmp_path / "whole"))
    told = pair(stopped, str(tmp_path / "stopped"), 7)
    assert all("stopped after step 7 of" in message for message in told)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def refused(rank, size, out):
    try:
        train(tiny(**SETTINGS), Path(out))
    except (UserError, ToldError) as error:
        return type(error).__name__, str(error)
    return None


def test_one_process_says_what_is_wrong_and_the_others_stop_without_a_word(pair, tmp_path):
    alone(tmp_path)
    (first, message), (second, _) = pair(refused, str(tmp_path))
    assert (first, second) == ("UserError", "ToldError")
    assert "holds a finished run" in message


def wrong_in(rank, size, where):
    def work():
        if rank in where:
            raise UserError("no such thing")
        return 1

    try:
        return processes.in_all(work)
    except (UserError, ToldError) as error:
        return type(error).__name__, str(error)


def test_a_mistake_that_one_process_meets_stops_all(pair):
    assert pair(wrong_in, ()) == [1, 1]
    assert pair(wrong_in, (0, 1)) == [("UserError", "no such thing"), ("ToldError", "no such thing")]
    assert pair(wrong_in, (1,)) == [("ToldError", "no such thing"), ("RankError", "rank 1: no such thing")]
    assert issubclass(RankError, UserError)


def studied(rank, size, out):
    folders = {Path(out) / method: tiny(**SETTINGS, method=method) for method in ("set", "static")}
    return [outcome["test_accuracy"] for outcome in run_all(folders)]


def test_a_study_trains_its_runs_one_after_the_other(pair, tmp_path):
    first, second = pair(studied, str(tmp_path / "study"))
    assert first == second
    assert (tmp_path / "study" / "set" / "result.json").exists()
    assert alone(tmp_path / "one", method="set")["test_accuracy"] == pytest.approx(first[0], abs=0.01)


def test_the_shares_of_a_batch_are_all_of_it():
    whole = load("digits", batch_size=100, valid_samples=200)
    shares = [load("digits", batch_size=100, valid_samples=200, share=Share(rank, 3)) for rank in range(3)]
    for images, labels in whole.train.epoch():
        parts = [next(share.train.epoch()) for share in shares]
        for number, (own_images, own_labels) in enumerate(parts):
            assert torch.equal(own_images, images[number::3])
            assert torch.equal(own_labels, labels[number::3])
        assert {share.train.whole for share in shares} == {len(labels)}
        break


def test_augmented_shares_are_those_of_the_augmented_batch():
    images = torch.arange(7 * 64, dtype=torch.uint8).view(7, 1, 8, 8)
    normalise = Normalise.of((0.0,), (1.0,), 255, "cpu")
    make = lambda **share: TensorBatches(  # noqa: E731
        images, torch.arange(7), normalise=normalise, batch_size=5, seed=1, border="zeros", **share
    )
    whole, shares = list(make().epoch()), [list(make(share=Share(rank, 3)).epoch()) for rank in range(3)]
    for batch, (all_images, all_labels) in enumerate(whole):
        for rank, share in enumerate(shares):
            count = Share(rank, 3).count(len(all_labels))
            assert torch.equal(share[batch][0][:count], all_images[rank::3])
            assert torch.equal(share[batch][1][:count], all_labels[rank::3])
            assert len(share[batch][1]) >= 1  # a process without a sample goes through the model with one all the same


SABOTAGE = '''
import os, signal, time
from dataclasses import replace
import regrow

def recipe(every, steps):
    """Sparse momentum; the second process of the first start ends, or hangs, after a few steps."""
    made = regrow.sparse_momentum(every=every, steps=steps)
    begun = made.update_at
    first_start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "1") == "0"

    def update_at(step):
        if first_start and os.environ["RANK"] == "1" and step >= 13:
            if os.environ["SABOTAGE"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(600)
        return begun(step)

    return replace(made, update_at=update_at)
'''


def launch(folder, out, sabotage, *settings):
    """Train in two processes that `torchrun` has started, and starts once more where they fail."""
    (folder / "sabotage.py").write_text(SABOTAGE)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    given = {"train_samples": 1200, "batch_size": 130, "update_every": 0.5, "save_every_seconds": 1e-9}
    command = ["train", "digits-mlp", "--epochs", "2", "--out", str(out), "--method", "sabotage.py:recipe"]
    command += [f"--set={name}={value}" for name, value in given.items()] + list(settings)
    environment = {**os.environ, "SABOTAGE": sabotage, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *launcher, "-m", "regrow.experiments", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def by_recipe(rank, size, folder):
    os.chdir(folder)
    return train(tiny(**SETTINGS, method="sabotage.py:recipe"), Path(folder) / "whole")


@pytest.mark.slow
def test_torchrun_starts_a_run_again_whose_process_was_killed_and_it_ends_as_if_none_had_been(pair, tmp_path):
    done = launch(tmp_path, tmp_path / "killed", "kill")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1  # the first process prints
    assert "epoch 2/2" in done.stderr
    pair(by_recipe, str(tmp_path))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up_with_a_message(tmp_path):
    done = launch(tmp_path, tmp_path / "hung", "hang", "--set=wait_seconds=5")
    assert done.returncode == 0, done.stderr
    assert "rank 0: another process of this run has ended, or has not answered for 5 s" in done.stderr
    assert done.stdout.count("test accuracy") == 1
