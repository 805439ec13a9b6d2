"""Fit a network to what comes next, on PyTorch Lightning; and the planner over it, which can be trained further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from pytorch_lightning import LightningModule

from retarget.agent import Agent, own
from retarget.agents.network_model import NetworkModelPlanner, inputs, inputs_of
from retarget.agents.neural import Architecture
from retarget.agents.planner import exact_planner, reward_for
from retarget.agents.tabular import starts_beside
from retarget.errors import AgentError
from retarget.exact import policy_table
from retarget.goal import StateGoal
from retarget.rng import word
from retarget.spend import Spend
from retarget.training.base import TrainingError, Weights, not_negative, positive
from retarget.training.fit import _quiet, _trainer
from retarget.world import FiniteModel, FiniteWorld

Features = Literal["state", "place"]

#: Updates between two looks at whether it is enough; all of them in one `training_step` of Lightning.
INNER = 20


@dataclass(frozen=True)
class DynamicsSettings:
    """How a network is fitted to what comes next.

    Attributes:
        updates: most steps of Adam, each over all of the data.
        rate: learning rate.
        enough: stop once every pair that was seen is right, and the cross entropy is within this many nats of the
            data's own entropy.

    Raises:
        TrainingError: for values out of range.
    """

    updates: int = 2000
    rate: float = 0.01
    enough: float = 0.02

    def __post_init__(self) -> None:
        positive("DynamicsSettings", rate=self.rate)
        not_negative("DynamicsSettings", updates=self.updates, enough=self.enough)


@dataclass(frozen=True, eq=False)
class DynamicsFit:
    """What came out of a fit.

    Attributes:
        weights: float32 arrays by part name.
        spend: `grad_steps` and `flops`: of each row of data three forward passes an update, and one a look at how it
            stands.
        accuracy: share of the pairs of states and actions seen whose likeliest successor is one that was seen most
            often; 1 where nothing was seen.
        excess: cross entropy above the data's own entropy, in nats.
    """

    weights: Mapping[str, np.ndarray]
    spend: Spend
    accuracy: float
    excess: float


class _Fit(LightningModule):
    """Full-batch Adam under Lightning: many updates in one `training_step`, which is what keeps Lightning cheap."""

    def __init__(self, module: torch.nn.Module, x: np.ndarray, share: np.ndarray, settings: DynamicsSettings) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module, self.settings, self.done, self.looks = module, settings, 0, 0
        self.weights = Weights([module], rate=settings.rate, clip=0.0, device=torch.device("cpu"))
        self.x, self.share = torch.tensor(x, dtype=torch.float32), torch.tensor(share, dtype=torch.float32)
        self.most = self.share.amax(1)
        self.entropy = float(-np.sum(share * np.log(np.where(share > 0, share / share.sum(1, keepdims=True), 1.0))))
        self.accuracy, self.excess = 0.0, float("inf")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.weights.optimizer

    def zero_grad(self, set_to_none: bool = False) -> None:
        # gradients are views of one vector: Lightning would drop them before it begins
        super().zero_grad(set_to_none=False)

    def training_step(self, batch: int) -> None:
        # cross entropy of the data, a transition counting as often as it was seen; attributes of modules are slow
        module, x, share, weights = self.module, self.x, self.share, self.weights
        todo = min(INNER, self.settings.updates - self.done)
        for _ in range(todo):
            weights.step(-(share * torch.log_softmax(module(x)[0], 1)).sum())
        self.done += todo
        if self.look():
            self.trainer.should_stop = True

    @torch.no_grad()
    def look(self) -> bool:
        """Take stock; whether it is enough."""
        scores = self.module(self.x)[0]
        self.looks += 1
        self.excess = float(-(self.share * torch.log_softmax(scores, 1)).sum()) - self.entropy
        right = self.share.gather(1, scores.argmax(1, keepdim=True))[:, 0] == self.most
        self.accuracy = float(right.double().mean())
        return self.accuracy == 1.0 and self.excess <= self.settings.enough


def fit_dynamics(
    agent: NetworkModelPlanner,
    counts: np.ndarray,
    next_state: np.ndarray,
    *,
    settings: DynamicsSettings | None = None,
) -> DynamicsFit:
    """Train an agent's network further on counts of transitions, by cross entropy, from the weights that it has.

    Each update sees all of the data, a transition as often as it was counted; nothing is drawn at random.

    Args:
        agent: whose network; it is not changed.
        counts: int `[S, A, K]` how often each successor was seen.
        next_state: int `[S, A, K]` which states these are.
        settings: how.

    Raises:
        AgentError: when the counts are not of the agent's world.
        TrainingError: when weights are no longer finite.
    """
    settings = settings or DynamicsSettings()
    if counts.shape != next_state.shape or counts.shape[:2] != (agent.n_states, agent.n_actions) or counts.min() < 0:
        raise AgentError(
            f"counts and next_state must be [{agent.n_states}, {agent.n_actions}, K] here, not negative, "
            f"got {counts.shape} and {next_state.shape}"
        )
    state, action = np.nonzero(counts.sum(2))
    if not state.size:
        return DynamicsFit(agent.weights, Spend(), 1.0, 0.0)
    torch.set_num_threads(1)  # tensors here are small: a second thread only waits
    share = np.zeros((state.size, agent.n_states))
    for k in range(counts.shape[2]):
        np.add.at(share, (np.arange(state.size), next_state[state, action, k]), counts[state, action, k])
    x = inputs(state, action, agent.n_states, agent.n_actions, agent.place)
    module = agent.architecture.build()
    found = dict(module.named_parameters())
    with torch.no_grad():
        for short, name in agent.architecture.names.items():
            found[name].copy_(torch.tensor(agent.weights[short], dtype=torch.float32))
    fit = _Fit(module.train(), x, share / share.sum(), settings)
    if not fit.look() and settings.updates:
        with _quiet():
            # the network is too small for another device to be worth the way there
            _trainer(False, "cpu").fit(fit, train_dataloaders=range(-(-settings.updates // INNER)))
    weights = {s: found[n].detach().numpy().copy() for s, n in agent.architecture.names.items()}
    if not all(np.isfinite(w).all() for w in weights.values()):
        raise TrainingError(f"training diverged: weights are not finite; use a lower rate than {settings.rate}")
    flops = agent.architecture.flops * state.size * (3.0 * fit.done + fit.looks)
    return DynamicsFit(weights, Spend(grad_steps=fit.done, flops=flops), fit.accuracy, fit.excess)


@dataclass(frozen=True, eq=False)
class LearnedNetworkModel(NetworkModelPlanner):
    """A planner over a network that was fitted to data, and the record of the data.

    Attributes beside the planner's:
        counts: int `[S, A, K]` how often the data took each successor of the world (kept out of the parts: the agent
            does not act on it).
        settings: how the network is fitted.
    """

    counts: np.ndarray | None = None
    settings: DynamicsSettings = DynamicsSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.counts is not None:
            object.__setattr__(self, "counts", own(self.counts))

    @property
    def config(self) -> Mapping[str, object]:
        return {**super().config, "settings": asdict(self.settings)}

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return {**super().fixed_arrays, **({} if self.counts is None else {"counts": self.counts})}

    def fitted(self, model: FiniteModel, counts: np.ndarray) -> tuple[LearnedNetworkModel, DynamicsFit]:
        """The planner after training on these counts, from the weights that it has, and the fit.

        Args:
            model: of the world, which names the successors that were counted.
            counts: int `[S, A, K]`.
        """
        fit = fit_dynamics(self, counts, model.next_state, settings=self.settings)
        return replace(self, weights=fit.weights, counts=counts), fit

    def retrained(self, world: object, goal: StateGoal, *, budget: int, seed: int) -> tuple[Agent, Spend]:
        """The planner after `budget` episodes of uniformly random action more, added to its data, with the network
        trained on all of them from where it stands, and the new goal in its slot."""
        if not isinstance(world, FiniteWorld) or self.counts is None:
            raise AgentError("retraining a network model needs a finite world and the planner's own data counts")
        model = world.model
        fresh, started = _gathered(
            world, goal, np.full((model.n_states, model.n_actions), 1.0 / model.n_actions), episodes=budget,
            epsilon=1.0, stop=True, key=word(seed, "retrain_model", world.spec_data.label, budget),
        )  # fmt: skip
        agent, fit = self.fitted(model, self.counts + fresh)
        seen = np.union1d(started, [] if self.starts is None else self.starts).astype(np.int64)
        agent = replace(agent, reward=reward_for(goal, model.n_states), starts=seen)
        steps = int(fresh.sum())
        return agent, fit.spend + Spend(env_steps=steps, flops=3.0 * steps)

    def blank(self, seed: int) -> LearnedNetworkModel:
        """No goal, no data, and the weights that training began from."""
        nothing = None if self.counts is None else np.zeros_like(self.counts)
        return replace(super().blank(seed), counts=nothing)


def _gathered(
    world: FiniteWorld,
    goal: StateGoal,
    behaviour: np.ndarray,
    *,
    episodes: int,
    epsilon: float,
    stop: bool,
    key: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Counts `[S, A, K]` of episodes of at most S steps, and the states where they began; they end at the goal with
    `stop`."""
    from retarget.kernels import gather

    model = world.model
    starts, started = starts_beside(world, goal), np.zeros(model.n_states, np.bool_)
    mask = goal.mask(model.n_states) if stop else np.zeros(model.n_states, np.bool_)
    counts = gather(
        behaviour, model.next_state, np.cumsum(model.prob, axis=2), mask, starts, episodes, model.n_states, epsilon,
        key, started,
    )  # fmt: skip
    return counts, np.flatnonzero(started)


