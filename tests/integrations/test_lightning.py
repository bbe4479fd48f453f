"""Lightning trains, stops and resumes a sparse module, in both storages, as without the stop."""

import doctest
import importlib
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import regrow
from cases import STEP_METHODS, assert_same, each_storage

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch import callbacks  # noqa: E402

import regrow.integrations.lightning as integration  # noqa: E402
from regrow.integrations.lightning import TopologyCallback, WeightAveraging  # noqa: E402

BATCHES, EPOCHS, STOP = 4, 3, 6  # it stops in the middle of the second epoch
_OFF = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
QUIET = {"accelerator": "cpu", "devices": 1, **dict.fromkeys(_OFF, False)}
EMA = swa_utils.get_ema_avg_fn(0.9)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        yield


class Batches(torch.utils.data.Dataset):
    def __init__(self, count=BATCHES):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index


class Module(lightning.LightningModule):
    """Its batches follow from the number of the batch, for Lightning does not carry a loader's place by itself."""

    def __init__(self, storage="masked", seed=0, density=0.3):
        super().__init__()
        torch.manual_seed(seed)
        layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)]
        self.net = regrow.sparsify(nn.Sequential(*layers), density, backend=storage, seed=seed)
        self.seen = []
        self.validated = []

    def loss(self, seed):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
        return (self.net(x) - 1).square().mean()

    def training_step(self, batch, batch_idx):
        seed = 100 * self.trainer.current_epoch + batch_idx
        self.seen.append(seed)
        return self.loss(seed)

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.loss(0).item())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02)


class KilledError(Exception):
    pass


class Stop(callbacks.Callback):
    """Save and die, in the middle of an epoch."""

    def __init__(self, path, at=STOP):
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.at:
            trainer.save_checkpoint(self.path)
            raise KilledError


def sparse_momentum(**settings):
    return TopologyCallback(regrow.sparse_momentum, **{"every": 2, "steps": 12, **settings})


def fit(module, *more, topology=None, batches=BATCHES, path=None, validates=False, **settings):
    topology = topology or sparse_momentum()
    trainer = lightning.Trainer(
        **{
            **QUIET,
            "max_epochs": EPOCHS,
            "num_sanity_val_steps": 0,
            "callbacks": [topology, *more],
            **settings,
        }
    )
    loaders = [torch.utils.data.DataLoader(Batches(batches)) for _ in range(1 + validates)]
    trainer.fit(module, *loaders, ckpt_path=path)
    return trainer, topology.topology


def state(module, trainer, updater):
    return [dict(module.state_dict()), trainer.optimizers[0].state_dict(), updater.state_dict()]


def resumed(tmp_path, make, more=list, topology=sparse_momentum, **settings):
    """Return what a fit that was killed and gone on ends with, and what the uninterrupted one does."""
    path = tmp_path / "stopped.ckpt"
    whole = make(0)
    ends = [state(whole, *fit(whole, *more(), topology=topology(), **settings))]
    with pytest.raises(KilledError):
        fit(make(0), *more(), Stop(path), topology=topology(), **settings)
    second = make(77)
    ends.append(state(second, *fit(second, *more(), topology=topology(), path=path, **settings)))
    assert second.seen
    assert second.seen == whole.seen[-len(second.seen) :]
    assert len(second.seen) < len(whole.seen)
    return ends


SETTINGS = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.05},
    "accumulated": {"accumulate_grad_batches": 2, "batches": 2 * BATCHES},
    "bf16": {"precision": "bf16-mixed"},
}


@each_storage
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_fit_killed_in_an_epoch_goes_on_to_the_bit(settings, storage, tmp_path):
    second, whole = resumed(tmp_path, lambda seed: Module(storage, seed), **settings)
    assert whole[2]["step"] == BATCHES * EPOCHS
    assert_same(second, whole)


@each_storage
def test_the_callback_is_the_plain_loop(storage):
    module, alone = Module(storage), Module(storage)
    before = regrow.masks(module)
    trainer, updater = fit(module, topology=TopologyCallback(regrow.sparse_momentum))
    optimizer = alone.configure_optimizers()
    plain = regrow.TopologyUpdater(alone, optimizer, regrow.sparse_momentum(every=BATCHES, steps=BATCHES * EPOCHS))
    for seed in module.seen:
        optimizer.zero_grad()
        alone.loss(seed).backward()
        optimizer.step()
    assert_same(state(module, trainer, updater)[1:], [optimizer.state_dict(), plain.state_dict()])
    assert_same(dict(module.state_dict()), dict(alone.state_dict()))
    assert any(not torch.equal(mask, before[name]) for name, mask in regrow.masks(module).items())


