"""Heatmaps of words (Figs. 8, 9): where the text-image cross-attention of the sampling process looks, word by word.

Nothing of the networks is changed for it: while one is traced, its cross-attention layers are intercepted and report
their weights, averaged over heads, to the host. Guided rows count with their prompt alone. Given pictures and clips
have no sampling process: of them it is the attention of DDIM inversion, without guidance.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.edges import edges_of
from contextdiff_jax.editing.figures import heat_in_mask
from contextdiff_jax.editing.inversion import invert
from contextdiff_jax.editing.plan import plan_of
from contextdiff_jax.editing.words import MARKS, Prompt, names_something
from contextdiff_jax.errors import UserError
from contextdiff_jax.layers import Attention
from contextdiff_jax.pipeline import Pipeline, requests
from contextdiff_jax.process.chart import Denoiser, TwoHeaded
from contextdiff_jax.progress import Progress
from contextdiff_jax.samplers import sampling
from contextdiff_jax.types import Array

SIDE = 16  # of the maps that the paper shows; the nearest that the network has is taken
CROSS = ("cross", "attn2")  # names of the layers that attend to the text


class Attended(NamedTuple):
    """Pictures and where their texts look.

    Attributes:
        images: float32 [N, H, W, C] in [-1, 1].
        maps: weights averaged over steps, layers and heads, [N, h, w, L]; over the L tokens they sum to 1.
    """

    images: np.ndarray
    maps: np.ndarray


class Recorder:
    """What the cross-attention layers of a compiled program report: sums over calls, by resolution."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int], np.ndarray] = {}
        self._calls: dict[tuple[int, int], int] = {}

    def denoise(self, model: Any, guided: bool) -> Callable[..., Array]:
        """`model.denoise` whose network reports; with guidance every second row is without a text."""

        def reporting(params: Any, xt: Array, t: Array, context: Any, **how: Any) -> Array:
            with self._listening(xt, guided):
                return model.denoise(params, xt, t, context, **how)

        return reporting

    def denoiser(self, model: Any, guided: bool) -> Callable[..., Denoiser]:
        """`model.denoiser` whose functions report, those with a second head too."""

        def reporting(*args: Any, **how: Any) -> Denoiser:
            f = model.denoiser(*args, **how)

            def listened(call: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Any]:
                def within(xt: Array, t: Array) -> Any:
                    with self._listening(xt, guided):
                        return call(xt, t)

                return within

            return TwoHeaded(listened(f.with_shift)) if hasattr(f, "with_shift") else listened(f)

        return reporting

    def _listening(self, xt: Array, guided: bool) -> AbstractContextManager[None]:
        """While it lasts, the cross-attention layers of a network that is called with x_t [B, H, W, C] report."""
        height, width = xt.shape[1:3]

        def intercept(next_fun, args, kwargs, call):
            layer = isinstance(call.module, Attention) and call.module.name in CROSS
            if not layer or call.method_name != "__call__":
                return next_fun(*args, **kwargs)
            edit = kwargs.get("edit") or (lambda weights: weights)

            def report(weights: Array) -> Array:
                weights = edit(weights)
                rows = weights[0::2] if guided else weights
                down = round((height * width / weights.shape[2]) ** 0.5)
                maps = rows.mean(axis=1).reshape(-1, height // down, width // down, weights.shape[-1])
                jax.debug.callback(self._take, maps)
                return weights

            return next_fun(*args, **kwargs | {"edit": report})

        return nn.intercept_methods(intercept)

    def _take(self, maps: Any) -> None:
        maps = np.asarray(maps, np.float32)
        size = maps.shape[1:3]
        self._sums[size] = self._sums.get(size, 0.0) + maps
        self._calls[size] = self._calls.get(size, 0) + 1

    def maps(self) -> np.ndarray:
        """The mean at the resolution nearest to `SIDE`, [B, h, w, L]; what was recorded is forgotten.

        Raises:
            UserError: no layer attends to the text.
        """
        jax.effects_barrier()
        if not self._sums:
            raise UserError("heatmaps: this network has no cross-attention to a text; take one that has")
        size = min(self._sums, key=lambda s: abs(np.log(s[0] * s[1] / SIDE**2)))
        mean = self._sums[size] / self._calls[size]
        self._sums.clear()
        self._calls.clear()
        return mean


class _Reporting:
    """A model whose networks report to a recorder; in all else the model itself."""

    def __init__(self, model: Any, recorder: Recorder, guided: bool):
        self._model, self.denoise = model, recorder.denoise(model, guided)
        self.denoiser = recorder.denoiser(model, guided)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def of_samples(pipeline: Pipeline, prompts: Sequence[str], key: int = 0, **options: Any) -> Attended:
    """Draws pictures as `pipeline.sample` does, and maps of where each token of their prompts looks.

    Args:
        pipeline: of a model with texts.
        prompts: one for each picture.
        key: of the noise.
        **options: of the config's `sample` section, e.g. adapter=False.

    Raises:
        UserError: a model without texts, unknown options.
    """
    return _attended(pipeline, prompts, None, key, options, sampling.sample)


def of_pictures(pipeline: Pipeline, images: np.ndarray, prompts: Sequence[str], **options: Any) -> Attended:
    """The same of given pictures [N, H, W, C] in [-1, 1] on their way into noise (DDIM inversion, no guidance).

    What they show is known, and so can be compared with where the words look; the pictures are returned as they are.
    """

    options = {"sampler": "ddim", "eta": 0.0, "guidance": 1.0} | options
    found = _attended(pipeline, prompts, np.asarray(images, np.float32), 0, options, sampling.invert)
    return Attended(images, found.maps)


def _attended(
    pipeline: Pipeline, prompts: Sequence[str], images: Any, key: int, options: dict, way: Callable
) -> Attended:
    config, key = pipeline.config, np.uint32(requests.check_seed(key))
    if config.condition.kind != "text" or config.data.num_frames > 1:
        raise UserError(
            f"heatmaps of words: config.condition.kind={config.condition.kind!r} with {config.data.num_frames} frames; "
            "take a model that draws pictures from texts"
        )
    section = requests.section_of(config, options)
    plan, numbers = sampling.Plan.of(pipeline.task, section), sampling.Numbers.of(section)
    run, recorder = _program(pipeline, way, plan)
    fields, size = pipeline.task.parts.condition.read(list(prompts)), min(section.batch_size, len(prompts))
    parts, maps = [], []
    with Progress("heatmaps", len(prompts), "img", before="compiling") as progress:
        for start in range(0, len(prompts), size):
            rows = np.minimum(np.arange(start, start + size), len(prompts) - 1)
            taken = {name: field[rows] for name, field in fields.items()}
            given = None if images is None else jnp.asarray(images[rows])
            drawn = run(pipeline.params, pipeline.frozen, taken, key, rows, numbers, given)
            progress.began()
            count = min(size, len(prompts) - start)
            maps.append(recorder.maps()[:count])
            parts.append(np.asarray(drawn)[:count])
            progress.update(count)
    return Attended(np.concatenate(parts), np.concatenate(maps))


@lru_cache(maxsize=4)
def _program(pipeline: Pipeline, way: Callable, plan: sampling.Plan) -> tuple[Callable, Recorder]:
    """The jitted `sampling.sample` or `sampling.invert` of a plan, and the recorder that it reports to."""
    recorder = Recorder()
    model = _Reporting(pipeline.task.under(plan.sampler), recorder, plan.guided)

    @jax.jit
    def run(params, frozen, fields, key, rows, numbers, images):
        context = model.encode(params, frozen, fields)
        if way is sampling.invert:
            return sampling.invert(model, params, frozen, context, numbers, images, plan=plan)[0]
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(key)))(rows)
        return sampling.sample(model, params, frozen, context, keys, numbers, plan=plan)

    return run, recorder


