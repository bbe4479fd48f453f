"""Models in files: what is saved comes back, into any storage, and training goes on from it."""

import copy
import dataclasses
import itertools
import json
import sys

import pytest
import torch
from torch import nn

import regrow
from cases import (
    MODELS,
    STEP_METHODS,
    Run,
    assert_same,
    each_model,
    each_stored,
    method,
    model,
    optimization,
    state_of,
    weights,
)
from regrow.core.growth import candidates, exact, guided, window
from regrow.files.container import read
from regrow.files.saving import read_notes
from regrow.files.tree import flatten, restore
from regrow.storage import sparse_weights

STEPS = 8
MLP, INPUTS_FIRST, SGD = model("mlp"), model("inputs-first"), optimization("sgd-nesterov")
STORABLE = [case for case in MODELS if case.sparse]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def trained(case, storage="masked", **settings):
    return Run(case, method("sparse-momentum").recipe(), SGD, storage=storage, **settings).train(range(3))


@each_stored
def test_a_model_comes_back_into_a_sparse_model_of_another_seed(model, storage, file):
    source = trained(model, storage).model.eval()
    regrow.save(source, file)
    target = regrow.sparsify(model.build(), 0.3, backend=storage, seed=9).eval()
    assert regrow.load(file, target) is target
    assert_same(dict(target.state_dict()), dict(source.state_dict()))
    assert torch.equal(target(model.inputs(0)), source(model.inputs(0)))


@each_model
def test_a_model_comes_back_into_a_dense_one(model, file):
    source = trained(model).model.eval()
    regrow.save(source, file)
    target = regrow.load(file, model.build()).eval()
    assert_same(regrow.masks(target), regrow.masks(source))
    assert_same(weights(target), weights(source))
    assert_same(regrow.dense_state_dict(target), regrow.dense_state_dict(source))


@pytest.mark.parametrize("case", STORABLE, ids=lambda case: case.name)
@pytest.mark.parametrize(("before", "after"), [("masked", "cpu"), ("cpu", "masked")])
def test_a_model_comes_back_in_the_other_storage(case, before, after, file):
    source = trained(case, before).model
    regrow.save(source, file)
    target = regrow.load(file, regrow.sparsify(case.build(), 0.5, backend=after))
    assert {weight.storage.backend for weight in sparse_weights(target).values()} == {after}
    assert_same(regrow.masks(target), regrow.masks(source))
    assert_same(regrow.dense_state_dict(target), regrow.dense_state_dict(source))


@pytest.mark.parametrize("storage", ["masked", "cpu"])
@pytest.mark.parametrize("block", [(4, 1), (2, 2)])
def test_units_come_back(storage, block, file):
    case = model("grouped")
    source = trained(case, storage, block=block).model
    regrow.save(source, file)
    for target in (case.build(), regrow.sparsify(case.build(), 0.5, block=block, backend=storage)):
        regrow.load(file, target)
        assert_same(regrow.masks(target), regrow.masks(source))
        units = [{name: each.units for name, each in sparse_weights(one).items()} for one in (source, target)]
        assert units[0] == units[1]


def test_units_of_transposed_layers_come_back(file):
    source = regrow.sparsify(nn.Sequential(nn.ConvTranspose2d(6, 4, 3)), 0.5, block=(4, 3))
    regrow.save(source, file)
    target = regrow.load(file, nn.Sequential(nn.ConvTranspose2d(6, 4, 3)))
    assert sparse_weights(target)["0.weight"].units == sparse_weights(source)["0.weight"].units
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


