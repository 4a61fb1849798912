import functools
import queue
import threading
import time

import jax
import numpy as np
import pytest
from toy import make_family, make_task, make_trainer

from mnms_jax.children.mlp import make_record_family
from mnms_jax.tasks.record_inputs import RecordInputs
from mnms_jax.tasks.registry import load_tasks
from mnms_jax.training.fit import Request, Trainer, TrainerStats
from mnms_jax.training.plan import cost_model

TASK = make_task("one", 100, seed=1)
HIDDEN = {
    "hidden_layers": 1,
    "hidden_size": 64,
    "hidden_activation": "relu",
    "normalization": "batch",
    "hidden_dropout": 0.2,
}


@pytest.fixture(scope="module")
def family():
    return make_family(hidden_layers=(0, 1), samples=(256,))


def design(family, **choices):
    return {d.name: d.choices[0] for d in family.space.decisions} | choices


def test_programs_beyond_the_limit_are_evicted_and_compiled_again(family):
    trainer = make_trainer((TASK,), family, max_programs=1, num_workers=1)
    flat, deep = (Request(0, "one", 0, design(family, **c)) for c in ({}, HIDDEN))
    first = dict(trainer.train([flat]))[0]
    assert trainer.stats.programs == 1
    dict(trainer.train([deep]))
    again = dict(trainer.train([flat]))[0]
    assert trainer.stats.programs == 3 and len(trainer._programs.done()) == 1
    assert again._replace(seconds=0) == first._replace(seconds=0)


def test_waiting_for_the_compiler_is_counted(family):
    trainer = make_trainer((TASK,), family, num_workers=1)
    wanted = [Request(0, "one", 0, design(family))]
    dict(trainer.train(wanted))
    stats = trainer.stats
    assert 0.5 * stats.compile_seconds < stats.idle_seconds <= stats.compile_seconds + 0.5
    assert 0 < stats.idle_share < 1
    dict(trainer.train(wanted))
    assert trainer.stats.idle_seconds == stats.idle_seconds


def test_closing_leaves_out_what_has_not_begun(family):
    started = threading.Event()
    trainer = make_trainer((TASK,), family, num_workers=1)
    trained = []
    train = trainer._train

    def count(program, members):
        trained.extend(members)
        started.set()
        return train(program, members)

    trainer._train = count
    results = trainer.train([Request(0, "one", trial, design(family)) for trial in range(50)])
    next(results)
    results.close()
    time.sleep(0.3)
    assert started.is_set() and len(trained) < 50
    seen = len(trained)
    time.sleep(0.3)
    assert len(trained) == seen


def test_calls_go_on_at_once_from_when_they_are_made(family):
    trainer = make_trainer((TASK,), family, num_workers=1)
    sizes = ({}, HIDDEN, HIDDEN | {"hidden_layers": 2})
    wanted = [Request(0, "one", 0, design(family, **size)) for size in sizes]
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    first = trainer.train(wanted[:1], functools.partial(arrived.put, 1))
    second = trainer.train(wanted[1:], functools.partial(arrived.put, 2))
    assert arrived.get(timeout=60) == 1  # before anything is taken
    found = [*dict(first).values()]  # at whose end the other call's programs aren't forgotten
    assert [arrived.get(timeout=60) for _ in range(2)] == [2, 2]
    found += [result for _, result in sorted(second)]
    for result, request in zip(found, wanted, strict=True):
        again = dict(trainer.train([request]))[0]
        assert again._replace(seconds=0) == result._replace(seconds=0)


def test_the_idle_share_is_of_training_and_waiting():
    assert TrainerStats(2, 9.0, 1.0, 3.0).idle_share == 0.75
    assert TrainerStats(0, 0.0, 0.0, 0.0).idle_share == 0


