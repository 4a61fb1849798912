import threading
import time

import pytest

from mnms_jax.training.pool import IdleClock, Program, ProgramPool


class Compiler:
    """Compiles nothing, in the order asked for, when told to go on."""

    def __init__(self, max_programs=9):
        self.clock = IdleClock(num_workers=1)
        self.pool = ProgramPool(1, max_programs, self.clock)
        self.begun = []
        self._go_on = threading.Semaphore(0)

    def get(self, name, **kwargs):
        def compile_new():
            self.begun.append(name)
            self._go_on.acquire(timeout=20)
            return Program(name, 1)

        return self.pool.get(name, compile_new, **kwargs)

    def finish(self, count=1):
        self._go_on.release(count)


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_a_program_is_compiled_once():
    compiler = Compiler()
    program = compiler.get("a")
    assert compiler.get("a") is program and compiler.get("a", needed=False) is program
    compiler.finish()
    assert program.result(20).run == "a"
    assert compiler.get("a") is program
    assert compiler.pool.done() == {"a"} and compiler.begun == ["a"]
    assert compiler.pool.stats[0] == 1 and compiler.pool.stats[1] > 0


def test_needed_programs_go_before_upcoming_ones():
    compiler = Compiler()
    compiler.get("first")
    wait_for(lambda: compiler.begun)
    for name in ("x", "y", "z"):
        compiler.get(name, needed=False)
    compiler.get("a")
    compiler.get("z")  # now it is needed
    compiler.get("b")
    compiler.finish(7)
    compiler.get("y").result(20)
    wait_for(lambda: len(compiler.begun) == 6)
    assert compiler.begun[:2] == ["first", "a"]
    assert sorted(compiler.begun[2:]) == ["b", "x", "y", "z"]
    assert compiler.begun.index("z") < compiler.begun.index("b") < compiler.begun.index("x")


def test_forgotten_programs_are_not_compiled():
    compiler = Compiler()
    running = compiler.get("running")
    wait_for(lambda: compiler.begun)
    queued = [compiler.get("a"), compiler.get("b", needed=False)]
    compiler.pool.forget_queued()
    assert all(program.cancelled() for program in queued)
    compiler.finish(9)
    assert running.result(20).run == "running"
    time.sleep(0.05)
    assert compiler.begun == ["running"] and compiler.pool.done() == {"running"}
    assert compiler.get("b").result(20).run == "b"


def test_the_last_used_programs_are_kept():
    compiler = Compiler(max_programs=2)
    compiler.finish(9)
    for name in ("a", "b", "a", "c"):
        compiler.get(name).result(20)
    assert compiler.pool.done() == {"a", "c"}
    compiler.pool.drop("a")
    compiler.pool.drop("never seen")
    assert compiler.pool.done() == {"c"}


def test_what_fails_to_compile_raises_where_it_is_used():
    compiler = Compiler()

    def fail():
        raise RuntimeError("no such instruction")

    with pytest.raises(RuntimeError, match="no such instruction"):
        compiler.pool.get("a", fail).result(20)
    assert compiler.pool.stats == (0, 0.0)
    seconds = compiler.clock.seconds
    time.sleep(0.02)
    assert compiler.clock.seconds == seconds  # nobody waits any more


def test_only_what_children_wait_for_is_idle_time():
    compiler = Compiler()
    compiler.get("upcoming", needed=False)
    wait_for(lambda: compiler.begun)
    time.sleep(0.05)
    assert compiler.clock.seconds == 0
    program = compiler.get("upcoming")
    time.sleep(0.05)
    assert compiler.clock.seconds >= 0.05
    compiler.finish()
    program.result(20)
    compiler.get("another")
    compiler.pool.forget_queued()  # running or not: nobody waits for it any more
    seconds = compiler.clock.seconds
    time.sleep(0.02)
    assert compiler.clock.seconds == seconds
    compiler.finish()


def test_the_idle_clock_counts_workers_without_work_while_children_wait():
    clock = IdleClock(num_workers=2)
    time.sleep(0.05)
    assert clock.seconds == 0  # nothing to compile: no work left is nobody's fault
    clock.change(awaited=1)
    time.sleep(0.1)
    with clock.training():
        time.sleep(0.1)
    clock.change(awaited=-1)
    assert 0.3 <= clock.seconds < 0.6
    before = clock.seconds
    with clock.training():
        time.sleep(0.05)
    assert clock.seconds == before
