"""Proximal policy optimisation (source: Schulman et al. 2017), with a value network of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from retarget.agents.neural import Architecture
from retarget.errors import AgentError
from retarget.training.base import Learner, Question, TrainingError, Weights, no_memory, not_negative, positive
from retarget.training.rollout import Inputs, batch_of
from retarget.training.solved import Solved


@dataclass(frozen=True)
class PPO:
    """Learn by trial, from episodes that the present policy makes. For networks without memory.

    The agent's head must be `logits`, or the `mean` of a continuous action, to which a learned spread is added in
    training alone. Rewards are sparse and not shaped: see `FiniteBatch` and `BoxBatch`.

    Attributes:
        env_steps: budget, in transitions; the last round is not begun where it would go beyond.
        envs: copies of the world side by side.
        rollout: steps of each copy in one round.
        epochs: passes over the transitions of a round.
        batch: transitions in one optimiser update.
        rate: learning rate of Adam, which falls to zero over the budget, linearly.
        lam: λ of the advantage estimates.
        clip: how far the ratio of probabilities may move from 1.
        entropy: factor on the entropy of the policy.
        value: factor on the squared error of the value network.
        max_norm: largest norm of the gradient.
        limit: steps of an episode; 0 for the world's own limit.
        reward: "goal" or "cost".
        value_only: rounds at first in which only the value network learns, for a policy that was cloned before.
        enough: stop at this mean competence of the greedy policy on the training goals, in finite worlds, where it is
            known exactly; above 1, never stop early.
        check: rounds between two looks.
    """

    env_steps: int = 200_000
    envs: int = 64
    rollout: int = 32
    epochs: int = 4
    batch: int = 256
    rate: float = 2.5e-3
    lam: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_norm: float = 0.5
    limit: int = 0
    reward: str = "goal"
    value_only: int = 0
    enough: float = 2.0
    check: int = 1

    def __post_init__(self) -> None:
        not_negative(
            "PPO", env_steps=self.env_steps, lam=self.lam, entropy=self.entropy, value=self.value,
            max_norm=self.max_norm, limit=self.limit, value_only=self.value_only,
        )  # fmt: skip
        positive(
            "PPO", envs=self.envs, rollout=self.rollout, epochs=self.epochs, batch=self.batch, rate=self.rate,
            clip=self.clip, enough=self.enough, check=self.check,
        )  # fmt: skip

    def describe(self) -> dict[str, object]:
        """JSON-able: what tells this method apart from another one."""
        return {"method": "ppo", **vars(self)}

    def learner(self, question: Question) -> Learner:
        """Set to work."""
        return PPOLearner(question, self)


class PPOLearner(Learner):
    """PPO at work: one update is one round, of acting and of learning from it.

    In a finite world with fewer different inputs than transitions in a batch, both networks are evaluated once on each
    input, and every transition looks its outputs up: the same losses and gradients, for less.

    Operations: the networks' forward pass for each input evaluated in acting, three times that in learning.
    """

    inner = 1

    def __init__(self, question: Question, method: PPO) -> None:
        super().__init__(question, n_updates=method.env_steps // (method.envs * method.rollout))
        no_memory(question.agent, "PPO")
        if question.agent.head == "values":
            raise AgentError(
                "PPO trains policies, and this network gives values; make it with head='logits', or use DQN()"
            )
        self.method, device = method, question.device
        self.inputs = Inputs(question)
        self.continuous = question.agent.head == "mean"
        self.critic = critic_of(question).to(device)
        extra: list[nn.Module] = [self.critic]
        if self.continuous:
            assert question.agent.action_range is not None
            low, high = question.agent.action_range
            self.spread = _Spread(torch.tensor((high - low) / 4, dtype=torch.float32)).to(device)
            extra.append(self.spread)
        self.weights = Weights([self.module, *extra], rate=method.rate, clip=method.max_norm, device=device)
        self.n_policy = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        self.world = batch_of(
            question, method.envs, limit=method.limit, reward=method.reward, generator=self.generator("begin")
        )
        self.solved = Solved(question, method.enough)
        self.flops = 2.0 * question.agent.architecture.flops
        self.marks = {name: torch.zeros((), device=device) for name in ("reward", "entropy", "loss")}

    def update(self, k: int) -> None:
        generator = self.generator("ppo", k)
        self.inputs.shuffle(generator)
        data = self._act(generator)
        self._learn(k, data, generator)
        self.env_steps += self.method.envs * self.method.rollout

    # -- acting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _act(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One round: what was seen, done and got, `[T · N, ...]`, with advantages and returns."""
        m, world, device = self.method, self.world, self.question.device
        t, n = m.rollout, m.envs
        fresh = world.begin(torch.rand(2, t, n, generator=generator, device=device))
        chance = torch.rand(t, n, generator=generator, device=device)
        choose = self._chooser(t, n, generator)
        seen: dict[str, list[Tensor]] = {x: [] for x in ("obs", "goal", "action", "reward", "over", "done", "after")}
        for i in range(t):
            obs, goal = world.obs, world.goal
            action = choose(i, obs, goal)
            step = world.step(action, (fresh[0][i], fresh[1][i]), chance[i])
            row = (obs, goal, action, step.reward, step.terminated, step.done, step.after)
            for name, value in zip(seen, row, strict=True):
                seen[name].append(value)
        data = {name: torch.stack(values) for name, values in seen.items()}
        return self._with_advantages(data)

    def _scores(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x, None)[0]
        return out

    def _chooser(self, t: int, n: int, generator: torch.Generator) -> Callable[[int, Tensor, Tensor], Tensor]:
        """What picks actions `[N]` at step i: the policy does not change within a round."""
        device = self.question.device
        if self.continuous:
            noise = torch.randn(t, n, self.spread.log.numel(), generator=generator, device=device)
            scale = self.spread.log.exp()

            def draw(i: int, obs: Tensor, goal: Tensor) -> Tensor:
                self.flops_spent += self.flops / 2 * n
                return self._scores(self.inputs(obs, goal)) + scale * noise[i]

            return draw
        u = torch.rand(t, n, 1, generator=generator, device=device)
        if self.inputs.table is not None and self.inputs.n_rows <= t * n:
            cum = self._scores(self.inputs.table).softmax(1).cumsum(1)[:, :-1].contiguous()
            self.flops_spent += self.flops / 2 * len(cum)
            return lambda i, obs, goal: (cum.index_select(0, self.inputs.rows(obs, goal)) <= u[i]).sum(1)

        def pick(i: int, obs: Tensor, goal: Tensor) -> Tensor:
            self.flops_spent += self.flops / 2 * n
            probs = self._scores(self.inputs(obs, goal)).softmax(1)
            return (probs.cumsum(1)[:, :-1] <= u[i]).sum(1)

        return pick

    def _with_advantages(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        m = self.method
        flat = {k: v.flatten(0, 1) for k, v in data.items()}
        if self.inputs.table is not None:
            flat["row"] = self.inputs.rows(flat["obs"], flat["goal"])
            following = self.inputs.rows(flat["after"], flat["goal"])
        few = self.inputs.table is not None and self.inputs.n_rows <= len(flat["goal"])
        if few:
            assert self.inputs.table is not None
            worth = self.critic(self.inputs.table, None)[0][:, 0]
            value, after = worth[flat["row"]], worth[following]
        else:
            value = self.critic(self.inputs(flat["obs"], flat["goal"]), None)[0][:, 0]
            after = self.critic(self.inputs(flat["after"], flat["goal"]), None)[0][:, 0]
        scores = self.module(self._x(flat), None)[0] if not few else self.module(self.inputs.table, None)[0]
        if few:
            scores = scores[flat["row"]]
        flat["log_p"] = self._log_p(scores, flat["action"])
        self.flops_spent += self.flops * (self.inputs.n_rows if few else 1.5 * len(value))
        shape = data["reward"].shape
        advantage = gae(
            data["reward"], value.view(shape), after.view(shape), data["over"], data["done"],
            gamma=self.question.gamma, lam=m.lam,
        ).flatten()  # fmt: skip
        flat["advantage"], flat["return"] = advantage, advantage + value
        self.marks["reward"] = data["reward"].mean()
        return flat

    # -- learning --------------------------------------------------------------------------------------------------

    def _learn(self, k: int, data: dict[str, Tensor], generator: torch.Generator) -> None:
        m = self.method
        n = len(data["reward"])
        share = 1.0 - k / self.n_updates
        few = self.inputs.table is not None and self.inputs.n_rows <= min(m.batch, n)
        names = ["action", "log_p", "advantage", "return", *(["row"] if "row" in data else ["obs", "goal"])]
        for _ in range(m.epochs):
            order = torch.randperm(n, generator=generator, device=self.question.device)
            dealt = {name: data[name].index_select(0, order) for name in names}
            for begin in range(0, n, m.batch):
                part = {name: values[begin : begin + m.batch] for name, values in dealt.items()}
                loss = self._loss(part, few)
                self.weights.step(loss, share=share) if k >= m.value_only else self._value_step(loss, share)
                self.grad_steps += 1
                self.flops_spent += 3 * self.flops * (self.inputs.n_rows if few else len(part["action"]))
        self.marks["loss"] = loss.detach()

    def _value_step(self, loss: Tensor, share: float) -> None:
        """A step that leaves the policy as it is, and Adam's memory of it."""
        kept = [v[: self.n_policy].clone() for v in self.weights.state().values() if v.ndim]
        self.weights.step(loss, share=share)
        for vector, old in zip([v for v in self.weights.state().values() if v.ndim], kept, strict=True):
            vector[: self.n_policy] = old

    def _x(self, data: dict[str, Tensor]) -> Tensor:
        if "row" in data and self.inputs.table is not None:
            return self.inputs.table.index_select(0, data["row"])
        return self.inputs(data["obs"], data["goal"])

    def _loss(self, part: dict[str, Tensor], few: bool) -> Tensor:
        m = self.method
        x = self.inputs.table if few else self._x(part)
        scores, value = self.module(x, None)[0], self.critic(x, None)[0][:, 0]
        if self.continuous:
            log_p, entropy = self._log_p(scores, part["action"]), self.spread.log.sum()
        else:
            log_all = functional.log_softmax(scores, dim=1)
            spread = -(log_all.exp() * log_all).sum(1)
            if few:
                spread, value = spread.index_select(0, part["row"]), value.index_select(0, part["row"])
                log_p = log_all.view(-1).index_select(0, part["row"] * log_all.shape[1] + part["action"])
            else:
                log_p = log_all.gather(1, part["action"][:, None])[:, 0]
            entropy = spread.mean()
        advantage = part["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        ratio = (log_p - part["log_p"]).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - m.clip, 1 + m.clip) * advantage).mean()
        self.marks["entropy"] = entropy.detach()
        return m.value * functional.mse_loss(value, part["return"]) - gain - m.entropy * entropy

    def _log_p(self, scores: Tensor, action: Tensor) -> Tensor:
        """Log probability (density, for continuous actions) `[B]` of actions."""
        if not self.continuous:
            return functional.log_softmax(scores, dim=1).gather(1, action[:, None])[:, 0]
        z = (action - scores) * (-self.spread.log).exp()
        return (-0.5 * z * z - self.spread.log - 0.5 * math.log(2 * math.pi)).sum(1)

    def finished(self, k: int) -> bool:
        return k % self.method.check == 0 and self.solved(self.agent)

    def measures(self) -> dict[str, float]:
        return {name: float(x) for name, x in self.marks.items()}

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **self.world.state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.weights.state().items():
            tensor.data.copy_(state[name])
        self.world.load(dict(state))


class _Spread(nn.Module):
    """Log standard deviation of continuous actions, the same everywhere."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.log = nn.Parameter(scale.log())


def critic_of(question: Question) -> nn.Module:
    """A fresh value network: the agent's architecture with one output.

    Raises:
        TrainingError: when its kind of network does not say how many outputs it has.
    """
    agent = question.agent
    options = dict(agent.architecture.options)
    if "outputs" not in options:
        raise TrainingError(
            f"a {agent.architecture.kind} whose options have no 'outputs' has no value network; use DQN()"
        )
    options |= {"outputs": 1}
    if "squash" in options:
        options |= {"squash": False}
    return Architecture.of(agent.architecture.kind, **options).build(question.seed).train()


def gae(
    reward: Tensor, value: Tensor, after: Tensor, terminated: Tensor, done: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates `[T, N]` (source: Schulman et al. 2016, eq. 16).

    `A_t = δ_t + γ λ A_{t+1}`, `δ_t = r_t + γ V(s'_t) - V(s_t)`; V of a terminal state is 0, and A is not carried over
    the end of an episode. An episode that was only cut off at its limit is worth V of where it was.

    Args:
        reward: `[T, N]`.
        value: `[T, N]`, V of what was seen.
        after: `[T, N]`, V of what was seen after the action, before a new episode began.
        terminated: bool `[T, N]`, whether the episode ended in the goal (or with the world's end).
        done: bool `[T, N]`, whether it ended at all.
        gamma, lam: discount and λ.

    >>> one, no = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
    >>> gae(one, 0 * one, 0 * one, no, no, gamma=0.5, lam=1.0)[:, 0].tolist()
    [1.5, 1.0]
    """
    delta = reward + gamma * after * ~terminated - value
    keep = gamma * lam * (~done).to(delta.dtype)
    out = torch.empty_like(delta)
    last = torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        last = torch.addcmul(delta[t], keep[t], last)
        out[t] = last
    return out