@pytest.mark.parametrize("row", STEP_METHODS, ids=lambda row: row.name)
def test_a_rule_of_every_step_goes_on_to_the_bit(row, tmp_path):
    second, whole = resumed(
        tmp_path,
        lambda seed: Module("masked", seed, density=row.density),
        topology=lambda: TopologyCallback(row.rule()),
    )
    assert_same(second, whole)


@each_storage
def test_an_average_validates_is_saved_and_goes_on_to_the_bit(storage, tmp_path):
    def more():
        return [WeightAveraging(avg_fn=EMA)]

    second, whole = resumed(tmp_path, lambda seed: Module(storage, seed), more, validates=True)
    assert_same(second, whole)
    saved = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    module = Module(storage, seed=5)
    module.load_state_dict(saved["state_dict"])
    assert regrow.summary(module).nonzeros == regrow.summary(Module(storage)).nonzeros


@each_storage
def test_an_average_is_that_of_the_dense_weights_where_weights_exist(storage):
    class Watched(WeightAveraging):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            dense = regrow.dense_state_dict(pl_module)
            if not hasattr(self, "own"):
                self.own = dense
            self.own = {key: EMA(value, dense[key], 0) for key, value in self.own.items()}

    module, average = Module(storage), Watched(avg_fn=EMA)
    fit(module, average, validates=True)
    masks, ends = regrow.masks(module), regrow.dense_state_dict(module)
    assert masks
    for name, mask in masks.items():
        torch.testing.assert_close(ends[name], average.own[name] * mask)
        assert not ends[name][~mask].any()
    assert module.validated == sorted(module.validated, reverse=True)


def test_a_resume_without_a_topology_is_refused(tmp_path):
    class Bare(Stop):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            for each in checkpoint["optimizer_states"]:
                del each["regrow"]

    path = tmp_path / "bare.ckpt"
    with pytest.raises(KilledError):
        fit(Module(), Bare(path))
    with pytest.raises(RuntimeError, match=r"no topology and the schedule would begin anew: .*load_from_checkpoint"):
        fit(Module(), path=path)


@each_storage
def test_a_search_for_the_learning_rate_comes_before_the_topology_and_leaves_the_module_as_it_was(storage, tmp_path):
    class Searched(Module):
        lr = 0.02

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=self.lr)

    module, before = Searched(storage), []
    topology = sparse_momentum(on_update=lambda *_: before.append(regrow.summary(module).nonzeros))
    finder = callbacks.LearningRateFinder(num_training_steps=10)
    fit(module, finder, topology=topology, batches=16, max_epochs=1, default_root_dir=tmp_path)
    assert topology.topology.step == 16
    assert set(before) == {regrow.summary(Module(storage)).nonzeros}
    for name, mask in regrow.masks(module).items():
        assert not regrow.dense_state_dict(module)[name][~mask].any()


@pytest.mark.parametrize("average", [callbacks.WeightAveraging, lambda: callbacks.StochasticWeightAveraging(1e-2)])
def test_averages_of_lightnings_own_are_refused(average):
    with pytest.raises(ValueError, match=r"regrow.integrations.lightning.WeightAveraging in its place"):
        fit(Module(), average())


def test_what_does_not_fit_is_said():
    class Two(Module):
        def configure_optimizers(self):
            self.automatic_optimization = False
            return [torch.optim.SGD(self.net[number].parameters(), 0.1) for number in (0, 3)]

    class Other(Module):
        def configure_optimizers(self):
            return torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)

    with pytest.raises(ValueError, match="2 optimizers have sparse weights: give the trainer a TopologyCallback for"):
        fit(Two())
    with pytest.raises(ValueError, match="no optimizer of the trainer has the sparse weights"):
        fit(Other())
    with pytest.raises(ValueError, match=r"steps of the fit: give TopologyCallback steps=\.\.\."):
        fit(Module(), topology=TopologyCallback(regrow.set), max_epochs=-1)
    with pytest.raises(ValueError, match="made already"):
        TopologyCallback(regrow.static(), every=3)


