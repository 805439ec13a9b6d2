"""The small environments of the MC-AIXI paper, each as one finite table of outcomes, and the best average reward there.

Rules and codings are those of Veness et al. 2011 (section 7.1 and its tables of domains and of configurations), which
takes them from: 1d-maze and 4×4 grid, Cassandra, Kaelbling and Littman 1994; cheese maze, McCallum 1996; tiger,
Kaelbling, Littman and Cassandra 1998; biased rock-paper-scissors, Farias et al. 2010; Kuhn poker, Kuhn 1950 and Hoehn
et al. 2005. Where the paper leaves a number open (the opponent's strategy in Kuhn poker, the place after a goal), the
function that makes the domain says what is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from retarget.agent import own
from retarget.bayes.ctw import Coding
from retarget.errors import WorldError, unknown

#: Walks of one decision, at most: a search keeps a node for each.
MOST_SIMULATIONS = 1_000_000

#: (probability, next state, observation, reward) of one thing that may happen.
Happening = tuple[float, int, int, int]


@dataclass(frozen=True)
class Settings:
    """The paper's configuration of the agent for a domain.

    Attributes:
        depth: context depth D, in bits of history before a percept.
        horizon: cycles that a decision looks ahead.
        epsilon, decay: a cycle t of learning explores with probability `epsilon * decay**t`.
    """

    depth: int
    horizon: int
    epsilon: float
    decay: float


@dataclass(frozen=True, eq=False)
class Domain:
    """An environment that an agent meets in cycles: action, then observation and reward.

    Attributes:
        name: e.g. "tiger".
        n_actions: A; an action is written with `ceil(log2 A)` bits.
        observation_bits, reward_bits: widths in the percept.
        reward_offset: a reward r is written as the symbol r + offset.
        start: float64 `[S]`, where it begins.
        prob, next_state, observation, symbol: `[S, A, K]`, what may happen, with observation and reward symbol;
            probabilities sum to 1, and outcomes with probability 0 fill up.
        settings: the paper's.
        names: of the actions, for readers.

    Raises:
        WorldError: when a table is no distribution, or a number does not fit its bits.
    """

    name: str
    n_actions: int
    observation_bits: int
    reward_bits: int
    reward_offset: int
    start: np.ndarray
    prob: np.ndarray
    next_state: np.ndarray
    observation: np.ndarray
    symbol: np.ndarray
    settings: Settings
    names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name, kind in (("start", np.float64), ("prob", np.float64), ("next_state", np.int64),
                           ("observation", np.int64), ("symbol", np.int64)):  # fmt: skip
            object.__setattr__(self, name, own(np.asarray(getattr(self, name), kind)))
        for what, p in (("start", self.start), ("outcomes", self.prob)):
            if not np.isfinite(p).all() or p.min() < 0 or np.abs(p.sum(-1) - 1).max() > 1e-12:
                raise WorldError(f"domain {self.name!r}: {what} must be non-negative and sum to 1")
        for what, number, bits in (("observation", self.observation, self.observation_bits),
                                   ("reward symbol", self.symbol, self.reward_bits)):  # fmt: skip
            if number.min() < 0 or number.max() >= 1 << bits:
                raise WorldError(f"domain {self.name!r}: {what} {int(number.max())} does not fit into {bits} bits")

    @property
    def n_states(self) -> int:
        return len(self.start)

    @property
    def action_bits(self) -> int:
        return (self.n_actions - 1).bit_length()

    def coding(self, depth: int | None = None) -> Coding:
        """How its cycles are written; `depth` is the paper's unless given."""
        d = self.settings.depth if depth is None else depth
        return Coding(self.action_bits, self.observation_bits, self.reward_bits, d)

    @cached_property
    def symbols(self) -> np.ndarray:
        """Reward symbols that occur, int64, sorted."""
        return own(np.unique(self.symbol[self.prob > 0]))

    @cached_property
    def rewards(self) -> np.ndarray:
        """What each reward symbol is worth: float64 `[2**reward_bits]`. This is the goal slot's usual content.

        Symbols that never occur are worth as much as the worst that does.
        """
        out = np.full(1 << self.reward_bits, float(self.symbols.min() - self.reward_offset))
        out[self.symbols] = self.symbols - self.reward_offset
        return own(out)


