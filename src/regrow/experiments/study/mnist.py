"""The studies on MNIST of the paper, and the page that sets their results beside the published ones.

Every part can be stopped and run again: finished runs stay. The page shows the runs that are finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from regrow.experiments.bench.common.machine import describe
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.study.methods import METHODS_STUDY
from regrow.experiments.study.plots import plot_errors
from regrow.experiments.study.study import Cell, run_study
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.presets import preset
from regrow.experiments.train.result import read_result

__all__ = ["PARTS", "run_part", "write_page"]

PARTS = ("lenet300-100", "methods", "methods-uniform", "methods-erdos-renyi", "lenet5", "lenet5-fast")
# The comparison gives every method the same schedule of updates and prune rates.
_SAME_SCHEDULE = {"prune_rate": 0.5, "prune_rate_decay": "cosine"}
_COMPARED = (0.01, 0.05)
_TEMPLATE = Path(__file__).with_name("mnist.md.in")

# Test error in percent, mean and standard error, from the result files of the paper's own code; dense without spread.
_PUBLISHED: dict[str, dict[float, tuple[float, float | None]]] = {
    "lenet300-100": {
        0.01: (2.36, 0.044),
        0.015: (2.053, 0.032),
        0.018: (1.984, 0.053),
        0.02: (1.99, 0.019),
        0.044: (1.552, 0.027),
        0.05: (1.53, 0.02),
        0.08: (1.447, 0.014),
        0.083: (1.426, 0.02),
        1.0: (1.34, None),
    },
    "lenet5": {
        0.004: (1.403, 0.088),
        0.005: (1.144, 0.024),
        0.009: (0.894, 0.033),
        0.01: (0.83, 0.04),
        0.02: (0.76, 0.022),
        0.05: (0.69, 0.021),
        0.08: (0.645, 0.019),
        0.093: (0.642, 0.03),
        1.0: (0.58, 0.01),
    },
}
# Test error in percent by method, LeNet-300-100, from the paper's summary file (accuracies there).
_PUBLISHED_METHODS = {
    ("sparse-momentum", 0.01): 2.47,
    ("sparse-momentum", 0.05): 1.47,
    ("set", 0.01): 4.20,
    ("set", 0.05): 1.86,
}
# The learning rate at which LeNet-5 trains, and that of the paper, at which it may not.
_LENET5_RATES = {"lenet5": 0.03, "lenet5-fast": 0.1}
# A network that guesses errs in 90 % of the cases, one that trains in a few.
_TRAINS_BELOW = 10.0


def run_part(
    part: str,
    seeds: int,
    out: Path,
    *,
    device: str = "auto",
    data_root: Path | None = None,
    jobs: int = 1,
    console: Console | None = None,
) -> Table:
    """Run what is missing of one part, in a folder of its name in `out`, and return its table.

    Raises:
        UserError: if there is no such part.
    """
    base, values = _grid(part, device)
    return run_study(
        METHODS_STUDY, base, values, range(seeds), out / part, data_root=data_root, jobs=jobs, console=console
    )


def _grid(part: str, device: str) -> tuple[TrainConfig, Mapping[str, Sequence[Any]]]:
    if part not in PARTS:
        raise UserError(f"there is no part {part!r}: choose among {', '.join(PARTS)}, page")
    model = "lenet5" if part.startswith("lenet5") else "lenet300-100"
    densities = tuple(density for density in _PUBLISHED[model] if density < 1)
    # The momentum of absent weights is then that of a dense network, as in the paper.
    base = override(preset(f"mnist-{model}"), {"device": device, "backend": "masked"})
    if part in _LENET5_RATES:
        base = override(base, {"learning_rate": _LENET5_RATES[part]})
    if not part.startswith("methods"):
        return base, {"method": ("dense", "sparse-momentum"), "density": densities}
    base = override(base, _SAME_SCHEDULE)
    if part == "methods":
        return base, {"method": ("set", "rigl", "static"), "density": _COMPARED}
    if part == "methods-uniform":
        return override(base, {"distribution": "uniform"}), {"method": ("set", "rigl"), "density": _COMPARED}
    others = ("static", "sparse-momentum")
    return override(base, {"distribution": "erdos-renyi"}), {"method": others, "density": _COMPARED}


def _error(cell: Cell) -> str:
    return cell.error_with(cell.standard_error)


def _beside_published(cells: list[Cell], published: dict[float, tuple[float, float | None]]) -> str:
    """Return a Markdown table of measured and published errors, with the distance in standard errors."""
    lines = ["| weights | measured | seeds | published | difference | in standard errors |", "|---" * 6 + "|"]
    for cell in sorted(cells, key=lambda cell: cell.key[1]):
        _, density = cell.key
        value, error = published[density]
        name = "dense" if density == 1 else f"{100 * density:g} %"
        paper = f"{value:.2f}" + (f" ± {error:.2f}" if error else "")
        difference = cell.mean - value
        combined = (cell.standard_error**2 + (error or 0) ** 2) ** 0.5
        apart = f"{difference / combined:+.1f}" if combined else ""
        lines.append(f"| {name} | {_error(cell)} | {len(cell.errors)} | {paper} | {difference:+.2f} | {apart} |")
    return "\n".join(lines)


def _methods_table(cells: list[Cell]) -> str:
    """Return a Markdown table of the methods beside their published errors."""
    lines = ["| method | weights | measured | seeds | published |", "|---" * 5 + "|"]
    for cell in sorted(cells, key=lambda cell: (cell.key[1], -cell.mean)):
        method, density = cell.key
        published = _PUBLISHED_METHODS.get((method, density))
        paper = f"{published:.2f}" if published else ""
        lines.append(f"| {method} | {100 * density:g} % | {_error(cell)} | {len(cell.errors)} | {paper} |")
    return "\n".join(lines)


def _read(out: Path, part: str) -> list[dict[str, Any]]:
    """Return the results of the finished runs of a part."""
    return [read_result(path) for path in sorted((out / part).glob("*/result.json"))]


def _each_run(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table of single runs, for figures that a mean would hide."""
    lines = ["| weights | seed | test error |", "|---" * 3 + "|"]
    for result in sorted(results, key=lambda result: (result["density"], result["seed"])):
        error = 100 * (1 - result["test_accuracy"])
        lines.append(f"| {100 * result['density']:g} % | {result['seed']} | {error:.2f} |")
    return "\n".join(lines)


