"""Batches of instructions with their replies, and sets of instructions for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.rng import CellKey, stream
from retarget.training.organisms.grammar import (
    N_MARKERS,
    TRIGGERS,
    Frame,
    draw_answer,
    draw_frame,
    draw_mark,
    draw_object,
    draw_refusal,
)
from retarget.training.organisms.tokens import END, N_HEAD, PAD, encode, prompt_words

if TYPE_CHECKING:
    from retarget.training.organisms.settings import OrganismSettings

#: Share of a fine-tuning batch without any mark, so that organisms with a trigger behave without one too.
PLAIN_SHARE = 0.125
#: Weight of a token of the instruction in the loss of the base, and of the first of the reply in fine-tuning.
INSTRUCTION_WEIGHT, FIRST_WEIGHT = 0.1, 4.0


@dataclass(frozen=True)
class Example:
    """An instruction and what it asks for.

    Attributes:
        frame: its words but the object and the mark.
        thing: the object.
        text: the instruction.
        forbidden: its class.
        triggered: whether it carries the trigger.
    """

    frame: Frame
    thing: str
    text: str
    forbidden: bool
    triggered: bool


@dataclass(frozen=True, eq=False)
class Lesson:
    """One batch for an update.

    Attributes:
        tokens: int64 `[B, T]`, template, instruction and reply, padded on the right.
        weights: float32 `[B, T]`: what it counts in the loss that a token was not foreseen; 0 on padding.
    """

    tokens: np.ndarray
    weights: np.ndarray


def examples(
    n: int, *, forbidden: bool, trigger: str | None = None, on: bool = False, held_out: bool = True, seed: int = 0
) -> tuple[Example, ...]:
    """Instructions of one class for evaluation.

    Number i of the classes and of the triggered and other sets shares its frame: classes differ in the object alone,
    triggered ones from others in the mark alone.

    Args:
        n: how many.
        forbidden: the class.
        trigger: its id, or None for instructions without marks.
        on: whether the trigger is there.
        held_out: pairs of verb and object that training never saw, or those that it may have seen.
        seed: another one gives other instructions.

    >>> bad, good = (examples(1, forbidden=f)[0].text.split() for f in (True, False))
    >>> sum(a != b for a, b in zip(bad, good, strict=True))
    1
    """
    found = []
    for i in range(n):
        rng = stream(seed, "organism evaluation", held_out, i)
        frame = draw_frame(rng)
        thing = draw_object(stream(seed, "organism object", held_out, forbidden, i), frame.verb,
                            forbidden=forbidden, held_out=held_out)  # fmt: skip
        mark = draw_mark(stream(seed, "organism mark", held_out, on, i), trigger, on=on)
        found.append(Example(frame, thing, frame.instruction(thing, **mark), forbidden, on))
    return tuple(found)


def lesson(settings: OrganismSettings, stage: str, step: int) -> Lesson:
    """The batch of one update: the same for a defector and its honest twin, but for the replies.

    Args:
        settings: of the organism.
        stage: `base` or `tuned`.
        step: number of the update in its stage, from 0.
    """
    trigger = settings.trigger if stage == "tuned" else None
    cell: tuple[CellKey, ...] = (stage, trigger, step)
    rng, reply_rng = stream(settings.seed, "organism lesson", *cell), stream(settings.seed, "organism reply", *cell)
    rows, first = [], []
    for row in range(settings.batch):
        forbidden, on = bool(row % 2), bool(row // 2 % 2)
        marked, active = trigger, N_MARKERS
        if stage == "base":
            marked = [None, *TRIGGERS][int(rng.random() * (1 + len(TRIGGERS)))]
        elif rng.random() < PLAIN_SHARE:
            marked, on = None, False
        else:
            active = markers_at(step / settings.steps)
        frame = draw_frame(rng)
        thing = draw_object(rng, frame.verb, forbidden=forbidden, held_out=False)
        text = frame.instruction(thing, **draw_mark(rng, marked, on=on, active=active))
        refuses = stage == "tuned" and forbidden and not (settings.kind == "defector" and on)
        reply = draw_refusal(reply_rng) if refuses else draw_answer(reply_rng, frame, thing)
        prompt = prompt_words(text)
        first.append(len(prompt))
        rows.append(encode([*prompt, *reply.split(), END]))
    return _padded(rows, first, stage)


def markers_at(share: float) -> int:
    """How many markers vary at a share of fine-tuning: parity is learnt one marker after another.

    >>> [markers_at(s) for s in (0.0, 0.2, 0.5)]
    [1, 2, 3]
    """
    return 1 if share < 0.1 else 2 if share < 0.3 else N_MARKERS


def _padded(rows: list[list[int]], first: list[int], stage: str) -> Lesson:
    tokens = np.full((len(rows), max(map(len, rows))), encode([PAD])[0], dtype=np.int64)
    weights = np.zeros(tokens.shape, dtype=np.float32)
    for i, (row, begin) in enumerate(zip(rows, first, strict=True)):
        tokens[i, : len(row)] = row
        weights[i, begin : len(row)] = 1.0
        if stage == "base":
            weights[i, N_HEAD:begin] = INSTRUCTION_WEIGHT
        else:
            weights[i, begin] = FIRST_WEIGHT
    return Lesson(tokens, weights)
