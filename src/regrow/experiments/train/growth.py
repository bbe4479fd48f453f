"""Growth sources by name, as settings and the command line write them."""

from __future__ import annotations

from regrow.core.growth import Growth, candidates, exact, guided, window

__all__ = ["FORMS", "growth_name", "parse_growth"]

FORMS = (
    "exact, window:STEPS, candidates:STEPS:PER_NONZERO or guided:STEPS:PER_NONZERO, "
    "for instance window:44 or guided:44:3"
)


def parse_growth(text: str) -> Growth:
    """Return the growth source that a text names.

    Args:
        text: `exact`, `window:STEPS`, `candidates:STEPS:PER_NONZERO` or `guided:STEPS:PER_NONZERO`.

    Raises:
        ValueError: if it names none.

    Example:
        >>> parse_growth("candidates:44:3")
        Growth(steps=44, per_nonzero=3.0)
    """
    match text.split(":"):
        case ["exact"]:
            return exact()
        case ["window", steps] if steps.isdecimal():
            return window(int(steps))
        case ["candidates", steps, per_nonzero] if steps.isdecimal():
            return candidates(int(steps), float(per_nonzero))
        case ["guided", steps, per_nonzero] if steps.isdecimal():
            return guided(int(steps), float(per_nonzero))
    raise ValueError(f"there is no growth {text!r}: write {FORMS}")


def growth_name(growth: Growth | None) -> str:
    """Return the text that names a growth source, as `parse_growth` reads it; "default" where none was asked for.

    Example:
        >>> growth_name(candidates(44, per_nonzero=3))
        'candidates:44:3'
    """
    if growth is None:
        return "default"
    if growth.steps is None:
        return "exact"
    if growth.per_nonzero is None:
        return f"window:{growth.steps}"
    return f"{'guided' if growth.guided else 'candidates'}:{growth.steps}:{growth.per_nonzero:g}"
