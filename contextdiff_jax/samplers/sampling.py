"""Sampling in pieces: where it starts, the chart it runs in, the run, and the decoding.

`sample` is the four in a row; editing puts them together in its own way. What a compiled program depends
on is a `Plan`, known before anything is traced; its arguments are arrays and `Numbers`, so that another guidance scale
compiles nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax import samplers
from contextdiff_jax.errors import UserError
from contextdiff_jax.losses import Variance
from contextdiff_jax.process import chart as charts
from contextdiff_jax.process.chart import Chart
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.samplers import guidance
from contextdiff_jax.samplers.scheduler_config import PRETRAINED, from_scheduler_config
from contextdiff_jax.types import Array, Batch, Context, Params

Watch = Callable[[Any, Any], None]  # (t, x0_hat [B, ...]), on the host


class Model(Protocol):
    """What is sampled from; `tasks.diffusion.DiffusionTask` is one.

    Attributes:
        schedule: the noise schedule; of a learned one the start.
        parts: its frozen surroundings, of which the space, the prediction and the pretrained scheduler's file are used.
    """

    schedule: Schedule
    parts: Any

    def shape_of(self, size: tuple[int, int] | None) -> tuple[int, ...]:
        """Shape of one x0 for pictures of (height, width) pixels; None is the size of the training."""

    def schedule_of(self, params: Params) -> Schedule:
        """The noise schedule under these parameters."""

    def variance_of(self, params: Params) -> Variance:
        """The variance of the reverse steps: a name, or a learned table."""

    def encode(self, params: Params, frozen: Params, batch: Batch) -> Context:
        """The condition of each example."""

    def null_context(self, params: Params, frozen: Params, context: Context) -> Context:
        """What guidance moves away from."""

    def denoise(self, params: Params, xt: Array, t: Array, context: Context) -> Array:
        """x0_hat from the raw x_t."""

    def denoiser(self, params: Params, context: Context) -> charts.Denoiser:
        """The same as a function of (x_t, t), with a second head where there is one."""

    def shift(self, params: Params, frozen: Params, context: Context) -> charts.Shift | None:
        """b(x0, t), or None without an adapter."""


@dataclass(frozen=True)
class Plan:
    """What a compiled program depends on; hashable.

    Attributes:
        sampler: ddpm, ddim, heun or dpmpp_2m.
        moves: the steps, rows (t, s).
        guided: whether there is an unconditional branch; a guidance scale of at most 1 is none, as in diffusers.
        threshold: None, "static" or "dynamic".
        adapter: whether the shift of the process is undone and redone.
        shape: of one x0.
        first_order_last: see `samplers.dpmpp_2m`.
        clip: see `samplers.ddim`.
        last_noise: see `samplers.ddpm`.
        of_the_bound: whether ddpm draws with the variance that the bound has; a learned one it always does.
    """

    sampler: str
    moves: tuple[tuple[int, int], ...]
    guided: bool
    threshold: str | None
    adapter: bool
    shape: tuple[int, ...]
    first_order_last: bool = False
    clip: bool = False
    last_noise: bool = False
    of_the_bound: bool = False

    @classmethod
    def of(cls, model: Model, sample: ConfigDict, strength: float = 1.0, size: tuple[int, int] | None = None) -> "Plan":
        """From the config's `sample` section.

        Args:
            model: what is sampled from.
            sample: the section.
            strength: share of the steps that is taken, above 0 to 1, counted as diffusers does.
            size: (height, width) of the pictures; None is that of the training.

        Raises:
            UserError: a size that the networks cannot take, or the steps of a pretrained schedule of another T.
        """
        threshold = None if sample.threshold == "none" else sample.threshold
        if sample.spacing == PRETRAINED:
            found = from_scheduler_config(model.parts.scheduler, sample.sampler)
            theirs, T = found.schedule.num_timesteps, model.schedule.num_timesteps
            if theirs != T:
                raise UserError(
                    f"config.sample.spacing={PRETRAINED!r} takes the times of the pretrained scheduler, which has "
                    f"{theirs}, not the {T} of this process; use 'trailing'"
                )
            options = found.options(sample.num_steps)
            if sample.sampler != "ddim":  # which clips by itself
                threshold = threshold or found.threshold
        else:
            T = model.schedule.num_timesteps
            options = {"spacing": samplers.moves(T, sample.num_steps, sample.spacing)}
        moves = options["spacing"][-max(1, int(sample.num_steps * strength)) :]  # a share of 1 / n may round below it
        return cls(
            sampler=sample.sampler,
            moves=tuple((int(t), int(s)) for t, s in moves),
            guided=sample.guidance > 1,
            threshold=threshold,
            adapter=sample.adapter,
            shape=model.shape_of(size),
            first_order_last=options.get("first_order_last", False),
            clip=options.get("clip", False),
            last_noise=sample.last_noise,
            of_the_bound=sample.variance == "process",
        )


@flax.struct.dataclass
class Numbers:
    """Arguments of a compiled program, each a scalar but for the interval.

    Attributes:
        guidance: scale of guidance; [] or [B].
        rescale: how far guidance's gain in standard deviation of the prediction is taken back.
        interval: fractions of T between which guidance acts, [2].
        eta: of ddim: 0 is deterministic, 1 ancestral.
    """

    guidance: Array
    rescale: Array
    interval: Array
    eta: Array

    @classmethod
    def of(cls, sample: ConfigDict) -> "Numbers":
        """From the config's `sample` section."""
        number = lambda value: np.asarray(value, np.float32)
        return cls(number(sample.guidance), number(sample.rescale), number(sample.interval), number(sample.eta))


