"""Methods: one file each, holding the factory of its recipe, with its card as the docstring.

A method is registered here and nowhere else: what `__all__` names is in `regrow`, and `METHODS` names the same
factories as the command line does.
"""

from collections.abc import Callable, Mapping

from regrow.core.recipe import Recipe
from regrow.methods.acdc import acdc
from regrow.methods.dsr import dsr
from regrow.methods.gmp import gmp
from regrow.methods.granet import granet
from regrow.methods.itop import itop
from regrow.methods.mest import mest
from regrow.methods.rigl import rigl
from regrow.methods.set import set
from regrow.methods.sparse_momentum import sparse_momentum
from regrow.methods.static import static

__all__ = ["acdc", "dsr", "gmp", "granet", "itop", "mest", "rigl", "set", "sparse_momentum", "static"]

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
}
"""The factory of each method by its name, called as `factory(every=..., steps=...)`."""
