"""Threads that measure take turns: none sees another's eval mode, buffers or random streams."""

import copy
import pickle
import random
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from mas import mas_importance
from mas.state import preserving_state
from tests.conftest import assert_same

WAIT = 0.5  # seconds; the most that a thread waits for one that rightly cannot come


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double().train()


def overlapping(first, second):
    """Run two functions in threads, each with a function to call from inside of its block.

    The second one begins while the first is in its block, and goes on once the first has left it.
    """
    inside, begun, left = threading.Event(), threading.Event(), threading.Event()
    errors = []

    def run(function, wait):
        try:
            function(wait)
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    def run_first():
        run(first, lambda: (inside.set(), begun.wait(WAIT)))
        inside.set()
        left.set()

    def run_second():
        inside.wait(60)
        run(second, lambda: (begun.set(), left.wait(WAIT)))

    threads = [threading.Thread(target=target, daemon=True) for target in (run_first, run_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread waits for ever"
    assert not errors, errors


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_two_threads_that_measure_one_model_get_the_right_numbers(wrap):
    model, x = network(), torch.randn(6, 4, dtype=torch.float64)
    expected = mas_importance(model, [x])
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    found = {}

    def measure(name, own):
        def run(wait):
            def forward(m, batch):
                wait()
                return m(batch)

            found[name] = mas_importance(own, [x], forward=forward)

        return run

    overlapping(measure("first", model), measure("second", wrap(model)))
    for importance in found.values():
        assert_same(importance, expected, tolerance=0)
    assert [m.training for m in model.modules()] == [True] * 5
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def test_two_threads_that_measure_different_models_leave_the_random_streams_alone():
    def draw(model, wait):
        with preserving_state(model):
            torch.rand(3), np.random.rand(3), random.random()  # noqa: S311 - no secret
            wait()

    one, other = network(), network()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    overlapping(partial(draw, one), partial(draw, other))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_blocks_may_be_nested_and_mixed():
    def nested():
        with preserving_state(model), preserving_state(other), preserving_state(nn.DataParallel(model)):
            with preserving_state(model):
                seen.append(model.training)
            seen.append(model.training)

    model, other, seen = network(), network(), []
    thread = threading.Thread(target=nested, daemon=True)
    thread.start()
    thread.join(60)
    assert seen == [False, False]
    assert model.training
    assert other.training


def test_a_block_that_raises_lets_the_next_thread_in():
    def fails(wait):
        with pytest.raises(ValueError, match="on purpose"), preserving_state(model):
            raise ValueError("on purpose")

    model, x, found = network(), torch.ones(2, 4).double(), []
    overlapping(fails, lambda wait: found.append(mas_importance(model, [x])))
    assert_same(found[0], mas_importance(model, [x]), tolerance=0)
    assert model.training


def test_models_that_were_measured_can_still_be_copied_and_pickled():
    model = network()
    with preserving_state(model):
        twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # noqa: S301 - made here
    assert not twin.training
