"""The front door: train a network on PyTorch Lightning."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer

from retarget.agents.neural import NetworkAgent
from retarget.digest import digest_of
from retarget.errors import AgentError, FileError, GoalError
from retarget.goal import Goal
from retarget.spend import Spend
from retarget.training.base import Learner, Question, TrainingError
from retarget.training.checkpoint import Checkpoint, Row, fits
from retarget.world import FiniteWorld, World

if TYPE_CHECKING:
    from retarget.training.cloning import Cloning
    from retarget.training.dqn import DQN
    from retarget.training.ppo import PPO

#: Rows of the history that one method leaves, about.
ROWS = 32
#: Seconds between two checkpoints.
SAVE_EVERY_S = 20.0
_SPOKEN = ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")


class Method(Protocol):
    """A way to train: data that makes a learner."""

    def describe(self) -> dict[str, object]:
        """JSON-able: what tells this method apart from another one."""
        ...

    def learner(self, question: Question) -> Learner:
        """Set to work."""
        ...


@dataclass(frozen=True, eq=False)
class Trained:
    """What came out.

    Attributes:
        agent: the network after training.
        spend: what it took: transitions, optimiser updates, and operations by the formulas of the learners.
        history: rows with the stage, the method, the updates done, and its measures then.
    """

    agent: NetworkAgent
    spend: Spend
    history: tuple[Row, ...]


def train(
    agent: NetworkAgent,
    world: World,
    *,
    goals: object,
    method: Cloning | DQN | PPO | Method | Sequence[Method],
    gamma: float | None = None,
    starts: object = None,
    shuffled_goals: bool = False,
    seed: int = 0,
    progress: bool = False,
    accelerator: str = "auto",
    checkpoint: str | Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> Trained:
    """Train a network by one method, or by several in a row.

    Args:
        agent: what to begin from; it is not changed.
        world: where.
        goals: one goal or a sequence of them, in any form that the world's `as_goal` takes. Several need a goal slot.
        method: `Cloning(...)`, `DQN(...)`, `PPO(...)`, or a tuple such as `(Cloning(...), PPO(...))`.
        gamma: discount, in (0, 1); without, the world's own where its states are continuous, else 0.95.
        starts: training starts; None for all of the world's. States of a finite world, or float `[N, D]`.
        shuffled_goals: control: the goal input says nothing about the goal, as it is dealt anew for each update.
        seed: names the random streams. The same call gives the same weights, bit for bit, on the same machine.
        progress: show a bar.
        accelerator: of Lightning: "auto", "cpu", "gpu", …
        checkpoint: file to keep the state in while training; where it exists already, training goes on from there, and
            ends with the same bits as if it had never stopped.
        save_every_s: seconds between two checkpoints; 0 for one after every few updates.

    Raises:
        AgentError: when the agent does not fit the world, the goals or the method.
        GoalError: for goals and starts that there are not.
        TrainingError: when training diverged.
        FileError: when the checkpoint belongs to another training, or is broken.

    >>> import retarget
    >>> from retarget.agents.network_for import network_for
    >>> from retarget.training import Cloning, train
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> blank = network_for(world, world.goal, hidden=(16,))
    >>> trained = train(blank, world, goals=world.goal, method=Cloning(updates=500))
    >>> bool(trained.spend.grad_steps <= 500), trained.history[-1]["agreement"]
    (True, 1.0)
    """
    torch.set_num_threads(1)  # tensors here are small: a second thread only waits
    methods = tuple(method) if isinstance(method, Sequence) else (method,)
    aims = _goals(goals, world)
    gamma = getattr(world, "gamma", 0.95) if gamma is None else gamma
    _check(agent, world, aims, methods, gamma)
    begin = _starts(starts, world)
    file = None if checkpoint is None else Path(checkpoint)
    what = _digest(agent, world, aims, methods, gamma, begin, shuffled_goals, seed)
    found = _resume(file, what)
    spend, current = Spend(), agent
    history: tuple[Row, ...] = ()
    for stage, chosen in enumerate(methods):
        if found is not None and stage < found.stage:
            continue  # the weights that it left are in the checkpoint of a later one
        with _quiet():
            trainer = _trainer(progress, accelerator)
        question = Question(
            current, world, aims, gamma, begin, shuffled_goals, seed, stage, trainer.strategy.root_device
        )
        run = _Run(chosen.learner(question), _name(chosen), stage, what, file, save_every_s)
        run.before, run.history = spend, list(history)
        if found is not None and stage == found.stage:
            run.resume(found)
        run.go(trainer)
        spend, history = run.before + run.learner.spend, tuple(run.history)
        current = run.learner.agent() if run.done else current
    return Trained(_finished(current, world, aims, begin), spend, history)


class _Run(LightningModule):
    """One learner under Lightning: many of its updates in one `training_step`, which is what keeps Lightning cheap."""

    def __init__(
        self, learner: Learner, name: str, stage: int, what: str, file: Path | None, save_every_s: float
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learner, self.module = learner, learner.module
        self.about: Row = {"stage": stage, "method": name}
        self.stage, self.what, self.file, self.save_every_s = stage, what, file, save_every_s
        self.done, self.over, self.saved = 0, learner.n_updates == 0, time.monotonic()
        self.before, self.history = Spend(), list[Row]()
        self.every = max(1, learner.n_updates // ROWS)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.learner.weights.optimizer

    def zero_grad(self, set_to_none: bool = False) -> None:
        # gradients are views of one vector: Lightning would drop them before it begins
        super().zero_grad(set_to_none=False)

    def go(self, trainer: Trainer) -> None:
        """Do what is left of the budget."""
        if self.over:
            return
        left = self.learner.n_updates - self.done
        with _quiet():
            trainer.fit(self, train_dataloaders=range(-(-left // self.learner.inner)))

    def training_step(self, batch: int) -> None:
        # locals: what is set on a module goes through its own bookkeeping, which takes longer
        learner, done, over = self.learner, self.done, False
        for _ in range(min(learner.inner, learner.n_updates - done)):
            learner.update(done)
            done += 1
            over = learner.finished(done) or done == learner.n_updates
            if over or done % self.every == 0:
                self.history.append({**self.about, "updates": done, **learner.measures()})
            if over:
                self.trainer.should_stop = True
                break
        self.done, self.over = done, over
        if self.file is not None and (self.over or time.monotonic() - self.saved >= self.save_every_s):
            self.save(self.file)

    def save(self, file: Path) -> None:
        """Write a checkpoint."""
        Checkpoint(
            self.what, self.stage, self.done, self.before, self.learner.spend, tuple(self.history),
            self.learner.state(), self.over,
        ).save(file)  # fmt: skip
        self.saved = time.monotonic()

    def resume(self, found: Checkpoint) -> None:
        """Go on from a checkpoint."""
        if not fits(self.learner.state(), found.tensors, grows=("lessons.",)):
            raise FileError(f"checkpoint {self.file} does not fit this training; delete it, or give another path")
        self.learner.load(found.tensors)
        own = found.own
        self.learner.env_steps, self.learner.grad_steps = own.env_steps, own.grad_steps
        self.learner.flops_spent = own.flops
        self.before, self.history = found.spend, list(found.history)
        self.done, self.over = found.updates, found.over


def _trainer(progress: bool, accelerator: str) -> Trainer:
    try:
        return Trainer(
            accelerator=accelerator, devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=progress, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
    except Exception as error:
        raise TrainingError(f"accelerator {accelerator!r} is not here ({error}); use accelerator='auto'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its announcements, and without what it makes other packages warn of; nothing else is hidden."""
    loggers = [logging.getLogger(name) for name in _SPOKEN]
    levels = [x.level for x in loggers]
    for x in loggers:
        x.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)


