"""Policy-and-value networks trained by search, as AlphaZero is (Silver et al. 2017), in finite worlds, on Lightning.

In turns: search from where it is with the present network, act by what the search prefers, and fit the network to what
searches preferred and to how episodes ended. Nothing else is shown to it: no exact value, no best action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import nn

from retarget.agents.policy_value import Features, PolicyValue, features_of
from retarget.agents.search import TreeSearcher, tree_searcher
from retarget.agents.tabular import starts_beside
from retarget.errors import AgentError
from retarget.goal import StateGoal
from retarget.rng import stream
from retarget.search import Found, TreeSettings, search
from retarget.spend import Spend
from retarget.training.base import TrainingError, Weights, not_negative, positive
from retarget.training.fit import _quiet, _trainer
from retarget.world import FiniteModel, FiniteWorld


@dataclass(frozen=True)
class SelfPlay:
    """How much is acted and fitted.

    Attributes:
        iterations: rounds of acting and fitting.
        episodes: of each round, from random starts.
        updates: steps of Adam of each round, each over all that is remembered.
        remembered: rounds whose episodes are fitted to; older ones are forgotten.
        rate: learning rate.
        noise: share of uniformly random action in acting.
        root_noise: share of Dirichlet noise in the prior of roots while it trains, drawn anew for each state and round
            (Silver et al. 2017 take a quarter); 0 for none. Without it a prior that favours an action is all that a
            search ever looks at, and grows surer of itself.
        concentration: of that noise, for each action.
    """

    iterations: int = 30
    episodes: int = 64
    updates: int = 40
    remembered: int = 6
    rate: float = 5e-3
    noise: float = 0.1
    root_noise: float = 0.0
    concentration: float = 0.5

    def __post_init__(self) -> None:
        for name in ("iterations", "episodes", "updates", "remembered"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int):
                raise TrainingError(f"{name} of SelfPlay must be a whole number, got {count!r}")
        positive(
            "SelfPlay", rate=self.rate, episodes=self.episodes, remembered=self.remembered,
            concentration=self.concentration,
        )  # fmt: skip
        not_negative(
            "SelfPlay", iterations=self.iterations, updates=self.updates, noise=self.noise, root_noise=self.root_noise
        )
        for name in ("noise", "root_noise"):
            if getattr(self, name) > 1:
                raise AgentError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class AlphaZero:
    """What came out.

    Attributes:
        agent: searches with the trained network, with the settings that it was trained with.
        spend: transitions, optimiser updates, simulations and operations.
        history: of each round: `iteration`, `reached` (share of its episodes that came to the goal), `value_loss` (mean
            squared error) and `policy_loss` (cross entropy, nats) after fitting.
    """

    agent: TreeSearcher
    spend: Spend
    history: tuple[dict[str, float], ...]


@dataclass(frozen=True, eq=False)
class Memory:
    """What a round saw, summed by state.

    Attributes:
        visits: float64 `[S]` how often each state was acted in.
        ends: float64 `[S]` sum of discounted outcomes from there.
        policy: float64 `[S, A]` what the search preferred.
    """

    visits: np.ndarray
    ends: np.ndarray
    policy: np.ndarray


class _Net(nn.Module):
    """The network of `PolicyValue`, in single precision."""

    def __init__(self, leaf: PolicyValue) -> None:
        super().__init__()
        sizes = [leaf.features.shape[1], *leaf.hidden]
        self.trunk = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.value, self.policy = nn.Linear(sizes[-1], 1), nn.Linear(sizes[-1], leaf.n_actions)
        self.load_state_dict({n: torch.tensor(w, dtype=torch.float32) for n, w in leaf.weights.items()})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for layer in self.trunk:
            x = torch.relu(layer(x))
        return self.value(x)[:, 0], self.policy(x)


class _Play(LightningModule):
    """One round of acting and fitting in each `training_step`."""

    def __init__(self, agent: TreeSearcher, world: FiniteWorld, goal: StateGoal, play: SelfPlay, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        leaf = agent.leaf
        assert isinstance(leaf, PolicyValue)
        self.agent, self.leaf, self.world, self.goal, self.play, self.seed = agent, leaf, world, goal, play, seed
        self.net = _Net(leaf)
        self.tuned = Weights([self.net], rate=play.rate, clip=1.0, device=torch.device("cpu"))
        self.inputs = torch.tensor(leaf.features, dtype=torch.float32)
        self.memory: list[Memory] = []
        self.history: list[dict[str, float]] = []
        self.spend = Spend()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.tuned.optimizer

    def zero_grad(self, set_to_none: bool = False) -> None:
        # gradients are views of one vector: Lightning would drop them before it begins
        super().zero_grad(set_to_none=False)

    def training_step(self, batch: int) -> None:
        done = len(self.history)
        reached = self._act(done)
        losses = self._fit()
        # before the leaf is made, which would only say that a weight is no number
        weights = [bool(torch.isfinite(p).all()) for p in self.net.parameters()]
        if not all(weights) or not all(math.isfinite(loss) for loss in losses.values()):
            raise TrainingError(
                f"training diverged in round {done}: a loss or weight is not finite; lower rate={self.play.rate:g}"
            )
        self.agent = replace(self.agent, leaf=self._leaf())
        self.history.append({"iteration": float(done), "reached": reached, **losses})

    def _act(self, done: int) -> float:
        found, play = self._found(done), self.play
        n_actions = found.policy.shape[1]
        acting = (1 - play.noise) * found.policy + play.noise / n_actions
        rng = stream(self.seed, "self_play", self.world.spec_data.label, self.goal.states, done)
        starts = rng.choice(starts_beside(self.world, self.goal), size=play.episodes)
        memory, steps, share = episodes(self.world.model, acting, starts, self.goal, self.agent.settings.gamma, rng)
        self.memory = [*self.memory, replace(memory, policy=found.policy)][-play.remembered :]
        # a decision was searched for each state once, and looked up for each step
        n = len(found)
        flops = n * flops_of(found, self.leaf)
        self.spend = self.spend + Spend(env_steps=steps, simulations=n * self.agent.settings.simulations, flops=flops)
        return share

    def _found(self, done: int) -> Found:
        """The search from every state, with noise in the priors of roots alone."""
        agent, play = self.agent, self.play
        if not play.root_noise:
            return agent.found
        model, asked = agent.tree_model, 0
        n, a = model.prior.shape
        rng = stream(self.seed, "root_noise", self.world.spec_data.label, self.goal.states, done)
        noise = rng.dirichlet(np.full(a, play.concentration), size=n)

        def evaluate(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            nonlocal asked
            prior = model.prior[states]
            if asked == 0:  # a search asks for its roots before all else
                prior = (1 - play.root_noise) * prior + play.root_noise * noise[states]
            asked += 1
            return model.value[states], prior

        return search(model, np.arange(n), settings=agent.settings, seed=agent.seed, evaluate=evaluate)

    def _fit(self) -> dict[str, float]:
        visits = sum((m.visits for m in self.memory), np.zeros(len(self.leaf.features)))
        rows = np.flatnonzero(visits > 0)
        ends = sum((m.ends for m in self.memory), np.zeros_like(visits))[rows] / visits[rows]
        prefer = sum((m.policy * m.visits[:, None] for m in self.memory), np.zeros((len(visits), self.leaf.n_actions)))
        target = torch.tensor(prefer[rows] / visits[rows, None], dtype=torch.float32)
        worth = torch.tensor(ends, dtype=torch.float32)
        weight = torch.tensor(np.sqrt(visits[rows]) / np.sqrt(visits[rows]).sum(), dtype=torch.float32)
        x = self.inputs[torch.tensor(rows)]
        for _ in range(self.play.updates):
            score, logits = self.net(x)
            value_loss = (weight * (torch.sigmoid(score) - worth) ** 2).sum()
            policy_loss = -(weight[:, None] * target * torch.log_softmax(logits, dim=1)).sum()
            # values lie close together: without a factor the priors would take all of the trunk
            self.tuned.step(8.0 * value_loss + policy_loss)
        updates = self.play.updates
        flops = 3.0 * self.leaf.flops * len(rows) * updates
        self.spend = self.spend + Spend(grad_steps=updates, flops=flops)
        return {"value_loss": float(value_loss.detach()), "policy_loss": float(policy_loss.detach())} if updates else {}

    def _leaf(self) -> PolicyValue:
        weights = {n: p.detach().numpy().astype(np.float64) for n, p in self.net.named_parameters()}
        return replace(self.leaf, weights=weights)


def flops_of(found: Found, leaf: PolicyValue) -> float:
    """Operations of one of the searches, by formula, a mean over roots; see `TreeSearcher.flops_per_action`."""
    walked, judged = float(found.steps.mean()), float(found.nodes.mean())
    return float(walked * (6 * found.visits.shape[1] + 4) + judged * leaf.flops)


def episodes(
    model: FiniteModel, acting: np.ndarray, starts: np.ndarray, goal: StateGoal, gamma: float, rng: np.random.Generator
) -> tuple[Memory, int, float]:
    """Act from every start at once, by probabilities `[S, A]`, for at most 2 S steps.

    Returns:
        what was seen (the outcome from a state is γ^(steps to the goal), 0 where it was not reached), transitions, and
        the share of episodes that reached the goal.
    """
    n = model.n_states
    mask = goal.mask(n)
    state, live = starts.astype(np.int64), np.ones(len(starts), np.bool_)
    seen: list[np.ndarray] = []
    lives: list[np.ndarray] = []
    last = np.full(len(starts), -1)
    share, chance = np.cumsum(acting, axis=1), np.cumsum(model.prob, axis=2)
    for t in range(2 * n):
        seen.append(state)
        lives.append(live)
        u = rng.random((2, len(state)))
        action = np.minimum((share[state] <= u[0, :, None]).sum(1), acting.shape[1] - 1)
        k = np.minimum((chance[state, action] <= u[1, :, None]).sum(1), model.next_state.shape[2] - 1)
        state = np.where(live, model.next_state[state, action, k], state)
        entered = live & mask[state]
        last = np.where(entered, t + 1, last)
        live = live & ~entered
        if not live.any():
            break
    visits, ends = np.zeros(n), np.zeros(n)
    for t, (where, on) in enumerate(zip(seen, lives, strict=True)):
        end = np.where(last >= 0, gamma ** np.maximum(last - t, 0).astype(np.float64), 0.0)
        np.add.at(visits, where[on], 1.0)
        np.add.at(ends, where[on], end[on])
    steps = int(np.sum([on.sum() for on in lives]))
    return Memory(visits, ends, np.zeros_like(acting)), steps, float((last >= 0).mean())


def train_alphazero(
    world: FiniteWorld,
    goal: StateGoal,
    *,
    settings: TreeSettings,
    hidden: tuple[int, ...] = (64,),
    features: Features = "state",
    play: SelfPlay | None = None,
    seed: int = 0,
    progress: bool = False,
) -> AlphaZero:
    """Train a network of values and priors toward a goal by searching with it.

    Args:
        world: where.
        goal: in the reward slot.
        settings: of the search, in training and of the agent that is returned; its gamma discounts outcomes too.
        hidden: widths of the network's layers.
        features: what the network sees of a state: see `retarget.agents.policy_value.features_of`.
        play: how much is acted and fitted.
        seed: names the random streams; the same call gives the same weights, bit for bit, on the same machine.
        progress: show a bar.

    >>> import retarget
    >>> from retarget.exact import Yardstick
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> made = train_alphazero(world, world.goal, settings=TreeSettings(simulations=16), play=SelfPlay(iterations=10))
    >>> Yardstick.of(world, world.goal, gamma=0.95).score(made.agent).competence > 0.9
    True
    """
    torch.set_num_threads(1)  # tensors here are small: a second thread only waits
    play = SelfPlay() if play is None else play
    if settings.rollout_steps:
        raise AgentError(
            f"a trained network values leaves, so rollout_steps={settings.rollout_steps} would not be heard; leave it 0"
        )
    model = world.model
    seen = features_of(world, features)
    leaf = PolicyValue.initial(seen, n_actions=model.n_actions, hidden=tuple(hidden), seed=seed)
    agent = tree_searcher(world, goal, settings=settings, leaf=leaf, seed=seed)
    if play.iterations == 0:
        return AlphaZero(agent, Spend(), ())
    run = _Play(agent, world, goal, play, seed)
    with _quiet():
        _trainer(progress, "cpu").fit(run, train_dataloaders=range(play.iterations))
    trained = replace(run.agent, starts=np.sort(starts_beside(world, goal)))
    return AlphaZero(trained, run.spend, tuple(run.history))
