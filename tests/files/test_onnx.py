"""Sparse models in ONNX Runtime, and as programs of torch.export in a file, compute what they compute here."""

import subprocess
import sys

import onnxruntime
import pytest
import torch
from torch import nn

import regrow
from cases import assert_same, model

OTHERS = [("mlp", "masked"), ("grouped", "cpu"), ("attention", "masked")]
CASES = [("conv2d", "cpu"), *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)]
each_case = pytest.mark.parametrize(("case", "storage"), CASES)


def in_onnx_runtime(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(output)


@each_case
def test_onnx_runtime_computes_the_same_for_any_number_of_samples(case, storage, tmp_path, capfd):
    case = model(case)
    network = regrow.sparsify(case.build(), 0.3, backend=storage)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    regrow.export_onnx(network, case.inputs(0), tmp_path / "model.onnx")
    assert capfd.readouterr().out == ""
    assert network.training
    assert_same(dict(network.state_dict()), before)
    for batch in (4, 7):
        x = case.inputs(1, batch)
        torch.testing.assert_close(in_onnx_runtime(tmp_path / "model.onnx", x), network.eval()(x), rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_bare_layer_and_a_model_in_training_are_exported(tmp_path):
    layer = regrow.sparsify(nn.Sequential(nn.Linear(8, 6)), 0.3, backend="cpu")[0]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    topology = regrow.TopologyUpdater(layer, optimizer, regrow.sparse_momentum(every=2, steps=8))
    regrow.export_onnx(layer, torch.zeros(2, 8), tmp_path / "model.onnx")
    x = torch.randn(3, 8)
    torch.testing.assert_close(in_onnx_runtime(tmp_path / "model.onnx", x), layer(x).detach(), rtol=1e-4, atol=1e-5)
    topology.remove()


def test_libraries_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("regrow.files.onnx.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'regrow\[onnx\]'"):
        regrow.export_onnx(nn.Linear(2, 2), torch.zeros(2, 2), tmp_path / "model.onnx")


RUN = """
import sys, torch, regrow
program = torch.export.load(sys.argv[1]).module()
torch.save(program(torch.load(sys.argv[2], weights_only=True)), sys.argv[3])
"""


@pytest.mark.slow
def test_a_program_in_a_file_computes_the_same_in_another_process(tmp_path):
    case = model("conv2d")
    network = regrow.sparsify(nn.Sequential(case.build(), nn.Flatten(), nn.Linear(48, 3)), 0.3, backend="cpu").eval()
    x, names = case.inputs(0), [str(tmp_path / name) for name in ("program.pt2", "x.pt", "output.pt")]
    with torch.no_grad():
        torch.export.save(torch.export.export(network, (x,)), names[0])
    torch.save(x, names[1])
    subprocess.run([sys.executable, "-c", RUN, *names], check=True)
    torch.testing.assert_close(torch.load(names[2], weights_only=True), network(x).detach())


@each_case
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_program_in_a_file_computes_the_same(case, storage, strict, tmp_path):
    case = model(case)
    network = regrow.sparsify(case.build(), 0.3, backend=storage).eval()
    samples = torch.export.Dim("samples")
    program = torch.export.export(network, (case.inputs(0),), dynamic_shapes=({0: samples},), strict=strict)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    for batch in (4, 7):
        x = case.inputs(1, batch)
        torch.testing.assert_close(loaded(x), network(x))
