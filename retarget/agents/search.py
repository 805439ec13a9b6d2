"""Planners that search a tree at every decision: over the true model or a learned one, with any way to value leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Carry, Categorical, Fit, Part, Real, SlotWrite, own
from retarget.agents.leaves import Blind, Leaf
from retarget.agents.planner import Planner
from retarget.errors import AgentError
from retarget.goal import StateGoal
from retarget.search import Found, TreeModel, TreeSettings, search
from retarget.world import FiniteWorld

#: Rewards beyond this would overflow in sums of returns.
LARGEST_REWARD = 1e100


@dataclass(frozen=True, eq=False)
class TreeSearcher(Agent):
    """Searches a tree from the present state, and takes the action that the search chooses.

    Where the search has told it nothing, it takes the likeliest action of its prior, evenly among equals: where the
    actions that were tried are all worth the same, and no more than an untried one is beforehand (what the leaf says of
    the state), or where one walk is all there was. Parts: `reward` (goal_slot); `next_state`, and `prob` where
    there is chance (model); and those of the leaf (value, policy).

    Attributes:
        reward: float64 `[S]`, the goal slot; a state's reward is collected on entering it, and ends the episode there
            if it is not zero.
        next_state: int32 `[S, A, K]`, the model; the symbol S means "not known".
        prob: float64 `[S, A, K]`.
        settings: of the search; its `rollout_steps` are the leaf's.
        leaf: values leaves. What it says is cut to what the rewards allow: [min(0, least), max(0, greatest)].
        seed: names the random numbers.
        learned: whether the model was learned from data (then a blank has none).
        starts: start states of training, if it was trained.

    >>> import retarget
    >>> from retarget.agents import tree_searcher
    >>> from retarget.search import TreeSettings
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> agent = tree_searcher(world, world.goals[0], settings=TreeSettings(simulations=256))
    >>> agent.policy(np.array([0]))[0].sum().item(), agent.simulations_per_action
    (1.0, 256)
    """

    reward: np.ndarray
    next_state: np.ndarray
    prob: np.ndarray
    settings: TreeSettings = field(default_factory=TreeSettings)
    leaf: Leaf = field(default_factory=Blind)
    seed: int = 0
    learned: bool = False
    starts: np.ndarray | None = None

    def __post_init__(self) -> None:
        reward = np.asarray(self.reward, np.float64)
        nxt = np.asarray(self.next_state)
        if nxt.ndim != 3 or reward.shape != nxt.shape[:1] or np.shape(self.prob) != nxt.shape:
            raise AgentError(
                f"a tree searcher needs reward [S] and next_state, prob [S, A, K], "
                f"got {reward.shape}, {nxt.shape} and {np.shape(self.prob)}"
            )
        if not (np.abs(reward) <= LARGEST_REWARD).all():
            raise AgentError(f"rewards must lie within ±{LARGEST_REWARD:g}, got {reward[np.abs(reward).argmax()]:g}")
        if nxt.min() < 0 or nxt.max() > len(nxt):
            raise AgentError(f"model successors must be 0 to {len(nxt)} (unknown), got {int(nxt.max())}")
        object.__setattr__(self, "reward", own(reward))
        object.__setattr__(self, "next_state", own(nxt.astype(np.int32)))
        object.__setattr__(self, "prob", own(np.asarray(self.prob, np.float64)))
        object.__setattr__(self, "settings", replace(self.settings, rollout_steps=self.leaf.rollout_steps))

    @property
    def kind(self) -> str:  # type: ignore[override]
        return f"tree_search_{self.leaf.kind}"

    @property
    def config(self) -> Mapping[str, object]:
        return {
            "settings": asdict(self.settings),
            "leaf": dict(self.leaf.config),
            "seed": self.seed,
            "learned": self.learned,
        }

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return self.leaf.fixed_arrays

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        n_symbols = len(self.reward) + (1 if self.learned else 0)
        parts = {
            "reward": Part("reward", "goal_slot", self.reward, Real()),
            "next_state": Part("next_state", "model", self.next_state, Categorical(n_symbols)),
        }
        if self.next_state.shape[2] > 1:
            parts["prob"] = Part("prob", "model", self.prob, Real())
        return {**parts, **self.leaf.parts}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> TreeSearcher:
        self.check_arrays(arrays)
        own_parts = {n: a for n, a in arrays.items() if n in ("reward", "next_state", "prob")}
        theirs = {n: a for n, a in arrays.items() if n not in own_parts}
        leaf = self.leaf.with_arrays(theirs) if theirs else self.leaf
        return replace(self, leaf=leaf, **own_parts)  # type: ignore[arg-type]

    @property
    def n_states(self) -> int:
        return len(self.reward)

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    @cached_property
    def tree_model(self) -> TreeModel:
        """What it searches."""
        opinion = self.leaf.judge(self.reward, self.next_state.shape[1], self.settings.gamma)
        low, high = min(0.0, float(self.reward.min())), max(0.0, float(self.reward.max()))
        if not (np.isfinite(opinion.value).all() and np.isfinite(opinion.prior).all()):
            raise AgentError("its leaf values or priors are not finite; check the weights of its network")
        return TreeModel(self.next_state, self.prob, self.reward, np.clip(opinion.value, low, high), opinion.prior)

    @cached_property
    def found(self) -> Found:
        """The search from every state."""
        return search(self.tree_model, np.arange(len(self.reward)), settings=self.settings, seed=self.seed)

    @cached_property
    def _choices(self) -> np.ndarray:
        found, prior, before = self.found, self.tree_model.prior, self.tree_model.value
        tried = found.visits > 0
        highest = np.where(tried, found.q, -np.inf).max(1)
        lowest = np.where(tried, found.q, np.inf).min(1)
        likeliest = prior >= prior.max(1, keepdims=True) * (1 - 1e-12)
        out = likeliest / likeliest.sum(1, keepdims=True)
        least = 1e-12 * np.abs(highest)
        # an action never tried stands for what the state was thought to be worth: what beats that is worth following,
        # though nothing else was tried; one walk alone compares nothing
        lone = ~tried.all(1) & (highest - before > least) & (self.settings.simulations > 1)
        told = np.flatnonzero((highest - lowest > least) | lone)
        out[told] = 0.0
        out[told, found.action[told]] = 1.0
        return np.asarray(out)

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return self._choices[np.asarray(obs)], None

    @property
    def plans_once(self) -> bool:
        return False

    @property
    def simulations_per_action(self) -> int:
        return self.settings.simulations

    @property
    def flops_per_action(self) -> float:
        """For each step of a walk: 6 operations an action to choose, and 4 to carry the return back; for each new node,
        what its leaf takes. A mean over states."""
        walked, judged = float(self.found.steps.mean()), float(self.found.nodes.mean())
        return float(walked * (6 * self.next_state.shape[1] + 4) + judged * self.leaf.flops)

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers: for rollouts, for chance in its model, or for Gumbel noise."""
        noisy = self.settings.method == "gumbel" and self.settings.gumbel_scale > 0
        return self.settings.rollout_steps > 0 or noisy or self.next_state.shape[2] > 1

    def reseeded(self, seed: int) -> TreeSearcher:
        return replace(self, seed=seed)

    def blank(self, seed: int) -> TreeSearcher:
        """No goal, a blank leaf; no model either where the model was learned."""
        nxt = np.full_like(self.next_state, len(self.reward)) if self.learned else self.next_state
        leaf = self.leaf.blank(seed)
        return replace(self, reward=np.zeros_like(self.reward), next_state=nxt, leaf=leaf, starts=None)

    def slot_writes(self, goal: StateGoal) -> tuple[SlotWrite, ...]:
        return (SlotWrite("reward", 0.0, tuple((s, 1.0) for s in goal.states)),)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return tuple(SlotWrite("reward", 0.0, ((s, 1.0),)) for s in range(len(self.reward)))

    def fits(self, world: object, goal: StateGoal) -> tuple[Fit, ...]:
        """What its leaf can be suited to a goal by."""
        if not isinstance(world, FiniteWorld) or world.model.n_states != len(self.reward):
            return ()
        return self.leaf.fits(world, goal, gamma=self.settings.gamma)


