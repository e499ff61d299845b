from increlora_jax.methods.head import head
from tests.tiny import LAYERS, run, start, trains_head


def test_only_the_head_learns():
    begun = start(head(None, is_trained=trains_head), steps=4, warmup_steps=0)
    assert sorted(begun.parts.head) == ["head.bias", "head.kernel"]
    assert len(begun.parts.base) == 2 * LAYERS
    state = run(begun, 2)[-1][0]
    for path, value in begun.parts.head.items():
        assert (value != state.params.head[path]).any(), path
    assert state.params.adapter == {}
