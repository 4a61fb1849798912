import concurrent.futures

import jax
import numpy as np
import pytest
from toy import make_family, make_task, make_trainer

from mnms_jax.training.fit import Request
from mnms_jax.training.pool import Program

TASKS = (make_task("one", 200, seed=1), make_task("two", 150, num_classes=3, seed=2))


def request(family, trial=0, task_id=0, **choices):
    design = {d.name: d.choices[0] for d in family.space.decisions} | choices
    return Request(task_id, TASKS[task_id].name, trial, design)


@pytest.fixture(scope="module")
def family():
    return make_family(hidden_layers=(0, 1), optimizer=("adam", "sgd"))


@pytest.fixture(scope="module")
def trainer(family):
    return make_trainer(TASKS, family)


def run(trainer, requests):
    results = dict(trainer.train(requests))
    return [results[i] for i in range(len(requests))]


def test_children_learn_on_every_task(family, trainer):
    results = run(trainer, [request(family, 0, i, samples=25_600) for i in (0, 1)])
    for result in results:
        assert result.failed is None
        assert result.reward > 0.7
        assert result.samples == 25_600
        assert result.bucket == "random32 linear"
        assert result.seconds > 0


def test_a_result_depends_on_neither_neighbours_nor_workers(family, trainer):
    alone = run(trainer, [request(family, 3)])[0]
    crowd = [request(family, trial, trial % 2, samples=256) for trial in range(6)]
    crowd.insert(4, request(family, 3))
    together = run(trainer, crowd)[4]
    single = run(make_trainer(TASKS, family, num_workers=1), [request(family, 3)])[0]
    others_tasks = run(make_trainer(TASKS[:1], family), [request(family, 3)])[0]
    assert alone.reward == together.reward == single.reward
    # Other shapes round otherwise, but the draws are the same.
    assert others_tasks.reward == pytest.approx(alone.reward, abs=0.05)


def test_fit_gives_the_same_child_again(family, trainer):
    outcome, variables = trainer.fit(request(family, 3))
    again, same = trainer.fit(request(family, 3))
    assert float(outcome.accuracy) == run(trainer, [request(family, 3)])[0].reward
    assert float(again.loss) == float(outcome.loss)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)


def test_seed_task_and_trial_each_change_the_draws(family, trainer):
    losses = {float(trainer.fit(request(family, trial))[0].loss) for trial in range(3)}
    losses.add(float(make_trainer(TASKS, family, seed=1).fit(request(family))[0].loss))
    renamed = request(family)._replace(task_name="renamed")
    losses.add(float(trainer.fit(renamed)[0].loss))
    assert len(losses) == 5


def test_programs_are_shared_between_tasks_and_counted(family):
    trainer = make_trainer(TASKS, family)
    requests = [
        request(family, 0, 0),
        request(family, 0, 1),
        request(family, 1, 1, optimizer="sgd"),
    ]
    run(trainer, requests)
    assert trainer.stats.programs == 1
    run(trainer, [request(family, 0, 0, hidden_layers=1, **HIDDEN)])
    assert trainer.stats.programs == 2
    assert trainer.stats.compile_seconds > 0 and trainer.stats.run_seconds > 0


HIDDEN = {
    "hidden_size": 64,
    "hidden_activation": "relu",
    "normalization": "batch",
    "hidden_dropout": 0.2,
}


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_divergence_is_a_failure_with_a_reason_and_stops_early(family, trainer, rate):
    bad = request(family, 0, deep_learning_rate=rate, optimizer="sgd", samples=128_000)
    failed, fine = run(trainer, [bad, request(family, 1, samples=12_800)])
    assert failed.reward is None
    assert "diverged: not finite after step" in failed.failed
    assert failed.samples < 128 * 20
    assert fine.reward > 0.8


def test_other_errors_keep_their_traceback(family):
    def broken(task_id, spec):
        raise RuntimeError("no data")

    trainer = make_trainer(TASKS, family)
    trainer._data = broken
    with pytest.raises(RuntimeError, match="no data"):
        run(trainer, [request(family)])


def test_out_of_memory_is_a_failure(family, monkeypatch):
    trainer = make_trainer(TASKS, family)

    def explode(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    program = concurrent.futures.Future()
    program.set_result(Program(explode, 1))
    monkeypatch.setattr(trainer, "_program", lambda *_: program)
    assert run(trainer, [request(family)])[0].failed == "out of memory"


def test_samples_really_bound_the_work(family, trainer):
    few, many = (trainer.fit(request(family, 0, samples=n))[0] for n in (100, 1000))
    assert (int(few.num_steps), int(many.num_steps)) == (1, 8)


def test_a_task_smaller_than_a_batch(family):
    tiny = make_task("tiny", 9, seed=3)
    trainer = make_trainer((tiny,), family)
    design = request(family).design
    outcome, _ = trainer.fit(Request(0, "tiny", 0, design))
    assert 0 <= float(outcome.accuracy) <= 1 and np.isfinite(float(outcome.loss))


def test_children_below_a_rung_are_stopped(family):
    trainer = make_trainer(TASKS, family, rung_samples=(256, 640, 2560))
    child = request(family, 3, samples=2560)
    free = run(trainer, [child])[0]
    assert (free.samples, len(free.rungs), free.stopped) == (2560, 2, False)
    first = child._replace(rung_accuracies=(free.rungs[0] + 0.01,))
    second = child._replace(rung_accuracies=(free.rungs[0], 1.1))
    results = run(trainer, [first, second])
    assert [(r.samples, r.stopped, r.failed) for r in results] == [
        (256, True, None),
        (640, True, None),
    ]
    assert [r.reward for r in results] == list(free.rungs)
    assert results[1].rungs == free.rungs and results[0].rungs == free.rungs[:1]
    without = run(make_trainer(TASKS, family), [child])[0]
    assert (without.reward, without.rungs) == (free.reward, ())
