import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import SPACE

from mnms_jax.methods import Sources, make_methods
from mnms_jax.replay import Batch, ReplayBank, add, best_designs, init_replay
from mnms_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compiler")

NAN = np.nan
# Designs of the toy space by one letter.
A, B, C, D, E = [0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 0], [1, 1, 2]
NUMBER = 2  # trials a round


def make_sources(*tasks):
    """Returns a bank of tasks, each a list of (design, reward)."""
    bank = init_replay(len(tasks), 5, SPACE.num_decisions)
    for t, trials in enumerate(tasks):
        actions = jnp.asarray([design for design, _ in trials], jnp.int32)
        rewards = jnp.asarray([reward for _, reward in trials])
        ids = jnp.full(len(trials), t, jnp.int32)
        bank = add(bank, Batch(ids, actions, jnp.zeros(actions.shape), rewards))
    return bank


# Ranked: D, B, (C failed); E, D, A. The second task's first trial is a repeat.
SOURCES = make_sources(
    [(B, 0.1), (C, NAN), (D, 0.9)],
    [(D, 40.0), (A, 30.0), (E, 50.0), (D, 40.0)],
)
NOTHING = init_replay(0, 1, SPACE.num_decisions)


def play(name, sources, rounds, reward=lambda design: float(np.sum(design))):
    """Returns the designs that a method tries."""
    method = make_methods([name])[0]
    search = method.make(SPACE, Sources(sources), NUMBER, jax.random.key(1))
    state = search.init(jax.random.key(2))
    tried = []
    for _ in range(rounds):
        proposal = search.ask(state)
        again = search.ask(state)
        assert np.array_equal(proposal.actions, again.actions)
        assert proposal.actions.shape == (NUMBER, 3) and proposal.task_ids.tolist() == [0, 0]
        designs = np.asarray(proposal.actions).tolist()
        for design in designs:
            assert SPACE.encode(SPACE.decode(design)).tolist() == design
        tried += designs
        rewards = jnp.asarray([reward(design) for design in designs])
        state, _ = search.tell(state, proposal, rewards)
    return tried


def best(sources, number, seed):
    designs, count = best_designs(sources, number, jax.random.key(seed))
    return designs[: int(count)].tolist()


def test_sources_take_turns_with_their_best_and_each_design_comes_once():
    orders = {tuple(map(tuple, best(SOURCES, 20, seed))) for seed in range(8)}
    first = tuple(map(tuple, [D, E, B, A]))  # turns: D E | B (D) | A
    second = tuple(map(tuple, [E, D, B, A]))  # turns: E D | (D) B | A
    assert orders == {first, second}
    assert sorted(best(SOURCES, 1, 0)) == [D, E]
    assert best(init_replay(2, 4, SPACE.num_decisions), 3, 0) == []


def test_a_full_ring_of_trials_is_read_whole():
    bank = make_sources([(A, 1.0), (A, 1.0), (A, 1.0), (A, 1.0), (B, 2.0), (C, 3.0)])
    assert best(bank, 9, 0) == [C, B, A]


def test_the_portfolio_tries_them_and_then_random_designs():
    tried = play("portfolio", SOURCES, 4)
    assert sorted(tried[:2]) == [D, E] and tried[2:4] == [B, A]
    assert tried[4:] == play("random", NOTHING, 4)[4:]
    assert play("portfolio", NOTHING, 2) == play("random", NOTHING, 2)


def test_random_and_cold_read_no_sources():
    for name in ("random", "cold"):
        assert play(name, SOURCES, 2) == play(name, NOTHING, 2)
    # Cold search starts like random search, and comes to prefer what is best.
    cold, random = (np.sum(play(name, NOTHING, 40), axis=1) for name in ("cold", "random"))
    assert cold[-20:].mean() > random[-20:].mean() + 0.5


def test_the_similar_start_is_told_how_alike_the_tasks_are():
    method = make_methods(["transfer_similar"])[0]
    embeddings = []
    for similarity in ([0.0, -50.0], [-50.0, 0.0]):
        sources = Sources(SOURCES, jnp.array(similarity))
        params = (
            method.make(SPACE, sources, NUMBER, jax.random.key(1)).init(jax.random.key(2)).params
        )
        table = params["task_embedding"]
        np.testing.assert_allclose(table[2], table[int(np.argmax(similarity))], rtol=1e-5)
        embeddings.append(table[2])
    assert not np.allclose(*embeddings)


def test_tpe_begins_with_the_sources_best_and_then_finds_better():
    tried = play("tpe_enqueued", SOURCES, 12)
    # Two of each source: D, B and E, D.
    assert sorted(tried[:2]) == [D, E] and tried[2] == B
    # The best design is [2, 1, 2]; nine are to choose from, and random search has seen none better.
    scores = np.sum(play("tpe", NOTHING, 20), axis=1)
    assert scores.max() == 5
    assert scores[-10:].mean() > scores[:10].mean()


def test_tpe_is_told_failures_as_failures(monkeypatch):
    optuna = importlib.import_module("optuna")
    states, studies = optuna.trial.TrialState, []
    create = optuna.create_study

    def spy(**kwargs):
        studies.append(create(**kwargs))
        return studies[-1]

    monkeypatch.setattr(optuna, "create_study", spy)
    tried = play("tpe", NOTHING, 3, lambda design: NAN if design[0] == 0 else 1.0)
    trials = studies[-1].get_trials(states=(states.FAIL, states.COMPLETE))
    expected = [states.FAIL if d[0] == 0 else states.COMPLETE for d in tried[:4]]
    assert [trial.state for trial in trials] == expected
    # Decisions that are not active were neither told nor asked for.
    for trial, design in zip(studies[-1].get_trials(), tried, strict=True):
        assert set(trial.params) == set(SPACE.decode(design))
    running = studies[-1].get_trials(states=(states.RUNNING,))
    assert len(running) == NUMBER


def test_an_unknown_method_and_a_missing_optuna_are_told(monkeypatch):
    with pytest.raises(UserError, match="method 'portfolo' is unknown; did you mean 'portfolio'"):
        make_methods(["portfolo"])
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'mnms_jax\[optuna\]'"):
        make_methods(["random", "tpe"])
    assert [method.name for method in make_methods(["random", "cold"])] == ["random", "cold"]


def test_sources_are_never_changed():
    before = jax.tree.map(np.array, SOURCES)
    for name in ("portfolio", "tpe_enqueued"):
        play(name, SOURCES, 2)
    for old, new in zip(before, SOURCES, strict=True):
        assert np.array_equal(old, new, equal_nan=True)
    assert isinstance(before, ReplayBank)
