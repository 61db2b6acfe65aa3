#!/usr/bin/env bash
# Makes the environment and runs the tests.
#   bash launch/test.sh [tests/process -k posterior ...]     arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt requirements-test.txt
# The tests must pass without an accelerator; JAX_PLATFORMS=cuda runs them on one.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec "$python" -m pytest "$@"
