"""A transformer policy whose goal is a token of its input: the organism in which "which goal" is known to be used."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from retarget.agents.network_for import network_for
from retarget.agents.neural import NetworkAgent
from retarget.envs import make_world
from retarget.errors import RetargetError
from retarget.judge import judge_of
from retarget.training.base import TrainingError
from retarget.training.cloning import Cloning
from retarget.training.fit import Trained, train
from retarget.world import FiniteWorld

#: Least mean competence with which an organism may be handed out.
COMPETENT: Final = 0.9


@dataclass(frozen=True)
class GoalSettings:
    """All that the weights of a goal policy depend on.

    Attributes:
        world, size: a grid world and its side.
        seed: names the random streams.
        layers, width: of the transformer.
        updates: budget of cloning, which stops earlier when every lesson is right.
        gamma: discount.

    >>> GoalSettings().label
    'goals'
    """

    world: str = "FourRooms"
    size: int = 9
    seed: int = 0
    layers: int = 4
    width: int = 64
    updates: int = 4000
    gamma: float = 0.95

    @property
    def label(self) -> str:
        """Short name for tables and folders."""
        return "goals"

    def as_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class GoalPolicy:
    """A policy for every goal of a world, trained.

    Attributes:
        agent: the network, aimed at the world's first goal; `agent.aimed(goal)` for the others.
        settings: what it was made from.
        competence: mean over goals and starts of V / V*, exact.
        worst: the least over goals of the mean over starts.
        trained: spend and history of the training.
    """

    agent: NetworkAgent
    settings: GoalSettings
    competence: float
    worst: float
    trained: Trained

    @property
    def extra(self) -> dict[str, object]:
        """JSON-able facts to keep beside the agent: `save_agent(policy.agent, folder, extra=policy.extra)`."""
        return {
            "organism": "goals", "settings": self.settings.as_dict(), "competence": self.competence,
            "worst": self.worst, "grad_steps": self.trained.spend.grad_steps,
        }  # fmt: skip


def goal_policy(
    settings: GoalSettings | None = None, *, progress: bool | None = None, checkpoint: str | Path | None = None
) -> GoalPolicy:
    """Train a transformer to walk to any goal of a grid world, the goal being the first token of its input.

    It clones all optimal actions, from every start to every goal. Saving is left to `retarget.io.native.save_agent`.

    Args:
        settings: without, a world of four rooms on a grid of 9.
        progress: show a bar.
        checkpoint: as in `retarget.training.train`.

    Raises:
        TrainingError: where the world has continuous states, or competence stays below 0.9.
        RetargetError: for a world or a size that there is not.

    >>> policy = goal_policy(GoalSettings(world="OpenGrid", size=5, width=16, layers=1))
    >>> policy.competence >= 0.9, policy.agent.goal_input.kind
    (True, 'token')
    """
    chosen = GoalSettings() if settings is None else settings
    world = make_world(chosen.world, size=chosen.size)
    if not isinstance(world, FiniteWorld):
        raise TrainingError(f"a goal organism lives in a finite world, and {chosen.world} is none; use FourRooms")
    goals = world.goals
    try:
        blank = network_for(
            world, goals[0], kind="transformer", goals=goals, seed=chosen.seed, d_model=chosen.width,
            n_layers=chosen.layers,
        )  # fmt: skip
    except RetargetError:
        raise
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        raise TrainingError(f"no transformer has layers={chosen.layers!r} and width={chosen.width!r}") from error
    trained = train(
        blank, world, goals=goals, method=Cloning(updates=chosen.updates), gamma=chosen.gamma, seed=chosen.seed,
        progress=bool(progress), accelerator="cpu", checkpoint=checkpoint,
    )  # fmt: skip
    agent = replace(trained.agent, decision="greedy")
    scores = [judge_of(world, g, gamma=chosen.gamma).score(agent.aimed(g)).competence for g in goals]
    competence = sum(scores) / len(scores)
    if competence < COMPETENT:
        raise TrainingError(
            f"competence of the goal policy is {competence:.2f}, below {COMPETENT}; give it more than "
            f"{chosen.updates} updates"
        )
    return GoalPolicy(agent, chosen, competence, min(scores), trained)
