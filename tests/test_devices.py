import jax
import numpy as np
import pytest
from toy import make_family, make_task, make_trainer

from mnms_jax.devices import map_trials, trial_devices, trial_sharding
from mnms_jax.training.fit import Request
from mnms_jax.training.program import make_program

TASKS = (make_task("one", 200, seed=1), make_task("two", 150, num_classes=3, seed=2))


@pytest.fixture(scope="module")
def family():
    return make_family(samples=(256, 1280), deep_learning_rate=(0.01, 0.05, 1e30))


def requests(family, number):
    designs = [
        {d.name: d.choices[i % len(d.choices)] for d in family.space.decisions}
        for i in range(number)
    ]
    return [
        Request(i % 2, TASKS[i % 2].name, i, {**design, "deep_learning_rate": 0.01})
        for i, design in enumerate(designs)
    ]


def run(trainer, wanted):
    results = dict(trainer.train(wanted))
    return [results[i] for i in range(len(wanted))]


def test_a_cpu_is_one_device_to_trials():
    assert len(jax.local_devices()) == 4  # set up by conftest
    assert trial_devices() == jax.local_devices()[:1]


def test_mapped_trials_equal_pmap_bit_by_bit_and_a_single_device_up_to_rounding(family):
    trainer = make_trainer(TASKS, family)
    wanted = requests(family, 4)
    specs = [family.make_spec(request.design) for request in wanted]
    inputs = [trainer._inputs(*pair) for pair in zip(wanted, specs, strict=True)]
    program = make_program(family.make_model(specs[0].architecture, 3))
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *inputs)
    by_pmap = jax.pmap(program)(*stacked)

    def one(*rows):
        outputs = program(*jax.tree.map(lambda x: x[0], rows))
        return jax.tree.map(lambda x: x[None], outputs)

    devices = jax.local_devices()
    several = trial_sharding(devices)
    ours = jax.jit(map_trials(one, several))(*jax.device_put(stacked, several))
    first = jax.jit(map_trials(one, trial_sharding(devices[:1])))
    single = [
        jax.tree.map(lambda x: x[0], first(*jax.tree.map(lambda x: np.stack([x]), own)))
        for own in inputs
    ]
    for i in range(4):
        for a, b, c in zip(
            *(jax.tree.leaves(jax.tree.map(lambda x, i=i: x[i], x)) for x in (ours, by_pmap)),
            jax.tree.leaves(single[i]),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, c, atol=1e-5)


@pytest.mark.parametrize("number", [2, 4])
def test_rewards_do_not_depend_on_the_number_of_devices(family, number):
    wanted = requests(family, 5)  # not a multiple of the devices
    one = run(make_trainer(TASKS, family), wanted)
    several = run(make_trainer(TASKS, family, devices=jax.local_devices()[:number]), wanted)
    assert [r._replace(seconds=0) for r in one] == [r._replace(seconds=0) for r in several]


def test_lanes_train_as_one_alone_does_up_to_rounding(family):
    wanted = requests(family, 5)
    wanted[2] = wanted[2]._replace(design={**wanted[2].design, "deep_learning_rate": 1e30})
    one = run(make_trainer(TASKS, family), wanted)
    trainer = make_trainer(TASKS, family, lanes=3)
    lanes = run(trainer, wanted)
    for a, b in zip(one, lanes, strict=True):
        assert (a.failed, a.samples) == (b.failed, b.samples)
        if a.reward is not None:
            assert b.reward == pytest.approx(a.reward, abs=0.03)
    assert lanes[2].reward is None and "diverged" in lanes[2].failed
    # Neighbours, another place, another number of devices: not a bit of difference.
    alone = run(trainer, wanted[3:4])[0]
    spread = run(make_trainer(TASKS, family, lanes=3, devices=jax.local_devices()[:2]), wanted)
    assert alone.reward == lanes[3].reward
    assert [r.reward for r in spread] == [r.reward for r in lanes]
    assert float(trainer.fit(wanted[3])[0].accuracy) == lanes[3].reward
