"""Command line: flags and mode dispatch.

    python -m contextdiff_jax.main --config=configs/t2i.py[:preset] --workdir=DIR --mode=MODE

with MODE one of

    train      fit a model, or go on with it
    sample     draw
    edit       a clip under other words
    heatmaps   where words look
    eval       judge a run
    compare    several runs on one page
    metrics    any two folders of pictures
    study      a page for human judges, and what their answers say
    encode     pictures to latents, once, before a training in latents
    export     a folder for others
    bench      what the adapter costs here
    plan       memory and FLOP of a step, before there is a machine
    app        a page to try a model on

A trained model's own config will do to sample, edit, eval, export and for heatmaps: --workdir=DIR is enough. metrics,
study, compare and app take neither. Without a workdir the model that ships with the package draws:

    python -m contextdiff_jax.main --mode=sample --prompt="a frog on a purple background"

Recipes: t2i, class2img, layout2img, cifar10_nll, video_edit, autoencoder, clip_mini, recogniser; each has presets, as
t2i.py:small, which its first lines list. Any key of a recipe is a flag, as --config.optim.lr=3e-4; one that is unknown
is answered with those that there are.
"""

import sys

if sys.platform == "win32":  # before what cannot be imported there: file locks, the memory of a process
    sys.exit("error: contextdiff_jax needs Linux or macOS; on Windows use WSL")

from contextdiff_jax import start

if start.is_command():  # before what takes its time to import
    start.with_large_pages()

from absl import app, flags, logging
from ml_collections import config_flags

from contextdiff_jax import command_line
from contextdiff_jax import config as config_lib
from contextdiff_jax.command_line import config_files
from contextdiff_jax.command_line.options import modes_of
from contextdiff_jax.errors import UserError


def _of(field: str, text: str) -> str:
    """The help of a flag, behind the modes that take it."""
    return f"{', '.join(modes_of(field))}: {text}"


FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file with optional preset, FILE.py[:PRESET].")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; default runs/<config>-<preset>.")
MODE = flags.DEFINE_enum("mode", "train", sorted(command_line.MODES | command_line.WITHOUT_CONFIG), "See above.")
PROMPTS = flags.DEFINE_multi_string("prompt", [], _of("prompts", "what to draw, or to make of a clip; repeatable."))
PROMPTS_FILE = flags.DEFINE_string("prompts_file", "", _of("prompts_file", "file with one prompt per line."))
LAYOUT = flags.DEFINE_string("layout", "", _of("layout", "JSON file with layouts, [[class, [x0, y0, x1, y1]], ...]."))
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 0, _of("num_samples", "pictures of each prompt, or in all."))
SEED = flags.DEFINE_integer("seed", 0, _of("seed", "seed of the pictures; that of a training is --config.seed."))
STEP = flags.DEFINE_integer("step", None, _of("step", "checkpoint step; default the newest."))
OUT = flags.DEFINE_string(
    "out",
    "",
    _of(
        "out",
        "where results go; default inside the workdir, of compare compare.html; metrics, and study with answers, print "
        "them; a study's page needs it.",
    ),
)
IMAGE = flags.DEFINE_string("image", "", _of("image", "picture to start from."))
IMAGES = flags.DEFINE_string("images", "", _of("images", "folder or npz of pictures to measure."))
REFERENCE = flags.DEFINE_string("reference", "", _of("reference", "folder or npz of pictures, or npz of statistics."))
FEATURES = flags.DEFINE_multi_string(
    "features",
    [],
    _of(
        "features",
        "feature space; repeatable; default efficientnet. Others: inception:FILE.safetensors, clip:FOLDER, "
        "clip:builtin:clip_mini, dinov2:FOLDER, judge:demo.",
    ),
)
CAPTIONS = flags.DEFINE_string(
    "captions",
    "",
    _of("captions", "text file with a caption a line, a table (.jsonl, .csv, .tsv), or their folder."),
)
CAPTION_PREFIX = flags.DEFINE_string(
    "caption_prefix",
    None,
    _of("caption_prefix", "put before every caption for CLIPScore; default the paper's, none for the embedded CLIP."),
)
SETS = flags.DEFINE_multi_string("set", [], _of("sets", "NAME=FOLDER of results, ours first; repeatable."))
MODEL = flags.DEFINE_string("model", "", _of("model", "a run or an export; default the model that ships."))
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", _of("host", "address to listen on; others open the page to the network.")
)
PORT = flags.DEFINE_integer("port", 7860, _of("port", "port to listen on; 0 takes a free one."))
SOURCE = flags.DEFINE_string("source", "", _of("source", "folder of what was edited."))
ANSWERS = flags.DEFINE_multi_string(
    "answers", [], _of("answers", "JSON lines files that the page saved, or their folder.")
)
CROP = flags.DEFINE_integer("crop", None, _of("crop", "crop pictures to squares of this side; default as they are."))
HALF = flags.DEFINE_bool("half", False, _of("half", "float16 and no Orbax copy, the smallest folder."))
STRENGTH = flags.DEFINE_float(
    "strength", None, _of("strength", "how far --image is noised first, above 0 to 1; default 0.8.")
)
NEGATIVE = flags.DEFINE_string("negative", "", _of("negative", "what to stay away from; needs guidance above 1."))
SIZE = flags.DEFINE_string("size", "", _of("size", "HEIGHTxWIDTH in pixels, e.g. 32x48; default that of the training."))
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "auto",
    "Folder of compiled programs; 'auto': JAX_COMPILATION_CACHE_DIR, or in the user's cache directory; 'off': none.",
)
TOPOLOGY = flags.DEFINE_string(
    "topology", "", _of("topology", "a TPU topology such as v5e:16x16, which needs libtpu; default this machine.")
)
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
    "allow_config_change", False, _of("allow_config_change", "continue a run although its saved config differs.")
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Several processes: host:port of process 0; 'auto' on TPU pods and SLURM."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")