def test_a_layer_that_stands_at_two_places_is_saved_once(file):
    def build():
        layer = nn.Linear(8, 8)
        return nn.Sequential(layer, nn.Tanh(), layer)

    for storage in ("masked", "cpu"):
        source = regrow.sparsify(build(), 0.5, backend=storage)
        regrow.save(source, file)
        _, tensors = read(file)
        assert set(tensors) == {"values/0.weight", "positions/0.weight", "model/0.bias"}
        for target in (build(), regrow.sparsify(build(), 0.2, backend=storage)):
            regrow.load(file, target)
            assert_same(regrow.dense_state_dict(target), regrow.dense_state_dict(source))
        with pytest.raises(ValueError, match=r"shared in one of the two alone"):
            regrow.load(file, nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_and_numbers_that_are_none_come_back(dtype, file):
    source = regrow.sparsify(nn.Sequential(nn.Linear(8, 6)), 0.5).to(dtype)
    with torch.no_grad():
        source[0].bias[:2] = torch.tensor([torch.nan, torch.inf])
    regrow.save(source, file)
    target = regrow.load(file, regrow.sparsify(nn.Sequential(nn.Linear(8, 6)), 0.2).to(dtype))
    assert_same(dict(target.state_dict()), dict(source.state_dict()))


def test_a_dense_model_and_a_bare_layer_are_saved_too(file):
    dense, same = nn.Linear(4, 3), nn.Linear(4, 3)
    regrow.save(dense, file)
    assert_same(dict(regrow.load(file, same).state_dict()), dict(dense.state_dict()))
    bare = regrow.sparsify(nn.Linear(4, 3), 0.5, seed=1)
    regrow.save(bare, file)
    assert_same(dict(regrow.load(file, same).state_dict()), dict(bare.state_dict()))


def test_equal_models_give_equal_files_of_little_more_than_their_weights(tmp_path, file):
    network = nn.Sequential(nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    source = regrow.sparsify(network, 0.05, backend="cpu")
    regrow.save(source, file)
    regrow.save(copy.deepcopy(source), tmp_path / "other")
    assert file.read_bytes() == (tmp_path / "other").read_bytes()
    nonzeros = sum(weight.nonzeros() for weight in sparse_weights(source).values())
    assert file.stat().st_size < nonzeros * (4 + 5.9 / 8) + 4 * (512 + 10) + 1500
    content, _ = read(file)
    assert content["density"] == pytest.approx(0.05, rel=1e-3)
    assert content["layers"]["0.weight"]["shape"] == [512, 1024]
    assert content["library"] == regrow.__version__


def test_notes_go_along(file):
    source, notes = nn.Linear(2, 2), {"preset": "mine", "sizes": [1, 2], "rate": 0.5, "none": None}
    regrow.save(source, file, notes=notes)
    assert read_notes(file) == notes
    regrow.save(source, file)
    assert read_notes(file) is None
    with pytest.raises(ValueError, match="notes take what JSON can hold"):
        regrow.save(source, file, notes={"model": source})
    assert read_notes(file) is None


EXTENDED = [
    pytest.param(name, optimizer, storage, at, marks=() if quick else pytest.mark.slow)
    for name, optimizer, storage, at in itertools.product(
        ("sparse-momentum", "set", "rigl", "dsr", "gmp", "static"),
        ("sgd-nesterov", "adam"),
        ("masked", "cpu"),
        (1, 4, 5),
    )
    for quick in [name == "sparse-momentum" or (optimizer == "sgd-nesterov" and at == 4)]
    if optimizer != "adam" or name in ("sparse-momentum", "set")
]


@pytest.mark.parametrize(("name", "optimizer", "storage", "at"), EXTENDED)
def test_a_training_goes_on_to_the_bit(name, optimizer, storage, at, file):
    row = method(name)

    def fresh(seed):
        return Run(MLP, row.recipe(), optimization(optimizer), storage=storage, seed=seed)

    whole = fresh(0).train(range(STEPS))
    first = fresh(0).train(range(at))
    regrow.save(first.model, file, first.optimizer, first.topology)
    second = fresh(77)
    regrow.load(file, second.model, second.optimizer, second.topology)
    assert_same(second.state(), first.state())
    second.train(range(at, STEPS))
    assert_same(second.state(), whole.state())


@pytest.mark.parametrize("growth", [exact(), window(2), candidates(2, 1), guided(2, 1)], ids=str)
@pytest.mark.parametrize("at", [1, 2, 3, 4])  # before a window, as one is about to open, within one, an update is due
@pytest.mark.parametrize("case", [MLP, INPUTS_FIRST], ids=lambda case: case.name)
def test_it_goes_on_to_the_bit_whatever_growth_looks_at(case, growth, at, file):
    def fresh(seed):
        recipe = dataclasses.replace(regrow.sparse_momentum(every=4, steps=16), growth=growth)
        return Run(case, recipe, optimization("adam"), storage="cpu", seed=seed)

    whole, first, second = fresh(0).train(range(STEPS)), fresh(0).train(range(at)), fresh(77)
    regrow.save(first.model, file, first.optimizer, first.topology)
    regrow.load(file, second.model, second.optimizer, second.topology)
    second.train(range(at, STEPS))
    assert_same(second.state(), whole.state())


@pytest.mark.parametrize("at", [1, 4, 5])
@pytest.mark.parametrize(("before", "after"), [("masked", "cpu"), ("cpu", "masked")])
@pytest.mark.parametrize("case", [MLP, INPUTS_FIRST], ids=lambda case: case.name)
def test_it_goes_on_in_the_other_storage(case, before, after, at, file):
    def fresh(storage, seed):
        recipe = dataclasses.replace(regrow.sparse_momentum(every=4, steps=16), growth=exact())
        return Run(case, recipe, SGD, storage=storage, seed=seed)

    whole = fresh(before, 0).train(range(STEPS))
    first, second = fresh(before, 0).train(range(at)), fresh(after, 77)
    regrow.save(first.model, file, first.optimizer, first.topology)
    regrow.load(file, second.model, second.optimizer, second.topology)
    second.train(range(at, STEPS))
    assert_same(regrow.masks(second.model), regrow.masks(whole.model))
    torch.testing.assert_close(weights(second.model), weights(whole.model))
    torch.testing.assert_close(*(_momentum(each) for each in (second, whole)))


def _momentum(run):
    """Return the momentum of active weights."""
    found = {}
    for name, weight in sparse_weights(run.model).items():
        state = run.optimizer.state[weight.weight]["momentum_buffer"]
        found[name] = weight.at(state, weight.index())
    return found


@pytest.mark.parametrize(("before", "after"), [("masked", "cpu"), ("cpu", "masked"), ("cpu", "cpu")])
@pytest.mark.parametrize("case", [MLP, INPUTS_FIRST], ids=lambda case: case.name)
def test_an_optimizer_goes_along_without_a_topology(case, before, after, file):
    first, second = (Run(case, regrow.static(), SGD, storage=storage) for storage in (before, after))
    first.train(range(3))
    regrow.save(first.model, file, first.optimizer)
    regrow.load(file, second.model, second.optimizer)
    for run in (first, second):
        run.train(range(3, 6))
    torch.testing.assert_close(weights(second.model), weights(first.model))


def test_without_a_topology_no_numbers_of_absent_weights_are_saved(file):
    recipe = dataclasses.replace(regrow.sparse_momentum(every=4, steps=16), growth=exact())
    first = Run(MLP, recipe, SGD, storage="cpu").train(range(2))
    assert first.model[0].covered is not None
    regrow.save(first.model, file, first.optimizer)
    second = Run(MLP, regrow.static(), SGD, storage="cpu")
    regrow.load(file, second.model, second.optimizer)
    torch.testing.assert_close(_momentum(second), _momentum(first))
    second.train(range(2))


@pytest.mark.parametrize("name", ["top-kast", "soft-threshold"])
def test_rules_of_every_step_go_on_to_the_bit(name, file):
    rule = next(row for row in STEP_METHODS if row.name == name)

    def fresh(seed):
        torch.manual_seed(seed)
        network = regrow.sparsify(MLP.build(), rule.density, backend="masked")
        optimizer = SGD.build(network.parameters())
        return network, optimizer, regrow.StepUpdater(network, optimizer, rule.rule())

    def train(run, seeds):
        for seed in seeds:
            run[1].zero_grad()
            (run[0](MLP.inputs(seed)) - 1).square().mean().backward()
            run[1].step()
        return run

    whole, first, second = train(fresh(0), range(6)), train(fresh(0), range(3)), fresh(7)
    regrow.save(first[0], file, *first[1:])
    train((regrow.load(file, *second), *second[1:]), range(3, 6))
    assert_same([each.state_dict() for each in second], [each.state_dict() for each in whole])


def test_the_positions_of_an_updater_that_is_not_loaded_too_are_missed(file):
    run = trained(MLP)
    regrow.save(run.model, file)
    other = Run(MLP, method("set").recipe(), SGD, storage="cpu", seed=5)
    regrow.load(file, other.model)
    with pytest.raises(RuntimeError, match="load the updater's state after the model's"):
        other.train([0])


OTHERS = {
    "a layer more": lambda: nn.Sequential(*MLP.build(), nn.Linear(5, 2)),
    "another name": lambda: nn.Sequential(nn.Identity(), *MLP.build()),
    "another shape": lambda: nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6)),
    "another shape of what is dense": lambda: nn.Sequential(
        nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5, bias=False)
    ),
    "another layer dense": lambda: regrow.sparsify(MLP.build(), 0.3, keep_dense=["first"]),
    "another block": lambda: regrow.sparsify(MLP.build(), 0.3, block=(4, 1)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_is_refused_and_stays_as_it_was(other, file):
    regrow.save(trained(MLP).model, file)
    target = OTHERS[other]()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=r"model|block"):
        regrow.load(file, target)
    assert_same(dict(target.state_dict()), dict(before))
    assert [name for name, _ in target.named_modules()] == [name for name, _ in OTHERS[other]().named_modules()]


