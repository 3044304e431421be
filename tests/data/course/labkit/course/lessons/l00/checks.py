"""Exercises of the sample lesson (read by the lints, never run)."""

from labkit.course.checks import exercise


def add_noise(x0, noise, alpha_bar):
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


@exercise("l00.add_noise", reference=add_noise)
def check_add_noise(c, fn):
    c.close(c.call(fn, 1.0, 0.0, 0.64), 0.8, key="l00.no_root")


@exercise("l00.weights", reference=lambda: [0.8, 0.6], value=True)
def check_weights(c, weights):
    c.close(weights, [0.8, 0.6])
