"""Attention control with constant memory gives what storing every map gives, for each method and recipe; inversion and
reconstruction; windows; memory."""

from functools import partial

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from editing_helpers import FRAMES, config_of, model_of, use_method
from stable_diffusion_helpers import save_pipeline

from contextdiff_jax.data.one_clip import clip_of
from contextdiff_jax.editing import memory
from contextdiff_jax.editing.editor import Editor, controls_of
from contextdiff_jax.errors import UserError

MORE = ("fatezero", "fatezero+attribute", "ddim")
WAYS = ("contextdiff", "fatezero+style", "fatezero+shape", *(pytest.param(way, marks=pytest.mark.slow) for way in MORE))


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    """A tiny network whose layers all act, with an adapter, and a clip."""
    folder = tmp_path_factory.mktemp("sd")
    save_pipeline(folder)
    config = config_of(folder)
    model, params = model_of(config)
    return Editor(model, params, jax.device_put(model.frozen), clip_of(config.data), config, progress=False)


class Store:
    """Remembers every map of a network call, and can put others in their place: what the peers do."""

    def __init__(self, change=None):
        self.maps, self._change = {}, change

    def __call__(self, weights, site):
        self.maps[site.name] = (site, np.asarray(weights))
        return weights if self._change is None else jnp.asarray(self._change(np.asarray(weights), site))


class Peers:
    """The network, one row of a call at a time, and the process in double precision."""

    def __init__(self, editor):
        self.model, self.params, self.frozen = editor.model, editor.params, editor.frozen
        self.moves, self.ab = editor.plan.sampling.moves, np.asarray(editor.model.schedule.alpha_bar, np.float64)

    def prompt(self, text):
        context = self.model.encode(self.params, self.frozen, self.model.parts.condition.read([text]))
        return jax.tree.map(lambda v: jnp.repeat(v, FRAMES, axis=0), context)

    def x0_hat(self, x, t, context, store=None):
        x = jnp.asarray(x, jnp.float32)
        return np.asarray(self.model.denoise(self.params, x, jnp.full(FRAMES, t), context, edit=store), np.float64)

    def b(self, x0_hat, t, context):
        shift = self.model.shift(self.params, self.frozen, context)
        return np.asarray(shift(jnp.asarray(x0_hat, jnp.float32), jnp.full(FRAMES, t)), np.float64)


@pytest.fixture(scope="module")
def peers_inversion(editor):
    """Latents of the inversion, its maps of 16 x 16, and every map of the source's latents, stored before the edit."""
    peers, clip = Peers(editor), editor.clip
    source, ab, moves = peers.prompt(clip.caption), peers.ab, peers.moves
    images = jnp.asarray(clip.frames / 127.5 - 1.0, jnp.float32)
    x = np.asarray(peers.model.parts.space.encode(peers.frozen["space"], {"image": images}), np.float64)
    latents, heat, stored = [x], 0.0, []
    for t, s in moves[::-1]:
        store = Store()
        x0_hat = peers.x0_hat(x, t, source, store)
        y = x - peers.b(x0_hat, s, source)
        eps = (y - np.sqrt(ab[t]) * x0_hat) / np.sqrt(1 - ab[t])
        clean = (y - np.sqrt(1 - ab[s]) * eps) / np.sqrt(ab[s])
        x = np.sqrt(ab[t]) * clean + np.sqrt(1 - ab[t]) * eps + peers.b(x0_hat, t, source)
        latents.append(x)
        heat = heat + cross_maps(store, editor.config.edit.mask_resolution) / len(moves)
    for k, (t, _) in enumerate(moves):
        store = Store()
        peers.x0_hat(latents[len(moves) - k], t, source, store)
        stored.append({name: weights for name, (_, weights) in store.maps.items()})
    return latents, heat, stored


def peers_edit(editor, config, target, inversion):
    """The edit with stored maps, in numpy."""
    peers, (latents, maps, stored) = Peers(editor), inversion
    control, edit = controls_of(editor.model, config, editor.clip, [target])[0], config.edit
    wanted, ab, steps = peers.prompt(target), peers.ab, len(peers.moves)
    null = peers.model.null_context(peers.params, peers.frozen, wanted)
    heat, new_heat, x = maps @ control.source_words, 0.0, latents[-1]

    def changed(weights, site, k):
        kept = stored[k][site.name]
        if site.kind == "cross":
            moved = np.einsum("fhqx,xy->fhqy", kept, control.mapping)
            new = np.where(control.taken > 0, moved, weights) * control.equalizer
            return np.where(control.cross[k] > 0, new, weights)
        if site.kind != "self" or site.height * site.width > edit.max_tokens or not control.self_attention[k]:
            return weights
        if not edit.self_blend:
            return kept
        inside = numpy_mask(heat, (site.height, site.width), control.threshold).reshape(FRAMES, 1, -1, 1)
        return np.where(inside > 0, weights, kept)

    for k, (t, s) in enumerate(peers.moves):
        store = Store(partial(changed, k=k))
        cond = peers.x0_hat(x, t, wanted, store)
        x0_hat = cond + (config.sample.guidance - 1.0) * (cond - peers.x0_hat(x, t, null))
        y = x - peers.b(x0_hat, t, wanted)
        eps = (y - np.sqrt(ab[t]) * x0_hat) / np.sqrt(1 - ab[t])
        x = np.sqrt(ab[s]) * x0_hat + np.sqrt(1 - ab[s]) * eps + peers.b(x0_hat, s, wanted)
        new_heat = new_heat + cross_maps(store, edit.mask_resolution) @ control.target_words
        if edit.latent_blend and control.blend[k]:
            masks = [numpy_mask(h, x.shape[1:3], control.threshold) for h in (heat, new_heat)]
            x = np.where(np.maximum(*masks)[..., None] > 0, x, latents[steps - k - 1])
    return x


