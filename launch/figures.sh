#!/usr/bin/env bash
# The paper's figures at embedded scale, with and without the adapter: guidance, convergence, cost, heatmaps; pictures
# and numbers go to docs/figures. Guidance and heatmaps are of runs/demo, which bash launch/demo.sh trains, and then of
# the trainings of three seeds with and without the adapter that convergence has left in runs/figures.
#   bash launch/figures.sh                  everything: an hour or two on two CPU cores
#   bash launch/figures.sh --quick          small settings, minutes, the model that ships; results go to runs/figures
#   bash launch/figures.sh guidance --seeds=5       one of them; arguments go to docs/figures/NAME.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
if [[ ${1:-} == --* && "$*" != --quick ]]; then
    say "error: $* belongs to one figure; name it, e.g. bash launch/figures.sh guidance $*"
    exit 2
fi
prepare_environment requirements.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
all=(guidance convergence cost heatmaps)
case ${1:-} in
    guidance | convergence | cost | heatmaps) "$python" -m "docs.figures.$1" "${@:2}" ;;
    --*) for name in "${all[@]}"; do "$python" -m "docs.figures.$name" "$@"; done ;;
    "")
        for name in "${all[@]}"; do "$python" -m "docs.figures.$name"; done
        for name in guidance heatmaps; do "$python" -m "docs.figures.$name" --trained=runs/figures; done
        ;;
    *) say "error: figure $1 is unknown; accepted: ${all[*]}"; exit 2 ;;
esac