def test_optimizer_and_topology_want_a_sparse_model_and_a_file_with_theirs(file):
    run = trained(MLP)
    regrow.save(run.model, file)
    for given in ({"optimizer": run.optimizer}, {"topology": run.topology}):
        with pytest.raises(ValueError, match=rf"has no state of the {next(iter(given))}: save it with"):
            regrow.load(file, run.model, **given)
    regrow.save(run.model, file, run.optimizer, run.topology)
    dense = MLP.build()
    with pytest.raises(ValueError, match=r"this model is dense.*make it sparse first"):
        regrow.load(file, dense, SGD.build(dense.parameters()))
    assert not regrow.masks(dense)


@pytest.mark.parametrize("storage", ["masked", "cpu"])
def test_what_fails_late_leaves_all_as_it_was(storage, file):
    first = trained(MLP, storage)
    regrow.save(first.model, file, first.optimizer, first.topology)
    target = Run(MLP, regrow.set(every=2, steps=8), SGD, storage=storage, seed=5).train(range(3))
    others = {
        "another order": SGD.build(list(target.model.parameters())[::-1]),
        "other groups": SGD.build([{"params": [each]} for each in target.model.parameters()]),
    }
    before = copy.deepcopy(target.state())
    for optimizer in others.values():
        with pytest.raises(ValueError, match=r"does not fit this optimizer|another number|different number"):
            regrow.load(file, target.model, optimizer, target.topology)
    load, calls = target.topology.load_state_dict, []

    def fails_once(state):
        calls.append(state)
        if len(calls) == 1:
            raise KeyError("gone")
        load(state)

    target.topology.load_state_dict = fails_once
    with pytest.raises(ValueError, match="all is as it was"):
        regrow.load(file, target.model, target.optimizer, target.topology)
    assert_same(target.state(), before)


