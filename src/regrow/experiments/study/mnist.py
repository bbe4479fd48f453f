"""The studies on MNIST of the paper, and the page that sets their results beside the published ones.

Every part can be stopped and run again: finished runs stay. The page shows the runs that are finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from regrow.experiments.bench.common.machine import describe
from regrow.experiments.errors import UserError
from regrow.experiments.files import write_text
from regrow.experiments.study.axes import DENSITY
from regrow.experiments.study.density import DENSITY_STUDY
from regrow.experiments.study.execute import Finished, run_study
from regrow.experiments.study.intervals import differences, interval
from regrow.experiments.study.plots import plot_errors
from regrow.experiments.train.config import TrainConfig, override
from regrow.experiments.train.presets import preset
from regrow.experiments.train.result import read_result

__all__ = ["PARTS", "run_part", "write_page"]

PARTS = ("lenet300-100", "methods", "methods-uniform", "methods-erdos-renyi", "lenet5", "lenet5-fast")
# The comparison gives every method the same schedule of updates and prune rates.
_SAME_SCHEDULE = {"prune_rate": 0.5, "prune_rate_decay": "cosine"}
_COMPARED = (0.01, 0.05)
Runs = dict[tuple[str, float], dict[int, float]]
"""Test error in percent of each seed, by method and density."""

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
# Where each method starts unless it is told otherwise, as this network has it: for linear layers both forms of
# Erdős-Rényi are the same.
_OWN = {"set": "erdos-renyi", "rigl": "erdos-renyi", "static": "uniform", "sparse-momentum": "uniform"}
# The learning rate at which LeNet-5 trains, and that of the paper, at which it may not.
_LENET5_RATES = {"lenet5": 0.03, "lenet5-fast": 0.1}
# A network that guesses errs in 90 % of the cases, one that trains in a few; which it is shows in the first epochs.
_TRAINS_BELOW = 10.0
_TRAINS_WITHIN = 10
_NOT_RUN = "Not run yet."


def run_part(
    part: str,
    seeds: int,
    out: Path,
    *,
    device: str = "auto",
    data_root: Path | None = None,
    jobs: int | None = None,
    console: Console | None = None,
) -> Finished:
    """Run what is missing of one part, in a folder of its name in `out`, and return its tables.

    Raises:
        UserError: if there is no such part.
    """
    base, values = _grid(part, device)
    return run_study(
        DENSITY_STUDY, base, values, range(seeds), out / part, data_root=data_root, jobs=jobs, console=console
    )


def _grid(part: str, device: str) -> tuple[TrainConfig, Mapping[str, Sequence[Any]]]:
    if part not in PARTS:
        raise UserError(f"there is no part {part!r}: choose among {', '.join(PARTS)}, page")
    model = "lenet5" if part.startswith("lenet5") else "lenet300-100"
    densities = tuple(density for density in _PUBLISHED[model] if density < 1)
    base = override(preset(f"mnist-{model}"), {"device": device})
    if part in _LENET5_RATES:
        base = override(base, {"learning_rate": _LENET5_RATES[part]})
    if part == "lenet5-fast":
        base = override(base, {"epochs": _TRAINS_WITHIN, "learning_rate_drops": []})
    if not part.startswith("methods"):
        return base, {"method": ("dense", "sparse-momentum"), "density": densities}
    base = override(base, _SAME_SCHEDULE)
    if part == "methods":
        return base, {"method": ("set", "rigl", "static"), "density": _COMPARED}
    if part == "methods-uniform":
        return override(base, {"distribution": "uniform"}), {"method": ("set", "rigl"), "density": _COMPARED}
    others = ("static", "sparse-momentum")
    return override(base, {"distribution": "erdos-renyi"}), {"method": others, "density": _COMPARED}


def _read(out: Path, part: str) -> list[dict[str, Any]]:
    """Return the results of the finished runs of a part."""
    return [read_result(path) for path in sorted((out / part).glob("*/result.json"))]


def _by_seed(results: Sequence[Mapping[str, Any]]) -> Runs:
    """Return the test error in percent of each seed, by method and density; dense has density 1."""
    runs: Runs = {}
    for result in results:
        errors = runs.setdefault((result["method"], result["density"]), {})
        errors[result["seed"]] = 100 * (1 - result["test_accuracy"])
    return runs


def _beside_published(runs: Runs, published: Mapping[float, tuple[float, float | None]]) -> str:
    """Return a Markdown table of measured and published errors, with the distance in standard errors.

    Errors are those of the seeds that train.
    """
    lines = [_row("weights", "measured", "95 % interval", "seeds", "published", "difference", "in standard errors")]
    lines.append("|---" * 7 + "|")
    for (_, density), errors in sorted(runs.items(), key=lambda item: item[0][1]):
        trained = [error for error in errors.values() if error < _TRAINS_BELOW]
        seeds = str(len(errors)) if len(trained) == len(errors) else f"{len(trained)} of {len(errors)} train"
        value, error = published[density]
        paper = f"{value:.2f}" + (f" ± {error:.2f}" if error else "")
        if not trained:
            lines.append(_row(DENSITY.heading(density), "", "", seeds, paper, "", ""))
            continue
        found = interval(trained)
        difference = found.mean - value
        combined = (found.error**2 + (error or 0) ** 2) ** 0.5 if len(trained) > 1 else 0.0
        apart = f"{difference / combined:+.1f}" if combined else ""
        measured = (found.text(), found.bounds(), seeds)
        lines.append(_row(DENSITY.heading(density), *measured, paper, f"{difference:+.2f}", apart))
    return "\n".join(lines)


def _methods_table(named: Mapping[tuple[str, str], dict[int, float]], reference: Mapping[int, float]) -> str:
    """Return a Markdown table of methods and distributions at one density, the best first.

    Args:
        named: errors of the seeds by method and distribution.
        reference: errors of what all are compared with, seed by seed.
    """
    titles = ("method", "distribution", "test error", "95 % interval", "seeds", "less sparse momentum (uniform)", "")
    lines = [_row(*titles), "|---" * len(titles) + "|"]
    for (method, distribution), errors in sorted(named.items(), key=lambda item: interval(list(item[1].values())).mean):
        found, apart = interval(list(errors.values())), differences(errors, reference)
        beside = "" if apart is None or errors == reference else apart.text(spread=apart.half, sign="+")
        verdict = _verdict(errors, reference)
        lines.append(_row(method, distribution, found.text(), found.bounds(), str(len(errors)), beside, verdict))
    return "\n".join(lines)


def _verdict(errors: Mapping[int, float], reference: Mapping[int, float]) -> str:
    """Return what the differences of the seeds say; nothing of what is the reference or shares no seed with it."""
    apart = differences(errors, reference)
    if apart is None or errors == reference:
        return ""
    return "not told apart" if apart.holds_zero else ("behind" if apart.mean > 0 else "ahead")


def _in_words(named: Mapping[tuple[str, str], dict[int, float]], reference: Mapping[int, float]) -> str:
    """Return in a sentence what leads among the methods with their own distribution, and what does not."""
    said: dict[str, list[str]] = {"ahead": [], "not told apart": [], "behind": []}
    for (method, distribution), errors in named.items():
        verdict = _verdict(errors, reference)
        if verdict and distribution == _OWN[method]:
            said[verdict].append(method)
    parts = [f"{verdict}: {', '.join(methods) or 'none'}" for verdict, methods in said.items()]
    return f"Beside sparse momentum, each method with its own distribution: {'; '.join(parts)}."


def _sharing(runs: Runs) -> str:
    """Return a Markdown table of how many seeds train at all."""
    lines = [_row("weights", "seeds that train", "test error of these"), "|---" * 3 + "|"]
    for (_, density), errors in sorted(runs.items(), key=lambda item: item[0][1]):
        trained = [error for error in errors.values() if error < _TRAINS_BELOW]
        shown = interval(trained).text() if trained else ""
        lines.append(_row(DENSITY.heading(density), f"{len(trained)} of {len(errors)}", shown))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def write_page(out: Path, page: Path) -> None:
    """Write the page, and its plot beside it, from the finished runs.

    Args:
        out: the folder that holds the folders of the parts.
        page: the Markdown file; the plot has its name with `.png`.

    Raises:
        UserError: if a part has no finished run; those of LeNet-5 may be missing.
    """
    results = {part: _read(out, part) for part in PARTS}
    if missing := [part for part, found in results.items() if not found and part not in _LENET5_RATES]:
        raise UserError(f"{out} holds no finished run of {', '.join(missing)}: run each with --part first")
    runs = {part: _by_seed(found) for part, found in results.items()}
    lenet300 = runs["lenet300-100"]
    compared = {density: _compared(runs, density) for density in _COMPARED}
    plotted = {key: tuple(errors.values()) for key, errors in lenet300.items()}
    for density, named in compared.items():
        for (method, distribution), errors in named.items():
            if method != "sparse-momentum" and distribution == _OWN[method]:
                plotted[method, density] = tuple(errors.values())
    plot_errors(plotted, page.with_suffix(".png"), "LeNet-300-100 on MNIST, each method with its own distribution")
    text = _TEMPLATE.read_text().format(
        lenet300=_beside_published(lenet300, _PUBLISHED["lenet300-100"]),
        lenet5=_beside_published(runs["lenet5"], _PUBLISHED["lenet5"]) if runs["lenet5"] else _NOT_RUN,
        lenet5_fast=_sharing(runs["lenet5-fast"]) if runs["lenet5-fast"] else _NOT_RUN,
        methods="\n\n".join(
            f"At {100 * density:g} %. {_in_words(named, reference)}\n\n{_methods_table(named, reference)}"
            for density, named in compared.items()
            for reference in (named["sparse-momentum", "uniform"],)
        ),
        machines=_machines(results),
    )
    write_text(page, text)


def _compared(runs: Mapping[str, Runs], density: float) -> dict[tuple[str, str], dict[int, float]]:
    """Return the errors at a density by method and distribution."""
    named = {("sparse-momentum", "uniform"): runs["lenet300-100"]["sparse-momentum", density]}
    for part in ("methods", "methods-uniform", "methods-erdos-renyi"):
        for (method, its), errors in runs[part].items():
            if its == density:
                named[method, _OWN[method] if part == "methods" else part.partition("-")[2]] = errors
    return named


def _machines(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a list of what each part ran on."""
    lines = []
    for part, results in parts.items():
        if not results:
            continue
        devices = sorted({f"{result['device']} with {result['threads']} thread(s)" for result in results})
        versions = sorted({f"torch {result['versions']['torch']}" for result in results})
        lines.append(f"- {part}: {len(results)} runs on {', '.join(devices)}, {', '.join(versions)}")
    lines.append(f"- the machine that wrote this page: {describe()}")
    return "\n".join(lines)
