"""Published returns of policies that others trained, reproduced in Gymnasium's own environments.

Files in `shared/real` beside the repository; the tests are skipped where it is absent. A published figure is a mean and
a standard deviation over its own episodes, about as many as are played here. Two such means of n = 100 episodes differ
by more than 4 standard errors, `4 std sqrt(2 / 100)`, with a chance of 6e-5 each, if both are of one distribution.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retarget.agents.wrapped import wrap
from retarget.envs import make_world
from retarget.errors import AgentError, WorldError
from retarget.io.load import load
from retarget.io.returns import GYM_IDS, Returns, play

ROOT = Path(__file__).parents[2]


def _real(name: str) -> Path:
    path = ROOT.parent / "shared" / "real" / "sb3" / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository: no real file to read")
    return path


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    out = tmp_path / "statistics.npz"
    script = ROOT / "scripts" / "convert_vecnormalize.py"
    source = _real("a2c-Acrobot-v1-vecnormalize.pkl")
    done = subprocess.run([sys.executable, str(script), str(source), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def _close(result: Returns, mean: float, std: float) -> None:
    assert abs(result.mean - mean) <= 4 * std * np.sqrt(2 / len(result.returns)), (result.mean, result.std)


def test_dqn_mountain_car() -> None:
    agent = load(_real("dqn-MountainCar-v0.zip"), world=make_world("MountainCar"))
    _close(play(agent, "MountainCar-v0"), -100.85, 9.9)


def test_ppo_cart_pole() -> None:
    agent = load(_real("ppo-CartPole-v1.zip"), world=make_world("CartPole"))
    result = play(agent, "CartPole-v1")
    assert (result.mean, result.std) == (500.0, 0.0)


def test_a2c_acrobot_with_its_statistics(statistics: Path) -> None:
    agent = load(_real("a2c-Acrobot-v1.zip"), world=make_world("Acrobot"), normalise=statistics)
    assert agent.notes == ()
    _close(play(agent, "Acrobot-v1"), -83.4, 17.2)


def test_ars_mountain_car_fails_without_its_statistics_and_says_why() -> None:
    agent = load(_real("ars-MountainCar-v0.zip"), world=make_world("MountainCar"))
    assert "VecNormalize" in " ".join(agent.notes)
    # published with its statistics, which are not there: -122.0 (33.5). Without them it never reaches the flag
    assert play(agent, "MountainCar-v0").mean == -200.0


def test_the_same_seed_gives_the_same_episodes() -> None:
    agent = wrap(lambda x: np.stack([-x[:, 2], x[:, 2]], 1), observation_size=4, n_actions=2, name="leaning")
    a, b, c = (play(agent, "CartPole-v1", episodes=20, seed=s) for s in (3, 3, 4))
    assert a.returns.tolist() == b.returns.tolist() != c.returns.tolist()
    assert (a.returns == a.lengths).all()  # a point a step
    assert play(agent, "CartPole-v1", episodes=5, seed=3).returns.tolist() == a.returns[:5].tolist()
    low, high = a.interval
    assert low < a.mean < high
    half = 1.96 * a.returns.std(ddof=1) / np.sqrt(20)
    np.testing.assert_allclose([low, high], [a.mean - half, a.mean + half], atol=1e-6)


def test_one_episode_is_what_gymnasium_plays() -> None:
    import gymnasium

    from retarget.rng import word

    agent = wrap(lambda x: 2 * np.tanh(x[:, 2:3]), observation_size=3, action_range=(-2.0, 2.0), name="damping")
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=word(0, "play", "Pendulum-v1", 0))
    total, over = 0.0, False
    while not over:
        obs, reward, ended, cut, _ = env.step(2 * np.tanh(obs[2:3]))
        total, over = total + float(reward), ended or cut
    assert play(agent, "Pendulum-v1", episodes=1).returns[0] == pytest.approx(total, rel=1e-5)


def test_only_known_environments_and_agents_that_fit() -> None:
    agent = wrap(lambda x: x, observation_size=4, n_actions=4, name="same")
    for name in ("os:CartPole-v1", "CartPole-v2", "CartPole"):
        with pytest.raises(WorldError, match="unknown environment"):
            play(agent, name)
    assert not any(":" in name for name in GYM_IDS)
    with pytest.raises(AgentError, match="needs distributions of shape"):
        play(agent, "CartPole-v1", episodes=1)
    for episodes in (0, -1, True, 1.5):
        with pytest.raises(WorldError, match="episodes"):
            play(agent, "CartPole-v1", episodes=episodes)  # type: ignore[arg-type]


def test_an_environment_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium

    def make(*args: object, **kwargs: object) -> None:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed")

    monkeypatch.setattr(gymnasium, "make", make)
    agent = wrap(lambda x: x[:, :4], observation_size=8, n_actions=4, name="first")
    with pytest.raises(WorldError, match="Box2D is not installed"):
        play(agent, "LunarLander-v3")
