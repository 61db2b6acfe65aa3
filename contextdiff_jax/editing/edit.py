"""The edit: deterministic contextual DDIM from the last latent of an inversion, attention fused with the source's."""

import einops
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.editing import masks
from contextdiff_jax.editing.control import Control, Fusion, Recorder
from contextdiff_jax.editing.inversion import Inverted, control_of_edges, repeated, shift_of
from contextdiff_jax.editing.plan import EditPlan
from contextdiff_jax.editing.windows import over_windows
from contextdiff_jax.process import chart as charts
from contextdiff_jax.process.forward import ddim_posterior
from contextdiff_jax.samplers import guidance
from contextdiff_jax.samplers.sampling import Model, Numbers
from contextdiff_jax.types import Array, Context, Params


@flax.struct.dataclass
class Edited:
    """An edited clip.

    Attributes:
        x0: latents [F, h, w, C].
        mask: where it was edited, float32 [F, h, w]; ones without a mask.
    """

    x0: Array
    mask: Array


def edit(
    model: Model,
    params: Params,
    frozen: Params,
    source: Context,
    target: Context,
    inverted: Inverted,
    given: Array,
    edges: Array,
    control: Control,
    numbers: Numbers,
    *,
    plan: EditPlan,
) -> Edited:
    """Samples under the edited prompt, one scan over the steps; pure and jittable.

    Memory does not grow with the number of steps but for the latents of the inversion.

    Args:
        model: what is sampled from.
        params, frozen: its parameters.
        source: the prompt of the source row, [1].
        target: the edited prompt, [1].
        inverted: of the clip, with the maps of the words that make the mask, `Inverted.of_words`.
        given: the clip's own mask at latent size, [F, h, w]; looked at where the plan says so.
        edges: what a ControlNet is shown, [F, H, W, 3].
        control: how attention is edited.
        numbers: guidance.
        plan: which parts act.
    """
    loop = _Loop(model, params, frozen, source, target, inverted, given, edges, control, numbers, plan)
    moves = jnp.asarray(plan.sampling.moves, jnp.int32)
    gates = control.cross, control.self_attention, control.blend
    # The trajectory is looked up, not scanned over: that would copy it.
    steps = moves, jnp.arange(len(moves), 0, -1), gates
    start = inverted.trajectory[-1], jnp.zeros_like(inverted.maps[..., 0])
    (x0, target_maps), _ = jax.lax.scan(loop.step, start, steps)
    size = x0.shape[1:3]
    if not plan.masked:
        return Edited(x0, jnp.ones((plan.length, *size)))
    # Each step has a mask of its own; one region of them all is that of the mean map.
    mean = inverted.word_maps.mean(axis=0) if plan.attention_mask else None
    return Edited(x0, loop.union(mean, target_maps, size))


