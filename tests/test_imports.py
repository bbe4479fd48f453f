"""Imports point down: the core knows nothing of storage, the library nothing of experiments, and it never prints."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import regrow
from cases import METHODS, Run, model, optimization

ROOT = Path(regrow.__file__).parent
MODULES = {
    ".".join(("regrow", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
LIBRARY = [name for name in MODULES if not name.startswith("regrow.experiments")]
FACADES = ("distribution", "growth", "redistribute", "schedule", "score")  # public names of the core
ORDER = (
    *("core", *FACADES, "methods", "ops", "nn", "storage", "convert", "saliency", "processes", "topology"),
    *("files", "compat", "integrations"),
)
CORE_MODULES = [name for name in LIBRARY if name.startswith("regrow.core")]
FRAMEWORKS = ("accelerate", "lightning", "pytorch_lightning", "transformers")  # each of its file in integrations alone
NOT_OF_THE_LIBRARY = ("argparse", "typer", "click", "rich", "matplotlib", "pydantic", "yaml", "sklearn", "wandb")


def imports(name):
    """Return the modules that a module's source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import: this check reads absolute ones"
            # `from package import module` names the module; `from module import name` gives the module itself
            deeper = (f"{node.module}.{alias.name}" for alias in node.names)
            found.update(full if full in MODULES else node.module for full in deeper)
    return found


def test_the_core_is_where_this_check_looks_for_it():
    assert {"regrow.core.entries", "regrow.core.recipe"} <= set(CORE_MODULES)


@pytest.mark.parametrize("name", CORE_MODULES)
def test_the_core_imports_the_core_alone(name):
    ours = {module for module in imports(name) if module.split(".")[0] == "regrow"}
    assert ours <= set(CORE_MODULES)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_imports_nothing_of_experiments_or_of_command_lines(name):
    assert not {module for module in imports(name) if module.startswith("regrow.experiments")}
    assert not {module.split(".")[0] for module in imports(name)} & set(NOT_OF_THE_LIBRARY)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_has_no_call_that_prints(name):
    if name == "regrow.compat.masking":
        pytest.skip("its print_nonzero_counts is there to print")
    calls = [node.func for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call, ast.Name) and call.id in ("print", "input")]
    assert "sys" not in imports(name)


@pytest.mark.parametrize("name", [name for name in LIBRARY if name != "regrow"])
def test_imports_run_one_way(name):
    place = ORDER.index(name.split(".")[1])
    ours = {module.split(".")[1] for module in imports(name) if module.startswith("regrow.")}
    assert {package for package in ours if ORDER.index(package) > place} == set()


def test_importing_regrow_loads_neither_experiments_nor_what_only_they_need():
    code = "import json, sys, torch; before = sorted(sys.modules); import regrow; "
    code += "print(json.dumps([before, sorted(sys.modules)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with_torch, with_regrow = map(set, json.loads(done.stdout))
    added = {name.split(".")[0] for name in with_regrow - with_torch}
    assert not {name for name in with_regrow if name.startswith("regrow.experiments")}
    assert not added & {*NOT_OF_THE_LIBRARY, *FRAMEWORKS, "safetensors", "onnx", "onnxscript"}


@pytest.mark.parametrize("name", [name for name in LIBRARY if not name.startswith("regrow.integrations.")])
def test_frameworks_are_imported_by_integrations_alone(name):
    assert not {module.split(".")[0] for module in imports(name)} & set(FRAMEWORKS)


def test_a_training_prints_nothing(capfd):
    for row in METHODS:
        run = Run(model("mlp"), row.recipe(), optimization("sgd-nesterov")).train(range(4))
        regrow.summary(run.model, model("mlp").inputs(0))
        run.topology.remove()
        regrow.densify(run.model)
    assert capfd.readouterr() == ("", "")
