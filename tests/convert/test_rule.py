"""backend="auto" without an example: the rule chooses for each weight; mappings of globs say it by hand."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

import regrow
from regrow.convert.rule import LayerShape, conv_choice, linear_choice
from regrow.storage import Storage


def convolutions(*, first=3, width=64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(first, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def storages(model):
    return {layer.name: str(layer.storage) for layer in regrow.summary(model).layers}


def reasons(model):
    return {layer.name: layer.reason for layer in regrow.summary(model).layers}


def test_without_an_example_the_rule_stores_sparsely_where_that_wins():
    model = regrow.sparsify(convolutions(), 0.1)
    assert storages(model) == {"0.weight": "sparse", "3.weight": "sparse", "8.weight": "masked"}
    assert reasons(model)["8.weight"] == "below 16,384 weights"
    assert set(storages(regrow.sparsify(convolutions(), 0.6)).values()) == {"masked"}
    model = regrow.sparsify(nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 100)), 0.1)
    assert list(storages(model).values()) == ["sparse", "sparse", "masked"]


def test_one_dimension_is_as_two():
    layers = [nn.Conv1d(16, 64, 9), nn.ReLU(), nn.Conv1d(64, 64, 3), nn.ConvTranspose1d(64, 8, 3)]
    assert list(storages(regrow.sparsify(nn.Sequential(*layers), 0.1)).values()) == ["sparse", "sparse", "masked"]


def test_equal_models_get_equal_storages_and_units_make_no_difference():
    chosen = [storages(regrow.sparsify(convolutions(), 0.1, seed=seed, block=block))
              for seed in (0, 1) for block in ((1, 1), (4, 1))]  # fmt: skip
    assert all(each == chosen[0] for each in chosen)


def test_what_has_no_sparse_form_is_masked_in_the_same_call_with_its_reason():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.core, self.head = nn.LSTM(200, 200), nn.Linear(200, 200)

    model = regrow.sparsify(Mixed(), 0.1)
    assert storages(model)["head.weight"] == "sparse"
    assert "only the weights of nn.Linear" in reasons(model)["core.weight_ih_l0"]
    assert set(reasons(regrow.sparsify(convolutions().double(), 0.1)).values()) == {
        "no kernels for torch.float64 on cpu"
    }
    with torch.autocast("cpu", torch.float16):
        assert set(reasons(regrow.sparsify(convolutions(), 0.1)).values()) == {"no kernels for torch.float16 on cpu"}


def test_under_autocast_to_bfloat16_dense_layers_are_faster_and_limits_lower():
    assert "sparse" in storages(regrow.sparsify(convolutions(), 0.3)).values()
    with torch.autocast("cpu", torch.bfloat16):
        assert "sparse" in storages(regrow.sparsify(convolutions(), 0.1)).values()
        assert set(storages(regrow.sparsify(convolutions(), 0.3)).values()) == {"masked"}
    assert conv_choice(LayerShape(64, 64, 9, 0.3, dense_speed=2.0), company=True).reason == "density above 0.25"
    assert linear_choice(LayerShape(4096, 4096, 1, 0.15, dense_speed=2.0), company=True).reason == "density up to 0.15"


def test_under_autocast_to_bfloat16_convolutions_of_units_are_sparse_up_to_a_higher_density():
    with torch.autocast("cpu", torch.bfloat16):
        single, units = (regrow.sparsify(convolutions(), 0.35, block=block) for block in ((1, 1), (4, 1)))
    assert storages(single)["3.weight"] == "masked"
    assert storages(units)["3.weight"] == "sparse"


def test_a_model_that_is_a_single_layer_is_masked():
    assert storages(regrow.sparsify(nn.Linear(800, 800), 0.1)) == {"weight": "masked"}


def test_light_convolutions_go_with_the_many():
    assert conv_choice(LayerShape(64, 3, 9, 0.1), company=True).storage is Storage.SPARSE
    assert conv_choice(LayerShape(64, 3, 9, 0.1), company=False).storage is Storage.MASKED
    assert conv_choice(LayerShape(64, 64, 9, 0.1), company=False).storage is Storage.SPARSE
    alone = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4)))
    kept = regrow.sparsify(alone, 0.1, keep_dense=["0", "1", "2"])
    assert storages(kept) == {"3.weight": "masked"}


def test_a_head_of_few_outputs_goes_with_most_linear_layers():
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 2000), nn.Linear(2000, 10)]
    model = regrow.sparsify(nn.Sequential(*layers), 0.1)
    assert set(storages(model).values()) == {"sparse"}
    alone = regrow.sparsify(nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2000), nn.Linear(2000, 10)), 0.1)
    assert reasons(alone)["2.weight"] == "a side below 32"


def test_a_layer_that_a_distribution_leaves_dense_is_masked_among_sparse_ones():
    model = regrow.sparsify(convolutions(first=1, width=128), 0.05, distribution="erdos-renyi-kernel")
    densities = {layer.name: layer.density for layer in regrow.summary(model).layers}
    assert densities["0.weight"] > 0.5
    assert storages(model)["0.weight"] == "masked"
    assert storages(model)["3.weight"] == "sparse"


def test_units_of_four_outputs_are_stored_sparsely_up_to_higher_densities():
    for choose, layer in ((conv_choice, LayerShape(64, 64, 9, 0.55)), (linear_choice, LayerShape(4096, 4096, 1, 0.5))):
        assert choose(layer, company=True).storage is Storage.MASKED
        assert choose(replace(layer, unit=2), company=True).storage is Storage.MASKED
        assert choose(replace(layer, unit=4), company=True).storage is Storage.SPARSE
    assert set(storages(regrow.sparsify(convolutions(), 0.55, block=(4, 1))).values()) == {"masked", "sparse"}
    assert set(storages(regrow.sparsify(convolutions(first=4), 0.55, block=(4, 2))).values()) == {"masked"}


@pytest.mark.parametrize("density", [0.02, 0.1, 0.2, 0.3, 0.5, 1.0])
def test_denser_and_smaller_linear_layers_are_never_sparser_stored(density):
    chosen = [
        linear_choice(LayerShape(side, side, 1, density), company=True).storage is Storage.SPARSE
        for side in (64, 256, 512, 4096)
    ]
    assert chosen == sorted(chosen)
    assert not (density >= 0.5 and any(chosen))


def test_backends_by_glob_the_first_match_counts():
    model = regrow.sparsify(convolutions(), 0.1, backend={"3": "masked", "*.weight": "cpu"})
    assert storages(model) == {"0.weight": "sparse", "3.weight": "masked", "8.weight": "sparse"}
    assert set(reasons(model).values()) == {""}
    model = regrow.sparsify(convolutions(), 0.1, backend={"0.*": "masked"})
    assert storages(model) == {"0.weight": "masked", "3.weight": "sparse", "8.weight": "masked"}
    assert reasons(model)["0.weight"] == ""
    assert reasons(model)["3.weight"]


def test_a_glob_that_matches_nothing_and_an_unknown_backend_are_refused():
    with pytest.raises(ValueError, match=r"'features\.\*' matches no weight.*0\.weight, 3\.weight"):
        regrow.sparsify(convolutions(), 0.1, backend={"features.*": "cpu"})
    with pytest.raises(ValueError, match="no backend 'gpu'"):
        regrow.sparsify(convolutions(), 0.1, backend={"*": "gpu"})


def test_cpu_names_all_that_it_cannot_hold_and_leaves_the_model():
    model = nn.Sequential(nn.LSTM(4, 4), nn.ConvTranspose2d(2, 2, 2), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="3 of 4 weights") as caught:
        regrow.sparsify(model, 0.5, backend="cpu")
    for name in ("0.weight_ih_l0", "0.weight_hh_l0", "1.weight"):
        assert repr(name) in str(caught.value)
    with pytest.raises(ValueError, match="1 of 1"):
        regrow.sparsify(model, 0.5, backend={"1": "cpu", "*": "masked"})
    assert not regrow.masks(model)


def test_what_was_chosen_is_logged_once_and_printed(caplog):
    with caplog.at_level(logging.INFO, logger="regrow"):
        model = regrow.sparsify(convolutions(), 0.1)
    (record,) = caplog.records
    assert record.getMessage() == "sparsify: 2 of 3 weights stored sparsely, 1 masked (below 16,384 weights)"
    table = str(regrow.summary(model)).splitlines()
    assert table[0].endswith("why")
    assert table[2].endswith("density up to 0.5")


def test_a_state_goes_from_one_storage_to_the_other():
    chosen, masked = (regrow.sparsify(convolutions(), 0.1, backend=backend) for backend in ("auto", "masked"))
    masked.load_state_dict(chosen.state_dict())
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(masked.eval()(x), chosen.eval()(x), rtol=1e-4, atol=1e-5)
