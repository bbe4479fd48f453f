"""`regrow bench`: checks before it times, goes on where it was, and its arithmetic is right."""

import json
import shutil
import sys
import time
from dataclasses import replace
from importlib import import_module
from math import prod
from pathlib import Path

import pytest
import torch
from runs import command, refused

import regrow
from regrow.core.units import fitting_unit
from regrow.experiments.bench.common.machine import Machine
from regrow.experiments.bench.common.spreads import Spread
from regrow.experiments.bench.layers import command as layers_command
from regrow.experiments.bench.layers import measure as measuring
from regrow.experiments.bench.layers.compare import Revision, compare
from regrow.experiments.bench.layers.contenders import (
    BFLOAT16,
    CSR,
    DENSE,
    SPARSE,
    Contender,
    NotApplicableError,
    Prepared,
    units,
)
from regrow.experiments.bench.layers.floor import Floor
from regrow.experiments.bench.layers.measure import Row, Timing, measure
from regrow.experiments.bench.layers.peers import peers
from regrow.experiments.bench.layers.problem import PASSES, Problem, Shape
from regrow.experiments.bench.layers.rates import Rates
from regrow.experiments.bench.layers.report import FILE, Report, Settings, run
from regrow.experiments.bench.layers.shapes import shapes
from regrow.experiments.bench.layers.tables import markdown, means, sentence, tables
from regrow.experiments.errors import UserError, WrongResultError

RATES = Rates(operations=1e11, bytes=1e10)
CONVOLUTION = Shape("vgg16-d", 5, 6, batch=9, kernel=3, plane=7, stride=2, padding=1)
POINTWISE = Shape("wrn-22-8", 5, 6, batch=9, kernel=1, plane=7, stride=2)
LINEAR = Shape("linear", 20, 30, batch=17)
SMALL = (CONVOLUTION, POINTWISE, LINEAR)


def measured(shape, *rivals, rounds=2, density=0.3):
    return measure(Problem(shape, density), rivals, RATES, rounds=rounds, seconds=60, clock=time.perf_counter)


def test_the_registry_holds_the_distinct_layers_of_each_network():
    assert [str(shape) for shape in shapes(["vgg16-d"])][:3] == [
        "3-64 3x3 @32/1",
        "64-64 3x3 @32/1",
        "64-128 3x3 @16/1",
    ]
    assert len(shapes(["vgg16-d"])) == 9
    assert len(shapes(["resnet50"])) == 23
    assert {str(shape) for shape in shapes(["lenet300-100"])} == {"784-300", "300-100", "100-10"}
    assert len(set(shapes())) == len(shapes())
    assert [shape.output_plane for shape in shapes(containing="wrn-22-8 128-256")] == [16, 16]


@pytest.mark.parametrize(("arguments", "word"), [((["vgg"],), "vgg16-d"), (((), "9x9"), "no layer")])
def test_the_registry_says_what_it_does_not_hold(arguments, word):
    with pytest.raises(UserError, match=word):
        shapes(*arguments)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_every_contender_agrees_with_dense_and_is_timed(shape):
    row = measured(shape, BFLOAT16, CSR)
    assert row.left_out == {}
    assert set(row.timings) == {"dense", "regrow", "bfloat16", "torch.sparse"}
    for timing in row.timings.values():
        assert timing.rounds == 2
        assert set(timing.ratio) == {*PASSES, "backward", "total"}
    assert row.timings["regrow"].ratio["total"] == Spread(1, 1, 1)


def wrong(which):
    """Return a contender whose one result is a little off."""

    def prepare(problem):
        right = SPARSE.prepare(problem)
        run = right.passes[which]
        return Prepared({**right.passes, which: lambda: (run()[0] * 1.001,)}, right.values)

    return prepare


@pytest.mark.parametrize("which", PASSES)
def test_wrong_kernels_are_not_timed(which, monkeypatch):
    monkeypatch.setattr(measuring, "SPARSE", replace(SPARSE, prepare=wrong(which)))
    with pytest.raises(WrongResultError, match=f"vgg16-d .*wrong results: {which} "):
        measured(CONVOLUTION)