def sample(
    model: Model,
    params: Params,
    frozen: Params,
    context: Context,
    keys: Array,
    numbers: Numbers,
    *,
    plan: Plan,
    null: Context | None = None,
    image: Array | None = None,
    noise: Array | None = None,
    watch: Watch | None = None,
) -> Array:
    """Images under conditions; pure and jittable, one compilation per plan and batch shape.

    Args:
        model: what is sampled from.
        params: {"denoiser", "adapter"}.
        frozen: parameters of what surrounds them.
        context: what is asked for, [B], from `model.encode`.
        keys: one key per image, [B]: a picture does not depend on the batch it came in.
        numbers: guidance and the like.
        plan: sampler, steps and shape.
        null: what guidance moves away from, [B]; None takes the model's own.
        image: images [B, H, W, C] in [-1, 1] to start from, noised by the contextual forward process; None starts from
            noise.
        noise: where to start instead, x at the first time of the plan [B, *shape]; None draws it from the keys.
        watch: called on the host with (t, x0_hat) wherever the denoiser is.

    Returns:
        [B, H, W, C] in [-1, 1].
    """
    x = start(model, params, frozen, context, keys, plan, image) if noise is None else noise
    chart = guided_chart(model, params, frozen, context, plan, numbers, null)
    if watch is not None:
        chart = watched(chart, watch)
    s, variance = model.schedule_of(params), model.variance_of(params)
    return decode(model, frozen, run(chart, s, keys, x, plan, numbers, variance))


def start(
    model: Model,
    params: Params,
    frozen: Params,
    context: Context,
    keys: Array,
    plan: Plan,
    image: Array | None = None,
) -> Array:
    """x at the first time of the plan, [B, *shape]: noise of each picture's key, or the images noised by it (Eq. 1)."""
    eps = jax.vmap(lambda key: jax.random.normal(key, plan.shape))(keys)
    if image is None:
        return eps
    x0 = model.parts.space.encode(frozen["space"], {"image": image})
    return noised(model, params, frozen, context, x0, plan.moves[0][0], eps, adapter=plan.adapter)


def noised(
    model: Model, params: Params, frozen: Params, context: Context, x0: Array, t: int, eps: Array, *, adapter: bool
) -> Array:
    """x_t of given x0 by Eq. 1, with their shift unless the adapter is off."""
    b, s = model.shift(params, frozen, context) if adapter else None, model.schedule_of(params)
    return charts.marginal(b, s, x0, jnp.asarray(t)).at(eps)


def guided_chart(
    model: Model,
    params: Params,
    frozen: Params,
    context: Context,
    plan: Plan,
    numbers: Numbers,
    null: Context | None = None,
) -> Chart:
    """The guided denoiser in the contextual chart, or in the plain one without an adapter.

    Args:
        model, params, frozen: as for `sample`.
        context: what is asked for, [B].
        plan: says whether there is guidance, a threshold, an adapter.
        numbers: guidance and the like.
        null: what guidance moves away from, [B]; None takes the model's own.
    """
    both = _conditional_and_null(model, params, frozen, context, null, plan.guided)
    how = dict(threshold=plan.threshold)
    if plan.guided:
        how |= dict(rescale=numbers.rescale, prediction=model.parts.prediction, interval=numbers.interval)
    f = guidance.classifier_free(both, model.schedule_of(params), numbers.guidance if plan.guided else 1.0, **how)
    b = model.shift(params, frozen, context) if plan.adapter else None
    if b is not None and hasattr(two := model.denoiser(params, context), "with_shift"):
        return charts.contextual(_unguided(two, model.schedule, plan.threshold), b)
    return charts.plain(f) if b is None else charts.contextual(f, b)


