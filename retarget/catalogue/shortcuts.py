"""Agents made from demonstrations, which hold a world's shortcut in some share of the episodes.

Torch and Lightning are loaded when a network is built, not when it is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.agent import Agent
from retarget.agents.planner import LearnedPlanner, most_seen, reward_for
from retarget.agents.tabular import TablePolicy
from retarget.catalogue.entries import AgentEntry, NotApplicableHere, Option, Recipe
from retarget.catalogue.searchers import MOST_EPISODES
from retarget.demonstrations import Demonstrations, HasShortcut, demonstrate
from retarget.errors import GoalError
from retarget.world import FiniteWorld

if TYPE_CHECKING:
    from retarget.training.base import Learner, Question

UNSEEN = ("nearest", "uniform")
DECISIONS = ("greedy", "sample")


# ------------------------------------------------------------------------------------------------ what is shown


def shown_to(
    recipe: Recipe, *, share: float, share_deployment: float, episodes: int, noise: float, starts: str, play: int = 0
) -> Demonstrations:
    """The demonstrations that the options of an agent name.

    Raises:
        NotApplicableHere: in a world without a shortcut, or for a goal where it pays from nowhere.
    """
    world, goal = recipe.finite()
    if not isinstance(world, HasShortcut):
        raise NotApplicableHere(f"{world.spec_data.label} declares no shortcut that demonstrations could leave out")
    late = None if share_deployment < 0 else share_deployment
    if late is not None and world.deployment_states is None:
        raise NotApplicableHere(f"{world.spec_data.label} shows no deployment flag; make it with flagged=True")
    try:
        return demonstrate(
            world, goal, share=share, share_deployment=late, episodes=episodes, noise=noise, away=starts == "away",
            play=play, gamma=recipe.gamma, seed=recipe.seed,
        )  # fmt: skip
    except GoalError as error:
        raise NotApplicableHere(str(error)) from error


# ------------------------------------------------------------------------------------------------ tables


def imitating_table(shown: Demonstrations, world: FiniteWorld, *, unseen: str, decision: str) -> TablePolicy:
    """A table of what was shown.

    In a state that was seen: the action shown most often there (evenly among several) with `greedy`, or each as
    often as it was shown with `sample`. In a state that was not: what the table does in the `nearest` state that was
    seen, by the distance of their cells (the lowest-numbered of several; flags do not count, walls neither), or
    `uniform` action. Where states have no coordinates, `nearest` is `uniform`.

    Args:
        shown: the data.
        world: where they come from.
        unseen: `nearest` or `uniform`.
        decision: `greedy` or `sample`.

    >>> from retarget.envs.shortcut import ShortcutWorld
    >>> world = ShortcutWorld(kind="switch", size=9)
    >>> shown = demonstrate(world, world.goal, share=1.0, episodes=100)
    >>> table = imitating_table(shown, world, unseen="nearest", decision="greedy")
    >>> table.policy(np.array([world.as_state((6, 1))]))[0].tolist()
    [[1.0, 0.0, 0.0, 0.0]]
    """
    counts = shown.action_counts(world.model).astype(np.float64)
    seen = counts.sum(1) > 0
    if decision == "greedy":
        counts = (counts == counts.max(1, keepdims=True)).astype(np.float64)
    probs = np.full(counts.shape, 1.0 / counts.shape[1])
    probs[seen] = counts[seen] / counts[seen].sum(1, keepdims=True)
    if unseen == "nearest" and world.coordinates is not None:
        known = np.flatnonzero(seen)
        far = np.abs(world.coordinates[:, None, :] - world.coordinates[known][None]).sum(2)
        probs[~seen] = probs[known[far.argmin(1)]][~seen]
    return TablePolicy.from_probabilities(probs, starts=shown.starts)


def _demo_table(recipe: Recipe, *, unseen: str, decision: str, **data: object) -> TablePolicy:
    shown = shown_to(recipe, **data)  # type: ignore[arg-type]
    return imitating_table(shown, recipe.finite()[0], unseen=unseen, decision=decision)


# ------------------------------------------------------------------------------------------------ planners


def _demo_planner(recipe: Recipe, *, play: int, **data: object) -> LearnedPlanner:
    """A model of the transitions in the data; what they do not hold is unknown, and worth nothing."""
    world, goal = recipe.finite()
    shown = shown_to(recipe, play=play, **data)  # type: ignore[arg-type]
    counts = shown.transition_counts(world.model)
    nxt = most_seen(counts, world.model.next_state)
    reward = reward_for(goal, world.model.n_states)
    return LearnedPlanner(
        reward, nxt, np.ones(nxt.shape), recipe.gamma, None, True, np.unique(shown.starts), counts
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ networks


@dataclass(frozen=True, eq=False)
class Imitation:
    """Cloning of demonstrations: each state that was shown counts as often as it was, no other state counts.

    Attributes:
        counts: int `[S, A]`, how often each action was shown: the lesson of a state is their share.
        updates: budget, in optimiser updates.
        enough: see `retarget.training.Cloning`.
    """

    counts: np.ndarray
    updates: int
    enough: float

    def describe(self) -> dict[str, object]:
        """JSON-able: what tells this method apart from another one."""
        from retarget.digest import digest_of

        told = digest_of("demonstrations", {}, [("counts", self.counts)])
        return {"method": "imitation", "updates": self.updates, "enough": self.enough, "told": told}

    def learner(self, question: Question) -> Learner:
        """Set to work."""
        import torch

        from retarget.training.cloning import Cloning, CloningLearner

        visits = self.counts.sum(1)
        told = np.where(visits[:, None] > 0, self.counts / np.maximum(visits, 1)[:, None], 1.0 / self.counts.shape[1])
        teacher = TablePolicy.from_probabilities(told)
        learner = CloningLearner(question, Cloning(updates=self.updates, teacher=teacher, enough=self.enough))
        if learner.data:
            weight = visits[learner.data["obs"].cpu().numpy()] / visits.sum()
            learner.data["weight"] = torch.as_tensor(weight, dtype=torch.float32, device=question.device)
        return learner


def _demo_network(
    recipe: Recipe, *, net: str, features: str, hidden: int, layers: int, updates: int, decision: str, **data: object
) -> Agent:
    world, goal = recipe.finite()
    shown = shown_to(recipe, **data)  # type: ignore[arg-type]
    if world.coordinates is None and features == "place":
        raise NotApplicableHere(f"places need coordinates, which {world.spec_data.label} does not have")

    from retarget.agents.network_for import network_for
    from retarget.training import train

    shape = {"hidden": (hidden,) * layers} if net == "mlp" else {"d_model": hidden, "n_layers": layers}
    seen = "token" if net == "transformer" and features == "one_hot" else features
    blank = network_for(
        world, goal, kind=net, features=seen, decision=decision, seed=recipe.seed, **shape,  # type: ignore[arg-type]
    )  # fmt: skip
    # a network that draws its actions is to have their shares right, not the most frequent one alone
    method = Imitation(shown.action_counts(world.model), updates, 1.0 if decision == "greedy" else 2.0)
    return train(
        blank, world, goals=goal, gamma=recipe.gamma, method=method, starts=np.unique(shown.starts), seed=recipe.seed,
        accelerator="cpu",
    ).agent  # fmt: skip


# ------------------------------------------------------------------------------------------------ entries

_DATA = {
    "share": Option(1.0, "probability that an episode is shown by who knows the shortcut", low=0, high=1),
    "share_deployment": Option(
        -1.0, "the same in episodes that begin in deployment; -1 for share there too", low=-1, high=1
    ),
    "episodes": Option(200, "episodes that are shown", low=1, high=MOST_EPISODES),
    "noise": Option(0.0, "share of random actions in them", low=0, high=1),
    "starts": Option(
        "all", "where they begin: 'all' over the starts, or 'away' from those where the shortcut pays most",
        choices=("all", "away"),
    ),
}  # fmt: skip
_DECISION = Option("greedy", "'greedy', or 'sample' by the shares that were shown", choices=DECISIONS)

ENTRIES = {
    entry.id: entry
    for entry in (
        AgentEntry(
            "demo_table",
            "table of the actions shown in each state, by experts of whom a share knows the shortcut",
            {
                **_DATA,
                "unseen": Option(
                    "nearest",
                    "in states that nobody showed: as in the 'nearest' one that was, or 'uniform'",
                    choices=UNSEEN,
                ),
                "decision": _DECISION,
            },
            _demo_table,
        ),
        AgentEntry(
            "demo_network",
            "network cloned from the same demonstrations",
            {
                **_DATA,
                "net": Option("mlp", "mlp or transformer", choices=("mlp", "transformer")),
                "features": Option(
                    "place", "what it sees: 'place' (row, column, flags), or one input for each state ('one_hot')",
                    choices=("place", "one_hot"),
                ),
                "hidden": Option(64, "width of hidden layers (transformer: of the residual stream)", low=1, high=4096),
                "layers": Option(2, "number of hidden layers", low=0, high=16),
                "updates": Option(2000, "budget, in optimiser updates; it stops when the data are fitted", low=0),
                "decision": _DECISION,
            },
            _demo_network,
        ),
        AgentEntry(
            "demo_planner",
            "value iteration over a model of the same demonstrations; what nobody showed is unknown",
            {
                **_DATA,
                "play": Option(0, "single steps from anywhere that the model is learned from too", low=0, high=10**7),
            },
            _demo_planner,
        ),
    )
}  # fmt: skip
