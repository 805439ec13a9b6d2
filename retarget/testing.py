"""Property-based tests for probes, agents and worlds: Hypothesis strategies, and checkers that hold to the laws.

from retarget.testing import check_probe
check_probe(MyProbe())
"""

from __future__ import annotations

import hypothesis
import numpy as np
from hypothesis import strategies as st

from retarget.agent import Agent, Categorical, HasGoalSlot, HasTable, Layout, PartLayout, Real
from retarget.agents.compiled import compile_policy
from retarget.agents.controller import Controller
from retarget.agents.planner import exact_planner, learned_planner
from retarget.agents.tabular import GoalTable, QTable, TablePolicy, train_q_table
from retarget.agents.wrappers import ModelWorld, Padded, relabel_agent, relabel_goal, relabel_world
from retarget.code import ENUMERATIVE, FIXED_WIDTH
from retarget.edit import Dense, Edit, LowRank, Patch, Slot, Sparse
from retarget.editors.slot import slot_edit
from retarget.errors import AgentError, EditError, ProbeError
from retarget.exact import policy_table
from retarget.goal import StateGoal
from retarget.probe import UNIVERSAL_LAWS, Outcome, Probe, Subject
from retarget.world import FiniteModel, FiniteWorld

_SMALL_WORLDS = (
    ("OpenGrid", {"size": 5}),
    ("FourRooms", {"size": 7}),
    ("Maze", {"size": 7, "seed": 1}),
    ("Cliff", {"size": 5}),
)


# ------------------------------------------------------------------------------------------------ strategies


@st.composite
def models(draw: st.DrawFn, *, max_states: int = 8, deterministic: bool | None = None) -> FiniteModel:
    """Any finite model: `[S, A, K]` with 2 to `max_states` states, 1 to 4 actions, 1 to 3 successors."""
    s = draw(st.integers(2, max_states))
    a = draw(st.integers(1, 4))
    one = draw(st.booleans()) if deterministic is None else deterministic
    k = 1 if one else draw(st.integers(2, 3))
    nxt = draw(st.lists(st.integers(0, s - 1), min_size=s * a * k, max_size=s * a * k))
    weight = draw(st.lists(st.integers(1, 8), min_size=s * a * k, max_size=s * a * k))
    prob = np.array(weight, dtype=np.float64).reshape(s, a, k)
    return FiniteModel(np.array(nxt).reshape(s, a, k), prob / prob.sum(-1, keepdims=True))


@st.composite
def worlds(draw: st.DrawFn, *, grids: bool = True) -> FiniteWorld:
    """A small finite world: one of the grids (with or without slip), or any model with a goal that can be reached."""
    if grids and draw(st.booleans()):
        from retarget.envs import make_world

        name, options = draw(st.sampled_from(_SMALL_WORLDS))
        slip = draw(st.sampled_from((0.0, 0.0, 0.25)))
        grid: FiniteWorld = make_world(name, **(options | ({"slip": slip} if slip else {})))
        return grid
    world = ModelWorld(draw(models()), StateGoal.of([0]))
    hypothesis.assume(len(world.goals) >= 2)
    return ModelWorld(world.model, world.goals[0])


def goals(world: FiniteWorld) -> st.SearchStrategy[StateGoal]:
    """A goal of a world."""
    return st.sampled_from(world.goals)


@st.composite
def policies(draw: st.DrawFn, n_states: int, n_actions: int) -> np.ndarray:
    """Action probabilities float64 `[S, A]`: rows pure, uniform or mixed."""
    rows = []
    for _ in range(n_states):
        weight = draw(st.lists(st.integers(0, 4), min_size=n_actions, max_size=n_actions))
        rows.append(weight if sum(weight) else [1] * n_actions)
    table = np.array(rows, dtype=np.float64)
    return np.asarray(table / table.sum(1, keepdims=True))


