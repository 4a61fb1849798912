import dataclasses
import subprocess
import sys

import pytest

from mnms_jax.config import RESUMABLE, Config, TransferConfig
from mnms_jax.transfer import WarmStart
from mnms_jax.types import UserError


def test_defaults_are_valid_and_described():
    config = Config()
    assert config.tasks == ("vader_movie", "vader_amazon")
    for field in dataclasses.fields(Config):
        assert len(field.metadata["help"]) > 10
    assert set(RESUMABLE) < {field.name for field in dataclasses.fields(TransferConfig)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ()}, "at least one task"),
        ({"tasks": ("a", "a")}, "each once"),
        ({"num_trials": 0}, "--num_trials=0: must be at least 1"),
        ({"round_size": -1}, "--round_size=-1"),
        ({"time_limit": -1.0}, "--time_limit"),
        ({"lanes": -1}, "--lanes=-1: must be at least 0"),
        ({"rounds_in_flight": 0}, "--rounds_in_flight=0: must be at least 1"),
        ({"rounds_in_flight": 2, "learner": "trpo"}, "trpo learns from its own policy's trials"),
        ({"tell": "first_done"}, "--rounds_in_flight=1: must be at least 2 with --tell"),
        ({"ray_address": "auto"}, "--ray_address=auto: this goes with --executor=ray"),
        ({"seed": -1}, "--seed=-1: must be from 0"),
        ({"seed": 2**32}, "--seed=4294967296"),
        ({"time_limit": float("nan")}, "--time_limit=nan"),
        ({"space": "gpu"}, "--space=gpu: must be one of cpu, full"),
        (
            {"embeddings": ("mine",)},
            "--embeddings=mine: must be name=path, or one of minilm, minilm_encoder, subwords",
        ),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(UserError, match=message):
        Config(**changes)


def test_rounds_are_shared_out_evenly():
    assert Config(round_size=16).trials_per_task == 8
    assert Config(tasks=("a", "b", "c"), round_size=16).trials_per_task == 6
    assert Config(tasks=("a", "b", "c"), round_size=1).trials_per_task == 1


def test_embedding_files():
    files = Config(embeddings=("a=x/y.txt", "minilm", "b=c=d.npz")).embedding_files
    assert files == {"a": "x/y.txt", "b": "c=d.npz"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), WarmStart()),
        (("--noguard",), WarmStart(belief=1.0)),
        (("--noreward_model", "--suggested=6"), WarmStart(ranked=False, suggested=6)),
        (
            ("--embedding=similar", "--trained=embedding", "--noimitation", "--replay"),
            WarmStart("similar", "embedding", imitation_steps=0, replay=True),
        ),
    ],
)
def test_flags_of_transfer_become_its_warm_start(flags, expected):
    script = SCRIPT.replace("seed=7", "mnms.TransferConfig").replace(
        "config_from_flags()", "config_from_flags(mnms.TransferConfig).warm_start"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(expected)


def test_a_preset_sets_the_flags_that_are_not_given():
    script = SCRIPT.replace("config_from_flags()", "config_from_flags(mnms.TransferConfig)")
    script = script.replace("seed=7", "mnms.TransferConfig")
    done = subprocess.run(
        [sys.executable, "-c", script, "--preset=tnaml2018", "--learner=urex", "--imitation"],
        capture_output=True,
        text=True,
        check=False,
    )
    expected = TransferConfig(
        learner="urex",
        advantage="relative",
        imitate_best=False,
        reward_model=False,
        embedding="random",
        imitation=True,
    )
    assert done.stdout.strip() == str(expected)
    assert run("--preset=mnms2017").stdout.strip() == str(
        Config(
            seed=7,
            advantage="relative",
            imitate_best=False,
            skip_connection=False,
            reward_model=False,
        )
    )


SCRIPT = """
import mnms_jax as mnms
mnms.define_flags(seed=7)
mnms.run_main(lambda: print(mnms.config_from_flags()))
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


def test_flags_become_the_config():
    done = run("--tasks=sst2,imdb", "--num_trials=3", "--nosave_controller", "--time_limit=1.5")
    expected = Config(
        tasks=("sst2", "imdb"), num_trials=3, save_controller=False, time_limit=1.5, seed=7
    )
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num_trails=3", "num_trials"),
        ("--learner=pp0", "ppo"),
        ("--num_trials=many", "'many'"),
    ],
)
def test_a_misspelt_flag_or_value_is_answered_with_the_right_one(flag, message):
    done = run(flag)
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stopping": 0.5, "reward": "accuracy - samples/1e9"}, "--early_stopping=0.5"),
    ],
)
def test_options_that_spoil_each_other_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TransferConfig(**options)
