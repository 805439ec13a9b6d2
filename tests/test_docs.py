"""The docs say what the code does."""

import re
from pathlib import Path

import pytest

from retarget.row import columns_as_markdown

ROOT = Path(__file__).parent.parent


def test_every_column_is_documented_as_it_is():
    assert (ROOT / "docs" / "columns.md").read_text(encoding="utf-8") == columns_as_markdown()


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links to {target}"


_RUN = ("README.md", "docs/extending.md", "docs/layers.md", "docs/search.md", "docs/studies.md")


@pytest.mark.parametrize("page", _RUN)
def test_the_examples_run_in_the_order_of_the_page(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_study_of_the_docs_is_a_study(tmp_path):
    from retarget.study.spec import load_study

    text = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "studies.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    study = load_study(tmp_path / "mine.toml")
    assert [w.label for w in study.worlds] == ["FourRooms(size=9)", "FourRooms(size=13)"]
    assert [a.spec.label for a in study.agents] == [
        "a little training (episodes=10)",
        "a little training (episodes=100)",
        "planner",
    ]


def test_the_worked_example_of_the_code_is_right():
    import retarget
    from retarget.agents import exact_planner
    from retarget.code import ENUMERATIVE

    world = retarget.make_world("FourRooms", size=13)
    agent = exact_planner(world, world.goal)
    edit = retarget.Edit.of(agent, retarget.Slot("reward", 0.0, [17], [1.0]))
    assert ENUMERATIVE.length(edit, agent.layout) == 1 + 1 + 2 + 1 + 1 + 1 + 4 + 7
