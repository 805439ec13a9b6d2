"""Every example in the documentation runs: in each module's docstrings, and in the README."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import retarget

_README = Path(__file__).parents[1] / "README.md"
MODULES = sorted(
    {"retarget", *(m.name for m in pkgutil.walk_packages(retarget.__path__, "retarget."))} - {"retarget.__main__"}
)


def test_the_linked_folders_are_walked_too() -> None:
    assert {"retarget.envs.grid", "retarget.probes.robustness", "retarget.analysis.statistics"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples_to_run() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = sum(bool(t.examples) for m in MODULES for t in finder.find(importlib.import_module(m)))
    assert found >= 40


@pytest.mark.parametrize("name", MODULES)
def test_whatever_is_public_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for key, value in vars(module).items():
        own = getattr(value, "__module__", None) == name
        if not key.startswith("_") and own and (inspect.isclass(value) or inspect.isfunction(value)):
            doc = inspect.getdoc(value)
            assert doc, f"{name}.{key} has no docstring"
            # what a dataclass is given without being asked begins with its own signature
            assert not doc.startswith(f"{key}("), f"{name}.{key} has no docstring"


def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", _README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if block.lstrip().startswith(">>>"):
            parsed = doctest.DocTestParser().get_doctest(block, space, "README.md", str(_README), 0)
            assert doctest.DocTestRunner().run(parsed, clear_globs=False).failed == 0
        else:
            # the blocks build on one another, as a reader's session does
            exec(compile(block, str(_README), "exec"), space)
