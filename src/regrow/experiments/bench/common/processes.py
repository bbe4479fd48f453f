"""Measurements in processes of their own, which hold nothing of what was measured before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["ProcessError", "answer", "in_process"]

_LONGEST_REASON = 160


class ProcessError(Exception):
    """The process gave no figures; the message says why."""


def in_process(module: str, given: Mapping[str, object], *, seconds: float | None = None) -> Any:
    """Run a module in a fresh process and return its answer.

    Args:
        module: name of a module that calls `answer` when it is run.
        given: keywords of its measurement, plain data.
        seconds: how long it may take; None sets no bound.

    Raises:
        ProcessError: if it fails or takes longer.
    """
    command = [sys.executable, "-m", module, json.dumps(given)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ProcessError(f"was not measured within {seconds:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"]
        raise ProcessError(f"could not be measured: {lines[-1][:_LONGEST_REASON]}")
    return json.loads(done.stdout.splitlines()[-1])


def answer(measure: Callable[..., object]) -> None:
    """Measure with the keywords that `in_process` gave this process, and hand back the figures.

    Args:
        measure: returns plain data.
    """
    sys.stdout.write(json.dumps(measure(**json.loads(sys.argv[1]))) + "\n")
