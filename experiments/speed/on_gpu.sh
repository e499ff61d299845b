#!/bin/sh
# All studies of one H200, one after another. A study that fails does not stop the rest.
# Tables go into README.md here, with what was wanted of each; the other studies print theirs.
cd "$(dirname "$0")/../.." || exit
failed=0

try() {
    echo "+ $*"
    "$@" || { failed=1; echo "failed: $*"; }
}

bench() {
    try python experiments/speed/bench.py --dtype bfloat16 "$@"
}

bench --model deberta-v3-base --batch 32 --length 128 --steps 20 --name deberta-128-h200
bench --model deberta-v3-base --batch 32 --length 128 --steps 20 --no-run --no-cold \
    --attn-implementation pallas --name deberta-128-pallas-h200 \
    --only "increlora, scored step" "increlora, unscored step" lora "peft lora" "peft lora, compiled"
bench --model deberta-v3-base --batch 32 --length 384 --steps 10 --no-run --no-cold \
    --name deberta-384-h200 \
    --only "increlora, scored step" "increlora, unscored step" lora "peft lora" "peft lora, compiled"
bench --model llama-3.2-1b --batch 8 --length 1024 --steps 5 --no-run --no-cold --remat dots \
    --name llama-1b-h200 \
    --only "increlora, scored step" "increlora, unscored step" lora "peft lora" "peft adalora"
bench --model llama-7b --batch 8 --length 1024 --top-h 18 --steps 3 --no-run --no-cold \
    --remat dots --name llama-7b-h200 --only "increlora, unscored step" lora "peft lora"

# Wanted: at most 24 GiB, which the fraction of the card's memory does not exceed.
try env XLA_PYTHON_CLIENT_MEM_FRACTION=0.17 \
    python experiments/memory/measure.py run --model llama-7b --quantize-base nf4 --remat full
# Wanted: a ratio of at most 3.
try python experiments/seeds/measure.py --task demo --seeds 41,42,43,44,45
# Wanted: at most 15 s from the cache.
try python experiments/first_step/measure.py --repeats 2
try python experiments/deberta_attention/measure.py --dtype bfloat16 --tokens 16384

exit "$failed"
