"""One door for trained policies: tables, saved agents, Stable-Baselines3 zips, safetensors, state dicts.

What a file is shows in its first bytes, not in its name. Nothing is unpickled, no code of a file is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from retarget.agents.wrapped import wrap
from retarget.errors import FileError, unknown
from retarget.io.archive import MAX_MEMBERS, fail, opened
from retarget.io.state_dict import MAX_BYTES, MAX_TENSORS, TORCHSCRIPT

if TYPE_CHECKING:
    from retarget.agent import Agent
    from retarget.agents.neural import Decision
    from retarget.io.archive import Archive
    from retarget.io.network import Recipe
    from retarget.io.normalise import Normalisation
    from retarget.world import World

__all__ = ["load", "save", "wrap"]

_WEIGHTS = "save its weights: torch.save(model.state_dict(), 'policy.pth'), or safetensors with a description"
#: What a file is, by its first bytes, and what to do about it.
_REFUSED_BYTES = (
    (b"\x89HDF\r\n", f"is an HDF5 file (Keras, perhaps); {_WEIGHTS}"),
    (b"\x1f\x8b", "is packed with gzip; unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (b"BZh", "is packed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "is packed with xz; unpack it first"),
)
_REFUSED_SUFFIX = {
    ".onnx": f"is an ONNX graph; {_WEIGHTS}",
    ".msgpack": "is JAX msgpack; save its arrays as safetensors with a description",
    ".pkl": "is a pickle, which can run code when it is read; save the weights as safetensors with a description",
    ".pickle": "is a pickle, which can run code when it is read; save the weights as safetensors with a description",
    ".joblib": "is a pickle, which can run code when it is read; save the weights as safetensors with a description",
    ".h5": f"is an HDF5 file (Keras, perhaps); {_WEIGHTS}",
    ".tar": "is a tar archive; unpack it first",
}
_TABLES = (".npy", ".npz", ".csv", ".parquet")
Kind = Literal["auto", "policy", "q"]


def load(
    path: str | Path,
    *,
    world: World | str | None = None,
    normalise: str | Path | Normalisation | None = None,
    decision: Decision = "greedy",
    kind: Kind = "auto",
    activation: str | None = None,
) -> Agent:
    """Read a trained policy.

    Args:
        path: a table (see `retarget.io.tables`), a folder that `save_agent` wrote, a Stable-Baselines3 zip, a
            `.safetensors` file with its description beside it, or the state dict of a Stable-Baselines3 policy. What is
            inside decides, not the name; tables go by their suffix.
        world: what it is for. Needed by tables, and wherever the file does not say the range of continuous actions;
            elsewhere the policy is checked against it.
        normalise: statistics of the observations that it was trained on, or the path of a file of them: see
            `retarget.io.normalise`. For Stable-Baselines3 zips and state dicts.
        decision: take the best action, or `sample` from a network of logits.
        kind: of a table, `policy` or `q`.
        activation: between the layers of a Stable-Baselines3 policy, where the file does not say: `relu`, `tanh`,
            `gelu` or `silu`.

    Returns:
        The agent; one of a foreign network says in `notes` what could not be known.

    Raises:
        FileError: in one line: the file, the value in it, and what to do.

    >>> load("no/such/policy.zip")
    Traceback (most recent call last):
    retarget.errors.FileError: 'no/such/policy.zip': there is no such file; check the path
    """
    if decision not in ("greedy", "sample"):
        raise FileError(unknown("decision", decision, ("greedy", "sample")))
    if kind not in get_args(Kind):
        raise FileError(unknown("kind of table", kind, get_args(Kind)))
    file = Path(path)
    what = _what(file)
    place = _named(world)
    if what in ("folder", "table") and normalise is not None:
        raise FileError(f"{str(path)!r}: takes no statistics of observations; leave normalise out")
    if what != "table" and kind != "auto":
        raise FileError(f"{str(path)!r}: is no table, so that it cannot be read as {kind!r}; leave that out")
    if what == "folder":
        return _fitting(_native(file), place, path)
    if what == "table":
        return _table(file, place, kind)
    from retarget.io.network import agent_of
    from retarget.io.normalise import load_normalisation

    if isinstance(normalise, (str, Path)):
        normalise = load_normalisation(normalise)
    if what == "safetensors":
        from retarget.io.described import load_described

        return load_described(file, world=place, normalise=normalise, decision=decision)
    if activation is not None:
        from retarget.agents.networks import ACTIVATIONS

        if activation not in ACTIVATIONS:
            raise FileError(unknown("activation", activation, ACTIVATIONS))
    recipe = _zipped(file, activation)
    return agent_of(recipe, world=place, normalise=normalise, decision=decision)


def _named(world: World | str | None) -> World | None:
    """A world given by its name."""
    if not isinstance(world, str):
        return world
    from retarget.envs import make_world

    made: World = make_world(world)
    return made


def _fitting(agent: Agent, world: World | None, path: str | Path) -> Agent:
    """The agent, if it can be in the world.

    Raises:
        FileError: where it was made for one of another kind or size.
    """
    from retarget.world import FiniteWorld

    if world is None:
        return agent
    states = world.model.n_states if isinstance(world, FiniteWorld) else None
    if agent.n_states is not None and agent.n_states != states:
        there = f"{states} states" if states is not None else "continuous states"
        raise FileError(
            f"{str(path)!r}: was made for a world of {agent.n_states} states, {world.spec_data.label} has {there}; "
            "name the world and size that it was trained in"
        )
    return agent


def save(agent: Agent, path: str | Path) -> Path:
    """Write an agent as a folder of `agent.json` and `arrays.safetensors`, which `load` reads back: the same digest.

    A network from somebody else's file is written as the network that it is, without where it came from.

    Raises:
        FileError: for a kind of agent that cannot be written (a wrapped module or function, say), or where the folder
            cannot be.
    """
    from retarget.agents.wrapped import ForeignNetwork
    from retarget.io.native import save_agent

    return save_agent(agent.plain if isinstance(agent, ForeignNetwork) else agent, path)


def _what(file: Path) -> str:
    """What kind of file it is: `folder`, `table`, `safetensors` or `zip`."""
    try:
        if file.is_dir():
            return "folder"
        if not file.exists():
            fail(file, "there is no such file; check the path")
        if not file.is_file():
            fail(file, "is no regular file; pass the path of a policy")
        with file.open("rb") as handle:
            head = handle.read(16)
    except FileError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        fail(file, f"cannot be opened ({reason}); check the path and its permissions")
    suffix = file.suffix.lower()
    if not head:
        fail(file, "is empty; save the policy again")
    if suffix in _TABLES or head.startswith((b"\x93NUMPY", b"PAR1")):
        return "table"
    if head.startswith(b"PK"):
        return "zip"
    for magic, message in _REFUSED_BYTES:
        if head.startswith(magic):
            fail(file, message)
    if suffix in _REFUSED_SUFFIX:
        fail(file, _REFUSED_SUFFIX[suffix])
    if suffix == ".safetensors" or head[8:9] == b"{":
        return "safetensors"
    message = "is none of: a table, a saved agent's folder, a Stable-Baselines3 zip, safetensors, a state dict"
    if head[:1] == b"\x80":
        message = (
            "is a bare pickle, which can run code when it is read; save the weights alone, with PyTorch 1.6 or later: "
            "torch.save(model.state_dict(), 'policy.pth')"
        )
    return fail(file, message)


def _native(folder: Path) -> Agent:
    if not (folder / "agent.json").is_file():
        fail(folder, "is a folder without agent.json; pass the policy's own file, or a folder that save_agent wrote")
    from retarget.io.native import load_agent

    return load_agent(folder)


def _table(file: Path, world: World | None, kind: Kind) -> Agent:
    from retarget.io.tables import load_table
    from retarget.world import FiniteWorld

    if world is None:
        fail(file, "is a table, which does not say what its states are; say world=")
    if not isinstance(world, FiniteWorld):
        fail(file, f"is a table, and {world.spec_data.label} has no numbered states; say a finite world")
    return load_table(file, world, kind=kind)


def _zipped(file: Path, activation: str | None) -> Recipe:
    from retarget.io.sb3 import Plain, recipe_of_tensors, recipe_of_zip
    from retarget.io.state_dict import read_state_dict

    with opened(file, max_members=2 * MAX_TENSORS) as archive:
        message = _refused_zip(archive)
        if message:
            fail(file, message)
        if not any(n.endswith("/data.pkl") for n in archive.names):
            if len(archive.names) > MAX_MEMBERS:
                fail(
                    file, f"has {len(archive.names)} members, more than the {MAX_MEMBERS} that a policy's file may have"
                )
            return recipe_of_zip(archive, activation=activation)
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        fail(file, f"cannot be read ({error.strerror}); check its permissions")
    return recipe_of_tensors(file, read_state_dict(file, data), Plain(), activation=activation)


def _refused_zip(archive: Archive) -> str:
    """Why a zip is not read at all, and what to do; or an empty text."""
    names = archive.names
    ends = {n.split("/", 1)[-1] for n in names}
    if "constants.pkl" in ends or any(e.startswith("code/") for e in ends):
        return TORCHSCRIPT
    if "archive_format" in ends or "archive_version" in ends or any(e.startswith("models/") for e in ends):
        return f"is a PyTorch export (.pt2), which holds a program; {_WEIGHTS}"
    if "parameter_list" in names or "parameters" in names:
        return f"is a zip of Stable-Baselines 2 (TensorFlow), which is not read; {_WEIGHTS}"
    if names and all(n.endswith(".npy") for n in names):
        return "is a zip of arrays: name it .npz and say world= for a table, or normalise= for statistics"
    known = {"data", "policy.pth", "_stable_baselines3_version"} & set(names)
    if not known and not any(n.endswith("/data.pkl") for n in names):
        return "is a zip, but none of Stable-Baselines3: it has no data and no policy.pth; save the agent again"
    return ""
