"""Contextual diffusion as a task: encoders, process, denoiser and adapter put together, with their loss and sampler."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from contextdiff_jax import data, encoders, guidance, losses, samplers
from contextdiff_jax.models import precond
from contextdiff_jax.models.adapter import Adapter, Shift
from contextdiff_jax.models.unet import UNet
from contextdiff_jax.process import chart, forward, schedule
from contextdiff_jax.types import Array, Batch, Context, Params


def compute_dtype(name: str) -> jnp.dtype:
    """bfloat16 on accelerators and float32 on CPUs for "auto"; otherwise the type of that name."""
    if name == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


class DiffusionTask:
    """Pixel diffusion with text conditions, with or without the contextual shift.

    Attributes:
        config: the whole config.
        frozen: {"clip": parameters} of the frozen encoder; an argument of every jitted function, never trained.
        schedule: the noise schedule.
        sample_shape: (H, W, C) of x0.
    """

    def __init__(self, config: ConfigDict):
        self.config = config
        self.schedule = schedule.from_config(config.process)
        self.sample_shape = (config.data.image_size, config.data.image_size, 3)
        dtype = compute_dtype(config.model.dtype)
        self.clip = encoders.load_clip(config.encoder.clip, dtype)
        self.frozen = {"clip": self.clip.params}
        num_timesteps = config.process.num_timesteps
        model, adapter = config.model, config.adapter
        self.unet = UNet(
            channels=model.channels,
            multipliers=tuple(model.multipliers),
            num_blocks=model.num_blocks,
            self_attention_levels=tuple(model.self_attention_levels),
            cross_attention_levels=tuple(model.cross_attention_levels),
            head_dim=model.head_dim,
            patch_size=model.patch_size,
            num_timesteps=num_timesteps,
            dropout=model.dropout,
            remat=model.remat,
            dtype=dtype,
        )
        self._preview = jax.jit(partial(self.sample, sample=config.sample))
        self.adapter = None
        if adapter.enabled:
            self.adapter = Adapter(
                depth=adapter.depth,
                num_heads=adapter.num_heads,
                width=adapter.width,
                patch_size=adapter.patch_size,
                bound=adapter.bound,
                num_timesteps=num_timesteps,
                dtype=dtype,
            )

    # Data and parameters.

    def train_iterator(self, process_index: int, process_count: int) -> Any:
        """Checkpointable Grain iterator over this process's rows of the global batches."""
        return data.build(
            self.config.data,
            "train",
            batch_size=self.config.data.batch_size,
            seed=self.config.seed,
            process_index=process_index,
            process_count=process_count,
            tokenize=self.clip.tokenize,
        )

    def init(self, key: Array) -> Params:
        """{"denoiser": ..., "adapter": ...} in float32; the adapter's output, and so b, is exactly zero."""
        key_denoiser, key_adapter = jax.random.split(key)
        x0 = jax.ShapeDtypeStruct((1, *self.sample_shape), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        # From shapes alone: a forward pass on dummy data would be folded by the compiler, weight by weight, for minutes.
        context = jax.eval_shape(partial(self.null_context, batch_size=1), self.frozen)
        params = {"denoiser": self.unet.lazy_init(key_denoiser, x0, t, context)["params"]}
        if self.adapter is not None:
            tokens = jax.eval_shape(self.clip.encode_image, self.frozen["clip"], x0).tokens
            adapter = partial(self.adapter.lazy_init, grid=self.clip.grid, sample_shape=self.sample_shape)
            params["adapter"] = adapter(key_adapter, tokens, t=t, context=context)["params"]
        return params

    # Conditions, the network as x0_hat, and the shift.

    def encode(self, frozen: Params, tokens: Array, token_mask: Array) -> Context:
        """Text features of tokens int32 [B, L], float32."""
        context = self.clip.encode_text(frozen["clip"], tokens, token_mask)
        return context.replace(
            tokens=context.tokens.astype(jnp.float32), pooled=context.pooled.astype(jnp.float32)
        )

    def null_context(self, frozen: Params, batch_size: int) -> Context:
        """The empty prompt, encoded once and repeated."""
        null = self.clip.null_tokens()
        context = self.encode(frozen, jnp.asarray(null["tokens"]), jnp.asarray(null["token_mask"]))
        return jax.tree.map(lambda v: jnp.broadcast_to(v, (batch_size, *v.shape[1:])), context)

    def denoise(
        self, params: Params, xt: Array, t: Array, context: Context, dropout_key: Array | None = None
    ) -> Array:
        """x0_hat = f_theta(x_t, c, t) from the raw x_t [B, H, W, C], t int32 [B] or scalar."""
        t = jnp.broadcast_to(t, xt.shape[:1])
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        out = self.unet.apply({"params": params["denoiser"]}, xt, t, context, train=rngs is not None, rngs=rngs)
        return precond.to_x0_hat(self.schedule, out, xt, t, self.config.model.prediction)

    def shift(self, params: Params, frozen: Params, context: Context) -> Shift | None:
        """b(x0, t) under these conditions, or None without an adapter."""
        if self.adapter is None:
            return None

        def relate(features: Array, t: Array) -> Array:
            copies = features.shape[0] // context.tokens.shape[0]
            stacked = jax.tree.map(lambda v: einops.repeat(v, "b ... -> (n b) ...", n=copies), context)
            return self.adapter.apply(
                {"params": params["adapter"]}, features, self.clip.grid, t, stacked, self.sample_shape
            )

        encode = lambda x0: self.clip.encode_image(frozen["clip"], x0).tokens
        return Shift(self.schedule, features=encode, relate=relate)

    # Training.

    def draw(self, batch: Batch, key: Array) -> Batch:
        """The batch with this step's randomness beside it: t int32 [B], eps [B, H, W, C], drop_cond bool [B].

        Times are stratified over the batch (one uniform draw, evenly spaced offsets), which lowers the variance of
        the loss. Drawing for the whole batch at once keeps the step independent of how it is split.
        """
        key_t, key_eps, key_drop = jax.random.split(key, 3)
        size = batch["image"].shape[0]
        u = (jax.random.uniform(key_t) + jnp.arange(size) / size) % 1.0
        num_timesteps = self.schedule.num_timesteps
        t = 1 + jnp.minimum(jnp.floor(u * num_timesteps), num_timesteps - 1).astype(jnp.int32)
        eps = jax.random.normal(key_eps, batch["image"].shape)
        drop_cond = jax.random.bernoulli(key_drop, self.config.loss.cond_drop_prob, (size,))
        return batch | {"t": t, "eps": eps, "drop_cond": drop_cond}

    def loss(self, params: Params, frozen: Params, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Joint objective of theta and phi through the reparameterised contextual sample.

        The condition is dropped for the denoiser alone: the process stays the conditional one, so that without its
        condition the denoiser learns x0_hat under the very x_t that guided sampling will show it.

        Args:
            params: {"denoiser", "adapter"}.
            frozen: encoder parameters.
            batch: image, tokens, token_mask and what `draw` added.
            key: for dropout and, with the nelbo objective, its own noise.

        Returns:
            loss [B] and metrics.
        """
        x0, t, eps = batch["image"], batch["t"], batch["eps"]
        key_dropout, key_bound = jax.random.split(key)
        context = self.encode(frozen, batch["tokens"], batch["token_mask"])
        null = self.null_context(frozen, x0.shape[0])
        dropped = jax.tree.map(
            lambda c, n: jnp.where(batch["drop_cond"].reshape(-1, *(1,) * (c.ndim - 1)), n, c), context, null
        )
        f = partial(self.denoise, params, context=dropped, dropout_key=key_dropout)
        b = self.shift(params, frozen, context)
        objective, num_dims = self.config.loss.objective, x0[0].size
        if objective == "nelbo":
            bound = losses.nelbo(self.schedule, x0, f, b, t, key_bound, variance="beta")
            return bound.total / (num_dims * jnp.log(2.0)), {}
        if b is None:
            b_t = b_prev = jnp.zeros_like(x0)
        elif objective == "posterior":
            b_t, b_prev = b.pair(x0, t, t - 1)
        else:
            b_t = b(x0, t)
        q = forward.marginal(self.schedule, x0, b_t, t)  # Eq. 1, reparameterised
        xt = q.mean + jnp.sqrt(q.var) * eps
        x0_hat = f(xt, t)
        rms = lambda h: jnp.sqrt(jnp.mean(h**2, axis=(1, 2, 3)))
        metrics = {"x0_rmse": rms(x0_hat - x0), "shift_rms": rms(b_t)}
        if objective == "simple":
            config = self.config.loss
            return losses.simple(
                self.schedule, x0, x0_hat, t, weighting=config.weighting, gamma=config.gamma
            ), metrics
        b_t_hat, b_prev_hat = (b_t, b_prev) if b is None else b.pair(x0_hat, t, t - 1)
        nats = losses.posterior(self.schedule, x0, x0_hat, t, b_t, b_prev, b_t_hat, b_prev_hat)
        return nats / num_dims, metrics

    # Sampling.

    def chart(self, params: Params, frozen: Params, context: Context, sample: ConfigDict) -> chart.Chart:
        """The guided denoiser in the contextual chart, or in the plain one without an adapter."""
        f = guidance.classifier_free(
            self._conditional_and_null(params, frozen, context, sample.guidance),
            self.schedule,
            sample.guidance,
            rescale=sample.rescale,
            interval=tuple(sample.interval),
            threshold=None if sample.threshold == "none" else sample.threshold,
        )
        b = self.shift(params, frozen, context) if sample.adapter else None
        return chart.plain(f) if b is None else chart.contextual(f, b)

    def _conditional_and_null(self, params: Params, frozen: Params, context: Context, scale: float) -> Callable:
        """(x_t, t) -> (x0_hat with, x0_hat without the condition), in one network call of twice the batch."""
        if scale == 1:
            # Unguided: the null branch would be thrown away.
            return lambda xt, t: (self.denoise(params, xt, t, context),) * 2
        null = self.null_context(frozen, context.tokens.shape[0])
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), context, null)

        def denoise_both(xt: Array, t: Array) -> tuple[Array, Array]:
            t = jnp.tile(jnp.broadcast_to(t, xt.shape[:1]), 2)
            return tuple(jnp.split(self.denoise(params, jnp.concatenate([xt, xt]), t, both), 2))

        return denoise_both

    def sample(
        self, params: Params, frozen: Params, tokens: Array, token_mask: Array, keys: Array, sample: ConfigDict
    ) -> Array:
        """Images for tokenised prompts; pure and jittable, one compilation per batch shape and `sample` section.

        Args:
            tokens: int32 [B, L].
            token_mask: bool [B, L].
            keys: one key per image [B] for its initial noise, so that with a deterministic sampler a picture does
                not depend on the batch it came in.
            sample: the config's `sample` section.

        Returns:
            [B, H, W, 3] in [-1, 1].
        """
        context = self.encode(frozen, tokens, token_mask)
        x_T = jax.vmap(lambda key: jax.random.normal(key, self.sample_shape))(keys)
        options = {"eta": sample.eta} if sample.sampler == "ddim" else {}
        x0 = samplers.get(sample.sampler)(
            self.chart(params, frozen, context, sample),
            self.schedule,
            jax.random.fold_in(keys[0], 1),
            x_T,
            sample.num_steps,
            spacing=sample.spacing,
            **options,
        )
        return jnp.clip(x0, -1.0, 1.0)

    @cached_property
    def _preview_captions(self) -> list[str]:
        source = data.held_out(self.config.data)[1]
        return [source[i]["caption"] for i in range(min(16, len(source)))]

    def preview(self, params: Params, frozen: Params, key: Array) -> tuple[np.ndarray, list[str]]:
        """A fixed set of held-out captions and the pictures drawn for them, whole on every process."""
        captions = self._preview_captions
        text = self.clip.tokenize(captions)
        keys = jax.random.split(key, len(captions))
        images = self._preview(params, frozen, text["tokens"], text["token_mask"], keys)
        return multihost_utils.process_allgather(images, tiled=True), captions
