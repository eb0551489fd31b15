"""The ring buffers of negatives."""

from collections import deque

import pytest
import torch

from detco_d2.modeling.queue import KeyQueue


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 10, 13])
def test_queue_keeps_the_newest_keys_whatever_the_batch(batch):
    queue = KeyQueue(num_queues=2, length=10, dim=4)
    newest = [deque(rows.tolist(), maxlen=10) for rows in queue.features]
    for step in range(9):
        keys = torch.full((2, batch, 4), float(step)) + torch.arange(batch)[None, :, None] / 100
        keys[1] += 0.5
        queue.enqueue(keys)
        for ring, rows in zip(newest, keys.tolist()):
            ring.extend(rows)
    for ring, rows in zip(newest, queue.features.tolist()):
        assert sorted(ring) == sorted(rows)
    assert queue.num_enqueued.item() == 9 * batch


def test_the_oldest_keys_are_overwritten_first_and_the_end_wraps():
    queue = KeyQueue(1, 5, 1)
    for step in range(4):
        queue.enqueue(torch.tensor([[[2.0 * step], [2.0 * step + 1]]]))  # keys 0..7
    assert queue.features[0, :, 0].tolist() == [5.0, 6.0, 7.0, 3.0, 4.0]


def test_queues_start_as_the_same_unit_vectors_under_any_seed():
    torch.manual_seed(1)
    first = KeyQueue(3, 20, 8)
    torch.manual_seed(2)
    second = KeyQueue(3, 20, 8)
    assert torch.equal(first.features, second.features)
    assert torch.allclose(first.features.norm(dim=2), torch.ones(3, 20))
    assert not torch.equal(first.features[0], first.features[1])


def test_the_host_knows_the_number_of_keys_also_after_they_are_loaded():
    queue, other = (KeyQueue(num_queues=1, length=8, dim=2) for _ in range(2))
    assert queue.count() == 0
    queue.enqueue(torch.ones(1, 3, 2))
    other.load_state_dict(queue.state_dict())
    other.enqueue(torch.ones(1, 3, 2))
    assert (queue.count(), other.count()) == (3, 6) == (queue.num_enqueued, other.num_enqueued)
