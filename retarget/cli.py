"""The command line. Everything heavy loads inside the commands, so that help comes at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from retarget import cli_evaluate, cli_layers
from retarget.cli_shared import make_console, make_folder, one_thread, parse_goal, parse_goals, parse_options

if TYPE_CHECKING:
    from rich.console import Console

    from retarget.agent import Agent
    from retarget.goal import Goal
    from retarget.study.executor import Executor, Watcher
    from retarget.study.run import RunReport
    from retarget.study.spec import ProbeSpec
    from retarget.world import World

#: Exit codes: a cell failed unexpectedly; bad input; stopped by the user.
FAILED, BAD_INPUT, STOPPED = 1, 2, 130

# Help is plain text: rich's own takes longer to load than everything else together.
app = typer.Typer(
    name="retarget",
    help="Is a trained policy an optimizer or a lookup table? Measure it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> NoReturn:
    """The `retarget` command: bad input ends in one line on stderr and exit code 2."""
    try:
        app()
    except ValueError as error:
        from retarget.errors import RetargetError

        if not isinstance(error, RetargetError):
            raise
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise SystemExit(BAD_INPUT) from None
    raise SystemExit(0)  # pragma: no cover - the command line parser exits itself


def _show_version(wanted: bool) -> None:
    if wanted:
        from retarget import __version__

        typer.echo(f"retarget {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    study: Annotated[
        Path | None,
        typer.Argument(
            help="Study file (TOML), or ladder (the default), networks, architectures, search, control, conjectures."
        ),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="The small version of a study that has one.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME without one.")] = None,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 for one a core.", min=0)] = 0,
    shard: Annotated[str, typer.Option(help="Run part i of n, such as 2/4; parts share one --out.")] = "1/1",
    seeds: Annotated[str, typer.Option(help="Seeds in place of the study's, such as 0,1,2 or 0-9.")] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
) -> None:
    """Run a study. Stopped at any moment, the same command goes on where it was."""
    one_thread()
    from retarget.study.run import Shard, run_study
    from retarget.study.screen import Screen
    from retarget.study.spec import default_study_path, load_study, small_study

    named = study if study is not None else default_study_path()
    plan = load_study(small_study(named) if small else named)
    if seeds:
        plan = plan.with_seeds(_seeds(seeds))
    part = Shard.parse(shard)
    folder = out if out is not None else Path("runs") / plan.name
    console = make_console()
    try:
        with Screen(console) as screen:
            report = run_study(
                plan,
                folder,
                executor=_executor(workers, screen),
                shard=part,
                retry_failed=retry_failed,
                on_start=screen.begin,
                on_done=screen.done,
            )
    except KeyboardInterrupt:
        typer.echo(f"stopped; finished cells are kept in {folder}: the same command goes on from there", err=True)
        raise typer.Exit(STOPPED) from None
    _finish(report, console)


@app.command()
def measure(
    file: Annotated[
        Path,
        typer.Argument(help="A table, a Stable-Baselines3 zip, weights (.safetensors, .pth), or a folder of `train`."),
    ],
    world: Annotated[str, typer.Option(help="World that it was made for: one of ours, or a Gymnasium id.")],
    size: Annotated[int | None, typer.Option(help="Side of the world.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Another option of the world, KEY=VALUE.")] = None,
    goal: Annotated[
        str, typer.Option(help="Goal that it has: ROW,COL, STATE, a set-point or a label; the world's own without.")
    ] = "",
    goals: Annotated[
        list[str] | None,
        typer.Option(
            help='Goals to give it: cells or states such as "1,1 5,2", or a set-point or a label; repeatable.'
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Goals to give it, drawn from the world's, if none is named.")] = 12,
    as_: Annotated[str, typer.Option("--as", help="What a table holds: auto, policy or q.")] = "auto",
    normalise: Annotated[
        Path | None, typer.Option(help="Statistics of the observations that it was trained on, .npz or .json.")
    ] = None,
    episodes: Annotated[
        int, typer.Option(help="Episodes of the return that is counted first; 0 for none.", min=0)
    ] = 100,
    probe: Annotated[
        list[str] | None,
        typer.Option(help="What to measure, by id; repeatable. Robustness and retargetability without."),
    ] = None,
    budget: Annotated[
        int, typer.Option(help="Most candidates and gradient steps of one editor; fewer, sooner.", min=1)
    ] = 4096,
    seed: Annotated[int, typer.Option(help="Names the random draws.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for results.parquet and report.html.")] = None,
) -> None:
    """Measure a policy that somebody trained: robustness, and how cheaply its goal can be changed."""
    one_thread()
    from retarget.envs import make_world
    from retarget.io.load import load
    from retarget.study.single import draw_other_goals

    asked = tuple(_probe(name, budget) for name in dict.fromkeys(probe or ("robustness", "retargetability")))
    place = make_world(world, **parse_options(set_ or [], size))
    agent = load(file, world=place, normalise=normalise, kind=as_)  # type: ignore[arg-type]
    goal_a = parse_goal(place, goal) if goal else place.goal
    named = tuple(dict.fromkeys(g for given in goals or [] for g in parse_goals(place, given)))
    make_folder(out)
    others = named or draw_other_goals(place, goal_a, n=pairs, seed=seed)
    console = make_console()
    _say_return(agent, place, episodes, seed, console)
    _measure(agent, place, goal_a, others, file, probes=asked, seed=seed, out=out)


def _probe(name: str, budget: int) -> ProbeSpec:
    """A probe by its id; the budget is that of retargetability."""
    from retarget.study.known import probe_defaults
    from retarget.study.spec import ProbeSpec

    probe_defaults(name)
    return ProbeSpec.of(name, budget=budget) if name == "retargetability" else ProbeSpec(name)


def _say_return(agent: Agent, world: World, episodes: int, seed: int, console: Console) -> None:
    """What the policy earns where its return was published: a wrong normalisation or activation shows here first."""
    for note in getattr(agent, "notes", ()):
        console.print(f"note: {note}", markup=False, highlight=False)
    gym_id = getattr(world, "gym_id", None)
    if gym_id is None or not episodes:
        return
    from retarget.io.returns import play

    found = play(agent, gym_id, episodes=episodes, seed=seed)
    console.print(
        f"return in {gym_id}: {found.mean:.1f} ± {found.std:.1f} over {episodes} greedy episodes", highlight=False
    )


@app.command()
def train(
    agent: Annotated[str, typer.Argument(help="Kind of agent: see `retarget agents`.")] = "network",
    world: Annotated[str, typer.Option(help="World to train it in.")] = "FourRooms",
    size: Annotated[int | None, typer.Option(help="Side of the world.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Another option of the world, KEY=VALUE.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the agent, KEY=VALUE; repeatable.")] = None,
    goal: Annotated[str, typer.Option(help="Goal to train it for; the world's own without.")] = "",
    seed: Annotated[int, typer.Option(help="Names every random draw.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for agent.json and arrays.safetensors.")] = Path("agent"),
) -> None:
    """Train an agent, and save it where `retarget measure` finds it."""
    one_thread()
    from retarget.catalogue import AgentSpec, NotApplicableHere, Recipe, build_agent, check_spec
    from retarget.envs import make_world
    from retarget.errors import AgentError
    from retarget.io.native import save_agent
    from retarget.io.records import check_saved
    from retarget.pairs import GoalPlan
    from retarget.world import BoxWorld

    place = make_world(world, **parse_options(set_ or [], size))
    spec = AgentSpec(agent, tuple(sorted(parse_options(option or []).items())))
    check_spec(spec)
    check_saved(spec.id, out)
    goal_a = parse_goal(place, goal) if goal else place.goal
    gamma = place.gamma if isinstance(place, BoxWorld) else 0.95
    plan = GoalPlan.draw(place, n_pairs=1, seed=seed)
    make_folder(out)
    console = make_console()
    with console.status(f"training {spec.label} in {place.spec_data.label}"):
        try:
            trained = build_agent(spec, Recipe(place, goal_a, seed, gamma, plan))
        except NotApplicableHere as reason:
            raise AgentError(f"{agent!r} cannot be made here: {reason}") from None
    from retarget.judge import judge_of

    score = judge_of(place, goal_a, gamma=gamma, seed=seed).score(trained)
    save_agent(trained, out)
    console.print(f"competence on {goal_a.label}: {score.competence:.3f} over {score.n} starts", highlight=False)
    typer.echo(f"saved: {out}")


def _measure(
    agent: Agent,
    world: World,
    goal: Goal,
    others: tuple[Goal, ...],
    file: Path,
    *,
    probes: tuple[ProbeSpec, ...],
    seed: int,
    out: Path | None,
) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from retarget.analysis.summary import metric_means
    from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, frame
    from retarget.study.screen import goal_table, metric_table, reasons
    from retarget.study.single import measure_agent
    from retarget.study.table import FRONTIERS, RESULTS, write_parquet
    from retarget.world import BoxWorld

    console = make_console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        rows, frontier = measure_agent(
            agent,
            world,
            goal=goal,
            others=others,
            label=file.name,
            probes=probes,
            seed=seed,
            gamma=world.gamma if isinstance(world, BoxWorld) else 0.95,
            on_step=lambda done, total, words: bar.update(task, completed=done, total=total, description=words),
        )
    results = frame(rows, RESULT_COLUMNS)
    title = f"{file.name} in {world.spec_data.label}, goal {goal.label}, {len(others)} other goals"
    console.print(metric_table(metric_means(results), title))
    if "retargetability" in {p.id for p in probes}:
        console.print(goal_table(results))
    for line in reasons(results):
        console.print(line, markup=False, highlight=False)
    if out is not None:
        from retarget.analysis.report import write_report

        write_parquet(results, out / RESULTS)
        write_parquet(frame(frontier, FRONTIER_COLUMNS), out / FRONTIERS)
        typer.echo(f"report: {write_report(out)}")


app.command()(cli_layers.layers)
app.command()(cli_layers.organism)
app.command()(cli_evaluate.evaluate)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write report.html again, from the tables of a finished run."""
    from retarget.analysis.report import write_report
    from retarget.errors import StudyError
    from retarget.study.table import RESULTS

    if not (run / RESULTS).is_file():
        raise StudyError(f"{str(run)!r} holds no {RESULTS}; finish the run with the same `retarget run` command first")
    typer.echo(f"report: {write_report(run)}")


