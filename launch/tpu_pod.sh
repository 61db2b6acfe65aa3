#!/usr/bin/env bash
# The same command on every host of a Cloud TPU pod slice; JAX finds the other hosts by itself.
#   TPU=my-pod ZONE=us-central2-b bash launch/tpu_pod.sh --config=configs/t2i.py:paper --workdir=gs-mounted/run
# The clone must lie in ~/contextdiff_jax on every host, with its .venv holding requirements.txt and jax[tpu]; the workdir
# is a folder that all hosts share, such as a mounted bucket.
set -euo pipefail
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
printf -v arguments ' %q' --coordinator=auto "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd ~/contextdiff_jax && .venv/bin/python -m contextdiff_jax.main$arguments"
