"""Goal directions of a policy, written in place of its goal: does swapping them retarget it, and at what length?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from retarget.agents.neural import STEER, NetworkAgent
from retarget.agents.tabular import TablePolicy
from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.columns import LayerColumn
from retarget.analysis.layers.policies import sensed
from retarget.analysis.layers.readable import Batch, Write
from retarget.analysis.layers.steering import Direction, directions_of, random_like
from retarget.code import edit_bits
from retarget.edit import Dense, Edit
from retarget.errors import LayersError
from retarget.goal import Goal
from retarget.judge import judge_of
from retarget.world import FiniteWorld, World

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
    LayerColumn("tokens", "text", "", "where it is added: all tokens, or the last one"),
    LayerColumn("edit_bits", "real", "bit", "length of the edit that adds it; null where no part takes it"),
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

    At all tokens, or at the last one alone. At all tokens it is the activation edit of the same vector, priced by the
    code; at the last one alone it has the same length, the vector and its place, and no part of the agent does it.

    Args:
        agent: a policy with a goal slot.
        world: a finite one, where it acts.
        collected: goal A positive, goal B negative (differences are A - B; they are subtracted here).
        goal_a, goal_b: the goals.
        factors: times the difference.
        n_random: random directions of the same length.
        gamma: discount.
        seed: of the random directions.

    Raises:
        LayersError: for a policy with memory, or a world with continuous states.
    """
    if agent.has_memory or not isinstance(world, FiniteWorld):
        raise LayersError("goal directions are swapped for policies without memory in finite worlds only")
    from retarget.analysis.layers.models import ModuleModel
    from retarget.analysis.layers.tables import frame

    aimed = agent.aimed(goal_a)
    model = ModuleModel.of_agent(aimed, label=collected.model)
    seen = sensed(aimed, np.arange(world.model.n_states), goal_a)
    batch = Batch(seen, np.ones((len(seen), _steps(seen)), dtype=np.bool_))
    judges = [judge_of(world, g, gamma=gamma, seed=seed) for g in (goal_a, goal_b)]

    def on_both(write: Sequence[Write]) -> tuple[float, float]:
        logits = model.run(batch, write=write).logits
        assert logits is not None
        actions = logits[:, -1].argmax(-1).numpy()
        table = TablePolicy.from_actions(actions, n_actions=world.model.n_actions)
        return float(judges[0].score(table).competence), float(judges[1].score(table).competence)

    places = {s.layer: s.hook for s in collected.sites if s.stream != "final_norm"}
    before, other = on_both(())
    rows = []
    for direction in directions_of(collected):
        hook = places[direction.layer]
        for factor, tokens in product(factors, ("all", "last") if batch.mask.shape[1] > 1 else ("all",)):

            def swapped(d: Direction, factor: float = factor, tokens: str = tokens, hook: str = hook) -> list[Write]:
                return [Write(hook, d.vector, "add", -factor, tokens)]  # type: ignore[arg-type]

            after, reached = on_both(swapped(direction))
            chance = [on_both(swapped(random_like(direction, seed, number=i)))[1] for i in range(n_random)]
            rows.append(
                {
                    "model": collected.model, "world": world.spec_data.label, "goal_a": goal_a.label,
                    "goal_b": goal_b.label, "position": direction.position, "layer": direction.layer,
                    "factor": float(factor), "tokens": tokens, "edit_bits": _bits(aimed, hook, factor, direction),
                    "competence_a": before, "competence_a_after": after, "competence_b_before": other,
                    "competence_b": reached, "random_competence_b": float(np.mean(chance)) if chance else None,
                    "required": REQUIRED * before, "retargeted": reached >= REQUIRED * before,
                }
            )  # fmt: skip
    return frame(rows, SWAPS)


def _steps(seen: np.ndarray) -> int:
    """Tokens of a row; 1 for vectors and images."""
    return int(seen.shape[1]) if seen.ndim == 2 and seen.dtype.kind in "iu" else 1


def _bits(agent: NetworkAgent, hook: str, factor: float, direction: Direction) -> float | None:
    """Length of the activation edit that adds the vector at that place; None where the agent has no such part."""
    part = f"{STEER}{hook}"
    if part not in agent.parts:
        return None
    return float(edit_bits(Edit.of(agent, Dense(part, -factor * direction.vector)), agent.layout))


def shortest_words(results: pl.DataFrame) -> str:
    """The shortest edit of any kind that the probe of retargetability found, in a line."""
    found = {r["metric"]: r for r in results.rows(named=True) if r["status"] == "ok"}
    if "edit_bits" not in found:
        return "no edit of any kind was found"
    ratio = found.get("retargetability", {}).get("value")
    words = f"shortest edit of any kind: {found['edit_bits']['value']:.0f} bit ({found['edit_bits']['editor']})"
    return words if ratio is None else f"{words}; retargetability {ratio:.2f}"
