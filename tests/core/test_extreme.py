"""The highest and lowest of few and of very many scores, against a sort."""

import pytest
import torch

from regrow.core.extreme import extreme

MANY = 150_000  # enough that a sample tells most to be too low


def draw(count):
    return torch.rand(count, generator=torch.Generator().manual_seed(0))


def hidden(count):
    """High scores where a sample in strides of 7 never looks."""
    score = torch.zeros(count)
    score[1::7] = draw(len(score[1::7]))
    return score


def sampled(count):
    """High scores only where a sample in strides of 7 looks: all others are lower than it tells."""
    score = torch.zeros(count)
    score[::7] = 1 + draw(len(score[::7]))
    return score


SCORES = {
    "all different": draw,
    "few values": lambda count: (draw(count) * 5).floor(),
    "most are zero": lambda count: draw(count) * (draw(count) > 0.99),
    "all the same": torch.ones,
    "in bfloat16": lambda count: draw(count).bfloat16(),
    "hidden from the sample": hidden,
    "known to the sample": sampled,
}


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.00001, 0.003, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("count", [1000, MANY])
@pytest.mark.parametrize("make", SCORES.values(), ids=SCORES)
def test_it_is_what_a_sort_by_score_and_index_says(make, count, share, largest):
    score, wanted = make(count), round(share * count)
    index = torch.randperm(count, generator=torch.Generator().manual_seed(1))  # the lower one leads among equals
    by_index = index.argsort()
    order = by_index[score[by_index].argsort(descending=largest, stable=True)]
    assert torch.equal(extreme(score, wanted, index.__getitem__, largest=largest), order[:wanted].sort().values)


def test_a_score_that_is_no_number_is_refused_among_many():
    score = draw(MANY)
    score[77] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        extreme(score, 10, lambda at: at, largest=True)
