"""Study files: where keys stand, what is refused and in which words."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import RetargetError, StudyError
from retarget.study.lines import key_lines, line_of
from retarget.study.spec import default_study_path, load_study, parse_study
from retarget.world import WorldSpec

GOOD = """\
name = "small"
seeds = [0, 1]
goal_pairs = 2

[[worlds]]
id = "OpenGrid"
size = [5, 7]

[[agents]]
id = "planner"

[[agents]]
id = "q_table"
name = "little table"
episodes = 5
compiled = true

[[probes]]
id = "robustness"
"""


def test_a_good_study_says_what_it_says() -> None:
    study = parse_study(GOOD)
    assert (study.name, study.seeds, study.goal_pairs, study.gamma, study.level) == ("small", (0, 1), 2, 0.95, 0.95)
    assert study.worlds == (WorldSpec.of("OpenGrid", size=5), WorldSpec.of("OpenGrid", size=7))
    assert [a.spec.label for a in study.agents] == ["planner", "little table"]
    assert study.agents[1].spec.compiled and dict(study.agents[1].spec.options) == {"episodes": 5}


def test_the_default_study_is_sound() -> None:
    study = load_study(default_study_path())
    assert study.name == "ladder" and len(study.agents) >= 2


# -- lines ----------------------------------------------------------------------------------------------------------


def _leaves(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, inner in items for leaf in _leaves(inner, (*path, key)))]


SCALARS = st.sampled_from(
    ['"x"', "'y # no'", '"a\\"b = 1"', "1", "-2.5", "true", "1979-05-27T07:32:00Z", '"""\nl\n[no]\n"""', "'''\n=\n'''"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda v: "[" + ", # c ]\n  ".join(v) + "]" if v else "[]"),
        st.lists(inner.filter(lambda v: "\n" not in v), max_size=3).map(
            lambda v: "{" + ", ".join(f"k{i} = {x}" for i, x in enumerate(v)) + "}"
        ),
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(["a", "b.c", '"q r".s', "'t.u'", "w-1"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "[x]", "[x.y]", "[[z]]", "[[z.in]]", '["o p"]']),
            st.lists(st.tuples(st.integers(0, 2), KEYS, VALUES), max_size=3),
        ),
        max_size=5,
    )
)
def test_every_key_of_any_toml_has_the_line_on_which_it_stands(tables: list) -> None:  # type: ignore[type-arg]
    text = ""
    for header, entries in tables:
        text += f"{header} # table\n" if header else ""
        for blanks, key, value in entries:
            text += "\n# note\n" * blanks + f"{key} = {value} # end\n"
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    whole = text.split("\n")
    for path in _leaves(data)[1:]:
        assert path in lines
        name = next(p for p in reversed(path) if isinstance(p, str))
        if isinstance(path[-1], str):  # the key is written out on its line
            assert name in whole[lines[path] - 1]


def test_lines_of_items_and_of_what_is_missing() -> None:
    lines = key_lines("seeds = [\n 0,\n 1,\n]\n[[a]]\n[[a]]\nid = 3\n")
    assert [lines["seeds", i] for i in (0, 1)] == [2, 3]
    assert lines["a", 0] == 5 and lines["a", 1] == 6 and lines["a", 1, "id"] == 7
    assert line_of(lines, ("a", 1, "gone", 4)) == 6 and line_of(lines, ("nowhere",)) == 1


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("seeds =", "sedes =", 2, "unknown key 'sedes' (did you mean 'seeds'?)"),
        ("seeds = [0, 1]", "seeds = []", 2, "seeds must be a list of whole numbers"),
        ("seeds = [0, 1]", "seeds = [0, true]", 2, "seed True is not a whole number"),
        ("seeds = [0, 1]", "seeds = [3, 3]", 2, "seed 3 is named twice"),
        ("seeds = [0, 1]", f"seeds = [{1 << 64}]", 2, "at most 64 bits"),
        ('"small"', '"a/b"', 1, "name must be"),
        ("goal_pairs = 2", "goal_pairs = 0", 3, "goal_pairs must be a whole number of at least 1, got 0"),
        ("goal_pairs = 2", "goal_pairs = 9999", 5, "9999 goal pairs"),
        ("goal_pairs = 2", "gamma = 1.0", 3, "gamma must lie in (0, 1), got 1.0"),
        ("goal_pairs = 2", "gamma = nan", 3, "gamma must lie in (0, 1), got nan"),
        ("goal_pairs = 2", "level = 1.5", 3, "level must lie in (0, 1], got 1.5"),
        ('"OpenGrid"', '"OpenGird"', 6, "unknown world 'OpenGird' (did you mean 'OpenGrid'?)"),
        ("size =", "sise =", 7, "unknown option of world 'OpenGrid' 'sise' (did you mean 'size'?)"),
        ("[5, 7]", "[5, 4]", 7, "option 'size' of world 'OpenGrid' must be"),
        ("[5, 7]", "[]", 7, "empty list"),
        ("[5, 7]", "[5, 5]", 5, "named twice"),
        ('"planner"', '"planer"', 10, "unknown agent 'planer' (did you mean 'planner'?)"),
        ("episodes =", "episode =", 15, "unknown option of agent 'q_table' 'episode' (did you mean 'episodes'?)"),
        ("episodes = 5", "episodes = true", 15, "takes a value like 0, got True"),
        ("compiled = true", 'compiled = "yes"', 16, "compiled must be true or false, got 'yes'"),
        ("compiled = true", 'worlds = ["Maze"]', 16, "unknown world of this study 'Maze'"),
        ("compiled = true", "worlds = []", 16, "worlds must be a list of world ids"),
        ('"little table"', '"planner"', 12, "two agents are called 'planner'"),
        ('"little table"', "3", 14, "name must be a text, got 3"),
        ('"robustness"', '"robustnes"', 19, "unknown probe 'robustnes' (did you mean 'robustness'?)"),
        ('id = "robustness"', "", 18, "needs id"),
        ('id = "robustness"', 'id = "robustness"\nno_such = 1', 20, "unknown option of probe 'robustness' 'no_such'"),
        (
            'id = "robustness"',
            'id = "narrowness"\nallowed = ["a"]',
            20,
            "option 'allowed' of probe 'narrowness' takes numbers such as [0.0",
        ),
        ('id = "robustness"', 'id = "weights"\ndoses = [0.1, nan]', 20, "takes finite numbers, got nan"),
        ('id = "robustness"', 'id = "weights"\ndoses = [[inf]]', 20, "takes finite numbers, got inf"),
        ('id = "robustness"', 'id = "weights"\ndoses = [true]', 20, "takes numbers such as [0.01"),
        ('id = "robustness"', f'id = "weights"\ndoses = [1{"0" * 400}]', 20, "takes finite numbers"),
        ('id = "robustness"', 'id = "adaptation"\nchanges = [3]', 20, "takes texts such as ['reward'"),
        ('id = "robustness"', 'id = "goal_gradient"\ndamping = nan', 20, "takes finite numbers, got nan"),
        ('id = "robustness"', 'id = "goal_gradient"\ndamping = -inf', 20, "takes finite numbers, got -inf"),
        ("[[probes]]", "[probes]", 18, "at least one [[probes]] table"),
        ("seeds = [0, 1]", "seeds = [0, 1", 3, "not valid TOML"),
    ],
)
def test_each_mistake_names_itself_and_its_line(old: str, new: str, line: int, words: str) -> None:
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    with pytest.raises(RetargetError) as caught:
        parse_study(text, source="s.toml")
    message = str(caught.value)
    assert isinstance(caught.value, StudyError) and "\n" not in message
    assert message.startswith(f"s.toml, line {line}: "), message
    assert words in message


def test_the_same_agent_under_two_names_is_refused() -> None:
    text = GOOD + '\n[[agents]]\nid = "planner"\nname = "other"\n'
    with pytest.raises(StudyError, match="agents 'planner' and 'other' are the same"):
        parse_study(text)


TWO_WORLDS = GOOD.replace("[[agents]]", '[[worlds]]\nid = "Maze"\nsize = 9\n\n[[agents]]', 1)


@pytest.mark.parametrize(
    ("first", "second", "where"),
    [
        ("", "", "Maze, OpenGrid"),
        ("", 'worlds = ["Maze"]', "Maze"),
        ('worlds = ["Maze"]', 'worlds = ["OpenGrid", "Maze"]', "Maze"),
        ('worlds = ["Maze"]', 'worlds = ["OpenGrid"]', None),
        ("", "draws = 32", "Maze, OpenGrid"),  # as it is anyway
        ("", "draws = 33", None),
    ],
)
def test_a_probe_is_asked_once_a_world(first: str, second: str, where: str | None) -> None:
    text = TWO_WORLDS.replace('id = "robustness"', 'id = "retargetability"\n' + first)
    text += '\n[[probes]]\nid = "retargetability"\n' + second + "\n"
    if where is None:
        assert len(parse_study(text).probes) == 2
        return
    with pytest.raises(StudyError, match=f"is named twice for {where}; remove one"):
        parse_study(text)


def test_a_list_that_is_one_value_makes_one_world() -> None:
    study = parse_study(GOOD.replace("size = [5, 7]", "size = 5\ngoal = [1, 1]"))
    assert len(study.worlds) == 1


def test_files_that_are_no_studies(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="does not exist"):
        load_study(tmp_path / "none.toml")
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (1 << 21))
    with pytest.raises(StudyError, match="2097152 bytes"):
        load_study(big)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'name = "caf\xe9"\n')
    with pytest.raises(StudyError, match=r"not UTF-8 text \(byte 11\)"):
        load_study(latin)
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 5000)
    with pytest.raises(StudyError, match="not valid TOML"):
        load_study(deep)


@given(st.data())
def test_a_study_cut_anywhere_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    cut = GOOD[: data.draw(st.integers(0, len(GOOD)))]
    try:
        parse_study(cut, source="cut.toml")
    except StudyError as error:
        assert "\n" not in str(error) and str(error).startswith("cut.toml, line ")


def test_seeds_can_be_changed_and_are_checked() -> None:
    study = parse_study(GOOD)
    assert study.with_seeds([7]).seeds == (7,)
    with pytest.raises(StudyError, match="named twice"):
        study.with_seeds([7, 7])


# -- options of searches --------------------------------------------------------------------------------------------

_SEARCH = """\
name = "s"
seeds = [0]
goal_pairs = 2

