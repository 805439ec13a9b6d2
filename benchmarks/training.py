"""Training of networks: Lightning against a plain loop, cloning, and PPO against Stable-Baselines3."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.timing import Effort, Line, Race, agree
from retarget.agents.network_for import network_for
from retarget.envs import make_world
from retarget.exact import Yardstick
from retarget.training import PPO, Cloning, train
from retarget.training.base import Question
from retarget.world import FiniteWorld

TOPIC = "training"
GAMMA = 0.95
HIDDEN = (64, 64)
PEER = Path(__file__).resolve().parent.parent / ".bench-venv" / "bin" / "python"
#: Settings that both solve the world with; each counts by its own best.
SETTINGS = (
    PPO(rate=2.5e-3),
    PPO(rate=5e-3, rollout=16),
    PPO(rate=2.5e-3, batch=512),
    PPO(rate=2.5e-3, rollout=64, batch=1024),
    PPO(rate=1e-3, epochs=10, batch=512),
)
BUDGET = 400_000


def run(effort: Effort) -> list[Line]:
    """Every line of this topic."""
    torch.set_num_threads(1)
    world = make_world("FourRooms", size=13)
    out = [_overhead(world, effort), _cloning(world, effort)]
    if not PEER.exists():
        Console(stderr=True).print("no .bench-venv: Stable-Baselines3 is left out, see benchmarks/README.md")
        return out
    with _peer(world) as ask:
        return [*out, _samples(world, effort, ask), _solving(world, effort, ask)]


def _overhead(world: FiniteWorld, effort: Effort) -> Line:
    """The same 1,024 updates of cloning one goal, the weights of an untrained network at the end read by both."""
    blank = network_for(world, world.goal, hidden=HIDDEN)
    method = Cloning(updates=1024, enough=2.0)
    question = Question(blank, world, (world.goal,), GAMMA, None, False, 0, 0, torch.device("cpu"))

    def loop() -> object:
        learner = method.learner(question)
        for k in range(method.updates):
            learner.update(k)
        return learner.agent().digest

    def lightning() -> object:
        return train(blank, world, goals=world.goal, method=method, gamma=GAMMA).agent.weights

    ours, plain = lightning(), method.learner(question)
    for k in range(method.updates):
        plain.update(k)
    agree(
        "Lightning and the loop end with the same weights",
        all(np.array_equal(w, plain.agent().weights[n]) for n, w in ours.items()),  # type: ignore[attr-defined]
    )
    names = "cloning one goal under Lightning", "plain loop of the same updates"
    race = Race({names[0]: lightning, names[1]: loop}, effort)
    units = dict.fromkeys(names, float(method.updates))
    return race.line(*names, topic=TOPIC, unit="updates", units=units, bar=1 / 1.15)


def _cloning(world: FiniteWorld, effort: Effort) -> Line:
    """Cloning all goals to a mean competence of 0.99, wall time against 10 s."""
    goals, took = world.goals, []
    for seed in range(max(3, effort.rounds // 3)):
        blank = network_for(world, goals[0], goals=goals, hidden=HIDDEN, seed=seed)
        begin = time.perf_counter()
        agent = train(blank, world, goals=goals, method=Cloning(), gamma=GAMMA, seed=seed).agent
        took.append(time.perf_counter() - begin)
        mean = np.mean([Yardstick.of(world, g, gamma=GAMMA).score(agent.aimed(g)).competence for g in goals])
        agree(f"the clone of all {len(goals)} goals has competence 0.99 ({mean:.4f})", mean >= 0.99)
    name = f"cloning {len(goals)} goals of FourRooms(13) to 0.99"
    return _line(name, "in 10 s", "clones", 1 / np.array(took), np.full(len(took), 0.1), bar=1.0)


Ask = Callable[[PPO, int], dict[str, float]]


def _ours(world: FiniteWorld, method: PPO, seed: int) -> dict[str, float]:
    """What the peer answers, of ours: one training, from the making of the network to its end."""
    begin, cpu = time.perf_counter(), time.thread_time()
    blank = network_for(world, world.goal, hidden=HIDDEN, act="tanh", seed=seed)
    out = train(blank, world, goals=world.goal, method=method, gamma=GAMMA, seed=seed)
    wall, used = time.perf_counter() - begin, time.thread_time() - cpu
    score = Yardstick.of(world, world.goal, gamma=GAMMA).score(out.agent).competence
    return {"wall": wall, "cpu": used, "samples": out.spend.env_steps, "competence": score}


def _samples(world: FiniteWorld, effort: Effort, ask: Ask) -> Line:
    """Transitions a second, acting and learning, at the same settings."""
    method = PPO(env_steps=20 * 2048)
    pairs = [(_ours(world, method, i), ask(method, i)) for i in range(effort.rounds + 1)][1:]
    ours, other = (np.array([p[i]["samples"] / p[i]["cpu"] for p in pairs]) for i in (0, 1))
    name = f"PPO, {method.envs} copies of FourRooms(13)"
    return _line(name, "Stable-Baselines3, same network and settings", "samples", ours, other, bar=2.0)


def _solving(world: FiniteWorld, effort: Effort, ask: Ask) -> Line:
    """CPU time until the greedy policy's exact competence is 0.99, each at the best of the settings."""
    rounds = max(3, effort.rounds // 3)
    took = np.empty((2, len(SETTINGS), rounds))
    for j, chosen in enumerate(SETTINGS):
        method = PPO(**{**asdict(chosen), "env_steps": BUDGET, "enough": 0.99})
        for i in range(rounds):
            for who, result in enumerate((_ours(world, method, i), ask(method, i))):
                took[who, j, i] = result["cpu"] if result["competence"] >= 0.99 else np.inf
    best = [took[who, np.median(took[who], axis=1).argmin()] for who in (0, 1)]
    agree("both solve the world at their best settings", np.isfinite(best).all())
    return _line("PPO solves FourRooms(13)", "Stable-Baselines3, each at its best of 5 settings", "worlds", 1 / best[0],
                 1 / best[1], bar=1.0)  # fmt: skip


def _line(what: str, against: str, unit: str, ours: np.ndarray, other: np.ndarray, *, bar: float) -> Line:
    ratio, low, high = (float(x) for x in np.quantile(ours / other, [0.5, 0.25, 0.75]))
    return Line(TOPIC, what, against, unit, float(np.median(ours)), float(np.median(other)), ratio, low, high, bar)


@contextmanager
def _peer(world: FiniteWorld) -> Iterator[Ask]:
    """The peer's process; gives what asks it for one training."""
    model = world.model
    judge = Yardstick.of(world, world.goal, gamma=GAMMA)
    goal = world.goal.mask(model.n_states)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "world.npz"
        starts = np.setdiff1d(world.start_states, world.goal.states)
        np.savez(
            path, next_state=model.next_state[:, :, 0], goal=goal, starts=starts,
            distance=np.round(np.log(np.maximum(judge.optimal, 1e-300)) / np.log(GAMMA)), gamma=GAMMA,
            limit=4 * model.n_states,
        )  # fmt: skip
        command = [str(PEER), str(Path(__file__).with_name("training_peer.py")), str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield _asker(process.stdin, process.stdout)
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def _asker(to: IO[str], back: IO[str]) -> Ask:
    def ask(method: PPO, seed: int) -> dict[str, float]:
        order: dict[str, Any] = {**asdict(method), "hidden": HIDDEN, "seed": seed}
        to.write(json.dumps(order) + "\n")
        to.flush()
        answer: dict[str, float] = json.loads(back.readline())
        return answer

    return ask
