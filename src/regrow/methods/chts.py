"""CHTs: survivors and new links are drawn, by weight and by the topology alone."""

import functools
from typing import Literal

import torch
from torch import Tensor

from regrow.core import redistribute, schedule, score
from regrow.core.entries import Entries, LayerState
from regrow.core.extreme import extreme, refuse_nan
from regrow.core.growth import Growth
from regrow.core.positions import where
from regrow.core.recipe import Recipe
from regrow.core.rewire import Moves

__all__ = ["chts"]

Rule = Literal["ch2", "ch3"]

# The logarithm that stands for that of zero, below those of all numbers.
_OF_ZERO = -1000.0
# Numbers of a block of the matrix of common neighbours.
_AT_ONCE = 1 << 24


def chts(
    every: int,
    steps: int,
    *,
    prune_rate: float = 0.3,
    rule: Rule = "ch2",
    relative: bool = False,
    growth: Growth | None = None,
) -> Recipe:
    """CHTs, Cannistraci-Hebb training with a soft rule: what grows is told by the topology, without a gradient.

    **What it does.** A layer is a graph of outputs and inputs (of a convolution: of its filters and the weights of
    one). At every update `prune_rate` of its weights leave: those that stay are drawn, with probability in proportion
    to |weight| to the power T, which rises from 1 to 3 over the training. As many absent links are drawn in proportion
    to their score in what is left: the nodes are counted that lie on paths of three links between the two ends, each
    by (1 + i) / (1 + e), where i is its links within that neighbourhood and e those beyond it, but for its link to the
    end (CH2-L3n; `rule="ch3"`: 1 / (1 + e), CH3-L3n). Where too few links have a score, the rest are drawn among all
    others. What was removed and is drawn again stays as it was; others grow at zero, their optimizer state reset.

    **When to use it.** For linear layers at 1 to 10 %, and where no gradient of absent weights can be had: it reads the
    weights alone, on sparse storage too, with any optimizer.

    **Settings.** Prune rate 0.3, constant, uniform. `relative`: a weight counts by its part of the sum of
    |weight| of its output, plus that of its input, in the place of |weight|.

    **Watch for.** Not in it are the authors' start (bipartite small-world graphs, or correlations of inputs), the
    removal of nodes that have lost all links on one side, and the end of a layer's updates once most links return. An
    input or output without links has no paths, so nothing grows at it but by chance. In blocks the graph is that of
    blocks.

    **Cost.** At an update four products of dense matrices for each layer, of m outputs and n inputs 2 m n (m + n)
    multiply-adds in all, and a score for every absent link; steps cost what the weights that exist cost.

    **Credit.** Zhang et al. 2024, "Epitopological Learning and Cannistraci-Hebb Network Shape Intelligence
    Brain-Inspired Theory for Ultra-Sparse Advantage in Deep Learning", ICLR, and Zhang et al. 2025, arXiv:2501.19107,
    with the code `biomedical-cybernetics/Cannistraci-Hebb-training`.

    Args:
        every: optimizer steps between updates.
        steps: optimizer steps of the whole training.
        prune_rate: share of each layer's weights that an update removes, rounded down.
        rule: how nodes between two ends count, "ch2" or "ch3".
        relative: whether weights count relative to those of their output and input.
        growth: which absent weights may grow, if not all (`candidates`).

    Raises:
        ValueError: if there is no such rule.

    Example:
        >>> recipe = chts(every=100, steps=1000)
        >>> recipe.needs, recipe.update_at(900), recipe.update_at(1000)
        ((), True, False)
    """
    if rule not in ("ch2", "ch3"):
        raise ValueError(f"there is no rule {rule!r}: choose ch2 or ch3")
    return Recipe(
        drop=score.magnitude,
        redistribute=redistribute.keep,
        grow=links,
        rewire=functools.partial(_rewire, rule=rule, relative=relative, steps=steps),
        fraction=schedule.constant(prune_rate),
        update_at=schedule.every(every, until=steps),
        reset_state="warm",
        keep_returning=True,
        rounding="down",
        growth=growth,
    )