# -- what goes in and comes out --------------------------------------------------------------------------------------


def _name(method: Method) -> str:
    return str(method.describe()["method"])


def _goals(goals: object, world: World) -> tuple[Goal, ...]:
    listed = list(goals) if isinstance(goals, (list, tuple)) else [goals]
    if len(listed) > 1 and all(isinstance(x, (int, np.integer)) for x in listed):
        listed = [tuple(listed)]  # a pair of integers is a cell, which is one goal
    found: tuple[Goal, ...] = tuple(world.as_goal(g) for g in listed)
    if not found:
        raise GoalError("training needs at least one goal, got none; pass goals=world.goal")
    if len(set(found)) < len(found):
        raise GoalError("training goals must differ from one another; leave repeated ones out")
    return found


def _starts(starts: object, world: World) -> np.ndarray | None:
    if starts is None:
        return None
    if isinstance(world, FiniteWorld):
        states = np.unique([world.as_state(s) for s in starts])  # type: ignore[attr-defined]
        if not states.size or not np.isin(states, world.start_states).all():
            raise GoalError("training starts must be start states of the world, at least one")
        return states.astype(np.int64)
    place = np.asarray(starts, dtype=np.float64)
    if place.ndim != 2 or place.shape[1] != len(world.state_names) or not len(place) or not np.isfinite(place).all():
        raise GoalError(f"training starts here are float [N, {len(world.state_names)}], got {place.shape}")
    return place


