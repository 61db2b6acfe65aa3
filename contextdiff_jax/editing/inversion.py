"""Inversion of a clip through the contextual chart, with the maps that masks are made of."""

import flax.struct
import jax
import jax.numpy as jnp

from contextdiff_jax.editing.control import Recorder
from contextdiff_jax.editing.plan import EditPlan
from contextdiff_jax.editing.windows import over_windows
from contextdiff_jax.models.controlnet import control_of
from contextdiff_jax.process import chart as charts
from contextdiff_jax.samplers.ddim import ascend
from contextdiff_jax.samplers.sampling import Model
from contextdiff_jax.types import Array, Context, Params


@flax.struct.dataclass
class Inverted:
    """What an inversion leaves; any number of prompts can be edited from it.

    Attributes:
        trajectory: the latents, the clip's own first, [K + 1, F, h, w, C].
        maps: cross-attention to each token of the source prompt, averaged over steps, layers and heads, [F, r, r, L];
            zero where no layer has the plan's resolution, and one number where they are not recorded.
        word_maps: that of each step, from the clip on, summed over the words that were asked for, [K, F, r, r, W];
            None where none were.
    """

    trajectory: Array
    maps: Array
    word_maps: Array | None

    def of_words(self, index: int) -> "Inverted":
        """With the maps of one set of words alone, [K, F, r, r]; nothing else is copied."""
        return self if self.word_maps is None else self.replace(word_maps=self.word_maps[..., index])


def repeated(context: Context, num_frames: int) -> Context:
    """One condition for each frame."""
    return jax.tree.map(lambda v: jnp.repeat(v, num_frames, axis=0), context)


class WindowedShift:
    """The shift of a clip's frames, window by window: what a chart takes.

    Args:
        shift: of the frames of one window.
        over: makes a call on windows one on clips.
    """

    def __init__(self, shift: charts.Shift, over):
        self._shift, self._over = shift, over

    def pair(self, x0: Array, t: Array, s: Array) -> tuple[Array, Array]:
        """(b_t, b_s) of x0 [F, h, w, C], t and s [F]."""
        return self._over(lambda part: charts.pair(self._shift, *part))((x0, t, s))


def control_of_edges(
    plan: EditPlan, frozen: Params, x: Array, t: Array, context: Context, edges: Array
) -> dict[str, tuple[Array, ...]]:
    """{"control": what a ControlNet adds to the network for rows of frames}, or {} without one.

    Args:
        plan: its `controlnet`.
        frozen: "control" has its parameters.
        x, t, context: of the rows [R * f, ...].
        edges: of one row's frames, [f, H, W, 3]; every row has the same.
    """
    if plan.controlnet is None:
        return {}
    edges = jnp.tile(edges, (len(x) // len(edges), 1, 1, 1))
    return {"control": control_of(plan.controlnet, frozen["control"], x, t, context.tokens, edges)}


def shift_of(model: Model, params: Params, frozen: Params, context: Context, plan: EditPlan) -> WindowedShift | None:
    """The shift of a clip under one condition [1], or None without an adapter."""
    b = model.shift(params, frozen, repeated(context, plan.window)) if plan.sampling.adapter else None
    if b is None:
        return None
    return WindowedShift(b, lambda call: over_windows(call, plan.length, plan.window, plan.overlap))


def invert(
    model: Model,
    params: Params,
    frozen: Params,
    context: Context,
    x0: Array,
    edges: Array,
    words: Array | None,
    plan: EditPlan,
) -> Inverted:
    """The deterministic trajectory of a clip up to the first time of the plan, without guidance; jittable.

    Args:
        model: what is inverted.
        params: {"denoiser", "adapter"}.
        frozen: parameters of what surrounds them.
        context: the inversion's prompt, [1].
        x0: the clip's latents [F, h, w, C].
        edges: what a ControlNet is shown, [F, H, W, 3].
        words: 1 for the tokens of each set of words whose maps are kept, [L, W]; None keeps none.
        plan: steps, windows, resolution of the maps.
    """
    b, prompt = shift_of(model, params, frozen, context, plan), repeated(context, plan.window)

    side, length = (plan.resolution, context.tokens.shape[1]) if plan.recorded else (1, 1)

    def predict(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        recorder = Recorder(plan.resolution) if plan.recorded else None
        x, t, pictures = part
        control = control_of_edges(plan, frozen, x, t, prompt, pictures)
        x0_hat = model.denoise(params, x, t, prompt, edit=recorder, **control)
        # A mask must have its maps; those that are only shown may be missing.
        seen = recorder is not None and (recorder.has_maps or plan.attention_mask)
        maps = recorder.maps() if seen else jnp.zeros((plan.window, side, side, length))
        return x0_hat, maps.astype(jnp.float32)

    clip = over_windows(predict, plan.length, plan.window, plan.overlap)

    def step(carry: tuple[Array, Array], times: Array) -> tuple[tuple[Array, Array], tuple[Array, Array | None]]:
        x, total = carry
        t, s = (jnp.full(plan.length, time) for time in times)
        x0_hat, maps = clip((x, t, edges))
        x = ascend(charts.Chart(None, b), model.schedule_of(params), x, x0_hat, s, t).astype(x.dtype)
        return (x, total + maps), (x, None if words is None else maps @ words)

    rows = jnp.asarray(plan.sampling.moves[::-1], jnp.int32)
    start = x0, jnp.zeros((plan.length, side, side, length))
    (_, total), (trajectory, word_maps) = jax.lax.scan(step, start, rows)
    return Inverted(jnp.concatenate([x0[None], trajectory]), total / len(rows), word_maps)