@each_storage
def test_two_optimizers_stepped_by_hand_have_a_callback_each(storage, tmp_path):
    class Two(Module):
        def __init__(self, *args):
            super().__init__(*args)
            self.automatic_optimization = False

        def configure_optimizers(self):
            parts = self.net[0].parameters(), self.net[1:].parameters()
            return [torch.optim.SGD(part, lr=0.1, momentum=0.9) for part in parts]

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

    def run(seed, *more, **settings):
        module = Two(storage, seed)
        pair = [sparse_momentum(weights=["net.0.*"]), sparse_momentum(weights=["net.3.*"])]
        trainer, _ = fit(module, pair[1], *more, topology=pair[0], **settings)
        ends = [each.state_dict() for each in (*trainer.optimizers, *(each.topology for each in pair))]
        return [dict(module.state_dict()), *ends]

    path = tmp_path / "two.ckpt"
    with pytest.raises(KilledError):
        run(0, Stop(path, at=2 * STOP))  # Lightning counts the steps of both
    assert_same(run(77, path=path), run(0))


def test_strategies_that_would_break_a_topology_are_refused():
    trainer = SimpleNamespace(strategy=type("FSDPStrategy", (), {})(), callbacks=[], world_size=2)
    with pytest.raises(ValueError, match="FSDPStrategy shards parameters"):
        sparse_momentum().on_fit_start(trainer, Module("masked"))


class Agreeing(callbacks.Callback):
    """Compare the network of every process at the end."""

    def on_train_end(self, trainer, pl_module):
        for each in pl_module.all_gather(regrow.dense_state_dict(pl_module)).values():
            assert torch.equal(each[0], each[1])


@pytest.mark.slow
@each_storage
def test_processes_that_train_together_agree(storage):
    module = Module(storage)
    before = regrow.masks(module)
    fit(module, Agreeing(), strategy="ddp_fork", devices=2, batches=2 * BATCHES)
    for name, mask in regrow.masks(module).items():
        assert not torch.equal(mask, before[name])
        assert not regrow.dense_state_dict(module)[name][~mask].any()


@pytest.mark.slow
@each_storage
@pytest.mark.parametrize("more", [list, lambda: [WeightAveraging()]], ids=["alone", "averaged"])
def test_modules_and_trainers_of_pytorch_lightning_will_do(more, storage, tmp_path):
    package = pytest.importorskip("pytorch_lightning")
    # The methods of a Module, over the other package's class.
    body = {name: value for name, value in vars(Module).items() if name not in ("__dict__", "__weakref__", "__init__")}

    def start(self, seed=0):
        package.LightningModule.__init__(self)
        layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)]
        self.net = regrow.sparsify(nn.Sequential(*layers), 0.3, backend=storage, seed=seed)
        self.seen, self.validated = [], []

    other = type("Other", (package.LightningModule,), {**body, "__init__": start})
    path, loader = tmp_path / "other.ckpt", torch.utils.data.DataLoader(Batches())
    for epochs in (1, 2):
        topology = TopologyCallback(regrow.sparse_momentum, every=2)
        trainer = package.Trainer(max_epochs=epochs, callbacks=[topology, *more()], **QUIET)
        trainer.fit(other(epochs), loader, loader, ckpt_path=path if epochs == 2 else None)
        trainer.save_checkpoint(path)
        assert topology.topology.step == BATCHES * epochs


KILLED = """
import os, signal, sys
import test_lightning as test

class Kill(test.Stop):
    def on_train_batch_end(self, *args):
        try:
            super().on_train_batch_end(*args)
        except test.KilledError:
            os.kill(os.getpid(), signal.SIGKILL)

test.fit(test.Module(sys.argv[1]), Kill(sys.argv[2]))
"""


@pytest.mark.slow
@each_storage
def test_a_process_that_was_killed_goes_on_to_the_bit(storage, tmp_path):
    path = tmp_path / "killed.ckpt"
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, storage, str(path)], env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    )
    assert done.returncode == -signal.SIGKILL
    second, whole = Module(storage, seed=77), Module(storage)
    assert_same(state(second, *fit(second, path=path)), state(whole, *fit(whole)))


@each_storage
def test_a_second_fit_begins_anew(storage):
    module, topology = Module(storage), sparse_momentum(growth=regrow.growth.window(8))
    for _ in range(2):
        _, updater = fit(module, topology=topology, max_epochs=1)
        assert updater.step == BATCHES


def test_without_its_package_it_says_what_to_install(monkeypatch):
    for package in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, integration.__name__)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'regrow\[lightning\]'"):
        importlib.import_module(integration.__name__)


def test_the_examples_run():
    assert doctest.testmod(integration).failed == 0