def _check(
    agent: NetworkAgent, world: World, goals: tuple[Goal, ...], methods: tuple[Method, ...], gamma: float
) -> None:
    if not isinstance(agent, NetworkAgent):
        raise AgentError(f"only networks are trained here, got a {type(agent).__name__}; make one with network_for")
    if not methods:
        raise TrainingError("training needs a method, got none; pass method=Cloning()")
    for method in methods:
        if not hasattr(method, "learner"):
            raise TrainingError(f"{method!r} is no method of training; use Cloning(), DQN(), PPO(), or a tuple of them")
    if isinstance(gamma, bool) or not 0 < gamma < 1:
        raise TrainingError(f"gamma must lie strictly between 0 and 1, got {gamma!r}")
    if len(goals) > 1 and agent.goal_input is None:
        raise AgentError(f"a network without a goal slot has one goal, got {len(goals)}; use network_for(goals=...)")
    n_states = world.model.n_states if isinstance(world, FiniteWorld) else None
    if agent.n_states != n_states:
        raise AgentError(
            f"the network is for {_states(agent.n_states)}, world {world.spec_data.label} has {_states(n_states)}; "
            "make one with network_for(world, ...)"
        )


def _states(n: int | None) -> str:
    return "continuous states" if n is None else f"{n} states"


def _digest(
    agent: NetworkAgent, world: World, goals: tuple[Goal, ...], methods: tuple[Method, ...], gamma: float,
    starts: np.ndarray | None, shuffled: bool, seed: int,
) -> str:  # fmt: skip
    plain: dict[str, Any] = {
        "agent": agent.digest,
        "world": world.spec_data.as_dict(),
        "goals": [repr(g) for g in goals],
        "methods": [m.describe() for m in methods],
        "gamma": gamma,
        "shuffled": shuffled,
        "seed": seed,
    }
    if isinstance(world, FiniteWorld):
        plain["model"] = world.model.digest
    return digest_of("training", plain, [] if starts is None else [("starts", starts)])


def _resume(file: Path | None, what: str) -> Checkpoint | None:
    if file is None or not file.exists():
        return None
    found = Checkpoint.read(file)
    if found.question != what:
        raise FileError(f"checkpoint {file} belongs to another training; delete it, or give another path")
    return found


def _finished(agent: NetworkAgent, world: World, goals: tuple[Goal, ...], starts: np.ndarray | None) -> NetworkAgent:
    seen = None
    if isinstance(world, FiniteWorld):
        seen = np.asarray(world.start_states if starts is None else starts, dtype=np.int64)
    return replace(agent, starts=seen, training_goals=goals if agent.goal_input is not None else None)