def network_model_planner(
    world: FiniteWorld,
    goal: StateGoal,
    *,
    everywhere: bool,
    episodes: int,
    epsilon: float,
    seed: int,
    gamma: float = 0.95,
    hidden: Sequence[int] = (64,),
    features: Features = "state",
    settings: DynamicsSettings | None = None,
) -> LearnedNetworkModel:
    """A planner on a network fitted to data: the same data that `learned_planner` counts.

    Args:
        world: where the data come from.
        goal: in the slot; near data follow the best policy toward it.
        everywhere: uniformly random actions from every start (True), or the best policy for `goal` with a share
            `epsilon` of random actions (False: data near one policy).
        episodes: number of episodes, each from a random start, of at most S steps.
        epsilon: share of random actions in near data.
        seed: names the streams of the data and of the initial weights.
        gamma: discount.
        hidden: width of each hidden layer.
        features: what the network sees: the `state`, one cell each; or its `place`, one cell a row and a column.
        settings: how the network is fitted.

    Raises:
        AgentError: for values out of range, or `place` where coordinates do not tell the states apart.

    >>> import retarget
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> agent = network_model_planner(world, world.goal, everywhere=True, episodes=60, epsilon=0.1, seed=0)
    >>> bool((agent.successors == world.model.next_state[:, :, 0]).all())
    True
    """
    model = world.model
    if episodes < 0 or not 0 <= epsilon <= 1:
        raise AgentError(f"data need episodes >= 0 and epsilon in [0, 1], got {episodes!r} and {epsilon!r}")
    if features not in get_args(Features):
        raise AgentError(f"features of a network model are one of {', '.join(get_args(Features))}, got {features!r}")
    place = world.coordinates if features == "place" else None
    if features == "place" and place is None:
        raise AgentError(f"world {world.spec_data.label} has no coordinates; use features='state'")
    shape = Architecture.of(
        "mlp", inputs=inputs_of(model.n_states, model.n_actions, place), outputs=model.n_states, hidden=tuple(hidden)
    )
    blank = LearnedNetworkModel(
        reward_for(goal, model.n_states), shape, shape.initial(seed), model.n_actions, place, gamma, None, seed,
        settings=settings or DynamicsSettings(),
    )  # fmt: skip
    behaviour = policy_table(exact_planner(world, goal, gamma=gamma), model)
    counts, started = _gathered(
        world, goal, behaviour, episodes=episodes, epsilon=1.0 if everywhere else epsilon,
        # data everywhere do not stop at the goal: nothing there is special to them
        stop=not everywhere, key=word(seed, "gather_model", world.spec_data.label, everywhere),
    )  # fmt: skip
    return replace(blank.fitted(model, counts)[0], starts=started)