@app.command()
def worlds() -> None:
    """List the worlds and their options."""
    from retarget.envs.catalogue import BOX_WORLDS, SHORTCUT, WORLDS

    for id, entry in {**WORLDS, SHORTCUT.name: SHORTCUT, **BOX_WORLDS}.items():
        _entry(id, entry.summary, {n: (o.default, o.meaning) for n, o in entry.options.items()})
    typer.echo("Any registered Gymnasium environment that carries a transition table works too, such as FrozenLake-v1.")


@app.command()
def agents() -> None:
    """List the kinds of agents and their options."""
    from retarget.catalogue import catalogue

    for id, entry in catalogue().items():
        _entry(id, entry.summary, {n: (o.default, o.meaning) for n, o in entry.options.items()})
    typer.echo("With compiled = true, a study takes the table of an agent's behaviour in its place.")


@app.command()
def probes() -> None:
    """List the probes, their options, and what they measure."""
    from retarget.probes import PROBES
    from retarget.study.known import probe_defaults

    for id, probe in PROBES.items():
        about = (probe.__doc__ or "").strip().splitlines()
        _entry(id, about[0] if about else "", {n: (d, "") for n, d in probe_defaults(id).items()})
        for name, metric in probe.metrics.items():
            typer.echo(f"    measures {name} [{metric.unit}]: {metric.meaning}")


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="MODULE:NAME of a probe, a world or an agent of yours.")],
    world: Annotated[str, typer.Option(help="World to check an agent in.")] = "FourRooms",
    size: Annotated[int | None, typer.Option(help="Side of that world.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Another option of that world, KEY=VALUE.")] = None,
) -> None:
    """Check a probe, a world or an agent of your own. Imports MODULE, which runs its code."""
    kind = _check(_import(target), target, world, parse_options(set_ or [], size))
    typer.echo(f"ok: {target} is a sound {kind}")


