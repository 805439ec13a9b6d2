"""MC-AIXI in its paper's domains: what is reached, after how many cycles, in how long; `python -m benchmarks.aixi`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.timing import Effort, Line, Race, agree
from retarget.bayes import RECIPES, CompiledModel, Curve, ReferenceModel, learn, make_domain
from retarget.rng import stream

TOPIC = "aixi"


def curves(names: Sequence[str] = tuple(RECIPES), *, seeds: Sequence[int] = (0,)) -> list[dict[str, object]]:
    """One row for each domain and seed: what `Curve.as_dict` says, the seed, and the curve itself."""
    rows = []
    for name in names:
        for seed in seeds:
            curve: Curve = learn(make_domain(name), seed=seed, **RECIPES[name])
            history = {"ends": curve.cycles.tolist(), "rewards": curve.average.tolist()}
            rows.append({**curve.as_dict(), "seed": seed, **history})
    return rows


def _percepts(cycles: int) -> tuple[list[int], list[int]]:
    rng = stream(0, "benchmark_aixi")
    actions = rng.integers(3, size=cycles)
    # what comes mostly follows from the action, as in the domains
    return actions.tolist(), np.where(rng.random(cycles) < 0.8, 3 * actions + 1, rng.integers(16, size=cycles)).tolist()


def lines(effort: Effort, *, cycles: int = 60) -> list[Line]:
    """Percepts learned from a second: the compiled model against the plain one, which must agree on every number."""
    coding = make_domain("biased_rps").coding()
    actions, percepts = _percepts(cycles)

    def live(kind: type[CompiledModel] | type[ReferenceModel]) -> float:
        model = kind(coding)
        for action, percept in zip(actions, percepts, strict=True):
            model.act(action)
            model.perceive(percept)
        return float(model.log_block)

    fast, plain = live(CompiledModel), live(ReferenceModel)
    agree("block probability", abs(fast - plain) < 1e-8 * abs(plain))
    race = Race({"compiled": lambda: live(CompiledModel), "plain": lambda: live(ReferenceModel)}, effort)
    units = {"compiled": float(cycles), "plain": float(cycles)}
    return [race.line("compiled", "plain", topic=TOPIC, unit="percepts", units=units)]


def decision_ms(name: str = "biased_rps", *, simulations: int = 500, decisions: int = 50) -> float:
    """Milliseconds of one decision with the paper's depth and horizon, after 1,000 random cycles."""
    learned = learn(
        make_domain(name), cycles=1000, simulations=simulations, seed=0, evaluation=1, epsilon=1.0, decay=1.0
    ).learned
    learned.decision()
    begin = time.perf_counter()
    for seed in range(decisions):
        learned.decision(seed=seed)
    return 1e3 * (time.perf_counter() - begin) / decisions


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON line for each domain and seed."""
    parser = argparse.ArgumentParser(description="learning curves of MC-AIXI")
    parser.add_argument("names", nargs="*", help=f"domains; by default {', '.join(RECIPES)}")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0")
    args = parser.parse_args(argv)
    for name in args.names or RECIPES:
        for seed in range(args.seeds):
            print(json.dumps(curves([name], seeds=[seed])[0]), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
