"""Write the goal where the agent keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from retarget.agent import Agent, HasGoalSlot, SlotWrite
from retarget.edit import Edit, Slot
from retarget.editors.base import Candidate, Scorer, Task, shortest_form


class SlotEditor:
    """Tries the agent's own ways of writing goal B into its slot; where none suffices, everything the slot can hold.

    Args:
        blind: whether to go on with what the slot can hold, when writing B was not enough.
        blind_limit: most blind writes to try.
    """

    name: ClassVar[str] = "slot"

    def __init__(self, *, blind: bool = True, blind_limit: int = 64) -> None:
        self.blind, self.blind_limit = blind, blind_limit

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if not isinstance(agent, HasGoalSlot):
            return ()
        scorer = Scorer(task, self.name)
        found = self._try(scorer, [slot_edit(agent, w) for w in agent.slot_writes(task.goal)])
        if self.blind and not any(task.enough(c.competence) for c in found):
            tried = {c.edit for c in found}
            writes = agent.slot_candidates()[: min(self.blind_limit, task.budget)]
            found += self._try(scorer, [e for e in (slot_edit(agent, w) for w in writes) if e not in tried])
        return found

    def _try(self, scorer: Scorer, edits: Sequence[Edit]) -> list[Candidate]:
        return [scorer.candidate(e, scorer.score(e.apply(scorer.task.agent))) for e in edits]


def slot_edit(agent: Agent, write: SlotWrite) -> Edit:
    """The shortest edit that makes one write to a slot."""
    patch = Slot.of(write, agent.parts[write.part].alphabet)
    return shortest_form(agent, Edit.of(agent, patch))
