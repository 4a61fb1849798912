"""What the README shows is run as it stands, with fewer rounds; the flags are documented."""

import pathlib
import re

from mnms_jax.config import TransferConfig, flag_name

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_finds_a_child_for_each_task(capsys):
    block = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert "range(10)" in block
    exec(compile(block.replace("range(10)", "range(1)"), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in sorted(lines)] == ["vader_amazon", "vader_movie"]
    assert all(0.4 < float(line.split()[1]) <= 1 for line in lines)


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
