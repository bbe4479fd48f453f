"""Options of a method, as the setting `method_options` gives them, checked against what the method takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from regrow.experiments.errors import UserError
from regrow.experiments.train.config import TrainConfig

__all__ = ["method_options"]


def method_options(
    config: TrainConfig, method: Callable[..., Any], given: Iterable[str], more: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the options of a method that the settings name.

    Args:
        config: the settings.
        method: what takes the options, by name.
        given: parameters that are no options: other settings give them, or none does.
        more: further options that belong to the method.

    Raises:
        UserError: if the method has no option of a name.
    """
    known = [*(name for name in inspect.signature(method).parameters if name not in set(given)), *more]
    unknown = sorted(set(config.method_options) - set(known))
    if unknown:
        takes = f"its options: {', '.join(known)}" if known else "it has none"
        raise UserError(f"method_options: {config.method} takes no option {', '.join(unknown)}; {takes}")
    return dict(config.method_options)