class _Loop:
    """What every step of an edit shares."""

    def __init__(self, model, params, frozen, source, target, inverted, given, edges, control, numbers, plan):
        self.model, self.params, self.frozen, self.plan = model, params, frozen, plan
        self.control, self.numbers, self.edges = control, numbers, edges
        window = plan.window
        contexts = ([model.null_context(params, frozen, target)] if plan.sampling.guided else []) + [target]
        contexts += [source] if plan.fused else []
        self.rows = len(contexts)
        self.contexts = jax.tree.map(lambda *v: jnp.concatenate(v), *(repeated(c, window) for c in contexts))
        self.b = shift_of(model, params, frozen, target, plan)
        self.given, self.trajectory = given, inverted.trajectory
        self.word_maps = inverted.word_maps if plan.attention_mask else None

    def step(self, carry, inputs):
        """From t to s: x [F, h, w, C] and the sum of the edited row's maps so far [F, r, r]."""
        (x, total), (times, k, gates), plan = carry, inputs, self.plan
        t, s = (jnp.full(plan.length, time) for time in times)
        clip = over_windows(lambda part: self.predict(part, gates), plan.length, plan.window, plan.overlap)
        maps = total if self.word_maps is None else self.word_maps[k - 1]  # of the same time, as the latents of k are
        x0_hat, seen = clip((x, t, self.trajectory[k], maps, self.given, self.edges))
        total = total + seen
        schedule = self.model.schedule_of(self.params)
        update = lambda y: ddim_posterior(schedule, y, x0_hat, 0.0, 0.0, t, s, 0.0).mean
        new = charts.Chart(None, self.b).carry(x, x0_hat, t, s, update)
        if plan.latent_blend:
            inside = jnp.maximum(self.union(maps, total, x.shape[1:3]), 1.0 - gates[2])[..., None]
            new = inside * new + (1.0 - inside) * self.trajectory[k - 1]
        return (new.astype(x.dtype), total), None

    def predict(self, part, gates) -> tuple[Array, Array]:
        """x0_hat of a window's edited frames, and their attention to the new words."""
        x, t, source, maps, given, edges = part
        plan, window = self.plan, self.plan.window
        clips = [x] * (self.rows - plan.fused) + [source] * plan.fused
        fusion = self.fusion(gates, maps, given)
        xt, times = jnp.concatenate(clips), jnp.tile(t, self.rows)
        added = control_of_edges(plan, self.frozen, xt, times, self.contexts, edges)
        answers = self.model.denoise(self.params, xt, times, self.contexts, edit=fusion, **added)
        rows = einops.rearrange(answers, "(r f) h w c -> r f h w c", f=window)
        edited = 1 if plan.sampling.guided else 0
        how, s = {}, self.model.schedule_of(self.params)
        if edited:
            how = dict(rescale=self.numbers.rescale, interval=self.numbers.interval)
            how |= dict(prediction=self.model.parts.prediction)
        scale = self.numbers.guidance if edited else 1.0
        f = guidance.classifier_free(lambda x, t: (rows[edited], rows[0]), s, scale, **how)
        seen = jnp.zeros((window, 1, 1))
        if self.word_maps is not None:
            recorded = fusion.maps()[edited * window : (edited + 1) * window]
            seen = recorded @ self.control.target_words
        return f(x, t), seen.astype(jnp.float32)

    def fusion(self, gates, maps: Array, given: Array) -> Recorder | None:
        """What happens to attention in this step; None for nothing."""
        plan, (cross, self_attention, _) = self.plan, gates
        if not plan.fused:
            return None if self.word_maps is None else Recorder(plan.resolution)
        region = (lambda size: self.region(maps, given, size)) if plan.self_blend else None
        return Fusion(
            plan.resolution, plan.max_tokens, self.control, cross, self_attention, region, num_frames=plan.window
        )

    def region(self, maps: Array, given: Array, size: tuple[int, int]) -> Array:
        """The source's mask, [f, *size]."""
        if not self.plan.attention_mask:
            around = self.plan.mask == "around"  # of the object no part is lost where the map is smaller
            return 1.0 - masks.shrink(1.0 - given, size) if around else masks.shrink(given, size)
        found = masks.mask(maps, size, self.control.threshold, self.plan.mask_scale)
        return 1.0 - found if self.plan.mask == "outside" else found

    def union(self, source_maps: Array | None, target_maps: Array, size: tuple[int, int]) -> Array:
        """The masks of source and edit together, [F, *size]."""
        source = self.region(source_maps, self.given, size)
        if self.plan.mask != "attention":
            return source
        return jnp.maximum(source, masks.mask(target_maps, size, self.control.threshold, self.plan.mask_scale))


def given_mask(clip_masks: np.ndarray | None, kind: str, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """A clip's own mask at latent size, float32 [F, h, w]: 1 where anything of the object lies, or, for `around`, where
    nothing of it does; ones where there is none."""
    if clip_masks is None:
        return np.ones((num_frames, *size), np.float32)
    pooled = einops.reduce(clip_masks, "f (h p) (w q) -> f h w", "max", h=size[0], w=size[1]).astype(np.float32)
    return 1.0 - pooled if kind == "around" else pooled
