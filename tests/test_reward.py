import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from toy import make_family, make_task, make_trainer

import mnms_jax
from mnms_jax.children import mlp
from mnms_jax.children.text import PRESETS
from mnms_jax.config import Config, TransferConfig
from mnms_jax.experiment import run_experiment
from mnms_jax.export import TextChild
from mnms_jax.reward import METRICS, measure, parse_reward
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.store import TrialLog
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.training.fit import Request, Trainer
from mnms_jax.types import UserError

NUMBERS = {"accuracy": 0.5, "auroc": 0.25, "params": 1e6, "samples": 100}


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("accuracy", 0.5),
        ("accuracy - 0.01*log10(params)", 0.44),
        ("-accuracy**2 + 2*(auroc - 1)/4", -0.625),
        ("min(accuracy, auroc, 1) + max(accuracy, auroc)", 0.75),
        ("abs(auroc - accuracy) * sqrt(samples) + log(params)/log(10)", 8.5),
        (" +accuracy\n ", 0.5),
    ],
)
def test_formulas(formula, value):
    reward, failed = parse_reward(formula)(NUMBERS)
    assert reward == pytest.approx(value) and failed is None


def test_the_same_formula_is_the_same_however_it_is_spaced():
    one, other = (parse_reward(text) for text in ("accuracy-.5*auroc", " accuracy  - 0.5 *(auroc)"))
    assert one.formula == other.formula == "accuracy - 0.5 * auroc"
    assert parse_reward(one.formula).formula == one.formula
    assert Config(reward="accuracy-.5*auroc").reward == one.formula


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("acuracy", "'acuracy' at character 1 is unknown; did you mean 'accuracy'?"),
        ("accuracy + lg(params)", "'lg(params)' at character 12 isn't a known function; did you"),
        ("accuracy - seconds", "'seconds' at character 12 is never the same twice"),
        ("log_loss", "did you mean 'neg_log_loss'?"),
        ("accuracy + \udc80", "must have characters of UTF-8 only"),
        ("1 + 2", "must depend on one of accuracy, balanced_accuracy"),
        ("", "invalid syntax"),
        ("accuracy -", "invalid syntax at its end"),
        ("(accuracy", "'(' was never closed at character 1"),
        ("0.1log10(params)", "invalid decimal literal at character"),
        ("accuracy * 1e999", "'1e999' at character 12 is too large"),
        ("max(auroc)", "'max(auroc)' at character 1 needs two numbers or more"),
        ("log(auroc, 2)", "takes one number"),
        ("é + auroc", "'é' at character 1 is unknown"),
        ("accuracy.real", "'accuracy.real' at character 1 can't be part of it"),
        ("__import__('os').system('ls')", "can't be part of it"),
        ("(lambda: accuracy)()", "can't be part of it"),
        ("[accuracy for _ in ()]", "can't be part of it"),
        ("accuracy if auroc else 1", "can't be part of it"),
        ("accuracy and True", "can't be part of it"),
        ("accuracy + True", "'True' at character 12 can't be part of it"),
        ("accuracy * 'a'", "can't be part of it"),
        ("min(*samples, 1)", "can't be part of it"),
        ("abs(x=accuracy)", "can't be part of it"),
        ("1j * accuracy", "can't be part of it"),
        ("accuracy << 9", "can't be part of it"),
        ("-" * 250 + "accuracy", "is more than 30 parts deep"),
        ("(" * 250, "too many nested parentheses"),
        ("~" * 250 + "accuracy", "can't be part of it"),
        ("accuracy +" * 100 + " 1", "must have at most 300 characters"),
        (f"min({','.join(['auroc'] * 48)})", "must have at most 300 characters"),  # with spaces
    ],
    ids=str,
)
def test_what_is_no_formula_is_refused_with_its_place(formula, message):
    with pytest.raises(UserError) as error:
        parse_reward(formula)
    assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^reward "):
        Config(reward=formula)


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("1 / (samples - 100)", "1 / (samples - 100) with samples 100: float division by zero"),
        ("(-params) ** .5", "domain error"),
        ("params ** 999", "range error"),
        ("params ** 20", "1e+120 is no reward"),
        ("log(samples - 100)", "domain error"),
        ("matthews", "matthews isn't defined here"),
    ],
)
def test_a_formula_without_a_value_says_why(formula, reason):
    reward, failed = parse_reward(formula)(NUMBERS)
    assert reward is None and reason in failed


def test_metrics_by_hand():
    labels = np.array([0, 0, 0, 1])
    found = measure(labels, np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]))
    assert tuple(found) == METRICS
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["auroc"] == pytest.approx(2 / 3)  # of three pairs one is the wrong way round
    assert found["matthews"] == pytest.approx((1 * 2 - 1 * 0) / math.sqrt(2 * 1 * 3 * 2))
    assert found["neg_log_loss"] == pytest.approx(np.log([0.9, 0.6, 0.2, 0.7]).mean())


