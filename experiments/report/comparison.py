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


def columns(workload: Workload, plan: Plan) -> list[str]:
    """Headings of the table."""
    figure = workload.train_figure(1.0)
    return [
        "method",
        "best rate",
        f"steps to loss {plan.target_loss:g}",
        f"final train loss ({workload.loss_name})",
        *([] if figure is None else [f"final {figure[0]}"]),
        workload.test_name,
        "seconds (+ compile)",
    ]


def row(summary: MethodSummary, workload: Workload) -> list[str]:
    """A line of the table: mean ± standard deviation over the seeds, at the best rate."""
    has_figure = workload.train_figure(1.0) is not None
    if summary.best is None:
        cells = ["none", "-", "diverged", *(["-"] if has_figure else []), "-"]
    else:
        missed = len(summary.runs) - summary.reached
        steps = _show(summary.steps, ".0f")
        cells = [
            f"{summary.best:g}{' (edge)' if summary.edge in ('smallest', 'largest') else ''}",
            f"{steps} ({summary.reached}/{len(summary.runs)})" if missed else steps,
            _show(summary.final, ".3g", ".1g"),
            *([_show(summary.figure, ".2f")] if has_figure else []),
            _show(summary.test, ".2f" if has_figure else ".4f"),
        ]
    seconds = f"{summary.seconds:.1f} (+ {summary.compile_seconds:.1f})"
    return [METHODS[summary.method].title, *cells, seconds]


def line(summary: MethodSummary) -> str:
    """A method that has just finished, for the log."""
    best = "diverged at every rate"
    if summary.best is not None and summary.final is not None:
        best = f"best rate {summary.best:g}, final train loss {summary.final.mean:.3g}"
    name = METHODS[summary.method].title
    return f"{name}: {best}; {summary.seconds:.1f} s (+ {summary.compile_seconds:.1f} s compiling)"


def notes(plan: Plan) -> list[str]:
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
        f"Seconds: all {len(plan.rates) * plan.seeds} runs of a method, trained together, "
        "without the compilation.",
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
    rows = [row(summary, workload) for summary in summaries]
    return Table(columns(workload, plan), rows, title(workload, plan))


def markdown(summaries: Sequence[MethodSummary], workload: Workload, plan: Plan) -> str:
    """The table, its notes and its warnings as a Markdown page."""
    lines = [
        f"# {title(workload, plan)}\n",
        table(summaries, workload, plan).markdown(),
        *(f"- {text}" for text in notes(plan)),
        *(f"- **Warning:** {text}" for text in warnings(summaries)),
    ]
    return "\n".join(lines) + "\n"


def _show(statistic: Statistic | None, form: str, std_form: str | None = None) -> str:
    if statistic is None:
        return "-"
    mean = f"{statistic.mean:{form}}"
    return mean if statistic.std is None else f"{mean} ± {statistic.std:{std_form or form}}"
