"""A way over from the code of sparse momentum's authors, `sparselearning.core`: its names and calls, done by regrow.

A script that trains with `Masking` runs with another import. What it cannot have that way is in `regrow` itself:
sparse storage, the other methods, checkpoints of the topology. `docs/moving-over.md` has both side by side.

The calls are those of github.com/TimDettmers/sparse_learning (Dettmers & Zettlemoyer 2019, arXiv:1907.04840).
"""

from regrow.compat.arguments import add_sparse_args
from regrow.compat.decay import CosineDecay, Decay, LinearDecay
from regrow.compat.masking import Masking

__all__ = ["CosineDecay", "Decay", "LinearDecay", "Masking", "add_sparse_args"]
