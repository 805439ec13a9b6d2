"""Which goals a study uses: a pool split into training and held-out goals, and pairs (A, B) drawn from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retarget.errors import GoalError
from retarget.goal import Goal
from retarget.rng import stream
from retarget.world import World


@dataclass(frozen=True)
class GoalPlan:
    """Goals of one world and seed.

    Attributes:
        training: goals that many-goal agents are trained on; every A is one of them.
        held_out: goals that no agent is trained on.
        pairs: (A, B) with A a training goal; B alternates between held-out and training goals.
    """

    training: tuple[Goal, ...]
    held_out: tuple[Goal, ...]
    pairs: tuple[tuple[Goal, Goal], ...]

    @classmethod
    def draw(cls, world: World, *, n_pairs: int, seed: int, pool: int = 16) -> GoalPlan:
        """Draw a plan from the named stream (seed, "goals", the world).

        Args:
            world: where the goals are.
            n_pairs: number of distinct pairs, at least 1.
            seed: names the stream.
            pool: number of goals to draw; half of them are training goals. Fewer where the world has fewer.

        Raises:
            GoalError: when the world has too few goals for that many distinct pairs.
        """
        goals = world.goals
        if len(goals) < 2:
            raise GoalError(f"world {world.spec_data.label} has {len(goals)} goal(s); a pair needs two")
        rng = stream(seed, "goals", world.spec_data.label)
        picked = [goals[int(i)] for i in rng.permutation(len(goals))[: max(2, min(pool, len(goals)))]]
        half = (len(picked) + 1) // 2
        training, held_out = tuple(picked[:half]), tuple(picked[half:])
        fresh = [(a, b) for a in training for b in held_out]
        known = [(a, b) for a in training for b in training if a != b]
        if n_pairs < 1 or n_pairs > len(fresh) + len(known):
            raise GoalError(
                f"{n_pairs} goal pairs were asked of {world.spec_data.label}, "
                f"which offers 1 to {len(fresh) + len(known)}; change goal_pairs"
            )
        return cls(training, held_out, _alternate(_shuffled(fresh, rng), _shuffled(known, rng))[:n_pairs])


def goals_around(
    world: World, goal: Goal, *, plan: GoalPlan | None, n_seen: int, n_held_out: int, seed: int
) -> tuple[tuple[Goal, ...], tuple[Goal, ...]]:
    """Training and held-out goals other than `goal`, for probes over many goals.

    Args:
        world, goal: the world, and the goal to leave out.
        plan: the study's; None draws one from the stream (seed, "goals", the world).
        n_seen, n_held_out: at most so many of each, in the plan's order.
        seed: names the stream.

    Raises:
        GoalError: when the world has fewer than two goals.

    >>> from retarget.envs import make_world
    >>> world = make_world("OpenGrid", size=5)
    >>> seen, held_out = goals_around(world, world.goals[0], plan=None, n_seen=3, n_held_out=2, seed=0)
    >>> len(seen), len(held_out), world.goals[0] in (*seen, *held_out)
    (3, 2, False)
    """
    drawn = plan if plan is not None else GoalPlan.draw(world, n_pairs=1, seed=seed, pool=n_seen + n_held_out + 1)
    seen = [g for g in drawn.training if g != goal]
    held_out = [g for g in drawn.held_out if g != goal]
    return tuple(seen[:n_seen]), tuple(held_out[:n_held_out])


Pair = tuple[Goal, Goal]


def _shuffled(pairs: list[Pair], rng: np.random.Generator) -> list[Pair]:
    return [pairs[int(i)] for i in rng.permutation(len(pairs))]


def _alternate(first: list[Pair], second: list[Pair]) -> tuple[Pair, ...]:
    out: list[Pair] = []
    for i in range(max(len(first), len(second))):
        out += first[i : i + 1] + second[i : i + 1]
    return tuple(out)
