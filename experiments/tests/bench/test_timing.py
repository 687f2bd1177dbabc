"""What a ratio is, and which steps are timed. No test asserts seconds."""

import pytest

from experiments.bench import schedule, timing
from experiments.bench.timing import Spread, ratios, seconds_of, time_round
from jaxnorm.rule import due_steps, is_due


class Counting:
    """A step that writes down what it is asked for, on a clock that it moves itself."""

    def __init__(self, clock: list[float], every: int = 1, error: Exception | None = None) -> None:
        self.clock, self.every, self.error = clock, every, error
        self.at, self.age, self.made = 0, 0, []

    def __call__(self) -> None:
        """Five seconds with statistics, one without."""
        if self.error is not None:
            raise self.error
        due = is_due(self.at, self.age, self.every)
        self.clock[0] += 5.0 if due else 1.0
        self.made.append(due)
        self.at, self.age = self.at + 1, 1 if due else self.age + 1

    def wait(self) -> None:
        """Nothing to wait for."""

    def go_to(self, part: str) -> None:
        """A long way."""
        self.clock[0] += 100.0  # must not count
        self.at, self.age = schedule.before(part, self.every)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_ratio_is_to_the_plain_step_of_the_same_round() -> None:
    """A machine that is ten times slower in one round changes nothing."""
    plain = {"step": [1.0, 10.0, 2.0]}
    found = ratios({"step": [1.5, 15.0, 3.0]}, plain, every=1)
    assert found["step"] == found["run"] == found["long run"] == Spread(1.5, 1.5, 1.5)


def test_quartiles_are_of_the_rounds() -> None:
    plain = {"step": [1.0] * 5}
    spread = ratios({"step": [5.0, 1.0, 2.0, 3.0, 4.0]}, plain, every=1)["step"]
    assert spread == Spread(3.0, 2.0, 4.0)
    assert str(spread) == "3.00 (2.00-4.00)"


def test_a_round_that_was_not_finished_does_not_count() -> None:
    assert ratios({"step": [2.0]}, {"step": [1.0, 7.0]}, every=1)["step"].median == 2


def test_average_of_the_two_kinds_of_steps() -> None:
    """Over a run by the number of those with statistics, in the long run by the interval."""
    plain = {"step": [2.0, 2.0]}
    seconds = {schedule.WITH: [6.0, 6.0], schedule.WITHOUT: [2.0, 2.0]}
    found = ratios(seconds, plain, every=16)
    due = sum(due_steps(1000))
    assert found[schedule.WITH].median == 3
    assert found[schedule.WITHOUT].median == 1
    assert found["run"].median == pytest.approx(1 + 2 * due / 1000)
    assert found["long run"].median == pytest.approx(1 + 2 / 16)


@pytest.mark.parametrize("every", [2, 8, 16, 10**6])
def test_each_kind_of_step_is_timed_by_itself(clock, every) -> None:
    """The way to where a block begins is not timed; a block is of one kind."""
    step = Counting(clock, every)
    assert seconds_of(step, schedule.WITH, 4) == 5.0
    assert step.made == [True] * 4
    step.made.clear()
    assert seconds_of(step, schedule.WITHOUT, 10) == 1.0
    assert step.made == [False] * 10


def test_steps_that_are_all_alike_go_on(clock) -> None:
    step = Counting(clock)
    assert seconds_of(step, schedule.ALIKE, 3) == 5.0
    assert step.at == 3


def test_every_round_begins_with_another_method(clock) -> None:
    """And one that raises is told of, without an end to the round."""
    order: list[str] = []

    class Named(Counting):
        def __init__(self, name: str, error: Exception | None = None) -> None:
            super().__init__(clock, error=error)
            self.name = name

        def __call__(self) -> None:
            """Say who."""
            order.append(self.name)
            super().__call__()

    steps = {"plain": Named("plain"), "a": Named("a"), "b": Named("b", MemoryError())}
    seconds: dict = {name: {} for name in steps}
    failed: list[str] = []
    for number in range(2):
        time_round(steps, 1, number, seconds, lambda name, error: failed.append(name))
    assert order == ["plain", "a", "b", "a", "b", "plain"]
    assert failed == ["b", "b"]
    assert seconds == {"plain": {"step": [5.0, 5.0]}, "a": {"step": [5.0, 5.0]}, "b": {}}
