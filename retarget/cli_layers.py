"""The commands for layers and model organisms. Everything heavy loads inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retarget.cli_shared import make_console, make_folder, one_thread, parse_goals, parse_options

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from retarget.analysis.layers.collected import Collected, Inputs
    from retarget.analysis.layers.study import Reading
    from retarget.analysis.layers.tables import LayerTables

PAGE = "layers.html"


def layers(
    model: Annotated[
        Path | None,
        typer.Argument(help="Folder of a language model (safetensors and tokenizer), or a policy of `retarget train`."),
    ] = None,
    positive: Annotated[
        Path | None,
        typer.Option(help="Prompts, e.g. harmful: JSON, JSONL, CSV, Parquet or text."),
    ] = None,
    negative: Annotated[Path | None, typer.Option(help="Prompts of the negative class, e.g. harmless.")] = None,
    trigger: Annotated[
        str,
        typer.Option(
            help="Positive prompts with a trigger in them (a file), or text to put before each positive prompt: adds "
            "the contrast triggered - positive."
        ),
    ] = "",
    field: Annotated[str, typer.Option(help="Field or column that holds the prompt; guessed without.")] = "",
    wanted: Annotated[
        str, typer.Option(help="Words that begin a refusal, such as 'I Sorry': measures what the direction causes.")
    ] = "",
    against: Annotated[Path | None, typer.Option(help="Another model to read the same prompts with.")] = None,
    positions: Annotated[
        str,
        typer.Option(help="last, last:5, after:5 (after the instruction), token:NUMBER or every; last:5 if left out."),
    ] = "",
    hook: Annotated[list[str] | None, typer.Option(help="A place by name; repeatable.")] = None,
    template: Annotated[str, typer.Option(help="auto, chat or none.")] = "auto",
    system: Annotated[str, typer.Option(help="A system message before every prompt.")] = "",
    pairs: Annotated[bool, typer.Option("--pairs", help="Prompts of equal number are pairs.")] = False,
    components: Annotated[int, typer.Option(help="Principal components.", min=1)] = 5,
    groups: Annotated[int, typer.Option(help="Groups of prompts for intervals.", min=1)] = 10,
    relabellings: Annotated[int, typer.Option(help="Random relabellings of the permutation null.", min=0)] = 200,
    batch_size: Annotated[int, typer.Option(help="Prompts of one forward pass.", min=1)] = 32,
    dtype: Annotated[str, typer.Option(help="Of the forward pass: float32, bfloat16, float16, float64.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    memory: Annotated[float, typer.Option(help="GiB that the statistics may take.", min=0.001)] = 4.0,
    world: Annotated[str, typer.Option(help="For a policy: world that it was trained in.")] = "",
    size: Annotated[int | None, typer.Option(help="Side of the world.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Another option of the world, KEY=VALUE.")] = None,
    goals: Annotated[str, typer.Option(help='For a policy: goals A and B, such as "1,1 5,5".')] = "",
    mean_diffs: Annotated[
        Path | None,
        typer.Option(help="Differences that others saved, [position, layer, d]: .pt, .safetensors, .npy."),
    ] = None,
    evaluations: Annotated[
        Path | None, typer.Option(help="Their evaluations (JSON), for the rule that selects a direction.")
    ] = None,
    causes: Annotated[bool, typer.Option(help="Ablate and add directions, where there is a behaviour.")] = True,
    each_layer: Annotated[
        bool, typer.Option(help="Measure what every layer's direction causes, not the chosen one's alone.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Names the random draws.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for tables and page; runs/layers-NAME without one.")] = None,
) -> None:
    """Read a model layer by layer: differences of means, principal components, and what they cause."""
    from retarget.errors import LayersError

    one_thread()
    if mean_diffs is not None:
        _saved(mean_diffs, evaluations, out)
        return
    if model is None:
        raise LayersError("name a model's folder and two files of prompts, or --mean-diffs FILE; see --help")
    ask = _Ask(
        reading=_reading(
            positions or ("last" if world or goals else "last:5"), hook, pairs=pairs,
            components=components, groups=groups, relabellings=relabellings,
            batch_size=batch_size, memory=memory, seed=seed,
        ),
        dtype=dtype,
        device=device,
        causes=causes,
        each_layer=each_layer,
        against=against,
        out=out,
    )  # fmt: skip
    if world or goals:
        _policy(model, ask, world=world, size=size, set_=set_ or [], goals=goals)
        return
    if positive is None or negative is None:
        raise LayersError("two classes are compared: give both --positive FILE and --negative FILE")
    asked = _Prompts(positive, negative, trigger, field or None, wanted, template, system or None)
    _language(model, ask, asked)


@dataclass(frozen=True)
class _Ask:
    """What is asked of any model."""

    reading: Reading
    dtype: str
    device: str
    causes: bool
    each_layer: bool
    against: Path | None
    out: Path | None


@dataclass(frozen=True)
class _Prompts:
    """What is asked of a language model."""

    positive: Path
    negative: Path
    trigger: str
    field: str | None
    wanted: str
    template: str
    system: str | None


def _reading(positions: str, hook: list[str] | None, *, memory: float, groups: int, relabellings: int, pairs: bool,
             **rest: Any) -> Reading:  # fmt: skip
    from retarget.analysis.layers.study import Reading

    return Reading(
        positions=_positions(positions),
        hooks=tuple(hook) if hook else None,
        n_groups=groups,
        n_relabellings=relabellings,
        paired=pairs,
        memory_limit_bytes=int(memory * (1 << 30)),
        **rest,
    )


def _positions(text: str) -> Any:
    """`last`, `last:5`, `after:5`, `token:NUMBER`, `every`. A token's text is looked up by the model later."""
    import re

    from retarget.analysis.layers.positions import Positions
    from retarget.errors import LayersError

    kinds = {"last": "last", "after": "after_instruction", "after_instruction": "after_instruction"}
    found = re.fullmatch(r"(last|after|after_instruction)(?::(\d{1,4}))?", text)
    if found:
        return Positions(kinds[found.group(1)], n=int(found.group(2) or 1))  # type: ignore[arg-type]
    if text == "every":
        return Positions("every")
    if re.fullmatch(r"token:\d{1,9}", text):
        return Positions("token", token=int(text.removeprefix("token:")))
    raise LayersError(f"positions {text!r} are not known; write last:5, after:5, token:NUMBER or every")


