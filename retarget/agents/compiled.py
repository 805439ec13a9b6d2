"""The table compiled from an agent: the same behaviour in every state, another implementation."""

from __future__ import annotations

from retarget.agent import Agent
from retarget.agents.tabular import TablePolicy
from retarget.exact import policy_table
from retarget.world import FiniteWorld


def compile_policy(agent: Agent, world: FiniteWorld) -> TablePolicy:
    """The policy table that acts as the agent does in every state of a finite world.

    A table compiled from a policy table is that table: same digest.

    Raises:
        AgentError: when the agent has memory, or does not fit the world.

    >>> from retarget.agents.tabular import QTable
    >>> import retarget
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> q = QTable.from_values([[0, 1, 0, 0]] * world.model.n_states)
    >>> compile_policy(q, world).parts["policy"].array.tolist() == [1] * world.model.n_states
    True
    """
    probs = policy_table(agent, world.model)
    if isinstance(agent, TablePolicy):
        return agent
    return TablePolicy.from_probabilities(probs, starts=agent.seen_starts)
