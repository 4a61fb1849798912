"""Launchers, with real processes on this machine and stand-ins for clusters' commands."""

import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from commands import ROOT, lines, run

ENVIRONMENT = {
    **os.environ,
    "PYTHON": sys.executable,
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}
SCRIPTS = [*sorted((ROOT / "launch").glob("*.s[bh]*")), ROOT / ".ci" / "run"]
LOCAL, TPU = str(ROOT / "launch" / "local.sh"), str(ROOT / "launch" / "tpu_pod.sh")
SLURM = str(ROOT / "launch" / "slurm.sbatch")
TPU_OPTIONS = ("--name=pod", "--zone=us-east5-b")
GKE = {
    "--name": "search",
    "--accelerator": "tpu-v6e-slice",
    "--topology": "4x4",
    "--hosts": "4",
    "--package": "mnms_jax[bucket] @ git+https://host/mnms_jax",
}
# An experiment that does what its flags say, without JAX: --die_0=CODE is for process 0.
FAKE = """
import os, pathlib, signal, sys, time
flags = dict(flag[2:].partition("=")[::2] for flag in sys.argv[1:])
own = flags.get("process_id", "0")
signal.signal(signal.SIGTERM, lambda *_: (print("terminated"), sys.exit(0)))
print("process", own, *sys.argv[1:], sep="|", flush=True)
if "workdir" in flags:
    workdir = pathlib.Path(flags["workdir"])
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    with (workdir / "trials.jsonl").open("a") as log:
        log.write("trial\\n")
    (workdir / "checkpoints" / "state").touch()
if f"die_{own}" in flags:
    sys.exit(int(flags[f"die_{own}"]))
pathlib.Path(f"{own}.ready").touch()
if "wait" in flags:
    time.sleep(60)
"""


