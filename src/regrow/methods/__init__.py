"""Methods: one file each, holding the factory of its recipe or of its rule, with its card as the docstring.

A method is registered here and nowhere else: what `__all__` names is in `regrow`, and `METHODS` names the same
factories as the command line does.
"""

from collections.abc import Callable, Mapping

from regrow.core.recipe import Recipe
from regrow.core.step_rule import StepRule
from regrow.methods.acdc import acdc
from regrow.methods.chts import chts
from regrow.methods.deep_r import deep_r
from regrow.methods.dsr import dsr
from regrow.methods.gmp import gmp
from regrow.methods.granet import granet
from regrow.methods.gse import gse
from regrow.methods.itop import itop
from regrow.methods.mest import mest
from regrow.methods.rigl import rigl
from regrow.methods.set import set
from regrow.methods.soft_threshold import soft_threshold
from regrow.methods.sparse_momentum import sparse_momentum
from regrow.methods.sr_ste import sr_ste
from regrow.methods.srigl import srigl
from regrow.methods.static import static
from regrow.methods.top_kast import top_kast

__all__ = [
    "acdc",
    "chts",
    "deep_r",
    "dsr",
    "gmp",
    "granet",
    "gse",
    "itop",
    "mest",
    "rigl",
    "set",
    "soft_threshold",
    "sparse_momentum",
    "sr_ste",
    "srigl",
    "static",
    "top_kast",
]

METHODS: Mapping[str, Callable[..., Recipe]] = {
    "static": static,
    "set": set,
    "rigl": rigl,
    "sparse-momentum": sparse_momentum,
    "dsr": dsr,
    "gmp": gmp,
    "granet": granet,
    "itop": itop,
    "mest": mest,
    "acdc": acdc,
    "srigl": srigl,
    "chts": chts,
    "gse": gse,
}
"""The factory of each method by its name, called as `factory(every=..., steps=...)`."""

STEP_METHODS: Mapping[str, Callable[..., StepRule]] = {
    "top-kast": top_kast,
    "sr-ste": sr_ste,
    "soft-threshold": soft_threshold,
    "deep-r": deep_r,
}
"""Likewise for the methods that act in every step, which `regrow.StepUpdater` carries out."""
