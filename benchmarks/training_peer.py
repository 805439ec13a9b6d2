"""Stable-Baselines3's PPO, in an environment of its own: started by `benchmarks/training.py`, never imported by it.

Reads one JSON line for each run that it is asked for on standard input, and answers with one.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv


class Table(VecEnv):
    """N copies of a finite world in NumPy arrays: the fastest environment that the peer can be given in Python.

    States are seen one-hot. Reward 1 on entering the goal; a new episode begins at once.
    """

    def __init__(self, world: dict[str, np.ndarray], n: int, seed: int) -> None:
        self.next, self.goal = world["next_state"], world["goal"]
        self.starts, self.limit = world["starts"], int(world["limit"])
        s, a = self.next.shape
        self.eye = np.eye(s, dtype=np.float32)
        self.rng = np.random.default_rng(seed)
        super().__init__(n, gymnasium.spaces.Box(0, 1, (s,), np.float32), gymnasium.spaces.Discrete(a))
        self.infos: list[dict[str, Any]] = [{} for _ in range(n)]

    def reset(self) -> np.ndarray:
        self.state = self.rng.choice(self.starts, self.num_envs)
        self.age = np.zeros(self.num_envs, dtype=np.int64)
        return self.eye[self.state]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        after = self.next[self.state, self.actions]
        hit = self.goal[after]
        self.age += 1
        cut = ~hit & (self.age >= self.limit)
        done = hit | cut
        infos = self.infos
        if done.any():
            infos = [{} for _ in range(self.num_envs)]
            for i in np.flatnonzero(done):
                infos[i] = {"terminal_observation": self.eye[after[i]], "TimeLimit.truncated": bool(cut[i])}
            after = np.where(done, self.rng.choice(self.starts, self.num_envs), after)
            self.age[done] = 0
        self.state = after
        return self.eye[after], hit.astype(np.float32), done, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: object = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: object, indices: object = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: object, indices: object = None, **kwargs: object) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type, indices: object = None) -> list[bool]:
        return [False] * self.num_envs


def competence(model: PPO, world: dict[str, np.ndarray]) -> float:
    """Mean over starts of γ to the extra steps that the greedy policy takes."""
    s = len(world["goal"])
    with torch.no_grad():
        scores = model.policy.get_distribution(torch.eye(s)).distribution.logits
    follow = world["next_state"][np.arange(s), scores.argmax(1).numpy()]
    state, steps = world["starts"].copy(), np.zeros(len(world["starts"]))
    for _ in range(s):
        steps += ~world["goal"][state]
        state = np.where(world["goal"][state], state, follow[state])
    ratio = float(world["gamma"]) ** (steps - world["distance"][world["starts"]])
    return float(np.where(world["goal"][state], ratio, 0.0).mean())


class Until(BaseCallback):
    """Stops when the greedy policy is good enough; looked at before each round."""

    def __init__(self, world: dict[str, np.ndarray], enough: float) -> None:
        super().__init__()
        self.world, self.enough, self.solved = world, enough, False

    def _on_rollout_start(self) -> None:
        self.solved = competence(self.model, self.world) >= self.enough

    def _on_step(self) -> bool:
        return not self.solved


def run(world: dict[str, np.ndarray], order: dict[str, Any]) -> dict[str, float]:
    """One training, from the making of the model to its end."""
    begin, cpu = time.perf_counter(), time.thread_time()
    env = Table(world, order["envs"], order["seed"])
    model = PPO(
        "MlpPolicy", env, n_steps=order["rollout"], batch_size=order["batch"], n_epochs=order["epochs"],
        learning_rate=order["rate"], gamma=float(world["gamma"]), gae_lambda=order["lam"], ent_coef=order["entropy"],
        clip_range=order["clip"], policy_kwargs={"net_arch": order["hidden"]}, seed=order["seed"], device="cpu",
    )  # fmt: skip
    watch = Until(world, order["enough"]) if order["enough"] <= 1 else None
    model.learn(order["env_steps"], callback=watch)
    wall, used = time.perf_counter() - begin, time.thread_time() - cpu
    return {"wall": wall, "cpu": used, "samples": model.num_timesteps, "competence": competence(model, world)}


def main() -> None:
    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as file:
        world = {name: file[name] for name in file.files}
    for line in sys.stdin:
        print(json.dumps(run(world, json.loads(line))), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
