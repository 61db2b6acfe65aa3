"""Contextual diffusion as a task: encoders, process, denoiser and adapter put together, with their loss."""

import copy
import dataclasses
import math
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from contextdiff_jax import parameters, trees
from contextdiff_jax.conditions import LayoutCondition
from contextdiff_jax.conditions.spaces import nearest_multiple
from contextdiff_jax.errors import UserError
from contextdiff_jax.losses import Variance
from contextdiff_jax.models import adapter, backbones, lora, precond
from contextdiff_jax.models.adapter import ScaledShift, Shift
from contextdiff_jax.process import chart
from contextdiff_jax.process.schedule import Schedule
from contextdiff_jax.runtime import Runtime
from contextdiff_jax.samplers import sampling
from contextdiff_jax.samplers.scheduler_config import PRETRAINED, from_scheduler_config
from contextdiff_jax.tasks import frames, objective, run_files, warm_start
from contextdiff_jax.tasks.batches import Batches
from contextdiff_jax.tasks.edge_control import EdgeControl
from contextdiff_jax.tasks.kept_texts import TABLE
from contextdiff_jax.tasks.parts import Parts
from contextdiff_jax.tasks.previews import Previews
from contextdiff_jax.tasks.readers import read_adapter, with_located_models
from contextdiff_jax.training.sharding import gather, put_tree, tree_shardings
from contextdiff_jax.types import Array, Batch, Context, Params


