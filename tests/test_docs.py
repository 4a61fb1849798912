"""The reference has every public name, and examples in docstrings say what happens."""

import doctest
import importlib
import pathlib
import re
import shlex
import subprocess
import sys

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


def test_commands_in_the_guide_have_flags_that_are_there():
    """Each experiment reads its flags, and checks them as far as that takes no data."""
    commands = _commands()
    assert len(commands) >= 9
    running = {
        module: subprocess.Popen(
            [sys.executable, "-c", _READ_FLAGS, module, *lines],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT.parent,
        )
        for module, lines in commands.items()
    }
    for module, process in running.items():
        _, errors = process.communicate()
        assert process.returncode == 0, (module, errors[-1000:])


# Runs an experiment with another main, which reads the flags of one command after another.
_READ_FLAGS = """
import runpy, shlex, sys
import mnms_jax
from absl import flags

def read(main):
    for command in commands:
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        assert flags.FLAGS([module, *shlex.split(command)]) == [module]
        if "round_size" in flags.FLAGS:
            mnms_jax.config_from_flags()

_, module, *commands = sys.argv
mnms_jax.run_main = read
runpy.run_module(module, run_name="__main__")
"""


def _commands():
    """Returns the flags of the README's and the guide's commands, a line each, by module."""
    found = {}
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if name := re.search(r"\bexperiments\.\w+", line):
                    words = shlex.split(re.sub(r" #.*", "", line[name.end() :]))
                    given = [word for word in words if word.startswith("--") and word != "--help"]
                    found.setdefault(name[0], []).append(shlex.join(given))
    return found


def _programs(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def _references(text):
    return re.findall(r"`mnms_jax\.(\w+)`", text)
