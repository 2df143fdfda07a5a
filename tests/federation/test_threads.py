"""Threads over clients: order, who may use them, and what they leave as it was."""

import sys
from threading import current_thread

import pytest
import torch

from recbole_fedras.compressor.topk import TopK
from recbole_fedras.numeric.parallel import thread_map, threads
from recbole_fedras.numeric.stopwatch import Stopwatch


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_a_map_is_in_order_whatever_the_threads(n_jobs):
    with threads(n_jobs):
        assert thread_map(pow, range(100), [2] * 100) == [n**2 for n in range(100)]


def test_the_process_is_left_as_it_was():
    before = sys.getswitchinterval(), torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads(2), threads(3):
        thread_map(divmod, [1], [0])
    assert (sys.getswitchinterval(), torch.get_num_threads()) == before
    with threads(1):
        assert sys.getswitchinterval() == before[0]


def workers(compressor, what):
    """Return the names of the threads in which a compressor works on 64 clients."""
    names = set()
    compressor.encode = compressor.decode = lambda *_: names.add(current_thread().name)
    arguments = [range(64)] * (3 if what == "encode" else 2)
    with threads(2):
        list(getattr(compressor, f"{what}_cohort")(*arguments))
    return names


@pytest.mark.parametrize("encoding", [False, True])
@pytest.mark.parametrize("decoding", [False, True])
def test_a_compressor_says_what_threads_are_for(encoding, decoding):
    class Method(TopK):
        threaded, threaded_decoding = encoding, decoding

    main = {current_thread().name}
    assert (workers(Method(), "encode") != main) is encoding
    assert (workers(Method(), "decode") != main) is decoding


def test_a_lap_that_fails_counts_too():
    seconds = Stopwatch()
    with pytest.raises(KeyError), seconds("outer"), seconds("inner"):
        raise KeyError
    assert set(seconds.taken()) == {"compiling", "outer", "inner"}
    assert seconds.taken() == {"compiling": 0.0}
