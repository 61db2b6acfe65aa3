#!/usr/bin/env bash
# From an empty clone to a trained text-to-image model and its report, on a laptop's CPU.
#   bash launch/demo.sh [--workdir=DIR] [--config.train.num_steps=1000 ...]     arguments go to training and evaluation
# Flags are written with "=", as --workdir=DIR.
set -euo pipefail
started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt

workdir=runs/demo config=configs/t2i.py passed=() training=()
for argument in "$@"; do
    case $argument in
        --workdir | --config) say "error: $argument stands without its value; write $argument=..."; exit 2 ;;
        --allow_config_change) training+=("$argument") ;;
        --workdir=/*) workdir=${argument#*=} ;;
        --workdir=*) workdir=$started_in/${argument#*=} ;;
        --config=*) config=${argument#*=} ;;
        *) passed+=("$argument") ;;
    esac
done
run=("$python" -m contextdiff_jax.main "--config=$config" "--workdir=$workdir")

"${run[@]}" ${training[@]+"${training[@]}"} ${passed[@]+"${passed[@]}"}
"${run[@]}" --mode=eval ${passed[@]+"${passed[@]}"}

here=""
if [[ $started_in != "$PWD" ]]; then printf -v here 'cd %q && ' "$PWD"; fi
printf -v again '%q ' "$python" -m contextdiff_jax.main "--config=$config" "--workdir=$workdir"
cat <<END

The pictures and figures are in $workdir/report.html, which opens in any browser (numbers: $workdir/eval.json).
Try next, with words of your own:
    $here$again--mode=sample --prompt="a red apple on a blue background"
END
