#!/bin/bash
# The same command on every host of a Cloud TPU slice; JAX asks the TPU's own metadata who is who.
# NAME, ZONE and PROJECT say which slice; BUCKET is mounted on each host at ~/shared (gcsfuse).
set -euo pipefail

: "${NAME:?the name of the TPU}" "${ZONE:?its zone}" "${PROJECT:?its project}" "${BUCKET:?a bucket}"

on_every_host() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --project "$PROJECT" --worker=all \
    --command "$1"
}

on_every_host "mkdir -p ~/shared && { mountpoint -q ~/shared || gcsfuse $BUCKET ~/shared; }"
on_every_host "pip install --quiet 'jax[tpu]' increlora_jax"

# 16 chips, as a v5e-16 has. Started again after a preemption, it goes on from the last checkpoint.
on_every_host "python3 -m increlora_jax.train \
  --distributed --mesh data=4,fsdp=4 \
  --task mnli --data-dir ~/shared/glue/MNLI --model ~/shared/deberta-v3-base --dtype bfloat16 \
  --train-batch-size 128 --save-steps 200 \
  --output-dir ~/shared/runs/mnli"
