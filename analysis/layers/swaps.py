"""Goal directions of a policy, written in place of its goal: does swapping them retarget it, and at what length?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.agents.neural import STEER, NetworkAgent
from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.columns import LayerColumn
from retarget.analysis.layers.steering import Direction, directions_of, random_like
from retarget.code import edit_bits
from retarget.edit import Dense, Edit
from retarget.errors import LayersError
from retarget.goal import Goal
from retarget.judge import judge_of
from retarget.world import World

if TYPE_CHECKING:
    import polars as pl

#: One row a layer and factor.
SWAPS = (
    LayerColumn("model", "text", "", "label of the policy"),
    LayerColumn("world", "text", "", "where it acts"),
    LayerColumn("goal_a", "text", "", "goal that is written in its slot"),
    LayerColumn("goal_b", "text", "", "goal that the direction points to"),
    LayerColumn("position", "text", "", "that the direction is from"),
    LayerColumn("layer", "whole", "blocks", "that the direction is from and added at"),
    LayerColumn("factor", "real", "", "times the difference of means, goal B - goal A"),
    LayerColumn("edit_bits", "real", "bit", "length of the edit that adds it"),
    LayerColumn("competence_a", "real", "share", "on goal A, before"),
    LayerColumn("competence_a_after", "real", "share", "on goal A, after"),
    LayerColumn("competence_b_before", "real", "share", "on goal B, before"),
    LayerColumn("competence_b", "real", "share", "on goal B, after"),
    LayerColumn("random_competence_b", "real", "share", "mean over random directions of the same length"),
    LayerColumn("required", "real", "share", "competence on B that counts as retargeted: 0.95 of that on A"),
    LayerColumn("retargeted", "truth", "", "whether competence_b reaches it"),
)
REQUIRED = 0.95


def goal_swaps(
    agent: NetworkAgent,
    world: World,
    collected: Collected,
    goal_a: Goal,
    goal_b: Goal,
    *,
    factors: Sequence[float] = (1.0, 2.0),
    n_random: int = 3,
    gamma: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """Add the difference of means between two goals at each layer in turn, and see where the policy then walks.

    An activation edit like any other: it is bound to the agent, priced by the code, and judged by competence.

    Args:
        agent: with goal A in its slot.
        world: where it acts.
        collected: goal A positive, goal B negative (differences are A - B; they are subtracted here).
        goal_a, goal_b: the goals.
        factors: times the difference.
        n_random: random directions of the same length.
        gamma: discount.
        seed: of the random directions.

    Raises:
        LayersError: where vectors can be added at none of the places that were read.
    """
    from retarget.analysis.layers.tables import frame

    aimed = agent.aimed(goal_a)
    judges = {g.label: judge_of(world, g, gamma=gamma, seed=seed) for g in (goal_a, goal_b)}

    def on(subject: NetworkAgent, goal: Goal) -> float:
        return float(judges[goal.label].score(subject).competence)

    places = {s.layer: s.hook for s in collected.sites if f"{STEER}{s.hook}" in aimed.parts}
    able, before, other = {h.name for h in aimed.architecture.hooks}, on(aimed, goal_a), on(aimed, goal_b)
    if not places:
        raise LayersError(f"no vector can be added at any place that was read; hooks are {', '.join(sorted(able))}")
    rows = []
    for direction in directions_of(collected):
        if direction.layer not in places:
            continue
        part = f"{STEER}{places[direction.layer]}"

        def steered(d: Direction, factor: float, part: str = part) -> Edit:
            return Edit.of(aimed, Dense(part, -factor * d.vector))

        for factor in factors:
            edit = steered(direction, factor)
            after = edit.apply(aimed)
            chance = [
                on(steered(random_like(direction, seed, number=i), factor).apply(aimed), goal_b)  # type: ignore[arg-type]
                for i in range(n_random)
            ]
            reached = on(after, goal_b)  # type: ignore[arg-type]
            rows.append(
                {
                    "model": collected.model, "world": world.spec_data.label, "goal_a": goal_a.label,
                    "goal_b": goal_b.label, "position": direction.position, "layer": direction.layer,
                    "factor": float(factor), "edit_bits": float(edit_bits(edit, aimed.layout)), "competence_a": before,
                    "competence_a_after": on(after, goal_a),  # type: ignore[arg-type]
                    "competence_b_before": other, "competence_b": reached,
                    "random_competence_b": float(np.mean(chance)) if chance else None,
                    "required": REQUIRED * before, "retargeted": reached >= REQUIRED * before,
                }
            )  # fmt: skip
    return frame(rows, SWAPS)


def shortest_words(results: pl.DataFrame) -> str:
    """The shortest edit of any kind that the probe of retargetability found, in a line."""
    found = {r["metric"]: r for r in results.rows(named=True) if r["status"] == "ok"}
    if "edit_bits" not in found:
        return "no edit of any kind was found"
    ratio = found.get("retargetability", {}).get("value")
    words = f"shortest edit of any kind: {found['edit_bits']['value']:.0f} bit ({found['edit_bits']['editor']})"
    return words if ratio is None else f"{words}; retargetability {ratio:.2f}"