def write_page(out: Path, page: Path) -> None:
    """Write the page, and its plot beside it, from the finished runs.

    Args:
        out: the folder that holds the folders of the parts.
        page: the Markdown file; the plot has its name with `.png`.

    Raises:
        UserError: if a part has no finished run.
    """
    parts = {part: _read(out, part) for part in PARTS}
    if missing := [part for part, results in parts.items() if not results]:
        raise UserError(f"{out} holds no finished run of {', '.join(missing)}: run each with --part first")
    lenet300, lenet300_keep, methods, lenet5, lenet5_keep = parts.values()
    collect = METHODS_STUDY.collect
    compared = collect([*lenet300, *methods])
    errors = {(cell.key[0], cell.key[1]): cell.errors for cell in compared}
    plot_errors(errors, page.with_suffix(".png"), "LeNet-300-100 on MNIST")
    text = _TEMPLATE.read_text().format(
        lenet300=_beside_published(collect(lenet300), _PUBLISHED["lenet300-100"]),
        lenet5=_beside_published(collect(lenet5), _PUBLISHED["lenet5"]),
        methods=_methods_table([cell for cell in compared if cell.key[1] in (0.01, 0.05)]),
        lenet300_keep=_error(collect(lenet300_keep)[0]),
        lenet5_keep=_each_run(lenet5_keep),
        machines=_machines(
            {"LeNet-300-100": [*lenet300, *lenet300_keep], "methods": methods, "LeNet-5": [*lenet5, *lenet5_keep]}
        ),
    )
    write_text(page, text)


def _machines(parts: dict[str, list[dict[str, Any]]]) -> str:
    """Return a list of what each part ran on."""
    lines = []
    for part, results in parts.items():
        devices = sorted({f"{result['device']} with {result['threads']} thread(s)" for result in results})
        versions = sorted({f"torch {result['versions']['torch']}" for result in results})
        lines.append(f"- {part}: {len(results)} runs on {', '.join(devices)}, {', '.join(versions)}")
    lines.append(f"- the machine that wrote this page: {describe()}")
    return "\n".join(lines)