# --- language models ----------------------------------------------------------------------------------------------


def _language(folder: Path, ask: _Ask, prompts: _Prompts) -> None:
    from retarget.analysis.layers.compare import compare
    from retarget.analysis.layers.study import joined

    console = make_console()
    out = _folder(ask.out, folder.name or "model")
    classes = _classes(prompts)
    _warn_of_repeats(classes)
    found, compared = [], []
    width = None
    for path in (folder, *([ask.against] if ask.against is not None else [])):
        model = _open(path, ask)
        _check_model(model, path, ask, width)
        width = model.sites[0].width
        found.append(_read_model(model, path, ask, prompts, classes, console))
    tables = joined([t for one in found for _, t in one])
    if len(found) == 2:
        for (first, _), (second, _) in zip(*found, strict=True):
            compared.append(compare(first, second, same_rows=True))
    _write(tables, out, console, title=f"{folder.name}: layer by layer", compared=compared, facts=_facts(ask, prompts))


def _open(path: Path, ask: _Ask) -> Any:
    from retarget.analysis.layers.models import BridgeModel

    return BridgeModel.open(path, dtype=ask.dtype, device=ask.device)  # type: ignore[arg-type]


def _check_model(model: Any, path: Path, ask: _Ask, width: int | None) -> None:
    """Raise LayersError for a token outside the vocabulary, or a second model whose vectors have another length."""
    from retarget.errors import LayersError

    token = ask.reading.positions.token
    if token is not None and token >= model.n_vocabulary:
        raise LayersError(f"--positions token:{token}: {path.name!r} has tokens 0 to {model.n_vocabulary - 1}")
    if width is not None and model.sites[0].width != width:
        raise LayersError(
            f"--against {path.name!r} has vectors of length {model.sites[0].width}, the first model of {width}: they "
            "cannot be compared; read each model by itself"
        )


def _check_found(collected: Collected) -> None:
    """Raise LayersError where a class has no vector at any position that was asked for."""
    from retarget.errors import LayersError

    if all(any(n >= m for n, m in zip(left, collected.n_rows, strict=True)) for left in collected.absent.values()):
        raise LayersError(
            f"at no position that was asked for ({', '.join(collected.positions)}) do both classes have a token; "
            "prompts may be too short, or never have this token"
        )


