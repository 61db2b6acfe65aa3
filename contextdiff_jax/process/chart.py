"""Charts: the coordinates in which every sampler is written.

In y_t = x_t - b_t the contextual process is an ordinary Gaussian diffusion. Samplers step in y and never
mention the adapter; a chart carries x in and out. The shift is anchored anew at every network call, at the
current x0_hat: carrying y over several steps with an old one drifts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from contextdiff_jax.process import scaled
from contextdiff_jax.process.forward import Gaussian
from contextdiff_jax.process.scaled import Warp
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.types import Array

Denoiser = Callable[[Array, Array], Array]  # f(x, t) -> x0_hat
Shift = Callable[[Array, Array], Array]  # b(x0, t) -> b_t


@dataclass(frozen=True)
class Chart:
    """A denoiser and the shift of its process.

    Attributes:
        f: (x_t [B, ...], t) -> x0_hat [B, ...].
        b: (x0 [B, ...], t) -> b_t [B, ...], or None for plain diffusion. If it has `pair(x0, t, s) -> (b_t,
            b_s)`, that is used wherever both are needed, so that x0 is encoded once. If it has a scale too, all goes
            through its `warp`, `warps`, `straight`, `bent` and `carry` (models/adapter.py, `ScaledShift`).
    """

    f: Denoiser
    b: Shift | None = None

    @property
    def two_headed(self) -> bool:
        """Whether the denoiser predicts the shift of the reverse step; without a shift its second head is idle."""
        return self.b is not None and hasattr(self.f, "with_shift")

    def predict(self, x: Array, t: Array) -> tuple[Array, Array]:
        """(y, x0_hat) with x0_hat = f(x, t), y = x - b_t(x0_hat), its noise unstretched where there is a scale."""
        x0_hat = self.f(x, t)
        if has_scale(self.b):
            return self.b.straight(x, x0_hat, t), x0_hat
        return (x if self.b is None else x - self.b(x0_hat, t)), x0_hat

    def commit(self, y: Array, x0_hat: Array, s: Array) -> Array:
        """x = y + b_s(x0_hat), the noise of y stretched where there is a scale."""
        if has_scale(self.b):
            return self.b.bent(y, x0_hat, s)
        return y if self.b is None else y + self.b(x0_hat, s)

    def carry(self, x: Array, x0_hat: Array, t: Array, s: Array, update: Callable[[Array], Array]) -> Array:
        """x at s from x at t through update(y_t) -> y_s, with the shifts of a given x0_hat."""
        if has_scale(self.b):
            return self.b.carry(x, x0_hat, t, s, update)
        b_t, b_s = pair(self.b, x0_hat, t, s)
        return update(x - b_t) + b_s

    def move(
        self, x: Array, t: Array, s: Array, update: Callable[[Array, Array], Array]
    ) -> tuple[Array, Array]:
        """One sampling step from t to s.

        Args:
            x: sample at t, [B, ...].
            t: from, int32 [B] or scalar.
            s: to, likewise.
            update: (y_t, x0_hat) -> y_s, the plain sampler's step.

        Returns:
            x at s, and x0_hat = f(x, t).
        """
        if self.two_headed:
            x0_hat, shift = self.f.with_shift(x, t)
            return update(x, x0_hat) + shift, x0_hat
        x0_hat = self.f(x, t)
        return self.carry(x, x0_hat, t, s, lambda y: update(y, x0_hat)), x0_hat


@dataclass(frozen=True)
class TwoHeaded:
    """A denoiser that predicts, beside x0, what the step to t - 1 adds to the plain one: E[b_{t-1} - B_t b_t | x_t, c].

    Eq. 7 takes b_{t-1}(x0_hat) - B_t b_t(x0_hat) there, which is that mean only where r is linear in x0.

    Attributes:
        with_shift: (x_t, t) -> (x0_hat, shift), both shaped like x_t.
    """

    with_shift: Callable[[Array, Array], tuple[Array, Array]]

    def __call__(self, x: Array, t: Array) -> Array:
        """x0_hat."""
        return self.with_shift(x, t)[0]


def estimate(f: Denoiser, b: Shift | None, x: Array, t: Array, s: Array) -> tuple[Array, Array, Array]:
    """(x0_hat, b_t_hat, b_s_hat) of the reverse step at x_t; a second head's prediction stands for b_s - B_t b_t.

    Without a shift there is nothing for that head to answer.
    """
    if b is not None and hasattr(f, "with_shift"):
        x0_hat, shift = f.with_shift(x, t)
        return x0_hat, jnp.zeros_like(x0_hat), shift
    x0_hat = f(x, t)
    return x0_hat, *pair(b, x0_hat, t, s)


def plain(f: Denoiser) -> Chart:
    """Ordinary diffusion: y = x."""
    return Chart(f)


def contextual(f: Denoiser, b: Shift) -> Chart:
    """Contextual diffusion: y = x - b_t(x0_hat)."""
    return Chart(f, b)


def has_scale(b: Shift | None) -> bool:
    """Whether the process stretches its noise beside the shift: b answers both as a `Warp`."""
    return hasattr(b, "warps")


def warp(b: Shift | None, x0: Array, t: Array) -> Warp:
    """Shift and scale at t of one x0: 0 without a shift, 1 without a scale."""
    if has_scale(b):
        return b.warp(x0, t)
    return Warp(jnp.zeros_like(x0) if b is None else b(x0, t), 1.0)


def marginal(b: Shift | None, s: Schedule, x0: Array, t: Array) -> Gaussian:
    """q(x_t | x0, c), Eq. 1, of a process without a shift, with one, or with a scale as well; t in 0..T."""
    return scaled.marginal(s, x0, warp(b, x0, t), t)


def pair(b: Shift | None, x0: Array, t: Array, s: Array) -> tuple[Array, Array]:
    """(b_t, b_s) of one x0; zeros without a shift."""
    if b is None:
        return jnp.zeros_like(x0), jnp.zeros_like(x0)
    return b.pair(x0, t, s) if hasattr(b, "pair") else (b(x0, t), b(x0, s))