@pytest.mark.parametrize("num_classes", [2, 3, 7])
@pytest.mark.parametrize("size", [5, 400])
def test_metrics_are_scikit_learns(num_classes, size):
    rng = np.random.default_rng(num_classes)
    labels = np.append(np.arange(num_classes), rng.integers(num_classes, size=size))
    scores = rng.integers(1, 9, (len(labels), num_classes)) + 3.0 * np.eye(num_classes)[labels]
    scores[-1] = 9 * np.eye(num_classes)[0]  # there are ties, and a probability of 0
    probabilities = scores / scores.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    columns = probabilities if num_classes > 2 else probabilities[:, 1]
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": sklearn_metrics.f1_score(labels, predicted, average="macro"),
        "auroc": sklearn_metrics.roc_auc_score(labels, columns, multi_class="ovr"),
        "matthews": sklearn_metrics.matthews_corrcoef(labels, predicted),
        "neg_log_loss": -sklearn_metrics.log_loss(labels, probabilities.astype(np.float32)),
    }
    assert measure(labels, probabilities) == pytest.approx(expected, rel=1e-5)
    constant = np.tile(np.eye(num_classes)[0], (len(labels), 1))
    assert measure(labels, constant)["matthews"] == 0
    assert measure(labels, constant)["auroc"] == 0.5


def test_metrics_of_labels_for_which_not_all_are_defined():
    sure = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = measure(np.array([1, 1]), sure)
    assert set(found) == {"accuracy", "balanced_accuracy", "macro_f1", "neg_log_loss"}
    assert found["accuracy"] == 0 and found["neg_log_loss"] == pytest.approx(math.log(2**-23))
    # One of three classes isn't there: the others' curves count.
    labels, scores = np.array([0, 0, 2]), np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], sure[1]])
    assert measure(labels, scores)["auroc"] == 1.0
    assert measure(labels, scores)["balanced_accuracy"] == 0.75


TASKS = (make_task("one", 900, seed=1), make_task("two", 500, num_classes=3, seed=2))
SMALL = ("random32", "hashed32")


@pytest.fixture(scope="module")
def family():
    return make_family(hidden_layers=(0, 1), samples=(256,), embedding=SMALL)


def request(family, task_id=0, **choices):
    design = {d.name: d.choices[0] for d in family.space.decisions} | choices
    return Request(task_id, TASKS[task_id].name, 3, design)


HIDDEN = {
    "hidden_layers": 1,
    "hidden_activation": "relu",
    "normalization": "none",
    "hidden_dropout": 0.0,
}


def test_a_child_has_the_metrics_of_its_predictions_on_validation(family):
    """The exported child predicts by a program of its own; 300 rows are three batches' worth."""
    inputs = TextInputs(TASKS, PRESETS["cpu"]._replace(length=8), {})
    for lanes in (1, 2):
        trainer = Trainer(
            family, inputs.child_data, num_classes=3, lanes=lanes, reward="macro_f1 + auroc"
        )
        requests = [request(family, 0, samples=512), request(family, 1), request(family, 1)]
        results = dict(trainer.train(requests))
        for i, wanted in enumerate(requests[:2]):
            result, task = results[i], TASKS[i]
            _, variables = trainer.fit(wanted)
            spec = family.make_spec(wanted.design)
            child = TextChild(
                task.name,
                task.class_names,
                dict(wanted.design),
                spec.architecture,
                spec.hyperparameters,
                inputs.encoder(i, spec.preprocessing),
                None,
                variables,
            )
            split = task.splits["validation"]
            assert len(split.labels) in (300, 166)
            probabilities = child.predict_proba(split.inputs)
            expected = measure(split.labels, probabilities)
            assert 0.4 < expected["accuracy"] < 1
            found = {name: result.metrics[name] for name in METRICS}
            assert found == pytest.approx(expected, abs=1e-5)
            columns = probabilities if i else probabilities[:, 1]
            auroc = sklearn_metrics.roc_auc_score(split.labels, columns, multi_class="ovr")
            assert found["auroc"] == pytest.approx(auroc, abs=1e-5)
            loss = sklearn_metrics.log_loss(split.labels, probabilities)
            assert found["neg_log_loss"] == pytest.approx(-loss, abs=1e-4)
            assert result.reward == result.metrics["macro_f1"] + result.metrics["auroc"]
            assert result.metrics["samples"] == result.samples == (512, 256)[i]


def test_params_are_those_of_the_design_and_the_task(family):
    trainer = make_trainer(TASKS, family)
    spec = family.make_spec(request(family).design)
    rows, ngrams = spec.architecture.rows, spec.architecture.ngrams
    wanted = [request(family, task_id) for task_id in (0, 1)]
    wanted += [request(family, 0, hidden_size=size, **HIDDEN) for size in (64, 128)]
    results = dict(trainer.train(wanted))
    table = rows * 32
    for i, classes in ((0, 2), (1, 3)):
        expected = table + 32 * classes + (ngrams + 1) * classes
        assert results[i].metrics["params"] == expected
    for i, size in ((2, 64), (3, 128)):
        expected = table + (32 + 3) * size + size * 2 + (ngrams + 1) * 2
        assert results[i].metrics["params"] == expected
    assert results[2].bucket == results[3].bucket  # they share a program


