"""Other people's environments as finite worlds: anything that carries a transition table `P`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, registry

from retarget.envs.base import FiniteEnv
from retarget.envs.catalogue import GOAL, OBSERVATIONS, START, STEP_LIMIT, WorldOption
from retarget.envs.layouts import reachable
from retarget.envs.observe import Observer
from retarget.envs.places import Places, is_index
from retarget.errors import WorldError, unknown
from retarget.world import FiniteModel, WorldSpec

#: Options that every wrapped environment takes beside those of its own constructor.
GYM_OPTIONS: Mapping[str, WorldOption] = {
    "goal": GOAL,
    "start": START,
    "max_episode_steps": STEP_LIMIT,
    "observation": WorldOption("index", "what an observation is", choices=OBSERVATIONS[:3]),
    "observe_goal": WorldOption(False, "whether observations also show the goal"),
}
_HIDDEN = ("self", "render_mode")


class GymWorld(FiniteEnv):
    """A Gymnasium environment's transition table as a finite world. Made by `world_from_gym`."""

    def render(self) -> Any:
        """Text: the grid with the agent (`A`) and the goal (`G`) where there is one, else a line."""
        if self.render_mode is None or self._coordinates is None:
            return super().render()
        text = np.full(self._coordinates.max(0) + 1, ".")
        for r, c in self._coordinates[list(self._goal.states)]:
            text[r, c] = "G"
        if self._state >= 0:
            text[tuple(self._coordinates[self._state])] = "A"
        return "\n".join("".join(row) for row in text)


def world_from_gym(
    env: str | gymnasium.Env[Any, Any], *, render_mode: str | None = None, **options: object
) -> GymWorld:
    """Wrap an environment whose `unwrapped.P` is `{state: {action: [(prob, next, reward, done), ...]}}`.

    The result steps by the table itself, with the goal and start that are set: the reward is 1.0 on entering the goal.
    States that the table enters with `done` absorb: an episode that meets one which is not the goal stays there. The
    default goal is whichever of them pays most (all that do); the starts are where `initial_state_distrib` is
    positive (drawn evenly), or every other state where there is none.

    Args:
        env: an environment, or the id of a registered one. Ids that import code (`module:Env-v0`) are refused.
        render_mode: `"ansi"` or None.
        options: `goal`, `start`, `max_episode_steps`, `observation`, `observe_goal` as for our own worlds; for an
            id, also the options of the environment's constructor (`is_slippery=False`).

    Raises:
        WorldError: for an unknown id or option, an environment without a table or with a malformed one, or a state
            that is entered both with and without `done`.
        GoalError: for a goal or start that does not exist.

    >>> world = world_from_gym("FrozenLake-v1", is_slippery=False)
    >>> world.goal.states, world.start_states.tolist(), world.model.is_deterministic
    ((15,), [0], True)
    """
    own = {k: v for k, v in options.items() if k in GYM_OPTIONS}
    rest = {k: v for k, v in options.items() if k not in GYM_OPTIONS}
    inner, name, kwargs = _build(env, rest)
    opts = _resolve(own, name)
    given = {k: v for k, v in opts.items() if v != GYM_OPTIONS[k].default}
    world = _assemble(
        inner, WorldSpec.of(name, **kwargs, **given), WorldSpec.of(name, **kwargs).label, opts, render_mode
    )
    if name in registry:
        world.spec = EnvSpec(
            id=name,
            entry_point="retarget.envs.from_gym:world_from_gym",
            order_enforce=False,
            disable_env_checker=True,
            kwargs={"env": name, **kwargs, **given},
        )
    return world


def _assemble(inner: Any, spec: WorldSpec, label: str, opts: Mapping[str, object], render_mode: str | None) -> GymWorld:
    table = _read_table(inner, spec.id)
    if opts["goal"] is None and not table.best:
        raise WorldError(f"{label} has no state that ends an episode, so no default goal; pass goal=...")
    n_states = table.n_states
    shape = _grid_shape(inner, n_states)
    coordinates = None
    if shape is not None:
        coordinates = np.stack(np.unravel_index(np.arange(n_states), shape), axis=1).astype(np.int32)
    mode, with_goal = str(opts["observation"]), bool(opts["observe_goal"])
    return GymWorld(
        table.model,
        table.starts,
        places=Places(label, n_states, state_cell=coordinates),
        spec_data=spec,
        goal=set(table.best) if opts["goal"] is None else opts["goal"],
        start=opts["start"],
        observer=Observer(mode, n_states, with_goal=with_goal, state_cell=coordinates),
        coordinates=coordinates,
        action_moves=None if coordinates is None else _action_moves(table.model, coordinates),
        max_episode_steps=int(opts["max_episode_steps"]),  # type: ignore[call-overload]
        render_mode=render_mode,
    )


# -- finding and building the environment -----------------------------------------------------------------------


