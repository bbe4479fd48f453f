import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from regrow import schedule

VALUES = st.floats(0, 1)
STEPS = st.integers(1, 500)


def shapes(start, end, steps):
    """Every schedule that goes from start to end."""
    return {
        "cosine": schedule.cosine(start, steps, end=end),
        "linear": schedule.linear(start, steps, end=end),
        "inverse_power": schedule.inverse_power(start, steps, end=end),
        "cubic": schedule.cubic(start, end, begin=0, until=steps),
    }


@pytest.mark.parametrize("name", shapes(1, 0, 1))
@given(start=VALUES, end=VALUES, steps=STEPS)
def test_a_schedule_runs_from_start_to_end_without_leaving_them_and_stays(name, start, end, steps):
    value = shapes(start, end, steps)[name]
    assert value(0) == pytest.approx(start, abs=1e-15)
    assert value(steps) == value(steps + 1) == value(10 * steps) == pytest.approx(end, abs=1e-15)
    path = [value(step) for step in range(steps + 1)]
    assert all(min(start, end) - 1e-15 <= at <= max(start, end) + 1e-15 for at in path)
    assert path in (sorted(path), sorted(path, reverse=True))


@given(start=VALUES, end=VALUES, steps=STEPS, share=VALUES)
def test_each_shape_follows_its_formula(start, end, steps, share):
    step = round(share * steps)
    left = 1 - step / steps
    at = {name: value(step) for name, value in shapes(start, end, steps).items()}
    assert at["cosine"] == pytest.approx(reference.cosine(start, end, step, steps), abs=1e-15)
    assert at["linear"] == pytest.approx(end + (start - end) * left, abs=1e-15)
    assert at["inverse_power"] == at["cubic"] == pytest.approx(end + (start - end) * left**3, abs=1e-15)


def test_cubic_holds_its_start_until_it_begins():
    density = schedule.cubic(1.0, 0.1, begin=10, until=20)
    assert [density(step) for step in (0, 5, 10)] == [1.0, 1.0, 1.0]
    assert density(11) < 1


def test_a_constant_is_constant():
    assert {schedule.constant(0.3)(step) for step in (0, 1, 10**9)} == {0.3}


@pytest.mark.parametrize(
    ("timing", "due"),
    [
        (schedule.every(3), [3, 6, 9, 12]),
        (schedule.every(3, until=9), [3, 6]),
        (schedule.every(3, start=3), [6, 9, 12]),
        (schedule.every(5, start=4, until=11), [5, 10]),
        (schedule.every(1, until=3), [1, 2]),
        (schedule.never(), []),
    ],
)
def test_updates_are_due_at_every_interval_between_start_and_until(timing, due):
    assert [step for step in range(13) if timing(step)] == due


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedule.every(0),
        lambda: schedule.cosine(0.5, 0),
        lambda: schedule.linear(0.5, -1),
        lambda: schedule.cubic(1, 0.1, begin=5, until=5),
    ],
)
def test_an_impossible_schedule_is_an_error_when_it_is_made(make):
    with pytest.raises(ValueError, match="not possible"):
        make()