def test_a_reward_that_is_not_finite_is_a_failed_trial(family):
    trainer = make_trainer(TASKS, family, reward="log(accuracy - 1)")
    result = dict(trainer.train([request(family)]))[0]
    assert result.reward is None and not result.stopped
    assert result.failed.startswith("log(accuracy - 1) with accuracy 0.")
    assert result.metrics["accuracy"] > 0.4


FORMULA = "accuracy - 0.01*log10(params)"
FEW = {"hidden_layers": (0, 1), "hidden_size": (32, 64), "samples": (1280, 2560)}
FEW |= {"scaling": ("standard",), "linear": (False,)}


@pytest.fixture(scope="module", autouse=True)
def few_records():
    """Records have few choices, and children that are quick to compile and to train."""
    family = mlp.make_record_family()
    space = SearchSpace(
        Decision(d.name, FEW.get(d.name, d.choices), d.active_if and {"hidden_layers": (1,)})
        for d in family.space.decisions
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlp, "make_record_family", lambda preset: family._replace(space=space))
        yield


def config_of(workdir, **changes):
    config = Config(
        tasks=("iris",),
        num_trials=6,
        round_size=3,
        workdir=str(workdir),
        compare_random=False,
        reward_model=False,
        reward=FORMULA,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("search") / "w"
    return workdir, run_experiment(config_of(workdir))


def records_of(workdir):
    records = TrialLog(workdir / "trials.jsonl").records
    return [record._replace(seconds=0.0) for record in records]


def test_a_search_is_rewarded_by_the_formula(searched):
    workdir, summary = searched
    records = records_of(workdir)
    assert len(records) == 6
    for record in records:
        numbers = record.metrics
        expected = numbers["accuracy"] - 0.01 * math.log10(numbers["params"])
        assert record.reward == pytest.approx(expected)
    assert summary["reward"] == "accuracy - 0.01 * log10(params)"
    found = summary["tasks"]["iris"]
    best = found["finalists"][0]
    assert best["validation"] == max(record.reward for record in records)
    size = 0.01 * math.log10(best["metrics"]["params"])
    assert best["test"] == pytest.approx(best["test_metrics"]["accuracy"] - size)
    assert found["reference"]["test"] is None  # trees have no parameters to count
    saved = mnms_jax.load_controller(workdir / "controller")
    assert saved.reward == summary["reward"]
    rewards = [record.reward for record in records if record.bucket != "log"]
    known = saved.trials.rewards[0, : int(saved.trials.size[0])]
    np.testing.assert_allclose(known, rewards, rtol=1e-6)


def test_resumed_it_ends_with_the_same_trials(searched, tmp_path):
    whole = searched[0]
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.json").write_text((whole / "config.json").read_text())
    lines = (whole / "trials.jsonl").read_text().splitlines(keepends=True)
    (part / "trials.jsonl").write_text("".join(lines[:4]))
    run_experiment(config_of(part, reward=" accuracy - 0.01 * log10(params)"))
    assert records_of(part) == records_of(whole)


def test_a_search_by_another_reward_is_refused(searched):
    workdir = searched[0]
    with pytest.raises(UserError, match=r"reward: 'accuracy - 0.01 \* log10.*, 'macro_f1' now"):
        run_experiment(config_of(workdir, reward="macro_f1"))
    transfer = TransferConfig(tasks=("wine",), from_=str(workdir), workdir=f"{workdir}/new")
    with pytest.raises(UserError, match=r"--reward=accuracy: what .* was rewarded with 'accuracy"):
        run_experiment(transfer)


def test_folders_and_controllers_of_before_were_rewarded_with_accuracy(searched, tmp_path):
    workdir = tmp_path / "w"
    config = config_of(workdir, reward="accuracy", num_trials=3, learner="random")
    run_experiment(config)
    file, log = workdir / "config.json", workdir / "trials.jsonl"
    stored = json.loads(file.read_text())
    assert stored.pop("reward") == "accuracy"
    file.write_text(json.dumps(stored))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["reward"] for row in rows] == [row.pop("metrics")["accuracy"] for row in rows]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="reward: 'accuracy' there, 'auroc' now"):
        run_experiment(dataclasses.replace(config, reward="auroc"))
    finalists = run_experiment(config)["tasks"]["iris"]["finalists"]
    assert [f["metrics"] for f in finalists] == [{}] * len(finalists)
    assert all(f["test"] == f["test_metrics"]["accuracy"] for f in finalists)
    shutil.copytree(searched[0] / "controller", tmp_path / "controller")
    described = tmp_path / "controller" / "controller.json"
    data = json.loads(described.read_text())
    assert data.pop("reward") == "accuracy - 0.01 * log10(params)"
    described.write_text(json.dumps(data))
    assert mnms_jax.load_controller(described.parent).reward == "accuracy"
