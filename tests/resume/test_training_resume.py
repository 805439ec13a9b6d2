"""A training that was killed goes on from its checkpoint, to the same bits as if it had never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retarget.agents.network_for import network_for
from retarget.envs import make_world
from retarget.errors import FileError
from retarget.training import DQN, PPO, Cloning, Trained, train
from retarget.training.checkpoint import Checkpoint

WORLD = make_world("OpenGrid", size=5)
METHODS = {
    "cloning": Cloning(updates=200, batch=8, enough=2.0),
    "gru": Cloning(updates=160, batch=24, episodes=4, steps=6, rounds=2, enough=2.0),
    "ppo": PPO(env_steps=1024, envs=8, rollout=8, batch=32),
    "dqn": DQN(env_steps=1600, envs=8, batch=16, warmup=32, replay=300, target_every=7),
    "box cloning": Cloning(updates=160, batch=64, episodes=4, rounds=2, enough=2.0),
    "box ppo": PPO(env_steps=1024, envs=8, rollout=16, batch=64),
    "box dqn": DQN(env_steps=1600, envs=8, batch=16, warmup=32, replay=300, target_every=7),
    "clone+ppo": (Cloning(updates=100, batch=8, enough=2.0), PPO(env_steps=512, envs=8, rollout=8, value_only=2)),
}


def _train(name: str, file: Path | None = None, *, seed: int = 0, goals: int = 2) -> Trained:
    world = WORLD
    if name.startswith("box"):
        world = make_world("Pendulum" if name == "box ppo" else "MountainCar", horizon=30, start="wide")
    aims = world.goals[:goals]
    kind = "gru" if name == "gru" else "mlp"
    head = "values" if "dqn" in name else None
    hidden = 8 if kind == "gru" else (8,)
    blank = network_for(world, aims[0], kind=kind, goals=world.goals[:3], hidden=hidden, head=head)
    return train(blank, world, goals=aims, method=METHODS[name], seed=seed, checkpoint=file, save_every_s=0.0)


class PulledPlugError(BaseException):
    """What no code expects."""


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("after", [1, 3])
def test_stopped_and_resumed_is_never_stopped(
    name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _train(name)
    file = tmp_path / "state.safetensors"
    save, count = Checkpoint.save, [0]

    def cut(self: Checkpoint, path: Path) -> None:
        save(self, path)
        count[0] += 1
        if count[0] == after:
            raise PulledPlugError

    monkeypatch.setattr(Checkpoint, "save", cut)
    interrupted = False
    try:
        _train(name, file)
    except PulledPlugError:
        interrupted = True
    monkeypatch.setattr(Checkpoint, "save", save)
    found = Checkpoint.read(file)
    assert interrupted
    assert not found.over or after == 3, "it was cut too late to show anything"
    resumed = _train(name, file)
    assert resumed.agent.digest == whole.agent.digest
    assert resumed.spend == whole.spend
    assert resumed.history == whole.history
    # what has finished is not done again
    begun = Checkpoint.read(file).updates
    assert _train(name, file).agent.digest == whole.agent.digest
    assert Checkpoint.read(file).updates == begun


SCRIPT = """
import sys
from pathlib import Path
from retarget.agents.network_for import network_for
from retarget.envs import make_world
from retarget.training import PPO, train
world = make_world("OpenGrid", size=5)
blank = network_for(world, world.goal, hidden=(8,))
method = PPO(env_steps=20_000, envs=8, rollout=8, batch=32)
out = train(blank, world, goals=world.goal, method=method, checkpoint=sys.argv[1] or None, save_every_s=0.0)
print(out.agent.digest, out.spend.env_steps)
"""


def _start(file: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, file]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_without_warning_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    run = _start(str(file))
    deadline = time.monotonic() + 60
    while not file.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert run.poll() is None, run.communicate()
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    found = Checkpoint.read(file)
    assert not found.over
    assert 0 < found.updates < 20_000 // 64
    resumed = _start(str(file))
    output, errors = resumed.communicate(timeout=100)
    assert resumed.returncode == 0, errors
    world = make_world("OpenGrid", size=5)
    blank = network_for(world, world.goal, hidden=(8,))
    whole = train(blank, world, goals=world.goal, method=PPO(env_steps=20_000, envs=8, rollout=8, batch=32))
    assert output.split() == [whole.agent.digest, str(whole.spend.env_steps)]
    assert errors == "", "nothing is announced and nothing warned of"


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    _train("cloning", file)
    for other in ({"seed": 1}, {"goals": 3}):
        with pytest.raises(FileError, match="belongs to another training; delete it, or give another path"):
            _train("cloning", file, **other)
    with pytest.raises(FileError, match="belongs to another training"):
        _train("ppo", file)


@pytest.mark.parametrize("cut", [0, 3, 8, 40, 400, -1])
def test_a_broken_checkpoint_is_one_error(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    _train("cloning", file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(FileError, match=r"^[^\n]*delete it, or give another path$"):
        _train("cloning", file)


def test_a_folder_that_does_not_exist_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write the checkpoint"):
        _train("cloning", tmp_path / "nowhere" / "state.safetensors")
    assert list(tmp_path.iterdir()) == []