@st.composite
def agents(draw: st.DrawFn, world: FiniteWorld, goal: StateGoal) -> Agent:
    """An agent that fits a world: a table (any, or trained), a goal table, a planner of any depth, or a controller."""
    model = world.model
    kind = draw(st.sampled_from(("table", "q", "trained", "goal_table", "planner", "depth", "learned", "controller")))
    seed = draw(st.integers(0, 3))
    if kind == "q":
        values = draw(st.lists(st.integers(-2, 2), min_size=model.next_state[..., 0].size))
        return QTable(np.resize(np.array(values, dtype=np.float64) / 2, (model.n_states, model.n_actions)))
    if kind == "trained":
        return train_q_table(world, goal, episodes=draw(st.integers(1, 30)), exploring=True, seed=seed)[0]
    if kind == "goal_table":
        chosen = tuple(sorted({goal, *world.goals[:3]}))
        rows = [compile_policy(exact_planner(world, g), world).symbols for g in chosen]
        return GoalTable(np.stack(rows), chosen.index(goal), chosen, model.n_actions)
    if kind in ("planner", "depth"):
        return exact_planner(world, goal, depth=None if kind == "planner" else draw(st.integers(1, 6)))
    if kind == "learned":
        return learned_planner(
            world, goal, everywhere=draw(st.booleans()), episodes=draw(st.integers(1, 20)), epsilon=0.1, seed=seed
        )
    position, moves = world.coordinates, world.action_moves
    if kind == "controller" and position is not None and moves is not None:
        return Controller(position[goal.states[0]], moves.astype(np.float64), position, int(position.max()) + 1)
    return TablePolicy.from_probabilities(draw(policies(model.n_states, model.n_actions)))


@st.composite
def subjects(draw: st.DrawFn, *, needs_goal_b: bool = True) -> Subject:
    """An agent in a small world with its goal A, and another goal B."""
    world = draw(worlds())
    goal_a = draw(goals(world))
    agent = draw(agents(world, goal_a))
    goal_b = draw(st.sampled_from([g for g in world.goals if g != goal_a])) if needs_goal_b else None
    level = draw(st.sampled_from((0.95, 0.5, 1.0)))
    return Subject(agent, world, goal_a, goal_b, gamma=draw(st.sampled_from((0.95, 0.8))), level=level)


def layouts() -> st.SearchStrategy[Layout]:
    """Parts of any shape and alphabet, 1 to 4 of them."""
    alphabet = st.one_of(st.just(Real()), st.builds(Categorical, st.integers(1, 9)))
    shape = st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple)
    part = st.tuples(shape, alphabet)
    return st.lists(part, min_size=1, max_size=4).map(
        lambda parts: tuple(PartLayout(f"p{i}", s, a) for i, (s, a) in enumerate(parts))
    )


def _values(layout: PartLayout, n: int) -> st.SearchStrategy[np.ndarray]:
    if isinstance(layout.alphabet, Categorical):
        symbol: st.SearchStrategy[int] = st.integers(0, layout.alphabet.size - 1)
        return st.lists(symbol, min_size=n, max_size=n).map(lambda v: np.array(v, dtype=np.int64))
    number = st.one_of(
        st.integers(-8, 8).map(float),
        st.floats(allow_nan=False, allow_infinity=False),
        st.floats(allow_nan=False, allow_infinity=False, width=32),
        st.floats(allow_nan=False, allow_infinity=False, width=16),
    )
    return st.lists(number, min_size=n, max_size=n).map(lambda v: np.array(v, dtype=np.float64))


@st.composite
def patches(draw: st.DrawFn, layout: PartLayout) -> Patch:
    """Any patch that fits a part: sparse, slot, dense, or (for real matrices) low-rank."""
    n = layout.n_cells
    real_matrix = isinstance(layout.alphabet, Real) and len(layout.shape) == 2
    kind = draw(st.sampled_from(("sparse", "slot", "dense", *(("lowrank",) if real_matrix else ()))))
    if kind == "dense":
        return Dense(layout.name, draw(_values(layout, n)).reshape(layout.shape))
    if kind == "lowrank":
        r = draw(st.integers(1, 2))
        left, right = (draw(_values(layout, d * r)).reshape(d, r) for d in layout.shape)
        return LowRank(layout.name, left, right)
    cells = draw(st.sets(st.integers(0, n - 1), min_size=1 if kind == "sparse" else 0))
    index = np.array(sorted(cells), dtype=np.int64)
    value = draw(_values(layout, index.size))
    if kind == "sparse":
        return Sparse(layout.name, index, value)
    rest = float(draw(_values(layout, 1))[0])
    return Slot(layout.name, rest if rest != 0 else 0.0, index, value)


@st.composite
def edits(draw: st.DrawFn, layout: Layout, *, agent_digest: str = "0" * 32) -> Edit:
    """Any edit that fits a layout, the empty one included."""
    chosen = [p for p in layout if draw(st.booleans())]
    return Edit(agent_digest, tuple(draw(patches(p)) for p in chosen))


# ------------------------------------------------------------------------------------------------ checkers