def links(entries: Entries) -> Tensor:
    """Score all alike: entries alone know no topology, the rewiring of CHTs does. Another score in its place counts."""
    return torch.zeros(len(entries), device=entries.device)


def _rewire(
    layer: LayerState, drop: score.Score, grow: score.Score, moves: Moves, *, rule: Rule, relative: bool, steps: int
) -> tuple[Tensor, Tensor]:
    size = layer.unit_size
    rows, columns = layer.shape[0] // layer.unit[0], layer.numel // size // (layer.shape[0] // layer.unit[0])
    row, column = _ends(layer, layer.active)
    strength = score.unit_means(drop, layer.active, size).double()
    if relative:
        of_row = strength.new_zeros(rows).index_add_(0, row, strength)[row]
        of_column = strength.new_zeros(columns).index_add_(0, column, strength)[column]
        strength = (strength / of_row).nan_to_num_() + (strength / of_column).nan_to_num_()
    temperature = 1 + 2 * moves.step / steps
    stays = torch.zeros(len(strength), dtype=torch.bool, device=strength.device)
    stays[_drawn(temperature * _log(strength), layer.active, len(strength) - moves.drop, size)] = True

    removed = where(~stays)
    absent = layer.candidates.join(layer.active.select((~stays).repeat_interleave(size)))
    free = len(layer.candidates) // size
    if grow is links:
        graph = torch.zeros(rows, columns, device=strength.device)
        graph[row[stays], column[stays]] = 1
        scores = _paths(graph, rule) + _paths(graph.T, rule).T
        grown = _drawn(_log(scores[_ends(layer, absent)].double()), absent, moves.grow, size)
    else:
        place = absent.index_of_units(size)
        grown = extreme(score.unit_means(grow, absent, size), moves.grow, place.__getitem__, largest=True)
    stays[removed[grown[grown >= free] - free]] = True
    return where(~stays), grown[grown < free]


def _ends(layer: LayerState, entries: Entries) -> tuple[Tensor, Tensor]:
    """Return the output and the input of each unit: of convolutions the input stands for a weight of a filter."""
    at = entries.index_of_units(layer.unit_size)
    inputs = layer.shape[1] if len(layer.shape) > 1 else 1
    kernel = layer.numel // (layer.shape[0] * inputs)
    output, channel = at // (inputs * kernel), at // kernel % inputs
    return output // layer.unit[0], channel // layer.unit[1] * kernel + at % kernel


def _paths(graph: Tensor, rule: Rule) -> Tensor:
    """Return for each output and input the sum over the outputs between them, of how each counts.

    Between them lie the outputs that are linked to the input and have an input in common with the output.

    Args:
        graph: 1 where there is a link, shape (outputs, inputs).
        rule: how they count.
    """
    degree, result = graph.sum(dim=1), torch.empty_like(graph)
    at_once = max(_AT_ONCE // len(graph), 1)
    for start in range(0, len(graph), at_once):
        common = graph[start : start + at_once] @ graph.T
        beyond = (degree - common - 1).clamp_(min=0)
        counts = (1 + common if rule == "ch2" else 1) / (1 + beyond)
        result[start : start + at_once] = torch.where(common > 0, counts, 0) @ graph
    return result


def _log(weights: Tensor) -> Tensor:
    """Return the logarithm; that of zero is lower than all others, and a number."""
    refuse_nan(weights)
    return torch.where(weights > 0, weights.log(), _OF_ZERO)


def _drawn(logarithm: Tensor, entries: Entries, count: int, size: int) -> Tensor:
    """Draw `count` units one after the other, each with probability in proportion to its weight; ascending numbers.

    In a race in which each arrives after an exponential time, at a rate that is its weight, the first are such a draw.

    Args:
        logarithm: of the weight of each unit.
        entries: their entries, unit after unit.
        count: how many.
        size: entries in a unit.
    """
    arrival = (-entries.noise()[::size].log()).log() - logarithm
    return extreme(arrival, count, lambda at: at, largest=False)
