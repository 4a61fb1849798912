"""Which of a search's designs is retrained, and from where its files are found."""

import contextlib
import pathlib

import numpy as np
import pytest
from toy import make_task

import mnms_jax
from mnms_jax.bench import Bench, with_absolute_paths
from mnms_jax.retrain import confirm, describe_rewards
from mnms_jax.store import TrialRecord
from mnms_jax.training.judge import TrialResult
from mnms_jax.types import UserError


class FakeTrainer:
    """Rewards designs by a table, and remembers what was asked of it."""

    def __init__(self, rewards):
        self.rewards, self.asked = rewards, []

    def train(self, requests):
        self.asked += requests
        for i, request in enumerate(requests):
            yield i, TrialResult(self.rewards[request.design["a"]][i % 2], None, 0.0, 0, "")


def test_a_lucky_design_is_overtaken():
    earned = {"lucky": 0.9, "good": 0.8, "fails": 0.85, "bad": 0.1}
    rewards = {"lucky": (0.5, 0.6), "good": (0.8, 0.7), "fails": (0.9, None)}
    log = [
        TrialRecord("one", trial, {"a": name}, reward, None, 0.0, 0, "", 0)
        for trial, (name, reward) in enumerate(earned.items())
    ]
    log.append(log[0]._replace(trial=4, bucket="log"))  # a repeat is no other design
    trainer = FakeTrainer(rewards)
    bench = Bench((make_task("one"),), None, None, None, trainer)
    good, lucky, fails = confirm(bench, 0, log, num_candidates=3, num_seeds=2)
    assert good.trial == 1 and good.rewards == (0.8, 0.8, 0.7)
    assert lucky.trial == 0 and lucky.mean == pytest.approx(2 / 3)
    assert fails.trial == 2 and np.isnan(fails.mean)
    assert {request.trial for request in trainer.asked} == {5, 6}  # seeds that no trial had
    (single,) = confirm(bench, 0, log, num_candidates=1, num_seeds=2)
    assert single.design == {"a": "lucky"} and single.rewards == (0.9,)
    assert len(trainer.asked) == 6  # a single one isn't trained


def test_a_search_whose_trials_are_gone_or_failed_has_no_design():
    bench = Bench((make_task("one"),), None, None, None, FakeTrainer({}))
    failed = TrialRecord("one", 0, {"a": "fails"}, None, "not finite", 0.0, 0, "", 0)
    for log in ([], [failed], [failed._replace(task="two", reward=0.5, failed=None)]):
        with pytest.raises(UserError, match="no trial on one with a reward"):
            confirm(bench, 0, log, num_candidates=1, num_seeds=1)


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ((0.5, 1, np.nan), "on test 0.7500 ± 0.3536 (mean, deviation) of 2 seeds; 1 more failed"),
        ((0.5,), "on test 0.5000 with one seed"),
        ((np.nan, np.nan), "all 2 children failed"),
    ],
    ids=("several", "one", "none"),
)
def test_rewards_in_words(rewards, words):
    assert describe_rewards(rewards) == words


def test_all_paths_of_a_configuration_are_made_absolute(tmp_path):
    config = mnms_jax.Config(
        tasks=(
            "a=x/../y.csv?test=~/z.csv&text=t",
            "b=/c.csv",
            "vader_movie",
            "tfds:imdb?test=test",
        ),
        embeddings=("minilm", "mine=vectors.txt"),
        data_dir="data",
    )
    with contextlib.chdir(tmp_path):
        found = with_absolute_paths(config)
    first, *others = found.tasks
    assert first == f"a={tmp_path}/y.csv?test={pathlib.Path.home()}/z.csv&text=t"
    assert others == ["b=/c.csv", "vader_movie", "tfds:imdb?test=test"]
    assert found.embeddings == ("minilm", f"mine={tmp_path}/vectors.txt")
    assert found.data_dir == f"{tmp_path}/data" and with_absolute_paths(found) == found
    assert with_absolute_paths(mnms_jax.Config()) == mnms_jax.Config()
    with contextlib.chdir(tmp_path):
        (above,) = with_absolute_paths(mnms_jax.Config(tasks=("a=..",))).tasks
    assert above == f"a={tmp_path.parent}"
    (tmp_path / "link").symlink_to(tmp_path.parent)  # on other machines it may lead elsewhere
    linked = mnms_jax.Config(tasks=(f"a={tmp_path}/link/y.csv",))
    assert with_absolute_paths(linked) == linked
    odd = tmp_path / "R&D"
    odd.mkdir()
    with contextlib.chdir(odd):  # where files' names couldn't be told from options
        assert with_absolute_paths(config).tasks[0] == config.tasks[0]
