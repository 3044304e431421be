"""Frequent mistakes that a check names beyond its four stored wrong answers: each gets the message made for it."""

import math

import pytest
import torch

from labkit.course.checks import load_exercises, run_check
from labkit.course.manifest import Project

CHECKS = {number: load_exercises(Project().folder(number)) for number in ("08", "09")}


def no_keepdim(rewards):
    return (rewards - rewards.mean(1)) / rewards.std(1, correction=0)


def nothing_recorded(step, x, steps, k):
    with torch.no_grad():
        for i in range(steps):
            x = step(x, i)
    return x


def only_the_last(step, x, steps, k):
    for i in range(steps - k, steps):
        x = step(x, i)
    return x


def over_the_rows(now, before, strength):
    return torch.softmax(strength * (now - before), 0)


def the_other_sign(now, before, strength):
    return torch.softmax(strength * (before - now), 1)


def without_strength(now, before, strength):
    return torch.softmax(now - before, 1)


def not_rounded(rate, confidence):
    return math.log(1 - confidence) / math.log(1 - rate)


@pytest.mark.parametrize(
    ("id", "answer", "key"),
    [
        ("l08.group_advantage", no_keepdim, "l08.no_keepdim"),
        ("l08.truncated_chain", nothing_recorded, "l08.none_recorded"),
        ("l08.truncated_chain", only_the_last, "l08.skipped"),
        ("l08.fk_weights", over_the_rows, "l08.over_prompts"),
        ("l08.fk_weights", the_other_sign, "l08.falls"),
        ("l08.fk_weights", without_strength, "l08.no_strength"),
        ("l09.zero_failure_n", not_rounded, "l09.rounded_down"),
    ],
)
def test_a_mistake_gets_the_message_that_names_it(id, answer, key):
    result = run_check(CHECKS[id[1:3]][id], answer)
    assert (result.ok, result.key) == (False, key), result
