"""Returns of an agent in Gymnasium's own environments, in which published figures are counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.agent import own
from retarget.errors import AgentError, RetargetError, WorldError, unknown
from retarget.rng import stream, word
from retarget.trials import choose

if TYPE_CHECKING:
    import gymnasium

    from retarget.agent import Agent

#: Environments that agents can be played in. A fixed list: an id of Gymnasium can name code to be imported.
GYM_IDS = (
    "CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0", "LunarLander-v3",
)  # fmt: skip
MAX_EPISODES = 10_000


@dataclass(frozen=True, eq=False)
class Returns:
    """What N episodes came to.

    Attributes:
        returns: float64 `[N]`, undiscounted sums of rewards.
        lengths: int64 `[N]`, steps.
    """

    returns: np.ndarray
    lengths: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "returns", own(np.asarray(self.returns, dtype=np.float64)))
        object.__setattr__(self, "lengths", own(np.asarray(self.lengths, dtype=np.int64)))

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation over episodes (that of the N, as published figures give it)."""
        return float(self.returns.std())

    @property
    def interval(self) -> tuple[float, float]:
        """Normal 95% interval of the mean; without ends for a single episode.

        >>> Returns(np.array([1.0, 3.0]), np.array([1, 3])).interval
        (0.04, 3.96)
        """
        n = len(self.returns)
        half = 1.96 * float(self.returns.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return round(self.mean - half, 9), round(self.mean + half, 9)


def play(agent: Agent, gym_id: str, *, episodes: int = 100, seed: int = 0) -> Returns:
    """Play an agent in a Gymnasium environment; all episodes run side by side, with one call of the policy a step.

    Args:
        agent: takes float32 observations `[B, O]`. It acts as it does: greedily, where it was loaded so.
        gym_id: one of `GYM_IDS`, with the version.
        episodes: how many; episode i starts from the same state whenever the seed is the same.
        seed: names the streams of starts and of stochastic actions.

    Raises:
        WorldError: for an id that is not on the list, or an environment whose own libraries are missing.
        AgentError: when the agent does not fit the environment.

    >>> from retarget.agents.wrapped import wrap
    >>> leaning = wrap(lambda x: np.stack([-x[:, 2], x[:, 2]], 1), observation_size=4, n_actions=2, name="leaning")
    >>> result = play(leaning, "CartPole-v1", episodes=3)
    >>> result.returns.shape, 15 < result.mean < 100
    ((3,), True)
    """
    if gym_id not in GYM_IDS:
        raise WorldError(unknown("environment", gym_id, GYM_IDS))
    if isinstance(episodes, bool) or not isinstance(episodes, int) or not 1 <= episodes <= MAX_EPISODES:
        raise WorldError(f"episodes must be a whole number from 1 to {MAX_EPISODES}, got {episodes!r}")
    envs = _environments(gym_id, episodes)
    try:
        return _played(agent, gym_id, envs, seed)
    finally:
        for env in envs:
            env.close()


def _environments(gym_id: str, n: int) -> list[gymnasium.Env]:
    import gymnasium

    try:
        return [gymnasium.make(gym_id, disable_env_checker=True) for _ in range(n)]
    except gymnasium.error.Error as error:
        raise WorldError(f"{gym_id} cannot be made here ({' '.join(str(error).split())[:160]})") from None


def _played(agent: Agent, gym_id: str, envs: list[gymnasium.Env], seed: int) -> Returns:
    obs = np.stack([env.reset(seed=word(seed, "play", gym_id, i))[0] for i, env in enumerate(envs)])
    rng = stream(seed, "play", gym_id, "actions")
    total, length = np.zeros(len(envs)), np.zeros(len(envs), dtype=np.int64)
    live = np.ones(len(envs), dtype=np.bool_)
    carry: object = None
    while live.any():
        actions, carry = _actions(agent, gym_id, envs[0], obs, carry, rng)
        for i in np.flatnonzero(live):
            after, reward, ended, cut, _ = envs[i].step(actions[i])
            obs[i] = after
            total[i] += float(reward)
            length[i] += 1
            live[i] = not (ended or cut)
    return Returns(total, length)


def _actions(
    agent: Agent, gym_id: str, env: gymnasium.Env, obs: np.ndarray, carry: object, rng: np.random.Generator
) -> tuple[np.ndarray, object]:
    """Actions of all episodes, those that have ended included: an agent with memory sees the same rows at each step."""
    try:
        out, carry = agent.policy(np.array(obs, dtype=np.float32), carry)
    except RetargetError:
        raise
    except (RuntimeError, IndexError, ValueError) as error:  # what torch and numpy make of a wrong shape
        text = " ".join(str(error).split())[:160]
        raise AgentError(f"the agent cannot act on observations {obs.shape} of {gym_id} ({text})") from error
    n = getattr(env.action_space, "n", None)
    expected = (len(obs), int(n)) if n is not None else (len(obs), 2, *(env.action_space.shape or ()))
    if out.shape != expected or np.isnan(out).any():
        what = "NaN" if out.shape == expected else f"shape {out.shape}"
        raise AgentError(f"{gym_id} needs distributions of shape {expected}, the agent gives {what}")
    actions = choose(out, rng)
    return (actions if n is not None else np.asarray(actions, dtype=np.float32)), carry
