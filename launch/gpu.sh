#!/usr/bin/env bash
# The measurements that need a GPU, one program after another: on one card several starve each other. Logs and results go
# to runs/gpu; what has ended there is not run again. .venv must have a jax for the GPU.
#   bash launch/gpu.sh                    everything
#   bash launch/gpu.sh unet small         some of it, in this order:
#     unet       Stable Diffusion's U-Net in bfloat16 against compiled PyTorch (requirements-test.txt)
#     small      configs/t2i.py:small: its step, then SMALL_STEPS of the training and a grid
#     emoji16    configs/cifar10_nll.py:emoji16 with and without the adapter, EMOJI16_STEPS each
#     imagenet   the step of configs/class2img.py:imagenet, batch 64 (IMAGENET_BATCH; requirements-test.txt)
#     edit       Stable Diffusion 1.5's shapes on 8 frames of 512 x 512: tuning, inversion, edit (requirements-test.txt)
#     few_steps  docs/study: emoji at 32 x 32 and Fashion-MNIST (FASHION_MNIST) at T = 4, 8, 16, plain (and with more
#                parameters), with the shift, and with the forward scale beside it; T = 4 trained four times as long; and
#                what one would do otherwise, models of T = 1000 drawn in few steps
#     fashion    configs/class2img.py:fashion with and without the adapter, three seeds, FASHION_STEPS each
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt

backend=$("$python" -c 'import jax; print(jax.default_backend())' 2>/dev/null) || backend=none
if [[ $backend != gpu ]]; then
    say "error: jax finds no GPU here (its platform is $backend); install its own for yours, e.g." \
        "$python -m pip install -U 'jax[cuda13]'"
    exit 2
fi

# With all that is tried by default, Stable Diffusion's steps do not compile in ten minutes.
export XLA_FLAGS=${XLA_FLAGS:---xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=1}
root=runs/gpu
export FASHION_MNIST=${FASHION_MNIST:-/usr/share/datasets/fashion-mnist}
mkdir -p "$root"
main=("$python" -m contextdiff_jax.main)

once() { # once NAME COMMAND...: its output is shown and kept; a name that has ended is passed over
    local log="$root/$1.log"
    if [[ -f $log ]]; then say "$1: $log is there"; return; fi
    say "$1"
    "${@:2}" 2>&1 | tee "$log.part"
    mv "$log.part" "$log"
}

pytorch() { # the originals, unless they are there
    "$python" -c 'import diffusers, torch' 2>/dev/null || prepare_environment requirements-test.txt
}

random_models() { # full size, random weights
    pytorch
    [[ -d $root/random/clip ]] || "$python" -m docs.random_sd "--out=$root/random"
}

run() {
    case $1 in
        unet)
            pytorch
            once unet "$python" tests/models/bench_sd_unet.py --device=gpu --dtype=bfloat16 --shape=sd15 --batch=8
            ;;
        small)
            once small "$python" -m docs.step_time --config=configs/t2i.py:small
            once small-run "${main[@]}" --config=configs/t2i.py:small "--workdir=$root/small" \
                "--config.train.num_steps=${SMALL_STEPS:-1500}" --config.optim.warmup_steps=100
            ;;
        emoji16)
            for adapter in False True; do
                once "emoji16-$adapter" "${main[@]}" --config=configs/cifar10_nll.py:emoji16 "--workdir=$root/emoji16-$adapter" \
                    "--config.adapter.enabled=$adapter" "--config.train.num_steps=${EMOJI16_STEPS:-4000}" --config.train.preview_every=0
            done
            ;;
        imagenet)
            random_models
            once imagenet "$python" -m docs.step_time --config=configs/class2img.py:imagenet \
                "--config.data.batch_size=${IMAGENET_BATCH:-64}" "--config.model.pretrained=$root/random/vq" \
                "--config.space.rgb_map=$root/random/vq" "--config.encoder.clip=$root/random/clip" --config.data.path=. \
                "--config.data.class_names=$("$python" -c 'print(tuple(f"n{i:08d}" for i in range(1000)))')"
            ;;
        edit)
            random_models
            once edit "${main[@]}" --config=configs/video_edit.py:contextdiff "--workdir=$root/edit" \
                "--config.model.pretrained=$root/random/sd15" "--config.encoder.clip=$root/random/clip" \
                --config.sample.num_steps=20 --config.train.num_steps=40 --config.train.log_every=5
            ;;
        few_steps)
            # What docs/study has is not run again; the arms that are compared first come first. Three at once: compiling
            # takes longer than training.
            study() { # study NAME OPTIONS...: of both sets
                for set in emoji32 fashion; do
                    [[ -f $root/steps-$set.json ]] || cp "docs/study/results/steps-$set.json" "$root/"
                    once "few_steps-$set-$1" "$python" -m docs.study.steps "--data=$set" --processes=3 "--results=$root" "${@:2}"
                done
            }
            for arms in plain,free plain_wide,scale; do study "$arms" --T=4,8,16 "--arms=$arms"; done
            study long --T=4 --arms=plain,free --num_steps=3200
            study many --T=1000 --arms=plain,plain_simple
            ;;
        fashion)
            for seed in 0 1 2; do
                for adapter in True False; do
                    once "fashion-$adapter-$seed" "${main[@]}" --config=configs/class2img.py:fashion \
                        "--workdir=$root/fashion-$adapter-$seed" "--config.data.path=$FASHION_MNIST" "--config.seed=$seed" \
                        "--config.adapter.enabled=$adapter" "--config.train.num_steps=${FASHION_STEPS:-5000}" \
                        --config.data.batch_size=256 --config.model.channels=64
                done
            done
            ;;
        *) say "error: $1 is unknown; accepted: ${all[*]}"; exit 2 ;;
    esac
}

all=(unet small emoji16 imagenet edit few_steps fashion)
for name in "${@:-${all[@]}}"; do run "$name"; done
