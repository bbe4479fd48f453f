"""A disk that fills up while a file is written: one line, status 1, and all that was there is as it was."""

import errno
import os
import resource
import shutil
import signal
import subprocess
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from runs import assert_same_run, child, command, refused, same, stop_after, tiny

from regrow.experiments.errors import SaveError
from regrow.experiments.files import write_atomically
from regrow.experiments.train.checkpoint import list_checkpoints, load_latest
from regrow.experiments.train.loop import train

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def files(folder):
    """Return the contents of every file in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def stopped(tmp_path):
    """A run with two checkpoints, and the same run that was never stopped."""
    config = tiny(save_every_seconds=1e-9)
    train(config, tmp_path / "whole")
    stop_after(config, tmp_path / "run", 7, signal.SIGTERM)
    return tmp_path / "run", tmp_path / "whole"


def assert_unharmed(run, before, whole):
    """Assert that the files of a failed run are those from before, and that it can still be finished."""
    names = {path for path in before if path.parent.name == "checkpoints"}
    assert {path: content for path, content in files(run).items() if path in names} == {
        path: before[path] for path in names
    }
    assert not list(run.rglob(".*"))
    assert same(load_latest(run / "checkpoints")[0]["step"], 7)
    assert command("train", "digits-mlp", "--out", run, "--resume").exit_code == 0
    assert_same_run(run, whole)


def fail(*arguments):
    raise NO_SPACE


def fail_as_torch_does(content, file):
    file.write(b"half of it")
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0: ...")


@pytest.mark.parametrize(
    ("where", "what", "how"), [(os, "fsync", fail), (Path, "replace", fail), (torch, "save", fail_as_torch_does)]
)
def test_a_failure_at_any_point_of_saving(stopped, where, what, how):
    run, whole = stopped
    before = files(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, what, how)
        result = command("train", "digits-mlp", "--out", run, "--resume")
    refused(result, f"cannot write {run}/", status=1)
    assert_unharmed(run, before, whole)


def test_a_file_size_limit(stopped):
    run, whole = stopped
    before = files(run)
    receiver, sender = Pipe(duplex=False)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # a checkpoint takes 480 kB
        result = command("train", "digits-mlp", "--out", run, "--resume")
        sender.send((result.exit_code, result.stdout, result.stderr))

    process = child(limited)
    sender.close()
    status, output, message = receiver.recv()
    process.join()
    assert (status, output) == (1, "")
    assert message == f"regrow: cannot write {run}/checkpoints/step-000000008.pt: File too large\n"
    assert_unharmed(run, before, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.2 MB: two checkpoints fit, a third does not."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(small_disk, tmp_path):
    config = ("--epochs", 2, "--backend", "masked", "--set", "batch_size=128", "--set", "save_every_seconds=1e-9")
    result = command("train", "digits-mlp", "--out", small_disk / "run", *config)
    assert "No space left" in refused(result, f"cannot write {small_disk}/run/checkpoints/", status=1)
    assert len(list_checkpoints(small_disk / "run" / "checkpoints")) == 2
    shutil.copytree(small_disk / "run", tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".*"))
    assert command("train", "digits-mlp", "--out", tmp_path / "run", "--resume").exit_code == 0
    train(tiny(save_every_seconds=1e-9, backend="masked"), tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_an_older_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new")
        raise NO_SPACE

    with pytest.raises(SaveError, match=f"cannot write {path}: No space left on device"):
        write_atomically(path, write)
    assert files(tmp_path) == {path: b"old"}
    write_atomically(path, lambda file: file.write(b"new"))
    assert files(tmp_path) == {path: b"new"}
