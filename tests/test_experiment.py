"""The command that users type, in processes of its own, on data that TFDS's own builders wrote."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
from commands import ROOT, command, kill_when, lines, run
from idx import write_idx

import mnms_jax
from mnms_jax.bench import make_bench
from mnms_jax.experiment import make_search_from, run_experiment
from mnms_jax.report import describe
from mnms_jax.tasks import sentences
from mnms_jax.tasks.packaged import cache_folder
from mnms_jax.types import UserError


def search(workdir, data_dir, *flags):
    return command(
        *("multitask", "--tasks=sst2,imdb", "--round_size=4", f"--workdir={workdir}"),
        *(f"--data_dir={data_dir}", "--num_trials=4", *flags),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = run(*search(workdir, data_dir))
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_trials_are_logged(finished):
    rows = lines(finished[0])
    expected = [(name, trial) for trial in range(4) for name in ("sst2", "imdb")]
    assert [(row["task"], row["trial"]) for row in rows] == expected
    keys = {"task", "trial", "decisions", "reward", "failed", "samples", "bucket", "round"}
    keys |= {"rungs", "stopped", "metrics"}
    assert all(set(row) == keys for row in rows)


def test_table_says_what_was_found_and_where(finished):
    workdir, done = finished
    summary = json.loads((workdir / "summary.json").read_text())
    for name in ("sst2", "imdb"):
        rows = [r for r in lines(workdir) if r["task"] == name and r["reward"] is not None]
        best = summary["tasks"][name]["finalists"][0]
        assert best["validation"] == max(row["reward"] for row in rows)
        assert f"{100 * best['validation']:.1f} / {100 * best['test']:.1f}" in done.stdout
        assert f"(trial {best['trial']}): {describe(best['decisions'])}" in done.stdout
        reference = summary["tasks"][name]["reference"]
        assert f"{100 * reference['validation']:.1f} / {100 * reference['test']:.1f}" in done.stdout
        assert len(summary["tasks"][name]["random"]) >= 1
    assert f"written to {workdir}" in done.stdout
    assert "differs by task" in done.stdout or "every decision alike" in done.stdout


def test_progress_is_a_line_a_round_where_nobody_watches(finished):
    shown = re.findall(r"^(ppo|random) round (\d)/2: (\d) trials", finished[1].stderr, re.M)
    assert shown == [(label, str(i), str(4 * i)) for label in ("ppo", "random") for i in (1, 2)]
    assert "orbax" not in finished[1].stderr


def test_outputs(finished):
    workdir = finished[0]
    config = json.loads((workdir / "config.json").read_text())
    assert config["tasks"] == ["sst2", "imdb"] and config["num_trials"] == 4
    assert list((workdir / "tensorboard").glob("events*"))
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2"]
    assert mnms_jax.load_controller(workdir / "controller").task_names == ("sst2", "imdb")
    assert len(lines(workdir / "random")) == 8


def test_the_best_child_is_loaded_and_predicts_as_it_was_tested(finished, data_dir):
    workdir = finished[0]
    best = json.loads((workdir / "summary.json").read_text())["tasks"]["sst2"]["finalists"][0]
    child = mnms_jax.load_child(workdir / "best" / "sst2")
    test = mnms_jax.load_tasks(["sst2"], str(data_dir))[0].splits["test"]
    correct = (child.predict_proba(test.inputs).argmax(1) == test.labels).mean()
    assert correct == pytest.approx(best["test"])
    assert child.decisions == best["decisions"]


def test_the_same_command_again_trains_nothing(finished, data_dir):
    workdir = finished[0]
    before = (workdir / "trials.jsonl").read_bytes()
    done = run(*search(workdir, data_dir))
    assert done.returncode == 0, done.stderr
    assert (workdir / "trials.jsonl").read_bytes() == before
    assert "ppo round" not in done.stderr
    assert done.stdout == finished[1].stdout


def test_another_search_is_refused_with_the_difference(finished, data_dir):
    done = run(*search(finished[0], data_dir, "--seed=3", "--learner=reinforce"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: --workdir")
    assert "learner: 'ppo' there, 'reinforce' now; seed: 0 there, 3 now" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("moment", ["first trial", "first checkpoint"])
def test_killed_and_run_again_it_ends_with_the_same_trials(tmp_path, finished, data_dir, moment):
    workdir = tmp_path / "killed"
    awaited = {
        "first trial": workdir / "trials.jsonl",
        "first checkpoint": workdir / "checkpoints" / "1",
    }[moment]
    arguments = search(workdir, data_dir, "--nocompare_random")
    kill_when(awaited.exists, *arguments)
    assert len(lines(workdir)) < 8
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert lines(workdir) == lines(finished[0])


def test_interrupted_from_the_keyboard_it_says_how_to_go_on(tmp_path, data_dir):
    workdir = tmp_path / "w"
    process = subprocess.Popen(
        search(workdir, data_dir, "--nocompare_random", "--num_trials=40"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (workdir / "trials.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().endswith("stopped; the same command goes on from here")
    assert "Traceback" not in errors


FULL_DISK = """
import errno, os, runpy, sys
real = os.fsync
def fsync(descriptor):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith("trials.jsonl"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "trials.jsonl")
    real(descriptor)
