"""Transfer as users type it, in processes of its own, on data that TFDS's own builders wrote."""

import csv
import json

import pytest
from commands import command, kill_when, lines, run
from tfds_data import write_sst2

import mnms_jax


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("runs") / "pretrained"
    flags = ("--tasks=sst2", "--num_trials=6", "--round_size=3", "--nocompare_random")
    done = run(*command("multitask", *flags, f"--workdir={workdir}", f"--data_dir={data_dir}"))
    assert done.returncode == 0, done.stderr
    return workdir


def flags_of(pretrained, data_dir, workdir, *flags):
    return (
        *(f"--from={pretrained}", "--tasks=imdb", "--num_trials=4", "--nocompare_random"),
        *(f"--workdir={workdir}", f"--data_dir={data_dir}", *flags),
    )


@pytest.fixture(scope="module")
def finished(pretrained, data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "transferred"
    done = run(*command("transfer", *flags_of(pretrained, data_dir, workdir)))
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_new_tasks_are_searched_from_a_saved_controller(finished):
    workdir, done = finished
    assert [(row["task"], row["trial"]) for row in lines(workdir)] == [
        ("imdb", i) for i in range(4)
    ]
    designs = [json.dumps(row["decisions"]) for row in lines(workdir)]
    assert len(set(designs)) == 4
    assert "sources believed: " in done.stderr
    config = json.loads((workdir / "config.json").read_text())
    assert config["embedding"] == "mean" and config["guard"] is True
    assert config["sources"][0] == "sst2"


def test_what_it_learned_can_be_a_source_again(finished):
    saved = mnms_jax.load_controller(finished[0] / "controller")
    assert saved.task_names == ("sst2", "imdb")
    assert saved.trials.size.tolist() == [6, 4]
    assert saved.params["task_embedding"].shape[0] == 2
    assert [traits.num_classes for traits in saved.traits] == [2, 2]


def test_studies_of_optuna_are_sources_too(pretrained, data_dir, tmp_path):
    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    done = run(*command("to_optuna", f"--workdir={pretrained}", f"--storage={storage}"))
    assert done.stdout == "pretrained/sst2: 6 new trials\n", done.stderr
    flags = (*flags_of(pretrained, data_dir, tmp_path / "w"), f"--from=optuna:{storage}")
    done = run(*command("transfer", *flags, "--num_trials=2"))
    assert done.returncode == 0, done.stderr
    assert "study 'pretrained/sst2': 6 of 6 trials can be learned from" in done.stderr
    assert "sources believed: " in done.stderr
    saved = mnms_jax.load_controller(tmp_path / "w" / "controller")
    assert saved.task_names == ("optuna:pretrained/sst2", "imdb")
    assert saved.trials.size.tolist() == [6, 2]


def test_another_task_of_the_same_name_does_not_go_on(pretrained, data_dir, tmp_path):
    other = tmp_path / "other"
    write_sst2(other, num_rows=30)
    flags = (*flags_of(pretrained, other, tmp_path / "w"), "--tasks=sst2")
    done = run(*command("transfer", *flags))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "was trained on another task called 'sst2': the data differ" in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_policy_with_other_connections_does_not_go_on(pretrained, data_dir, tmp_path):
    config = mnms_jax.TransferConfig(
        tasks=("imdb",),
        from_=str(pretrained),
        data_dir=str(data_dir),
        skip_connection=False,
        workdir=str(tmp_path / "w"),
    )
    with pytest.raises(mnms_jax.UserError, match="was trained with one; take the same"):
        mnms_jax.run_experiment(config)
    assert not (tmp_path / "w").exists()


def test_killed_and_started_again_it_ends_with_the_same_trials(
    finished, pretrained, data_dir, tmp_path
):
    flags = flags_of(pretrained, data_dir, tmp_path / "w")
    log = tmp_path / "w" / "trials.jsonl"
    kill_when(
        lambda: log.exists() and log.read_text().count("\n") >= 2, *command("transfer", *flags)
    )
    done = run(*command("transfer", *flags))
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "w") == lines(finished[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tasks=imdb",), "error: --from: name the folder"),
        (("--from=/nowhere", "--tasks=imdb"), "error: /nowhere holds no controller"),
        (("--from=x", "--tasks=imdb", "--renamed=a"), "error: --renamed=a: must be old=new"),
        (("--from=x", "--tasks=imdb", "--embedding=maen"), "mean|random|similar|inferred"),
        (("--from=x", "--learner=random"), "--learner=random: random search has nothing"),
        (("--from=x", "--suggested=-1"), "--suggested=-1: must be at least 0"),
        (("--leave_one_out", "--noguard"), "with --leave_one_out: name --methods instead"),
        (("--leave_one_out", "--live_report"), "experiments.report draws what is there"),
        (("--leave_one_out", "--early_stopping=0.5"), "no --early_stopping; leave them out"),
        (("--leave_one_out", "--tasks=imdb"), "leaving one task out takes at least two tasks"),
        (("--leave_one_out", "--tasks=imdb,sst2", "--methods=tranfer"), "did you mean 'transfer'"),
    ],
)
def test_mistakes_get_one_clear_line(flags, message, data_dir, tmp_path):
    done = run(
        *command("transfer", *flags, f"--data_dir={data_dir}", f"--workdir={tmp_path / 'w'}")
    )
    assert done.returncode == 1
    assert message in done.stderr + done.stdout and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("trials.jsonl"))


def test_a_comparison_leaves_each_task_out(data_dir, tmp_path):
    flags = ("--leave_one_out", "--tasks=sst2,imdb", "--methods=random,cold,transfer", "--seeds=1")
    flags += ("--num_trials=3", f"--data_dir={data_dir}", f"--workdir={tmp_path / 'w'}")
    done = run(*command("transfer", *flags))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "w" / "leave_one_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = ["task", "method", "seed", "trials", "best_reward", "trials_to_threshold", "censored"]
    assert list(rows[0]) == columns
    pairs = {(row["task"], row["method"]) for row in rows}
    assert pairs == {(t, m) for t in ("sst2", "imdb") for m in ("random", "cold", "transfer")}
    assert (tmp_path / "w" / "leave_one_out.html").exists()
