"""``trady-simulate``: results on stdout, progress and notes on stderr."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from trady.planner.cli import CONTEXT, errors_told, output_path, read_scheme, tell_written
from trady.planner.errors import PlanError, StrategyError
from trady.planner.options import Strategy, choose

if TYPE_CHECKING:
    from trady.planner.plan import Plan
    from trady.planner.priorities import GradientRecording
    from trady.simulator.observations import Observations
    from trady.simulator.results import SimulationReport
    from trady.simulator.timelines import Timeline

_GRADIENTS: Final = ["calibrated", "heavy-tailed"]


@click.command("trady-simulate", context_settings=CONTEXT)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--policy", metavar="NAMES", help="Strategies to replay at the plan's budget, with commas.  [default: its]"
)
@click.option("--epochs", type=int, help="Epochs to replay.  [default: the plan's, or the recording's]")
@click.option("--trials", type=int, default=1000, help="Runs to replay, with seeds from --seed on.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of the first run.")
@click.option("--scheme", metavar="NAME_OR_JSON", help="For su: mbv2-49kb..., or a JSON file of layer: ratio.")
@click.option("--gradients", type=click.Choice(_GRADIENTS), default="calibrated", help="What the full gradient is.")
@click.option("--tail-index", type=float, help="Alpha of heavy-tailed gradients.  [default: the calibration's]")
@click.option(
    "--trace",
    "traces",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Recorded gradients (trady-profile --record): the first is replayed, --figures compares all.",
)
@click.option("--plot", type=output_path(), help="Draw the replay, epoch by epoch (.png, .svg).")
@click.option("--timeline", type=output_path(), help="Draw the bytes over one training step (.png, .svg).")
@click.option("--html", type=output_path(), help="Show the replay as one page that opens offline (.html).")
@click.option(
    "--figures", type=click.Path(file_okay=False, path_type=Path), help="Folder for the paper's observations."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one for each processor]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of tables.")
def simulate_command(
    plan: Path,
    policy: str | None,
    scheme: str | None,
    gradients: str,
    traces: tuple[Path, ...],
    plot: Path | None,
    timeline: Path | None,
    html: Path | None,
    figures: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Replay the draws of PLAN before anyone trains: what they touch, when, at what cost, how good their gradient is.

    Every trial draws what a training run with its seed draws, by the same function. The model is not needed.

    Example: trady-simulate plan.json --policy solver,trady,s-topk-random --trials 1000 --plot replay.png
    """
    with errors_told():
        _check_figures(plot, timeline, figures)
        _check_page(html)
        from trady.planner.sampling import load_plan

        loaded = load_plan(plan)
        policies = _policies(policy, scheme, loaded)
        recordings = _recordings(traces, gradients, loaded)
        followed = recordings[0] if recordings else gradients
        reports = _replays(loaded, policies, read_scheme(scheme), gradients=followed, **options)
        views = _Views(loaded, recordings, options["seed"])
        written = _draw(reports, views, plot, timeline, figures) + _write_page(reports, views, html)
        if as_json:
            click.echo(json.dumps(views.as_json(reports), indent=1))
        else:
            from trady.simulator.reports import simulation_report

            Console().print(simulation_report(reports))
        tell_written(*written)


def _check_figures(plot: Path | None, timeline: Path | None, figures: Path | None) -> None:
    """Fail before the work, not after it."""
    from trady.planner.reports import check_figure_path

    folder = None if figures is None else (figures if figures.is_dir() else figures.parent) / "figure.png"
    for path in (plot, timeline, folder):
        if path is not None:
            check_figure_path(path)


def _check_page(html: Path | None) -> None:
    from trady.planner.reports import check_page_path

    if html is not None:
        check_page_path(html)


def _policies(policy: str | None, scheme: str | None, plan: "Plan") -> list[Strategy]:
    names = [plan.strategy.name.value] if policy is None else [name.strip() for name in policy.split(",")]
    policies = list(dict.fromkeys(choose(Strategy, name, "Policy") for name in names))
    if scheme is not None and Strategy.SU not in policies:
        raise StrategyError("A scheme is for policy 'su'. Add su to --policy, or leave out --scheme.")
    return policies


def _recordings(traces: Sequence[Path], gradients: str, plan: "Plan") -> list["GradientRecording"]:
    if not traces:
        return []
    if gradients != "calibrated":
        raise PlanError(f"Gradients are either recorded (--trace) or {gradients} (--gradients). Leave one of them out.")
    from trady.planner.priorities import GradientRecording

    recordings = [GradientRecording.load(path) for path in traces]
    for recording in recordings:
        recording.check_fits(*plan.recorded_model)
    return recordings


def _replays(
    plan: "Plan", policies: Sequence[Strategy], scheme: Mapping[str, float] | str | None, **options: Any
) -> list["SimulationReport"]:
    from trady.simulator.replay import simulate

    reports = []
    for policy in policies:
        own_scheme = scheme if policy is Strategy.SU else None
        with _progress(policy.value, options["trials"]) as progress:
            reports.append(simulate(plan, policy=policy, scheme=own_scheme, progress=progress, **options))
    return reports


class _Views:
    """What a plan is looked at beside its replay; each made once, when it is asked for."""

    def __init__(self, plan: "Plan", recordings: Sequence["GradientRecording"], seed: int) -> None:
        self._plan, self._recordings, self._seed = plan, recordings, seed

    @cached_property
    def timeline(self) -> "Timeline":
        """One step's bytes."""
        from trady.simulator.timelines import timeline

        return timeline(self._plan, seed=self._seed)

    @cached_property
    def observations(self) -> "Observations":
        """Ranks of layers and channels, tails, the RGN curve."""
        from trady.simulator.observations import observe

        return observe(self._plan, self._recordings)

    @property
    def known_timeline(self) -> "Timeline | None":
        """The timeline; ``None`` where lifetimes are not known."""
        return None if self._plan.table.gradient_storages is None else self.timeline

    def as_json(self, reports: Sequence["SimulationReport"]) -> dict[str, Any]:
        """All of it beside the replays; no timeline where lifetimes are not known."""
        known = self.known_timeline
        return {
            "replays": [report.as_json() for report in reports],
            "timeline": None if known is None else known.as_json(),
            "observations": self.observations.as_json(),
        }


def _draw(
    reports: Sequence["SimulationReport"],
    views: _Views,
    plot: Path | None,
    timeline: Path | None,
    figures: Path | None,
) -> list[Path]:
    written: list[Path] = []
    if plot is not None:
        from trady.simulator.figures import plot_replay

        plot_replay(reports, plot)
        written.append(plot)
    if timeline is not None:
        from trady.simulator.timeline_figures import plot_timeline

        plot_timeline(views.timeline, timeline)
        written.append(timeline)
    if figures is not None:
        from trady.simulator.observation_figures import draw_observations

        written += draw_observations(views.observations, figures)
    return written


def _write_page(reports: Sequence["SimulationReport"], views: _Views, html: Path | None) -> list[Path]:
    if html is None:
        return []
    from trady.simulator.pages import write_replay_page

    write_replay_page(reports, views.known_timeline, html)
    return [html]


@contextmanager
def _progress(name: str, trials: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on a terminal, one line in a log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        click.echo(f"Replaying {name} ...", err=True)
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"Replaying {name}", total=trials)
        yield lambda done: bar.update(task, completed=done)
