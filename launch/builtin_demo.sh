#!/usr/bin/env bash
# Rebuilds the model that ships as builtin:demo: autoencoder, latents, U-Net and adapter. Hours on two CPU cores; a run
# that was stopped continues.
#   bash launch/builtin_demo.sh [--config.train.num_steps=3000 ...]     arguments go to the training of the U-Net
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt

root=runs/builtin_demo
autoencoder=("$python" -m contextdiff_jax.main --config=configs/autoencoder.py "--workdir=$root/autoencoder")
model=("$python" -m contextdiff_jax.main --config=configs/t2i.py:builtin "--workdir=$root/run" "$@")

if [[ ! -d $root/start/vae ]]; then
    "${autoencoder[@]}"
    mkdir -p "$root/start"
    cp -r configs/builtin_demo/. "$root/start"
    "${autoencoder[@]}" --mode=export "--out=$root/start/vae"
fi
"${model[@]}" --mode=encode
"${model[@]}"
"${model[@]}" --mode=eval
"${model[@]}" --mode=export --half --out=contextdiff_jax/assets/demo
