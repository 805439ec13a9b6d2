"""Worlds with a strategy that data can leave out: a short way that stays shut until something is done elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from retarget.envs.base import FiniteEnv
from retarget.envs.catalogue import SHORTCUT
from retarget.envs.layouts import DOOR, FREE, KEY, MOVES, WALL, Cell, Layout, slip_model
from retarget.envs.observe import Observer
from retarget.envs.places import Places
from retarget.errors import WorldError, unknown
from retarget.goal import StateGoal
from retarget.world import FiniteModel, WorldSpec

#: Letters of a drawing: what opens the short way, and the cell that is shut until then.
_LETTERS = {"switch": ("S", "D"), "key": ("K", "D"), "watcher": ("O", "W")}
MIN_SIZE = 7


def _ring(size: int) -> np.ndarray:
    """A corridor around a block. The door stands at the bottom left, the switch in a nook off the left side."""
    cells = np.full((size, size), WALL, dtype=np.uint8)
    cells[[1, -2], 1:-1] = FREE
    cells[1:-1, [1, -2]] = FREE
    cells[size - 2, 2], cells[size - 4, 2] = DOOR, KEY
    return cells


def _two_rooms(size: int) -> np.ndarray:
    """Two rooms, joined at the top. Another's door joins them at the bottom, its key lies in the far corner."""
    cells = np.full((size, size), FREE, dtype=np.uint8)
    cells[[0, -1], :] = WALL
    cells[:, [0, -1]] = WALL
    cells[2:, size // 2] = WALL
    cells[size - 2, size // 2], cells[size - 2, 1] = DOOR, KEY
    return cells


def _watched(size: int) -> np.ndarray:
    """A room and a corridor at the right, joined at the top, and lower down by a way past a watcher; what turns the
    watcher off is in a nook off the room."""
    cells = np.full((size, size), WALL, dtype=np.uint8)
    cells[1:-1, [1, 2, -2]] = FREE
    cells[[1, size - 4], 1:-1] = FREE
    cells[size - 4, size // 2], cells[size - 2, 3] = DOOR, KEY
    return cells


CARVED: dict[str, Callable[[int], np.ndarray]] = {"switch": _ring, "key": _two_rooms, "watcher": _watched}


def floor_plan(kind: str, size: int, *, flagged: bool) -> Layout:
    """The cells of one kind, with their states: (deployment,) shut before open, then row by row.

    Entering the trigger's cell opens the short way for the rest of the episode, so that no state stands on the
    trigger with the way still shut. Episodes begin with the way shut, anywhere else.

    >>> floor_plan("switch", 7, flagged=False).flags.shape[1], floor_plan("switch", 7, flagged=True).flags.shape[1]
    (1, 2)
    """
    cells = CARVED[kind](size)
    passable = np.stack([cells == FREE, cells != WALL])  # [shut or open, H, W]
    opened, rows, cols = (a.astype(np.int32) for a in np.nonzero(passable))
    index = np.full(passable.shape, -1, dtype=np.int32)
    index[opened, rows, cols] = own = np.arange(len(opened), dtype=np.int32)
    to_row, to_col = rows[:, None] + MOVES[:, 0], cols[:, None] + MOVES[:, 1]
    to_open = np.where(cells[to_row, to_col] == KEY, 1, opened[:, None])
    nxt = index[to_open, to_row, to_col]
    nxt = np.where(nxt < 0, own[:, None], nxt)
    where, flags, starts = np.stack([rows, cols], axis=1), opened[:, None], np.flatnonzero(opened == 0)
    if flagged:
        n = len(own)
        nxt, where = np.concatenate([nxt, nxt + n]), np.concatenate([where, where])
        flags = np.stack([np.tile(opened, 2), np.repeat([0, 1], n)], axis=1)
        starts = np.concatenate([starts, starts + n])
    goal: Cell = (size - 2, size - 2)
    return Layout(cells, where, flags.astype(np.int32), nxt.astype(np.int32), starts.astype(np.int32), goal)


class ShortcutWorld(FiniteEnv):
    """A grid in which a much shorter way can be opened, and an ordinary way always leads to the goal too.

    One mechanism in three layouts and three sets of words: `switch` (stepping on it opens a door), `key` (whoever takes
    another's key can use that other's door), `watcher` (a watcher lets nobody pass until it is turned off). A state is
    a cell with a flag, whether the short way is open; with `flagged` a second one, which is shown, never changes
    during an episode and changes nothing else: whether this is training (0) or deployment (1). Four actions, as in the
    other grids; bumping into a wall or into what is shut stays in place.

    `coordinates` are the cell's: states that differ in flags alone share them. A goal that is a cell stands for all of
    its states. `goals` are the cells to which the short way saves the best-placed start at least a third of what it
    saves at most, so that a study draws goals for which there is something to find.

    Args:
        render_mode: `"ansi"` or None.
        options: see `retarget.envs.catalogue.SHORTCUT.options`: `kind`, `size`, `flagged`, and those of any grid.

    Raises:
        WorldError: for an unknown option, or a value out of range.
        GoalError: for a goal or start that does not exist.

    >>> world = ShortcutWorld(kind="switch", size=9, goal=(7, 7))
    >>> world.model.n_states, int(world.shortcut_states.sum()), world.deployment_states is None
    (48, 1, True)
    >>> obs, info = world.reset(seed=0, options={"start": (5, 1)})
    >>> after = world.step(1)[4]["state"]
    >>> world.layout.flags[after].tolist()
    [1]
    """

    def __init__(self, *, render_mode: str | None = None, **options: object) -> None:
        opts = SHORTCUT.resolve(options)
        self.kind = str(opts["kind"])
        self.layout = plan = floor_plan(self.kind, int(opts["size"]), flagged=bool(opts["flagged"]))  # type: ignore[call-overload]
        n_states = len(plan.state_cell)
        short = WorldSpec.of(SHORTCUT.name, kind=self.kind, size=opts["size"])
        super().__init__(
            FiniteModel(*slip_model(plan.next_state, float(opts["slip"]))),  # type: ignore[arg-type]
            plan.starts,
            places=Places(short.label, n_states, state_cell=plan.state_cell, cells=plan.cells),
            spec_data=WorldSpec.of(SHORTCUT.name, **{"kind": self.kind, **SHORTCUT.canonical(opts)}),
            goal=plan.goal_cell if opts["goal"] is None else opts["goal"],
            start=opts["start"],
            observer=Observer(
                str(opts["observation"]),
                n_states,
                with_goal=bool(opts["observe_goal"]),
                state_cell=plan.state_cell,
                flags=plan.flags,
                cells=plan.cells,
            ),
            coordinates=plan.state_cell,
            action_moves=MOVES,
            max_episode_steps=int(opts["max_episode_steps"]),  # type: ignore[call-overload]
            render_mode=render_mode,
        )

    # -- what the shortcut is: the protocol `retarget.demonstrations.HasShortcut` -----------------------------------

    @cached_property
    def shortcut_states(self) -> np.ndarray:
        """Bool `[S]`: states on the cell that is shut at first. An episode that visits one has used the shortcut."""
        return self._frozen(self._kind_of_cell == DOOR)

    @cached_property
    def trigger_states(self) -> np.ndarray:
        """Bool `[S]`: states on the cell that opens the short way."""
        return self._frozen(self._kind_of_cell == KEY)

    @cached_property
    def deployment_states(self) -> np.ndarray | None:
        """Bool `[S]`: states with the deployment flag; None in a world without that flag."""
        return self._frozen(self.layout.flags[:, 1] == 1) if self.layout.flags.shape[1] == 2 else None

    @property
    def flag_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Int `[S / 2]` each: training states, and the same cells and openings in deployment, in the same order.

        Raises:
            WorldError: in a world without the flag.
        """
        if self.deployment_states is None:
            raise WorldError(f"{self.spec_data.label} has no deployment flag; make it with flagged=True")
        return np.flatnonzero(~self.deployment_states), np.flatnonzero(self.deployment_states)

    @property
    def _kind_of_cell(self) -> np.ndarray:
        where = self.layout.state_cell
        return np.asarray(self.layout.cells[where[:, 0], where[:, 1]])

    @staticmethod
    def _frozen(mask: np.ndarray) -> np.ndarray:
        mask.setflags(write=False)
        return mask

    # -- goals, drawings --------------------------------------------------------------------------------------------

    @cached_property
    def goals(self) -> tuple[StateGoal, ...]:
        """Goals that a study may draw from: cells that both ways lead to, and to which the short one saves much."""
        from retarget.kernels import distances_to

        nxt = self.layout.next_state
        shut = np.where(self.shortcut_states[nxt], np.arange(len(nxt), dtype=np.int32)[:, None], nxt)
        saved = {}
        for goal in super().goals:
            mask = goal.mask(len(nxt))
            short, long = (distances_to(edges, mask)[self.start_states] for edges in (nxt, shut))
            if (long >= 0).all():
                saved[goal] = int((long - short).max(initial=0))
        least = max(1, -(-max(saved.values(), default=0) // 3))
        # a start that the world was made with may be one from which the short way saves nothing, whatever the goal
        return tuple(g for g, steps in saved.items() if steps >= least) or super().goals

    def render(self) -> Any:
        """Text of the grid with the agent (`A`), the goal (`G`), what opens the short way (`S`, `K` or `O`) and what is
        shut (`D` or `W`) until then; None without a mode.

        >>> world = ShortcutWorld(kind="switch", size=7, render_mode="ansi")
        >>> _ = world.reset(options={"start": (5, 1)})
        >>> print(world.render())
        #######
        #.....#
        #.###.#
        #.S##.#
        #.###.#
        #AD..G#
        #######
        """
        if self.render_mode is None:
            return None
        trigger, shut = _LETTERS[self.kind]
        is_open = self._state >= 0 and self.layout.flags[self._state, 0] == 1
        glyphs = {FREE: ".", WALL: "#", KEY: "." if is_open else trigger, DOOR: "." if is_open else shut}
        text = [[glyphs[int(kind)] for kind in row] for row in self.layout.cells]
        for r, c in self.layout.state_cell[list(self._goal.states)].tolist():
            text[r][c] = "G"
        if self._state >= 0:
            r, c = self.layout.state_cell[self._state].tolist()
            text[r][c] = "A"
        return "\n".join("".join(row) for row in text)


def shortcut_world(**options: object) -> ShortcutWorld:
    """The world with the specification that Gymnasium's own checker rebuilds it from; what `make_world` calls.

    >>> shortcut_world(kind="key", size=9).spec_data.label
    'Shortcut(kind=key, size=9)'
    """
    from gymnasium.envs.registration import EnvSpec

    if "layout" in options:
        raise WorldError(unknown(f"option of world {SHORTCUT.name!r}", "layout", SHORTCUT.options))
    built = ShortcutWorld(**options)  # type: ignore[arg-type]
    built.spec = EnvSpec(
        id=SHORTCUT.id,
        entry_point="retarget.envs.shortcut:ShortcutWorld",
        order_enforce=False,
        disable_env_checker=True,
        kwargs=dict(options),
    )
    return built
