"""One verb: search a batch of roots, by one of three engines that are each other's oracle."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from retarget.errors import AgentError
from retarget.rng import word
from retarget.search.settings import Evaluate, Found, TreeModel, TreeSettings

Engine = Literal["compiled", "arrays", "plain"]


def search(
    model: TreeModel,
    roots: np.ndarray,
    *,
    settings: TreeSettings,
    keys: np.ndarray | None = None,
    seed: int = 0,
    evaluate: Evaluate | None = None,
    engine: Engine = "compiled",
    device: str = "cpu",
    memory_limit_bytes: int | None = None,
) -> Found:
    """Search from every root.

    Args:
        model: what is searched.
        roots: int `[B]` states.
        settings: how.
        keys: uint64 `[B]`, names each root's random numbers; without, made from the seed and the root's state, so
            that a root finds the same in any batch.
        seed: of those keys.
        evaluate: values and priors of leaves, asked for all roots at once, once a simulation (and once for the roots
            themselves), in place of the model's tables; where a walk has no leaf to ask for, its root stands in.
        engine: `compiled` (CPU), `arrays` (torch, any device), or `plain` Python.
        device: of the arrays.
        memory_limit_bytes: least memory that may not be exceeded; without, half of what is free.

    Returns:
        `Found`, with one row a root. The engines agree in every bit where no two scores are within rounding of each
        other: they take the same steps in the same order.

    Raises:
        AgentError: for roots outside the world, values that are not finite, and batches that do not fit the memory.

    >>> import numpy as np
    >>> chain = np.array([[[1], [0]], [[2], [0]], [[2], [1]]])
    >>> model = TreeModel(chain, np.ones(chain.shape), np.array([0, 0, 1.0]), np.zeros(3), np.full((3, 2), 0.5))
    >>> found = search(model, np.array([0, 1]), settings=TreeSettings(simulations=32))
    >>> found.action.tolist(), found.visits.sum(1).tolist()
    ([0, 0], [32, 32])
    """
    roots = np.asarray(roots)
    if roots.ndim != 1 or roots.dtype.kind not in "iu" or not roots.size:
        raise AgentError(f"roots of a search must be int [B], at least one, got {roots.dtype} {roots.shape}")
    if roots.min() < 0 or roots.max() >= model.n_states:
        bad = int(roots.min() if roots.min() < 0 else roots.max())
        raise AgentError(f"root {bad} is outside the states 0 to {model.n_states - 1}")
    roots = roots.astype(np.int64)
    keys = root_keys(roots, seed) if keys is None else np.asarray(keys, dtype=np.uint64)
    if keys.shape != roots.shape:
        raise AgentError(f"a search needs one key for each root, got {keys.shape} for {roots.shape}")
    asked = None if evaluate is None else _checked(evaluate, model)
    if engine == "plain":
        from retarget.search.reference import check_memory, search_plain

        check_memory(model, len(roots), settings, memory_limit_bytes)
        return search_plain(model, roots, keys, settings, asked)
    if engine == "compiled":
        from retarget.search.compiled import search_compiled

        return search_compiled(model, roots, keys, settings, asked, memory_limit_bytes)
    if engine == "arrays":
        from retarget.search.arrays import search_arrays

        return search_arrays(model, roots, keys, settings, asked, device, memory_limit_bytes)
    raise AgentError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}")


def root_keys(roots: np.ndarray, seed: int) -> np.ndarray:
    """Uint64 `[B]`: names the random numbers of each root, by its state alone."""
    base = _base(seed)
    return np.asarray(base ^ (np.asarray(roots, dtype=np.uint64) << np.uint64(20)))


@lru_cache(maxsize=256)
def _base(seed: int) -> np.uint64:
    return np.uint64(word(seed, "tree_search"))


def _checked(evaluate: Evaluate, model: TreeModel) -> Evaluate:
    """The same, refusing what a search cannot work with."""
    from retarget.search.faults import DISTRIBUTION, FINITE, fault

    n_actions = model.n_actions

    def asked(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answer = evaluate(states)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise AgentError(
                f"evaluate must return two arrays, values [B] and priors [B, A], got {type(answer).__name__}"
            )
        value, prior = (np.asarray(x, dtype=np.float64) for x in answer)
        n, a = len(states), n_actions
        if value.shape != (n,) or prior.shape != (n, a):
            raise AgentError(
                f"leaf values and priors need the shapes ({n},) and ({n}, {a}), got {value.shape} and {prior.shape}"
            )
        kind, row = fault(value, prior)
        if kind == FINITE:
            raise AgentError(
                f"the value network returned a number that is not finite for state {int(states[row])}; "
                "check its weights"
            )
        if kind == DISTRIBUTION:
            raise AgentError(f"the priors of state {int(states[row])} are no distribution: {prior[row].tolist()}")
        return value, prior

    if hasattr(evaluate, "on_device"):
        asked.on_device = evaluate.on_device  # type: ignore[attr-defined]
    return asked