def check_probe(probe: Probe, *, max_examples: int = 30) -> None:
    """Hold a probe to the laws that it declares, and to the universal ones, on drawn agents and worlds.

    Universal: `deterministic` (the same subject gives the same outcome), `pure` (the agent's digest is as before),
    `bounded` (every declared metric is there, in order, three-state, within its bounds). Declared by the probe:
    `relabel_invariant` (renaming the states changes nothing), `behaviour_only` (an agent and its compiled table give
    the same), `dead_parameters` (cells that nothing reads change nothing).

    Args:
        probe: an instance.
        max_examples: subjects to draw.

    Raises:
        ProbeError: naming the law, the metric and the two values.

    >>> from retarget.probes import Robustness
    >>> check_probe(Robustness(), max_examples=3)
    """
    if not isinstance(probe, Probe):
        raise ProbeError(f"expected a probe, got {type(probe).__name__}; pass an instance: check_probe(MyProbe())")
    _check_declaration(probe)

    @hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(subjects(needs_goal_b=probe.needs_goal_b), st.randoms(use_true_random=False))
    def laws(subject: Subject, random: object) -> None:
        _check_subject(probe, subject, random)

    laws()


def _check_declaration(probe: Probe) -> None:
    if not getattr(probe, "name", "") or not probe.metrics:
        raise ProbeError(f"probe {type(probe).__name__} declares no name or no metrics")
    known = UNIVERSAL_LAWS | {"relabel_invariant", "behaviour_only", "dead_parameters"}
    odd = sorted(set(probe.laws) - known)
    if odd:
        raise ProbeError(f"probe {probe.name!r} declares the unknown law {odd[0]!r}; known: {', '.join(sorted(known))}")


def _check_subject(probe: Probe, subject: Subject, random: object) -> None:
    digest = subject.agent.digest
    try:
        first = probe.measure(subject)
    except ValueError as error:
        if "read-only" in str(error):
            raise ProbeError(f"probe {probe.name!r} broke the law 'pure': it writes to the agent ({error})") from error
        raise
    _check_outcome(probe, first)
    fresh = type(subject.agent).digest.func(subject.agent)  # type: ignore[attr-defined]
    if fresh != digest:
        raise ProbeError(f"probe {probe.name!r} broke the law 'pure': the agent was {digest}, and is now {fresh}")
    second = probe.measure(subject)
    _same(probe, "deterministic", first, second)
    if first != second:
        odd = [a.metric for a, b in zip(first.measurements, second.measurements, strict=True) if a != b] or ["frontier"]
        raise ProbeError(
            f"probe {probe.name!r} broke the law 'deterministic': interval, spend or reason of {odd[0]} changed"
        )
    if "behaviour_only" in probe.laws:
        world, _ = _finite(subject)
        table = compile_policy(subject.agent, world)
        _same(probe, "behaviour_only", first, probe.measure(subject.with_(agent=table)))
    if "relabel_invariant" in probe.laws:
        perm = np.arange(_finite(subject)[0].model.n_states)
        random.shuffle(perm)  # type: ignore[attr-defined]
        _same(probe, "relabel_invariant", first, probe.measure(relabelled(subject, perm)), tolerance=1e-9)
    if "dead_parameters" in probe.laws:
        for part in subject.agent.parts.values():
            padded = Padded(subject.agent, part.name, np.zeros(3))
            _same(probe, "dead_parameters", first, probe.measure(subject.with_(agent=padded)))


def relabelled(subject: Subject, perm: np.ndarray) -> Subject:
    """The same subject with every state `s` of its world renamed to `perm[s]`."""
    world, goal_a = _finite(subject)
    goal_b = subject.goal_b
    return subject.with_(
        agent=relabel_agent(subject.agent, perm),
        world=relabel_world(world, perm),
        goal_a=relabel_goal(goal_a, perm),
        goal_b=relabel_goal(goal_b, perm) if isinstance(goal_b, StateGoal) else None,
    )


def _finite(subject: Subject) -> tuple[FiniteWorld, StateGoal]:
    """The subjects that probes are checked on are drawn in finite worlds."""
    assert isinstance(subject.world, FiniteWorld) and isinstance(subject.goal_a, StateGoal)
    return subject.world, subject.goal_a


def _check_outcome(probe: Probe, outcome: Outcome) -> None:
    try:
        outcome.check(probe)
    except ProbeError as error:
        words = str(error).removeprefix(f"probe {probe.name!r} ")
        raise ProbeError(f"probe {probe.name!r} broke the law 'bounded': it {words}") from error
    for m in outcome.measurements:
        bounds = probe.metrics[m.metric]
        low = -np.inf if bounds.low is None else bounds.low
        high = np.inf if bounds.high is None else bounds.high
        for value in (m.value, m.ci_low, m.ci_high):
            if value is not None and not low <= value <= high:
                raise ProbeError(
                    f"probe {probe.name!r} broke the law 'bounded': {m.metric} is {value!r}, outside [{low}, {high}]"
                )


