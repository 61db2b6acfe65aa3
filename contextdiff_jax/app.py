"""A page to try a model on, with Gradio (extra `app`): the adapter on and off side by side, word heatmaps, clips.

    python -m contextdiff_jax.main app --model=RUN        # installed: contextdiff app --model=RUN

The page is served on this machine alone unless `--host` says otherwise, and reports to nobody. What is uploaded is
limited in size and deleted as soon as it has been read.
"""

import os
import tempfile
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from contextdiff_jax.data.clips import is_longer
from contextdiff_jax.data.one_clip import MANY
from contextdiff_jax.editing.methods import METHODS
from contextdiff_jax.editing.words import Prompt
from contextdiff_jax.errors import UserError
from contextdiff_jax.evaluate import heatmaps
from contextdiff_jax.evaluate.groups import settings_of
from contextdiff_jax.evaluate.heat_pictures import draw
from contextdiff_jax.pipeline import Pipeline
from contextdiff_jax.samplers import SAMPLERS

HOST, PORT = "127.0.0.1", 7860
LARGEST_UPLOAD = 64 * 2**20  # bytes
LONGEST = MANY  # frames: more holds the page for an hour
FRAMES, STEPS, GUIDANCE = (2, 24), (1, 100), (1.0, 15.0)  # least and most
OF_THE_RUN = "the run's own"  # among the methods of editing
KEPT = 20  # results that stay on the disk; older ones are deleted
SHOWN_SIDE = 384  # pixels that small pictures are enlarged to, by a whole factor


class Desk:
    """What the page does, without the page.

    Args:
        pipeline: the model.
        folder: where results are written for the browser to fetch.
    """

    def __init__(self, pipeline: Pipeline, folder: str | Path):
        self.pipeline, self.folder = pipeline, Path(folder)
        sample = pipeline.config.sample
        # A model's own settings can be asked for, whatever the page's usual range.
        self.steps = (STEPS[0], max(STEPS[1], sample.num_steps))
        self.guidance = (GUIDANCE[0], max(GUIDANCE[1], sample.guidance))
        self._results: deque[Path] = deque()

    @property
    def edits_clips(self) -> bool:
        """Whether the model can edit clips."""
        return self.pipeline.config.model.backbone == "sd"

    @property
    def tuned(self) -> bool:
        """Whether the model was tuned on a clip, and so has a method and a number of frames of its own."""
        return self.pipeline.config.data.source == "clip"

    @property
    def frames(self) -> tuple[int, int]:
        """Least and most of what the network may be asked to take at once."""
        return FRAMES[0], max(FRAMES[1], self.pipeline.config.data.num_frames)

    def draw(
        self, prompt: str, steps: float, sampler: str, guidance: float, seed: float
    ) -> tuple[list[tuple[np.ndarray, str]], str | None]:
        """One prompt with the adapter on and off from the same noise.

        Returns:
            [(picture uint8 [H, W, 3], the setting)], and the path of the heatmaps' PNG, None where the model has no
            words.

        Raises:
            UserError: an empty prompt, or numbers that the sampler does not take.
        """
        if not prompt or not prompt.strip():
            raise UserError("the prompt is empty; say what is to be drawn")
        how = dict(num_steps=whole("steps", steps, *self.steps), sampler=sampler)
        how["guidance"] = real("guidance", guidance, *self.guidance)
        key, pictures, rows = whole("seed", seed, 0, 2**31 - 1), [], {}
        has_words = self.pipeline.config.condition.kind == "text"
        read = Prompt.read(prompt, self.pipeline.task.parts.condition.read) if has_words else None
        for setting, adapter in settings_of(self.pipeline).items():
            name = setting or "as trained"
            if read is None:
                (picture,) = self.pipeline.sample([prompt], key=key, **how, **adapter)
                pictures.append((enlarged(np.asarray(picture)), name))
                continue
            found = heatmaps.of_samples(self.pipeline, [prompt], key, **how, **adapter)
            (picture,) = self.pipeline.to_images(found.images)
            pictures.append((enlarged(np.asarray(picture)), name))
            words = heatmaps.words_of(prompt)
            rows[name] = (found.images[0], {word: heatmaps.heat(found.maps[0], read, word) for word in words})
        if not rows or not next(iter(rows.values()))[1]:
            return pictures, None
        path = self._file(".png")
        draw(rows, prompt, path)
        return pictures, str(path)

    def edit(
        self,
        upload: str | None,
        source: str,
        target: str,
        method: str,
        frames: float,
        steps: float | None,
        guidance: float | None,
    ) -> tuple[str, str]:
        """A clip under another text; the upload is deleted once it has been read.

        Args:
            upload: path of the clip.
            source: what it shows.
            target: what it is to show.
            method: a name of `METHODS`, or `OF_THE_RUN`.
            frames: that the network takes at once.
            steps, guidance: None takes the method's, as far as the model stands it.

        Returns:
            The path of the video (source, reconstruction and edit side by side), and its figures as text.

        Raises:
            UserError: no clip, one that cannot be read or is too large, prompts that the method cannot align.
        """
        if not upload:
            raise UserError("no clip is given; choose an mp4, gif or webp file")
        try:
            if Path(upload).stat().st_size > LARGEST_UPLOAD:
                raise UserError(f"the clip is larger than {LARGEST_UPLOAD >> 20} MB; cut it shorter")
            if not (source and source.strip() and target and target.strip()):
                raise UserError("a text is missing; say what the clip shows, and what it is to show")
            how = dict(method=None if method == OF_THE_RUN else method)
            how["steps"] = None if steps is None else whole("steps", steps, *self.steps)
            how["guidance"] = None if guidance is None else real("guidance", guidance, *self.guidance)
            how["num_frames"] = whole("frames", frames, *self.frames)
            if is_longer(upload, LONGEST):
                raise UserError(f"the clip has more than {LONGEST} frames; cut it shorter")
            edited = self.pipeline.edit(upload, source, target, progress=False, **how)
        except UserError as error:
            raise UserError(str(error).replace(str(upload), Path(upload).name)) from error
        finally:
            Path(upload).unlink(missing_ok=True)
        return str(edited.save(self._file(".mp4"))), edited.table()

    def _file(self, suffix: str) -> Path:
        handle, path = tempfile.mkstemp(suffix, dir=self.folder)
        os.close(handle)
        self._results.append(Path(path))
        while len(self._results) > KEPT:
            self._results.popleft().unlink(missing_ok=True)
        return Path(path)