def words_of(prompt: str) -> list[str]:
    """The words of a prompt that name something, each once."""
    words = [word.strip(MARKS) for word in prompt.split()]
    return list(dict.fromkeys(word for word in words if word and names_something(word)))


def heat(maps: np.ndarray, prompt: Prompt, word: str) -> np.ndarray:
    """Attention to a word, summed over its tokens: maps [..., L] -> [...].

    Raises:
        UserError: the prompt has no such word; it names those that it has.
    """
    return maps[..., prompt.positions(word)].sum(axis=-1)


def share_inside(heats: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of a word's heat lies on its object.

    Args:
        heats: [N, h, w].
        masks: where the object is, bool [N, H, W]; of any side.

    Returns:
        The share of the heat inside the mask, and the mask's share of the picture, which evenly spread heat would have;
        both [N].
    """
    inside = np.array([heat_in_mask(h[None], _covered(m, h.shape)[None]) for h, m in zip(heats, masks, strict=True)])
    return inside, masks.mean(axis=(1, 2))


def _covered(mask: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """How much of each cell of a grid of these sides a mask [H, W] of any side covers, [h, w]."""

    def overlaps(cells: int, pixels: int) -> np.ndarray:
        """The share of each cell that lies on each pixel, [cells, pixels]."""
        ends = lambda n: (np.arange(n) / n, np.arange(1, n + 1) / n)
        (low, high), (first, last) = ends(cells), ends(pixels)
        return cells * np.maximum(0.0, np.minimum(high[:, None], last) - np.maximum(low[:, None], first))

    rows, columns = (overlaps(*n) for n in zip(sides, mask.shape, strict=True))
    return rows @ mask @ columns.T


def of_clip(model: Any, params: Any, frozen: Any, clip: Clip, config: ConfigDict, adapter: bool) -> np.ndarray:
    """Maps [F, r, r, L] of a clip's own prompt on its way into noise (DDIM inversion, no guidance); r is
    `edit.mask_resolution`.

    Args:
        model: a task over clips; the ControlNet that guided its tuning, if one did, is shown the clip's edges.
        params, frozen: its parameters.
        clip: frames and caption.
        config: `sample`, `edit` and `data` count.
        adapter: whether the shift acts.
    """
    plan = sampling.Plan.of(model, config.sample)
    plan = dataclasses.replace(plan, sampler="ddim", guided=False, adapter=adapter and plan.adapter)
    edit_plan = plan_of(config.edit, plan, clip, config.data.num_frames, config.data.overlap)
    net = None if model.edges is None else model.edges.net
    edit_plan = dataclasses.replace(edit_plan, self_blend=True, mask="attention", recorded=True, controlnet=net)
    drawn = jnp.zeros((len(clip.frames), 1)) if net is None else edges_of(clip.frames)
    prompt = model.parts.condition.read([clip.caption])

    @jax.jit
    def run(params, frozen, prompt, frames, drawn):
        x0 = jax.lax.map(lambda f: model.parts.space.encode(frozen["space"], {"image": f[None]})[0], frames)
        context = model.encode(params, frozen, prompt)
        return invert(model, params, frozen, context, x0, drawn, None, edit_plan).maps

    return np.asarray(run(params, frozen, prompt, jnp.asarray(clip.frames.astype(np.float32) / 127.5 - 1.0), drawn))
