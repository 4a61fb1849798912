"""What the README shows is run as it stands; the flags are documented."""

import pathlib
import re

import jax

import mnms_jax
from mnms_jax.config import TransferConfig, flag_name

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_tells_tasks_apart():
    """Layers are good for the first task and bad for the second, and the policy has learned it."""
    block = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len(block.splitlines()) <= 31
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    policy, space, state = names["policy"], names["space"], names["state"]
    key = jax.random.key(1)
    first, second = (
        mnms_jax.choice_frequencies(policy, space, state.params, key, task_id)[0]
        for task_id in range(2)
    )
    assert first[2] > second[2] + 0.5 and first[0] + 0.5 < second[0]


def test_every_flag_is_documented_with_its_default():
    flags = (ROOT / "docs" / "flags.md").read_text()
    rows = dict(re.findall(r"^\| `--(\w+)` \| (.*?) \|", flags, re.M))
    own = TransferConfig.__dataclass_fields__
    fields = {flag_name(name): field for name, field in own.items()}
    assert set(rows) == {*fields, "preset"}
    plain = ("num_trials", "round_size", "space", "learner", "advantage", "seed", "workdir")
    for name in (*plain, "embedding", "trained"):
        assert rows[name].strip("`") == str(fields[name].default)
    assert rows["tasks"].strip("`") == ",".join(fields["tasks"].default)