def real(name: str, value: Any, least: float, most: float, what: str = "number") -> float:
    """A number from a field of the page.

    Raises:
        UserError: it is none, or out of range.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not least <= number <= most:  # what is no number is not within anything
        raise UserError(f"{name} = {value!r} is refused; give a {what} from {least:.10g} to {most:.10g}")
    return number


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number from a field of the page.

    Raises:
        UserError: it is none, or out of range.
    """
    number = real(name, value, least, most, "whole number")
    if number != int(number):
        raise UserError(f"{name} = {value!r} is refused; give a whole number from {least} to {most}")
    return int(number)


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """Small pictures by a whole factor, pixel by pixel, so that a browser does not blur them."""
    factor = max(1, SHOWN_SIDE // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def gradio() -> ModuleType:
    """Gradio, told to report to nobody before it is imported.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise UserError("the app needs Gradio, which is not installed: pip install 'gradio>=6.0'") from error
    return gradio


def build(desk: Desk, name: str) -> Any:
    """The page, a Gradio app.

    Args:
        desk: what its buttons do.
        name: of the model.
    """
    gr = gradio()

    def told(function):
        """UserErrors become messages on the page."""

        def call(*values):
            try:
                return function(*values)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return call

    sample = desk.pipeline.config.sample
    usual = max(GUIDANCE[0], sample.guidance)
    with gr.Blocks(title=f"contextdiff: {name}", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(
            f"# {name}\nThe adapter on and off, from the same noise, with the same steps, sampler and guidance."
        )
        with gr.Tab("Draw"):
            prompt = gr.Textbox(label="Prompt", elem_id="prompt", placeholder="a frog on a purple background")
            with gr.Row():
                steps = gr.Slider(*desk.steps, value=sample.num_steps, step=1, label="Steps")
                sampler = gr.Dropdown(list(SAMPLERS), value=sample.sampler, label="Sampler")
                guidance = gr.Slider(*desk.guidance, value=usual, step=0.5, label="Guidance")
                seed = gr.Number(value=0, precision=0, label="Seed")
            go = gr.Button("Draw", variant="primary", elem_id="draw")
            pictures = gr.Gallery(label="Pictures", columns=2, elem_id="pictures", interactive=False)
            heat = gr.Image(label="Where each word looks (one colour scale)", elem_id="heat", interactive=False)
            inputs = [prompt, steps, sampler, guidance, seed]
            draw_told = told(desk.draw)  # one function: Gradio then runs both events in one queue, one at a time
            for event in (go.click, prompt.submit):
                event(draw_told, inputs, [pictures, heat])
        if desk.edits_clips:
            _clips(gr, desk, told, sample.num_steps, usual)
    return page


def _clips(gr: ModuleType, desk: Desk, told: Any, num_steps: int, usual: float) -> None:
    """The tab for clips; `num_steps` and `usual`, of guidance, are what its own numbers begin with."""

    def edit(*values):
        *given, of_the_method, steps, guidance = values
        return desk.edit(*given, *((None, None) if of_the_method else (steps, guidance)))

    with gr.Tab("Edit a clip"):
        upload = gr.File(label=f"Clip (mp4, gif, webp; {LARGEST_UPLOAD >> 20} MB at most)", elem_id="clip")
        source = gr.Textbox(label="What it shows", elem_id="source")
        target = gr.Textbox(label="What it is to show", elem_id="target")
        with gr.Row():
            methods = [OF_THE_RUN] * desk.tuned + list(METHODS)
            method = gr.Dropdown(methods, value=methods[0], label="Method")
            own = desk.pipeline.config.data.num_frames if desk.tuned else 8
            frames = gr.Slider(*desk.frames, value=own, step=1, label="Frames")
        with gr.Row():
            of_the_method = gr.Checkbox(value=True, label="Steps and guidance of the method, not these:")
            steps = gr.Slider(*desk.steps, value=num_steps, step=1, label="Steps")
            guidance = gr.Slider(*desk.guidance, value=usual, step=0.5, label="Guidance")
        go = gr.Button("Edit", variant="primary", elem_id="edit")
        video = gr.Video(label="Source, reconstruction, edit", elem_id="video", interactive=False)
        figures = gr.Textbox(label="Figures", lines=6, interactive=False)
        inputs = [upload, source, target, method, frames, of_the_method, steps, guidance]
        go.click(told(edit), inputs, [video, figures])


def serve(model: str, host: str = HOST, port: int = PORT, *, wait: bool = True) -> Any:
    """Serves the page.

    Args:
        model: a run, an export, or "builtin:demo".
        host: the address to listen on; others than the default open the page to the network.
        port: 0 takes a free one.
        wait: until Ctrl-C; else returns the running app, which has `local_url` and `close()`.

    Raises:
        UserError: no Gradio, no such model, an address in use.
    """
    gr = gradio()
    pipeline = Pipeline.load(model)
    if not pipeline.task.parts.condition.takes_prompts or pipeline.config.condition.kind == "layout":
        raise UserError(
            f"the app draws prompts, and config.condition.kind={pipeline.config.condition.kind!r} takes none"
        )
    folder = tempfile.TemporaryDirectory(prefix="contextdiff-app-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name  # uploads as well
    page = build(Desk(pipeline, folder.name), Path(model).name)
    page.uploads = folder  # deleted with the page
    fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    how = dict(share=False, quiet=True, show_error=True, footer_links=[], ssr_mode=False, max_file_size=LARGEST_UPLOAD)
    try:
        page.launch(
            server_name=host,
            server_port=port or None,
            prevent_thread_lock=True,
            theme=gr.themes.Default(**fonts),
            allowed_paths=[folder.name],
            **how,
        )
    except OSError as error:
        folder.cleanup()
        raise UserError(f"--host={host} --port={port} cannot be served ({error}); take another --port") from error
    print(f"the page is at {page.local_url}  (Ctrl-C ends it)", flush=True)
    if wait:
        try:
            page.block_thread()
        finally:
            folder.cleanup()
    return page