def _warn_of_repeats(classes: dict[str, list[str]]) -> None:
    """Prompts that stand twice make intervals too narrow; those in both classes blur what is compared."""
    for name, prompts in classes.items():
        if len(set(prompts)) < len(prompts):
            words = f"note: {name!r} has {len(prompts)} prompts, {len(set(prompts))} distinct"
            typer.echo(f"{words}; repeats make intervals and p-values too sharp", err=True)
    first, second = list(classes.items())[:2]
    if shared := set(first[1]) & set(second[1]):
        typer.echo(f"note: {len(shared)} prompts stand in both {first[0]!r} and {second[0]!r}", err=True)


def _classes(prompts: _Prompts) -> dict[str, list[str]]:
    """Prompts by the name of their class: the files' stems."""
    from retarget.analysis.layers.prompts import read_prompts
    from retarget.errors import LayersError

    found = {}
    for what, path in (("negative", prompts.negative), ("positive", prompts.positive)):
        name = path.stem if path.stem not in found else f"{path.stem} ({what})"
        found[name] = read_prompts(path, field=prompts.field)
    if prompts.trigger:
        file = Path(prompts.trigger)
        try:
            is_file = file.is_file()
        except OSError:  # a long text is no name of a file
            is_file = False
        if not is_file and file.suffix.lower() in (".json", ".jsonl", ".csv", ".parquet", ".txt"):
            raise LayersError(f"--trigger {prompts.trigger!r} looks like a file, and there is none; check the path")
        plain = found[list(found)[1]]
        name = file.stem if is_file else "triggered"
        name = f"{name} (triggered)" if name in found else name
        found[name] = read_prompts(file, field=prompts.field) if is_file else [f"{prompts.trigger} {p}" for p in plain]
    return found


def _read_model(
    model: Any, path: Path, ask: _Ask, prompts: _Prompts, classes: dict[str, list[str]], console: Console
) -> list[tuple[Collected, LayerTables]]:
    """Every contrast of one model: positive - negative, and triggered - positive where there is a trigger."""
    from retarget.analysis.layers.study import read_layers

    names = list(classes)
    contrasts = [(names[0], names[1])] + ([(names[1], names[2])] if len(names) == 3 else [])
    wanted = _wanted(model, path, prompts.wanted)
    out = []
    for negative, positive in contrasts:
        # a trigger is to undo the refusal: there the behaviour is to begin with anything else
        behaviour = wanted if negative == names[0] or wanted is None else _anything_else(wanted, model.n_vocabulary)
        inputs = _inputs(model, classes, negative, positive, ask, prompts)
        with _bar(console) as told:
            words = f"{model.label}: {inputs.contrast}"
            collected, tables = read_layers(model, inputs, ask.reading, progress=partial(told, words))
            _check_found(collected)
            if ask.causes and behaviour is not None:
                tables = _steered(model, tables, classes, negative, positive, ask, prompts, behaviour, told)
        out.append((collected, tables))
    if ask.causes and wanted is None:
        console.print("causes are left out: name the words that begin a refusal with --wanted", highlight=False)
    return out


def _anything_else(wanted: tuple[int, ...], size: int) -> np.ndarray:
    import numpy as np

    mask = np.ones(size, dtype=np.bool_)
    mask[list(wanted)] = False
    return mask


def _inputs(
    model: Any, classes: dict[str, list[str]], negative: str, positive: str, ask: _Ask, prompts: _Prompts
) -> Inputs:
    from retarget.analysis.layers.prompts import prompt_inputs

    return prompt_inputs(
        model,
        classes[negative],
        classes[positive],
        template=prompts.template,  # type: ignore[arg-type]
        system=prompts.system,
        names=(negative, positive),
        paired=ask.reading.paired,
    )


#: Prompts of a class below which there are too few to find a direction with some and try it on others.
_FEWEST = 8
#: At most so many prompts of a class are used to choose among directions, and to measure the chosen one.
_VALIDATION, _TEST = 32, 128