[[worlds]]
id = "OpenGrid"
size = 5

[[probes]]
id = "robustness"

[[agents]]
"""


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ('id = "tree_search"\nexploration = inf', "line 14: exploration of agent 'tree_search' must be a finite"),
        ('id = "tree_search"\nexploration = nan', "line 14: exploration of agent 'tree_search' must be a finite"),
        ('id = "tree_search"\nmethod = "gumbel"\nbackup = "max"', "'gumbel' and backup='max'.* exclude each other"),
        ('id = "tree_search"\nmethod = ["puct", "gumbel"]\nbackup = "max"', "'gumbel' and backup='max'.* exclude"),
        ('id = "tree_search"\nrollout_steps = 5', "matters with leaf='rollouts' only, and leaf is 'none'; set that or"),
        ('id = "tree_search"\nepsilon = 0.5', "matters with model='near' only, and model is 'exact'"),
        ('id = "tree_search"\nepisodes = 5', "matters with model='near' or model='everywhere' only"),
        ('id = "tree_search"\nmethod = "gumbel"\nexploration = 2.0', "matters with method='puct' only"),
        ('id = "mc_aixi"\nepsilon = 0.5', "matters with data='near' only"),
        ('id = "network_model"\nepsilon = 0.5', "matters with data='near' only"),
        ('id = "learned_planner"\nepsilon = 0.5', "matters with data='near' only"),
        ('id = "alphazero"\niterations = 100000000', "iterations of agent 'alphazero' must be at most 10000, got"),
        ('id = "network_model"\nepisodes = 100000000', "episodes of agent 'network_model' must be at most"),
        ('id = "mc_aixi"\ncycles = 1000000000', "cycles of agent 'mc_aixi' must be at most"),
        ('id = "path_planner"\ndepth = 1000000000', "depth of agent 'path_planner' must be at most"),
    ],
)
def test_options_of_searches_are_refused_when_the_study_is_read(agent: str, message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        parse_study(_SEARCH + agent + "\n")
    assert "\n" not in str(caught.value) and "line 1" in str(caught.value)


@pytest.mark.parametrize(
    "agent",
    [
        'id = "tree_search"\nleaf = ["none", "rollouts"]\nrollout_steps = 5',
        'id = "tree_search"\nmodel = ["exact", "near"]\nepsilon = 0.5',
        'id = "tree_search"\nmethod = "gumbel"\nbackup = "mean"',
        'id = "learned_planner"\ndata = ["near", "everywhere"]\nepsilon = 0.5',
    ],
)
def test_an_option_that_a_part_of_a_list_listens_to_is_fine(agent: str) -> None:
    assert parse_study(_SEARCH + agent + "\n").agents


def test_a_world_too_large_for_a_table_of_predictions_is_not_applicable() -> None:
    from retarget.catalogue import AgentSpec, NotApplicableHere, Recipe, build_agent
    from retarget.study.cells import world_of

    world = world_of(WorldSpec.of("OpenGrid", size=23))
    assert world.model.n_states == 529  # type: ignore[attr-defined]
    with pytest.raises(NotApplicableHere, match=r"at most 512 states; OpenGrid\(size=23\) has 529"):
        build_agent(AgentSpec.of("mc_aixi"), Recipe(world, world.goals[0], 0, 0.95))