@pytest.fixture
def fake(tmp_path):
    """A folder whose Python finds the module `fake`."""
    (tmp_path / "fake.py").write_text(FAKE)
    return {"cwd": tmp_path, "env": {**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}"}}


def launch(place, *command):
    return subprocess.run([*command], capture_output=True, text=True, check=False, **place)


def write_command(folder, name, text):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def wait_for(*paths):
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    checker = pathlib.Path(sys.executable).with_name("shellcheck")
    found = run(checker, script)
    assert found.returncode == 0, found.stdout


def test_there_are_scripts():
    assert [path.name for path in SCRIPTS] == ["local.sh", "slurm.sbatch", "tpu_pod.sh", "run"]


def toy_flags(workdir, data_dir):
    return [
        *("toy_experiment", "--tasks=sst2", "--round_size=4", "--num_trials=12"),
        *(f"--workdir={workdir}", f"--data_dir={data_dir}", "--nocompare_random"),
        "--num_workers=1",
    ]


def test_two_processes_search_locally_and_under_slurm(tmp_path, data_dir):
    local, slurm = tmp_path / "local", tmp_path / "slurm"
    place = {"cwd": ROOT, "env": {**ENVIRONMENT, "LOGS": str(tmp_path / "logs")}}
    done = launch(place, LOCAL, "2", *toy_flags(local, data_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy in %" in done.stdout and "process 0 of 2" in done.stdout
    assert (tmp_path / "logs" / "0.log").read_text() == done.stdout
    assert "process 1 of 2" in (tmp_path / "logs" / "1.log").read_text()
    assert len(lines(local)) == 12

    # srun starts a task on each node, which JAX finds out from its variables.
    write_command(
        tmp_path,
        "srun",
        """
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_LOCALID=0
for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit; done""",
    )
    cluster = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(random.randrange(4096)),  # which gives the port
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NUM_NODES": "2",
    }
    place = {"cwd": ROOT, "env": {**ENVIRONMENT, **cluster}}
    done = launch(place, "bash", SLURM, *toy_flags(slurm, data_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "process 1 of 2" in done.stderr
    assert lines(slurm) == lines(local)


def test_local_processes_end_with_the_first_that_fails(fake, tmp_path):
    done = launch(fake, LOCAL, "3", "fake", "--wait=", "--die_1=7", "--tasks=a b.csv")
    assert done.returncode == 7
    assert "process 1 ended with exit code 7" in done.stderr
    (logs,) = (tmp_path / "runs" / "logs").iterdir()
    said = [(logs / f"{i}.log").read_text().splitlines() for i in range(3)]
    assert said[0] == done.stdout.splitlines()
    assert said[0][-1] == said[2][-1] == "terminated"
    assert "--tasks=a b.csv|--distributed|" in said[1][0]
    assert "--num_processes=3|--process_id=1" in said[1][0]
    assert sorted(path.name for path in logs.iterdir()) == ["0.log", "1.log", "2.log"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_local_processes_end_with_a_signal(fake, tmp_path, number, code):
    # As a terminal's child: a shell lets those in its background ignore SIGINT.
    process = subprocess.Popen(
        [LOCAL, "2", "fake", "--wait="], stdout=subprocess.PIPE, text=True, **fake
    )
    wait_for(tmp_path / "0.ready", tmp_path / "1.ready")
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert said.splitlines()[-1] == "terminated"


@pytest.mark.parametrize("arguments", [(), ("2",), ("0", "fake"), ("two", "fake")])
def test_local_says_how_it_is_used(fake, arguments):
    done = launch(fake, LOCAL, *arguments)
    assert done.returncode == 2 and "N MODULE [FLAGS...]" in done.stderr


def host(place, *arguments):
    return launch(place, sys.executable, "-m", "launch.host", *arguments)


def test_a_host_keeps_a_copy_from_which_another_goes_on(fake, tmp_path):
    flags = (f"--copy=file://{tmp_path}/bucket/run", "fake", "--workdir=first/work")
    assert host(fake, *flags).returncode == 0
    bucket = tmp_path / "bucket" / "run"
    assert [path.name for path in bucket.iterdir()] == ["trials.jsonl"]
    other = host(fake, *flags[:2], "--workdir=second", "--die_0=3")
    assert other.returncode == 3
    assert (bucket / "trials.jsonl").read_text() == "trial\n" * 2
    # One that writes nothing, as all hosts but the first, copies nothing back.
    (bucket / "trials.jsonl").write_text("newer\n")
    (tmp_path / "quiet.py").touch()
    assert host(fake, flags[0], "quiet", "--workdir=second").returncode == 0
    assert (bucket / "trials.jsonl").read_text() == "newer\n"


def test_a_host_without_its_bucket_fails_at_the_end(fake, tmp_path):
    (tmp_path / "bucket").touch()
    done = host(fake, f"--copy=file://{tmp_path}/bucket/run", "fake", "--workdir=w")
    assert done.returncode == 1
    assert "the workdir can't be copied" in done.stderr


def test_a_terminated_host_is_not_done(fake, tmp_path):
    command = [sys.executable, "-m", "launch.host", "fake", "--wait="]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **fake)
    wait_for(tmp_path / "0.ready")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert said.splitlines() == ["process|0|--distributed|--wait=", "terminated"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--copy=gs://b", "fake"], "give the experiment --workdir=FOLDER, once"),
        (["--copy=nothing://b", "fake", "--workdir=w"], "nothing"),
        ([], "module"),
    ],
    ids=["no_workdir", "no_file_system", "no_module"],
)
def test_a_host_tells_mistakes(fake, arguments, message):
    done = host(fake, *arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("ends", "requeued", "code"), [("exit 143", True, 0), ("exit 5", False, 5), ("", False, 0)]
)
def test_slurm_requeues_what_was_taken_away(fake, tmp_path, ends, requeued, code):
    write_command(tmp_path, "srun", f'printf "%s|" "$JAX_LOCAL_DEVICE_IDS" "$@"\n{ends}')
    write_command(tmp_path, "scontrol", 'echo "$@" >requeued')
    fake["env"] |= {"SLURM_JOB_ID": "12", "SLURM_GPUS_ON_NODE": "4"}
    fake["env"] |= {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2"}
    done = launch(fake, "bash", SLURM, "experiments.multitask", "--tasks=a b.csv")
    assert done.returncode == code
    command = f"{sys.executable}|-m|launch.host|experiments.multitask|--tasks=a b.csv|"
    assert done.stdout == f"0,1,2,3|--kill-on-bad-exit=1|--label|{command}"
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 12\n"


def test_slurm_requeues_before_the_time_is_over(fake, tmp_path):
    write_command(tmp_path, "srun", "touch started; exec sleep 3")
    write_command(tmp_path, "scontrol", 'echo "$@" >requeued')
    fake["env"] |= {"SLURM_JOB_ID": "12"}
    process = subprocess.Popen(["bash", SLURM, "fake"], **fake)
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 12\n"


def test_slurm_tells_mistakes(fake):
    done = launch(fake, "bash", SLURM, "fake")  # without sbatch
    assert done.returncode == 2 and "usage: sbatch" in done.stderr
    fake["env"] |= {"SLURM_JOB_ID": "12", "PYTHON": "nowhere/python"}
    done = launch(fake, "bash", SLURM, "fake")
    assert done.returncode == 2 and "nowhere/python isn't there" in done.stderr


def test_a_dry_run_on_a_tpu_pod_prints_all_commands_and_runs_none(fake, tmp_path):
    for name in ("gcloud", "git"):
        write_command(tmp_path, name, "touch called")
    done = launch(
        fake,
        *(TPU, "all", *TPU_OPTIONS, "--project=p", "--type=v6e-16", "--runtime=v2-alpha-tpuv6e"),
        *("--spot", "--bucket=gs://b/run", "--dry-run", "experiments.multitask", "--seed=1"),
    )
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    where = ["--zone=us-east5-b", "--project=p"]
    tpus = ["gcloud", "compute", "tpus"]
    assert commands[0] == [
        *(*tpus, "queued-resources", "create", "pod", "--node-id=pod", *where),
        *("--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot"),
    ]
    state = "--format=value(state.state)"
    assert commands[1] == [*tpus, "queued-resources", "describe", "pod", *where, state]
    assert commands[2][0] == "git" and commands[2][3] == "archive"
    assert commands[3][3:5] == ["tpu-vm", "scp"] and "--worker=all" in commands[3]
    for i, worker in ((4, "all"), (5, "all"), (6, "0")):
        assert commands[i][:-1] == [*tpus, "tpu-vm", "ssh", "pod", *where, f"--worker={worker}"]
    assert "'jax[tpu]'" in commands[4][-1]
    assert "--copy=gs://b/run experiments.multitask --workdir=runs/multitask" in commands[5][-1]
    assert "tail" in commands[6][-1]
    assert "pod:mnms_jax/runs/multitask" in commands[8]
    assert commands[9] == [*tpus, "queued-resources", "delete", "pod", *where, "--force", "--quiet"]
    assert len(commands) == 10
    assert not (tmp_path / "called").exists()


def test_what_a_tpu_pod_is_told_works(fake, tmp_path):
    # gcloud runs what it would send to a host, whose Python is one that says its arguments.
    write_command(tmp_path, "gcloud", 'command=${!#}; cd "$HOME"; eval "${command#*=}"')
    python = tmp_path / "mnms_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    write_command(python.parent, "python", f'printf "%s|" "$@"\nexec {sys.executable} "$@"')
    fake["env"]["HOME"] = str(tmp_path)
    flags = ("fake", "--tasks=mine=a b.csv?text=x&label='y'", "--wait=")
    place = {**fake, "env": {**fake["env"], "PYTHONPATH": f"{tmp_path}:{ROOT}"}}
    assert launch(place, TPU, "run", *TPU_OPTIONS, *flags).returncode == 0
    wait_for(tmp_path / "mnms_jax" / "0.ready")
    assert launch(place, TPU, "stop", *TPU_OPTIONS).returncode == 0
    said = launch(place, TPU, "logs", *TPU_OPTIONS).stdout
    assert f"-u|-m|launch.host|fake|--workdir=runs/multitask|{flags[1]}|--wait=|" in said
    assert "terminated" in said


def test_a_tpu_pod_is_waited_for(fake, tmp_path):
    write_command(tmp_path, "sleep", "exit")
    states = 'case $4 in describe) read -r s <states; sed -i 1d states; echo "$s" ;; esac'
    write_command(tmp_path, "gcloud", states)
    options = (*TPU_OPTIONS, "--type=v6e-16", "--runtime=v2-alpha-tpuv6e")
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\nnever\n")
    done = launch(fake, TPU, "create", *options)
    assert done.returncode == 0
    assert done.stdout.split() == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    (tmp_path / "states").write_text("PROVISIONING\nFAILED\nnever\n")
    done = launch(fake, TPU, "all", *options, "fake")
    assert done.returncode == 2
    assert "error: pod is FAILED" in done.stderr
    assert "pod may be there and cost money" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a subcommand"),
        (["pause", *TPU_OPTIONS], "pause: no such subcommand"),
        (["create", "--zone=z"], "--name=NAME is missing"),
        (["create", "--name=n"], "--zone=ZONE is missing"),
        (["create", *TPU_OPTIONS, "--runtime=r"], "--type=TYPE is missing"),
        (["create", *TPU_OPTIONS, "--type=t"], "--runtime=VERSION is missing"),
        (["run", *TPU_OPTIONS], "name the MODULE"),
        (["all", *TPU_OPTIONS], "name the MODULE"),
        (["run", *TPU_OPTIONS, "--bucket=b", "m"], "--bucket=b: no such option"),
        (["delete", *TPU_OPTIONS, "other"], "other: delete takes nothing"),
    ],
    ids=lambda value: "_".join(value[:1]) if isinstance(value, list) else None,
)
def test_a_tpu_pod_tells_mistakes(fake, tmp_path, arguments, message):
    write_command(tmp_path, "gcloud", "touch called")
    done = launch(fake, TPU, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert not (tmp_path / "called").exists()


def gke(place, options, *rest):
    flags = [f"{name}={value}" for name, value in options.items()]
    return launch(place, sys.executable, "-m", "launch.gke", *flags, *rest)


def test_gke_has_what_matters_and_its_pods_do_it(fake, tmp_path):
    flags = ["--workdir=work", '--tasks=mine=a "b".csv?text=$x: {y}']
    copy = f"--copy=file://{tmp_path}/bucket"
    done = gke(fake, GKE, "--spot", copy, "--service_account=writer", "fake", *flags)
    assert done.returncode == 0, done.stderr
    jobs = yaml.safe_load(done.stdout)
    assert (jobs["apiVersion"], jobs["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobs["metadata"]["name"] == "search"
    assert jobs["spec"]["failurePolicy"] == {"maxRestarts": 10}
    (replicated,) = jobs["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (4, 4, 0)
    assert (replicated["replicas"], job["completionMode"]) == (1, "Indexed")
    pod = job["template"]["spec"]
    assert (pod["restartPolicy"], pod["serviceAccountName"]) == ("Never", "writer")
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["image"] == "python:3.12"
    chips = {"google.com/tpu": 4}
    assert container["resources"] == {"requests": chips, "limits": chips}
    assert container["args"] == [copy, "fake", *flags]

    write_command(tmp_path, "pip", 'printf "%s|" "$@"')
    write_command(tmp_path, "python", f'exec {sys.executable} "$@"')
    fake["env"] |= {entry["name"]: entry["value"] for entry in container["env"]}
    pod_did = launch(fake, *container["command"], *container["args"])
    assert pod_did.returncode == 0, pod_did.stderr
    assert pod_did.stdout.startswith(f"install|--quiet|{GKE['--package']}|jax[tpu]|")
    assert "|".join(["process|0|--distributed", *flags]) in pod_did.stdout
    assert (tmp_path / "bucket" / "trials.jsonl").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--topology": "2x2x4"}, "must be NxN for tpu-v6e-slice"),
        ({"--hosts": "3"}, "4x4 is 16 chips, and a host has 1, 4 or 8, so 16 or 4 or 2 fit"),
        ({"--hosts": "0"}, "must be at least 1"),
        ({"--accelerator": "tpu-v9"}, "tpu-v9"),
        ({"--name": "My_search"}, "must be lower-case letters"),
        ({"--copy": "gs://b/run"}, "give the experiment --workdir=FOLDER too"),
    ],
    ids=["topology", "hosts", "no_hosts", "accelerator", "name", "copy"],
)
def test_gke_tells_mistakes(fake, changed, message):
    done = gke(fake, GKE | changed, "experiments.multitask")
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr.splitlines()[-1]


def test_gke_wants_a_module(fake):
    assert "must be a Python module" in gke(fake, GKE, "multi task").stderr
    missing = {name: value for name, value in GKE.items() if name != "--package"}
    assert "required: --package" in gke(fake, missing, "experiments.multitask").stderr
