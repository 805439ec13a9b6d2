"""Grid worlds as Gymnasium environments."""

from __future__ import annotations

from typing import Any

import numpy as np

from retarget.envs.base import FiniteEnv
from retarget.envs.catalogue import WORLDS, find_entry
from retarget.envs.layouts import BUILDERS, CLIFF, DOOR, FREE, KEY, MOVES, WALL, slip_model
from retarget.envs.observe import AGENT_COLOUR, COLOURS, GOAL_COLOUR, Observer, palette
from retarget.envs.places import Places
from retarget.errors import WorldError, unknown
from retarget.world import FiniteModel, WorldSpec

_GLYPHS = {FREE: ".", WALL: "#", CLIFF: "C", KEY: "K", DOOR: "D"}
_RENDER_SIDE = 390  # pixels, about; a cell is a whole number of them


class GridWorld(FiniteEnv):
    """A grid of cells with four actions (up, right, down, left); bumping into a wall stays in place.

    States are the free cells, row by row (in KeyDoor: the cells with each combination of flags that occurs).

    Args:
        layout: short name or registered id, e.g. `"FourRooms"`.
        render_mode: `"ansi"`, `"rgb_array"` or None.
        options: see `WORLDS[layout].options`.

    Raises:
        WorldError: for an unknown layout or option, or a value out of range.
        GoalError: for a goal or start that does not exist.

    >>> world = GridWorld("FourRooms", size=13, goal=(1, 1))
    >>> world.model.n_states, world.goal.states
    (104, (0,))
    >>> obs, info = world.reset(seed=0, options={"start": (1, 2)})
    >>> world.step(3)[1:4]
    (1.0, True, False)
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, layout: str, *, render_mode: str | None = None, **options: object) -> None:
        entry = find_entry(layout)
        if entry is None or entry.name not in BUILDERS:
            raise WorldError(unknown("world", layout, WORLDS))
        opts = entry.resolve(options)
        own = {k: opts[k] for k in ("seed", "open_fraction") if k in opts}
        self.layout = plan = BUILDERS[entry.name](opts["size"], **own)
        spec = WorldSpec.of(entry.name, **entry.canonical(opts))
        n_states = len(plan.state_cell)
        short = WorldSpec.of(entry.name, size=opts["size"])
        super().__init__(
            FiniteModel(*slip_model(plan.next_state, float(opts["slip"]))),  # type: ignore[arg-type]
            plan.starts,
            places=Places(short.label, n_states, state_cell=plan.state_cell, cells=plan.cells),
            spec_data=spec,
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

    def _cells_now(self) -> np.ndarray:
        cells = self.layout.cells.copy()
        if self._state >= 0 and self.layout.flags.shape[1]:
            for flag, kind in zip(self.layout.flags[self._state], (KEY, DOOR), strict=True):
                if flag:
                    cells[cells == kind] = FREE
        return cells

    def render(self) -> Any:
        """Text or a picture of the grid with the agent (`A`, blue) and the goal (`G`, green); None without a mode.

        >>> world = GridWorld("OpenGrid", size=5, render_mode="ansi")
        >>> _ = world.reset(options={"start": (0, 0)})
        >>> print(world.render())
        A....
        .....
        .....
        .....
        ....G
        """
        if self.render_mode is None:
            return None
        cells = self._cells_now()
        goal = self.layout.state_cell[list(self._goal.states)]
        agent = self.layout.state_cell[self._state] if self._state >= 0 else None
        if self.render_mode == "ansi":
            text = [[_GLYPHS[int(kind)] for kind in row] for row in cells]
            for r, c in goal.tolist():
                text[r][c] = "G"
            if agent is not None:
                text[agent[0]][agent[1]] = "A"
            return "\n".join("".join(row) for row in text)
        image = palette(cells)
        image[goal[:, 0], goal[:, 1]] = GOAL_COLOUR
        if agent is not None:
            image[agent[0], agent[1]] = AGENT_COLOUR
        side = max(2, _RENDER_SIDE // max(cells.shape))
        picture = image.repeat(side, axis=0).repeat(side, axis=1)
        picture[::side] = picture[:, ::side] = COLOURS[WALL]  # lines between cells
        return picture
