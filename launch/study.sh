#!/usr/bin/env bash
# The study of the training objective, docs/study.md: trains what docs/study/results does not hold yet, then draws.
#   bash launch/study.sh                                       what the first part lacks, then plots and tables of both
#   bash launch/study.sh --plots                               plots and tables alone, from the stored results
#   bash launch/study.sh --data=mixture --seeds=0,1,2,3,4      arguments go to docs/study/run.py
#   bash launch/study.sh --part=steps --T=4                    the second part, few steps; arguments to docs/study/steps.py
# To train the first part anew, delete gaussian.json, mixture.json, digits.json and emoji16.json in docs/study/results.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt
# The stored figures are a CPU's; JAX_PLATFORMS=cuda runs the study on a GPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
case ${1:-} in
    --plots) if (($# > 1)); then say "error: --plots takes no other arguments; found: ${*:2}"; exit 2; fi ;;
    --part=steps) "$python" -m docs.study.steps "${@:2}" ;;
    --part=*) say "error: $1 is unknown; the second part is --part=steps"; exit 2 ;;
    *) "$python" -m docs.study.run "$@" ;;
esac
"$python" -m docs.study.plots
"$python" -m docs.study.steps_plots