def _same(
    probe: Probe,
    law: str,
    first: Outcome,
    second: Outcome,
    *,
    tolerance: float = 0.0,
) -> None:
    keys = [[(m.metric, m.protocol, m.dose) for m in o.measurements] for o in (first, second)]
    if keys[0] != keys[1]:
        raise ProbeError(f"probe {probe.name!r} broke the law {law!r}: it returned {keys[0]}, and then {keys[1]}")
    for a, b in zip(first.measurements, second.measurements, strict=True):
        near = a.value == b.value or (
            a.value is not None and b.value is not None and abs(a.value - b.value) <= tolerance * max(1, abs(a.value))
        )
        if a.status != b.status or not near:
            raise ProbeError(
                f"probe {probe.name!r} broke the law {law!r}: {a.metric} is "
                f"{a.status if a.value is None else a.value!r}, and then {b.status if b.value is None else b.value!r}"
            )


def check_agent(agent: Agent, world: FiniteWorld, *, max_examples: int = 30) -> None:
    """Hold an agent to the laws of agents in a finite world.

    Its policy gives distributions, and a batch of n is n batches of one; edits bring back what they wrote, leave the
    agent as it was, and are as long as their code says; the empty edit changes nothing; slot writes and table cells
    do what they promise; its blank has the same layout.

    Raises:
        AgentError: naming the law.

    >>> import retarget
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> check_agent(exact_planner(world, world.goal), world, max_examples=3)
    """
    probs = policy_table(agent, world.model)
    for s in range(world.model.n_states):
        if not np.array_equal(agent.policy(np.array([s]))[0][0], probs[s]):
            raise AgentError(
                f"agent {agent.kind!r}: a batch of one gives another policy in state {s} than a batch of all"
            )
    if agent.blank(0).layout != agent.layout:
        raise AgentError(f"agent {agent.kind!r}: its blank has other parts than it has")
    if not agent.parts:
        raise AgentError(f"agent {agent.kind!r} exposes no parts; there is nothing to edit")
    _check_table(agent, world, probs)
    _check_slots(agent, world)

    @hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(edits(agent.layout, agent_digest=agent.digest))
    def laws(edit: Edit) -> None:
        _check_edit(agent, edit)

    laws()


def _check_edit(agent: Agent, edit: Edit) -> None:
    digest = agent.digest
    for code in (ENUMERATIVE, FIXED_WIDTH):
        word = code.encode(edit, agent.layout)
        if code.decode(word.data, agent.layout, agent_digest=digest) != edit:
            raise AgentError(f"agent {agent.kind!r}: an edit does not survive the {code.name} code")
        if word.n_bits != code.length(edit, agent.layout):
            raise AgentError(f"agent {agent.kind!r}: the {code.name} length of an edit is not that of its bytes")
    try:
        edited = edit.apply(agent)
    except (AgentError, EditError):
        # an agent may refuse numbers that make no sense for it, as long as it says so
        return
    if type(agent).digest.func(agent) != digest:  # type: ignore[attr-defined]
        raise AgentError(f"agent {agent.kind!r}: applying an edit changed the agent itself")
    for patch in edit.patches:
        want = patch.write(agent.parts[patch.part].array)
        if not np.array_equal(edited.parts[patch.part].array, want):
            raise AgentError(f"agent {agent.kind!r}: part {patch.part!r} does not hold what was written to it")


def _check_table(agent: Agent, world: FiniteWorld, probs: np.ndarray) -> None:
    if not isinstance(agent, HasTable):
        return
    view = agent.table_view()
    for s in range(min(world.model.n_states, 12)):
        for a in range(view.n_options):
            cell = Sparse(view.part, np.array([view.cell[s, a]]), np.array([view.value[s, a]]))
            after = policy_table(Edit.of(agent, cell).apply(agent), world.model)
            want = probs.copy()
            want[s] = np.eye(world.model.n_actions)[a]
            if not np.array_equal(after, want):
                raise AgentError(
                    f"agent {agent.kind!r}: writing its cell for action {a} in state {s} does something else"
                )


def _check_slots(agent: Agent, world: FiniteWorld) -> None:
    if not isinstance(agent, HasGoalSlot):
        return
    for write in (*agent.slot_writes(world.goal), *agent.slot_candidates()[:8]):
        if agent.parts[write.part].role != "goal_slot":
            raise AgentError(f"agent {agent.kind!r}: its slot write names part {write.part!r}, which is no goal slot")
        slot_edit(agent, write).apply(agent)


__all__ = [
    "agents",
    "check_agent",
    "check_probe",
    "edits",
    "goals",
    "layouts",
    "models",
    "patches",
    "policies",
    "relabelled",
    "subjects",
    "worlds",
]