@pytest.mark.parametrize("block", [(2, 1), (4, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_units_exist_whole_at_the_same_density(shape, block):
    pattern = Problem(shape, 0.3, block).pattern
    outputs, inputs = fitting_unit((shape.outputs, shape.inputs), block)
    assert pattern.unit == (outputs, inputs)
    mask = torch.zeros(prod(shape.weight_shape), dtype=torch.bool)
    mask[pattern.positions] = True
    blocks = mask.view(shape.outputs // outputs, outputs, shape.inputs // inputs, inputs, -1)
    assert torch.equal(blocks.amax((1, 3)), blocks.amin((1, 3)))
    assert abs(int(mask.sum()) - 0.3 * mask.numel()) <= outputs * inputs / 2


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_units_are_compared_with_dense_of_their_own_weight(shape):
    row = measured(shape, units((2, 1)), units((4, 1)))
    assert row.left_out == {}
    assert set(row.timings) == {"dense", "regrow", "block 2x1", "block 4x1"}
    assert row.timings["regrow"].dense == {}
    assert set(row.timings["block 4x1"].dense) == {*PASSES, "backward", "total"}
    # as many weights, and one place for a unit of them
    of_units, single = row.timings["block 2x1"].floor["forward"], row.floor["forward"]
    assert of_units.bytes < single.bytes
    assert of_units.operations == pytest.approx(single.operations, rel=0.2)


@pytest.mark.parametrize("which", PASSES)
def test_wrong_units_are_not_timed(which):
    with pytest.raises(WrongResultError, match=f"linear 20-30 at 0.3, block 2x1: wrong results: {which} "):
        measured(LINEAR, replace(units((2, 1)), prepare=wrong(which)))


def test_the_ratio_of_units_is_that_of_dense_in_the_same_round():
    seconds = {"dense": 8.0, "regrow": 4.0, "block 2x1": 1.0}
    now = 0.0

    def slow(contender):
        def prepare(problem):
            prepared = contender.prepare(problem)

            def run(name):
                def timed():
                    nonlocal now
                    now += seconds[contender.name]
                    return prepared.passes[name]()

                return timed

            return replace(prepared, passes={name: run(name) for name in prepared.passes})

        return replace(contender, prepare=prepare)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "DENSE", slow(DENSE))
        patch.setattr(measuring, "SPARSE", slow(SPARSE))
        problem = Problem(LINEAR, 0.3)
        found = measure(problem, [slow(units((2, 1)))], RATES, rounds=3, seconds=60, clock=lambda: now)
    assert found.timings["dense"].ratio["total"].median == 2
    assert found.timings["block 2x1"].ratio["total"].median == 0.25
    assert found.timings["block 2x1"].dense["total"].median == 8


def test_a_rival_that_is_wrong_fails_or_cannot_is_left_out_with_the_reason():
    def cannot(problem):
        raise NotApplicableError("it cannot")

    def fails(problem):
        raise RuntimeError("no\nmemory")

    rivals = (Contender("wrong", wrong("input")), Contender("cannot", cannot), Contender("fails", fails))
    row = measured(LINEAR, *rivals)
    assert set(row.timings) == {"dense", "regrow"}
    assert row.left_out["wrong"].startswith("wrong results: input (relative error 1.0e-03)")
    assert row.left_out["cannot"] == "it cannot"
    assert row.left_out["fails"] == "fails: no memory"


def test_a_rival_with_one_backward_pass_is_compared_by_that_and_the_total():
    def joint(problem):
        right = DENSE.prepare(problem)
        gradients = right.passes["input"], right.passes["weight"]
        passes = {"forward": right.passes["forward"], "backward": lambda: tuple(run()[0] for run in gradients)}
        return Prepared(passes, right.values)

    timing = measured(LINEAR, Contender("joint", joint)).timings["joint"]
    assert set(timing.ratio) == set(timing.milliseconds) == {"forward", "backward", "total"}


def test_dense_and_sparse_take_turns_in_alternating_order():
    order = []

    def noted(contender):
        def prepare(problem):
            prepared = contender.prepare(problem)
            passes = {
                name: (lambda name=name, run=run: order.append((contender.name, name)) or run())
                for name, run in prepared.passes.items()
            }
            return replace(prepared, passes=passes)

        return replace(contender, prepare=prepare)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "DENSE", noted(DENSE))
        patch.setattr(measuring, "SPARSE", noted(SPARSE))
        measured(LINEAR)
    first, second = order[6:12], order[12:]
    assert first == [(name, each) for each in PASSES for name in ("dense", "regrow")]
    assert second == [(name, each) for each in PASSES for name in ("regrow", "dense")]


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_operations_of_the_floor_are_those_of_inputs_that_are_no_padding(shape):
    problem = Problem(shape, 0.4)
    ones = torch.ones_like(problem.x)
    products = problem.dense(ones, (problem.weight != 0).float()).sum()
    floor = measured(shape, density=0.4).floor["forward"]
    assert floor.operations == 2 * float(products)
    assert floor.milliseconds == pytest.approx(1e3 * max(floor.operations / 1e11, floor.bytes / 1e10))


def row(shape, density, ratio):
    spread = {name: Spread(ratio, ratio, ratio) for name in (*PASSES, "backward", "total")}
    one = {name: Spread(1.0, 1.0, 1.0) for name in spread}
    floor = dict.fromkeys((*PASSES, "total"), Floor(1e6, 1e6, 0.1, "memory", 0.1))
    timings = {"dense": Timing(spread, spread, 3), "regrow": Timing(one, one, 3)}
    return Row(shape, density, 10, timings, {"other": "it cannot"}, floor)


def test_units_have_their_ratios_to_dense_in_the_tables():
    of_units = {name: Spread(6, 6, 6) for name in (*PASSES, "backward", "total")}
    made = row(LINEAR, 0.05, 2)
    timing = replace(made.timings["regrow"], dense=of_units)
    made = replace(made, timings={**made.timings, "block 4x1": timing})
    shown = {table.title: table for table in tables(report(made, rivals=(), blocks=((4, 1),)))}
    over = "forward and both gradients: geometric mean (layers)"
    assert shown[f"block 4x1 over regrow, {over}"].rows == (("linear", "1.00 (1)"),)
    assert shown[f"dense over block 4x1, {over}"].rows == (("linear", "6.00 (1)"),)
    found = shown["Density 0.05: units, dense's times over theirs"]
    ratio = "6.00 (6.00-6.00)"
    assert found.rows == (("linear 20-30 block 4x1", "2.00", "1.00", ratio, ratio, ratio, ratio),)
    # 1e6 operations and as many bytes in a millisecond, of 1e11 and 1e10 a second
    (roofline,) = (table for title, table in shown.items() if "roofline" in title)
    one = "1.00 / 1 / 1% / 10%"
    figures = ("2.00", "10", one, one, one, "1.00", "10%")
    assert roofline.rows == (("linear 20-30", *figures), ("linear 20-30 block 4x1", *figures))
    assert "dense / block 4x1 6.00" in sentence(made)


def report(*rows, **changes):
    settings = Settings(rounds=3, seconds=1.0, clock="wall", rivals=("other",))
    return Report(Machine("a processor", 2, "avx2", {}), RATES, replace(settings, **changes), {}, list(rows))


def test_geometric_means_are_of_the_wide_convolutions_and_of_each_network():
    wide = [replace(CONVOLUTION, inputs=64, outputs=64), replace(POINTWISE, inputs=64, outputs=128)]
    made = report(
        *(row(shape, 0.05, ratio) for shape, ratio in zip((*wide, CONVOLUTION, LINEAR), (2, 8, 50, 3), strict=True))
    )
    dense, other = means(made)
    assert dense.rows == (
        ("vgg16-d and wrn-22-8", f"{800 ** (1 / 3):.2f} (3)"),
        ("vgg16-d and wrn-22-8, 64 channels or more", "4.00 (2)"),
        ("vgg16-d", "10.00 (2)"),
        ("wrn-22-8", "8.00 (1)"),
        ("linear", "3.00 (1)"),
    )
    assert other.rows == ()


def test_the_page_names_machine_command_and_what_was_left_out():
    page = markdown(report(row(LINEAR, 0.05, 2)), "regrow bench layers")
    assert "`regrow bench layers`" in page
    assert "a processor, 2 threads, avx2 kernels" in page
    assert "- other was not timed on 1 of 1 rows (linear 20-30 at 0.05): it cannot." in page
    assert len(tables(report(row(LINEAR, 0.05, 2)))) == 4


class Silent:
    def __init__(self):
        self.rows = []

    def begin(self, *_):
        pass

    def end(self, row):
        self.rows.append(row)


def test_a_measurement_goes_on_where_it_was(tmp_path):
    out = tmp_path / "bench.json"
    first = report()
    run(first, [LINEAR], [0.1], [], out=out, progress=Silent())
    again = FILE.resumed(report(), out)
    assert again == first == FILE.load(out)
    progress = Silent()
    run(again, [LINEAR], [0.1, 0.2], [], out=out, progress=progress)
    assert [row.density for row in progress.rows] == [0.2]
    assert [row.density for row in FILE.load(out).rows] == [0.1, 0.2]
    with pytest.raises(UserError, match="another --out"):
        FILE.resumed(report(seconds=2.0), out)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="no measurement"):
        FILE.load(tmp_path / "other.json")


def test_the_command_measures_writes_and_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(layers_command, "measure_rates", lambda clock: RATES)
    out, page = tmp_path / "bench.json", tmp_path / "bench.md"
    options = ("--layers", "lenet300-100 100-10", "--densities", "0.1,0.5", "--rounds", 2, "--blocks", "2x1")
    done = command("bench", "layers", *options, "--out", out, "--markdown", page)
    assert done.exit_code == 0, done.output
    assert [row["density"] for row in json.loads(out.read_text())["rows"]] == [0.1, 0.5]
    assert "| lenet300-100 100-10 |" in page.read_text()
    assert "| lenet300-100 100-10 block 2x1 |" in page.read_text()
    shown = command("bench", "show", out)
    assert shown.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]


