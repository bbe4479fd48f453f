"""What CONTRIBUTING says of additions is true: each is made as it says, in a copy of the package, and runs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

import regrow
from regrow.ops import native

HERE = Path(__file__).parent

# A process that has loaded what takes long, and runs each addition in a copy of itself: no toy sees another.
SERVER = """
import json, os, sys, traceback
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

# An editable installation has a finder of its own, which would find regrow outside of the copy.
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]

import sklearn.datasets
import torch._dynamo  # the first optimizer loads it

assert not any(name.partition(".")[0] == "regrow" for name in sys.modules)
for request in sys.stdin:
    folder, code = json.loads(request)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(os.open("shown", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.path[:0] = [os.path.join(folder, "src"), os.path.join(folder, "tests")]
        status = 0
        try:
            exec(compile(code, "toy", "exec"), {"__name__": "toy"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

START = """
from pathlib import Path

import regrow

assert Path(regrow.__file__).is_relative_to(Path.cwd()), regrow.__file__


def command(*arguments):
    from regrow.experiments.cli import app

    app([str(argument) for argument in arguments], standalone_mode=False)

"""


@dataclass(frozen=True)
class Edit:
    """What a person does to one file of the repository: writes it, or inserts text after what stands there once."""

    file: str
    text: str
    after: str | None = None


class Copy:
    """A copy of what an addition touches, and of what runs it."""

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self.folder, self._server = folder, server
        package = folder / "src" / "regrow"
        shutil.copytree(Path(regrow.__file__).parent, package, ignore=shutil.ignore_patterns("csrc", "*.so", "*.pyd"))
        if native._kernels is not None:
            shutil.copy(native._kernels.__file__, package)
        (folder / "tests").mkdir()
        shutil.copy(HERE / "cases.py", folder / "tests")
        shutil.copytree(HERE / "reference", folder / "tests" / "reference")

    def add(self, *edits: Edit) -> int:
        """Carry out edits; return how many files they touch."""
        for edit in edits:
            path = self.folder / edit.file
            if edit.after is None:
                assert not path.exists(), f"{edit.file} is there already"
                path.parent.mkdir(exist_ok=True)
                path.write_text(dedent(edit.text).lstrip("\n"))
            else:
                before = path.read_text()
                assert before.count(edit.after) == 1, f"{edit.after!r} must stand once in {edit.file}"
                path.write_text(before.replace(edit.after, edit.after + edit.text))
        return len({edit.file for edit in edits})

    def run(self, code: str) -> str:
        """Run code in a process that imports the copy; return what it prints."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([str(self.folder), START + dedent(code)]) + "\n")
        self._server.stdin.flush()
        status = self._server.stdout.readline()
        shown = (self.folder / "shown").read_text()
        assert status == "0\n", shown
        return shown


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    program, pipe = [sys.executable, "-c", SERVER], subprocess.PIPE
    with subprocess.Popen(program, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield process


@pytest.fixture
def copy(tmp_path: Path, server: subprocess.Popen[str]) -> Copy:
    return Copy(tmp_path, server)


SHUFFLE = '''
"""Drop at random, grow at random."""

from regrow.core import redistribute, schedule, score
from regrow.core.recipe import Recipe


def shuffle(every: int, steps: int, *, prune_rate: float = 0.3) -> Recipe:
    """Move random weights to random positions."""
    return Recipe(
        drop=score.random,
        redistribute=redistribute.keep,
        grow=score.random,
        fraction=schedule.constant(prune_rate),
        update_at=schedule.every(every, until=steps),
        reset_state=True,
    )
'''


def test_a_method_takes_three_files(copy):
    register = "src/regrow/methods/__init__.py"
    files = copy.add(
        Edit("src/regrow/methods/shuffle.py", SHUFFLE),
        Edit(register, "from regrow.methods.shuffle import shuffle\n", after="from regrow.methods.set import set\n"),
        Edit(register, '"shuffle", ', after="__all__ = ["),
        Edit(register, '    "shuffle": shuffle,\n', after="METHODS: Mapping[str, Callable[..., Recipe]] = {\n"),
        Edit("tests/cases.py", '    Method("shuffle", resets_state=True, due=(2, 4, 6)),\n', after="METHODS = [\n"),
    )
    assert files == 3
    shown = copy.run(
        """
        import cases

        row = cases.method("shuffle")
        assert row.factory is regrow.shuffle and "shuffle" in regrow.__all__
        for storage in cases.STORAGES:
            run = cases.Run(cases.model("mlp"), row.recipe(), cases.optimization("sgd"), storage=storage)
            before = regrow.masks(run.model)
            run.train(range(3))  # the third step carries out what is due after the second
            after = regrow.masks(run.model)
            assert {name: int(mask.sum()) for name, mask in after.items()} == {
                name: int(mask.sum()) for name, mask in before.items()
            }
            assert any((mask != before[name]).any() for name, mask in after.items())
        command("train", "--help")
        command("train", "digits-mlp", "--method", "shuffle", "--epochs", 1, "--out", "run")
        """
    )
    assert "shuffle" in shown.partition("test accuracy")[0]
    assert (copy.folder / "run" / "result.json").exists()


GATHERING = '''
"""Linear layer with a sparse weight in float64, which takes of each input what the weight reads."""

from torch import Tensor

from regrow.ops.pattern import Pattern

calls = 0


def linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """Multiply float64 tensors on the CPU; arguments as for `regrow.ops.sparse_linear`."""
    global calls
    calls += 1
    rows, columns = pattern.positions // pattern.shape[1], pattern.positions % pattern.shape[1]
    output = x.new_zeros(*x.shape[:-1], pattern.shape[0]).index_add(-1, rows, x[..., columns] * values)
    return output if bias is None else output + bias
'''

REFUSAL = '''
def _gathering(operation: str, device: str, types: _Types, unit: tuple[int, int]) -> str | None:
    """Say why the gathering backend does not serve."""
    if operation != "linear" or device != "cpu" or types[1] is not torch.float64:
        return f"gathering serves linear layers in float64 on the CPU, not {operation} in {types[1]} on {device}"
    return None

'''


def test_a_backend_takes_a_file_for_each_operation_and_one_more(copy):
    select = "src/regrow/ops/select.py"
    files = copy.add(
        Edit("src/regrow/ops/linear/gathering.py", GATHERING),
        Edit(select, REFUSAL, after='        return f"no kernels for {activations} on {device}"\n    return None\n\n'),
        Edit(select, '    "gathering": _gathering,\n', after='    "cpu": _cpu,\n'),
    )
    assert files == 2
    copy.run(
        """
        import cases
        import torch
        from regrow.ops import sparse_conv2d
        from regrow.ops.linear import gathering
        from regrow.ops.pattern import Pattern

        def sparse(dtype):
            torch.manual_seed(0)
            dense = torch.nn.Linear(7, 5).to(dtype)
            return regrow.sparsify(torch.nn.Sequential(dense), 0.4, backend="cpu")

        layer = sparse(torch.float64)[0]
        assert isinstance(layer, regrow.SparseLinear)
        weight = layer.dense_weight().detach().requires_grad_()
        x, again = (torch.ones(2, 3, 7, dtype=torch.float64).cumsum(-1).requires_grad_() for _ in range(2))
        output, expected = layer(x), torch.nn.functional.linear(again, weight, layer.bias)
        output.square().sum().backward()
        bias_gradient = layer.bias.grad.clone()
        layer.bias.grad = None
        expected.square().sum().backward()
        assert gathering.calls == 1
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(x.grad, again.grad)
        torch.testing.assert_close(layer.values.grad, weight.grad.flatten()[layer.pattern.positions.long()])
        torch.testing.assert_close(bias_gradient, layer.bias.grad)

        # others are served by whom they were
        sparse(torch.float32)(torch.ones(2, 7))
        pattern = Pattern((2, 2, 1, 1), torch.tensor([1]))
        image = torch.ones(1, 2, 3, 3, dtype=torch.float64)
        sparse_conv2d(image, torch.ones(1, dtype=torch.float64), None, pattern)
        assert gathering.calls == 1

        # a whole training
        def trained(storage):
            double = lambda module: module.double()
            recipe = cases.method("sparse-momentum").recipe()
            mlp, optimization = cases.model("mlp"), cases.optimization("sgd-nesterov")
            return cases.Run(mlp, recipe, optimization, storage=storage, prepare=double).train(range(5)).model

        masked, stored = trained("masked"), trained("cpu")
        assert gathering.calls > 5
        cases.assert_same(regrow.masks(stored), regrow.masks(masked))
        torch.testing.assert_close(cases.weights(stored), cases.weights(masked))
        """
    )


STRIPES = """    Dataset(
        name="stripes",
        description="400 + 80 images of stripes, 8x8, one channel, two classes",
        channels=1,
        samples=400,
        image_size=8,
        mean=(0.5,),
        std=(0.5,),
        layouts=("arrays",),
        classes=2,
    ),
"""

ARRAYS = """_ARRAYS = ("train.npz", "test.npz")

"""

INVENTORY = """    if layout == "arrays":
        there = [name for name in _ARRAYS if (folder / name).is_file()]
        return there, [name for name in _ARRAYS if name not in there]
"""

READING = """    if layout == "arrays":
        train, test = (np.load(folder / name) for name in _ARRAYS)
        return (train["images"], train["labels"]), (test["images"], test["labels"])
"""


def test_a_data_set_takes_one_file_and_a_layout_one_more(copy):
    layouts = "src/regrow/experiments/data/layouts.py"
    entry = Edit("src/regrow/experiments/data/registry.py", STRIPES, after="_ALL = (\n")
    format_ = (
        Edit(layouts, ARRAYS, after='Images (N, C, H, W) and labels (N,)."""\n\n'),
        Edit(layouts, INVENTORY, after='What of a layout is there, and what is missing."""\n'),
        Edit(layouts, READING, after='    if layout == "scikit-learn":\n        return _digits(folder)\n'),
    )
    assert (copy.add(entry), copy.add(*format_)) == (1, 1)
    shown = copy.run(
        """
        import numpy as np

        folder = Path("data", "stripes")
        folder.mkdir(parents=True)
        for name, count in (("train", 400), ("test", 80)):
            labels = np.arange(count) % 2
            images = np.random.default_rng(count).integers(0, 128, (count, 1, 8, 8), np.uint8)
            images[labels == 1, :, ::2] += 127
            np.savez(folder / f"{name}.npz", images=images, labels=labels)
        command("data", "list", "--data", "data")
        command("data", "check", "stripes", "--data", "data")
        settings = ("--set", "data=stripes", "--set", "valid_samples=80")
        command("train", "digits-mlp", *settings, "--epochs", 1, "--data", "data", "--out", "run")
        """
    )
    listed = next(line for line in shown.splitlines() if "stripes" in line)
    assert "400 + 80 images" in listed
    assert "data/stripes" in listed
    assert "stripes: good: 400 training and 80 test images" in shown
    assert (copy.folder / "run" / "result.json").exists()


PRESET = """_DIGITS_LONG = _DIGITS_MLP.model_copy(update={"preset": "digits-long", "epochs": 90})

"""


def test_a_preset_takes_one_file(copy):
    presets = "src/regrow/experiments/train/presets.py"
    files = copy.add(
        Edit(presets, PRESET, after="    learning_rate_drops=(0.5, 0.8),\n)\n\n"),
        Edit(presets, "        _DIGITS_LONG,\n", after="        _DIGITS_MLP,\n"),
    )
    assert files == 1
    shown = copy.run(
        """
        command("presets")
        command("train", "digits-long", "--epochs", 1, "--out", "run")
        """
    )
    assert "digits-long" in shown.partition("test accuracy")[0]
    assert (copy.folder / "run" / "result.json").exists()


BENCH = '''
"""`regrow bench copies`."""

import torch

from regrow.experiments.bench.common import options
from regrow.experiments.bench.common.spreads import ratios
from regrow.experiments.bench.common.tables import Table, show
from regrow.experiments.bench.common.turns import take_turns
from regrow.experiments.terminal import one_line_errors

__all__ = ["bench_copies"]


def bench_copies(rounds: options.Rounds = 15, seconds: options.Seconds = 10) -> None:
    """Time a sum beside a copy."""
    with one_line_errors():
        x = torch.ones(1000)
        times = take_turns({"copy": x.clone, "sum": x.sum}, rounds, seconds)
        row = ("sum", ratios(times["sum"], times["copy"]).text())
        show([Table("sum beside copy", ("what", "times as long"), (row,))])
'''


def test_a_bench_takes_three_files(copy):
    commands, folder = "src/regrow/experiments/bench/command.py", "src/regrow/experiments/bench/copies"
    files = copy.add(
        Edit(f"{folder}/__init__.py", '"""What a sum costs beside a copy."""\n'),
        Edit(f"{folder}/command.py", BENCH),
        Edit(
            commands,
            "from regrow.experiments.bench.copies.command import bench_copies\n",
            after="from regrow.experiments.bench.common import options\n",
        ),
        Edit(commands, 'bench_app.command("copies")(bench_copies)\n', after='bench_app.command("show")(show)\n'),
    )
    assert files == 3
    shown = copy.run(
        """
        command("bench", "--help")
        command("bench", "copies", "--rounds", 3)
        """
    )
    help_, _, table = shown.partition("sum beside copy")
    assert "copies" in help_
    assert "times as long" in table


STUDY = '''
"""The study of batch sizes."""

from regrow.experiments.options import split_names
from regrow.experiments.study.study import Axis, Figure, Study

__all__ = ["BATCH_STUDY"]

BATCH_STUDY = Study(
    name="batch",
    about="Compare sizes of the batch.",
    axes=(
        Axis(
            name="batch",
            option="batches",
            default="32,64",
            help="Samples of a batch, separated by commas.",
            settings=lambda batch: {"batch_size": batch},
            parse=lambda text: tuple(map(int, split_names(text))),
            title="batch",
        ),
    ),
    figures=(Figure("test error", lambda cell: cell.error.text(), unit="%"),),
    note="mean ± standard error",
)
'''


@pytest.mark.slow
def test_a_study_takes_two_files(copy):
    commands = "src/regrow/experiments/study/command.py"
    files = copy.add(
        Edit("src/regrow/experiments/study/batch.py", STUDY),
        Edit(
            commands,
            "from regrow.experiments.study.batch import BATCH_STUDY\n",
            after="from regrow.experiments.study.adam import AdamSettings, run_adam_study\n",
        ),
        Edit(commands, "BATCH_STUDY, ", after="STUDIES = ("),
    )
    assert files == 2
    shown = copy.run(
        """
        command("study", "--help")
        command("study", "batch", "digits-mlp", "--batches", "64,128", "--seeds", 1, "--epochs", 1, "--out", "study")
        """
    )
    assert "Compare sizes of the batch." in shown
    assert "64" in (copy.folder / "study" / "table.md").read_text()
    assert len(list((copy.folder / "study").glob("*/result.json"))) == 2


def test_contributing_names_every_addition():
    text = (HERE.parent / "CONTRIBUTING.md").read_text()
    assert [name for name in globals() if name.startswith("test_a_") and name not in text] == []
