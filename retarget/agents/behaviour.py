"""The behaviour of an agent with exceptions written over it: what a compiled table is where states cannot be listed.

In a finite world the behaviour of an agent without memory is a table over states (`retarget.agents.compiled`). Where
states are continuous, or the agent has memory, behaviour is described by exceptions to what it does now: over tiles of
the space of observations, at several resolutions, and along episodes from a fixed set of starts. Whoever decodes has
the agent as it was, the tiles and the starts; all that is written is which tile (or which step of which episode) takes
which action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Categorical, Part, own
from retarget.errors import AgentError
from retarget.rng import stream
from retarget.trials import follow
from retarget.world import BoxWorld, FiniteWorld, World

#: Tiles along each axis of the observations. Finer grids are left out where they would have more cells than this.
RESOLUTIONS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MOST_CELLS = 1 << 20
#: Torques and forces that exceptions may name, where actions are continuous.
LEVELS = 5
EPISODES = "episodes"


@dataclass(frozen=True, eq=False)
class Tiles:
    """A grid over observations: `bins` equal tiles along each axis between low and high; beyond them, the last one.

    Attributes:
        bins: tiles along each axis.
        low, high: float64 `[O]`.

    >>> Tiles(2, np.zeros(2), np.ones(2)).cell(np.array([[0.1, 0.2], [0.1, 0.9], [7.0, 7.0]])).tolist()
    [0, 1, 3]
    """

    bins: int
    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, own(np.asarray(getattr(self, name), dtype=np.float64)))

    @property
    def n_cells(self) -> int:
        return int(self.bins ** len(self.low))

    def cell(self, obs: np.ndarray) -> np.ndarray:
        """Number of the tile of each observation: int64 `[B]` of `[B, O]`."""
        width = np.where(self.high > self.low, self.high - self.low, 1.0)
        at = np.clip(((obs - self.low) / width * self.bins).astype(np.int64), 0, self.bins - 1)
        powers = self.bins ** np.arange(len(self.low) - 1, -1, -1)
        return np.asarray(at @ powers)


@dataclass(frozen=True, eq=False)
class StateTiles:
    """In a finite world: each state is a tile.

    Attributes:
        n_cells: number of states.
    """

    n_cells: int

    def cell(self, obs: np.ndarray) -> np.ndarray:
        return np.asarray(obs, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Carry:
    row: np.ndarray
    time: int
    base: object


@dataclass(frozen=True, eq=False)
class BehaviourTable(Agent):
    """An agent with exceptions written over what it does. Symbol 0: as before; symbol 1 + i: the action `palette[i]`.

    Parts: `tiles_N` for each grid, the coarsest first, and `episodes` (`[N, T]`: start, step). Where several name an
    exception, the episodes' counts, then the finest tiles'.

    Attributes:
        base: the agent as it was. No edit reaches it.
        palette: int64 `[L]` actions, or float64 `[L, K]` continuous ones.
        grids: tiles, the coarsest first.
        tables: int64 `[n_cells]` for each grid.
        first: observations `[N, ...]` at the starts of the episodes that can be named.
        episodes: int64 `[N, T]`.
    """

    base: Agent
    palette: np.ndarray
    grids: tuple[Tiles | StateTiles, ...]
    tables: tuple[np.ndarray, ...]
    first: np.ndarray
    episodes: np.ndarray
    kind: str = field(default="behaviour_table")

    def __post_init__(self) -> None:
        tables = tuple(own(np.asarray(t, dtype=np.int64)) for t in self.tables)
        if [t.shape for t in tables] != [(g.n_cells,) for g in self.grids]:
            raise AgentError(f"tables {[t.shape for t in tables]} do not fit tiles {[g.n_cells for g in self.grids]}")
        if self.episodes.ndim != 2 or len(self.episodes) != len(self.first):
            raise AgentError(f"episodes {self.episodes.shape} do not fit {len(self.first)} starts")
        object.__setattr__(self, "tables", tables)
        for name in ("palette", "first", "episodes"):
            object.__setattr__(self, name, own(np.asarray(getattr(self, name))))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts that hold tiles, the coarsest first."""
        return tuple(f"tiles_{g.bins}" if isinstance(g, Tiles) else "states" for g in self.grids)

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        alphabet = Categorical(1 + len(self.palette))
        arrays = {**dict(zip(self.names, self.tables, strict=True)), EPISODES: self.episodes}
        return {name: Part(name, "table", array, alphabet) for name, array in arrays.items() if array.size}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> BehaviourTable:
        self.check_arrays(arrays)
        tables = tuple(arrays.get(name, table) for name, table in zip(self.names, self.tables, strict=True))
        return replace(self, tables=tables, episodes=arrays.get(EPISODES, self.episodes))

    @property
    def config(self) -> Mapping[str, object]:
        return {"base": self.base.digest, "grids": list(self.names)}

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        out = {"palette": self.palette, "first": self.first}
        for grid, name in zip(self.grids, self.names, strict=True):
            if isinstance(grid, Tiles):
                out |= {f"{name}_low": grid.low, f"{name}_high": grid.high}
        return out

    @property
    def n_states(self) -> int | None:
        return self.base.n_states

    @property
    def has_memory(self) -> bool:
        return self.base.has_memory or bool(self.episodes.any())

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.base.seen_starts

    @property
    def flops_per_action(self) -> float:
        return self.base.flops_per_action

    def blank(self, seed: int) -> BehaviourTable:
        """The blank's behaviour, without exceptions."""
        empty = tuple(np.zeros_like(t) for t in self.tables)
        return replace(self, base=self.base.blank(seed), tables=empty, episodes=np.zeros_like(self.episodes))

    def symbols(self, obs: np.ndarray) -> np.ndarray:
        """What the tiles say: int64 `[B]`, 0 where they say nothing."""
        out = np.zeros(len(obs), dtype=np.int64)
        for grid, table in zip(self.grids, self.tables, strict=True):
            if table.any():
                said = table[grid.cell(obs)]
                out = np.where(said > 0, said, out)
        return out

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        before = carry if isinstance(carry, _Carry) else None
        probs, after = self.base.policy(obs, None if before is None else before.base)
        said = self.symbols(obs)
        if not self.has_memory:
            return self._write(probs, said), None
        row = self.row_of(obs) if before is None else before.row
        time = 0 if before is None else before.time
        if time < self.episodes.shape[1]:
            told = np.where(row >= 0, self.episodes[row, time], 0)
            said = np.where(told > 0, told, said)
        return self._write(probs, said), _Carry(row, time + 1, after)

    def row_of(self, obs: np.ndarray) -> np.ndarray:
        """Which of the starts that can be named each observation is, -1 for none: int64 `[B]`."""
        flat, known = np.asarray(obs).reshape(len(obs), -1), self.first.reshape(len(self.first), -1)
        same = (flat[:, None] == known[None]).all(2)
        return np.where(same.any(1), same.argmax(1), -1)

    def _write(self, probs: np.ndarray, said: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(said)
        if not rows.size:
            return probs
        out = probs.copy()
        action = self.palette[said[rows] - 1]
        if out.ndim == 3:
            out[rows, 0], out[rows, 1] = action, -np.inf
        else:
            out[rows] = 0.0
            out[rows, action] = 1.0
        return out


def behaviour_table(agent: Agent, world: World, *, first: np.ndarray, horizon: int) -> BehaviourTable:
    """An agent's behaviour, ready for exceptions. The table of a behaviour table is itself.

    Args:
        agent: whose behaviour.
        world: where.
        first: observations `[N, ...]` at the starts of the episodes that can be named.
        horizon: steps of an episode that can be named.
    """
    if isinstance(agent, BehaviourTable):
        return agent
    grids: tuple[Tiles | StateTiles, ...]
    if isinstance(world, FiniteWorld):
        grids, palette = (StateTiles(world.model.n_states),), np.arange(world.model.n_actions)
    else:
        low, high = seen_box(world)
        grids = tuple(Tiles(n, low, high) for n in RESOLUTIONS if n ** len(low) <= MOST_CELLS)
        palette = palette_of(world)
    tables = tuple(np.zeros(g.n_cells, dtype=np.int64) for g in grids)
    return BehaviourTable(agent, palette, grids, tables, first, np.zeros((len(first), horizon), dtype=np.int64))


#: Boxes of worlds, by what rebuilds the world.
_BOXES: dict[str, tuple[np.ndarray, np.ndarray]] = {}


def seen_box(world: BoxWorld, *, goals: int = 5, starts: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest observation, float64 `[O]` each, in episodes of the world's expert toward some of its goals.

    It depends on the world alone: a box that followed an agent, or the goal that it is to be given, would tell the
    decoder something for nothing.
    """
    key = world.spec_data.label
    if key not in _BOXES:
        some = [world.goals[int(i)] for i in np.unique(np.linspace(0, len(world.goals) - 1, goals).round())]
        seen = []
        for goal in some:
            expert = world.expert(goal)
            begin = world.starts(starts, rng=stream(0, "seen_box", key, goal.label))
            traces = follow(world, lambda obs, state, carry, e=expert: (e.act(state), None), begin, goal)  # type: ignore[misc]
            seen.append(world.observe(traces.states.reshape(-1, traces.states.shape[2])))
        every = np.concatenate(seen).astype(np.float64)
        _BOXES[key] = every.min(0), every.max(0)
    return _BOXES[key]


def palette_of(world: BoxWorld) -> np.ndarray:
    """Actions that exceptions may name: all of them, or `LEVELS` a dimension between the lowest and the highest."""
    if world.n_actions is not None:
        return np.arange(world.n_actions)
    low, high = world.action_range  # type: ignore[misc]
    axes = [np.linspace(a, b, LEVELS) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))


def nearest_symbol(palette: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The symbol (1 + index in the palette) of each action: int64 `[B]` of int64 `[B]` or float64 `[B, K]`."""
    if palette.ndim == 1:
        return np.asarray(action, dtype=np.int64) + 1
    return np.asarray(((action[:, None] - palette[None]) ** 2).sum(2).argmin(1)) + 1
