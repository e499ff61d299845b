"""The tiny BERTs, for the tests of this folder."""

from tests.tiny_bert import (  # noqa: F401
    make_batch,
    make_config,
    make_reference,
    pristine_folder,
    tiny_folder,
    to_jax,
    to_torch,
)
