"""A trained model in three lines: load, sample, look."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
from PIL import Image

from contextdiff_jax import task as task_lib
from contextdiff_jax import trees
from contextdiff_jax.conditions import LayoutCondition, TextCondition
from contextdiff_jax.conditions.layout import Layout
from contextdiff_jax.editing.editor import check_targets
from contextdiff_jax.editing.result import Edit
from contextdiff_jax.errors import UserError
from contextdiff_jax.formats import diffusers_format, lora
from contextdiff_jax.models.backbones import two_headed
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.pipeline import clip_editing, export, loading, requests
from contextdiff_jax.pipeline.requests import Picture, Prompts
from contextdiff_jax.pipeline.streams import Contexts, Drawn, OnStep, Steps, at_once, sensible
from contextdiff_jax.progress import Progress
from contextdiff_jax.samplers import sampling
from contextdiff_jax.tasks import warm_start
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.training import distributed, sharding
from contextdiff_jax.training.state import initial_params, stream
from contextdiff_jax.types import Array, Params

PROGRAMS = 16  # compiled samplers that a pipeline keeps


class Pipeline:
    """Text to images with a trained contextual diffusion model, on all devices.

        pipe = cdx.Pipeline.load("runs/demo")
        images = pipe.sample(["a red apple on a blue background"], key=0)

    Attributes:
        task: the assembled model.
        mesh: the devices; parameters lie on it by the config's sharding rules, batches by rows.
        params: {"denoiser", "adapter"}, the averaged ones unless asked otherwise.
        frozen: the encoders' parameters.
        step: the training step they come from.
        clip_models: what edits clips, of earlier calls of `edit`.
        at_once: batches of a stream that are drawn at the same time.
    """

    def __init__(self, task: DiffusionTask, params: Params, step: int):
        self.task, self.step = task, step
        self.mesh = sharding.serving_mesh(task.config.mesh)
        self.params, self.frozen = self._placed(params), self._placed(task.frozen)
        self._rows = NamedSharding(self.mesh, sharding.ROWS)
        self._text_changes: dict[str, float] = {}  # {a LoRA of the text encoder: how much of it is added}
        self._ways = math.prod(self.mesh.shape[axis] for axis in ("data", "fsdp"))
        self._program = lru_cache(maxsize=PROGRAMS)(self._compile)
        self._inversion = lru_cache(maxsize=PROGRAMS)(self._compile_inversion)
        encode, read = jax.jit(task.encode, out_shardings=self._rows), task.parts.condition.read
        self._decoded = jax.jit(partial(sampling.decode, task))
        self._contexts = Contexts(lambda prompts: encode(self.params, self.frozen, self.put(read(prompts))))
        self._watcher: Steps | None = None
        self.at_once = sensible(self.mesh.devices.flat)
        self.clip_models = clip_editing.ClipModels()

    @classmethod
    def load(
        cls, path: str | Path, *, step: int | None = None, ema: bool = True, config: ConfigDict | None = None
    ) -> "Pipeline":
        """Reads a trained model: a run's newest intact checkpoint (or that of `step`), an export, or a Stable Diffusion
        1.x or 2.x model as it is: a folder in the diffusers layout, or one .safetensors file in the original one.

        Args:
            path: the run's workdir, the folder or file, or the hub's name of a model in the Hugging Face cache.
            step: training step; None takes the newest.
            ema: the exponential moving average of the parameters, or the last ones; of a run only, an export holds one.
            config: None takes the run's own; otherwise one of the same model, whose `sample` and `eval` sections count,
                and where it says that the data lie.

        Raises:
            UserError: no such folder, no checkpoint, not a diffusion run, or another model's config.
        """
        return cls.of(loading.find(path, step=step, ema=ema, config=config))

    @classmethod
    def of(cls, model: loading.Saved) -> "Pipeline":
        """Reads a model that was found.

        Raises:
            UserError: its config is of what cannot be built.
        """
        with distributed.together():
            task = task_lib.build(model.config, mesh=sharding.serving_mesh(model.config.mesh))
        expected = jax.eval_shape(task.init, stream(model.config.seed, "init"))
        return cls(task, _with_untrained(task, expected, model.read(expected)), model.step)

    def save(self, folder: str | Path) -> None:
        """Writes the model as a folder that stands alone, as `--mode=export` does: for `load`, and for others to use.

        Raises:
            UserError: a folder with other content, or one that the model itself is read from; a text encoder that a
                LoRA has changed; or several processes, of which each would write the same files.
        """
        if jax.process_count() > 1:
            raise UserError(f"a model is saved by one process, and there are {jax.process_count()}; load it in one")
        if any(abs(weight) > 1e-6 for weight in self._text_changes.values()):
            raise UserError("a LoRA has changed the text encoder, which an export cannot hold; save before load_lora")
        export.write(self.task, self.params, self.step, folder)

    def load_lora(self, path: str | Path, weight: float = 1.0) -> None:
        """Adds a LoRA to the weights, of the denoiser and where it says so of the text encoder.

        Args:
            path: a .safetensors file or a folder with one, by the names of diffusers, PEFT or kohya.
            weight: how much of it; a second call with the negative takes it back, but for rounding.

        Raises:
            UserError: no such file, a change of layers that this model does not have, or a weight that is no number.
        """
        if isinstance(weight, bool) or not isinstance(requests.plain(weight), int | float) or not math.isfinite(weight):
            raise UserError(f"weight={weight!r} is no number; 1 adds the LoRA as it was trained, -1 takes it back")
        condition, frozen = self.task.parts.condition, self.frozen
        name_of = diffusers_format.tensor_name if self.config.model.backbone == "sd" else warm_start.tensor_name
        layers = {lora.UNET: lora.layers_of(self.params["denoiser"], name_of)}
        if isinstance(condition, TextCondition) and frozen["condition"]:
            layers[lora.TEXT] = lora.layers_of(frozen["condition"], condition.encoder.names)
        changes = lora.read(path, layers)
        # All of it is made before any of it is taken: a change that does not fit leaves the model as it was.
        params, text = self.params, frozen
        if lora.UNET in changes:
            denoiser = lora.add(params["denoiser"], changes[lora.UNET], weight)
            params = self._placed(params | {"denoiser": denoiser})
        if lora.TEXT in changes:
            text = self._placed(frozen | {"condition": lora.add(frozen["condition"], changes[lora.TEXT], weight)})
        self.params, self.frozen = params, text
        if lora.TEXT in changes:
            name = lora.digest(changes[lora.TEXT])
            self._text_changes[name] = self._text_changes.get(name, 0.0) + weight
            self.forget_prompts()

    def forget_prompts(self) -> None:
        """Forgets the prompts that have been encoded: the next time each takes as long as the first."""
        self._contexts.clear()

    def _placed(self, tree: Params) -> Params:
        """Parameters on the devices, by the rules of training."""
        return sharding.place(tree, self.task.config.sharding.rules, self.mesh)

    @property
    def config(self) -> ConfigDict:
        """The config of the training run."""
        return self.task.config

    def sample(self, prompts: Prompts = None, **options: Any) -> list[Image.Image]:
        """One picture per prompt; the options are those of `stream`."""
        return self.to_images(self.sample_arrays(prompts, **options))

    def edit(
        self,
        frames: clip_editing.Frames,
        source: str,
        targets: str | Sequence[str],
        *,
        method: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        key: int = 0,
        progress: bool = True,
        **options: Any,
    ) -> Edit:
        """A clip under other texts; Stable Diffusion models only.

        Args:
            frames: pictures of one size, an array uint8 [F, H, W, 3], or the path of a folder or a video.
            source: what the clip shows.
            targets: one or several texts of what it is to show.
            method: contextdiff, fatezero, tune_a_video, controlvideo, inversion or ddim, with a recipe behind a plus
                (style, attribute, shape); None takes that of the run, or contextdiff.
            steps, guidance: of the method if None.
            key: without influence: inversion and sampling are deterministic.
            progress: show a bar.
            **options: masks (bool [F, H, W], of the object, of the frames' size or the model's), rate (frames per
                second of what is saved), num_frames (that the network takes at once; a longer clip is edited in
                windows, which overlap by at most half of them unless overlap says otherwise), or any other key of
                `edit`, `sample` and `data` that acts in an edit. Of a path all frames are taken, unless length, start
                or sampling_rate say otherwise.

        Returns:
            frames[target][frame], source and reconstruction as PIL images, figures, heatmaps; `.save("out.mp4")`.

        Raises:
            UserError: frames that are no clip, prompts that the method cannot align, unknown options.
        """
        given = requests.steps_of(steps, ({} if guidance is None else {"guidance": guidance}) | options)
        targets = [targets] if isinstance(targets, str) else requests.listed(targets)
        check_targets(targets)
        editor = clip_editing.editor_of(self, frames, source, method, given, targets=targets, progress=progress)
        editor.check(targets)
        return editor.run(targets)

    @staticmethod
    def to_images(arrays: np.ndarray) -> list[Image.Image]:
        """Pictures from [N, H, W, 3] or [N, H, W, 1] in [-1, 1]."""
        return [Image.fromarray(pixels) for pixels in to_uint8(arrays)]

    def sample_arrays(
        self, prompts: Prompts = None, *, layouts: Sequence[Layout] | None = None, **options: Any
    ) -> np.ndarray:
        """Pictures as float32 [N, H, W, C] in [-1, 1]; the options are those of `stream`."""
        parts, prompts, layouts = [], requests.listed(prompts), requests.listed(layouts)
        with Progress("sampling", len(self._asked(prompts, layouts)), "img", before="compiling") as progress:
            for drawn in progress.each(self.stream(prompts, layouts=layouts, **options)):
                parts.append(drawn.whole())
                progress.update(len(parts[-1]))
        if not parts:
            raise UserError(f"first={options['first']} leaves no picture to draw; give a smaller one")
        return np.concatenate(parts)

    def stream(
        self,
        prompts: Prompts = None,
        *,
        layouts: Sequence[Layout] | None = None,
        key: int | Array = 0,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        negative: str | Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        strength: float | None = None,
        noise: np.ndarray | None = None,
        on_step: OnStep | None = None,
        first: int = 0,
        **overrides: Any,
    ) -> Iterator[Drawn]:
        """Batches of pictures, one picture per prompt, as they are drawn; with several processes each calls it alike.

        On one CPU `at_once` batches are drawn at a time; whoever stops early waits for those that have begun.

        Args:
            prompts: one or several captions, or classes by name or number; how many pictures, where the model takes no
                prompt.
            layouts: in the place of prompts, for a model of layouts: each a list of (class, (x0, y0, x1, y1)), the box
                in fractions of the sides.
            key: seed or jax key; picture i uses fold_in(key, i), whatever batch it is in.
            steps: sampling steps; None takes config.sample.num_steps.
            guidance: guidance scale, at most 1 for none; None takes config.sample.guidance.
            sampler: ddpm, ddim, heun or dpmpp_2m; None takes config.sample.sampler.
            negative: what guidance moves away from in the place of no prompt, one for all or one per prompt.
            size: (height, width) in pixels; None takes that of the training.
            image: start from this picture (PIL, path, or array uint8 or float in [-1, 1]), or from one per prompt,
                cropped to the centre and resized: img2img.
            strength: how far it is noised first, by the contextual forward process: the share of the steps taken; None
                takes 0.8.
            noise: start from this x_T instead, one per prompt, floats [N, ...] in the model's space: what `invert` ends
                in, of the same steps. Samplers that draw noise on the way still take it from the key.
            on_step: called once in every step of a batch with (step, steps, x0_hat), step from 1, x0_hat [B, ...] being
                the first estimate of that step in the model's space (see `decode`), rows that fill the batch up
                included. One process. What it raises is raised here, once the batch is drawn.
            first: pictures before this one are left out; the others are what they would be.
            **overrides: any other key of the config's `sample` section, e.g. adapter=False, eta=1.0, batch_size=16;
                None takes the config's.

        Raises:
            UserError: empty prompts, unknown options, more steps than the process has, a size that does not fit, a
                model that was tuned on a clip.
        """
        prompts, key, condition = self._asked(prompts, layouts), requests.root_key(key), self.task.parts.condition
        options = requests.steps_of(steps, dict(guidance=guidance, sampler=sampler) | overrides)
        section, size = requests.section_of(self.config, options), requests.size_of(size)
        strength = requests.strength_of(strength, section.num_steps, image is not None)
        plan = sampling.Plan.of(self.task, section, strength, size)
        negatives = requests.negatives_of(condition, negative, len(prompts), plan.guided)
        starts = None if image is None else self._pictures(image, len(prompts), size)
        x_T = None if noise is None else requests.check_noise(noise, len(prompts), plan.shape, image is not None)
        condition.read(prompts)  # says what is wrong with any of them before the first is drawn
        if on_step is not None and not callable(on_step):
            raise UserError(f"on_step={on_step!r} cannot be called; give a function of (step, steps, x0_hat)")
        if on_step is not None and jax.process_count() > 1:
            raise UserError("on_step works in one process; with several, follow the batches of `stream`")
        if not requests.is_whole(first := requests.plain(first)) or not 0 <= first <= len(prompts):
            raise UserError(f"first={first!r} of {len(prompts)} pictures; accepted: 0 to {len(prompts) - 1}")
        return self._batches(prompts, negatives, (starts, x_T), key, plan, section, on_step, first)

    def _asked(self, prompts: Prompts, layouts: Sequence[Layout] | None = None) -> list[Any]:
        """What is asked for, one entry per picture."""
        condition, count = self.task.parts.condition, self.config.data.num_frames
        if count > 1:
            raise UserError(
                f"this model was tuned on a clip, {count} frames at once, and draws no pictures; edit clips with it: "
                "Pipeline.edit, or --mode=edit"
            )
        if layouts is not None and not isinstance(condition, LayoutCondition):
            raise UserError("layouts=...: this model takes no layouts; give prompts")
        if layouts is not None and prompts is not None:
            raise UserError(f"prompts={prompts!r} beside layouts=...: layouts say what is drawn; leave the prompts out")
        return requests.prompts_of(condition, prompts if layouts is None else layouts)

    def _batches(
        self,
        prompts: list[Any],
        negatives: list[str] | None,
        starts: tuple[np.ndarray | None, np.ndarray | None],
        key: Array,
        plan: sampling.Plan,
        section: ConfigDict,
        on_step: OnStep | None,
        first: int,
    ) -> Iterator[Drawn]:
        run, numbers = self._program(plan, on_step is not None), sampling.Numbers.of(section)
        size, key_data = self._batch_size(section.batch_size, len(prompts)), np.asarray(jax.random.key_data(key))

        def draw(start: int) -> Callable[[], Drawn]:
            """What draws the batch from there on."""
            rows = np.minimum(np.arange(start, start + size), len(prompts) - 1)
            context = self._contexts.of([prompts[i] for i in rows])
            null = None if negatives is None else self._contexts.of([negatives[i] for i in rows])
            if null is not None:
                null = context.replace(tokens=null.tokens, pooled=null.pooled, mask=null.mask)
            part = self.put((context, null, rows, *(None if given is None else given[rows] for given in starts)))
            inputs = (self.params, self.frozen, key_data, numbers, *part)
            program = partial(run, impl=str(jax.random.key_impl(key)))
            if self.at_once > 1:  # compiled here: other threads have other settings of JAX
                program = run.lower(*inputs, **program.keywords).compile()
            return lambda: Drawn(program(*inputs), rows[: len(prompts) - start])

        batches = map(draw, range(first, len(prompts), size))
        if on_step is None:
            yield from at_once(batches, self.at_once)
            return
        for batch in batches:
            self._watcher = Steps(plan, on_step)
            drawn = batch()
            jax.effects_barrier()
            self._watcher.finish()
            self._watcher = None
            yield drawn

    def invert(
        self,
        images: Picture | Sequence[Picture],
        prompt: Prompts = None,
        *,
        prompts: Prompts = None,
        layouts: Sequence[Layout] | None = None,
        steps: int | None = None,
        size: tuple[int, int] | None = None,
        **overrides: Any,
    ) -> np.ndarray:
        """The deterministic way of pictures back into noise under their prompts, without guidance (DDIM inversion).

        Args:
            images: one picture, or several, as `stream` takes them; one serves for all prompts.
            prompt: what they show: one prompt for all, or one for each.
            prompts: another name of the same.
            layouts: in their place, for a model of layouts.
            steps: None takes config.sample.num_steps.
            size: (height, width) in pixels; None takes that of the training.
            **overrides: any other key of the config's `sample` section, e.g. adapter=False.

        Returns:
            [steps + 1, N, ...] in the model's space: first the pictures' x0, last their noise.

        Raises:
            UserError: as `stream`; or a model whose shift is predicted by a second head.
        """
        if prompt is not None and prompts is not None:
            raise UserError(f"prompt={prompt!r} and prompts={prompts!r} are two names of the same; give one of them")
        images, prompts = requests.listed_pictures(images), self._asked(prompts if prompt is None else prompt, layouts)
        prompts = prompts * len(images) if len(prompts) == 1 else prompts
        if overrides.get("eta"):
            raise UserError(f"eta={overrides['eta']!r} cannot act: the way into noise draws none; leave it out")
        if (sampler := overrides.get("sampler")) not in (None, "ddim"):
            raise UserError(f"sampler={sampler!r} cannot act: the way into noise is DDIM's; leave it out")
        adapter = overrides.get("adapter")
        if two_headed(self.config) and (self.config.sample.adapter if adapter is None else adapter):
            raise UserError(
                "a model with a second head (config.adapter.reverse='head') has no inversion: the head predicts the "
                "shift of steps down; adapter=False inverts the plain process"
            )
        section = requests.section_of(self.config, requests.steps_of(steps, overrides), sampler="ddim", guidance=1.0)
        plan = sampling.Plan.of(self.task, section, size=(size := requests.size_of(size)))
        starts, whole = self._pictures(images, len(prompts), size), []
        batch = self._batch_size(section.batch_size, len(prompts))
        with Progress("inverting", len(prompts), "img", before="compiling") as progress:
            for start in range(0, len(prompts), batch):
                rows = np.minimum(np.arange(start, start + batch), len(prompts) - 1)
                part = self.put((self._contexts.of([prompts[i] for i in rows]), starts[rows]))
                out = self._inversion(plan)(self.params, self.frozen, sampling.Numbers.of(section), *part)
                progress.began()
                whole.append(np.moveaxis(sharding.gather(out), 0, 1)[:, : len(prompts) - start])
                progress.update(whole[-1].shape[1])
        return np.concatenate(whole, axis=1)

    def decode(self, x0: np.ndarray) -> np.ndarray:
        """Pictures [B, H, W, C] in [-1, 1] of what is in the model's space, such as the x0_hat of `on_step`."""
        return np.asarray(self._decoded(self.frozen, np.asarray(x0)))

    def _pictures(self, image: Any, count: int, size: tuple[int, int] | None) -> np.ndarray:
        """Pictures to start from, of the size that is drawn and with the channels of the model."""
        space = self.task.parts.space
        grey = self.config.space.kind == "pixels" and space.shape[-1] == 1
        return requests.pictures(image, count, size or space.size, 1 if grey else 3)

    def _batch_size(self, most: int, count: int) -> int:
        """Pictures drawn at once; a power of two keeps the number of compilations small when the number varies."""
        return -(-min(most, 1 << (count - 1).bit_length()) // self._ways) * self._ways

    def put(self, tree: Any) -> Any:
        """Arrays that every process has whole, on the devices: their rows split where they divide."""
        size = len(jax.tree.leaves(tree)[0])
        place = sharding.replicated(self.mesh) if size % self._ways else self._rows
        return sharding.put_tree(tree, jax.tree.map(lambda _: place, tree))

    def _compile(self, plan: sampling.Plan, watched: bool) -> Callable[..., Array]:
        """The jitted sampler of a plan."""
        model = self.task.under(plan.sampler)

        def draw(params, frozen, key_data, numbers, context, null, rows, image, noise, *, impl):
            root = jax.random.wrap_key_data(key_data, impl=impl)
            keys = jax.vmap(partial(jax.random.fold_in, root))(rows)
            how = dict(plan=plan, null=null, image=image, noise=noise, watch=self._report if watched else None)
            return sampling.sample(model, params, frozen, context, keys, numbers, **how)

        return jax.jit(draw, static_argnames=("impl",), out_shardings=self._rows)

    def _report(self, t: Any, x0_hat: Any) -> None:
        """What a compiled program calls: whoever watches now."""
        if self._watcher is not None:
            self._watcher(t, x0_hat)

    def _compile_inversion(self, plan: sampling.Plan) -> Callable[..., Array]:
        """The jitted inversion of a plan, [B, steps + 1, ...]; the schedule is made before it is traced."""
        model = self.task.under(plan.sampler)

        def inverted(params, frozen, numbers, context, images):
            trajectory = sampling.invert(model, params, frozen, context, numbers, images, plan=plan)
            return jax.lax.with_sharding_constraint(jnp.moveaxis(trajectory, 0, 1), self._rows)

        return jax.jit(inverted)


def _with_untrained(task: DiffusionTask, expected: Params, params: Params) -> Params:
    """Parameters that were read together with those that training left as they were."""
    have, config = set(trees.names(params)), task.config
    missing = trees.select(expected, lambda name: name not in have)
    places = sharding.tree_shardings(missing, config.sharding.rules, sharding.serving_mesh(config.mesh))
    return trees.merge(initial_params(task, places, task.config.seed) if places else {}, params)
