import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import make_family, make_task, make_trainer

from mnms_jax.training import executables
from mnms_jax.training.executables import ProgramFolder, program_key
from mnms_jax.training.fit import Request

TASK = make_task("one", 100, seed=1)


@pytest.fixture(scope="module")
def family():
    return make_family(hidden_layers=(0, 1), samples=(256,))


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(
        executables.logging, "warning", lambda text, *args: found.append(text % args)
    )
    return found


def request(family, trial=0):
    return Request(0, "one", trial, {d.name: d.choices[0] for d in family.space.decisions})


def train(family, folder, **kwargs):
    return make_trainer((TASK,), family, program_folder=folder, **kwargs).fit(request(family))


def files(folder):
    return sorted(folder.glob("*.program"))


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


@pytest.mark.parametrize("options", [{}, {"lanes": 2}, {"num_devices": 2}])
def test_a_kept_program_is_not_traced_and_gives_bitwise_equal_children(family, tmp_path, options):
    options = dict(options)
    options["devices"] = jax.local_devices()[: options.pop("num_devices", 1)]
    fresh = train(family, None, **options)
    assert_equal(train(family, tmp_path, **options), fresh)
    assert len(files(tmp_path)) == 1
    trainer = make_trainer((TASK,), family, program_folder=tmp_path, **options)

    def make_nothing(architecture, num_classes):
        raise AssertionError("built again")

    key = program_key  # the family's own function is part of it
    trainer._family = family._replace(make_model=make_nothing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mnms_jax.training.fit.program_key",
            lambda _, *rest: key(family.make_model, *rest),
        )
        assert_equal(trainer.fit(request(family)), fresh)
    assert trainer.stats.programs == 1


def run_elsewhere(code):
    """Runs code in a process of its own, set up as this one is, and returns the words it prints."""
    here = pathlib.Path(__file__).parent
    start = f"""
import pathlib, sys
sys.path.insert(0, {str(here)!r})
import jax
from test_executables import make_family, train
jax.config.update("jax_numpy_rank_promotion", "raise")
family = make_family(hidden_layers=(0, 1), samples=(256,))
"""
    found = subprocess.run(
        [sys.executable, "-c", start + code],
        check=True,
        cwd=here.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    return found.stdout.split()


def test_another_process_finds_the_program(family, tmp_path):
    outcome, _ = train(family, tmp_path)
    (file,) = files(tmp_path)
    inode = file.stat().st_ino
    found = run_elsewhere(f"""
outcome, _ = train(family, pathlib.Path({str(tmp_path)!r}))
print(repr(float(outcome.accuracy)), repr(float(outcome.loss)))
""")
    assert found == [repr(float(x)) for x in (outcome.accuracy, outcome.loss)]
    assert files(tmp_path) == [file] and file.stat().st_ino == inode  # not written again


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 1000, None])
def test_a_damaged_file_is_replaced_with_one_warning(family, tmp_path, warnings, damage):
    expected = train(family, tmp_path)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage is None else damage)
    assert_equal(train(family, tmp_path), expected)
    assert len(warnings) == 1
    assert len(file.read_bytes()) > len(whole) // 2
    assert_equal(train(family, tmp_path), expected)
    assert len(warnings) == 1


def test_a_file_that_is_whole_but_no_program_is_replaced(tmp_path, warnings):
    folder = ProgramFolder(tmp_path)
    program = jax.jit(lambda x: 2 * x).lower(jnp.ones(3)).compile()
    payload = b"no pickle"
    content = executables.hashlib.sha256(payload).digest() + payload
    (tmp_path / "key.program").write_bytes(content)
    assert folder.load_or_compile("key", jax.devices()[:1], lambda: program) is program
    assert len(warnings) == 1 and len((tmp_path / "key.program").read_bytes()) > len(content)


@pytest.mark.parametrize("obstacle", ["others", "no folder", "owner"])
def test_a_folder_that_cannot_be_used_is_only_a_warning(
    family, tmp_path, warnings, monkeypatch, obstacle
):
    folder = tmp_path / "programs"
    if obstacle == "others":
        folder.mkdir()
        folder.chmod(0o777)
    elif obstacle == "no folder":
        folder.write_text("")
    else:
        monkeypatch.setattr(os, "getuid", lambda: -1)
    assert_equal(train(family, folder), train(family, None))
    assert len(warnings) == 1 and (not folder.is_dir() or files(folder) == [])


