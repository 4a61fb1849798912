import pytest

from mnms_jax.training.plan import Chunk, CostModel, choose_lanes, cost_model, plan_chunks
from mnms_jax.types import ChildSpec


def spec(architecture, num_samples=1):
    return ChildSpec(architecture, None, None, {}, num_samples)


def test_chunks_are_of_one_architecture():
    specs = [spec(name) for name in "ababa"]
    assert plan_chunks(specs) == [
        Chunk("a", (0,)),
        Chunk("a", (2,)),
        Chunk("a", (4,)),
        Chunk("b", (1,)),
        Chunk("b", (3,)),
    ]
    assert plan_chunks(specs, {"a": 2, "b": 3}.get) == [
        Chunk("a", (0, 2)),
        Chunk("a", (4,)),
        Chunk("b", (1, 3)),
    ]
    assert plan_chunks([]) == []


def test_what_is_compiled_comes_first_then_what_most_work_waits_for():
    specs = [spec("a", 5), spec("b", 3), spec("c", 9), spec("b", 4), spec("d", 1)]
    order = [chunk.architecture for chunk in plan_chunks(specs)]
    assert order == ["c", "b", "b", "a", "d"]  # 9, 3 + 4, 5, 1
    order = [chunk.architecture for chunk in plan_chunks(specs, compiled={"d", "a"})]
    assert order == ["a", "d", "c", "b", "b"]


def test_the_longest_of_equals_is_first():
    specs = [spec("a", 2), spec("b", 4), spec("a", 3), spec("a", 3)]
    compiled = plan_chunks(specs, compiled={"a", "b"})
    assert [chunk.members for chunk in compiled] == [(1,), (2,), (3,), (0,)]
    waiting = plan_chunks(specs)
    assert [chunk.members for chunk in waiting] == [(2,), (3,), (0,), (1,)]


@pytest.mark.parametrize(
    ("child_bytes", "memory_bytes", "lanes"),
    [(0, None, 8), (10, None, 8), (10, 160, 8), (10, 159, 4), (10, 20, 1), (10, 1, 1)],
)
def test_as_many_lanes_as_gain_and_fit(child_bytes, memory_bytes, lanes):
    assert choose_lanes(cost_model("gpu"), child_bytes, memory_bytes) == lanes


def test_lanes_that_do_not_gain_are_not_used():
    assert choose_lanes(cost_model("cpu")) == 1
    assert choose_lanes(CostModel({1: 1.0, 4: 0.7, 8: 0.8}, 0.5)) == 4
    assert choose_lanes(CostModel({1: 1.0, 4: 1.0}, 0.5)) == 1