def main(argv: list[str]) -> None:
    """Runs one mode; a UserError becomes one line and exit status 2, Ctrl-C one word and 130."""
    runs = tuple(argv[1:])  # --mode=compare alone takes arguments that are no flags
    logging.set_verbosity(logging.INFO if FLAGS["verbosity"].present else logging.WARNING)
    try:
        if (config := CONFIG.value) is not None:
            config = config_lib.with_later(config)
            config_lib.check_present(config)
            # What a recipe brings and a flag has made idle; what flags ask for stays.
            config_lib.put_at_rest(config, config_files.asked_keys(sys.argv))
        command_line.run(
            MODE.value,
            config,
            command_line.Options(
                workdir=WORKDIR.value or default_workdir(),
                prompts=tuple(PROMPTS.value),
                prompts_file=PROMPTS_FILE.value,
                layout=LAYOUT.value,
                num_samples=NUM_SAMPLES.value,
                seed=SEED.value,
                step=STEP.value,
                out=OUT.value,
                image=IMAGE.value,
                strength=STRENGTH.value,
                images=IMAGES.value,
                reference=REFERENCE.value,
                features=tuple(FEATURES.value),
                captions=CAPTIONS.value,
                caption_prefix=CAPTION_PREFIX.value,
                crop=CROP.value,
                negative=NEGATIVE.value,
                size=SIZE.value,
                compilation_cache=COMPILATION_CACHE.value,
                topology=TOPOLOGY.value,
                runs=runs,
                model=MODEL.value,
                host=HOST.value,
                port=PORT.value,
                sets=tuple(SETS.value),
                source=SOURCE.value,
                answers=tuple(ANSWERS.value),
                half=HALF.value,
                allow_config_change=ALLOW_CONFIG_CHANGE.value,
                coordinator=COORDINATOR.value,
                num_processes=NUM_PROCESSES.value,
                process_id=PROCESS_ID.value,
            ),
        )
    except UserError as error:
        command_line.fail(error)
    except KeyboardInterrupt:
        # A second Ctrl-C in training, or the first elsewhere.
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def default_workdir() -> str:
    """That of the config; without one the model that ships, where something is to be drawn."""
    if CONFIG.value is None:
        return command_line.SHIPPED if MODE.value in command_line.DRAWING else ""
    return config_files.default_workdir(FLAGS["config"].config_filename, CONFIG.value)


def parse(argv: list[str]) -> list[str]:
    """Flags with our own words for what can be wrong in them."""
    if argv[1:2] == ["app"]:  # contextdiff app --model=RUN
        argv = [argv[0], "--mode=app", *argv[2:]]
    if not sys.modules["__main__"].__doc__:  # of the installed command, whose --help would say nothing of the modes
        sys.modules["__main__"].__doc__ = __doc__
    try:
        argv = sys.argv[:] = config_files.with_config_file(argv)  # config_flags reads overrides from sys.argv
        config_files.check_config_flags(argv)
        FLAGS.set_gnu_getopt(True)  # the runs of --mode=compare may stand anywhere
        rest = FLAGS(argv)
        if len(rest) > 1 and MODE.value != "compare":
            raise UserError(f"argument {rest[1]!r} is not a flag; flags look like --name=value")
        if CONFIG.value is None and MODE.value not in (*command_line.WITHOUT_CONFIG, *command_line.OWN_CONFIG):
            raise UserError("--config is missing; try --config=configs/t2i.py")
        if MODE.value in command_line.OWN_CONFIG and CONFIG.value is None and not (WORKDIR.value or default_workdir()):
            raise UserError(f"--workdir is missing; name the run: --mode={MODE.value} --workdir=runs/demo")
        return rest
    except flags.UnrecognizedFlagError as error:
        command_line.fail(UserError(config_files.as_keys(error.flagname, argv) or str(error)))
    except flags.IllegalFlagValueError as error:
        command_line.fail(UserError(config_files.of_a_value(str(error))))
    except (UserError, flags.Error) as error:
        command_line.fail(error)


def run() -> None:
    """Entry point of the `contextdiff` command."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    sys.exit(run())
