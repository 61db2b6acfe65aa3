"""One clip edited under any number of prompts: encode, invert once, reconstruct, edit each, decode, measure."""

import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from contextdiff_jax import compilation
from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.edges import edges_of
from contextdiff_jax.editing import effects, measures, memory, shown
from contextdiff_jax.editing import plan as plans
from contextdiff_jax.editing.cache import Kept, shape_of, takes
from contextdiff_jax.editing.control import Control
from contextdiff_jax.editing.edit import edit, given_mask
from contextdiff_jax.editing.inversion import Inverted, invert
from contextdiff_jax.editing.judge import Judge
from contextdiff_jax.editing.methods import NOTHING
from contextdiff_jax.editing.plan import EditPlan, control_of, plan_of
from contextdiff_jax.editing.result import AUTOENCODER, INVERSION, NO_EDITS, SOURCE, Edit
from contextdiff_jax.errors import UserError
from contextdiff_jax.keys import are
from contextdiff_jax.models.controlnet import ControlNet, load_controlnet
from contextdiff_jax.runtime import here
from contextdiff_jax.samplers import sampling
from contextdiff_jax.types import Array, Params

PROGRAMS = 16  # compiled stages, with what else is kept of a model


def check_targets(targets: Sequence[str]) -> None:
    """Raises UserError where edited prompts are no list of texts, one of them twice, or named as a row of the table."""
    if not isinstance(targets, list | tuple) or not are(targets, str) or len(set(targets)) != len(targets):
        raise UserError(f"edited prompts {targets!r}: give a list of different ones")
    if taken := [target for target in targets if target in NO_EDITS]:
        raise UserError(f"edited prompt {taken[0]!r} is the name of a row of the table; say what the clip is to show")


def controls_of(model: Any, config: ConfigDict, clip: Clip, targets: Sequence[str]) -> list[Control]:
    """The control of each edited prompt; nothing is computed.

    Raises:
        UserError: what `check_targets` and `plan.controls_of` raise.
    """
    check_targets(targets)
    return plans.controls_of(config.edit, config.sample.num_steps, clip.caption, targets, model.parts.condition.read)


def put_at_rest(model: Any, config: ConfigDict, clip: Clip, targets: Sequence[str], *, words: bool = False) -> None:
    """Leaves out of a run's own `edit` section what cannot act in an edit and was taken once, and with `words` what is
    said of words that these prompts have not; the rest is checked by `controls_of`, whose errors may be raised here."""
    check_targets(targets)
    num_steps, read = config.sample.num_steps, model.parts.condition.read
    effects.blends_at_rest(config.edit, num_steps)
    if words:
        plans.words_at_rest(config.edit, clip.caption, targets, read)
    plans.shares_at_rest(config.edit, num_steps, clip.caption, targets, read)