os.fsync = fsync
sys.argv[0] = "multitask"
runpy.run_module("experiments.multitask", run_name="__main__")
"""


def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path, data_dir, finished):
    arguments = search(tmp_path / "w", data_dir, "--nocompare_random")
    done = run(sys.executable, "-c", FULL_DISK, *arguments[3:])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: [Errno 28] No space left on device: 'trials.jsonl'")
    assert run(*arguments).returncode == 0
    assert lines(tmp_path / "w") == lines(finished[0])


def test_without_glove_and_network_it_searches_all_the_same(tmp_path, data_dir):
    environment = {**os.environ, "MNMS_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}
    environment.pop("PIP_FIND_LINKS", None)
    cache = cache_folder() / "xla"
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    flags = ("--num_trials=2", "--learner=random")
    done = run(*search(tmp_path / "w", data_dir, *flags), env=environment)
    assert done.returncode == 0, done.stderr
    assert "searching without glove50" in done.stderr
    assert all(row["decisions"]["embedding"] != "glove50" for row in lines(tmp_path / "w"))


def test_missing_data_is_said_within_five_seconds(tmp_path):
    environment = {
        **os.environ,
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    for _ in range(3):  # a busy machine may be slower for a while
        start = time.monotonic()
        done = run(*search(tmp_path / "w", tmp_path / "nothing"), env=environment)
        seconds = time.monotonic() - start
        if seconds < 5:
            break
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for word in ("glue/sst2", str(tmp_path / "nothing"), "--data_dir", "vader_movie", "trec6"):
        assert word in done.stderr
    assert seconds < 5
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--tasks=vader_moive",
            "error: task 'vader_moive' is unknown; did you mean 'vader_movie'?",
        ),
        ("--embeddings=mine=/nowhere.txt", "/nowhere.txt"),
        ("--num_trials=0", "error: --num_trials=0: must be at least 1"),
        ("extra", "error: no arguments but flags are taken, got extra"),
        ("seed=3", "error: no arguments but flags are taken, got seed=3; did you mean --seed=3?"),
        ("--nocompare_random=1", "error: --nocompare_random=1 does not take an argument"),
        ("--num_trails=1", "error: Unknown command line flag 'num_trails'. Did you mean: num_"),
        ("--space=huge", "error: flag --space=huge: value should be one of <cpu|full|cells>"),
    ],
)
def test_mistakes_get_one_clear_line(tmp_path, flag, message):
    done = run(sys.executable, "-m", "experiments.multitask", f"--workdir={tmp_path / 'w'}", flag)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and "FATAL" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("vader_moive",)}, "task 'vader_moive' is unknown"),
        ({"embeddings": ("mine=nowhere.txt",)}, "--embeddings=mine=nowhere.txt: there is no"),
        ({"embeddings": ("minilm_encoder",)}, "minilm_encoder cuts texts by the package token"),
        ({"track": ("mlflow",)}, "--track=mlflow needs it"),
        ({"executor": "ray"}, "--executor=ray: Ray is not installed"),
        ({"workdir": "file"}, "--workdir file can't be written: Not a directory"),
        ({"workdir": "file/w"}, "--workdir file/w can't be written: Not a directory"),
        ({"workdir": "/proc/no/w"}, "--workdir /proc/no/w can't be written: "),
        ({"from_": ""}, "--from: name the folder"),
        ({"from_": "new"}, "new holds no controller"),
    ],
    ids=lambda x: "=".join(map(str, *x.items())) if isinstance(x, dict) else "",
)
def test_what_needs_no_data_is_refused_before_any_is_loaded(
    tmp_path, monkeypatch, caplog, changes, message
):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("ray", "mlflow", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it weren't installed
    sentences._load.cache_clear()
    monkeypatch.setattr("mnms_jax.experiment.make_bench", mock.Mock(side_effect=AssertionError))
    kind = mnms_jax.TransferConfig if "from_" in changes else mnms_jax.Config
    config = kind(**{"tasks": ("iris",), "workdir": "new", **changes})
    with pytest.raises(UserError, match=re.escape(message)), caplog.at_level("INFO", "absl"):
        run_experiment(config)
    assert not caplog.records
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_live_report_is_promised_when_the_search_begins(tmp_path, monkeypatch, caplog):
    config = mnms_jax.Config(
        tasks=("iris",), num_trials=1, learner="random", live_report=True, workdir=str(tmp_path)
    )
    with monkeypatch.context() as patch, caplog.at_level("INFO", "absl"):
        bad_data = mock.Mock(side_effect=UserError("bad data"))
        patch.setattr("mnms_jax.experiment.make_bench", bad_data)
        with pytest.raises(UserError, match="bad data"):
            run_experiment(config)
    assert "is drawn" not in caplog.text
    with caplog.at_level("INFO", "absl"):
        run_experiment(config)
    page = tmp_path / "report" / "report.html"
    assert f"{page} is drawn from the first round on" in caplog.text and page.exists()


def test_a_task_and_an_embedding_have_names_of_their_own(tmp_path, data_dir):
    table = tmp_path / "mine.txt"
    table.write_text("good 0.5 1\nbad 1 0.5\n")
    config = mnms_jax.Config(tasks=("sst2",), data_dir=str(data_dir), embeddings=(f"sst2={table}",))
    with pytest.raises(mnms_jax.UserError, match="a task and an embedding are called 'sst2'"):
        make_bench(config)


def test_own_embeddings_are_searched_and_exported(tmp_path, data_dir, monkeypatch):
    table = tmp_path / "mine.txt"
    words = ["good", "bad", "great", "awful", "film", "movie", "the", "a"]
    table.write_text("\n".join(f"{w} {i}.5 {-i} 0.25" for i, w in enumerate(words)) + "\n")
    config = mnms_jax.Config(
        tasks=("sst2",),
        data_dir=str(data_dir),
        workdir=str(tmp_path / "w"),
        embeddings=(f"mine={table}",),
        num_trials=2,
        round_size=2,
        learner="random",
    )
    bench = make_bench(config)
    assert "mine" in bench.family.space.decisions[0].choices
    for changes, has_model in (
        ({}, False),  # random search
        ({"learner": "ppo"}, True),
        ({"learner": "ppo", "reward_model": False}, False),
    ):
        rankers: list = []
        monkeypatch.setattr("mnms_jax.experiment.make_ranker", rankers.append)
        make_search_from(dataclasses.replace(config, **changes), bench)
        assert len(rankers) == has_model
    summary = run_experiment(config)
    assert len(summary["tasks"]["sst2"]["finalists"]) == 2
    assert not (tmp_path / "w" / "controller").exists()
    # Without the file it is another search space.
    with pytest.raises(UserError, match=r"data: .*search_space"):
        run_experiment(mnms_jax.Config(**{**config.__dict__, "embeddings": ()}))


def test_images_are_searched_and_what_was_learned_is_carried_over(tmp_path):
    digits = mnms_jax.load_tasks(["digits"])[0].splits["train"]
    write_idx(tmp_path, "train", 255 - digits.inputs[:300, ::-1, :, 0], digits.labels[:300])
    flags = ("--num_trials=3", "--nocompare_random")
    first, second = tmp_path / "first", tmp_path / "second"
    done = run(*command("multitask", "--tasks=digits", f"--workdir={first}", *flags))
    assert done.returncode == 0, done.stderr
    assert "pixels + logistic regression" in done.stdout
    new = (f"--from={first}", f"--tasks=mirrored={tmp_path}", f"--workdir={second}")
    done = run(*command("transfer", *new, *flags))
    assert done.returncode == 0, done.stderr
    best = json.loads((second / "summary.json").read_text())["tasks"]["mirrored"]["finalists"][0]
    test = mnms_jax.load_tasks([f"mirrored={tmp_path}"])[0].splits["test"]
    child = mnms_jax.load_child(second / "best" / "mirrored")
    assert best["test"] == pytest.approx(
        (child.predict_proba(test.inputs).argmax(1) == test.labels).mean()
    )
    known = {tuple(row["decisions"].items()) for row in lines(first)}
    assert tuple(lines(second)[0]["decisions"].items()) in known  # the source's best design
