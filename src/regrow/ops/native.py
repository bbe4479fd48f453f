"""The compiled kernels, as the operations ask for them."""

from regrow.native import instruction_set, kernels, kernels_serve, use_instruction_set

__all__ = ["instruction_set", "kernels", "kernels_serve", "use_instruction_set"]
