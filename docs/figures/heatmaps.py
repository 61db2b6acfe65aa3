"""Heatmaps of words (Figs. 8, 9) with the adapter on and off, and how much of an object's heat lies on the object.

python -m docs.figures.heatmaps [--model=runs/demo] [--quick]
"""

import argparse
import json

from contextdiff_jax import Pipeline
from contextdiff_jax.evaluate.heat_pictures import write_heatmaps
from docs import scripts
from docs.figures import store

PROMPTS = (
    "a frog on a purple background",
    "a red apple on a blue background",
    "a pumpkin on a green background",
    "a penguin on a yellow background",
)


def main() -> None:
    """Draws and prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="", help=store.MODEL_HELP)
    parser.add_argument("--quick", action="store_true", help="one prompt")
    args = parser.parse_args()
    prompts = PROMPTS[:1] if args.quick else PROMPTS
    model = store.model_of(args.model, args.quick)
    about = write_heatmaps(Pipeline.load(model), prompts, store.place(args.quick) / "heatmaps")
    print(json.dumps(about["shares"], indent=2))


if __name__ == "__main__":
    scripts.run(main)