def test_a_model_with_weights_outside_of_its_topology_warns(file):
    network = regrow.sparsify(nn.Linear(4, 3), 0.5)
    with torch.no_grad():
        network.weight.fill_(1)
    with pytest.warns(UserWarning, match="absent weights of weight are not zero"):
        regrow.save(network, file)


def test_what_cannot_be_written_leaves_the_older_file(file, monkeypatch):
    regrow.save(nn.Linear(2, 2), file)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        regrow.save(nn.Linear(20, 20), file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
    with pytest.raises(FileNotFoundError):
        regrow.save(nn.Linear(2, 2), file.parent / "absent" / "file")
    with pytest.raises(FileNotFoundError):
        regrow.load(file.parent / "absent", nn.Linear(2, 2))


def test_a_library_that_is_missing_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "safetensors.torch", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'regrow\[files\]'") as raised:
        regrow.save(nn.Linear(2, 2), file)
    assert "\n" not in str(raised.value)


def test_states_of_all_that_a_file_takes_come_back():
    state = {
        "nothing": None, 3: [True, 1, 0.1, "text"], "tuple": (1, (2,)), "far": [float("inf"), -float("inf")],
        "tensors": {1: torch.ones(2), "1": torch.zeros((), dtype=torch.bfloat16)}, "empty": {},
    }  # fmt: skip
    tensors = {}
    text = json.dumps(flatten(state, "state", tensors), allow_nan=False)
    restored = restore(json.loads(text), tensors)
    assert_same(restored.pop("tensors"), state.pop("tensors"))
    assert restored == state
    nan = restore(json.loads(json.dumps(flatten(float("nan"), "state", {}))), {})
    assert nan != nan
    for foreign in (print, {1.5: 2}, {(1, 2): 3}, {"a": [object()]}, b"bytes", 1j):
        with pytest.raises(ValueError, match="a file takes"):
            flatten(foreign, "state", {})


def test_state_of_names_shared_state(file):
    run = trained(MLP)
    before = state_of(run.optimizer, run.model[0].weight)
    regrow.save(run.model, file, run.optimizer, run.topology)
    _, tensors = read(file)
    tensors["optimizer/state/state/0/momentum_buffer"].zero_()  # what was read is nobody else's
    assert_same(state_of(run.optimizer, run.model[0].weight), before)
