#!/usr/bin/env bash
# Makes the environment and runs the tests.
#   bash launch/test.sh [tests/process -k posterior ...]     arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt requirements-test.txt
# The tests must pass without an accelerator; JAX_PLATFORMS=cuda runs them on one.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# One process leaves half of two cores idle; each needs up to 6 GB.
exec "$python" -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile "$@"