def _resolve(own: Mapping[str, object], name: str) -> dict[str, object]:
    out = {k: o.default for k, o in GYM_OPTIONS.items()}
    for key, value in own.items():
        if key == "max_episode_steps" and value is None:
            continue
        try:
            out[key] = GYM_OPTIONS[key].accept(value)
        except ValueError:
            raise WorldError(
                f"option {key!r} of world {name!r} must be {GYM_OPTIONS[key].expects}, got {value!r}"
            ) from None
    return out


def _build(env: object, options: dict[str, object]) -> tuple[Any, str, dict[str, object]]:
    """The unwrapped environment, its id, and the options that differ from the registered ones."""
    if isinstance(env, str):
        kwargs = {k: _plain(v) for k, v in options.items()}
        return _make(env, kwargs), env, {k: v for k, v in kwargs.items() if registry[env].kwargs.get(k) != v}
    if not isinstance(env, gymnasium.Env):
        raise WorldError(f"expected a Gymnasium environment or an id, got {env!r}")
    if options:
        raise WorldError(
            f"option {next(iter(options))!r} cannot be given with a built environment; known: {', '.join(GYM_OPTIONS)}"
        )
    inner: Any = env.unwrapped
    spec = inner.spec
    if spec is not None and spec.id in registry:
        kwargs = {k: _plain(v) for k, v in spec.kwargs.items() if k not in _HIDDEN}
        kwargs = {k: v for k, v in kwargs.items() if registry[spec.id].kwargs.get(k) != v}
        if _rebuilds(inner, spec.id, kwargs):
            return inner, spec.id, kwargs
    model = _read_table(inner, type(inner).__name__).model
    return inner, f"unregistered {type(inner).__name__}", {"model": model.digest}


def _rebuilds(inner: Any, name: str, kwargs: dict[str, object]) -> bool:
    # A table changed by hand, or built from options that are no plain data, must not pass for the registered one.
    try:
        again = _read_table(_make(name, kwargs), name).model
    except WorldError:
        return False
    return again.digest == _read_table(inner, name).model.digest


def _make(name: str, kwargs: Mapping[str, object]) -> Any:
    if ":" in name or name.startswith("retarget/") or name not in registry:
        tables = [n for n in registry if ":" not in n and "toy_text" in str(registry[n].entry_point)]
        raise WorldError(unknown("environment", name, tables))
    try:
        if kwargs:
            _check_options(name, kwargs)
        return gymnasium.make(name, disable_env_checker=True, **kwargs).unwrapped  # type: ignore[arg-type]
    except WorldError:
        raise
    except Exception as error:  # whatever a foreign constructor raises becomes one line of ours
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        options = ", ".join(f"{k}={v!r}" for k, v in kwargs.items()) or "no options"
        raise WorldError(f"environment {name!r} cannot be built with {options}: {reason}") from error


def _check_options(name: str, kwargs: Mapping[str, object]) -> None:
    probe = gymnasium.make(name, disable_env_checker=True).unwrapped
    parameters = inspect.signature(type(probe).__init__).parameters
    known = {k: p.default for k, p in parameters.items() if k not in _HIDDEN and p.kind is not p.VAR_KEYWORD}
    for key, value in kwargs.items():
        if key not in known:
            raise WorldError(unknown(f"option of environment {name!r}", key, [*known, *GYM_OPTIONS]))
        default = known[key]
        if default is None or default is inspect.Parameter.empty:
            continue
        like = (int, float) if isinstance(default, float) else (type(default),)
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, like):
            raise WorldError(f"option {key!r} of environment {name!r} takes a value like {default!r}, got {value!r}")


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, np.ndarray)):
        return tuple(_plain(v) for v in value)
    return value


# -- reading the table ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Table:
    model: FiniteModel
    starts: np.ndarray
    best: tuple[int, ...]

    @property
    def n_states(self) -> int:
        return self.model.n_states


def _read_table(inner: Any, name: str) -> _Table:
    if getattr(inner, "fickle_passenger", False):
        raise WorldError(f"{name} with fickle_passenger=True moves by more than its table; leave the option out")
    nxt, prob, reward, done = _arrays(getattr(inner, "P", None), name)
    possible = prob > 0
    n_states = len(nxt)
    ended = np.zeros(n_states, dtype=np.bool_)
    ended[nxt[possible & done]] = True
    starts = _starts(inner, ended, name)
    # What counts is what an episode can meet: the rows of states behind an end, or never entered, bind nothing.
    met = reachable(nxt, starts, prob=np.where(done, 0.0, prob))
    ends = np.zeros(n_states, dtype=np.bool_)
    closing = possible & done & met[:, None, None]
    ends[nxt[closing]] = True
    if (ends & met).any():
        state = int(np.flatnonzero(ends & met)[0])
        raise WorldError(
            f"state {state} of {name} is entered both with and without done, so the state alone does not tell whether "
            "an episode is over; give each of the two a state of its own"
        )
    ends |= ended & ~met
    pay = np.full(n_states, -np.inf)
    np.maximum.at(pay, nxt[closing], reward[closing])
    best = tuple(np.flatnonzero((pay == pay.max()) & np.isfinite(pay)).tolist())
    own = np.arange(n_states, dtype=np.int32)[:, None, None]
    nxt = np.where(ends[:, None, None], own, nxt)
    prob = np.where(ends[:, None, None], np.eye(1, nxt.shape[2])[0], prob)
    return _Table(FiniteModel(nxt, prob), starts, best)


