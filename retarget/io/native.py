"""Native checkpoints: a folder with `agent.json` (what the agent is) and `arrays.safetensors` (its numbers).

Nothing in them can run code. Reading checks sizes before memory is taken, every name, type and shape against what the
agent's kind asks for, and a hash over everything. The hash finds damage; it is no signature: whoever can write the
file can write the hash too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import numpy as np
from pydantic import Field, ValidationError

from retarget.digest import canonical_json
from retarget.errors import FileError, RetargetError
from retarget.io.architectures import Strict
from retarget.io.limits import (
    MAX_JSON,
    MAX_TENSORS,
    fail,
    open_bounded,
    read_header,
    read_json,
    read_tensor,
    short,
    tensor_bytes,
)

if TYPE_CHECKING:
    from retarget.agent import Agent

#: Names of the two files, and the version of what is in them.
CARD, ARRAYS, VERSION = "agent.json", "arrays.safetensors", 1
FORMAT = "retarget agent"
_SAVE = "save the agent again with retarget.io.native.save_agent"

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]+$", max_length=64)]


class Card(Strict):
    """`agent.json`.

    Attributes:
        format, version: what kind of file it is.
        type: which class of agent (see `retarget.io.records`).
        body: what it is made from beside its arrays, as the type asks for.
        digest: of the agent.
        arrays: SHA-256 of `arrays.safetensors`.
        versions: of retarget, numpy, torch and Python when it was saved.
        extra: whatever the saver wanted kept.
        seal: SHA-256 of all of the above.
    """

    format: Literal["retarget agent"]
    version: Literal[1]
    type: Annotated[str, Field(max_length=64)]
    body: dict[str, Any]
    digest: Hex
    arrays: Hex
    versions: dict[str, str]
    extra: dict[str, Any] | None = None
    seal: Hex


def save_agent(agent: Agent, path: str | Path, *, extra: Mapping[str, object] | None = None) -> Path:
    """Write an agent to a folder, whole or not at all.

    Args:
        agent: a network, a table, a planner or a controller.
        path: the folder. A checkpoint that is there already is replaced; anything else is left alone.
        extra: further facts to keep, JSON-able; `read_card(path).extra` has them.

    Returns:
        the folder.

    Raises:
        FileError: where the agent is of another kind, or the folder cannot be written.

    >>> import tempfile
    >>> from retarget.agents.tabular import TablePolicy
    >>> agent = TablePolicy.from_actions([0, 1, 1], n_actions=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_agent(save_agent(agent, Path(folder) / "table")).digest == agent.digest
    True
    """
    from retarget.io.records import record_of

    folder = Path(os.path.realpath(path))
    _check_target(folder)
    name, body, arrays = record_of(agent, folder)
    data = tensor_bytes(arrays)
    facts: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "type": name,
        "body": body,
        "digest": agent.digest,
        "arrays": hashlib.sha256(data).hexdigest(),
        "versions": _versions(),
        "extra": None if extra is None else dict(extra),
    }
    try:
        text = canonical_json({**facts, "seal": _seal(facts)}).encode()
    except (TypeError, ValueError, RecursionError) as error:
        fail(folder, f"extra facts cannot be written as JSON ({short(error)}); keep numbers, text, lists and tables")
    if len(text) > MAX_JSON or len(data) > MAX_TENSORS:
        fail(folder, f"the agent takes {len(text)} bytes of JSON and {len(data)} of arrays, more than can be read back")
    _write(folder, {CARD: text, ARRAYS: data})
    return folder


def load_agent(path: str | Path) -> Agent:
    """Read an agent back from its folder.

    Raises:
        FileError: in one line: the file, what is wrong with it, and what to do.
    """
    from retarget.io.records import check_record, rebuild

    card = read_card(path)
    file = Path(path) / ARRAYS
    handle, size = open_bounded(file, MAX_TENSORS, remedy=_SAVE)
    with handle:
        entries, data = read_header(file, handle, size)
        record = check_record(card.type, card.body, entries, Path(path) / CARD)
        _check_hash(file, handle, card.arrays)
        arrays = {name: read_tensor(file, handle, entry, data) for name, entry in entries.items()}
    try:
        agent = rebuild(record, arrays)
        digest = agent.digest
    except (RetargetError, ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        text = str(error) if isinstance(error, RetargetError) else short(error)
        fail(file, f"holds no {card.type} that can be used: {text}")
    if digest != card.digest:
        fail(file, f"holds agent {digest[:12]}, not {card.digest[:12]}: it was changed since it was saved; {_SAVE}")
    return agent


def read_card(path: str | Path) -> Card:
    """What an agent's folder says about it, without its arrays.

    Raises:
        FileError: where it is missing, broken, of another version, or was changed since it was saved.
    """
    folder = Path(path)
    try:
        if folder.exists() and not folder.is_dir():
            fail(folder, f"is no folder with {CARD} and {ARRAYS}; pass the folder of a saved agent")
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        fail(folder, f"cannot be opened ({short(error)}); check the path")
    file = folder / CARD
    handle, _ = open_bounded(file, MAX_JSON, remedy="pass the folder of a saved agent")
    with handle:
        facts = read_json(file, handle.read(MAX_JSON + 1))
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        fail(file, f"describes no agent of this project; {_SAVE}")
    if type(facts.get("version")) is not int or facts["version"] != VERSION:
        found = str(facts.get("version"))[:20]
        fail(file, f"has version {found} of the format, this retarget reads {VERSION}; use the retarget that wrote it")
    try:
        card = Card.model_validate(facts)
        seal = _seal({k: v for k, v in facts.items() if k != "seal"})
    except ValidationError as error:
        fail(file, f"{first_error(error)}; {_SAVE}")
    except (ValueError, TypeError, RecursionError) as error:
        fail(file, f"cannot be read ({short(error)}); {_SAVE}")
    if seal != card.seal:
        fail(file, f"was changed since it was saved; {_SAVE}")
    return card


def first_error(error: ValidationError) -> str:
    """Where the first thing is wrong, and what.

    >>> try:
    ...     Card.model_validate({})
    ... except ValidationError as broken:
    ...     first_error(broken)
    "'format' is wrong: field required"
    """
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part)[:40] for part in first["loc"]) or "it"
    return f"{where!r} is wrong: {first['msg'][:1].lower()}{first['msg'][1:160]}"


def _seal(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    from retarget import __version__

    return {
        "retarget": __version__,
        "numpy": np.__version__,
        "torch": metadata.version("torch"),
        "python": platform.python_version(),
    }


def _check_hash(file: Path, handle: BinaryIO, expected: str) -> None:
    """Hash the file piece by piece: what was changed is refused before anything is built from it."""
    handle.seek(0)
    h = hashlib.sha256()
    while piece := handle.read(1 << 20):
        h.update(piece)
    if h.hexdigest() != expected:
        fail(file, f"was changed since it was saved; {_SAVE}")


def _check_target(folder: Path) -> None:
    try:
        if not folder.exists():
            return
        other = not folder.is_dir() or {p.name for p in folder.iterdir()} - {CARD, ARRAYS}
    except OSError as error:
        fail(folder, f"cannot be written ({error.strerror}); choose another folder")
    if other:
        fail(folder, "holds something else than a saved agent; choose a folder that is new or holds one")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files beside the folder, then put them in its place: one whole checkpoint is on the disk at any moment."""
    fresh: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        fresh.chmod(0o755)
        for name, data in files.items():
            with (fresh / name).open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
        old = fresh.with_name(fresh.name + ".old")
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        fail(folder, f"cannot be written ({error.strerror}); choose another folder")
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)


__all__ = ["ARRAYS", "CARD", "Card", "load_agent", "read_card", "save_agent"]
