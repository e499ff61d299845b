"""Copy the bundled encoder with random weights instead of the trained ones, for comparison.

`python experiments/pretrain_tiny/untrained.py DIR`
"""

import shutil
import sys
from pathlib import Path

from flax import nnx

from increlora_jax.models.bert import BERT_WEIGHTS, BertForMaskedLM
from increlora_jax.weights.bundled import TINY_ENCODER
from increlora_jax.weights.folder import read_config, save_weights

SEED = 0


def main() -> None:
    """Write the folder."""
    folder = Path(sys.argv[1])
    shutil.copytree(TINY_ENCODER, folder)
    model = BertForMaskedLM(read_config(folder), rngs=nnx.Rngs(SEED))
    save_weights(model, folder, BERT_WEIGHTS)


if __name__ == "__main__":
    main()