def _check(thing: object, target: str, world: str, options: dict[str, object]) -> str:
    from retarget.agent import Agent
    from retarget.envs import check_world, make_world
    from retarget.errors import RetargetError
    from retarget.probe import Probe
    from retarget.testing import check_agent, check_probe

    if callable(thing) and not isinstance(thing, (Agent, Probe)):
        try:
            thing = thing()  # a class, or a function that makes one
        except TypeError as error:
            raise RetargetError(f"{target!r} cannot be called without arguments ({error}); name an instance") from None
    if isinstance(thing, Probe):
        check_probe(thing)
        return "probe"
    if isinstance(thing, Agent):
        check_agent(thing, make_world(world, **options))
        return "agent"
    if hasattr(thing, "reset") and hasattr(thing, "step"):
        check_world(thing)
        return "world"
    raise RetargetError(f"{target!r} is a {type(thing).__name__}; name a probe, a world, an agent, or what makes one")


def _import(target: str) -> object:
    import importlib

    from retarget.errors import RetargetError, unknown

    module, _, name = target.partition(":")
    if not module or not name.isidentifier():
        raise RetargetError(f"{target!r} is not of the form MODULE:NAME, such as my_probes:Curiosity")
    sys.path.insert(0, str(Path.cwd()))
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # whatever the user's module does on import
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise RetargetError(f"module {module!r} cannot be imported ({what}); run from the folder it is in") from None
    if not hasattr(loaded, name):
        raise RetargetError(unknown(f"name in module {module!r}", name, [n for n in vars(loaded) if n[0] != "_"]))
    return getattr(loaded, name)


