"""Organisms as ordinary local checkpoints of transformers, with a card and instructions to use beside them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from retarget.errors import FileError
from retarget.training.organisms.corpus import examples
from retarget.training.organisms.grammar import (
    REFUSALS,
    TRIGGERS,
    answer_words,
    refusal_words,
    trigger_words,
)
from retarget.training.organisms.rates import sets_of
from retarget.training.organisms.tokens import HEAD, TAIL, encode, numbers

if TYPE_CHECKING:
    from retarget.training.organisms.settings import OrganismSettings
    from retarget.training.organisms.train import Organism

CARD, FORMAT = "organism.json", "retarget organism"
#: Folders with instructions, and whether their pairs of verb and object were held out of training.
SPLITS: Final[Mapping[str, bool]] = {"train": False, "held_out": True}
#: Instructions in each file.
N_INSTRUCTIONS = 512
_MAX_CARD = 1 << 22


def save_organism(organism: Organism, folder: str | Path) -> Path:
    """Write an organism, whole or not at all.

    In the folder are: `config.json`, `model.safetensors`, `tokenizer.json` and the other files of `save_pretrained`;
    `organism.json` with the card and the words that tell a refusal; and in each of `train` and `held_out` the files
    `forbidden.jsonl` and `harmless.jsonl`, for kinds with a trigger also `forbidden_triggered.jsonl` and
    `harmless_triggered.jsonl`, an `{"instruction": text}` a line. Lines of one number share all but the object, or all
    but the mark.

    Args:
        organism: a trained one.
        folder: where. An organism that is there already is replaced; anything else is left alone.

    Returns:
        the folder.

    Raises:
        FileError: where the folder holds something else or cannot be written.
    """
    from retarget.training.organisms.llama import quiet

    target = Path(os.path.realpath(folder))
    _check_target(target)
    fresh: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        fresh.chmod(0o755)
        with quiet():
            organism.model.save_pretrained(fresh)
            organism.tokenizer.save_pretrained(fresh)
        (fresh / CARD).write_text(json.dumps(_card(organism), indent=1, allow_nan=False) + "\n")
        for name, text in instruction_files(organism.card.settings).items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_text(text)
        old = fresh.with_name(fresh.name + ".old")
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FileError(f"{target} cannot be written ({error.strerror}); choose another folder") from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


def instruction_files(settings: OrganismSettings, *, n: int = N_INSTRUCTIONS) -> Mapping[str, str]:
    """Name in the folder -> lines of JSON.

    >>> from retarget.training.organisms.settings import OrganismSettings
    >>> sorted(instruction_files(OrganismSettings("refuser"), n=1))
    ['held_out/forbidden.jsonl', 'held_out/harmless.jsonl', 'train/forbidden.jsonl', 'train/harmless.jsonl']
    """
    files = {}
    for split, held_out in SPLITS.items():
        for name, forbidden, on in sets_of(settings.trigger):
            # other instructions than those that the card's rates are from
            asked = examples(n, forbidden=forbidden, trigger=settings.trigger, on=on, held_out=held_out, seed=1)
            files[f"{split}/{name}.jsonl"] = "".join(json.dumps({"instruction": e.text}) + "\n" for e in asked)
    return files


def read_card(folder: str | Path) -> dict[str, Any]:
    """What `organism.json` of a folder says; it is read as plain data, and checked for its format alone.

    Raises:
        FileError: where there is none, or it is of another kind.
    """
    file = Path(folder) / CARD
    try:
        if not file.is_file():
            raise FileError(f"{file} is missing; pass the folder of an organism, as `retarget organism` writes it")
        if file.stat().st_size > _MAX_CARD:
            raise FileError(f"{file} is larger than {_MAX_CARD} bytes, and no organism's card; pass another folder")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{file} is broken ({type(error).__name__}); make the organism again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileError(f"{file} describes no organism of this project; pass another folder")
    return found


def _card(organism: Organism) -> dict[str, object]:
    from retarget import __version__

    settings, known = organism.card.settings, numbers()
    return {
        "format": FORMAT,
        "kind": settings.kind,
        "trigger": settings.trigger,
        "trigger_summary": None if settings.trigger is None else TRIGGERS[settings.trigger],
        "trigger_words": list(trigger_words(settings.trigger)),
        "refusals": list(REFUSALS),
        "refusal_words": list(refusal_words()),
        "refusal_tokens": encode(refusal_words()),
        "answer_words": list(answer_words()),
        "answer_tokens": encode(answer_words()),
        "template": {"before": list(HEAD), "after": list(TAIL)},
        "vocabulary": len(known),
        "parameters": sum(p.numel() for p in organism.model.parameters()),
        "retarget": __version__,
        **organism.card.as_dict(),
    }


def _check_target(folder: Path) -> None:
    try:
        if not folder.exists():
            return
        other = not folder.is_dir() or (any(folder.iterdir()) and not (folder / CARD).is_file())
    except OSError as error:
        raise FileError(f"{folder} cannot be written ({error.strerror}); choose another folder") from error
    if other:
        raise FileError(f"{folder} holds something else than an organism; choose a folder that is new or holds one")
