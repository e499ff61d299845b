import pytest
from flax import nnx

from increlora_jax.config import AdapterConfig, GrowthConfig, RunConfig
from increlora_jax.errors import InputError
from increlora_jax.methods.base import as_targets
from increlora_jax.methods.registry import build_method
from increlora_jax.methods.table import METHODS
from increlora_jax.nn.attach import adapted_layers
from tests.tiny import MLP, MODULES


def build(model=None, **adapter):
    return build_method(
        model or nnx.eval_shape(MLP),
        RunConfig(
            adapter=AdapterConfig(**adapter), growth=GrowthConfig(init_warmup=1, incre_interval=1)
        ),
        steps=20,
        default_targets=r"layers\.\d",
        default_modules_to_save=["head"],
    )


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"lora-pattern"}))
def test_the_named_method_is_built_from_an_abstract_model(name):
    assert build(method=name).name == name


@pytest.mark.parametrize("name", ["increlora", "lora"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, MODULES),
        ({"target_modules": ["layers.1", "layers.3"]}, ["layers.1", "layers.3"]),
        ({"target_modules": [r"layers\.[02]"]}, ["layers.0", "layers.2"]),
        ({"target_modules": ["all-linear"]}, MODULES),  # the head learns in full
        (
            {"target_modules": ["all-linear"], "modules_to_save": ["layers.3"]},
            ["head", *MODULES[:3]],
        ),
        ({"exclude_modules": ["2"]}, ["layers.0", "layers.1", "layers.3"]),
        (
            {"target_modules": ["all-linear"], "exclude_modules": ["layers.*[12]"]},
            ["layers.0", "layers.3"],
        ),
    ],
)
def test_adapters_go_where_the_flags_say(name, words, expected):
    model = build(method=name, **words).attach(MLP(), nnx.Rngs(0))
    assert list(adapted_layers(model)) == expected


@pytest.mark.parametrize("name", ["increlora", "lora", "head"])
def test_modules_to_save_replace_the_default(name):
    default, chosen = build(method=name), build(method=name, modules_to_save=["layers.3"])
    assert default.is_trained("head.kernel")
    assert not default.is_trained("layers.3.kernel")
    assert chosen.is_trained("layers.3.kernel")
    assert not chosen.is_trained("head.kernel")


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"lora-pattern"}))
def test_modules_to_save_that_are_not_there_are_named(name):
    with pytest.raises(InputError, match="modules_to_save: 'pooler' matches no module"):
        build(method=name, modules_to_save=["pooler"])


@pytest.mark.parametrize("name", ["increlora", "lora"])
def test_targets_that_are_not_there_are_named(name):
    with pytest.raises(InputError, match="target_modules: 'query' matches no"):
        build(method=name, target_modules=["query"])


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        (None, None),
        (["query"], ["query"]),
        (["attention.query"], ["attention.query"]),
        (["query", "key"], ["query", "key"]),
        (["all-linear"], "all-linear"),
        ([r".*\.(query|key)"], r".*\.(query|key)"),
        (["query.*"], "query.*"),
    ],
)
def test_a_single_word_that_is_no_plain_name_is_a_regex(words, targets):
    assert as_targets(words) == targets
