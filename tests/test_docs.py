"""The reference has every public name, and examples in docstrings say what happens."""

import doctest
import importlib
import pathlib
import re

import pytest

import mnms_jax

ROOT = pathlib.Path(mnms_jax.__file__).parent
DOCS = ROOT.parent / "docs"
WITH_EXAMPLES = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text()]


def test_the_reference_has_every_public_name_once():
    text = (DOCS / "api.md").read_text()
    names = re.findall(r"^\.\. (?:auto|py:)\w+:: mnms_jax\.(\w+)$", text, re.M)
    assert sorted(names) == sorted(mnms_jax.__all__)


def test_there_are_examples():
    assert WITH_EXAMPLES


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples(path):
    name = ".".join(("mnms_jax", *path.relative_to(ROOT).with_suffix("").parts))
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried and not failed


def test_programs_in_the_guide_are_python_with_public_names():
    """They are run by nobody: each is a part of a program."""
    for page in DOCS.glob("*.md"):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
            compile(block, page.name, "exec")
            assert set(re.findall(r"\bmnms\.(\w+)", block)) <= set(mnms_jax.__all__)
    named = {name for page in DOCS.glob("*.md") for name in _references(page.read_text())}
    assert named <= set(mnms_jax.__all__)


def _references(text):
    return re.findall(r"`mnms_jax\.(\w+)`", text)
