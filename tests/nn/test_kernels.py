import jax.numpy as jnp
import numpy as np
import pytest

from increlora_jax.errors import InputError
from increlora_jax.nn.kernels import KernelAxes, module_order, path_of, rows_of_axes, stack_names

CASES = {
    "matrix": (KernelAxes(), (4, 5), (4, 5), (), "io->io"),
    "the other way": (KernelAxes((1,), (0,)), (4, 5), (5, 4), (), "io->oi"),
    "many outputs": (KernelAxes((0,), (1, 2)), (4, 2, 3), (4, 6), (), "iab->iab"),
    "inputs in another order": (KernelAxes((2, 0), (1,)), (4, 5, 3), (12, 5), (), "bao->aob"),
    "stack": (KernelAxes((1,), (2,)), (7, 4, 5), (4, 5), (7,), "lio->lio"),
    "stack amid": (KernelAxes((-1,), (0, 2)), (2, 7, 3, 4, 5), (5, 6), (7, 4), "lmiab->albmi"),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    axes, shape, *expected = request.param
    return axes.from_the_end("w", shape), shape, *expected


def test_a_kernel_is_matrices_of_its_axes(case):
    axes, shape, matrix, stack, _ = case
    assert axes.matrix_shape(shape) == matrix
    assert axes.stack_shape(shape) == stack


def test_matrices_are_arranged_as_the_kernel(case):
    axes, shape, matrix, stack, equation = case
    delta = jnp.asarray(np.random.default_rng(0).normal(size=(*stack, *matrix)))
    places = [*axes.stack_axes(len(shape)), *axes.inputs, *axes.outputs]
    expected = jnp.einsum(equation, delta.reshape([shape[a] for a in places]))
    np.testing.assert_array_equal(axes.as_kernel(delta, shape), expected)


def test_axes_from_the_end_hold_for_a_slice_of_a_stack():
    axes = KernelAxes((1,), (2, 3)).from_the_end("w", (7, 4, 2, 3))
    assert axes == KernelAxes((-3,), (-2, -1))
    assert axes.matrix_shape((4, 2, 3)) == (4, 6)
    assert axes.stack_shape((4, 2, 3)) == ()


@pytest.mark.parametrize(
    "axes",
    [KernelAxes((0,), (2,)), KernelAxes((0,), (0,)), KernelAxes((0,), (-2,)), KernelAxes((), (1,))],
)
def test_axes_that_the_kernel_does_not_have_are_refused(axes):
    with pytest.raises(InputError, match=r"blocks\.w \[4, 5\] is no matrix by KernelAxes"):
        axes.from_the_end("blocks.w", (4, 5))


def test_every_matrix_of_a_stack_has_a_name():
    assert stack_names("a.b", ()) == ["a.b"]
    assert stack_names("a.b", (2,)) == ["a.b[0]", "a.b[1]"]
    assert stack_names("a", (2, 2)) == ["a[0,0]", "a[0,1]", "a[1,0]", "a[1,1]"]
    assert [path_of(name) for name in ("a.b", "a.b[1]", "a[1,0]")] == ["a.b", "a.b", "a"]


def test_module_order_takes_numbers_as_numbers_and_first():
    paths = ["b.10.x", "b.9.x", "a.z", "b.c", "b.9"]
    assert sorted(paths, key=module_order) == ["a.z", "b.9", "b.9.x", "b.10.x", "b.c"]


def test_rows_are_the_chosen_axes_taken_as_one():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(rows_of_axes(x, (-1, 0)), jnp.einsum("abc->bac", x).reshape(3, 8))
