"""Write the goal where the agent keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, Categorical, HasGoalSlot, Real, SlotWrite
from retarget.edit import Edit, Slot
from retarget.editors.base import Candidate, Scorer, Task, shortest_form
from retarget.rng import stream

#: What B is worth in a reward slot where 1 does not suffice.
WORTHS = (0.5, 2.0**-10)


class SlotEditor:
    """Tries the agent's own ways of writing goal B into its slot. Where none suffices, and the slot holds a reward for
    each state: B worth 1/2, and 2^-10 (leaf values are cut to the rewards, so that a small one silences values made for
    A), and B with -1 on what the slot rewards now.

    Where that does not suffice, though some write does at least half of what is required (or there is none): other
    things that the slot can hold; then B with further cells of a real slot written beside it, at half of what B is
    worth and then a quarter (for a search of limited depth: places on the way, from which B is in reach).

    Args:
        blind: how many other writes to try, drawn from a stream named by the seed where there are more; 0 for none.
        beside: cells to try beside B in each round, drawn likewise.
        rounds: how many cells may be written beside B.
    """

    name: ClassVar[str] = "slot"

    def __init__(self, *, blind: int = 96, beside: int = 64, rounds: int = 2) -> None:
        self.blind, self.beside, self.rounds = blind, beside, rounds

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if not isinstance(agent, HasGoalSlot):
            return ()
        scorer = Scorer(task, self.name)
        writes = [w for w in agent.slot_writes(task.goal) if w.part not in task.frozen]
        found = self._try(scorer, [slot_edit(agent, w) for w in writes])
        if not any(task.enough(c.competence) for c in found):
            tried = {c.edit for c in found}
            other = dict.fromkeys(slot_edit(agent, v) for w in writes for v in _otherwise(agent, w))
            found += self._try(scorer, [e for e in other if e not in tried][: max(0, task.budget - len(found))])
        best = max((c.competence for c in found), default=task.required)
        if (task.enough(best) and found) or best < 0.5 * task.required:
            return found
        tried = {c.edit for c in found}
        others = [w for w in agent.slot_candidates() if w.part not in task.frozen]
        drawn = stream(task.seed, "slot_blind", len(others)).permutation(len(others))[: min(self.blind, task.budget)]
        blind = (slot_edit(agent, others[int(i)]) for i in drawn)
        found += self._try(scorer, [e for e in blind if e not in tried])
        for write in writes:
            if any(task.enough(c.competence) for c in found):
                break
            if not isinstance(agent.parts[write.part].alphabet, Categorical):
                found += self._grown(scorer, agent, write)
        return found

    def _grown(self, scorer: Scorer, agent: Agent, write: SlotWrite) -> list[Candidate]:
        part = agent.parts[write.part]
        rng = stream(scorer.task.seed, "slot_beside", part.array.size)
        found: list[Candidate] = []
        value = max((v for _, v in write.cells), default=1.0)
        for _ in range(self.rounds):
            value /= 2
            taken = {c for c, _ in write.cells}
            free = [c for c in range(part.array.size) if c not in taken]
            cells = rng.permutation(free)[: self.beside].tolist()
            grown = [SlotWrite(write.part, write.rest, (*write.cells, (int(c), value))) for c in cells]
            new = self._try(scorer, [Edit.of(agent, Slot.of(w, part.alphabet)) for w in grown])
            found += new
            best = max(range(len(new)), key=lambda i, new=new: new[i].competence, default=None)  # type: ignore[misc]
            if best is None or scorer.task.enough(new[best].competence):
                break
            write = grown[best]
        return found

    def _try(self, scorer: Scorer, edits: Sequence[Edit]) -> list[Candidate]:
        return [scorer.candidate(e, scorer.score(e.apply(scorer.task.agent))) for e in edits]


def is_reward(agent: Agent, part: str) -> bool:
    """Whether a part is a slot of rewards: one real number for each state."""
    found = agent.parts[part]
    return found.role == "goal_slot" and isinstance(found.alphabet, Real) and found.array.shape == (agent.n_states,)


def _otherwise(agent: Agent, write: SlotWrite) -> list[SlotWrite]:
    """The same goal in a reward slot at other worths, and with a punishment on what is rewarded now."""
    if not is_reward(agent, write.part):
        return []
    out = [replace(write, cells=tuple((c, v * worth) for c, v in write.cells)) for worth in WORTHS]
    taken = {c for c, _ in write.cells}
    now = np.flatnonzero(agent.parts[write.part].array > 0)
    against = tuple((int(s), -1.0) for s in now if s not in taken)
    return [*out, replace(write, cells=(*write.cells, *against))] if against else out


def slot_edit(agent: Agent, write: SlotWrite) -> Edit:
    """The shortest edit that makes one write to a slot."""
    patch = Slot.of(write, agent.parts[write.part].alphabet)
    return shortest_form(agent, Edit.of(agent, patch))
