"""What the comparison says of its methods: the table, its notes and its warnings."""

from collections.abc import Sequence

from experiments.methods import METHODS
from experiments.options import Plan
from experiments.report.summary import MethodSummary, Statistic
from experiments.report.tables import Table
from experiments.workloads import Workload


def title(workload: Workload, plan: Plan) -> str:
    """What was compared, in a line."""
    adam = plan.optimizer == "adam"
    optimizer = "Adam" if adam else f"SGD with momentum {plan.momentum:g}"
    return (
        f"{workload.title}: ReLU network {plan.depth} x {plan.width}, {optimizer}, "
        f"{plan.steps} steps of {plan.batch_size} samples"
    )


def columns(workload: Workload, plan: Plan, summaries: Sequence[MethodSummary]) -> list[str]:
    """Headings of the table."""
    figure = workload.train_figure(1.0)
    goal = f"to loss {plan.target_loss:g}"
    unit = yardstick(summaries)
    name = METHODS["batchnorm" if unit is None else unit.method].title
    return [
        "method",
        "best rate",
        f"steps {goal}",
        *([f"seconds {goal}", f"of {name}'s"] if is_timed(summaries, plan) else []),
        f"final train loss ({workload.loss_name})",
        *([] if figure is None else [f"final {figure[0]}"]),
        workload.test_name,
        "all runs: seconds (+ compile)",
    ]


def row(
    summary: MethodSummary,
    workload: Workload,
    timed: bool = False,
    unit: MethodSummary | None = None,
) -> list[str]:
    """A line of the table: mean ± standard deviation over the seeds, at the best rate.

    Args:
        summary: of the method.
        workload: what was learned.
        timed: whether there are columns of seconds to the target.
        unit: see `yardstick`.
    """
    has_figure = workload.train_figure(1.0) is not None
    if summary.best is None:
        seconds = ["-"] * (2 * timed)
        cells = ["none", "-", *seconds, "diverged", *(["-"] if has_figure else []), "-"]
    else:
        missed = len(summary.runs) - summary.reached
        steps = _show(summary.steps, ".0f")
        seconds = [_show(summary.seconds_to_target, ".3g", ".1g"), _ratio(summary, unit)]
        cells = [
            f"{summary.best:g}{' (edge)' if summary.edge in ('smallest', 'largest') else ''}",
            f"{steps} ({summary.reached}/{len(summary.runs)})" if missed else steps,
            *(seconds if timed else []),
            _show(summary.final, ".3g", ".1g"),
            *([_show(summary.figure, ".2f")] if has_figure else []),
            _show(summary.test, ".2f" if has_figure else ".4f"),
        ]
    seconds = f"{summary.seconds:.1f} (+ {summary.compile_seconds:.1f})"
    return [METHODS[summary.method].title, *cells, seconds]


def is_timed(summaries: Sequence[MethodSummary], plan: Plan) -> bool:
    """Whether there is something to say about seconds to the target."""
    return plan.timing and any(summary.seconds_per_step is not None for summary in summaries)


def yardstick(summaries: Sequence[MethodSummary]) -> MethodSummary | None:
    """Whose seconds are 1: BatchNorm, or plain where that is not there or misses the target.

    None where plain misses it too. A method misses it if one of its seeds does.
    """
    known = {summary.method: summary for summary in summaries}
    for name in ("batchnorm", "plain"):
        if name in known and known[name].all_reached and known[name].seconds_per_step is not None:
            return known[name]
    return None


def _ratio(summary: MethodSummary, unit: MethodSummary | None) -> str:
    """Seconds to the target over those of the yardstick, where every seed got there."""
    seconds = summary.seconds_to_target if summary.all_reached else None
    if seconds is None or unit is None or unit.seconds_to_target is None:
        return "-"
    return f"{seconds.mean / unit.seconds_to_target.mean:.2f}"