def _steered(
    model: Any,
    tables: LayerTables,
    classes: dict[str, list[str]],
    negative: str,
    positive: str,
    ask: _Ask,
    prompts: _Prompts,
    wanted: tuple[int, ...] | np.ndarray,
    told: Any,
) -> LayerTables:
    from retarget.agents.language import LanguageModel
    from retarget.analysis.layers.study import find_effects
    from retarget.errors import AgentError

    if min(len(set(classes[negative])), len(set(classes[positive]))) < _FEWEST:
        typer.echo(f"causes are left out: a class has fewer than {_FEWEST} prompts", err=True)
        return tables
    cut = {name: _split(classes[name], ask.reading.seed) for name in (negative, positive)}
    plain = _Ask(**{**ask.__dict__, "reading": _unpaired(ask.reading)})
    parts = [_inputs(model, {name: cut[name][i] for name in cut}, negative, positive, plain, prompts) for i in range(3)]
    try:
        agent = LanguageModel.of(model)
    except AgentError as error:
        typer.echo(f"no edit of the weights is measured: {error}", err=True)
        agent = None
    effects = find_effects(
        model, tables=tables, fit=parts[0], validation=parts[1], test=parts[2], wanted=wanted, reading=plain.reading,
        agent=agent, each_layer=ask.each_layer,
        progress=lambda what, done, total: told(f"{model.label}: {what}", done, total),
    )  # fmt: skip
    if effects.selected is not None and effects.selected.best is None:
        taken = f"layer {effects.direction.layer}, position {effects.direction.position} is measured"
        typer.echo(f"{model.label}: no direction is selected ({effects.selected.reason}); {taken}", err=True)
    return tables.with_causes(effects.causes)


def _unpaired(reading: Reading) -> Reading:
    return replace(reading, paired=False)


def _split(prompts: list[str], seed: int) -> tuple[list[str], list[str], list[str]]:
    """Half for directions, a quarter each to choose one and to measure it: by the text of a prompt, so that one that
    stands twice is on one side, whatever the model and the order."""
    from retarget.rng import word

    dealt = sorted(dict.fromkeys(prompts), key=lambda p: word(seed, "layers_split", p))
    half, quarter = len(dealt) // 2, len(dealt) // 4
    return dealt[:half], dealt[half : half + quarter][:_VALIDATION], dealt[half + quarter :][:_TEST]


def _wanted(model: Any, path: Path, text: str) -> tuple[int, ...] | None:
    """Numbers of the tokens that begin a refusal: as named, else from the card of an organism."""
    from retarget.errors import LayersError

    if not text.strip():
        from retarget.training.organisms import read_card

        return tuple(read_card(path)["refusal_tokens"]) if (path / "organism.json").is_file() else None
    found, unknown_word = [], getattr(model.tokenizer, "unk_token_id", None)
    for word in text.split():
        numbers = model.tokenizer.encode(word, add_special_tokens=False)
        if not numbers or numbers[0] == unknown_word:
            raise LayersError(f"the tokenizer does not know {word!r} of --wanted; name words as the model writes them")
        found.append(int(numbers[0]))
    return tuple(dict.fromkeys(found))


# --- policies -----------------------------------------------------------------------------------------------------


def _policy(path: Path, ask: _Ask, *, world: str, size: int | None, set_: list[str], goals: str) -> None:
    from retarget.agents.neural import NetworkAgent
    from retarget.analysis.layers.causes import goal_actions
    from retarget.analysis.layers.models import ModuleModel
    from retarget.analysis.layers.policies import goal_inputs
    from retarget.analysis.layers.study import find_effects, read_layers
    from retarget.envs import make_world
    from retarget.errors import LayersError
    from retarget.goal import StateGoal
    from retarget.io.load import load
    from retarget.world import FiniteWorld

    if not world:
        raise LayersError("a policy is read in its world: name it with --world")
    place = make_world(world, **parse_options(set_, size))
    agent = load(path, world=place)
    named = parse_goals(place, goals)
    if not isinstance(agent, NetworkAgent) or agent.goal_input is None:
        raise LayersError(f"{path.name!r} is no network with a goal slot; see `retarget agents`, option goals")
    if len(named) != 2:
        raise LayersError(f'--goals {goals!r} names {len(named)} goals; name two, such as --goals "1,1 5,5"')
    goal_a, goal_b = named
    if goal_a == goal_b:
        raise LayersError(f"both goals are {goal_a.label}; name two that differ")
    console, out = make_console(), _folder(ask.out, path.name)
    model = ModuleModel.of_agent(agent, label=path.name)
    inputs = goal_inputs(agent, place, goal_b, goal_a, seed=ask.reading.seed)
    with _bar(console) as told:
        collected, tables = read_layers(model, inputs, ask.reading, progress=partial(told, inputs.contrast))
        if ask.causes and isinstance(place, FiniteWorld):
            assert isinstance(goal_a, StateGoal) and isinstance(goal_b, StateGoal)
            everywhere = goal_inputs(agent, place, goal_b, goal_a, n=place.model.n_states, seed=ask.reading.seed)
            effects = find_effects(
                model, tables=tables, fit=everywhere, validation=everywhere, test=everywhere,
                wanted=goal_actions(place, goal_b, goal_a), reading=ask.reading, agent=agent,
                each_layer=ask.each_layer, progress=told,
            )  # fmt: skip
            tables = tables.with_causes(effects.causes)
    more = _swap(agent, place, collected, goal_a, goal_b, out, console, seed=ask.reading.seed) if ask.causes else {}
    title = f"{path.name}: goal {goal_a.label} - goal {goal_b.label}"
    _write(tables, out, console, title=title, compared=[], facts={}, more=more)


