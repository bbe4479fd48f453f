"""Dense networks with as many weights as sparse ones."""

import pytest
import torch

from regrow.convert.eligible import eligible
from regrow.experiments.errors import UserError
from regrow.experiments.models import MODELS, build
from regrow.experiments.models.small import small_dense

SHAPES = {"lenet300-100": (1, 28, 28), "lenet5": (1, 28, 28), "mlp": (3, 32, 32), "gpt": (1, 1, 64)}


def count(name, width, keep_dense=(), **options):
    with torch.device("meta"):
        model = build(name, image_shape=SHAPES.get(name, (3, 32, 32)), classes=10, width=width, **options)
    return sum(slot.weight.numel() for slot in eligible(model, (), keep_dense))


def small(name, density, options=None, keep_dense=()):
    shape = SHAPES.get(name, (3, 32, 32))
    return small_dense(name, density, image_shape=shape, classes=10, options=options or {}, keep_dense=keep_dense)


# Of networks of one kind the smallest is enough for every run of the tests.
LARGE = {"resnet50", "wrn-16-8", "wrn-22-8", "wrn-16-10", "vgg16-like"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in MODELS])
@pytest.mark.parametrize("density", [0.05, pytest.param(0.2, marks=pytest.mark.slow)])
def test_no_width_comes_nearer(name, density):
    found = small(name, density)
    wanted = round(density * count(name, 1.0))
    assert found.of == count(name, 1.0)
    assert found.weights == count(name, found.width)
    for step in (1 + 1e-3, 1 - 1e-3, 1.02, 0.98):
        assert abs(found.weights - wanted) <= abs(count(name, found.width * step) - wanted)
    assert abs(found.weights - wanted) < 0.12 * wanted  # layers have whole planes


@pytest.mark.slow
def test_the_largest_networks_come_within_a_percent():
    for name in ("vgg16-d", "wrn-22-8", "mlp", "resnet50"):
        assert small(name, 0.1).weights == pytest.approx(0.1 * count(name, 1.0), rel=0.01)


def test_what_the_sparse_network_has_dense_counts_in_full():
    keep = ("fc",)
    wanted = round(0.1 * count("wrn-28-2", 1.0, keep)) + 10 * 128
    assert small("wrn-28-2", 0.1, keep_dense=keep).weights == pytest.approx(wanted, rel=0.03)


def test_the_width_is_one_of_the_network_asked_for():
    half = small("mlp", 0.1, {"width": 0.5, "hidden": (400, 200)})
    assert half.of == count("mlp", 0.5, hidden=(400, 200))
    assert small("mlp", 1.0, {"width": 0.5}).width == 0.5
    assert half.width < 0.5


def test_random_generators_stay_as_they_were():
    before = torch.get_rng_state()
    small("vgg-small", 0.1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_cannot_be_built_is_an_error():
    with pytest.raises(UserError, match="takes no option wrong"):
        small("mlp", 0.1, {"wrong": 1})
