#!/usr/bin/env bash
# Makes the environment and runs the tests.
#   bash launch/test.sh [tests/process -k posterior ...]     arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment requirements.txt requirements-test.txt requirements-test-no-deps.txt
# The tests must pass without an accelerator; JAX_PLATFORMS=cuda runs them on one.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# One process leaves half of two cores idle; each needs up to 6 GB, so memory says how many there
# may be. An accelerator's is not shared.
processes=logical
[[ $JAX_PLATFORMS == cpu ]] || processes=0
most=$("$python" -c 'import os
gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
print(max(1, min(4, int(gigabytes // 6))))')
exec "$python" -m pytest --numprocesses=$processes --maxprocesses="$most" --dist=loadfile --no-loadscope-reorder "$@"