class DiffusionTask:
    """Diffusion in pixels or latents, under texts or classes, with or without the contextual shift.

    Attributes:
        config: the whole config.
        parts: the frozen surroundings: condition, space, the adapter's view of x0, schedule.
        frozen: their parameters, {"clip", "condition", "space"}; an argument of every jitted function.
        schedule: the noise schedule; of a learned one the start, see `schedule_of`.
        sample_shape: (H, W, C) of x0.
        edges: the ControlNet that guides a clip's tuning; None without one.
    """

    def __init__(
        self, config: ConfigDict, runtime: Runtime | None = None, weights: bool = True, mesh: Mesh | None = None
    ):
        self.config = config
        located = with_located_models(config)
        places = None if mesh is None else partial(tree_shardings, rules=config.sharding.rules, mesh=mesh)
        self.parts = parts = Parts.of(located, runtime, weights, places)
        self.frozen = parts.params
        self.schedule, self.sample_shape = parts.schedule, parts.space.shape
        self.backbone = backbones.build(located, parts.dtype)
        self.edges = EdgeControl.of(config, parts.dtype, weights, places)
        if self.edges is not None:
            self.frozen = self.frozen | {"control": self.edges.params}
        self.adapter, self._adapter_start = None, located.adapter.start if config.adapter.enabled else ""
        if config.adapter.enabled:
            self.adapter = adapter.build(config, parts.dtype)

    # Data and parameters.

    @cached_property
    def _batches(self) -> Batches:
        return Batches(self.config, self.parts, self.edges)

    def train_iterator(self, process_index: int, process_count: int) -> Any:
        """Checkpointable Grain iterator over this process's rows of the global batches."""
        return self._batches.train(process_index, process_count)

    def held_out_batches(self, process_index: int, process_count: int) -> tuple[str, Any]:
        """(split, this process's rows of batches of held-out records, in an order that is always the same)."""
        return self._batches.held_out(process_index, process_count)

    def batch_spec(self) -> Batch:
        """Shapes of what the step reads of a global batch; no data are read."""
        return self._batches.spec()

    def computed(self, frozen: Params, whole: jax.sharding.Sharding) -> Params:
        """What follows from the frozen networks once and for all: {"texts"} where texts are encoded once."""
        if not self.config.condition.kept_texts:
            return {}
        return {TABLE: self._batches.kept_texts.encoded(partial(self.encode, {}, frozen), whole)}

    def computed_spec(self, frozen: Params) -> Params:
        """Shapes of `computed`; no data are read."""
        if not (limit := self.config.condition.kept_texts):
            return {}
        return {TABLE: jax.eval_shape(self.encode, {}, frozen, self.parts.condition.empty(limit + 1))}

    def init(self, key: Array) -> Params:
        """{"denoiser", "adapter", "condition" if trained, ...}, float32; the adapter's output, and so b, is zero."""
        key_denoiser, key_adapter = jax.random.split(key)
        condition, params = self.parts.condition, {}
        if condition.trained:
            params["condition"] = condition.init(jax.random.fold_in(key, 2))
        rows = self.config.data.num_frames  # one picture, or one clip
        x0 = jax.ShapeDtypeStruct((rows, *self.sample_shape), jnp.float32)
        t = jax.ShapeDtypeStruct((rows,), jnp.int32)
        context = jax.eval_shape(self.encode, params, self.frozen, condition.empty(rows))
        params["denoiser"] = self.backbone.init(key_denoiser, x0, t, context)
        if self.adapter is not None:
            features = self.parts.features
            tokens = jax.eval_shape(self._features, self.frozen, x0)
            sizes = dict(grid=features.grid(self.sample_shape), sample_shape=self.sample_shape)
            params["adapter"] = parameters.init(self.adapter, key_adapter, tokens, t=t, context=context, **sizes)
        if self.config.train.lora.rank:
            params["lora"] = lora.init(jax.random.fold_in(key, 3), params["denoiser"], self.config.train.lora)
            lora.check(self.config, params)
        return params | self.process_params()

    def process_params(self) -> Params:
        """{"process": ...} at the start of training; {} where nothing of the process is learned."""
        learned = self.parts.process.init()
        return {"process": learned} if learned else {}

    def schedule_of(self, params: Params) -> Schedule:
        """The noise schedule under these parameters; a constant unless it is learned."""
        return self.parts.process.schedule(params.get("process", {}))

    def under(self, sampler: str) -> "DiffusionTask":
        """The same model on the schedule that diffusers' class of this sampler makes of the pretrained folder's file.

        With zero terminal SNR, DPM-Solver++ keeps a little signal where DDIM has none.
        """
        if self.config.process.schedule != PRETRAINED:
            return self
        other, s = copy.copy(self), from_scheduler_config(self.parts.scheduler, sampler).schedule
        other.schedule, process = s, dataclasses.replace(self.parts.process, start=s)
        other.parts = dataclasses.replace(self.parts, process=process)
        return other

    def variance_of(self, params: Params) -> Variance:
        """The variance of p_theta(x_{t-1} | x_t, c) in the bound: a name, or the learned table."""
        return self.parts.process.reverse_variance(params.get("process", {}))

    def check_params(self, params: Params) -> None:
        """Refuses a learned process that has become none (`Process.check`); its tables may be split over processes."""
        if learned := params.get("process"):
            self.parts.process.check(jax.tree.map(gather, learned))

    def check_start(self) -> None:
        """Looks whether what the parameters start from is there, and whether the loss trains every time and can train
        the process.

        Raises:
            UserError: it is not, or does not; names the config's key.
        """
        objective.check_weighting(self.config, self.parts.scheduler)
        objective.check_process(self.config, trees.names(self.process_params()))
        if self.config.process.schedule != PRETRAINED:
            self.parts.process.check_start()
        if self.config.model.init_from:
            warm_start.check(self.config.model.init_from)
            warm_start.check_schedule(self.config.model.init_from, self.config.process)
        if self._adapter_start:
            warm_start.check_adapter(self._adapter_start)

    def load(self, shardings: Params) -> Params:
        """Whatever of these parameters is pretrained, each tensor read onto its sharding; {} where nothing is."""
        if self.config.model.init_from:
            expected = jax.eval_shape(self.init, jax.random.key(0))
            start = warm_start.select(warm_start.read(self.config.model.init_from, expected), shardings)
            return put_tree(start, warm_start.select(shardings, start))
        denoiser = self.backbone.load(shardings["denoiser"]) if "denoiser" in shardings else None
        loaded = {} if denoiser is None else {"denoiser": denoiser}
        if "adapter" in shardings and self._adapter_start:
            expected = jax.eval_shape(self.init, jax.random.key(0))["adapter"]
            loaded["adapter"] = read_adapter(self._adapter_start, expected, shardings["adapter"])
        return loaded

    def shape_of(self, size: tuple[int, int] | None) -> tuple[int, ...]:
        """Shape of one x0 for pictures of (height, width) pixels; None is the size of the training.

        Raises:
            UserError: a size that the autoencoder, the network or the adapter cannot take.
        """
        if size is None:
            return tuple(self.sample_shape)
        if isinstance(self.parts.condition, LayoutCondition):
            raise UserError(f"size={size}: a layout's maps have the size of the training; leave the size out")
        two = isinstance(size, tuple | list) and len(size) == 2
        if not two or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
            raise UserError(f"size={size!r} is not (height, width) in pixels, e.g. (32, 48)")
        factor = backbones.factor(with_located_models(self.config))
        if self.adapter is not None:
            factor = math.lcm(factor, self.config.adapter.patch_size)
        pixels = self.parts.space.size[0] // self.sample_shape[0] * factor
        if size[0] % pixels or size[1] % pixels:
            near = tuple(nearest_multiple(n, pixels) for n in size)
            raise UserError(f"size={size} is not divisible by {pixels}, which these networks need; try {near}")
        return self.parts.space.shape_of(size)

    # Conditions, the network as x0_hat, and the shift.

    def encode(self, params: Params, frozen: Params, batch: Batch) -> Context:
        """The condition of each example; of `params` the condition's own are used, where it is trained."""
        return self.parts.encode_condition(params, frozen, batch)

    def null_context(self, params: Params, frozen: Params, context: Context) -> Context:
        """What guidance moves away from: the condition without what was asked for."""
        return self.parts.null_condition(params, frozen, context)

    def denoise(self, params: Params, xt: Array, t: Array, context: Context, **how: Any) -> Array:
        """x0_hat = f_theta(x_t, c, t) from the raw x_t [B, H, W, C], t int32 [B] or scalar.

        Of clips B counts frames, those of one clip after another; `how` is what the backbone takes beside these.
        """
        return self._predict(params, xt, t, context, **how)[0]

    def _predict(
        self, params: Params, xt: Array, t: Array, context: Context, dropout_key: Array | None = None, **how: Any
    ) -> tuple[Array, Array | None]:
        """(x0_hat, shift of the reverse step), the latter from a second head or None."""
        s, t = self.schedule_of(params), jnp.broadcast_to(t, xt.shape[:1])
        answer = self.backbone(self.merged(params)["denoiser"], xt, t, context, dropout_key, **how)
        out, *second = jnp.split(answer, self._heads, axis=-1)
        x0_hat = precond.to_x0_hat(s, out, xt, t, self.parts.prediction)
        return x0_hat, precond.to_shift(s, second[0], t) if second else None

    def denoiser(
        self,
        params: Params,
        context: Context,
        dropout_key: Array | None = None,
        frozen: Params | None = None,
        drawn: Array | None = None,
    ) -> chart.Denoiser:
        """f(x_t, t) -> x0_hat under these conditions, with its second head where there is one; `drawn` are edges that a
        ControlNet is shown, whose parameters are in `frozen`."""
        bound = partial(self._predict, params, context=context, dropout_key=dropout_key)
        if drawn is not None:
            return lambda xt, t: bound(xt, t, **self.edges.added(frozen, xt, t, context, drawn))[0]
        if self._heads == 2:
            return chart.TwoHeaded(bound)
        return lambda xt, t: bound(xt, t)[0]

    @property
    def _heads(self) -> int:
        return 2 if backbones.two_headed(self.config) else 1

    def merged(self, params: Params) -> Params:
        """The parameters with the LoRA, where there is one, added to the denoiser's."""
        if "lora" not in params:
            return params
        denoiser = lora.merge(params["denoiser"], params["lora"], self.config.train.lora.scale)
        return {name: tree for name, tree in params.items() if name != "lora"} | {"denoiser": denoiser}

    def _features(self, frozen: Params, x0: Array) -> Array:
        return self.parts.features.encode(frozen["clip"], frozen["space"], x0)

    def shift(self, params: Params, frozen: Params, context: Context) -> Shift | None:
        """b(x0, t) under these conditions, or None without an adapter."""
        if self.adapter is None:
            return None
        variables, count = {"params": params["adapter"]}, self.config.data.num_frames

        def relate(features: Array, t: Array, shape: tuple[int, ...]) -> Array:
            copies, grid = features.shape[0] // context.tokens.shape[0], self.parts.features.grid(shape)
            rows = dict(n=copies, f=count)
            repeated = jax.tree.map(lambda v: einops.repeat(v, "(c f) ... -> (c n f) ...", **rows), context)
            return self.adapter.apply(variables, features, grid, t, repeated, shape)

        kind = ScaledShift if self.config.adapter.scale else Shift
        return kind(self.schedule_of(params), features=partial(self._features, frozen), relate=relate, num_frames=count)

    # Training.

    def draw(self, batch: Batch, key: Array) -> Batch:
        """The batch with this step's randomness beside it; see `objective.draw`."""
        shape, space = self.sample_shape, self.parts.space
        return objective.draw(self.config, self.schedule.num_timesteps, shape, space, batch, key)

    def loss(
        self, params: Params, frozen: Params, batch: Batch, key: Array, *, train: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """The objective of each example, [B], and metrics; of a clip the mean over its frames. See `frame_loss`."""
        count = self.config.data.num_frames
        values = self.frame_loss(params, frozen, frames.fold(batch, count), key, train=train)
        return jax.tree.map(lambda v: frames.per_clip(v, count), values)

    def frame_loss(
        self, params: Params, frozen: Params, batch: Batch, key: Array, *, train: bool = True
    ) -> tuple[Array, dict[str, Array]]:
        """Joint objective of theta and phi through the reparameterised contextual sample.

        The condition is dropped for the denoiser alone: the process stays the conditional one, so that without its
        condition the denoiser learns x0_hat under the very x_t that guided sampling will show it.

        Args:
            params: {"denoiser", "adapter"}.
            frozen: encoder parameters.
            batch: the fields of space and condition, and what `draw` added.
            key: for dropout and, with the nelbo objective, its own noise.
            train: whether the network's dropout is active.

        Returns:
            loss [B] and metrics.
        """
        x0 = self.parts.space.encode(frozen["space"], batch)
        t, eps = batch["t"], batch["eps"]
        key_dropout, key_bound = jax.random.split(key)
        context = self.encode(params, frozen, batch)
        null = self.null_context(params, frozen, context)
        dropped = jax.tree.map(
            lambda c, n: jnp.where(batch["drop_cond"].reshape(-1, *(1,) * (c.ndim - 1)), n, c), context, null
        )
        f = self.denoiser(params, dropped, key_dropout if train else None, frozen, batch.get("edges"))
        b = self.shift(params, frozen, context)
        s, track = self.schedule_of(params), self.config.adapter.track_lipschitz
        if self.config.loss.objective == "nelbo":
            of_process = dict(levels=self.parts.levels, variance=self.variance_of(params))
            return objective.full_bound(s, x0, f, b, t, eps, key_bound, **of_process, track_lipschitz=track)
        how = dict(prediction=self.parts.prediction, track_lipschitz=track)
        return objective.denoising(self.config.loss, s, x0, f, b, t, eps, **how)

    # Looking at it.

    def check(self) -> None:
        """Refuses before a training what its sampler would only say at a preview.

        Raises:
            UserError: steps that the schedule or its pretrained file do not have, or a size that does not fit.
        """
        sampling.Plan.of(self, self.config.sample)

    @cached_property
    def _previews(self) -> Previews:
        return Previews(self)

    def preview(self, params: Params, frozen: Params, key: Array) -> tuple[np.ndarray, list[str]] | None:
        """A fixed set of held-out captions and the pictures drawn for them, whole on every process; None for clips."""
        return None if self.config.data.num_frames > 1 else self._previews.drawn(params, frozen, key)

    def keep(self, workdir: Path) -> None:
        """Puts what a checkpoint lacks into the run's folder; all processes call it. See `run_files.keep`.

        Raises:
            UserError: the run was started with others.
        """
        run_files.keep(self.config, workdir, self._keep)

    def _keep(self, workdir: Path) -> None:
        run_files.of_one_process(self.config, self.parts.space, self.frozen, workdir)
