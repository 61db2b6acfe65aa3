#!/usr/bin/env bash
# The study of video editing: every method with and without the adapter over embedded clips and seeds, then the table in
# docs/RESULTS.md. Hours on two CPU cores; what docs/video/results holds already is not run again.
#   bash launch/video_study.sh                                      everything that is missing, then the table
#   bash launch/video_study.sh --seeds=0 --methods=contextdiff      arguments go to docs/video/run.py
#   bash launch/video_study.sh --arms=adapter,plain                 without the base that never had an adapter
#   bash launch/video_study.sh --table                              the table alone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt
# The stored figures are a CPU's; JAX_PLATFORMS=cuda runs the study on a GPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
if [[ ${1:-} != --table ]]; then "$python" -m docs.video.run "$@"; fi
"$python" -m docs.video.table
