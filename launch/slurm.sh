#!/usr/bin/env bash
# A run over several GPU nodes under SLURM; JAX reads the cluster's layout from the environment.
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh --config=configs/t2i.py:paper --workdir=/shared/run
#SBATCH --job-name=contextdiff
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
python=${VENV:-.venv}/bin/python
if [[ ! -x $python ]]; then
    echo "error: $PWD has no $python; set it up there, or name its folder: VENV=DIR sbatch ..." >&2
    exit 2
fi
# SIGTERM comes two minutes before the time limit: the run saves and exits 0, and continues when it is started again.
exec srun --kill-on-bad-exit=1 "$python" -m contextdiff_jax.main --coordinator=auto "$@"
