import pytest
import torch
from hypothesis import settings

# The same examples in every run and on every machine: a red test is a fault, never luck.
settings.register_profile("regrow", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("regrow")

# The tensors are tiny: a second thread costs more than it saves, far more on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
