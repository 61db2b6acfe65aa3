"""The constant-memory edit of a whole clip gives what one that stores every map gives, with a network that all acts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from editing_helpers import FRAMES, config_of, model_of, use_method
from stable_diffusion_helpers import save_pipeline

from contextdiff_jax.compilation import bytes_of
from contextdiff_jax.data.one_clip import clip_of
from contextdiff_jax.editing.edit import edit
from contextdiff_jax.editing.editor import Editor, controls_of
from contextdiff_jax.editing.inversion import invert
from contextdiff_jax.errors import UserError

SIDE = 16  # of the latents and of the maps that make the mask
THRESHOLD = 0.99  # attention of a random network is nearly even: a low one would take all
# All of these run one compiled program: they differ in its arguments. The slow ones need another each.
WAYS = ("contextdiff", "fatezero", "fatezero+attribute", "fatezero+shape")
SLOW = ("fatezero+style", "ddim", "outside")


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    save_pipeline(folder)
    config = config_of(folder)
    model, params = model_of(config)
    return Editor(model, params, jax.device_put(model.frozen), clip_of(config.data), config, progress=False)


class Peers:
    """The network, one row of a call at a time, and the process in double precision; all maps are stored first."""

    def __init__(self, editor):
        self.model, self.params, self.frozen = editor.model, editor.params, editor.frozen
        self.moves, self.ab = editor.plan.sampling.moves, np.asarray(editor.model.schedule.alpha_bar, np.float64)
        self.sites, self.max_tokens = {}, editor.config.edit.max_tokens
        self._encode, self._b = jax.jit(self.model.encode), jax.jit(self._shifted)
        self._change, self._nothing, self._kept = jax.jit(self._changed), editor._no_control(), None

    def prompt(self, text):
        context = self._encode(self.params, self.frozen, self.model.parts.condition.read([text]))
        return jax.tree.map(lambda v: jnp.repeat(v, FRAMES, axis=0), context)

    def _changed(self, params, x, t, context, kept, control, k, inside):
        maps = {}

        def weights_of(weights, site):
            self.sites[site.name], maps[site.name] = site, weights
            if kept is None or site.height * site.width > self.max_tokens:
                return weights
            if site.kind == "cross":
                moved = jnp.einsum("fhqx,xy->fhqy", kept[site.name], control.mapping)
                new = jnp.where(control.taken > 0, moved, weights) * control.equalizer
                return jnp.where(control.cross[k] > 0, new, weights)
            if site.kind != "self":
                return weights
            own = inside[site.height].reshape(FRAMES, 1, -1, 1) > 0
            return jnp.where(own | (control.self_attention[k] == 0), weights, kept[site.name])

        return self.model.denoise(params, x, jnp.full(FRAMES, t), context, edit=weights_of), maps

    def _shifted(self, params, frozen, x0_hat, t, context):
        return self.model.shift(params, frozen, context)(x0_hat, jnp.full(FRAMES, t))

    def look(self, x, t, context):
        """x0_hat and all maps; the compiled program is that of `change`, which is told to change nothing."""
        if self._kept is None:
            arguments = self.params, np.float32(x), t, context, None, self._nothing, 0, {}
            maps = jax.eval_shape(self._changed, *arguments)[1]
            self._kept = jax.tree.map(lambda m: np.zeros(m.shape, np.float32), maps)
            sides = {site.height for site in self.sites.values()}
            self._inside = {side: np.zeros((FRAMES, side, side)) for side in sides}
        return self.change(x, t, context, self._kept, self._nothing, 0, self._inside)

    def change(self, x, t, context, *how):
        x0_hat, maps = self._change(self.params, np.float32(x), t, context, *how)
        return np.asarray(x0_hat, np.float64), maps

    def b(self, x0_hat, t, context):
        return np.asarray(self._b(self.params, self.frozen, np.float32(x0_hat), t, context), np.float64)

    def heat(self, maps):
        """The mean over heads and layers, [F, r, r, L]."""
        chosen = [np.asarray(maps[n]).mean(1) for n, s in self.sites.items() if s.kind == "cross" and s.height == SIDE]
        return np.mean(chosen, axis=0, dtype=np.float64).reshape(FRAMES, SIDE, SIDE, -1)


@pytest.fixture(scope="module")
def peers(editor):
    """With the inversion's latents, its map of every step, and all maps of the source's latents, before any edit."""
    peers, clip = Peers(editor), editor.clip
    source, ab = peers.prompt(clip.caption), peers.ab
    encode = jax.jit(lambda frozen, images: peers.model.parts.space.encode(frozen, {"image": images}))
    x = np.asarray(encode(peers.frozen["space"], np.float32(clip.frames / 127.5 - 1.0)), np.float64)
    peers.latents, peers.maps = [x], []
    for t, s in peers.moves[::-1]:
        x0_hat, maps = peers.look(x, t, source)
        y = x - peers.b(x0_hat, s, source)
        eps = (y - np.sqrt(ab[t]) * x0_hat) / np.sqrt(1 - ab[t])
        clean = (y - np.sqrt(1 - ab[s]) * eps) / np.sqrt(ab[s])
        x = np.sqrt(ab[t]) * clean + np.sqrt(1 - ab[t]) * eps + peers.b(x0_hat, t, source)
        peers.latents.append(x)
        peers.maps.insert(0, peers.heat(maps))
    peers.stored = [peers.look(x, t, source)[1] for x, (t, _) in zip(peers.latents[:0:-1], peers.moves, strict=True)]
    return peers


def peers_edit(peers, config, control, target):
    """The edit with stored maps, and how near any map came to the threshold of its mask."""
    wanted, ab, steps = peers.prompt(target), peers.ab, len(peers.moves)
    null = peers.model.null_context(peers.params, peers.frozen, wanted)
    new_heat, x, nearest = 0.0, peers.latents[-1], np.inf
    sides = {site.height for site in peers.sites.values()}
    blends, outside = float(config.edit.self_blend), config.edit.mask == "outside"
    for k, (t, s) in enumerate(peers.moves):
        heat = peers.maps[k] @ control.source_words  # of the inversion's step from s to t
        inside = {side: blends * abs(outside - numpy_mask(heat, side, THRESHOLD)[0]) for side in sides}
        nearest = min(nearest, *(numpy_mask(heat, side, THRESHOLD)[1] for side in sides))
        cond, maps = peers.change(x, t, wanted, peers.stored[k], control, k, inside)
        x0_hat = cond + (config.sample.guidance - 1.0) * (cond - peers.look(x, t, null)[0])
        y = x - peers.b(x0_hat, t, wanted)
        eps = (y - np.sqrt(ab[t]) * x0_hat) / np.sqrt(1 - ab[t])
        x = np.sqrt(ab[s]) * x0_hat + np.sqrt(1 - ab[s]) * eps + peers.b(x0_hat, s, wanted)
        new_heat = new_heat + peers.heat(maps) @ control.target_words
        if config.edit.latent_blend and control.blend[k]:
            masks, gaps = zip(*(numpy_mask(h, SIDE, THRESHOLD) for h in (heat, new_heat)), strict=True)
            moves = 1 - masks[0] if outside else np.maximum(*masks)
            x = np.where(moves[..., None] > 0, x, peers.latents[steps - k - 1])
            nearest = min(nearest, *gaps)
    return x, nearest


def numpy_mask(heat, side, threshold):
    """Pooled, resized, normalised, thresholded, in plain loops; and the smallest distance from the threshold."""
    out, gap = np.zeros((len(heat), side, side)), np.inf
    for f, frame in enumerate(heat):
        n, pooled = len(frame), np.zeros_like(frame)
        for i, j in np.ndindex(n, n):
            pooled[i, j] = frame[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max()
        rows = np.arange(side) * n // side
        relative = pooled[rows][:, rows] / pooled[rows][:, rows].max()
        out[f], gap = relative > threshold, min(gap, abs(relative - threshold).min())
    return out, gap


@pytest.fixture(scope="module")
def edited(editor):
    """Inversion and edit of a clip's latents as one program, compiled once for each plan."""
    model, given = editor.model, jnp.ones((FRAMES, SIDE, SIDE))

    @partial(jax.jit, static_argnames="plan")
    def run(params, frozen, x0, source, target, control, numbers, plan):
        contexts = [model.encode(params, frozen, prompt) for prompt in (source, target)]
        edges = jnp.zeros((FRAMES, 1))
        words = control.source_words[:, None] if plan.attention_mask else None
        inverted = invert(model, params, frozen, contexts[0], x0, edges, words, plan)
        arguments = *contexts, inverted.of_words(0), given, edges, control, numbers
        return inverted, edit(model, params, frozen, *arguments, plan=plan).x0

    return partial(run, editor.params, editor.frozen)


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in SLOW)])
def test_constant_memory_gives_what_stored_maps_give(editor, peers, edited, way):
    config = use_method(editor.config, "contextdiff" if way == "outside" else way)
    config.edit.mask_threshold = THRESHOLD
    if way == "outside":
        config.edit.mask, config.edit.blend_words = "outside", ("star",)
    source, target = editor.clip.caption, editor.clip.caption.replace("star", "frog")
    found = Editor(editor.model, editor.params, editor.frozen, editor.clip, config, progress=False)
    control, read = controls_of(editor.model, config, editor.clip, [target])[0], editor.model.parts.condition.read
    x0 = np.float32(peers.latents[0])
    inverted, x0 = edited(x0, read([source]), read([target]), control, found.numbers, plan=found.plan)
    for latents, expected in zip(inverted.trajectory, peers.latents, strict=True):
        np.testing.assert_allclose(latents, expected, atol=1e-4 * np.abs(expected).max())
    expected, nearest = peers_edit(peers, config, control, target)
    assert nearest > 1e-5  # no mask hangs on the last digit
    np.testing.assert_allclose(x0, expected, atol=1e-4 * np.abs(expected).max())