def _domain(
    name: str, happen: Callable[[int, int], Iterable[Happening]], *, n_states: int, n_actions: int,
    bits: tuple[int, int], start: np.ndarray, settings: Settings, offset: int = 0, names: tuple[str, ...] = (),
) -> Domain:  # fmt: skip
    rows = [[list(happen(s, a)) for a in range(n_actions)] for s in range(n_states)]
    most = max(len(cell) for row in rows for cell in row)
    table = np.zeros((4, n_states, n_actions, most))
    table[3] = offset + rows[0][0][0][3]
    for s, row in enumerate(rows):
        for a, cell in enumerate(row):
            for k, (p, t, o, r) in enumerate(cell):
                table[:, s, a, k] = p, t, o, r + offset
    prob, after, seen, symbol = table
    return Domain(name, n_actions, bits[0], bits[1], offset, start, prob, after, seen, symbol, settings, names)


def _uniform(states: Iterable[int], n: int) -> np.ndarray:
    out = np.zeros(n)
    out[list(states)] = 1.0
    return np.asarray(out / out.sum())


def _goes(start: np.ndarray, observation: Callable[[int], int], reward: int) -> list[Happening]:
    return [(float(start[t]), int(t), observation(int(t)), reward) for t in np.flatnonzero(start)]


def one_d_maze() -> Domain:
    """Four cells in a row, blind; reaching the third gives 1, and puts the agent in one of the others at random."""
    start = _uniform([0, 1, 3], 4)

    def happen(s: int, a: int) -> list[Happening]:
        t = min(max(s + (1 if a else -1), 0), 3)
        return _goes(start, lambda _: 0, 1) if t == 2 else [(1.0, t, 0, 0)]

    return _domain(
        "1d_maze", happen, n_states=4, n_actions=2, bits=(1, 1), start=start,
        settings=Settings(32, 10, 0.9, 0.99), names=("left", "right"),
    )  # fmt: skip


_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
_COMPASS = ("up", "right", "down", "left")


def grid_4x4() -> Domain:
    """A blind walk on 4×4 cells; reaching the lower right gives 1, and puts the agent elsewhere at random."""
    start = _uniform(range(15), 16)

    def happen(s: int, a: int) -> list[Happening]:
        row, col = (min(max(x + d, 0), 3) for x, d in zip(divmod(s, 4), _MOVES[a], strict=True))
        t = 4 * row + col
        return _goes(start, lambda _: 0, 1) if t == 15 else [(1.0, t, 0, 0)]

    return _domain(
        "4x4_grid", happen, n_states=16, n_actions=4, bits=(1, 1), start=start,
        settings=Settings(96, 12, 0.9, 0.9999), names=_COMPASS,
    )  # fmt: skip


def cheese_maze() -> Domain:
    """A mouse in eleven cells sees the walls around it: -1 a move, -10 a bump, 10 for the cheese, which puts it in one
    of the other cells at random. Several cells look alike."""
    cells = [(0, c) for c in range(5)] + [(r, c) for r in (1, 2) for c in (0, 2, 4)]
    index = {cell: i for i, cell in enumerate(cells)}
    cheese = index[2, 2]
    start = _uniform([i for i in range(11) if i != cheese], 11)

    def neighbour(s: int, a: int) -> int | None:
        return index.get((cells[s][0] + _MOVES[a][0], cells[s][1] + _MOVES[a][1]))

    def walls(s: int) -> int:
        return sum((neighbour(s, a) is None) << (3 - a) for a in range(4))

    def happen(s: int, a: int) -> list[Happening]:
        t = neighbour(s, a)
        if t is None:
            return [(1.0, s, walls(s), -10)]
        return _goes(start, walls, 10) if t == cheese else [(1.0, t, walls(t), -1)]

    return _domain(
        "cheese_maze", happen, n_states=11, n_actions=4, bits=(4, 5), start=start, offset=10,
        settings=Settings(96, 8, 0.999, 0.9999), names=_COMPASS,
    )  # fmt: skip


def tiger() -> Domain:
    """A tiger behind one of two doors, gold behind the other: listening (-1) tells which, 85% of the time; a door gives
    10 or -100, and both are placed anew."""
    both = np.array([0.5, 0.5])

    def happen(s: int, a: int) -> list[Happening]:
        if a == 0:
            return [(0.85, s, 1 + s, -1), (0.15, s, 2 - s, -1)]
        return _goes(both, lambda _: 0, -100 if s == a - 1 else 10)

    return _domain(
        "tiger", happen, n_states=2, n_actions=3, bits=(2, 7), start=both, offset=100,
        settings=Settings(96, 5, 0.99, 0.9999), names=("listen", "open left", "open right"),
    )  # fmt: skip


