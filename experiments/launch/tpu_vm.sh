#!/usr/bin/env bash
# Every worker of a TPU slice runs the same command; JAX finds the others by the slice's metadata.
# Usage: tpu_vm.sh NAME ZONE BUCKET_MOUNT     (a folder that all workers see, a mounted bucket say)
set -euo pipefail
name=$1 zone=$2 runs=$3

gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
    python -m increlora_jax.train \
        --task mnli \
        --distributed \
        --mesh data=8,fsdp=2 \
        --dtype bfloat16 \
        --train-batch-size 512 \
        --save-steps 200 \
        --output-dir '$runs/mnli'
"