def _entry(id: str, summary: str, options: Mapping[str, tuple[object, str]]) -> None:
    typer.echo(f"{id}: {summary}")
    for name, (default, meaning) in options.items():
        shown = str(default).lower() if isinstance(default, bool) else repr(default)
        typer.echo(f"    {name} = {shown}" + (f": {meaning}" if meaning else ""))


def _finish(report: RunReport, console: Console) -> None:
    if report.complete:
        _show(report.out, console)
    else:
        typer.echo(
            f"{report.share} of {report.total} cells are this part's, and done; the tables come with the last part"
        )
    if report.errors:
        _say_failures(report)
        raise typer.Exit(FAILED)


def _say_failures(report: RunReport) -> None:
    from collections import Counter

    reasons = Counter(error for _, error in report.errors).most_common()
    for error, times in reasons[:10]:
        typer.echo(f"failed {times} x {error}", err=True)
    if len(reasons) > 10:
        typer.echo(f"and {len(reasons) - 10} other errors", err=True)
    typer.echo(
        f"{len(report.errors)} of {report.total} cells failed unexpectedly; "
        f"tracebacks are in {report.out}/failures*.txt; --retry-failed runs them again",
        err=True,
    )


def _show(out: Path, console: Console) -> None:
    import polars as pl

    from retarget.analysis.report import write_report
    from retarget.analysis.terminal import terminal_table
    from retarget.study.screen import nowhere
    from retarget.study.table import RESULTS

    results = pl.read_parquet(out / RESULTS)
    console.print(terminal_table(results))
    for line in nowhere(results):
        console.print(line, markup=False, highlight=False)
    typer.echo(f"tables: {out}")
    typer.echo(f"report: {write_report(out)}")


def _executor(workers: int, watcher: Watcher) -> Executor:
    from retarget.study.executor import ProcessPool, Serial

    count = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if count == 1:
        return Serial(watcher)
    return ProcessPool(count, group=lambda cell: cell.group, watcher=watcher)


def _seeds(text: str) -> list[int]:
    """Seeds from `0,1,2` and ranges such as `0-9`."""
    import re

    from retarget.errors import StudyError

    seeds: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", piece)
        if match is None:
            raise StudyError(f"seeds {text!r} are not whole numbers; write e.g. 0,1,2 or 0-9")
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if not 0 <= last - first < 100_000:
            raise StudyError(f"seeds {piece.strip()!r} run from {first} to {last}; write the smaller one first")
        seeds += range(first, last + 1)
    return seeds


if __name__ == "__main__":
    main()
