import pytest
import torch
from torch import nn

import regrow
from cases import STORAGES, each_model, each_stored, model
from regrow import summary

# Positions at which each weight of the model is applied for one sample, counted by hand.
POSITIONS = {
    "mlp": [1, 1],
    "inputs-first": [3, 3],
    "conv1d": [5, 5],
    "conv2d": [12, 12],
    "conv3d": [18, 18],
    "grouped": [12, 12],
    "transposed1d": [5, 5],
    "transposed2d": [12, 12],
    "transposed3d": [18, 18],
    "attention": [3, 3],
    "cross-attention": [3, 3, 3, 3],
    "lstm": [3, 3, 3, 3],
    "gru": [3, 3, 3, 3, 3],
    "tied": [2],
    "tied-to-embedding": [3],
}


@each_stored
def test_the_table_counts_what_there_is(model, storage):
    plain = model.build()
    numbers = sum(parameter.numel() for parameter in plain.parameters())
    sparse = regrow.sparsify(plain, 0.3, backend=storage)
    masks = regrow.masks(sparse)
    table = summary(sparse)
    assert [row.name for row in table.layers] == list(masks)
    for row, mask in zip(table.layers, masks.values(), strict=True):
        assert row.shape == tuple(mask.shape)
        assert row.storage == STORAGES[storage]
        assert row.nonzeros == int(mask.sum())
        assert row.density == row.nonzeros / mask.numel()
        assert row.flops == 2 * row.nonzeros
        assert row.sparse_bytes == row.nonzeros * 8 + (mask.shape[0] + 1) * 4
    absent = sum(int((~mask).sum()) for mask in masks.values())
    assert table.nonzeros == sum(row.nonzeros for row in table.layers)
    assert table.density == table.nonzeros / (table.nonzeros + absent)
    assert table.parameters == numbers - absent
    assert table.dense_parameters == table.parameters - table.nonzeros
    assert table.sparse_bytes == 4 * table.dense_parameters + sum(row.sparse_bytes for row in table.layers)
    assert not table.per_sample


@each_model
@pytest.mark.parametrize("batch", [1, 4])
def test_operations_are_two_for_each_weight_and_position_of_a_sample(model, batch):
    sparse = regrow.sparsify(model.build(), 0.3)
    table = summary(sparse, model.inputs(0, batch))
    assert [row.flops / (2 * row.nonzeros) for row in table.layers] == POSITIONS[model.name]
    assert table.flops == sum(row.flops for row in table.layers)
    assert table.per_sample


def test_strides_and_padding_count():
    sparse = regrow.sparsify(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ConvTranspose2d(4, 2, 2, stride=2)), 0.5)
    rows = summary(sparse, torch.zeros(2, 3, 9, 9)).layers
    assert [row.flops for row in rows] == [2 * row.nonzeros * 16 for row in rows]


def test_the_summary_changes_nothing():
    sparse = regrow.sparsify(model("mlp").build(), 0.3).train()
    before = {name: value.clone() for name, value in sparse.state_dict().items()}
    summary(sparse, model("mlp").inputs(0))
    assert sparse.training
    assert all(torch.equal(value, before[name]) for name, value in sparse.state_dict().items())
    assert not any(module._forward_hooks for module in sparse.modules())


def test_the_summary_leaves_each_module_in_its_mode():
    sparse = regrow.sparsify(model("mlp").build(), 0.3).train()
    sparse[1].eval()
    summary(sparse, model("mlp").inputs(0))
    assert [module.training for module in sparse] == [True, False, True, True]


def test_absent_weights_that_are_not_zero_are_counted_and_named():
    sparse = regrow.sparsify(model("mlp").build(), 0.3, backend="masked")
    with torch.no_grad():
        sparse[3].weight.add_(1)
    first, last = summary(sparse).layers
    assert (first.nonzero_absent, first.nonzeros) == (0, int(sparse[0].weight_mask.sum()))
    assert (last.nonzero_absent, last.nonzeros, last.density) == (42, 60, 1)
    assert "42 of these nonzeros are absent by the masks of 3.weight: only the optimizer" in str(summary(sparse))
    assert "absent by the masks" not in str(summary(regrow.sparsify(model("mlp").build(), 0.3)))


def test_a_dense_model_has_a_table_without_rows():
    table = summary(nn.Linear(8, 4))
    assert (table.layers, table.density, table.parameters, table.bytes) == ((), 1.0, 36, 144)


def test_the_printed_table_has_a_line_for_each_weight_and_equal_widths():
    lines = str(summary(regrow.sparsify(model("conv2d").build(), 0.3, backend="masked"))).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["0.weight", "2.weight"]
    assert len({len(line) for line in lines[:-1]}) == 1


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 4)

    def forward(self, x, added):
        return self.inner(x) + added


def test_an_example_may_be_a_tuple_of_arguments():
    network = regrow.sparsify(Sum(), 0.5)
    assert regrow.summary(network, (torch.randn(5, 3, 8), torch.randn(5, 3, 4))).flops == 2 * 16 * 3


def test_an_example_without_samples_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        regrow.summary(regrow.sparsify(nn.Linear(8, 4), 0.5), (3, torch.randn(0, 8)))
