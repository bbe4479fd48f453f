"""A standard output that is closed, full or gone: one line, and what was trained is there."""

import json
import os
import subprocess
import sys

import pytest


def run_command(arguments, redirection):
    """Run the command line in a shell with its output sent somewhere; return status and what it said."""
    script = f'exec "$0" -m regrow.experiments "$@" {redirection}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">/dev/full", "No space left on device"), pytest.param(">&-", "", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("arguments", [["presets"], pytest.param(["--help"], marks=pytest.mark.slow)])
def test_an_output_that_takes_nothing(arguments, redirection, reason):
    status, said = run_command(arguments, redirection)
    assert status == 1, said
    assert said.startswith("regrow: cannot write to the standard output: " + reason), said
    assert said.count("\n") == 1


def test_a_run_is_finished_all_the_same(tmp_path):
    status, said = run_command(["train", "digits-mlp", "--epochs", 1, "--out", tmp_path / "run"], ">/dev/full")
    *progress, last = said.splitlines()
    assert (status, last.startswith("regrow: cannot write to the standard output: ")) == (1, True)
    assert not any(line.startswith("regrow: ") or "Traceback" in line for line in progress)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 1


def test_a_reader_that_leaves():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "regrow.experiments", "presets"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 1