def _arrays(table: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Successor, probability, reward and done, each `[S, A, K]`, from the nested table."""
    if table is None or not len(table):
        raise WorldError(
            f"environment {name!r} carries no transition table P; only environments with one can be wrapped"
        )
    try:
        rows = [[list(table[s][a]) for a in range(len(table[s]))] for s in range(len(table))]
        widths = {len(row) for row in rows}
        k = max(len(entries) for row in rows for entries in row)
        if len(widths) != 1 or k == 0:
            raise WorldError(
                f"the transition table of {name} has states with {sorted(widths)} actions; all need as many"
            )
        flat = [[e + [(0.0, s, 0.0, False)] * (k - len(e)) for e in row] for s, row in enumerate(rows)]
        data = np.array(flat, dtype=np.float64)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, WorldError):
            raise
        raise WorldError(
            f"the transition table of {name} is malformed ({type(error).__name__}: {error}); "
            "it must be P[state][action] = [(probability, next state, reward, done), ...], states and actions from 0"
        ) from error
    if data.ndim != 4 or data.shape[3] != 4 or not np.isfinite(data).all():
        raise WorldError(f"the transition table of {name} needs entries of four finite numbers")
    nxt = data[..., 1]
    if (nxt != np.rint(nxt)).any() or nxt.min() < 0 or nxt.max() >= len(rows):
        raise WorldError(f"the transition table of {name} leads to states outside 0 to {len(rows) - 1}")
    return nxt.astype(np.int32), data[..., 0], data[..., 2], data[..., 3] != 0


def _starts(inner: Any, ended: np.ndarray, name: str) -> np.ndarray:
    weights = getattr(inner, "initial_state_distrib", None)
    if weights is None:
        starts = np.flatnonzero(~ended)
    else:
        array = np.asarray(weights, dtype=np.float64)
        if array.shape != ended.shape or not np.isfinite(array).all():
            raise WorldError(
                f"initial_state_distrib of {name} needs {len(ended)} finite entries, got shape {array.shape}"
            )
        starts = np.flatnonzero(array > 0)
    if not len(starts):
        raise WorldError(f"{name} has no state in which an episode could begin")
    return starts


# -- finding the grid -------------------------------------------------------------------------------------------


def _grid_shape(inner: Any, n_states: int) -> tuple[int, int] | None:
    """Rows and columns where states are the cells of a grid in row-major order: from `desc`, or `shape`."""
    for shape in (np.shape(getattr(inner, "desc", ())), getattr(inner, "shape", ())):
        if isinstance(shape, tuple) and len(shape) == 2 and all(map(is_index, shape)) and math.prod(shape) == n_states:
            return int(shape[0]), int(shape[1])
    return None


def _action_moves(model: FiniteModel, coordinates: np.ndarray) -> np.ndarray | None:
    """Int32 `[A, 2]`: the step of one cell that each action intends, read off the model; None where unclear.

    Judged where all four neighbours exist and nothing leads further than one cell. The intended step is the most
    likely one; where a slip makes several equally likely, it is the opposite of the one that never happens.
    """
    delta = coordinates[model.next_state] - coordinates[:, None, None, :]
    inside = ((coordinates > 0) & (coordinates < coordinates.max(0))).all(1)
    leaves = ((model.next_state != np.arange(model.n_states)[:, None, None]) & (model.prob > 0)).any((1, 2))
    near = ((np.abs(delta).sum(-1) <= 1) | (model.prob == 0)).all((1, 2))
    clean = inside & leaves & near
    if not clean.any():
        return None
    steps = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], dtype=np.int32)
    out = []
    for action in range(model.n_actions):
        same = (delta[clean, action][:, :, None, :] == steps).all(-1)
        weight = (same * model.prob[clean, action][:, :, None]).sum((0, 1)) / clean.sum()
        top = np.flatnonzero(weight > weight.max() - 1e-9)
        never = np.flatnonzero(weight < 1e-9)
        if len(top) == 1:
            out.append(steps[top[0]])
        elif len(never) == 1:
            out.append(-steps[never[0]])
        else:
            return None
    return np.array(out, dtype=np.int32)
