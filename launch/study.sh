#!/usr/bin/env bash
# The study of the training objective, docs/study.md: trains what docs/study/results does not hold yet, then draws.
#   bash launch/study.sh                                       everything that is missing, then plots and tables
#   bash launch/study.sh --plots                               plots and tables alone, from the stored results
#   bash launch/study.sh --data=mixture --seeds=0,1,2,3,4      arguments go to docs/study/run.py
# To train everything anew, delete docs/study/results first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt
# The stored figures are a CPU's; JAX_PLATFORMS=cuda runs the study on a GPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
if [[ ${1:-} == --plots ]]; then
    if (($# > 1)); then say "error: --plots takes no other arguments; found: ${*:2}"; exit 2; fi
else
    "$python" -m docs.study.run "$@"
fi
"$python" -m docs.study.plots