def test_closing_forgets_programs_whose_compilation_has_not_begun(family):
    trainer = make_trainer((TASK,), family, num_workers=1)
    sizes = [
        design(family),
        design(family, **HIDDEN),
        design(family, **HIDDEN | {"hidden_layers": 2}),
    ]
    wanted = [Request(0, "one", 0, d) for d in sizes]
    results = trainer.train(wanted)
    next(results)
    results.close()
    assert len(trainer._programs.done()) < 3  # the last one was still queued
    assert len(dict(trainer.train(wanted))) == 3  # and is compiled when it is wanted again


def test_what_is_prefetched_is_compiled_once_after_what_is_needed_and_nobody_waits(family):
    trainer = make_trainer((TASK,), family, num_workers=1)
    flat, deep = (Request(0, "one", 0, design(family, **c)) for c in ({}, HIDDEN))
    compiled = []
    compile_program = trainer._compile

    def note(request, spec):
        compiled.append(request)
        return compile_program(request, spec)

    trainer._compile = note
    trainer.prefetch([deep, flat, deep])
    assert trainer.stats.programs == 0 and compiled == []  # nothing while nothing is trained
    results = trainer.train([flat] * 40)
    next(results)
    idle = trainer.stats.idle_seconds
    deadline = time.monotonic() + 60
    while trainer.stats.programs < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert trainer.stats.idle_seconds == idle
    assert len(list(results)) == 39
    assert compiled == [flat, deep]
    dict(trainer.train([deep]))
    assert trainer.stats.programs == 2 and trainer.stats.idle_seconds == idle


def test_closing_forgets_what_was_prefetched(family):
    trainer = make_trainer((TASK,), family, num_workers=1)
    wanted = [Request(0, "one", 0, design(family))]
    dict(trainer.train(wanted))
    sizes = ({"hidden_layers": n} for n in (1, 2, 3))
    trainer.prefetch([Request(0, "one", 0, design(family, **HIDDEN | size)) for size in sizes])
    results = trainer.train(wanted * 3)
    next(results)
    results.close()
    time.sleep(5)
    assert trainer.stats.programs <= 3  # of four: the last ones were still queued
    assert len(dict(trainer.train(wanted))) == 1


def test_lanes_are_chosen_by_the_memory_where_the_device_has_a_limit(family, monkeypatch):
    spec, wanted = family.make_spec(design(family)), Request(0, "one", 0, design(family))
    trainer = make_trainer((TASK,), family, num_workers=2)
    assert (
        "threads: 2, devices: 1 (cpu), children at once by a thread on a device: 1"
        in trainer.layout
    )
    size = trainer._child_bytes(wanted, spec)
    data = trainer._inputs(wanted, spec)[2]
    outcome, variables = trainer.fit(wanted)
    known, own = (sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (data, variables))
    logits = outcome.logits.nbytes + outcome.logits[0].nbytes  # those of no use are in a batch more
    assert size == known + 5 * own + 2 * logits

    class Limited:
        def memory_stats(self):
            return {"bytes_limit": 2 * 2 * 5 * size}  # two workers; half of it for arrays

    class Sharding:
        class mesh:  # noqa: N801
            class devices:  # noqa: N801
                flat = (Limited(),)

    trainer._costs, trainer._lanes, trainer._sharding = cost_model("gpu"), {}, Sharding
    trainer._choose_lanes(wanted, spec)
    assert trainer._lanes == {spec.architecture: 4}


def test_the_memory_of_children_of_many_classes_is_estimated_well():
    """CPUs' programs tell what they need: here most of it is for logits."""
    inputs, records = RecordInputs(load_tasks(["iris"])), make_record_family("cpu")

    def many_rows(task_id, spec):
        data = inputs.child_data(task_id, spec)
        return data._replace(inputs=np.tile(data.inputs, (50, 1)), labels=np.tile(data.labels, 50))

    wanted = Request(0, "iris", 0, design(records))
    spec = records.make_spec(wanted.design)
    trainer = Trainer(records, many_rows, num_classes=1000)
    need = trainer._program(wanted, spec).result().run.memory_analysis()
    parts = (need.argument_size_in_bytes, need.output_size_in_bytes, need.temp_size_in_bytes)
    assert trainer._child_bytes(wanted, spec) == pytest.approx(sum(parts), rel=0.1)