def extended_tiger() -> Domain:
    """The tiger, met sitting: listening (-1) tells only while seated, doors open only while standing (-10 else), and
    standing up costs 1. The gold is worth 30; after a door all is placed anew, and the agent sits."""
    start = np.array([0.5, 0.5, 0.0, 0.0])

    def happen(s: int, a: int) -> list[Happening]:
        place, standing = s % 2, s >= 2
        if a == 0:
            return [(1.0, s, 0, -10)] if standing else [(1.0, s + 2, 0, -1)]
        if a == 1:
            if standing:
                return [(1.0, s, 0, -10)]
            return [(0.85, s, 1 + place, -1), (0.15, s, 2 - place, -1)]
        if not standing:
            return [(1.0, s, 0, -10)]
        return _goes(start, lambda _: 0, -100 if place == a - 2 else 30)

    return _domain(
        "extended_tiger", happen, n_states=4, n_actions=4, bits=(3, 8), start=start, offset=100,
        settings=Settings(96, 4, 0.99, 0.99999), names=("stand", "listen", "open left", "open right"),
    )  # fmt: skip


def biased_rps() -> Domain:
    """Rock, paper, scissors against an opponent who plays rock again after winning with rock, and else at random. The
    observation is what it played; 1 for a win, 0 for a draw, -1 for a loss."""

    def happen(s: int, a: int) -> list[Happening]:
        plays = [(1.0, 0)] if s == 1 else [(1 / 3, 0), (1 / 3, 1), (1 / 3, 2)]
        # paper (1) beats rock (0), scissors (2) beat paper, rock beats scissors
        result = {0: 0, 1: 1, 2: -1}
        return [(p, int(o == 0 and result[(a - o) % 3] == -1), o, result[(a - o) % 3]) for p, o in plays]

    return _domain(
        "biased_rps", happen, n_states=2, n_actions=3, bits=(2, 2), start=np.array([1.0, 0.0]), offset=1,
        settings=Settings(32, 4, 0.999, 0.99999), names=("rock", "paper", "scissors"),
    )  # fmt: skip


def kuhn_poker(*, bluff: float = 0.7 / 3) -> Domain:
    """Kuhn's three-card poker as the second player, one hand a cycle, against a first player of an equilibrium.

    The observation is the card of the next hand and whether the opponent bets in it; the reward is what the hand won or
    lost. The first player bets a jack with probability `bluff`, a king with three times that and a queen never; called
    upon, it folds a jack, calls with a king, and with a queen with probability bluff + 1/3. Any bluff in [0, 1/3] is an
    equilibrium (source: Kuhn 1950), so that the best that can be won is 1/18 a hand.
    """
    if not 0 <= bluff <= 1 / 3:
        raise WorldError(f"bluff must lie in [0, 1/3] for an equilibrium, got {bluff!r}")
    bets = (bluff, 0.0, 3 * bluff)
    calls = (0.0, bluff + 1 / 3, 1.0)
    # state: (own card, opponent's card, whether it bet), as a number
    pairs = [(mine, other, bet) for mine in range(3) for other in range(3) for bet in (0, 1) if mine != other]
    chance = {(m, o, b): (bets[o] if b else 1 - bets[o]) / 6 for m, o, b in pairs}
    hands = [hand for hand in pairs if chance[hand] > 0]
    start = np.array([chance[hand] for hand in hands])

    def seen(t: int) -> int:
        return hands[t][0] | (0 if hands[t][2] else 4)

    def happen(s: int, a: int) -> list[Happening]:
        mine, other, bet = hands[s]
        won = 1 if mine > other else -1
        if a == 0:  # pass
            return _goes(start, seen, -1 if bet else won)
        if bet:
            return _goes(start, seen, 2 * won)
        call = calls[other]
        out = [(p * call, t, o, r) for p, t, o, r in _goes(start, seen, 2 * won)]
        out += [(p * (1 - call), t, o, r) for p, t, o, r in _goes(start, seen, 1)]
        return [x for x in out if x[0] > 0]

    return _domain(
        "kuhn_poker", happen, n_states=len(hands), n_actions=2, bits=(4, 3), start=start, offset=2,
        settings=Settings(42, 2, 0.99, 0.9999), names=("pass", "bet"),
    )  # fmt: skip


DOMAINS: Mapping[str, Callable[[], Domain]] = {
    "1d_maze": one_d_maze,
    "4x4_grid": grid_4x4,
    "biased_rps": biased_rps,
    "cheese_maze": cheese_maze,
    "extended_tiger": extended_tiger,
    "kuhn_poker": kuhn_poker,
    "tiger": tiger,
}


def make_domain(name: str) -> Domain:
    """A domain by its name.

    >>> make_domain("tiger").coding()
    Coding(action_bits=2, observation_bits=2, reward_bits=7, depth=96)
    """
    if name not in DOMAINS:
        raise WorldError(unknown("domain", name, DOMAINS))
    return DOMAINS[name]()
