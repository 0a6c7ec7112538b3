import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.passes.collect_heldback import HOLD_ONE_IN, KEPT, HeldBack


def data(count):
    return [{"x": np.full((1, 4), i, np.float32), "n": np.array(i)} for i in range(count)]


def run(samples, memory=1 << 20):
    found = HeldBack(samples, memory)
    assert [int(s["n"]) for s in found] == [int(s["n"]) for s in samples]
    return found, [int(s["n"]) for s in found.samples]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_the_choice_depends_on_content_alone(count, seed):
    samples = data(count)
    found, kept = run(samples)
    held = {int(s["n"]) for s, h in zip(samples, found.held, strict=True) if h}
    random.Random(seed).shuffle(samples)
    again, kept_again = run(samples)
    assert kept_again == kept and len(set(kept)) == len(kept) <= KEPT
    assert {int(s["n"]) for s, h in zip(samples, again.held, strict=True) if h} == held
    if held:
        assert set(kept) <= held and len(kept) == min(len(held), KEPT)
    else:
        assert kept


def test_about_one_in_four_is_held_back():
    found, kept = run(data(2000))
    assert 0.2 < sum(found.held) / 2000 < 0.3 and HOLD_ONE_IN == 4
    assert len(kept) == KEPT


def test_a_second_reading_changes_nothing():
    found, kept = run(data(50))
    list(found)
    assert len(found.held) == 50 and [int(s["n"]) for s in found.samples] == kept


def test_copies_survive_a_buffer_that_is_used_again():
    buffer = np.zeros((1, 4), np.float32)

    def generate():
        for i in range(60):
            buffer[:] = i
            yield {"x": buffer}

    found = HeldBack(generate(), 1 << 20)
    values = [float(s["x"][0, 0]) for s in found]
    kept = [float(s["x"][0, 0]) for s in found.samples]
    assert len(set(kept)) == len(kept) and set(kept) <= set(values) and len(kept) > 1
    assert not found.rereadable and found.expected is None


def test_memory_limits_what_is_kept():
    samples = data(100)
    size = sum(a.nbytes for a in samples[0].values())
    assert len(run(samples, memory=5 * size)[1]) == 5
    assert len(run(samples, memory=1)[1]) == 1


def test_strings_and_scalars():
    samples = [{"s": np.array(["a", "bc" * i], object), "n": np.array(i)} for i in range(40)]
    assert run(samples)[1] == run(samples[::-1])[1]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    memory=st.integers(100, 3000),
    seed=st.integers(0, 1000),
    shards=st.integers(1, 5),
)
def test_order_and_shards_change_nothing_where_memory_is_short(lengths, memory, seed, shards):
    samples = [{"n": np.full(length, i, np.int64)} for i, length in enumerate(lengths)]

    def kept(found):
        return [int(s["n"][0]) for s in found.samples]

    whole = HeldBack(samples, memory)
    list(whole)
    shuffled = samples[:]
    random.Random(seed).shuffle(shuffled)
    again = HeldBack(shuffled, memory)
    list(again)
    assert kept(again) == kept(whole)
    merged = HeldBack([], memory)
    for number in range(shards):
        part = HeldBack(shuffled[number::shards], memory)
        list(part)
        merged.merge(part.kept, part.bound)
    assert kept(merged) == kept(whole)