class LearnedTreeSearcher(TreeSearcher):
    """As `TreeSearcher`, over a model that names one successor for each state and action, learned from data."""

    def model_cells(self) -> tuple[str, np.ndarray]:
        return "next_state", np.arange(self.next_state.size).reshape(self.next_state.shape[:2])


def tree_searcher(
    world: FiniteWorld,
    goal: StateGoal,
    *,
    settings: TreeSettings,
    leaf: Leaf | None = None,
    model: Planner | None = None,
    seed: int = 0,
) -> TreeSearcher:
    """A tree searcher over the world's true model, or over the model of a planner.

    Args:
        world: where.
        goal: in the slot.
        settings: of the search.
        leaf: values leaves; without, they are worth nothing.
        model: a planner (made by `learned_planner`, say) whose model it searches.
        seed: names the random numbers.
    """
    n = world.model.n_states
    reward = goal.mask(n).astype(np.float64)
    leaf = Blind() if leaf is None else leaf
    if model is None:
        return TreeSearcher(reward, world.model.next_state, world.model.prob, settings, leaf, seed)
    if model.n_states != n:
        raise AgentError(f"the planner's model has {model.n_states} states, {world.spec_data.label} has {n}")
    kind = LearnedTreeSearcher if model.learned and model.next_state.shape[2] == 1 else TreeSearcher
    return kind(reward, model.next_state, model.prob, settings, leaf, seed, model.learned, model.starts)
