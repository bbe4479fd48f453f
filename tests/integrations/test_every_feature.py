"""What is tried with every framework in the same way: compiling, averaging and exporting, in both storages."""

import copy
import os
from types import SimpleNamespace

import pytest
import torch

import regrow
from cases import assert_same, each_storage

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for package in ("accelerate", "lightning.pytorch", "transformers"):
    pytest.importorskip(package)

import accelerate  # noqa: E402
import test_accelerate  # noqa: E402
import test_lightning  # noqa: E402
import test_transformers  # noqa: E402
import transformers  # noqa: E402
from lightning.pytorch import callbacks  # noqa: E402
from test_transformers import CONTEXT  # noqa: E402

from regrow.integrations.transformers import TopologyCallback  # noqa: E402


@pytest.fixture(autouse=True)
def _alone():
    """What is kept for the whole process, by Accelerate and by the compiler, is not left to other tests."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    torch.compiler.reset()


def by_lightning(storage, folder, *, compiled=False, each_step=None):
    class EachStep(callbacks.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            if each_step:
                each_step(pl_module.net)

    module = test_lightning.Module(storage)
    test_lightning.fit(torch.compile(module, backend="eager") if compiled else module, EachStep())
    return module.net, (torch.randn(3, 8),)


def by_accelerate(storage, folder, *, compiled=False, each_step=None):
    training = test_accelerate.Training(storage, **({"dynamo_backend": "eager"} if compiled else {}))
    network = training.accelerator.unwrap_model(training.model, keep_torch_compile=False)
    for step in range(test_accelerate.STEPS):
        training.train(step, step + 1)
        if each_step:
            each_step(network)
    return network, (torch.randn(3, 8),)


def by_transformers(storage, folder, *, compiled=False, each_step=None):
    class EachStep(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **others):
            if each_step:
                each_step(model)

    # What dropout drops is drawn otherwise where it is compiled.
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = test_transformers.sparse("gpt2", storage, **off)
    settings = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
    topology = TopologyCallback(test_transformers.method())
    test_transformers.trainer(model, folder, topology, EachStep(), **settings).train()
    model.config.use_cache = False
    return model, (torch.arange(CONTEXT)[None],)


each_framework = pytest.mark.parametrize(
    "train",
    [by_lightning, by_accelerate, pytest.param(by_transformers, marks=pytest.mark.slow)],
    ids=lambda train: train.__name__.removeprefix("by_"),
)


def output_of(network, inputs):
    found = network(*inputs)
    return getattr(found, "logits", found)


@each_framework
@each_storage
def test_a_compiled_model_trains_as_one_that_is_not(train, storage, tmp_path):
    graphs = torch._dynamo.utils.counters["frames"]
    before = graphs["ok"]
    compiled, _ = train(storage, tmp_path / "compiled", compiled=True)
    assert graphs["ok"] > before
    plain, _ = train(storage, tmp_path / "plain")
    assert_same(dict(regrow.masks(compiled)), dict(regrow.masks(plain)))
    torch.testing.assert_close(dict(regrow.dense_state_dict(compiled)), dict(regrow.dense_state_dict(plain)))


@each_framework
@each_storage
def test_an_average_over_the_training_is_that_of_the_dense_weights(train, storage, tmp_path):
    known = SimpleNamespace(average=None, states=[])

    def add(network):
        if known.average is None:
            known.average = regrow.AveragedModel(network)
        known.average.update_parameters(network)
        known.states.append({name: value.clone() for name, value in regrow.dense_state_dict(network).items()})

    train(storage, tmp_path, each_step=add)
    assert len(known.states) > 5
    averages = dict(known.average.module.named_parameters())
    for name, found in averages.items():
        mean = torch.stack([state[name] for state in known.states]).mean(0)
        torch.testing.assert_close(found.detach(), mean, rtol=1e-4, atol=1e-5)


@each_framework
@each_storage
def test_what_was_trained_is_saved_and_exported(train, storage, tmp_path):
    network, inputs = train(storage, tmp_path / "run")
    network.eval()
    expected = output_of(network, inputs)
    regrow.save(network, tmp_path / "saved.safetensors")
    loaded = regrow.densify(copy.deepcopy(network))
    regrow.load(tmp_path / "saved.safetensors", loaded)
    torch.testing.assert_close(output_of(loaded, inputs), expected)
    exported = torch.export.export(loaded, inputs).module()
    torch.testing.assert_close(output_of(exported, inputs), expected)
