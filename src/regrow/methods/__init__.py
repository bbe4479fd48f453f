"""Methods: one file each, holding the factory of its recipe, with its card as the docstring."""

from regrow.methods.rigl import rigl as rigl
from regrow.methods.set import set as set
from regrow.methods.sparse_momentum import sparse_momentum as sparse_momentum
from regrow.methods.static import static as static
