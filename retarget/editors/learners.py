"""Learners that predict what is right before they are told: what an online code is made of.

Every learner gives hypotheses. A hypothesis predicts, for each lesson, the probability `p_i` that an action drawn from
it is right (in the set of right actions), from the agent that it starts as and the lessons before. It is believed with
a share θ: the prediction of a lesson is `θ p_i + (1 - θ) u_i`, with `u_i` the same for an action drawn evenly. The code
is the Bayesian mixture over hypotheses and shares, and its length is `-log2` of what it gives to all lessons
(Dawid 1984, Rissanen 1984): no more than that of any hypothesis at any share, plus `-log2` of their prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from retarget.agent import Agent, HasGoalSlot, HasTable, SlotWrite
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, Slot
from retarget.editors.gradient import Differentiable, Tuner, names_of
from retarget.errors import AgentError
from retarget.goal import Goal
from retarget.lessons import Lessons
from retarget.rng import stream
from retarget.spend import Spend

#: Shares θ by which a hypothesis may be believed, and their prior: half for all of it, the rest evenly.
SHARES = np.array([1.0, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0])
SHARE_PRIOR = np.array([0.5] + [0.0625] * 8)
#: Cells that each dimension of a continuous action is cut into, to have a length.
ACTION_CELLS = 16
#: Standard deviations, in shares of the range, that a predicted continuous action is believed to.
SPREADS = (0.02, 0.1, 0.3)
#: Factors on the temperature that scores are read with.
TEMPERATURES = (1.0, 4.0)

Box = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """Predictions of one learner.

    Attributes:
        learner: `table`, `slot` or `gradient`.
        right: float64 `[H, N]`, the probability of what is right, given the lessons before.
        prior: float64 `[H]`, summing to at most 1.
        spend: what it took.
    """

    learner: str
    right: np.ndarray
    prior: np.ndarray
    spend: Spend = field(default_factory=Spend)


def uniform_right(lessons: Lessons, box: Box | None = None) -> np.ndarray:
    """Probability, float64 `[N]`, that an action drawn evenly is right."""
    if box is not None:
        return np.full(len(lessons), float(ACTION_CELLS) ** -lessons.right.shape[1])
    return np.asarray((lessons.right > 0).mean(1))


def probability_of_right(out: np.ndarray, lessons: Lessons, box: Box | None = None) -> np.ndarray:
    """Probability of what is right under distributions `[N, A]`, or under means `[N, K]` of continuous actions at each
    of `SPREADS`: float64 `[H, N]`."""
    if box is None:
        return np.asarray(np.minimum((out * (lessons.right > 0)).sum(1), 1.0))[None]
    from scipy.special import ndtr

    low, high = box
    width = (high - low) / ACTION_CELLS
    cell = np.clip(np.floor((lessons.right - low) / width), 0, ACTION_CELLS - 1)
    left = low + cell * width
    mean = np.clip(out, low, high)
    rows = []
    for spread in SPREADS:
        sd = spread * (high - low)
        inside = ndtr((left + width - mean) / sd) - ndtr((left - mean) / sd)
        rows.append((inside / (ndtr((high - mean) / sd) - ndtr((low - mean) / sd))).prod(1))
    return np.stack(rows)


def told(agent: Agent, lessons: Lessons, box: Box | None = None) -> np.ndarray:
    """Probability of what is right under an agent as it is: float64 `[H, N]`."""
    if not agent.has_memory:
        return probability_of_right(_plain(agent.policy(lessons.obs)[0], box), lessons, box)
    n = len(lessons) // lessons.steps
    obs = lessons.obs.reshape(n, lessons.steps, *lessons.obs.shape[1:])
    out, carry = [], None
    for t in range(lessons.steps):
        probs, carry = agent.policy(obs[:, t], carry)
        out.append(_plain(probs, box))
    flat = np.stack(out, axis=1)
    return probability_of_right(flat.reshape(len(lessons), -1), lessons, box)


def _plain(out: np.ndarray, box: Box | None) -> np.ndarray:
    return np.asarray(out if box is None else out[:, 0])


def table_learner(agent: Agent, lessons: Lessons, box: Box | None = None) -> Hypotheses:
    """What a table knows of the lessons to come: that they may ask for what it does already. Nothing carries over from
    one state to another but how often that was so, which the mixture over shares learns."""
    spend = Spend(simulations=1, flops=agent.flops_per_action * len(lessons))
    right = told(agent, lessons, box)
    return Hypotheses("table", right, np.full(len(right), 1 / len(right)), spend)


def slot_learner(
    agent: Agent, goal: Goal, lessons: Lessons, box: Box | None = None, *, seed: int = 0, contents: int = 1024
) -> Hypotheses:
    """Bayes over what the slot can hold: what it holds now, and everything that the agent lists, alike. Where a way to
    write the goal is none of these, it has the prior 2^-bits of writing it (half of all is set aside for that).

    Args:
        agent: fulfils `HasGoalSlot`.
        goal: the goal of the lessons; only for that last case, in which the sum over all edits is cut to this one.
        lessons: in the order that they are told in.
        box: range of continuous actions.
        seed: names the stream that contents are drawn from, where there are more than `contents`.
        contents: most to try.
    """
    assert isinstance(agent, HasGoalSlot)
    listed = agent.slot_candidates()
    if len(listed) > contents:
        kept = stream(seed, "slot_contents", len(listed)).permutation(len(listed))[:contents]
        listed = tuple(listed[int(i)] for i in np.sort(kept))
    edits = list(dict.fromkeys(_edit(agent, w) for w in listed))
    same = [told(agent, lessons, box)]
    right = [told(e.apply(agent), lessons, box) for e in edits]
    listed_prior = [1.0 / (1 + len(edits))] * (1 + len(edits))
    unlisted = [e for e in (_edit(agent, w) for w in agent.slot_writes(goal)) if e not in set(edits)]
    prior = [p / 2 for p in listed_prior] if unlisted else listed_prior
    prior += [2.0 ** -(1 + ENUMERATIVE.length(e, agent.layout)) for e in unlisted]
    right = same + right + [told(e.apply(agent), lessons, box) for e in unlisted]
    spreads = len(same[0])
    spend = Spend(simulations=len(right), flops=agent.flops_per_action * len(lessons) * len(right))
    return Hypotheses("slot", np.concatenate(right), np.repeat(prior, spreads) / spreads, spend)


def _edit(agent: Agent, write: SlotWrite) -> Edit:
    return Edit.of(agent, Slot.of(write, agent.parts[write.part].alphabet))


def gradient_learner(
    agent: Agent,
    lessons: Lessons,
    box: Box | None = None,
    *,
    ends: Sequence[int],
    steps: int = 100,
    lr: float = 0.01,
    seed: int = 0,
) -> Hypotheses:
    """Predicts each block by the agent after gradient descent on all blocks before it, begun anew each time; the first
    block by the agent as it is.

    Args:
        agent: fulfils `Differentiable`.
        lessons: in the order that they are told in.
        box: range of continuous actions.
        ends: number of lessons up to the end of each block, rising; the last is all of them.
        steps, lr: of the descent.
        seed: names the streams.
    """
    import torch

    names = names_of(agent, "weight")
    whole = Tuner(agent, names, lessons, seed=seed)
    learning = Tuner(agent, names, lessons, seed=seed)
    learning.temperature = whole.temperature
    theta, begin, found = whole.base, 0, []
    for end in ends:
        if begin:
            learning.teach(lessons.take(np.arange(begin)))
            theta = learning.fit(learning.base, steps=steps, lr=lr)
        rows = np.arange(begin, end)
        with torch.no_grad():
            scores = whole.scores(theta, torch.from_numpy(rows)).double().numpy()
        found.append(_read(scores, lessons.take(rows), whole.temperature, box))
        begin = end
    right = np.concatenate(found, axis=1)
    spend = Spend(grad_steps=learning.grad_steps, flops=learning.flops + agent.flops_per_action * len(lessons))
    return Hypotheses("gradient", right, np.full(len(right), 1 / len(right)), spend)


def _read(scores: np.ndarray, lessons: Lessons, temperature: float, box: Box | None) -> np.ndarray:
    if box is not None:
        return probability_of_right(scores, lessons, box)
    rows = []
    for factor in TEMPERATURES:
        z = scores / (temperature * factor)
        z = np.exp(z - z.max(1, keepdims=True))
        rows.append(probability_of_right(z / z.sum(1, keepdims=True), lessons)[0])
    return np.stack(rows)


def learners_of(
    agent: Agent, goal: Goal, lessons: Lessons, *, ends: Sequence[int], box: Box | None = None, seed: int = 0
) -> tuple[Hypotheses, ...]:
    """Every learner that an agent is capable of: `HasTable`, `HasGoalSlot`, `Differentiable`.

    Raises:
        AgentError: where it is capable of none.
    """
    out: list[Hypotheses] = []
    if isinstance(agent, HasTable):
        out.append(table_learner(agent, lessons, box))
    if isinstance(agent, HasGoalSlot) and (agent.slot_candidates() or agent.slot_writes(goal)):
        out.append(slot_learner(agent, goal, lessons, box, seed=seed))
    if isinstance(agent, Differentiable) and names_of(agent, "weight"):
        out.append(gradient_learner(agent, lessons, box, ends=ends, seed=seed))
    if not out:
        raise AgentError(
            f"agent {agent.kind!r} has no table, no goal slot and no gradients: there is nothing to learn with"
        )
    return tuple(out)


def code_lengths(learners: Sequence[Hypotheses], lessons: Lessons, uniform: np.ndarray) -> np.ndarray:
    """Bits of the lessons up to each one, in the mixture of all learners (alike: each pays log2 of their number).

    Rows that count for nothing cost nothing.

    Args:
        learners: predictions for the same lessons.
        lessons: in the order that they are told in.
        uniform: float64 `[N]`, probability of what is right under even draws.

    Returns:
        Float64 `[N]`, rising.

    >>> two = Lessons(np.arange(2), np.eye(2), np.ones(2))
    >>> sure = Hypotheses("table", np.ones((1, 2)), np.ones(1))
    >>> code_lengths([sure], two, np.array([0.5, 0.5])).round(2).tolist()
    [0.17, 0.29]
    """
    right = np.concatenate([h.right for h in learners])
    prior = np.concatenate([h.prior / len(learners) for h in learners])
    with np.errstate(divide="ignore"):
        each = np.log2(SHARES[:, None, None] * right + (1 - SHARES[:, None, None]) * uniform)
        weight = np.log2(SHARE_PRIOR[:, None] * prior)
    each = np.where(lessons.weight > 0, each, 0.0)
    total = np.cumsum(each, axis=2).reshape(-1, len(lessons)) + weight.reshape(-1, 1)
    top = total.max(0)
    return np.asarray(-(top + np.log2(np.exp2(total - top).sum(0))))
