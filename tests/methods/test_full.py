from increlora_jax.methods.full import full
from tests.tiny import LAYERS, run, start


def test_every_parameter_learns():
    begun = start(full(), steps=4, warmup_steps=0)
    assert begun.parts.base == {}
    assert len(begun.parts.head) == 2 * (LAYERS + 1)
    state = run(begun, 2)[-1][0]
    for path, value in begun.parts.head.items():
        assert (value != state.params.head[path]).any(), path


def test_nothing_is_attached():
    begun = start(full(), steps=4)
    assert begun.state.params.adapter == {}
    assert begun.state.slots == {}
    assert begun.state.total_rank == 0
