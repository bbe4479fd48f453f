"""Files that are damaged or malicious: an error or the same result, nothing run, and the model as it was."""

import ast
import copy
import json
import os
import pickle
from pathlib import Path
from random import Random

import pytest
import safetensors.torch
import torch
from torch import nn

import regrow
from cases import assert_same
from regrow.files import container
from regrow.files.saving import read_notes

ROOT = Path(regrow.__file__).parent


def build():
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def made(seed):
    network = regrow.sparsify(build(), 0.3, backend="cpu", seed=seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return network, optimizer, regrow.TopologyUpdater(network, optimizer, regrow.sparse_momentum(every=2, steps=8))


def trained(seed):
    network, optimizer, topology = made(seed)
    for step in range(3):
        optimizer.zero_grad()
        network(torch.randn(4, 12, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    return network, optimizer, topology


def state(parts):
    return copy.deepcopy([part.state_dict() for part in parts])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    file = tmp_path_factory.mktemp("saved") / "model.safetensors"
    parts = trained(0)
    regrow.save(parts[0], file, *parts[1:])
    return file.read_bytes(), state(parts)


@pytest.fixture
def target():
    return trained(1)


def load(content, path, parts):
    path.write_bytes(content)
    return regrow.load(path, *parts)


def refuse_or_load_the_same(contents, path, parts, good):
    """Load many contents; return how many were refused. None may leave anything half loaded."""
    before, refused = state(parts), 0
    for content in contents:
        error = None
        try:
            load(content, path, parts)
        except ValueError as raised:
            error = str(raised)
        if error is not None:
            assert str(path) in error
            assert_same([part.state_dict() for part in parts], before)
            refused += 1
        else:
            assert_same([part.state_dict() for part in parts], good)
            for part, earlier in zip(parts, before, strict=True):
                part.load_state_dict(copy.deepcopy(earlier))
    return refused


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_flipped_bits_are_refused_or_change_nothing(saved, target, tmp_path):
    content, good = saved
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    bits = Random(0).sample(range(header), 250) + Random(1).sample(range(header, 8 * len(content)), 150)
    refused = refuse_or_load_the_same((flipped(content, bit) for bit in bits), tmp_path / "file", target, good)
    assert refused > 0.9 * len(bits)


@pytest.mark.slow
def test_many_more_flipped_bits_are_refused_or_change_nothing(saved, target, tmp_path):
    content, good = saved
    every = (flipped(content, bit) for bit in range(0, 8 * len(content), 23))
    refuse_or_load_the_same(every, tmp_path / "file", target, good)


def test_flipped_bits_of_the_numbers_are_refused(tmp_path):
    network, path = regrow.sparsify(build(), 0.3), tmp_path / "file"
    regrow.save(network, path)
    content = path.read_bytes()
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    bits = range(header, 8 * len(content), 5)
    every = (flipped(content, bit) for bit in bits)
    assert refuse_or_load_the_same(every, path, (network,), None) == len(bits)


def test_truncated_and_longer_files_are_refused(saved, target, tmp_path):
    content, good = saved
    lengths = [0, 1, 7, 8, 9, len(content) - 1, *Random(0).sample(range(len(content)), 60)]
    contents = [content[:length] for length in lengths] + [content + b"\0", content + content]
    assert refuse_or_load_the_same(contents, tmp_path / "file", target, good) == len(contents)


def test_bytes_that_were_written_over_are_refused(saved, target, tmp_path):
    content, good = saved
    draw = Random(0)
    contents = []
    for _ in range(60):
        start, length = draw.randrange(len(content)), draw.randrange(1, 64)
        contents.append(content[:start] + draw.randbytes(length) + content[start + length :])
    refuse_or_load_the_same(contents, tmp_path / "file", target, good)


class Runs:
    """What a pickle runs when it is read."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_pickles_are_not_run(target, tmp_path):
    witness, path, before = tmp_path / "witness", tmp_path / "file", state(target)
    pickled = pickle.dumps(Runs(witness))
    torch.save(Runs(witness), path)
    length = len(pickled).to_bytes(8, "little")
    for content in (pickled, path.read_bytes(), length + pickled, length + pickled + bytes(100)):
        with pytest.raises(ValueError, match=r"truncated, damaged or was not written by regrow\.save"):
            load(content, path, target)
    assert not witness.exists()
    assert_same(state(target), before)


def raw(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(text).to_bytes(8, "little") + text + data


def with_metadata(text):
    return raw({"__metadata__": {"regrow": text}})


FOREIGN = {
    "nothing": b"",
    "text": b"not a file of a model at all",
    "a huge header": (1 << 63).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (1 << 20).to_bytes(8, "little") + b"{}",
    "a header that is no JSON": raw(b"{]"),
    "a header without metadata": raw({}),
    "another library's file": safetensors.torch.save({"weight": torch.ones(2)}, {"format": "pt"}),
    "tensors beyond the file": raw({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    "tensors before the file": raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    "tensors over each other": raw(
        {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)
    ),
    "numbers that are none": with_metadata('{"version": 1, "checksum": "", "content": {"a": NaN}}'),
    "a number of many digits": with_metadata('{"version": 1, "checksum": "", "content": ' + "9" * 9999 + "}"),
    "a number that is too large": with_metadata('{"version": 1, "checksum": "", "content": {"a": 1e999}}'),
    "brackets without end": with_metadata('{"version": 1, "checksum": "", "content": ' + "[" * 100_000),
    "deep brackets": with_metadata('{"version": 1, "checksum": "", "content": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "no content": with_metadata('{"version": 1, "checksum": "", "content": null}'),
    "a list": with_metadata("[1, 2]"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files_are_refused(what, target, tmp_path):
    before, path = state(target), tmp_path / "file"
    with pytest.raises(ValueError, match="damaged"):
        load(FOREIGN[what], path, target)
    assert_same(state(target), before)
    with pytest.raises(ValueError, match="damaged"):
        read_notes(path)


def test_another_version_is_named(saved, target, tmp_path):
    content, _ = saved
    version = rb"{\"version\":1,"
    assert content.count(version) == 1
    with pytest.raises(ValueError, match=r"has format 2, and this version of regrow reads 1: install the other"):
        load(content.replace(version, version.replace(b"1", b"2")), tmp_path / "file", target)


def layer(**changes):
    return lambda content, tensors: content["layers"]["0.weight"].update(changes)


def tensor(name, value):
    return lambda content, tensors: tensors.update({name: value})


def part(name, value):
    return lambda content, tensors: content.update({name: value})


BYTES = torch.full((40,), 255, dtype=torch.uint8)
# Contents that a malicious writer gives the right checksum.
CRAFTED = {
    "positions beyond the weight": tensor("positions/0.weight", torch.cat((BYTES * 0, BYTES))),
    "positions at every place": tensor("positions/0.weight", BYTES),
    "no positions": tensor("positions/0.weight", BYTES[:0]),
    "positions that are no bytes": tensor("positions/0.weight", torch.arange(29)),
    "positions of two dimensions": tensor("positions/0.weight", BYTES.view(2, 20)),
    "positions that are missing": lambda content, tensors: tensors.pop("positions/0.weight"),
    "more bits": layer(bits=60),
    "fewer bits": layer(bits=-3),
    "bits that are a text": layer(bits="1"),
    "bits that are a fraction": layer(bits=1.5),
    "fewer weights": layer(nonzeros=-1),
    "more weights": layer(nonzeros=10**15),
    "a huge shape": layer(shape=[1 << 40, 1 << 40]),
    "a shape of other kind": layer(shape=3),
    "a unit of nothing": layer(unit=[0, 1]),
    "a unit that does not divide": layer(unit=[5, 1]),
    "a unit of three sides": layer(unit=[1, 1, 1]),
    "a huge unit": layer(unit=[1 << 70, 1]),
    "another storage": layer(storage="elsewhere"),
    "values of another number": tensor("values/0.weight", torch.ones(3)),
    "values that are whole numbers": tensor("values/0.weight", torch.ones(29, dtype=torch.int64)),
    "values that are complex": tensor("values/0.weight", torch.ones(29, dtype=torch.complex64)),
    "layers that are a list": part("layers", []),
    "a layer that is a list": lambda content, tensors: content["layers"].update({"0.weight": []}),
    "a layer of another name": lambda content, tensors: content["layers"].update(
        {"5.weight": content["layers"]["0.weight"]}
    ),
    "no layers": part("layers", {}),
    "shared names of nothing": part("shared", {"0.bias": "absent"}),
    "shared names in a list": part("shared", ["0.bias"]),
    "no model": part("model", None),
    "a model of another kind": part("model", {"object": "os.system"}),
    "a tensor that is missing": part("model", {"dict": [["0.bias", {"tensor": "absent"}], ["2.bias", 1]]}),
    "keys that are lists": part("model", {"dict": [[["0.bias"], 1]]}),
    "an optimizer of another kind": part("optimizer", {"dict": [["names", 1], ["whole", True], ["state", 2]]}),
    "an optimizer without state": part("optimizer", {"dict": []}),
    "numbers of an optimizer that are too many": tensor("optimizer/state/state/0/momentum_buffer", torch.ones(5000)),
    "a topology of another kind": part("topology", {"dict": [["step", 1]]}),
    "a generator that is none": tensor("topology/generator", BYTES),
    "candidates beyond the weight": part(
        "topology", {"dict": [["growth", {"dict": [["0.weight", {"dict": [["candidates", 5], ["begun_at", 0]]}]]}]]}
    ),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_files_with_the_right_checksum_are_refused(what, saved, target, tmp_path):
    path, before = tmp_path / "file", state(target)
    path.write_bytes(saved[0])
    content, tensors = container.read(path)
    CRAFTED[what](content, tensors)
    container.write(path, content, tensors)
    with pytest.raises(ValueError, match=str(path)):
        regrow.load(path, *target)
    assert_same(state(target), before)


def test_random_positions_with_the_right_checksum_are_refused_or_fit(saved, target, tmp_path):
    path, draw = tmp_path / "file", Random(0)
    path.write_bytes(saved[0])
    content, tensors = container.read(path)
    length = len(tensors["positions/0.weight"])
    for _ in range(60):
        drawn = torch.tensor(list(draw.randbytes(draw.choice((length - 1, length, length, length + 1)))))
        tensors["positions/0.weight"] = drawn.to(torch.uint8)
        content["layers"]["0.weight"]["bits"] = draw.randrange(4)
        container.write(path, content, tensors)
        before = state(target)
        try:
            regrow.load(path, *target)
        except ValueError:
            assert_same(state(target), before)
        index = target[0][0].index
        assert bool((index.diff() > 0).all())
        assert index[0] >= 0
        assert index[-1] < 96


STRANGE = (None, True, -1, 0, 1, 7, 2**40, 2**70, 0.5, 1e308, "", "text", [], {}, [1], {"tensor": "positions/0.weight"})


def places(tree, path=()):
    """Yield the path to every value in a tree of lists and dicts."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def with_strange_values(content, draw):
    changed = copy.deepcopy(content)
    for _ in range(draw.randrange(1, 3)):
        *path, last = draw.choice(list(places(changed)))
        inside = changed
        for key in path:
            inside = inside[key]
        inside[last] = copy.deepcopy(draw.choice(STRANGE))
    return changed


def strange_contents_are_refused_or_loaded(saved, parts, path, seeds):
    path.write_bytes(saved)
    content, tensors = container.read(path)
    before, refused = state(parts), 0
    for seed in seeds:
        container.write(path, with_strange_values(content, Random(seed)), tensors)
        try:
            regrow.load(path, *parts)
        except ValueError:
            refused += 1
            assert_same(state(parts), before)
            continue
        # What a state dict may hold that PyTorch itself takes; the positions are sound.
        assert bool((parts[0][0].index.diff() > 0).all())
        parts = trained(1)
        before = state(parts)
    return refused


def test_strange_values_with_the_right_checksum_are_refused_or_loaded(saved, target, tmp_path):
    assert strange_contents_are_refused_or_loaded(saved[0], target, tmp_path / "file", range(150)) > 50


@pytest.mark.slow
def test_many_more_strange_values_are_refused_or_loaded(saved, target, tmp_path):
    strange_contents_are_refused_or_loaded(saved[0], target, tmp_path / "file", range(1000, 4000))


def test_nothing_in_the_project_reads_pickles_that_run():
    """`torch.load` reads weights alone, and the one unpickler is that of CIFAR-10's own files, for arrays alone."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = getattr(node.func.value, "id", None)
                if (owner, node.func.attr) == ("torch", "load"):
                    weights_only = {keyword.arg: keyword.value for keyword in node.keywords}["weights_only"]
                    assert weights_only.value is True, path
                if owner in ("pickle", "joblib", "dill", "cloudpickle"):
                    found.add((path.name, node.func.attr))
    assert found <= {("pickles.py", "UnpicklingError")}
