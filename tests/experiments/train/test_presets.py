"""Presets: those of the contract exist, fit their network, data and method, and follow the published schedule."""

import inspect
import math

import pytest
import torch
import yaml
from runs import command, tiny
from torch import nn

import regrow
from regrow.convert.eligible import eligible
from regrow.experiments import models
from regrow.experiments.data import DATASETS, Data
from regrow.experiments.data.batches import Normalise, TensorBatches
from regrow.experiments.train.config import TrainConfig, override, parse_settings, read_config
from regrow.experiments.train.learning_rate import learning_rate
from regrow.experiments.train.methods import METHODS, make_recipe, run_name
from regrow.experiments.train.optimizer import make_optimizer
from regrow.experiments.train.presets import PRESETS, preset
from regrow.experiments.train.run import Run

CIFAR10 = (
    *("alexnet-s", "alexnet-b", "vgg16-c", "vgg16-d", "vgg16-like", "vgg-small"),
    *("wrn-28-2", "wrn-22-8", "wrn-16-4", "wrn-16-8", "wrn-16-10"),
)
PROMISED = {
    "digits-mlp",
    *(f"{data}-{model}" for data in ("mnist", "fashion") for model in ("lenet300-100", "lenet5")),
    *(f"cifar10-{model}" for model in CIFAR10),
    "shakespeare-gpt",
    "imagenet-resnet50",
    *(f"imagenet-resnet50-tuned{density}" for density in ("", "-20", "-30")),
    *(f"imagenette-{model}" for model in ("resnet18", "resnet50")),
}
MNIST_STEPS_PER_EPOCH = 540  # 54,000 images, 100 a batch


def two_images(name, *, batch_size, image_size, **_):
    """Return a data set of two images in the shape of the real one."""
    dataset = DATASETS[name]
    size, classes = image_size or dataset.image_size, dataset.classes or 1000
    images, labels = torch.zeros(2, *dataset.shape(size), dtype=torch.uint8), torch.tensor([0, 1])
    if dataset.is_text:
        labels = labels[:, None].expand(2, size)
    normalise = Normalise.of(dataset.mean, dataset.std, dataset.top, "cpu")
    batches = TensorBatches(images, labels, normalise=normalise, batch_size=batch_size)
    return Data(name, classes, dataset.shape(size), train=batches, valid=batches, test=batches)


def test_the_promised_names_are_there():
    assert set(PRESETS) >= PROMISED
    assert all(name == config.preset == preset(name).preset for name, config in PRESETS.items())


# Of networks that differ in their schedule alone, or take seconds to build, one is enough for every run of the tests.
_LARGE = {*(f"imagenet-resnet50-tuned{density}" for density in ("", "-20", "-30")), "imagenette-resnet50"}
_LARGE |= {"cifar10-wrn-16-10", "cifar10-wrn-16-8", "cifar10-vgg16-like"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in _LARGE)) for name in PRESETS])
def test_every_preset_builds(name, monkeypatch):
    monkeypatch.setattr("regrow.experiments.data.load", two_images)
    monkeypatch.setattr(
        "torch.nn.init.kaiming_uniform_", lambda tensor, *_, **__: tensor.detach().zero_()
    )  # most of the time
    run = Run(PRESETS[name])
    assert run.density == pytest.approx(run.config.density, abs=1e-4)
    assert sum(run.nonzeros_by_layer.values()) == run.summary().nonzeros
    assert run.topology.recipe.fraction(0) == (run.config.prune_rate or 0.5)


@pytest.mark.parametrize("name", ["mnist-lenet300-100", "mnist-lenet5", "fashion-lenet300-100", "fashion-lenet5"])
def test_the_mnist_learning_rate_drops_where_the_paper_says(name):
    config = PRESETS[name]
    steps = config.epochs * MNIST_STEPS_PER_EPOCH
    assert (steps, config.batch_size, config.valid_samples) == (54_000, 100, 6_000)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert [step for step in range(1, steps) if rates[step] != rates[step - 1]] == [25_000, 50_000]
    assert rates[0] == 0.1
    assert rates[25_000] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.001)


