"""The reference has every public name, and examples in docstrings say what happens."""

import doctest
import importlib
import pathlib
import re

import jax
import numpy as np
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
    for page in DOCS.glob("*.md"):
        for block in _programs(page):
            compile(block, page.name, "exec")
            assert set(re.findall(r"\bmnms\.(\w+)", block)) <= set(mnms_jax.__all__)
    named = {name for page in DOCS.glob("*.md") for name in _references(page.read_text())}
    assert named <= set(mnms_jax.__all__)


def test_the_how_to_is_one_program(capsys):
    """Its blocks one after another, with a single round; then its family with its learner."""
    names = {}
    for block in _programs(DOCS / "howto.md"):
        exec(compile(block.replace("range(10)", "range(1)"), "howto.md", "exec"), names)
        if "schedule" in names and "extended" not in names:
            names["extended"] = names["family"]
    *found, own = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in found] == ["vader_movie", "vader_amazon"]
    assert all(0.4 < float(line.split()[1]) <= 1 for line in found)
    assert 0.9 < float(own) <= 1

    extended = names["extended"]
    design = extended.space.decode(np.zeros(len(extended.space.decisions), np.int32))
    changed = extended.make_spec({**design, "schedule": "constant"})
    assert {settings.schedule for settings in changed.optimizers.values()} == {"constant"}

    space = names["space"]
    policy = mnms_jax.make_policy(space, num_tasks=1)
    learner = names["make_greedy_learner"](policy)
    search = mnms_jax.make_search(space, policy, learner, num_tasks=1, trials_per_task=3)
    state = search.init(jax.random.key(0))
    proposal = search.ask(state)
    rewards = np.array([0.5, np.nan, 0.6])
    after, _ = search.tell(state, proposal, rewards)
    before, now = (
        policy.evaluate(params, proposal.actions[2], 0).log_probs.sum()
        for params in (state.params, after.params)
    )
    assert now > before


def _programs(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def _references(text):
    return re.findall(r"`mnms_jax\.(\w+)`", text)
