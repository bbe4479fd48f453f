"""Run the MNIST studies of the paper and write docs/results/mnist.md.

    python benchmarks/mnist.py --part lenet300-100 --out runs/mnist --data DIR --seeds 5
    (likewise lenet300-100-keep, methods, lenet5, lenet5-keep)
    python benchmarks/mnist.py --part page         --out runs/mnist

Every part can be stopped and run again: finished runs stay. `page` shows the runs that are finished.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from machine import describe
from regrow.experiments.files import write_text
from regrow.experiments.study.plots import plot_errors
from regrow.experiments.study.study import Cell, Study, collect, run_study
from regrow.experiments.train.config import override
from regrow.experiments.train.presets import preset

PARTS = ("lenet300-100", "lenet300-100-keep", "methods", "lenet5", "lenet5-keep")
DENSITIES = (0.01, 0.02, 0.05, 0.1)
# The comparison gives every method the same schedule of updates and prune rates.
SAME_SCHEDULE = {"prune_rate": 0.5, "prune_rate_decay": "cosine"}
PAGE = Path(__file__).parent.parent / "docs" / "results" / "mnist.md"

# Test error in percent, mean and standard error, from the result files of the paper's own code; dense without spread.
# The last sparse column was measured at 8.3 % (LeNet-300-100) and 9.3 % (LeNet-5) of the weights.
PUBLISHED: dict[str, dict[float, tuple[float, float | None]]] = {
    "lenet300-100": {0.01: (2.36, 0.04), 0.02: (1.99, 0.02), 0.05: (1.53, 0.02), 0.1: (1.43, 0.02), 1.0: (1.34, None)},
    "lenet5": {0.01: (0.83, 0.04), 0.02: (0.76, 0.02), 0.05: (0.69, 0.02), 0.1: (0.64, 0.03), 1.0: (0.58, None)},
}
# Test error in percent by method, LeNet-300-100, from the paper's summary file (accuracies there).
PUBLISHED_METHODS = {
    ("sparse-momentum", 0.01): 2.47,
    ("sparse-momentum", 0.05): 1.47,
    ("set", 0.01): 4.20,
    ("set", 0.05): 1.86,
}


def study(part: str, seeds: int, device: str) -> Study:
    """Return the grid of one part."""
    model = "lenet5" if part.startswith("lenet5") else "lenet300-100"
    base = override(preset(f"mnist-{model}"), {"device": device})
    if part.endswith("-keep"):
        densities = (0.01, 0.02) if model == "lenet5" else (0.05,)
        return Study(override(base, {"keep_returning": True}), ("sparse-momentum",), densities, range(seeds))
    if part == "methods":
        return Study(override(base, SAME_SCHEDULE), ("set", "rigl"), (0.01, 0.05), range(seeds))
    return Study(base, ("dense", "sparse-momentum"), DENSITIES, range(seeds))


def beside_published(cells: list[Cell], published: dict[float, tuple[float, float | None]]) -> str:
    """Return a Markdown table of measured and published errors, with the distance in standard errors."""
    lines = ["| weights | measured | seeds | published | difference | in standard errors |", "|---" * 6 + "|"]
    for cell in sorted(cells, key=lambda cell: cell.density):
        value, error = published[cell.density]
        name = "dense" if cell.density == 1 else f"{100 * cell.density:g} %"
        paper = f"{value:.2f}" + (f" ± {error:.2f}" if error else "")
        difference = cell.mean - value
        combined = (cell.standard_error**2 + (error or 0) ** 2) ** 0.5
        apart = f"{difference / combined:+.1f}" if combined else ""
        lines.append(f"| {name} | {cell} | {len(cell.errors)} | {paper} | {difference:+.2f} | {apart} |")
    return "\n".join(lines)


def methods_table(cells: list[Cell]) -> str:
    """Return a Markdown table of the methods beside their published errors."""
    lines = ["| method | weights | measured | seeds | published |", "|---" * 5 + "|"]
    for cell in sorted(cells, key=lambda cell: (cell.density, -cell.mean)):
        published = PUBLISHED_METHODS.get((cell.method, cell.density))
        paper = f"{published:.2f}" if published else ""
        lines.append(f"| {cell.method} | {100 * cell.density:g} % | {cell} | {len(cell.errors)} | {paper} |")
    return "\n".join(lines)


def read(out: Path, part: str) -> list[dict[str, Any]]:
    """Return the results of the finished runs of a part."""
    return [json.loads(path.read_text()) for path in sorted((out / part).glob("*/result.json"))]


def each_run(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table of single runs, for figures that a mean would hide."""
    lines = ["| weights | seed | test error |", "|---" * 3 + "|"]
    for result in sorted(results, key=lambda result: (result["density"], result["seed"])):
        error = 100 * (1 - result["test_accuracy"])
        lines.append(f"| {100 * result['density']:g} % | {result['seed']} | {error:.2f} |")
    return "\n".join(lines)


def write_page(out: Path) -> None:
    """Write the page and its plot from the three studies."""
    lenet300, lenet300_keep, methods, lenet5, lenet5_keep = (read(out, part) for part in PARTS)
    compared = collect([*lenet300, *methods])
    plot_errors(
        {(cell.method, cell.density): cell.errors for cell in compared},
        PAGE.parent / "mnist.png",
        "LeNet-300-100 on MNIST",
    )
    template = (Path(__file__).parent / "mnist.md.in").read_text()
    page = template.format(
        lenet300=beside_published(collect(lenet300), PUBLISHED["lenet300-100"]),
        lenet5=beside_published(collect(lenet5), PUBLISHED["lenet5"]),
        methods=methods_table([cell for cell in compared if cell.density in (0.01, 0.05)]),
        lenet300_keep=collect(lenet300_keep)[0],
        lenet5_keep=each_run(lenet5_keep),
        machines=machines(
            {"LeNet-300-100": [*lenet300, *lenet300_keep], "methods": methods, "LeNet-5": [*lenet5, *lenet5_keep]}
        ),
    )
    write_text(PAGE, page)


def machines(parts: dict[str, list[dict[str, Any]]]) -> str:
    """Return a list of what each part ran on."""
    lines = []
    for part, results in parts.items():
        devices = sorted({f"{result['device']} with {result['threads']} thread(s)" for result in results})
        versions = sorted({f"torch {result['versions']['torch']}" for result in results})
        lines.append(f"- {part}: {len(results)} runs on {', '.join(devices)}, {', '.join(versions)}")
    lines.append(f"- the machine that wrote this page: {describe()}")
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments and run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "page"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    console = Console()
    if arguments.part == "page":
        write_page(arguments.out)
        return
    grid = study(arguments.part, arguments.seeds, arguments.device)
    folder = arguments.out / arguments.part
    console.print(run_study(grid, folder, data_root=arguments.data, jobs=arguments.jobs, console=console))


if __name__ == "__main__":
    main()