@pytest.mark.parametrize(("epochs", "drops"), [(10, [2_500, 5_000]), (50, [12_500, 25_000]), (200, [50_000, 100_000])])
def test_the_schedule_scales_with_the_epochs(epochs, drops):
    config = override(PRESETS["mnist-lenet5"], {"epochs": epochs})
    steps = epochs * MNIST_STEPS_PER_EPOCH
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert [step for step in range(1, steps) if rates[step] != rates[step - 1]] == drops
    recipe = make_recipe(config, MNIST_STEPS_PER_EPOCH)
    assert recipe.fraction(steps // 2) == pytest.approx((0.5 + 0.005) / 2)
    updates = [step for step in range(1, steps + 1) if recipe.update_at(step)]
    assert updates == list(range(MNIST_STEPS_PER_EPOCH, updates[-1] + 1, MNIST_STEPS_PER_EPOCH))
    assert updates[-1] >= steps - MNIST_STEPS_PER_EPOCH


def test_warm_up_rises_to_the_rate():
    config = preset("imagenet-resnet50-tuned")
    rates = [learning_rate(config, step, 9_000) for step in range(9_000)]
    assert rates[:451] == pytest.approx([0.2 * (step + 1) / 450 for step in range(450)] + [0.2])
    assert [step for step in range(451, 9_000) if rates[step] != rates[step - 1]] == [2_700, 5_400, 7_200]


@pytest.mark.parametrize("model", CIFAR10)
def test_the_cifar10_protocol_is_that_of_the_authors(model):
    config, steps_per_epoch = preset(f"cifar10-{model}"), 352
    steps = config.epochs * steps_per_epoch
    assert (config.epochs, config.batch_size, config.valid_samples, config.weight_decay) == (250, 128, 5_000, 5e-4)
    assert (config.augment, config.nesterov, config.momentum) == ("reflect-crop-flip", True, 0.9)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert [step for step in range(1, steps) if rates[step] != rates[step - 1]] == [30_000, 60_000]


@pytest.mark.parametrize(
    ("name", "density"),
    [("alexnet-s", 0.1), ("vgg16-c", 0.05), ("vgg16-d", 0.05), ("wrn-16-8", 0.05), ("wrn-28-2", 0.1)],
)
def test_each_network_has_the_density_that_was_published(name, density):
    assert preset(f"cifar10-{name}").density == density


@pytest.mark.parametrize(
    ("name", "density", "batch"), [("", 0.1, 288), ("-20", 0.2, 256), ("-30", 0.3, 256)], ids=["10", "20", "30"]
)
def test_the_tuned_imagenet_recipe_is_that_of_the_logs(name, density, batch):
    config = preset(f"imagenet-resnet50-tuned{name}")
    assert (config.density, config.batch_size, config.learning_rate, config.epochs) == (density, batch, 0.2, 100)
    assert config.learning_rate_drops == pytest.approx((0.3, 0.6, 0.8))
    assert (config.prune_rate, config.nesterov, config.decay_norms, config.keep_dense) == (0.5, False, False, ())
    assert (config.weight_decay, config.label_smoothing, config.warmup) == (1e-4, 0.1, 0.05)


def test_the_first_imagenet_recipe_keeps_the_first_convolution_and_the_shortcuts_dense():
    config = preset("imagenet-resnet50")
    assert (config.density, config.prune_rate, config.batch_size, config.learning_rate) == (0.15626, 0.2, 256, 0.1)
    with torch.device("meta"):
        model = models.build(config.model, image_shape=(3, 64, 64), classes=10)
    sparse = {slot.name for slot in eligible(model, (), config.keep_dense)}
    convolutions = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert convolutions - sparse == {"conv1.weight", *(f"layer{group}.0.downsample.0.weight" for group in (1, 2, 3, 4))}
    assert "fc.weight" in sparse


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decays", [True, False])
def test_norms_decay_or_not(optimizer, decays):
    settings = {"optimizer": optimizer, "decay_norms": decays, "weight_decay": 0.5, "learning_rate": 0.5}
    config = override(tiny(), settings)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in ("0.weight", "0.bias", "3.weight", "3.bias"))
    assert all(torch.equal(after[name], before[name]) != decays for name in ("1.weight", "4.weight"))


