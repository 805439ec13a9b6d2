"""Tables of users: what each form of file means, and which words a mistake gets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retarget.agent import Agent
from retarget.envs import make_world
from retarget.errors import FileError, GoalError
from retarget.io import tables
from retarget.io.tables import load_table

WORLD = make_world("OpenGrid", size=5)
S, A = WORLD.model.n_states, WORLD.model.n_actions
WRITERS = ("npy", "npz", "csv", "plain_csv", "parquet")


def _write(folder: Path, form: str, array: np.ndarray) -> Path:
    path = folder / f"table.{form.split('_')[-1]}"
    columns = array.reshape(len(array), -1)
    names = [f"a{i}" for i in range(columns.shape[1])] if array.ndim == 2 else ["action"]
    if form == "npy":
        np.save(path, array)
    elif form == "npz":
        np.savez_compressed(path, table=array)
    elif form == "parquet":
        pl.DataFrame({n: columns[:, i] for i, n in enumerate(names)}).write_parquet(path)
    else:
        lines = [",".join(repr(v.item()) for v in row) for row in columns]
        path.write_text("\n".join(([] if form == "plain_csv" else [",".join(names)]) + lines) + "\n")
    return path


def _policy(agent: Agent) -> np.ndarray:
    return agent.policy(np.arange(S))[0]


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_actions_come_back_as_the_policy_they_are(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from([np.int64, np.uint8, np.int32, np.float64]))
    actions = data.draw(hnp.arrays(dtype, S, elements=st.integers(0, A - 1)))
    agent = load_table(_write(tmp_path_factory.mktemp("t"), form, actions), WORLD)
    assert agent.kind == "table_policy"
    np.testing.assert_array_equal(_policy(agent), np.eye(A)[actions.astype(int)])


@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_values_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject) -> None:
    q = data.draw(hnp.arrays(np.float64, (S, A), elements=st.floats(-1e9, 1e9)))
    q[0, 0] = -1.0  # so that it is no policy
    agent = load_table(_write(tmp_path_factory.mktemp("t"), form, q), WORLD)
    assert agent.kind == "q_table"
    assert agent.parts["q"].array.tobytes() == q.tobytes()


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_probabilities_are_told_from_values(tmp_path: Path, form: str, dtype: type) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(A), S).astype(dtype)
    path = _write(tmp_path, form, probs)
    agent = load_table(path, WORLD)
    assert agent.kind == "table_policy"
    np.testing.assert_allclose(_policy(agent), probs, atol=1e-6)
    np.testing.assert_allclose(_policy(agent).sum(1), 1.0, atol=1e-12)
    assert load_table(path, WORLD, kind="q").kind == "q_table"


def test_whole_numbers_in_every_action_are_values(tmp_path: Path) -> None:
    visits = np.arange(S * A).reshape(S, A)
    assert load_table(_write(tmp_path, "npy", visits), WORLD).kind == "q_table"
    one_hot = np.eye(A, dtype=np.int64)[np.zeros(S, dtype=int)]
    assert load_table(_write(tmp_path, "npy", one_hot), WORLD).kind == "table_policy"


def test_a_line_of_numbered_names_is_no_state(tmp_path: Path) -> None:
    rows = [list(range(A)), *(-np.ones((S, A))).tolist()]
    (tmp_path / "q.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    np.testing.assert_array_equal(load_table(tmp_path / "q.csv", WORLD).parts["q"].array, -np.ones((S, A)))


def test_columns_in_fortran_order_are_read_right(tmp_path: Path) -> None:
    q = np.asfortranarray(-np.arange(S * A, dtype=np.float64).reshape(S, A))
    np.save(tmp_path / "q.npy", q)
    np.testing.assert_array_equal(load_table(tmp_path / "q.npy", WORLD).parts["q"].array, q)


def test_big_endian_and_half_precision_are_read_right(tmp_path: Path) -> None:
    q = -np.arange(S * A, dtype=np.float64).reshape(S, A)
    for dtype in (">f8", "<f2", ">i4"):
        np.save(tmp_path / "q.npy", q.astype(dtype))
        np.testing.assert_array_equal(load_table(tmp_path / "q.npy", WORLD).parts["q"].array, q)


def test_named_arrays_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "both.npz"
    probs = np.full((S, A), 1.0 / A)
    np.savez(path, q=probs, noise=np.zeros(3))
    assert load_table(path, WORLD).kind == "q_table"
    np.savez(path, policy=probs, noise=np.zeros(3))
    assert load_table(path, WORLD).kind == "table_policy"
    np.savez(path, policy=probs, q=probs)
    with pytest.raises(FileError, match="both 'policy' and 'q'"):
        load_table(path, WORLD)
    assert load_table(path, WORLD, kind="q").kind == "q_table"
    np.savez(path, one=probs, two=probs)
    with pytest.raises(FileError, match=r"holds 2 arrays \(one, two\)"):
        load_table(path, WORLD)


def test_a_gymnasium_world_takes_its_table(tmp_path: Path) -> None:
    lake = make_world("FrozenLake-v1")
    np.save(tmp_path / "q.npy", -np.ones((lake.model.n_states, lake.model.n_actions)))
    assert load_table(tmp_path / "q.npy", lake).kind == "q_table"


def test_the_goal_is_checked(tmp_path: Path) -> None:
    path = _write(tmp_path, "npy", np.zeros(S, dtype=np.int64))
    assert load_table(path, WORLD, goal=(1, 1)).kind == "table_policy"
    with pytest.raises(GoalError, match="outside"):
        load_table(path, WORLD, goal=S + 5)


# -- mistakes -------------------------------------------------------------------------------------------------------


def _with(value: float, row: int = 3, action: int = 1) -> np.ndarray:
    q = -np.ones((S, A))
    q[row, action] = value
    return q


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("array", "kind", "words"),
    [
        (_with(np.nan), "auto", "row 3, action 1 is nan"),
        (_with(np.inf), "q", "row 3, action 1 is inf"),
        (
            -np.ones((S - 1, A)),
            "auto",
            f"has shape ({S - 1}, {A}), but OpenGrid(size=5) has {S} states and {A} actions",
        ),
        (-np.ones((S, A + 1)), "auto", f"has shape ({S}, {A + 1})"),
        (np.full(S, A), "auto", f"row 0 holds action {A}; actions are whole numbers from 0 to {A - 1}"),
        (np.full(S, -1), "policy", "row 0 holds action -1"),
        (np.full(S, 0.5), "auto", "row 0 holds action 0.5"),
        (np.zeros(S, dtype=np.int64), "q", "holds one number a state"),
        (_with(-1.0), "policy", "row 0, action 0 is -1.0; give probabilities"),
        (np.full((S, A), 0.3), "policy", "row 0 sums to"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, form: str, array: np.ndarray, kind: str, words: str) -> None:
    path = _write(tmp_path, form, array)
    with pytest.raises(FileError) as caught:
        load_table(path, WORLD, kind=kind)  # type: ignore[arg-type]
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c,d\n1,2,3,x\n", "row 0, column d is 'x'"),
        ("1,2,3,4\n1,2,,4\n", "row 1, column 2 is ''"),
        ("1,2,3,4\n1,2,3\n", "row 1 has 3 values, the first has 4"),
        ("a,b,c,d\n", "names but no numbers"),
        ("\n\n", "no row"),
        ("1,1_0,1,1\n", "names but no numbers"),
        ("state,action\n0,1\n", "keep 'action' alone"),
        ('1,"2\n', "is no CSV text"),
    ],
)
def test_mistakes_in_text(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(FileError) as caught:
        load_table(path, WORLD)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pl.DataFrame({"a": ["x"] * S}), "column 'a' has type String"),
        (pl.DataFrame({"a": [1.0] * (S - 1) + [None], "b": [1.0] * S}), f"row {S - 1}, column 'a' is null"),
        (pl.DataFrame({"a": [[1]] * S}), "column 'a' has type List"),
        (pl.DataFrame({"state": range(S), "action": [0] * S}), "keep 'action' alone"),
    ],
)
def test_mistakes_in_parquet(tmp_path: Path, frame: pl.DataFrame, words: str) -> None:
    path = tmp_path / "table.parquet"
    frame.write_parquet(path)
    with pytest.raises(FileError, match=words.replace("(", r"\(")):
        load_table(path, WORLD)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("q.pkl", "pickle, which can run code"),
        ("q.pt", "network"),
        ("q.zip", "may hold pickles"),
        ("q.tsv", "write it as .csv"),
        ("q.foo", "unknown suffix '.foo'; a table is one of .npy, .npz, .csv, .parquet"),
        ("q", "unknown suffix ''"),
        ("none.npy", "there is no such file"),
    ],
)
def test_files_of_another_kind_get_a_remedy(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(FileError) as caught:
        load_table(tmp_path / name, WORLD)
    assert words in str(caught.value)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")  # opening it would wait for ever
    for name in ("folder.npy", "pipe.npy"):
        with pytest.raises(FileError, match="is no regular file"):
            load_table(tmp_path / name, WORLD)


def test_large_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "q.npy"
    with path.open("wb") as file:
        file.truncate(tables.MAX_BYTES + 1)
    monkeypatch.setattr(tables, "_bytes", None)
    with pytest.raises(FileError, match="more than the 268435456"):
        load_table(path, WORLD)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="'polcy' is not one of auto, policy, q"):
        load_table(tmp_path / "q.npy", WORLD, kind="polcy")  # type: ignore[arg-type]
