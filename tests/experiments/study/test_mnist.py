"""The studies on MNIST: their grids, and the page that is written from finished runs."""

import json

import pytest
from runs import command, refused

from regrow.experiments.study import mnist
from regrow.experiments.study.methods import METHODS_STUDY


@pytest.mark.parametrize(
    ("part", "count"),
    [("lenet300-100", 5), ("lenet300-100-keep", 1), ("methods", 4), ("lenet5", 5), ("lenet5-keep", 2)],
)
def test_the_grid_of_each_part(part, count):
    base, values = mnist._grid(part, "cpu")
    assert len(METHODS_STUDY.runs(base, values, [0])) == count
    assert base.keep_returning == part.endswith("-keep")


def finished(folder, method, density, seed, accuracy):
    where = folder / f"{method}-{density}-{seed}"
    where.mkdir(parents=True)
    result = {"method": method, "density": density, "seed": seed, "test_accuracy": accuracy}
    result |= {"device": "cpu", "threads": 1, "versions": {"torch": "2"}, "nnz": 1, "density_actual": density}
    result |= {"seconds_train": 1.0, "model_bytes": 1, "model_bytes_sparse": 1}
    (where / "result.json").write_text(json.dumps(result))


def test_the_page_sets_measured_beside_published(tmp_path):
    for part in mnist.PARTS:
        _, values = mnist._grid(part, "cpu")
        for seed, accuracy in ((0, 0.98), (1, 0.97)):
            for method in values["method"]:
                for density in (1.0,) if method == "dense" else values["density"]:
                    finished(tmp_path / part, method, density, seed, accuracy)
    page = tmp_path / "docs" / "mnist.md"
    done = command("study", "mnist", "--part", "page", "--out", tmp_path, "--page", page)
    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "| 1 % | 2.50 ± 0.50 | 2 | 2.36 ± 0.04 | +0.14 | +0.3 |" in text
    assert "| set | 5 % | 2.50 ± 0.50 | 2 | 1.86 |" in text
    assert "regrow study mnist --part page" in text
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_named(tmp_path):
    refused(command("study", "mnist", "--part", "page", "--out", tmp_path), "no finished run of lenet300-100")
    refused(command("study", "mnist", "--part", "lenet", "--out", tmp_path), "there is no part 'lenet'", "lenet5")
