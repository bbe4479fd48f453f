import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from regrow.core.distribution import DISTRIBUTIONS, erdos_renyi, erdos_renyi_kernel, uniform
from regrow.core.units import fitting_unit

DENSITIES = st.floats(0.001, 1.0)
SHAPES = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5).map(tuple), min_size=1, max_size=5).map(
    lambda shapes: {f"{i}.weight": shape for i, shape in enumerate(shapes)}
)
UNITS = st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())


def published_density(name, shape):
    """Return what a layer's density is proportional to, from the papers."""
    fan_out, fan_in, *kernel = shape if len(shape) > 1 else (*shape, 1)
    if name == "uniform":
        return Fraction(1)
    if name == "erdos-renyi":
        return Fraction(fan_in + fan_out, fan_in * fan_out)
    return Fraction(fan_in + fan_out + sum(kernel), fan_in * fan_out * math.prod(kernel))


def fitted(shapes, asked):
    """Return the size of the units of each layer."""
    sides = {name: (shape[0], shape[1] if len(shape) > 1 else 1) for name, shape in shapes.items()}
    return {name: math.prod(fitting_unit(side, asked)) for name, side in sides.items()}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@given(shapes=SHAPES, density=DENSITIES, asked=UNITS)
def test_counts_are_exact_capped_and_in_the_published_proportion(name, shapes, density, asked):
    sizes = fitted(shapes, asked)
    numel = [math.prod(shape) for shape in shapes.values()]
    total = round(density * sum(numel))
    share = [published_density(name, shape) * n for shape, n in zip(shapes.values(), numel, strict=True)]
    expected = reference.apportion(total, share, numel, list(sizes.values()))
    if 0 in expected:
        with pytest.raises(ValueError, match="too small to leave layer"):
            DISTRIBUTIONS[name](shapes, density, sizes)
        return
    counts = DISTRIBUTIONS[name](shapes, density, sizes)
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == reference.nearest_below(total, numel, list(sizes.values()))
    if asked == (1, 1):
        assert counts == DISTRIBUTIONS[name](shapes, density)
    assert list(counts.values()) == expected


@each_distribution
@given(shapes=SHAPES, asked=UNITS)
def test_the_density_that_the_error_advises_is_enough(distribution, shapes, asked):
    sizes = fitted(shapes, asked)
    try:
        distribution(shapes, 1e-9, sizes)
    except ValueError as error:
        advised = re.search(r"take (\S+) or more", str(error))
        assert all(distribution(shapes, float(advised.group(1)), sizes).values())


@each_distribution
@given(shapes=SHAPES)
def test_full_density_fills_every_layer(distribution, shapes):
    assert distribution(shapes, 1.0) == {name: math.prod(shape) for name, shape in shapes.items()}


def test_uniform_gives_each_layer_the_density():
    assert uniform({"a": (300, 784), "b": (100, 300), "c": (10, 100)}, 0.05) == {"a": 11760, "b": 1500, "c": 50}


@pytest.mark.parametrize("distribution", [erdos_renyi, erdos_renyi_kernel])
def test_densities_above_one_are_capped_and_spread(distribution):
    counts = distribution({"a": (300, 784), "b": (4, 4)}, 0.05)
    assert counts == {"a": round(0.05 * (300 * 784 + 16)) - 16, "b": 16}


def test_the_kernel_counts_in_erdos_renyi_kernel_alone():
    shapes = {"conv": (8, 8, 5, 5), "linear": (40, 40)}
    assert erdos_renyi(shapes, 0.2) == {"conv": 533, "linear": 107}  # 16 * 25 : 80
    assert erdos_renyi_kernel(shapes, 0.2) == {"conv": 157, "linear": 483}  # 26 : 80
