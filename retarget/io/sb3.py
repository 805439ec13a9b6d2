"""Policies that Stable-Baselines3 saved, read without it: the weights, and what its JSON says in plain text.

A zip holds `data` (JSON, in which many values are pickles in base64: those are never decoded), `policy.pth` (a state
dict) and more that is not opened. Which network it is shows in the tensors' names and shapes.

Forward passes: `predict(deterministic=True)` of stable-baselines3 2.x, `common/policies.py`, `dqn/policies.py`,
`sac/policies.py`, `td3/policies.py`, and sb3-contrib's `ars/policies.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retarget.io.archive import MAX_JSON_BYTES, Archive, fail, parse_json
from retarget.io.network import Recipe
from retarget.io.state_dict import MAX_BYTES, read_state_dict

if TYPE_CHECKING:
    from retarget.agents.neural import Head

_WRAP = "rebuild it in Python and hand it to retarget.agents.wrapped.wrap"
_ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "GELU": "gelu", "SiLU": "silu"}
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)

#: Tensors by the beginning of their name that mean a network which is not read here, and what it is.
_BEYOND = (
    ("features_extractor.", "it looks at images, or through an extractor of its own"),
    ("pi_features_extractor.", "it looks at images, or through an extractor of its own"),
    ("actor.features_extractor.", "it looks at images, or through an extractor of its own"),
    ("q_net.features_extractor.", "it looks at images, or through an extractor of its own"),
    ("lstm_actor.", "it is recurrent"),
    ("quantile_net.", "it is a quantile network (QR-DQN)"),
)


@dataclass(frozen=True)
class Plain:
    """What the JSON says in plain text; None where it does not say.

    Attributes:
        observation_shape: of a Box space.
        n_observations, n_actions: of Discrete spaces.
        action_shape, low, high: of a Box space of actions.
        other_space: a space of another kind, which is not read.
        activation: of `policy_kwargs`, by the name of its class.
        squash: `squash_output` of `policy_kwargs`.
        normalised: whether the environment was a `VecNormalize`, where that shows.
        whole_kwargs: all names in `policy_kwargs` are there to read, so that one which is missing was not set.
        own_class: the policy's class, where it is none of Stable-Baselines3's.
        extractor: class of its features extractor, where that is named and is not the plain one.
    """

    observation_shape: tuple[int, ...] | None = None
    n_observations: int | None = None
    n_actions: int | None = None
    action_shape: tuple[int, ...] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    other_space: str = ""
    activation: str | None = None
    squash: bool | None = None
    normalised: bool | None = None
    whole_kwargs: bool = False
    own_class: str = ""
    extractor: str = ""


def plain_fields(data: Mapping[str, object]) -> Plain:
    """Read the plain fields of `data`; whatever is not as expected counts as unsaid."""
    seen, acts = _mapping(data.get("observation_space")), _mapping(data.get("action_space"))
    kwargs, policy = _mapping(data.get("policy_kwargs")), _mapping(data.get("policy_class"))
    squash = {"True": True, "False": False}.get(str(kwargs.get("squash_output")))
    if squash is None and "ARSLinearPolicy" in str(policy.get("__init__"))[:200]:
        squash = False  # the default of that class, unlike that of its parent
    module = str(policy.get("__module__", ""))
    others = [k for k in (_space(seen), _space(acts)) if k not in ("", "Box", "Discrete")]
    shape = _shape(acts) if _space(acts) == "Box" else None
    return Plain(
        _shape(seen) if _space(seen) == "Box" else None,
        _integer(seen.get("n")) if _space(seen) == "Discrete" else None,
        _integer(acts.get("n")) if _space(acts) == "Discrete" else None,
        shape,
        _bound(acts, "low", shape),
        _bound(acts, "high", shape),
        others[0] if others else "",
        _class(kwargs["activation_fn"]) or str(kwargs["activation_fn"]) if "activation_fn" in kwargs else None,
        squash,
        None if "_last_original_obs" not in data else data["_last_original_obs"] is not None,
        isinstance(data.get("policy_kwargs"), dict),
        "" if module.startswith(("stable_baselines3.", "sb3_contrib.")) else module[:80],
        _extractor(kwargs),
    )


def _extractor(kwargs: Mapping[str, object]) -> str:
    """A features extractor other than the plain one, by name: it may change observations without holding a weight."""
    if "features_extractor_class" not in kwargs:
        return ""
    text = str(kwargs["features_extractor_class"])[:200]
    name = _class(text) or text
    return "" if name == "FlattenExtractor" else name


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _class(text: object) -> str:
    """The last name in `<class 'module.Name'>`."""
    found = re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>", str(text)[:200])
    return found[1] if found else ""


def _space(space: Mapping[str, object]) -> str:
    return _class(space.get(":type:"))


def _integer(value: object) -> int | None:
    found = re.search(r"\d{1,9}", str(value)[:40].replace("int64", ""))
    return int(found[0]) if found else None


def _shape(space: Mapping[str, object]) -> tuple[int, ...] | None:
    for key in ("shape", "_shape"):
        if key in space:
            return tuple(int(n) for n in re.findall(r"\d{1,9}", str(space[key])[:200]))
    return None


def _bound(space: Mapping[str, object], name: str, shape: tuple[int, ...] | None) -> tuple[float, ...] | None:
    """A bound of a Box: all its numbers, or the one that all of them are."""
    if shape is None or len(shape) != 1:
        return None
    for key in (f"{name}_repr", name):
        text = re.sub(r"dtype\W*\w+|float32|float64|array", "", str(space.get(key, ""))[:10_000])
        numbers = tuple(float(n) for n in _NUMBER.findall(text)) if "inf" not in text and "..." not in text else ()
        if all(map(math.isfinite, numbers)) and len(numbers) in (1, shape[0]):
            return numbers * (shape[0] if len(numbers) == 1 else 1)
    return None


@dataclass(frozen=True)
class Reading:
    """A network, as the tensors' names show it.

    Attributes:
        algorithm: family of algorithms.
        layers: (weight, bias) names from input to output; a bias may be missing.
        head: what comes out; None where only the space of actions can tell (`logits` or `mean`).
        squash: whether tanh follows the last layer; None where it is a choice of the trainer.
        activation: between layers, unless the file says otherwise.
        ignored: beginnings of the names of tensors that play no part in acting.
    """

    algorithm: str
    layers: tuple[tuple[str, str | None], ...]
    head: Head | None
    squash: bool | None
    activation: str
    ignored: tuple[str, ...] = field(default=())


def recognise(path: Path, tensors: Mapping[str, np.ndarray], where: str = "") -> Reading:
    """Find the acting network among the tensors of a policy.

    Raises:
        FileError: when there is none that is read here, or a tensor beside it that may play a part.
    """
    for prefix, what in _BEYOND:
        if any(name.startswith(prefix) for name in tensors):
            fail(path, f"{where}this policy is not read: {what} ({prefix}*); {_WRAP}")
    if "actor.log_std" in tensors:
        fail(path, f"{where}this policy is not read: it was trained with gSDE, which cuts its means; {_WRAP}")
    reading = _reading(tensors)
    if reading is None or not reading.layers:
        shown = ", ".join(list(tensors)[:4]) or "none"
        fail(path, f"{where}no policy of PPO, A2C, DQN, ARS, SAC or TD3 shows in its tensors ({shown}); {_WRAP}")
    known = {name for layer in reading.layers for name in layer}
    extra = [n for n in tensors if n not in known and not n.startswith(reading.ignored or ("\0",))]
    if extra:
        fail(path, f"{where}tensor {extra[0][:80]!r} has no place in a plain {reading.algorithm} policy; {_WRAP}")
    return reading


def _reading(tensors: Mapping[str, np.ndarray]) -> Reading | None:
    def sequence(prefix: str) -> tuple[tuple[str, str | None], ...]:
        """Linear layers of a Sequential, an activation between each two."""
        found: list[tuple[str, str | None]] = []
        while f"{prefix}{2 * len(found)}.weight" in tensors:
            found.append(_layer(tensors, f"{prefix}{2 * len(found)}"))
        return tuple(found)

    if "action_net.weight" in tensors and any(n.startswith(("value_net.", "mlp_extractor.")) for n in tensors):
        layers = (
            *sequence("mlp_extractor.shared_net."),
            *sequence("mlp_extractor.policy_net."),
            _layer(tensors, "action_net"),
        )
        head: Head = "mean" if "log_std" in tensors else "logits"
        ignored: tuple[str, ...] = ("value_net.", "mlp_extractor.value_net.", "log_std", "vf_features_extractor.")
        return Reading("actor-critic (PPO, A2C)", layers, head, None, "tanh", ignored)
    if "q_net.q_net.0.weight" in tensors:
        return Reading("DQN", sequence("q_net.q_net."), "values", False, "relu", ("q_net_target.",))
    if "actor.mu.weight" in tensors:
        layers = (*sequence("actor.latent_pi."), _layer(tensors, "actor.mu"))
        return Reading("SAC", layers, "mean", True, "relu", ("actor.log_std.", "critic.", "critic_target.", "log_ent"))
    if "actor.mu.0.weight" in tensors and "actor.latent_pi.0.weight" not in tensors:
        ignored = ("actor_target.", "critic.", "critic_target.")
        return Reading("TD3", sequence("actor.mu."), "mean", True, "relu", ignored)
    if "action_net.weight" in tensors:
        return Reading("ARS", (_layer(tensors, "action_net"),), None, False, "relu")
    if "action_net.0.weight" in tensors:
        return Reading("ARS", sequence("action_net."), None, None, "relu")
    return None


def _layer(tensors: Mapping[str, np.ndarray], name: str) -> tuple[str, str | None]:
    return f"{name}.weight", f"{name}.bias" if f"{name}.bias" in tensors else None


def recipe_of_zip(archive: Archive, *, activation: str | None = None) -> Recipe:
    """What a Stable-Baselines3 zip says about its policy; `activation` overrules what it says about that.

    Raises:
        FileError: in one line.
    """
    path = archive.path
    plain = plain_fields(parse_json(path, archive.read("data", limit=MAX_JSON_BYTES), "data: "))
    tensors = read_state_dict(path, archive.read("policy.pth", limit=MAX_BYTES), "policy.pth: ")
    return recipe_of_tensors(path, tensors, plain, where="policy.pth: ", activation=activation)


def recipe_of_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], plain: Plain, *, where: str = "", activation: str | None = None
) -> Recipe:
    """A policy of its tensors and of whatever is said in plain text; `activation` overrules that.

    Raises:
        FileError: in one line.
    """
    if plain.other_space:
        fail(path, f"its space is a {plain.other_space[:40]}; only Box and Discrete spaces are read; {_WRAP}")
    if plain.extractor:
        fail(path, f"it looks at observations through {plain.extractor[:80]!r}, whose code is not in the file; {_WRAP}")
    reading = recognise(path, tensors, where)
    head = reading.head
    if head is None:
        head = "mean" if plain.action_shape is not None else "logits" if plain.n_actions is not None else None
    if (head == "mean" and plain.n_actions is not None) or (head in ("logits", "values") and plain.action_shape):
        fail(path, f"its tensors are of {'continuous' if head == 'mean' else 'discrete'} actions, its JSON says other")
    act, notes = _activation(path, reading, plain, activation)
    squash = reading.squash
    if squash is None:  # ARS squashes continuous actions unless told not to, PPO and A2C only where told
        squash = head == "mean" and (plain.squash if plain.squash is not None else reading.algorithm == "ARS")
    offpolicy = reading.algorithm in ("DQN", "SAC", "TD3")
    return Recipe(
        path=path,
        algorithm=reading.algorithm,
        tensors=tensors,
        layers=reading.layers,
        head=head,
        squash=squash,
        activation=act,
        inputs=None if plain.observation_shape is None else math.prod(plain.observation_shape),
        n_observations=plain.n_observations,
        outputs=plain.n_actions if plain.action_shape is None else math.prod(plain.action_shape),
        low=plain.low,
        high=plain.high,
        normalised=None if offpolicy else plain.normalised,
        notes=notes,
    )


def _activation(path: Path, reading: Reading, plain: Plain, given: str | None) -> tuple[str, tuple[str, ...]]:
    """The activation between layers, and what to note about it and about the policy's class."""
    notes = []
    if plain.own_class:
        notes.append(
            f"its policy is a class of {plain.own_class}: that it acts as one of {reading.algorithm} is assumed"
        )
    if given is not None:
        return given, tuple(notes)
    if plain.activation is not None:
        if plain.activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            fail(path, f"its activation {plain.activation[:40]!r} is none of {known}; say activation=, or {_WRAP}")
        return _ACTIVATIONS[plain.activation], tuple(notes)
    if len(reading.layers) > 1 and (plain.own_class or not plain.whole_kwargs):
        notes.append(
            f"its activation is not said in plain text: {reading.activation} is assumed, the default of "
            f"{reading.algorithm}; say activation= where it was another"
        )
    return reading.activation, tuple(notes)