def test_a_full_disk_is_one_warning_and_leaves_nothing(family, tmp_path, warnings, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(executables.os, "replace", fail)
    trainer = make_trainer((TASK,), family, program_folder=tmp_path, max_programs=1)
    designs = [request(family).design | {"samples": 256, "hidden_layers": n} for n in (0, 1, 0)]
    hidden = {
        "hidden_size": 64,
        "hidden_activation": "relu",
        "normalization": "none",
        "hidden_dropout": 0.0,
    }
    wanted = [Request(0, "one", 0, hidden | design) for design in designs]
    assert all(trainer.fit(one)[0].num_steps == 2 for one in wanted)
    assert len(warnings) == 1 and list(tmp_path.iterdir()) == []


def test_the_folder_is_its_owners_alone(family, tmp_path):
    train(family, tmp_path / "a" / "programs")
    assert (tmp_path / "a" / "programs").stat().st_mode & 0o777 == 0o700


def test_files_unused_for_longest_go_first(tmp_path):
    program = jax.jit(lambda x: 2 * x).lower(jnp.ones(3)).compile()
    ProgramFolder(tmp_path).load_or_compile("size", jax.devices()[:1], lambda: program)
    size = files(tmp_path)[0].stat().st_size
    folder = ProgramFolder(tmp_path, max_bytes=int(2.5 * size))

    def use(key):
        folder.load_or_compile(key, jax.devices()[:1], lambda: program)

    for seconds, key in enumerate(("size", "a", "size")):
        use(key)
        os.utime(tmp_path / f"{key}.program", (seconds, seconds))
    use("b")
    assert [file.stem for file in files(tmp_path)] == ["b", "size"]


def test_what_jax_cache_gave_is_not_written_again(family, tmp_path):
    """On CPUs such a file lacks functions: running its program fails."""
    found = run_elsewhere(f"""
jax.config.update("jax_compilation_cache_dir", {str(tmp_path / "jax")!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
for folder in ("one", "two", "two"):
    print(float(train(family, pathlib.Path({str(tmp_path)!r}) / folder)[0].loss))
""")
    assert len(found) == 3 and len(set(found)) == 1
    assert len(files(tmp_path / "one")) == 1 and files(tmp_path / "two") == []


def key_of(family, **changes):
    arguments = {
        "make_model": family.make_model,
        "architecture": family.make_spec(request(family).design).architecture,
        "num_classes": 2,
        "inputs": {"x": jax.ShapeDtypeStruct((1, 2), jnp.float32)},
        "devices": jax.devices()[:1],
        "options": {"level": 1},
    }
    return program_key(*(arguments | changes).values())


def test_the_key_holds_all_that_a_program_depends_on(family, monkeypatch):
    architecture = family.make_spec(request(family).design).architecture
    keys = [
        key_of(family),
        key_of(family, architecture=architecture._replace(rows=65)),
        key_of(family, num_classes=3),
        key_of(family, inputs={"x": jax.ShapeDtypeStruct((2, 2), jnp.float32)}),
        key_of(family, inputs={"x": jax.ShapeDtypeStruct((1, 2), jnp.int32)}),
        key_of(family, inputs={"y": jax.ShapeDtypeStruct((1, 2), jnp.float32)}),
        key_of(family, devices=jax.devices()[1:2]),
        key_of(family, devices=jax.devices()[:2]),
        key_of(family, options=None),
    ]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    keys.append(key_of(family))
    jax.config.update("jax_default_matmul_precision", "float32")
    keys.append(key_of(family))
    jax.config.update("jax_default_matmul_precision", None)
    monkeypatch.setattr(executables, "foundation", lambda: b"other sources")
    keys.append(key_of(family))
    assert None not in keys and len(set(keys)) == len(keys)
    assert key_of(family) == keys[-1]


def test_a_source_file_changes_the_key(family, tmp_path, monkeypatch):
    for name in ("children", "training"):
        (tmp_path / name).mkdir()
    for name in ("children/a.py", "training/b.py", "devices.py", "types.py"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(executables, "_PACKAGE", tmp_path)
    found = executables.foundation.__wrapped__
    first = found()
    assert first == found()
    (tmp_path / "children/a.py").write_text("2")
    assert found() != first


def test_programs_of_other_families_are_not_kept(family, tmp_path):
    def make_model(architecture, num_classes):
        return family.make_model(architecture, num_classes)

    assert key_of(family, make_model=make_model) is None
    make_model.__module__ = family.make_model.__module__  # a wrapper that looks like ours
    assert key_of(family, make_model=make_model) is None
    train(family._replace(make_model=make_model), tmp_path)
    assert files(tmp_path) == []