@pytest.mark.parametrize(("fitting", "programs"), [(4, 1), (2, 2), (1, 3)])
def test_children_that_do_not_fit_into_the_memory_are_trained_by_fewer_at_once(
    family, fitting, programs
):
    wanted = [Request(0, "one", trial, design(family)) for trial in range(6)]
    expected = dict(make_trainer((TASK,), family, lanes=fitting).train(wanted))
    trainer = make_trainer((TASK,), family, lanes=4, num_workers=2)
    run = trainer._run

    def run_if_it_fits(program, members):
        if program.num_children > fitting:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return run(program, members)

    trainer._run = run_if_it_fits
    for _ in range(2):
        found = dict(trainer.train(wanted))
        for i in range(6):
            assert found[i]._replace(seconds=0) == expected[i]._replace(seconds=0)
    assert trainer.stats.programs == programs


def test_a_child_that_does_not_fit_alone_has_failed(family):
    trainer = make_trainer((TASK,), family)

    def run(program, members):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    trainer._run = run
    result = dict(trainer.train([Request(0, "one", 0, design(family))]))[0]
    assert (result.reward, result.failed) == (None, "out of memory")


def lack_on_device():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


def lack_on_host():
    raise MemoryError("Unable to allocate 9 bytes")


@pytest.mark.parametrize("lack", [lack_on_device, lack_on_host])
@pytest.mark.parametrize("boundary", ["compile", "run"])
def test_a_lack_of_memory_halves_the_lanes_and_spares_the_neighbours(
    family, monkeypatch, lack, boundary
):
    """The architecture with a hidden layer never fits; the other one does, two at once."""
    flat, deep = (design(family, **c) for c in ({}, HIDDEN))
    wanted = [Request(0, "one", trial, d) for trial in range(4) for d in (flat, deep)]
    expected = dict(make_trainer((TASK,), family, lanes=2).train(wanted[::2]))
    trainer = make_trainer((TASK,), family, lanes=4, num_workers=2)
    load_or_compile = trainer._load_or_compile
    tried = []

    def scarce(architecture, lanes, inputs):
        tried.append((architecture.hidden_layers, lanes))
        fits = lanes <= 2 and not architecture.hidden_layers
        if boundary == "compile" and not fits:
            lack()
        program = load_or_compile(architecture, lanes, inputs)
        return program if fits else lambda *_: lack()

    monkeypatch.setattr(trainer, "_load_or_compile", scarce)
    found = dict(trainer.train(wanted))
    for i, request in enumerate(wanted):
        if request.design == flat:
            assert found[i]._replace(seconds=0) == expected[i // 2]._replace(seconds=0)
        else:
            assert (found[i].reward, found[i].failed) == (None, "out of memory")
    assert sorted(tried) == [(0, 2), (0, 4), (1, 1), (1, 2), (1, 4)]
    outcome, _ = trainer.fit(wanted[0])
    assert float(outcome.accuracy) == found[0].reward


@pytest.mark.parametrize("lack", [lack_on_device, lack_on_host])
def test_a_child_that_is_trained_again_gets_by_with_less_memory(family, monkeypatch, lack):
    wanted = Request(0, "one", 0, design(family))
    trainer = make_trainer((TASK,), family, lanes=2)
    run = trainer._run

    def run_alone(program, members):
        return run(program, members) if program.num_children == 1 else lack()

    monkeypatch.setattr(trainer, "_run", run_alone)
    expected, _ = make_trainer((TASK,), family, lanes=1).fit(wanted)
    assert float(trainer.fit(wanted)[0].loss) == float(expected.loss)


def test_other_errors_of_the_compiler_end_the_search(family, monkeypatch):
    trainer = make_trainer((TASK,), family, lanes=2)

    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(trainer, "_load_or_compile", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        list(trainer.train([Request(0, "one", 0, design(family))]))