def cross_maps(store, resolution):
    """The mean over heads and layers, [F, r, r, L]."""
    maps = [w.mean(1) for site, w in store.maps.values() if site.kind == "cross" and site.height == resolution]
    return einops.rearrange(np.mean(maps, axis=0), "f (h w) l -> f h w l", h=resolution)


def numpy_mask(heat, size, threshold):
    """Pooled, resized, normalised, thresholded, in plain loops."""
    out = np.zeros((len(heat), *size))
    for f, frame in enumerate(np.asarray(heat)):
        n, pooled = len(frame), np.zeros_like(frame)
        for i, j in np.ndindex(n, n):
            pooled[i, j] = frame[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max()
        resized = pooled[np.arange(size[0]) * n // size[0]][:, np.arange(size[1]) * n // size[1]]
        out[f] = resized > threshold * resized.max()
    return out


@pytest.mark.parametrize("way", WAYS)
def test_constant_memory_gives_what_stored_maps_give(editor, peers_inversion, way):
    config = use_method(editor.config, way)
    config.edit.mask_threshold = 0.99  # attention of a random network is nearly even: a low one would take all
    target = editor.clip.caption.replace("star", "frog")
    found = Editor(editor.model, editor.params, editor.frozen, editor.clip, config, progress=False)
    edited = found.latents([target])[0][target]
    expected = peers_edit(editor, config, target, peers_inversion)
    np.testing.assert_allclose(edited, expected, atol=2e-3 * np.abs(expected).max())


def psnr_of_inversion(editor, steps):
    """PSNR of the latents that come back, against their own range."""
    config = use_method(editor.config, "inversion")
    config.sample.num_steps = steps
    latents = Editor(editor.model, editor.params, editor.frozen, editor.clip, config, progress=False).latents([])[0]
    x, y = (np.asarray(v, np.float64) for v in latents.values())
    return 10 * np.log10(np.ptp(x) ** 2 / np.mean((x - y) ** 2))


def test_more_steps_reconstruct_better(editor):
    """With a trained-looking adapter: its shift is undone and redone."""
    few, many = psnr_of_inversion(editor, 4), psnr_of_inversion(editor, 32)
    assert many > few


def test_memory_does_not_grow_with_the_steps_but_for_the_latents(editor):
    temporaries, target = {}, editor.clip.caption.replace("star", "frog")
    for steps in (4, 8):
        config = use_method(editor.config, "contextdiff")
        config.sample.num_steps = steps
        other = Editor(editor.model, editor.params, editor.frozen, editor.clip, config, progress=False)
        other.latents([target])
        temporaries[steps] = other.memory["edit"]["temporaries"]
    latents = 4 * FRAMES * np.prod(editor.model.sample_shape)  # bytes of one step's
    assert abs(temporaries[8] - temporaries[4]) <= 4 * latents


def test_windows_of_the_whole_clip_are_the_clip(editor):
    """One window is no window at all; a longer clip has one latent per frame, whatever windows it is seen through."""
    with pytest.raises(UserError, match="overlap of 3 frames"):
        config = editor.config.copy_and_resolve_references()
        config.data.overlap = FRAMES
        Editor(editor.model, editor.params, editor.frozen, editor.clip, config, progress=False).latents([])


def test_bad_prompts_end_before_anything_is_compiled(editor):
    caption = editor.clip.caption
    for way, targets, message in (
        ("fatezero+shape", ["a frog"], "needs as many words"),
        ("contextdiff", [caption, caption], "different ones"),
        ("contextdiff", [caption], "name words of the source prompt"),
        ("contextdiff", ["a frog " * 20], "has room for 16"),
        ("contextdiff", [""], "empty prompt"),
    ):
        other = Editor(
            editor.model, editor.params, editor.frozen, editor.clip, use_method(editor.config, way), progress=False
        )
        with pytest.raises(UserError, match=message):
            other.run(targets)
        assert not other.memory
    config = use_method(editor.config, "contextdiff")
    config.edit.blend_words = ("horse",)
    with pytest.raises(UserError, match="its words are"):
        controls_of(editor.model, config, editor.clip, [caption.replace("star", "frog")])


def test_frames_that_do_not_fit_the_device_are_counted(editor):
    compiled = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T).lower(jnp.zeros((256, 256))).compile()
    needed = memory.check(compiled, "edit", 8)
    with pytest.raises(UserError, match="edit of 8 frames needs .* the device has"):
        memory.check(compiled, "edit", 8, limit=needed["peak"] - 1)
