"""The guide's method: under twenty lines in a user's own file, in a run and in a study."""

import json
from pathlib import Path

import pytest
from runs import command

PAGE = Path(__file__).parents[3] / "docs" / "writing-a-method.md"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code)


@pytest.mark.parametrize("backend", ["masked", "cpu"])
def test_the_guides_method_trains_and_moves_weights_between_layers(mine, backend):
    options = ("--density", 0.05, "--epochs", 3, "--set", "batch_size=128", "--backend", backend, "--out", "run")
    result = command("train", "digits-mlp", "--method", "mine.py:recipe", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(Path("run/result.json").read_text())
    assert found["nnz"] == round(0.05 * (64 * 300 + 300 * 100 + 100 * 10))
    assert found["nonzeros_by_layer"]["fc1.weight"] != round(0.05 * 64 * 300)
    assert found["explored"] > 0.05


def test_the_guides_method_takes_part_in_a_study(mine):
    options = ("--methods", "set,mine.py:recipe", "--densities", "0.05", "--seeds", 1, "--epochs", 2)
    result = command("study", "methods", "digits-mlp", *options, "--set", "batch_size=128", "--out", "study")
    assert result.exit_code == 0, result.output
    assert "mine.py:recipe" in Path("study/table.md").read_text()