@pytest.fixture
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads_as_before")
def test_mistakes_in_the_call_are_one_line(tmp_path):
    refused(command("bench", "layers", "--densities", "0,1"), "densities must lie in (0, 1]")
    refused(command("bench", "layers", "--blocks", "four"), "--blocks four: write outputs x inputs")
    refused(command("bench", "layers", "--network", "vgg"), "no network is called vgg")
    refused(command("bench", "show", tmp_path / "none.json"), "no measurement of layers")
    refused(command("bench", "layers", "--cpu-time", "--threads", 2), "one alone")
    refused(command("bench", "compare", "HEAD", "no-such-revision", "--repository", tmp_path), "git knows no revision")


def test_libraries_that_are_not_installed_are_named(monkeypatch):
    for name in ("sparseprop.modules", "sparselab"):
        monkeypatch.setitem(sys.modules, name, None)
    found, missing = peers()
    assert found == []
    assert missing.keys() == {"sparseprop", "sparselab"}
    assert missing["sparselab"].endswith("pip install sparselab")
    assert missing["sparseprop"].endswith("pip install --no-build-isolation sparseprop")


@pytest.mark.parametrize("name", ["sparseprop", "sparselab"])
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_other_libraries_agree_with_dense(name, shape):
    pytest.importorskip(name)
    rivals = [rival for rival in peers()[0] if rival.name == name]
    # sparseprop's convolutions are wrong for a batch that is no multiple of 8.
    row = measured(replace(shape, batch=16), *rivals)
    if name == "sparselab" and shape is not LINEAR:
        assert row.left_out == {"sparselab": "it has linear layers only"}
    else:
        assert row.left_out == {}


def test_a_revision_computes_in_a_process_of_its_own(tmp_path):
    package = tmp_path / "regrow"
    shutil.copytree(Path(regrow.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    kernels = Path(import_module("regrow._kernels").__file__)
    shutil.copy(kernels, package / kernels.name)
    revision = Revision("copy", tmp_path, threads=1)
    try:
        assert all(error < 1e-4 for error in revision.prepare(CONVOLUTION, 0.3).values())
        assert revision.milliseconds("forward") > 0
    finally:
        revision.close()


@pytest.mark.slow
def test_a_revision_beside_itself_takes_the_same_time(tmp_path):
    root = Path(regrow.__file__).parents[2]
    shape = Shape("vgg16-d", 128, 128, batch=64, kernel=3, plane=8, padding=1)
    table = compare(("HEAD", "HEAD"), [shape], [0.1], rounds=9, threads=1, repository=root, say=lambda _: None)
    (_, _, *ratios), _ = table.rows
    assert 0.8 < float(ratios[-1].split()[0]) < 1.25