def test_bad_prompts_end_before_anything_is_compiled(editor):
    caption = editor.clip.caption
    for way, targets, message in (
        ("fatezero+shape", ["a frog"], "needs as many words"),
        ("contextdiff", [caption, caption], "different ones"),
        ("contextdiff", [caption], "name words of the source prompt"),
        ("contextdiff", ["a frog " * 20], "has room for 16"),
        ("contextdiff", [""], "empty prompt"),
    ):
        with pytest.raises(UserError, match=message):
            controls_of(editor.model, use_method(editor.config, way), editor.clip, targets)
    config = use_method(editor.config, "contextdiff")
    config.edit.mask = "outside"
    with pytest.raises(UserError, match="name them by edit.blend_words"):
        controls_of(editor.model, config, editor.clip, [caption.replace("star", "frog")])
    config.edit.blend_words = ("horse",)
    with pytest.raises(UserError, match="its words are"):
        controls_of(editor.model, config, editor.clip, [caption.replace("star", "frog")])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps_but_for_the_latents(editor):
    found, target = {}, editor.clip.caption.replace("star", "frog")
    for steps in (10, 20, 50):
        config = use_method(editor.config, "contextdiff")
        config.sample.num_steps = steps
        other = Editor(editor.model, editor.params, editor.frozen, editor.clip, config, progress=False)
        found[steps] = bytes_of(other.trace([target])["edit"].lower().compile())
    latents = 4 * FRAMES * np.prod(editor.model.sample_shape)  # bytes of one step's
    print(f"\none step's latents: {latents} bytes; {found}")
    for steps in (20, 50):
        grown = {name: found[steps][name] - found[10][name] for name in found[10]}
        assert abs(grown["temporaries"]) < latents and grown["results"] == 0
        # The trajectory, the words' maps, and of each step's gates a number a token.
        maps = 4 * FRAMES * SIDE**2
        assert (steps - 10) * (latents + maps) <= grown["arguments"] <= (steps - 10) * (latents + maps + 1024)
