"""``trady-simulate``: results on stdout, progress and notes on stderr."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import click
from rich.console import Console

from trady.planner.cli import CONTEXT, errors_told, options_of, output_path, read_scheme, taken, tell_written
from trady.planner.errors import PlanError, StrategyError
from trady.planner.options import Strategy, choose
from trady.planner.records import Option, Record
from trady.simulator.simulation_options import SimulationOptions

if TYPE_CHECKING:
    from trady.planner.plan import Plan
    from trady.planner.priorities import GradientRecording
    from trady.simulator.observations import Observations
    from trady.simulator.results import SimulationReport
    from trady.simulator.timelines import Timeline

_GRADIENTS: Final = ["calibrated", "heavy-tailed"]


class ViewOptions(Record):
    """What is drawn of a replay, and where to."""

    plot: Annotated[Path | None, Option("Draw the replay, epoch by epoch (.png, .svg).", type=output_path())] = None
    timeline: Annotated[
        Path | None, Option("Draw the bytes over one training step (.png, .svg).", type=output_path())
    ] = None
    html: Annotated[
        Path | None, Option("Show the replay as one page that opens offline (.html).", type=output_path())
    ] = None
    figures: Annotated[
        Path | None,
        Option("Folder for the paper's observations.", type=click.Path(file_okay=False, path_type=Path)),
    ] = None

    def check(self) -> None:
        """Fail before the work, not after it."""
        from trady.planner.reports import check_figure_path, check_page_path

        figures = self.figures
        folder = None if figures is None else (figures if figures.is_dir() else figures.parent) / "figure.png"
        for path in (self.plot, self.timeline, folder):
            if path is not None:
                check_figure_path(path)
        if self.html is not None:
            check_page_path(self.html)


@click.command("trady-simulate", context_settings=CONTEXT)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--policy", metavar="NAMES", help="Strategies to replay at the plan's budget, with commas.  [default: its]"
)
@options_of(SimulationOptions)
@click.option("--scheme", metavar="NAME_OR_JSON", help="For su: mbv2-49kb..., or a JSON file of layer: ratio.")
@click.option("--gradients", type=click.Choice(_GRADIENTS), default="calibrated", help="What the full gradient is.")
@click.option(
    "--trace",
    "traces",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Recorded gradients (trady-profile --record): the first is replayed, --figures compares all.",
)
@options_of(ViewOptions)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of tables.")
def simulate_command(
    plan: Path,
    policy: str | None,
    scheme: str | None,
    gradients: str,
    traces: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Replay the draws of PLAN before anyone trains: what they touch, when, at what cost, how good their gradient is.

    Every trial draws what a training run with its seed draws, by the same function. The model is not needed.

    Example: trady-simulate plan.json --policy solver,trady,s-topk-random --trials 1000 --plot replay.png
    """
    with errors_told():
        wanted = taken(ViewOptions, options)
        wanted.check()
        from trady.planner.sampling import load_plan

        loaded = load_plan(plan)
        policies = _policies(policy, scheme, loaded)
        recordings = _recordings(traces, gradients, loaded)
        followed = recordings[0] if recordings else gradients
        reports = _replays(loaded, policies, read_scheme(scheme), gradients=followed, **options)
        views = _Views(loaded, recordings, options["seed"])
        written = _draw(reports, views, wanted)
        if as_json:
            click.echo(json.dumps(views.as_json(reports), indent=1))
        else:
            from trady.simulator.reports import simulation_report

            Console().print(simulation_report(reports))
        tell_written(*written)


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


def _draw(reports: Sequence["SimulationReport"], views: _Views, wanted: ViewOptions) -> list[Path]:
    """Every view that was asked for."""
    written: list[Path] = []
    if wanted.plot is not None:
        from trady.simulator.figures import plot_replay

        plot_replay(reports, wanted.plot)
        written.append(wanted.plot)
    if wanted.timeline is not None:
        from trady.simulator.timeline_figures import plot_timeline

        plot_timeline(views.timeline, wanted.timeline)
        written.append(wanted.timeline)
    if wanted.figures is not None:
        from trady.simulator.observation_figures import draw_observations

        written += draw_observations(views.observations, wanted.figures)
    if wanted.html is not None:
        from trady.simulator.pages import write_replay_page

        write_replay_page(reports, views.known_timeline, wanted.html)
        written.append(wanted.html)
    return written


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
