#!/usr/bin/env bash
# Makes the environment and runs the tests.
#   bash launch/test.sh [tests/process -k posterior ...]     arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt requirements-test.txt requirements-test-no-deps.txt
# The tests must pass without an accelerator; JAX_PLATFORMS=cuda runs them on one.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# One process leaves half of two cores idle; each needs up to 6 GB. An accelerator's memory is not shared.
processes=logical
[[ $JAX_PLATFORMS == cpu ]] || processes=0
exec "$python" -m pytest --numprocesses=$processes --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
