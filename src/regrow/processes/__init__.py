"""Training in many processes, on PyTorch's own engine: what they must agree on, and what travels between them."""

from regrow.processes.checkpoint import read_checkpoint
from regrow.processes.gradients import send_active

__all__ = ["read_checkpoint", "send_active"]
