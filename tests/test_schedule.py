"""A schedule as users type it, in processes of its own, on data that TFDS's own builders wrote."""

import json

import pytest
from commands import command, kill_when, lines, run

import mnms_jax
from mnms_jax.schedule import Phase, _config, parse_phase, run_schedule
from mnms_jax.types import UserError

PHASES = ("sst2:3", "sst2+imdb:2:replay", "imdb:2:frozen")


def search(data_dir, workdir, phases=PHASES):
    flags = (f"--phases={','.join(phases)}", "--round_size=2")
    return command("schedule", *flags, f"--data_dir={data_dir}", f"--workdir={workdir}")


def trials(workdir):
    return [row for phase in sorted(workdir.glob("phase_*")) for row in lines(phase)]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "schedule"
    done = run(*search(data_dir, workdir))
    assert done.returncode == 0, done.stderr
    return workdir


def test_phases_start_from_the_ones_before(finished):
    names = [(row["task"], row["trial"]) for row in trials(finished)]
    assert names[:3] == [("sst2", 0), ("sst2", 1), ("sst2", 2)]
    assert names[3:] == [
        ("sst2", 0),
        ("imdb", 0),
        ("sst2", 1),
        ("imdb", 1),
        ("imdb", 0),
        ("imdb", 1),
    ]
    first, joint, last = (
        mnms_jax.load_controller(finished / f"phase_{number}" / "controller")
        for number in (1, 2, 3)
    )
    assert first.task_names == ("sst2",)
    assert joint.task_names == last.task_names == ("sst2", "imdb")
    sizes = [saved.trials.size.tolist() for saved in (first, joint, last)]
    assert sizes == [[3], [5, 2], [5, 4]]
    changed = [
        name
        for name in joint.params
        if name != "cell" and (joint.params[name] != last.params[name]).any()
    ]
    assert changed == ["task_embedding"]


def test_it_is_described(finished):
    described = json.loads((finished / "config.json").read_text())
    assert [Phase(**{**phase, "tasks": tuple(phase["tasks"])}) for phase in described.values()] == [
        parse_phase(text) for text in PHASES
    ]


def test_what_each_phase_says_for_itself_is_no_flag(data_dir, tmp_path):
    done = run(*search(data_dir, tmp_path / "w"), "--num_trials=40")
    assert done.returncode == 1
    assert "error: --num_trials is each phase's own: write it into --phases" in done.stderr


def test_what_is_done_stays_and_what_comes_may_change(finished, data_dir):
    before = trials(finished)
    done = run(*search(data_dir, finished, (*PHASES, "sst2:1")))
    assert done.returncode == 0, done.stderr
    assert "phase_3 of 4: imdb:2:frozen (done)" in done.stderr
    assert trials(finished)[: len(before)] == before and len(trials(finished)) == len(before) + 1
    # What was to come, and isn't done, may be left out again.
    described = json.loads((finished / "config.json").read_text())
    described["phase_5"] = described["phase_4"]
    (finished / "config.json").write_text(json.dumps(described))
    done = run(*search(data_dir, finished, (*PHASES, "sst2:1")))
    assert done.returncode == 0, done.stderr
    assert "phase_5" not in json.loads((finished / "config.json").read_text())
    done = run(*search(data_dir, finished, PHASES))
    assert done.returncode == 1 and "belongs to another search (phase_4" in done.stderr
    done = run(*search(data_dir, finished, ("sst2:4", *PHASES[1:])))
    assert done.returncode == 1 and "belongs to another search (phase_1" in done.stderr


def test_killed_in_a_phase_it_goes_on_there(finished, data_dir, tmp_path):
    log = tmp_path / "w" / "phase_2" / "trials.jsonl"
    kill_when(lambda: log.exists() and log.read_text(), *search(data_dir, tmp_path / "w"))
    done = run(*search(data_dir, tmp_path / "w"))
    assert done.returncode == 0, done.stderr
    assert trials(tmp_path / "w") == trials(finished)[:9]


def test_old_names_are_those_of_the_controller_before_the_first_phase():
    config = mnms_jax.TransferConfig(from_="before", renamed=("units=hidden_size",))
    phase = parse_phase("imdb:2")
    assert _config(config, phase, "phase_1", None).renamed == config.renamed
    assert _config(config, phase, "phase_2", "phase_1").renamed == ()


@pytest.mark.parametrize(
    "text", ["sst2", "sst2:", "sst2:0", "sst2:x", ":3", "sst2:3:embedding", "sst2:3:", "sst2:-1"]
)
def test_what_is_no_phase(text):
    with pytest.raises(UserError, match=f"phase '{text}': must be TASK"):
        parse_phase(text)


def test_a_plus_within_a_path_is_no_other_task():
    tasks = ("mine=c++/a+b.csv", "imdb", "tfds:a/b", "old=d+e/f.csv?text=g")
    assert parse_phase(f"{'+'.join(tasks)}:3").tasks == tasks


@pytest.mark.parametrize(
    "text",
    ["a:3", "a+b:12:replay", "a:1:frozen", "a:1:replay:frozen", "tfds:a/b?text=c+d:2:frozen"],
)
def test_phases_are_written_as_they_are_read(text):
    assert str(parse_phase(text)) == text


@pytest.mark.parametrize(
    ("phases", "changes", "message"),
    [
        ((), {}, "name at least one"),
        (("sst2:3:frozen",), {}, "phase sst2:3:frozen: the first one has nothing"),
        (("sst2:3:replay",), {}, "phase sst2:3:replay: the first one has nothing"),
        (("sst2:3", "sst2+sst2:3"), {}, "sst2,sst2: name at least one task, each once"),
        (("sst2:3", "imbd:3"), {}, "task 'imbd' is unknown; did you mean 'imdb'"),
        (("sst2:3", "imdb:3"), {"save_controller": False}, "starts from the controller before"),
        (("sst2:3",), {"learner": "random"}, "--learner=random"),
    ],
)
def test_mistakes_are_told_before_the_first_phase(phases, changes, message, tmp_path):
    config = mnms_jax.TransferConfig(workdir=str(tmp_path / "w"), **changes)
    with pytest.raises(UserError, match=message):
        run_schedule(config, [parse_phase(text) for text in phases])
    assert not (tmp_path / "w").exists()


def test_a_folder_of_another_search_is_refused_and_kept(tmp_path):
    (tmp_path / "config.json").write_text('{"tasks": ["sst2"]}')
    with pytest.raises(UserError, match="belongs to another search"):
        run_schedule(mnms_jax.TransferConfig(workdir=str(tmp_path)), [parse_phase("sst2:1")])
    assert (tmp_path / "config.json").read_text() == '{"tasks": ["sst2"]}'