class Editor:
    """What edits a clip with a model.

    Args:
        model: a task over clips; its `parts` are the condition, the space and the CLIP of the figures.
        params: {"denoiser", "adapter"}.
        frozen: parameters of what surrounds them.
        clip: what is edited; its caption is the source prompt.
        config: `sample` (steps, guidance, adapter) and `edit` (the method) count.
        progress: whether to show a bar.
        kept: what other editors of the same model have compiled and read; None begins anew.
        tuned: whether the model is a run's, whose number of frames stays what it was tuned with; for messages.

    Raises:
        UserError: a method that does not fit the clip or the network.
    """

    def __init__(
        self,
        model: Any,
        params: Params,
        frozen: Params,
        clip: Clip,
        config: ConfigDict,
        *,
        progress: bool = True,
        kept: Kept | None = None,
        tuned: bool = False,
    ):
        if config.sample.sampler != "ddim" or config.sample.eta:
            raise UserError(
                f"config.sample.sampler={config.sample.sampler!r} with eta={config.sample.eta:g}: what was inverted is "
                "sampled by ddim with eta=0"
            )
        self.model, self.params, self.frozen, self.clip, self.config = model, params, frozen, clip, config
        self._kept = Kept(PROGRAMS) if kept is None else kept
        frames = config.data.num_frames, config.data.overlap
        plan = plan_of(config.edit, sampling.Plan.of(model, config.sample), clip, *frames)
        if config.edit.control:
            if model.edges is not None and model.edges.folder == config.edit.control:
                net = model.edges.net  # the one that guided the tuning
            else:
                read = lambda: load_controlnet(config.edit.control, model.parts.dtype)
                net, weights = self._kept.of(("control", config.edit.control), lambda: _on_devices(*read()))
                self.frozen = frozen | {"control": weights}
            plan = dataclasses.replace(plan, controlnet=net)
        self.plan, self.num_steps = plan, len(plan.sampling.moves)
        # Sampling what was inverted as it was: no guidance, no control.
        alone = dataclasses.replace(plan.sampling, guided=False)
        self._alone = dataclasses.replace(plan, sampling=alone, fused=False, self_blend=False, latent_blend=False)
        self.numbers = sampling.Numbers.of(config.sample)
        self.seconds: dict[str, dict[str, float]] = {}
        self.memory: dict[str, dict[str, int]] = {}
        self._tuned = tuned
        self._progress, self._peak_before = progress, memory.peak_measured(here().local[0])
        self._functions: dict[Hashable, Callable] = {}

    def trace(self, targets: Sequence[str]) -> dict[str, jax.stages.Traced]:
        """The stages of an edit, traced: what would go wrong in them is raised, and nothing is computed or compiled.

        Parameters may be shapes. Errors are those of `run`.
        """
        controls = controls_of(self.model, self.config, self.clip, targets) or [self._no_control()]
        drawn, start, common = self._edges(), self._inversion_prompt(), (self.params, self.frozen)
        x0 = jax.ShapeDtypeStruct((len(self.clip.frames), *self.model.sample_shape), jnp.float32)
        invert = self._jitted(self._invert, plan=self.plan).trace(*common, start, x0, drawn, self._words(controls))
        given = jax.ShapeDtypeStruct(x0.shape[:3], jnp.float32)
        inverted = jax.eval_shape(lambda whole: whole.of_words(0), _shapes(invert.out_info))
        arguments = start, start, inverted, given, drawn, controls[0], self.numbers
        return {
            "encode": self._jitted(self._encode).trace(self.frozen, _shapes(self._frames())),
            "invert": invert,
            "edit": self._jitted(self._edit, plan=self.plan).trace(*common, *arguments),
            "decode": self._jitted(self._decode).trace(self.frozen, x0),
        }

    def check(self, targets: Sequence[str]) -> None:
        """Raises what `trace` does; what has been traced for another edit of the same model and plan is not again.

        On an accelerator the edit itself is compiled as well, which needs the most of all, so that what does not fit is
        said before anything runs; the program is kept for when its turn comes. A CPU has the machine's memory, and
        without edited prompts there is no edit.
        """
        controls_of(self.model, self.config, self.clip, targets)

        def ahead() -> tuple[jax.stages.Compiled, dict[str, int]] | None:
            stages = self.trace(targets)
            return self._compiled("edit", stages["edit"].lower) if compiles else None

        compiles = bool(targets) and here().platform != "cpu"
        self._kept.of(("ahead" if targets else "traced", "edit", self.plan), ahead)
        self._kept.of(("measured", self.config.encoder.clip), lambda: measures.check(self.model, self.config))

    def run(self, targets: Sequence[str]) -> Edit:
        """The clip under each prompt.

        Raises:
            UserError: no prompt, prompts that the method cannot align, too many frames for the device.
        """
        latents, regions, inverted = self.latents(targets)
        decode = lambda name: self._call("decode", self._decode, self.frozen, latents[name], row=name)
        arrays = {SOURCE: np.asarray(self._frames())} | {name: np.asarray(decode(name)) for name in latents}
        controls = controls_of(self.model, self.config, self.clip, targets)
        words = self.config.edit, self.clip.caption, targets, controls, self.model.parts.condition.read
        heatmaps = shown.heatmaps(np.asarray(inverted.maps), *words)
        rate = self.config.edit.rate or self.clip.rate
        return Edit(arrays, self._figures(arrays, regions, heatmaps), heatmaps, regions, rate)

    def latents(self, targets: Sequence[str]) -> tuple[dict[str, Array], dict[str, np.ndarray], Inverted]:
        """Latents [F, h, w, C] of the clip, of its reconstruction and of each edit; where each edit acted, [F, h, w];
        and the inversion that they all come from. Errors are those of `run`."""
        # Whatever is wrong with the prompts is said before anything is compiled.
        controls = controls_of(self.model, self.config, self.clip, targets)
        stages = ["encode", "invert", "reconstruct", *(f"edit: {target[:40]}" for target in targets)]
        # Steps of the stages that are done: a program that told of each of its own could not be kept for another start.
        with tqdm(total=(len(stages) - 1) * self.num_steps, unit="step", disable=not self._progress) as bar:

            def stage(done: int) -> None:
                bar.n = max(0, done - 1) * self.num_steps  # encoding has none
                bar.set_description(stages[done] if done < len(stages) else "edited")

            stage(0)
            x0 = self._call("encode", self._encode, self.frozen, self._frames())
            stage(1)
            source, start = self._prompt(self.clip.caption), self._inversion_prompt()
            common = self.params, self.frozen
            drawn = self._edges()
            arguments = start, x0, drawn, self._words(controls)
            inverted = self._call("invert", self._invert, *common, *arguments, plan=self.plan)
            stage(2)
            given = jnp.asarray(given_mask(self.clip.masks, self.plan.mask, len(x0), x0.shape[1:3]))
            alone = inverted.replace(word_maps=None)
            arguments = start, start, alone, given, drawn, self._no_control(), self.numbers
            again = self._call("reconstruct", self._edit, *common, *arguments, plan=self._alone)
            latents, regions = {AUTOENCODER: x0, INVERSION: again.x0}, {}
            for i, (target, control) in enumerate(zip(targets, controls, strict=True)):
                stage(3 + i)
                arguments = source, self._prompt(target), inverted.of_words(i), given, drawn, control, self.numbers
                edited = self._call("edit", self._edit, *common, *arguments, row=target, plan=self.plan)
                latents[target], regions[target] = edited.x0, np.asarray(edited.mask)
            stage(len(stages))
        return latents, regions, inverted

    def _edges(self) -> np.ndarray:
        """What a ControlNet is shown of each frame; nothing without one."""
        if self.plan.controlnet is None:
            return np.zeros((len(self.clip.frames), 1), np.float32)
        return edges_of(self.clip.frames)

    def _frames(self) -> Array:
        return jnp.asarray(self.clip.frames.astype(np.float32) / 127.5 - 1.0)

    # The pieces, as functions of arrays.

    def _encode(self, frozen: Params, frames: Array) -> Array:
        one = lambda frame: self.model.parts.space.encode(frozen["space"], {"image": frame[None]})[0]
        return jax.lax.map(one, frames)

    def _decode(self, frozen: Params, latents: Array) -> Array:
        return jax.lax.map(lambda x0: sampling.decode(self.model, frozen, x0[None])[0], latents)

    def _invert(self, params, frozen, prompt, x0, drawn, words, *, plan: EditPlan):
        return invert(self.model, params, frozen, self.model.encode(params, frozen, prompt), x0, drawn, words, plan)

    def _edit(self, params, frozen, source, target, inverted, given, drawn, control, numbers, *, plan: EditPlan):
        contexts = (self.model.encode(params, frozen, prompt) for prompt in (source, target))
        return edit(self.model, params, frozen, *contexts, inverted, given, drawn, control, numbers, plan=plan)

    def _words(self, controls: Sequence[Control]) -> np.ndarray | None:
        """Those whose maps the masks of the prompts are made of, [L, W]; None where no mask is."""
        if not (self.plan.attention_mask and controls):
            return None
        return np.stack([control.source_words for control in controls], axis=1)

    def _prompt(self, text: str) -> dict[str, np.ndarray]:
        return self.model.parts.condition.read([text])

    def _inversion_prompt(self) -> dict[str, np.ndarray]:
        empty = self.config.edit.inversion_prompt == "empty"
        return self.model.parts.condition.empty(1) if empty else self._prompt(self.clip.caption)

    def _no_control(self) -> Control:
        """The arrays of a control that does nothing."""
        nothing = ConfigDict({key.removeprefix("edit."): value for key, value in NOTHING.items()})
        caption = self.clip.caption
        return control_of(nothing, self.num_steps, caption, caption, self.model.parts.condition.read)

    def _call(self, name: str, function: Callable, *args: Any, row: str = "", **plan: EditPlan) -> Any:
        """Runs a compiled function, which must fit the device, and remembers its seconds without compilation: of a
        stage of several rows those of each."""

        def compiled() -> tuple[jax.stages.Compiled, dict[str, int]]:
            ahead = self._kept.found(("ahead", name, plan.get("plan")))
            if ahead is not None and takes(ahead[0], args):
                return ahead
            return self._compiled(name, lambda: self._jitted(function, **plan).lower(*args))

        key = name, plan.get("plan"), shape_of(args)
        program, self.memory[name] = self._kept.of(key, compiled)
        with self._fitting(name):
            start = time.perf_counter()
            result = jax.block_until_ready(program(*args))
            self.seconds.setdefault(name, {})[row] = time.perf_counter() - start
        return result

    def _compiled(self, name: str, lower: Callable[[], Any]) -> tuple[jax.stages.Compiled, dict[str, int]]:
        """A stage's program, which must fit the device, and what it needs."""
        with self._fitting(name):
            program = lower().compile()
        return program, memory.check(program, name, self.plan.window, tuned=self._tuned)

    def _fitting(self, name: str) -> contextlib.AbstractContextManager[None]:
        remedy = "tune anew with fewer (data.num_frames)" if self._tuned else "take fewer (data.num_frames)"
        remedy += " or smaller ones"
        return compilation.fitting(f"{name} of {self.plan.window} frames", remedy)

    def _jitted(self, function: Callable, **plan: EditPlan) -> Callable:
        """One function for each stage and plan, so that what has been traced is not traced again."""
        key = function.__name__, plan.get("plan")
        if key not in self._functions:
            bound = weakref.WeakMethod(function)  # or else the model would stay as long as the garbage
            self._functions[key] = jax.jit(lambda *args: bound()(*args, **plan))
        return self._functions[key]

    # What is said of the result.

    def _figures(self, arrays: dict, regions: dict, heatmaps: dict) -> dict[str, Any]:
        """Rows of figures, what was left out, how long it took and what it needed."""
        count, device = len(self.clip.frames), here().local[0]
        read = lambda: measures.Embed(self.model, self.frozen, self.config)
        embed = self._kept.of(("clip", self.config.encoder.clip), read) if self.config.encoder.clip else None
        judge = Judge.of(self.config.data)
        rows, left_out = measures.rows(embed, self.config, self.clip, arrays, regions)
        left_out += measures.lacking(self.config)
        if regions and not heatmaps:
            left_out.append(shown.no_heatmaps(self.plan))
        peak, why = memory.of_this_edit(device, self._peak_before)
        left_out += [why] if why else []
        per_frame = {name: {row: s / count for row, s in rows.items()} for name, rows in self.seconds.items()}
        trajectory = (self.num_steps + 1) * count * int(np.prod(self.model.sample_shape)) * 4
        return dict(
            source_prompt=self.clip.caption,
            method=self.config.edit.to_dict() | {"sample": self.config.sample.to_dict()},
            rows=rows,
            left_out=left_out,
            not_to_change=measures.kept_part(self.config),
            clip=self.config.encoder.clip or None,
            clip_digest=self._kept.of(("digest", self.config.encoder.clip), lambda: measures.clip_digest(self.config)),
            judge=None if judge is None else judge.recogniser.about(),
            warp_error_flow=measures.flow_of(self.config, self.clip),
            heat_in_mask=measures.heat_shares(self.clip, heatmaps),
            seconds_per_frame={name: rows.get("", rows) for name, rows in per_frame.items()},
            device=str(device.device_kind),
            memory_estimated=self.memory,
            memory_measured=peak,
            trajectory_bytes=trajectory,
        )


def _on_devices(net: ControlNet, weights: Params) -> tuple[ControlNet, Params]:
    return net, jax.device_put(weights)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