def _unguided(two: charts.TwoHeaded, s: Schedule, threshold: str | None) -> charts.TwoHeaded:
    """A denoiser with two heads, its x0_hat under the threshold."""

    def with_shift(x: Array, t: Array) -> tuple[Array, Array]:
        x0_hat, shift = two.with_shift(x, t)
        return guidance.classifier_free(lambda x, t: (x0_hat,) * 2, s, 1.0, threshold=threshold)(x, t), shift

    return charts.TwoHeaded(with_shift)


def _conditional_and_null(
    model: Model, params: Params, frozen: Params, context: Context, null: Context | None, guided: bool
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """(x_t, t) -> (x0_hat with, x0_hat without the condition), in one network call of twice the batch."""
    if not guided:
        # The null branch would be thrown away.
        return lambda xt, t: (model.denoise(params, xt, t, context),) * 2
    null = model.null_context(params, frozen, context) if null is None else null
    both = jax.tree.map(_in_turn, context, null)

    def denoise_both(xt: Array, t: Array) -> tuple[Array, Array]:
        t = jnp.repeat(jnp.broadcast_to(t, xt.shape[:1]), 2)
        x0_hat = model.denoise(params, _in_turn(xt, xt), t, both)
        return x0_hat[0::2], x0_hat[1::2]

    return denoise_both


def _in_turn(a: Array, b: Array) -> Array:
    """Rows a_0, b_0, a_1, b_1, ...: each stays on the device that holds its pair."""
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def watched(chart: Chart, watch: Watch) -> Chart:
    """The same chart, which tells the host of every x0_hat."""

    def tell(x0_hat: Array, t: Array) -> Array:
        jax.debug.callback(watch, jnp.ravel(t)[0], x0_hat)
        return x0_hat

    def with_shift(x: Array, t: Array) -> tuple[Array, Array]:
        x0_hat, shift = chart.f.with_shift(x, t)
        return tell(x0_hat, t), shift

    two = hasattr(chart.f, "with_shift")
    return Chart(charts.TwoHeaded(with_shift) if two else lambda x, t: tell(chart.f(x, t), t), chart.b)


def run(
    chart: Chart, s: Schedule, keys: Array, x: Array, plan: Plan, numbers: Numbers, variance: Variance = "posterior"
) -> Array:
    """x0 [B, ...] from x at the first time of the plan.

    Args:
        chart: from `guided_chart`, or any other.
        s: the schedule of the model.
        keys: one key per picture, [B], for samplers that draw noise; never the one of the start again.
        x: start [B, ...].
        plan: sampler and steps.
        numbers: eta.
        variance: of the bound. A learned table ddpm takes, a name only where the plan says so; else Eq. 3's.
    """
    options: dict[str, Any] = {"spacing": np.array(plan.moves, np.int32)}
    if plan.sampler == "ddim":
        options |= {"eta": numbers.eta, "clip": plan.clip}
    if plan.sampler == "dpmpp_2m":
        options["first_order_last"] = plan.first_order_last
    if plan.sampler == "ddpm" and (plan.of_the_bound or not isinstance(variance, str)):
        options |= {"variance": variance, "last_noise": plan.last_noise}
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
    return samplers.get(plan.sampler)(chart, s, keys, x, len(plan.moves), **options)


def invert(
    model: Model, params: Params, frozen: Params, context: Context, numbers: Numbers, image: Array, *, plan: Plan
) -> Array:
    """The trajectory of images up into noise, [steps + 1, B, *shape], x0 first: `samplers.ddim_invert`.

    Args are those of `sample`; with guidance it rarely leads back.
    """
    x0 = model.parts.space.encode(frozen["space"], {"image": image})
    chart = guided_chart(model, params, frozen, context, plan, numbers)
    s, moves = model.schedule_of(params), np.array(plan.moves, np.int32)
    return samplers.ddim_invert(chart, s, x0, len(moves), spacing=moves)


def decode(model: Model, frozen: Params, x0: Array) -> Array:
    """Images [B, H, W, C] in [-1, 1]."""
    return model.parts.space.decode(frozen["space"], x0)