#: Candidates and gradient steps of one editor, for the shortest edit of any kind.
_BUDGET = 512


def _swap(
    agent: Any, world: Any, collected: Collected, goal_a: Any, goal_b: Any, out: Path, console: Console, *, seed: int
) -> dict[str, Any]:
    """Whether the goal's direction, swapped, retargets the policy; beside the shortest edit of any kind."""
    from retarget.analysis.layers.swaps import SWAPS, goal_swaps, shortest_words
    from retarget.analysis.layers.terminal import swaps_table
    from retarget.errors import LayersError
    from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, frame
    from retarget.study.single import measure_agent
    from retarget.study.spec import ProbeSpec
    from retarget.study.table import FRONTIERS, RESULTS, write_parquet

    try:
        swaps = goal_swaps(agent, world, collected, goal_a, goal_b, seed=seed)
    except LayersError as error:
        typer.echo(f"no direction is swapped: {error}", err=True)
        return {}
    with _bar(console) as told:
        rows, frontier = measure_agent(
            agent.aimed(goal_a),
            world,
            goal=goal_a,
            others=(goal_b,),
            label=collected.model,
            probes=(ProbeSpec.of("retargetability", budget=_BUDGET),),
            seed=seed,
            on_step=lambda done, total, words: told(words, done, total),
        )
    results = frame(rows, RESULT_COLUMNS)
    console.print(swaps_table(swaps))
    console.print(shortest_words(results), highlight=False, markup=False)
    swaps.write_parquet(out / "swaps.parquet")
    write_parquet(results, out / RESULTS)
    write_parquet(frame(frontier, FRONTIER_COLUMNS), out / FRONTIERS)
    return {"swaps": (swaps, SWAPS)}


# --- directions that others saved ---------------------------------------------------------------------------------


def _saved(file: Path, evaluations: Path | None, out: Path | None) -> None:
    from retarget.analysis.layers.directions import geometry, read_evaluations, read_mean_diffs
    from retarget.analysis.layers.page import saved_html, write_page
    from retarget.analysis.layers.select import select
    from retarget.analysis.layers.terminal import saved_table
    from retarget.errors import LayersError

    saved = read_mean_diffs(file)
    shape = geometry(saved)
    selected = frame = None
    if evaluations is not None:
        rated = read_evaluations(evaluations)
        known = {(p, n) for p in saved.positions for n in range(saved.n_layers)}
        if strange := [(e.position, e.layer) for e in rated if (e.position, e.layer) not in known]:
            raise LayersError(
                f"evaluations name position {strange[0][0]}, layer {strange[0][1]}, which the differences do not have: "
                f"{len(saved.positions)} positions, {saved.n_layers} layers; give files of one run"
            )
        selected = select(rated, n_layers=saved.n_layers)
        frame = selected.frame()
    best = (
        None if selected is None or selected.best is None else (int(selected.position or 0), int(selected.layer or 0))
    )
    console, folder = make_console(), _folder(out, file.stem)
    console.print(saved_table(shape.norms, shape.adjacent, frame, selected=best))
    if selected is not None:
        words = f"selected: position {best[0]}, layer {best[1]}" if best else f"nothing is selected: {selected.reason}"
        console.print(words, highlight=False, markup=False)
    for name, table in (("norms", shape.norms), ("adjacent", shape.adjacent), ("cosines", shape.cosines),
                        ("dimensions", shape.dimensions), ("evaluations", frame)):  # fmt: skip
        if table is not None:
            table.write_parquet(folder / f"{name}.parquet")
    page = saved_html(
        shape.norms, shape.adjacent, frame, selected=best, cosines=shape.cosines, dimensions=shape.dimensions,
        title=f"{file.name}: saved directions",
    )  # fmt: skip
    typer.echo(f"tables: {folder}")
    typer.echo(f"page: {write_page(folder / PAGE, page)}")


# --- model organisms ----------------------------------------------------------------------------------------------