@pytest.mark.parametrize(("decay", "halfway"), [("constant", 0.4), ("cosine", 0.2025), ("linear", 0.2)])
def test_the_prune_rate_can_be_set(decay, halfway):
    config = override(tiny(), {"prune_rate": 0.4, "prune_rate_decay": decay})
    recipe = make_recipe(config, 10)
    assert [recipe.fraction(step) for step in (0, 10)] == pytest.approx([0.4, halfway])


def test_redistribution_can_be_left_out():
    config = override(tiny(), {"method": "sparse-momentum", "redistribute": "keep", "density": 0.05})
    assert make_recipe(config, 10).redistribute is regrow.redistribute.keep
    assert run_name(config) == "sparse-momentum-keep-0.05-seed0"
    assert make_recipe(override(config, {"redistribute": "method"}), 10).redistribute is not regrow.redistribute.keep


def test_every_method_is_public_and_every_public_method_has_a_name():
    for name, factory in METHODS.items():
        assert getattr(regrow, name.replace("-", "_")) is factory
    public = [value for value in vars(regrow).values() if inspect.isfunction(value)]
    factories = [value for value in public if value.__module__.startswith("regrow.methods.")]
    assert set(factories) == {*METHODS.values(), *regrow.methods.STEP_METHODS.values()}


@pytest.mark.parametrize("name", PRESETS)
def test_settings_come_back_from_their_file(name, tmp_path):
    changes = {"keep_dense": ["first", "fc*"], "prune_rate": 0.1 + 0.2, "clip_gradient_norm": 1e-7}
    for config in (PRESETS[name], override(PRESETS[name], changes)):
        (tmp_path / "config.yaml").write_text(config.to_yaml())
        assert read_config(tmp_path / "config.yaml") == config


def other_value(name, value):
    """Return another value that the setting takes."""
    choices = {
        "augment": "crop-flip",
        "optimizer": "adam",
        "precision": "bfloat16",
        "prune_rate_decay": "linear",
        "model_options": {"hidden": [3]},
        "method_options": {"samples": 3},
        "keep_dense": ["first"],
        "redistribute": "keep",
        "prune": "set",
        "grow": "random",
        "train_samples": 50,
        "learning_rate_drops": [0.25],
        "image_size": 8,
        "prune_rate": 0.25,
        "clip_gradient_norm": 0.25,
        "method": "set",
        "growth": "window:44",
        "keep_returning": False,
        "distribution": "erdos-renyi",
        "compute": 2.0,
        "block": "4x1",
    }
    if name in choices:
        return choices[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 or 0.25
    return value + 1 if isinstance(value, int) else f"other-{value}"


@pytest.mark.parametrize("name", TrainConfig.model_fields)
def test_every_setting_can_be_overridden(name):
    base = preset("digits-mlp")
    value = other_value(name, getattr(base, name))
    changed = override(base, parse_settings([f"{name}={yaml.safe_dump(value, default_flow_style=True).strip()}"]))
    assert getattr(changed, name) == (tuple(value) if isinstance(getattr(base, name), tuple) else value)
    assert override(changed, {name: getattr(base, name)}) == base


def test_presets_are_listed_whole():
    result = command("presets")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in PRESETS)


def test_no_preset_trains_longer_than_its_schedule():
    assert all(0 < drop < 1 for config in PRESETS.values() for drop in config.learning_rate_drops)
    assert all(math.isclose(config.learning_rate_drop_factor, 0.1) for config in PRESETS.values())
