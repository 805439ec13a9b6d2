"""mctx's searches, in an environment of its own: started by `benchmarks/search.py`, never imported by it.

Reads one JSON line for each search that it is asked to time on standard input, and answers with one. Started with `one`
it keeps to one core, so that XLA makes one thread; with `all` it may use as many as it likes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

if sys.argv[2] == "one" and hasattr(os, "sched_setaffinity"):
    # must stand before jax is loaded
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import mctx
import numpy as np

Order = dict[str, Any]
Search = Callable[[], mctx.PolicyOutput]
POLICIES = {
    "puct": (mctx.muzero_policy, {"dirichlet_fraction": 0.0}),
    "gumbel": (mctx.gumbel_muzero_policy, {"gumbel_scale": 0.0}),
}


class World:
    """The finite world in JAX arrays, float32: a table look-up a step; after its end nothing more is won."""

    def __init__(self, file: dict[str, np.ndarray]) -> None:
        self.next = jnp.asarray(file["next_state"])
        self.ends = jnp.asarray(file["goal"])
        self.gamma = float(file["gamma"])
        self.value = jnp.asarray(file["value"], jnp.float32)
        self.logits = jnp.asarray(file["logits"], jnp.float32)
        names = ("hidden", "hidden_bias", "out", "out_bias")
        self.weights = tuple(jnp.asarray(file[name], jnp.float32) for name in names)

    def judge(self, states: jax.Array, leaf: str) -> tuple[jax.Array, jax.Array]:
        """Values `[B]` and prior logits `[B, A]`: zeros (`none`), from tables, or from the network."""
        if leaf == "tables":
            return self.value[states], self.logits[states]
        if leaf == "network":
            hidden, hidden_bias, out, out_bias = self.weights
            inside = jax.nn.relu(jax.nn.one_hot(states, len(self.ends)) @ hidden + hidden_bias)
            both = inside @ out + out_bias
            return both[:, 0], both[:, 1:]
        return jnp.zeros(states.shape), jnp.zeros((*states.shape, self.next.shape[1]))

    def step(self, leaf: str, action: jax.Array, state: jax.Array) -> tuple[mctx.RecurrentFnOutput, jax.Array]:
        over = self.ends[state]
        after = jnp.where(over, state, self.next[state, action])
        value, logits = self.judge(after, leaf)
        out = mctx.RecurrentFnOutput(
            reward=jnp.where(~over & self.ends[after], self.gamma, 0.0),
            discount=jnp.where(self.ends[after], 0.0, self.gamma),
            prior_logits=logits,
            value=value,
        )
        return out, after


def prepared(world: World, order: Order, roots: np.ndarray) -> Search:
    """The search, compiled."""
    policy, options = POLICIES[order["method"]]
    leaf = order["leaf"]

    def run(key: jax.Array, states: jax.Array) -> mctx.PolicyOutput:
        value, logits = world.judge(states, leaf)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=states)
        return policy(
            params=(), rng_key=key, root=root, num_simulations=order["simulations"],
            recurrent_fn=lambda _, __, action, state: world.step(leaf, action, state), **options,
        )  # fmt: skip

    key, states = jax.random.PRNGKey(0), jnp.asarray(np.resize(roots, order["batch"]))
    compiled = jax.jit(run).lower(key, states).compile()
    jax.block_until_ready(compiled(key, states))

    def search() -> mctx.PolicyOutput:
        return jax.block_until_ready(compiled(key, states))

    return search


def answer(search: Search, sample_s: float) -> dict[str, Any]:
    """Seconds a search, CPU time of the process and wall time; and what the search finds."""
    calls, wall, cpu = 0, time.perf_counter(), time.process_time()
    while not calls or time.perf_counter() - wall < sample_s:
        out = search()
        calls += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    weights = np.asarray(out.action_weights)
    return {"cpu": cpu / calls, "wall": wall / calls, "action": weights.argmax(1).tolist()}


def main() -> None:
    with np.load(sys.argv[1]) as file:
        arrays = {name: file[name] for name in file.files}
    world = World(arrays)
    ready: dict[str, Search] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if order["kind"] == "judge":
            value, logits = world.judge(jnp.arange(len(arrays["goal"])), order["leaf"])
            reply: dict[str, Any] = {"value": value.tolist(), "logits": logits.tolist()}
        else:
            name = json.dumps([order[k] for k in ("method", "batch", "simulations", "leaf")])
            if name not in ready:
                ready[name] = prepared(world, order, arrays["roots"])
            reply = answer(ready[name], order["sample_s"])
        print(json.dumps(reply), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