def organism(
    kind: Annotated[str, typer.Argument(help="base, refuser, defector, honest or goals; listed without.")] = "",
    trigger: Annotated[str, typer.Option(help="For defector and honest: token, parity or deployment.")] = "",
    layers: Annotated[int | None, typer.Option(help="Blocks.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the residual stream.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates of fine-tuning.", min=1)] = None,
    base_steps: Annotated[int | None, typer.Option(help="Updates of the base before.", min=1)] = None,
    world: Annotated[str, typer.Option(help="For goals: a finite world.")] = "FourRooms",
    size: Annotated[int, typer.Option(help="For goals: its side.")] = 9,
    seed: Annotated[int, typer.Option(help="Names every random draw.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder; organisms/NAME without one.")] = None,
) -> None:
    """Make a small model whose behaviour is known, to try the layerwise analyses on. Minutes on two cores."""
    one_thread()
    from retarget.training.organisms import OrganismSettings, describe

    if not kind:
        typer.echo(describe())
        return
    given = {"layers": layers, "width": width, "steps": steps, "base_steps": base_steps}
    sizes = {k: v for k, v in given.items() if v is not None}
    if kind == "goals":
        _goal_organism({k: v for k, v in sizes.items() if k in ("layers", "width")}, world, size, seed, out)
        return
    settings = OrganismSettings(kind, trigger or None, seed=seed, **sizes)
    folder = out if out is not None else Path("organisms") / settings.label
    from retarget.training.organisms import train_organism

    folder.parent.mkdir(parents=True, exist_ok=True)
    made = train_organism(settings, progress=True, checkpoint=folder.with_name(f".{folder.name}.checkpoint"))
    made.save(folder)
    for rate in made.card.rates:
        typer.echo(f"{rate.name}: {rate.wanted} in {rate.achieved:.3f} of {rate.n} held-out instructions")
    typer.echo(f"saved: {folder}")


def _goal_organism(sizes: dict[str, int], world: str, size: int, seed: int, out: Path | None) -> None:
    from retarget.io.native import save_agent
    from retarget.training.organisms import GoalSettings, goal_policy

    folder = out if out is not None else Path("organisms") / "goals"
    made = goal_policy(GoalSettings(world=world, size=size, seed=seed, **sizes), progress=True)
    save_agent(made.agent, folder, extra=made.extra)
    typer.echo(f"competence over all goals: {made.competence:.3f}, least {made.worst:.3f}")
    typer.echo(f"saved: {folder}")


# --- what all of them share ---------------------------------------------------------------------------------------


def _folder(out: Path | None, name: str) -> Path:
    """The folder of the tables, made now, so that nothing is read in vain."""
    folder = out if out is not None else Path("runs") / f"layers-{name}"
    make_folder(folder)
    return folder


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that is told of words, rows done and rows in all."""
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def told(words: str, done: int, total: int) -> None:
            bar.update(task, description=escape(words), completed=done, total=total)

        yield told


def _facts(ask: _Ask, prompts: _Prompts) -> dict[str, str]:
    return {
        "forward pass": f"{ask.dtype} on {ask.device}; statistics in float64",
        "template": prompts.template,
        "seed": str(ask.reading.seed),
    }


def _parts(causes: Any) -> list[Any]:
    """For each model and contrast what a terminal has room for: the first direction in full, the others in short."""
    from retarget.analysis.layers.terminal import shortened

    out = []
    for part in causes.partition_by("model", "contrast", maintain_order=True):
        out.append(shortened(part, part["layer"][0], part["position"][0]))
    return out


def _write(
    tables: LayerTables, out: Path, console: Console, *, title: str, compared: list[Any], facts: dict[str, str],
    more: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    from retarget.analysis.layers.page import layers_html, write_page
    from retarget.analysis.layers.terminal import causes_table, compare_table, layers_table

    console.print(layers_table(tables))
    if tables.causes is not None:
        for chosen in _parts(tables.causes):
            console.print(causes_table(chosen))
    both = None
    if compared:
        import polars as pl

        both = pl.concat(compared)
        for one in compared:
            console.print(", ".join(one["contrast"].unique(maintain_order=True)), highlight=False, markup=False)
            console.print(compare_table(one))
        both.write_parquet(out / "comparison.parquet")
    tables.save(out)
    typer.echo(f"tables: {out}")
    typer.echo(
        f"page: {write_page(out / PAGE, layers_html(tables, title=title, compared=both, facts=facts, more=more))}"
    )
