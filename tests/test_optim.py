"""One update of the weights, as all training loops make it."""

import math

import pytest
import torch

from labkit.optim import average_gradients, gathered, rank, update, world_size


def two_weights(lr=0.5):
    a, b = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([[3.0]]))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([[-4.0]])  # 5 long together
    return a, b, torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.25}], lr=lr)


def test_an_update_clips_all_weights_together_and_frees_the_gradients():
    a, b, optimizer = two_weights()
    assert float(update(optimizer, lr=0.1, clip=2.0)) == 5  # before clipping
    assert a.tolist() == pytest.approx([1 - 0.1 * 3 * 2 / 5, 2.0]) and b.item() == pytest.approx(3 + 0.1 * 4 * 2 / 5)
    assert a.grad is None and b.grad is None


def test_short_gradients_and_every_gradient_without_a_limit_keep_their_bits():
    for clip in (5.5, math.inf):
        a, b, optimizer = two_weights()
        update(optimizer, clip=clip)  # no lr: each group's own
        assert a.tolist() == [1 - 0.5 * 3, 2.0] and b.item() == 3 + 0.25 * 4


def test_one_process_averages_and_gathers_nothing():
    a, b, _ = two_weights()
    average_gradients([a, b])
    assert a.grad.tolist() == [3, 0] and b.grad.tolist() == [[-4]]
    numbers = {"loss": torch.ones(2)}
    assert (rank(), world_size()) == (0, 1) and gathered(numbers) is numbers