def line(summary: MethodSummary) -> str:
    """A method that has just finished, for the log."""
    best = "diverged at every rate"
    if summary.best is not None and summary.final is not None:
        best = f"best rate {summary.best:g}, final train loss {summary.final.mean:.3g}"
    name = METHODS[summary.method].title
    return f"{name}: {best}; {summary.seconds:.1f} s (+ {summary.compile_seconds:.1f} s compiling)"


def notes(plan: Plan, summaries: Sequence[MethodSummary]) -> list[str]:
    """What has to be known to read the table."""
    rates = " ".join(f"{rate:g}" for rate in plan.rates)
    seeds = "1 seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    return [
        f"mean ± standard deviation over {seeds} at each method's best rate of {rates}; the same "
        "rates, initial weights and minibatches for every method.",
        "The best rate has the smallest mean final training loss, and no seed diverged at it. The "
        "test figure is only reported: nothing was selected by it.",
        f"Steps: the first at which the mean loss of the last {min(plan.window, plan.steps)} "
        f"minibatches is below {plan.target_loss:g}; (n/m): only n of m runs got there; -: none. "
        f"Final: mean loss of the last {plan.tail_steps} minibatches.",
        *(_notes_on_seconds(summaries) if is_timed(summaries, plan) else []),
        f"All runs: the {len(plan.rates) * plan.seeds} runs of a method, trained together, "
        "without the compilation.",
    ]


def _notes_on_seconds(summaries: Sequence[MethodSummary]) -> list[str]:
    """What the columns of seconds to the target are."""
    unit = yardstick(summaries)
    each = ", ".join(
        f"{METHODS[summary.method].title} {1e3 * summary.seconds_per_step:.3g}"
        for summary in summaries
        if summary.seconds_per_step is not None
    )
    against = "-: not with every seed."
    if unit is None or unit.method != "batchnorm":
        instead = "there is no ratio" if unit is None else "the ratio is to plain"
        against = f"BatchNorm is not there or did not get there with every seed: {instead}."
    return [
        "Seconds to the loss: those steps times the seconds of a step of one run alone: the median "
        "over runs from the first step to about that loss, compiled, the methods taking turns. "
        f"{against} Milliseconds of a step: {each}."
    ]


def warnings(summaries: Sequence[MethodSummary]) -> list[str]:
    """Where the grid of rates did not do a method justice."""
    texts = []
    for summary in summaries:
        name = METHODS[summary.method].title
        if summary.best is None:
            texts.append(f"{name} diverged at every rate; add smaller ones with --rates.")
        elif summary.edge == "only":
            texts.append(f"{name} was tried at a single rate, {summary.best:g}: not a tuned one.")
        elif summary.edge is not None:
            way = "smaller" if summary.edge == "smallest" else "larger"
            texts.append(
                f"the best rate of {name}, {summary.best:g}, is the {summary.edge} of the grid; a "
                f"{way} one may be better: add it with --rates."
            )
    return texts


def table(summaries: Sequence[MethodSummary], workload: Workload, plan: Plan) -> Table:
    """A row for each method."""
    timed, unit = is_timed(summaries, plan), yardstick(summaries)
    rows = [row(summary, workload, timed, unit) for summary in summaries]
    return Table(columns(workload, plan, summaries), rows, title(workload, plan))


def markdown(summaries: Sequence[MethodSummary], workload: Workload, plan: Plan) -> str:
    """The table, its notes and its warnings as a Markdown page."""
    lines = [
        f"# {title(workload, plan)}\n",
        table(summaries, workload, plan).markdown(),
        *(f"- {text}" for text in notes(plan, summaries)),
        *(f"- **Warning:** {text}" for text in warnings(summaries)),
    ]
    return "\n".join(lines) + "\n"


def _show(statistic: Statistic | None, form: str, std_form: str | None = None) -> str:
    if statistic is None:
        return "-"
    mean = f"{statistic.mean:{form}}"
    return mean if statistic.std is None else f"{mean} ± {statistic.std:{std_form or form}}"
