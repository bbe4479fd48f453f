"""Two revisions of the kernels beside each other: each built into a folder of its own, run in turn, pass by pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Any

from regrow.experiments.bench.common.correctness import too_large
from regrow.experiments.bench.common.spreads import Spread, spread
from regrow.experiments.bench.common.tables import Table
from regrow.experiments.bench.common.turns import turns
from regrow.experiments.bench.layers import problem
from regrow.experiments.bench.layers.problem import PASSES, Shape
from regrow.experiments.errors import UserError

__all__ = ["Revision", "compare"]

_TOLERANCE = 1e-4


class Revision:
    """A process in which one revision of regrow computes layers.

    Args:
        name: the revision.
        package: folder that holds its package.
        threads: threads that it uses.
    """

    def __init__(self, name: str, package: Path, threads: int) -> None:
        self.name = name
        # Without `site` no editable installation of regrow gets in front of this one.
        installed = sysconfig.get_paths()
        paths = [str(package), installed["platlib"], installed["purelib"]]
        self._process = subprocess.Popen(
            [sys.executable, "-S", problem.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        loaded = Path(self._ask({"threads": threads})["path"])
        if not loaded.is_relative_to(package):
            self.close()
            raise RuntimeError(f"the process of {name} loaded {loaded}, not what was built in {package}")

    def prepare(self, shape: Shape, density: float) -> dict[str, float]:
        """Set up a layer; return the relative error of each pass against dense."""
        answer: dict[str, float] = self._ask({"shape": asdict(shape), "density": density})
        return answer

    def milliseconds(self, name: str) -> float:
        """Run one pass and return how long it took."""
        return float(self._ask({"pass": name}))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, object]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(f"the process of revision {self.name} ended: see its message above")
        return json.loads(answer)


def compare(
    revisions: tuple[str, str],
    shapes: Sequence[Shape],
    densities: Sequence[float],
    *,
    rounds: int,
    threads: int,
    repository: Path,
    say: Callable[[str], None],
) -> Table:
    """Time two revisions' kernels on the same layers, in turn.

    Args:
        revisions: two names that git knows; both must have the operators and the pattern.
        shapes: the layers.
        densities: shares of the weights that exist.
        rounds: how often each pass runs in each revision.
        threads: threads of each process; only one computes at a time.
        repository: a folder in the repository.
        say: takes a line on what is done.

    Returns:
        Times of the first revision over the second's: above 1 the second is faster.

    Raises:
        UserError: if a revision cannot be checked out, built or run, or its results are wrong.
    """
    commits = [_commit(repository, name) for name in revisions]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="regrow-compare-")))
        running = []
        for number, (name, commit) in enumerate(zip(revisions, commits, strict=True)):
            say(f"building {name} ({commit[:12]})")
            package = _build(repository, commit, folder / str(number))
            revision = Revision(name, package, threads)
            stack.callback(revision.close)
            running.append(revision)
        cases = [(shape, density) for density in densities for shape in shapes]
        rows = []
        for number, (shape, density) in enumerate(cases, start=1):
            say(f"{number}/{len(cases)}  {shape.network} {shape} at {density:.3g}")
            rows.append((f"{shape.network} {shape}", density, _ratios(running, shape, density, rounds)))
    return _table(revisions, rows)


def _commit(repository: Path, name: str) -> str:
    done = _git(repository, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", check=False)
    if done.returncode:
        raise UserError(f"git knows no revision {name!r} here ({repository})")
    return done.stdout.strip()


def _build(repository: Path, commit: str, folder: Path) -> Path:
    """Install a revision, without what it depends on, into a folder below `folder`."""
    package = folder / "package"
    with _worktree(repository, commit, folder / "source") as source:
        install = ("pip", "install", "--quiet", "--no-deps", "--target", str(package), str(source))
        command = [sys.executable, "-m", *install]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(f"revision {commit[:12]} cannot be built: {last}")
    return package


@contextmanager
def _worktree(repository: Path, commit: str, folder: Path) -> Iterator[Path]:
    done = _git(repository, "worktree", "add", "--detach", str(folder), commit, check=False)
    if done.returncode:
        raise UserError(f"git cannot check out {commit[:12]}: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _git(repository, "worktree", "prune")


def _git(repository: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(repository), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=check)
    except FileNotFoundError:
        raise UserError("comparing revisions needs git") from None


def _ratios(revisions: Sequence[Revision], shape: Shape, density: float, rounds: int) -> dict[str, Spread]:
    """Return the first revision's time over the second's, by pass and in total."""
    for revision in revisions:
        errors = revision.prepare(shape, density)
        wrong = too_large(errors, _TOLERANCE)
        if wrong:
            raise UserError(f"{revision.name} computes {shape.network} {shape} wrongly: {', '.join(wrong)}")
    ratios: dict[str, list[float]] = {name: [] for name in (*PASSES, "total")}
    for order in turns(("first", "second"), rounds):
        times: dict[str, dict[str, float]] = {"first": {}, "second": {}}
        for name in PASSES:
            for which in order:
                times[which][name] = revisions[which == "second"].milliseconds(name)
        first, second = times["first"], times["second"]
        for name in PASSES:
            ratios[name].append(first[name] / second[name])
        ratios["total"].append(sum(first.values()) / sum(second.values()))
    return {name: spread(each) for name, each in ratios.items()}


def _table(revisions: tuple[str, str], rows: Sequence[tuple[str, float, dict[str, Spread]]]) -> Table:
    names = (*PASSES, "total")
    means = tuple(f"{geometric_mean([ratios[name].median for _, _, ratios in rows]):.3f}" for name in names)
    cells = (
        (layer, f"{density:.3g}", *(ratios[name].text("{:.3f}".format) for name in names))
        for layer, density, ratios in rows
    )
    title = f"time of {revisions[0]} over time of {revisions[1]}: above 1 the second is faster"
    return Table(title, ("layer", "density", *names), (*cells, ("geometric mean", "", *means)))
