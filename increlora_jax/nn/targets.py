"""The choice of the layers and parameters that take an adapter, by their paths."""

import re
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jax.typing import DTypeLike

from increlora_jax.errors import InputError
from increlora_jax.nn.kernels import KernelAxes, module_order, stack_names

ALL_LINEAR = "all-linear"

Targets = str | Sequence[str]
"""A regex for the whole path, a list of names that end a path, or "all-linear"."""

Parameters = Mapping[str, KernelAxes]
"""A regex for the whole path of a parameter → its axes."""


class Unknown(NamedTuple):
    """Possible target whose axes are not known.

    Attributes:
        kind: its class.
        kernels: the shapes of its arrays by path.
        use: what it does with its arrays, after "which".
    """

    kind: str
    kernels: Mapping[str, Sequence[int]]
    use: str = "is not known to be a matrix"


LOOKUP = (
    "looks rows up and multiplies nothing: an update costs a dense ΔW of its table in every step"
)
"""Use of an array by an embedding."""


def describe_unknown(
    module: object, kernels: Mapping[str, Sequence[int]], *, is_lookup: bool
) -> Unknown:
    """Describe a module with arrays that must be declared, by its class and its use of them."""
    name = type(module).__name__
    kind = f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
    return Unknown(kind, kernels, LOOKUP) if is_lookup else Unknown(kind, kernels)


IsTrained = Callable[[str], bool]
"""The path of a parameter → whether it learns in full."""

NO_PARAMETERS: Parameters = MappingProxyType({})


def trains_nothing(path: str) -> bool:
    """Return False: no parameter of the model learns in full."""
    return False


class Selection(NamedTuple):
    """Choice of the places of a model that take an adapter; see `any_model.attach`."""

    targets: Targets = ALL_LINEAR
    exclude: Targets = ()
    parameters: Parameters = NO_PARAMETERS
    is_trained: IsTrained = trains_nothing


@runtime_checkable
class Site(Protocol):
    """Place for an adapter."""

    @property
    def kernel(self) -> str:
        """Return the path of the kernel."""

    @property
    def axes(self) -> KernelAxes:
        """Return the axes of the kernel's matrix."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the kernel."""


S = TypeVar("S", bound=Site)


NO_DROPOUT = (
    "an array that is adapted by effective weights (of a tree, a declared parameter, a kernel of "
    "Linen that is read beside its layer's call) has no input to drop from. Set lora_dropout to 0"
)


def path_matches(path: str, patterns: Targets, owned: Container[str] = ()) -> bool:
    """Return whether a regex matches the whole path, or one of a list of names ends it.

    A path may be spelled with `/` or `[0]`, too. Its module's name ends the path of an array in
    `owned` as well.
    """
    dotted = as_dotted(path)
    if isinstance(patterns, str):
        spelled = {path, dotted, dotted.replace(".", "/")}
        return any(re.fullmatch(patterns, each) for each in spelled)
    ends = [dotted, dotted.rpartition(".")[0]] if path in owned else [dotted]
    names = [as_dotted(name) for name in patterns]
    return any(f".{end}".endswith(f".{name}") for end in ends for name in names)


def as_dotted(path: str) -> str:
    """Return a path of Haiku, Equinox or penzai with dots: attn/query → attn.query, a[0] → a.0."""
    return re.sub(r"\[['\"]?(.*?)['\"]?\]", r".\1", path).replace("/", ".").lstrip(".")


def _as_names(patterns: Targets, paths: Sequence[str]) -> Targets:
    """Return a single name as a list, if it is the whole path of nothing."""
    if not isinstance(patterns, str) or not re.fullmatch(r"[\w./\[\]'\"]+", patterns):
        return patterns
    try:
        is_whole = any(path_matches(path, patterns) for path in paths)
    except re.error:
        is_whole = False
    return patterns if is_whole else [patterns]


def select(
    paths: Iterable[str], patterns: Targets, option: str, kind: str, owned: Container[str] = ()
) -> set[str]:
    """Return the paths that match.

    Args:
        paths: all paths.
        patterns: a regex for whole paths, names that end a path, or "all-linear".
        option: the name of the patterns in messages.
        kind: the name of a thing with a path in messages.
        owned: paths of arrays that their module's name stands for, too; default: none.

    Raises:
        InputError: a regex or a name that matches none of them; it names some that there are.
    """
    paths = list(paths)
    if patterns == ALL_LINEAR:
        return set(paths)
    patterns = _as_names(patterns, paths)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        single = pattern if isinstance(patterns, str) else [pattern]
        try:
            has_match = any(path_matches(path, single, owned) for path in paths)
        except re.error as error:
            raise InputError(
                f"{option}: {pattern!r} is not a regular expression: {error}"
            ) from None
        if not has_match:
            raise InputError(
                f"{option}: {pattern!r} matches no {kind} of the model, which has {len(paths)}: "
                f"{_shorten(paths)}"
            )
    return {path for path in paths if path_matches(path, patterns, owned)}


class Places(NamedTuple):
    """Places of a model, by path, as far as targets are concerned.

    Attributes:
        known: paths that can be adapted.
        unknown: paths that must be declared first; "all-linear" passes over them.
        refused: paths that cannot be adapted, and why; "all-linear" passes over them with a
            warning. Default: none.
        owned: paths of arrays that their module's name stands for, too; default: none.
        quiet: paths that must be declared, if a target means no other; default: none.
    """

    known: Sequence[str]
    unknown: Mapping[str, Unknown]
    refused: Mapping[str, str] = MappingProxyType({})
    owned: Container[str] = ()
    quiet: Mapping[str, Unknown] = MappingProxyType({})


def choose_known(places: Places, selection: Selection, kind: str) -> list[str]:
    """Choose the paths that are targeted and not excluded, in module order.

    Args:
        places: all places of the model.
        selection: the targets, and those of them to leave out.
        kind: the name of a known target in messages.

    Raises:
        InputError: a pattern that matches nothing, nothing left, or a path that is not known.
    """
    known, unknown, refused, owned, quiet = places
    targets, exclude = selection.targets, selection.exclude
    everything = sorted({*known, *unknown, *refused}, key=module_order)
    possible = [p for p in everything if p in known] if targets == ALL_LINEAR else everything
    _check_quiet(quiet, everything, targets)
    if not possible:
        raise InputError(
            f"target_modules: {targets!r} matches nothing: the model has no {kind}"
            + _describe_others({**unknown, **quiet}, refused)
        )
    chosen = select(possible, targets, "target_modules", kind, owned)
    left_out = select(everything, exclude, "exclude_modules", kind, owned) if exclude else set()
    if targets == ALL_LINEAR:
        _warn_of_passing({path: why for path, why in refused.items() if path not in left_out})
    if not chosen - left_out:
        raise InputError(
            f"exclude_modules: {exclude!r} leaves none of the targets {targets!r}. "
            f"{_describe_choice(places)}. Exclude fewer, or target others"
        )
    found = [path for path in possible if path in chosen - left_out]
    _check_known(found, unknown, refused)
    return found


def _describe_others(unknown: Mapping[str, Unknown], refused: Mapping[str, str]) -> str:
    """Describe what a model has in place of layers that can be adapted; empty if nothing."""
    if refused:
        return " that can be adapted: " + "; ".join(f"{p} is {why}" for p, why in refused.items())
    if not unknown:
        return ""
    path, first = next(iter(unknown.items()))
    about = f"{path} is {first.kind}, which {first.use}"
    return f". {about}. Declare an array to adapt, as in {_declaration(first)}, and target {path}"


def _describe_choice(places: Places) -> str:
    """List the places that can be adapted, and the arrays that could be declared."""
    others = {**places.unknown, **places.quiet}.values()
    arrays = [kernel for other in others for kernel in other.kernels]
    known = _shorten(sorted(places.known, key=module_order))
    return f"The model can adapt {known}" + (
        f"; parameters={{…}} can declare {_shorten(arrays)}" * bool(arrays)
    )


def _shorten(paths: Sequence[str]) -> str:
    """Join paths, and leave out those after the eighth."""
    return ", ".join(paths[:8]) + (", …" if len(paths) > 8 else "")


def _check_quiet(quiet: Mapping[str, Unknown], places: Sequence[str], targets: Targets) -> None:
    """Check that no target means a layer of Flax that must be declared, as a convolution."""
    patterns = [targets] if isinstance(targets, str) else targets
    for pattern in patterns if targets != ALL_LINEAR else ():
        single = pattern if isinstance(targets, str) else [pattern]
        meant = _as_names(single, [*places, *quiet])
        try:
            if any(path_matches(path, meant) for path in places):
                continue
            found = [path for path in quiet if path_matches(path, meant)]
        except re.error:
            continue  # `select` names it
        if found:
            raise InputError(_ask_to_declare(found[0], quiet[found[0]]))


def _check_known(
    chosen: Iterable[str], unknown: Mapping[str, Unknown], refused: Mapping[str, str]
) -> None:
    for path in chosen:
        if path in refused:
            raise InputError(f"target_modules: {path} is {refused[path]}. Exclude {path}")
        if path in unknown:
            raise InputError(_ask_to_declare(path, unknown[path]))


def learns(path: str, dtype: DTypeLike, is_trained: IsTrained) -> bool:
    """Return whether a parameter learns in full; one of whole numbers cannot.

    Raises:
        InputError: it is complex, and the optimizer takes real gradients.
    """
    if not is_trained(path):
        return False
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise InputError(
            f"{path} is complex and cannot be trained in full. Leave it out of what is trained, or "
            "hold its real and imaginary parts as two parameters"
        )
    return bool(jnp.issubdtype(dtype, jnp.floating))


def leave_trained(found: Mapping[str, S], is_trained: IsTrained) -> dict[str, S]:
    """Leave out the targets whose kernels learn in full.

    Raises:
        InputError: nothing is left.
    """
    left = {path: site for path, site in found.items() if not is_trained(site.kernel)}
    if not left:
        raise InputError(
            f"target_modules: all of them ({', '.join(found)}) are trained in full by "
            "modules_to_save. Target others, or save fewer modules"
        )
    return left


def _warn_of_passing(refused: Mapping[str, str]) -> None:
    for path, why in refused.items():
        warnings.warn(f"target_modules: {ALL_LINEAR!r} passes over {path}: {why}", stacklevel=2)


def declared_axes(
    shapes: Mapping[str, Sequence[int]], parameters: Parameters
) -> dict[str, KernelAxes]:
    """Return the axes of each declared parameter by path; `shapes` has all candidates.

    Raises:
        InputError: a regex that matches nothing, or axes that the parameter does not have.
    """
    declared = {}
    for pattern, axes in parameters.items():
        for path in select(shapes, pattern, "parameters", "parameter"):
            declared[path] = axes.from_the_end(path, shapes[path])
    return declared


def _ask_to_declare(path: str, unknown: Unknown) -> str:
    """Describe how to declare an array of an unknown target."""
    shown = ", ".join(f"{kernel} {list(shape)}" for kernel, shape in unknown.kernels.items())
    return (
        f"target_modules: {path} is {unknown.kind}, which {unknown.use}; it holds {shown}. "
        "Declare the array to adapt and target it by its path, as in "
        f"{_declaration(unknown)}, or exclude {path}"
    )


def _declaration(unknown: Unknown) -> str:
    """Return an example of `parameters` for an array; of several readings, two are named."""
    kernel, shape = next(iter(unknown.kernels.items()))
    axes = [_axes_text(len(shape), inputs) for inputs in (1, len(shape) - 1)]
    more = "" if len(shape) == 2 else f" (or {axes[1]}: the inputs are the axes that meet x)"
    return f"parameters={{r'{re.escape(kernel)}': {axes[0]}}}{more}"


def _axes_text(rank: int, inputs: int) -> str:
    return f"KernelAxes(inputs={tuple(range(inputs))}, outputs={tuple(range(inputs, rank))})"


def slots_for(
    path: str,
    stack: tuple[int, ...],
    matrix: tuple[int, int],
    max_rank: int | Mapping[str, int],
    initial_rank: int,
) -> int:
    """Return the number of slots of a kernel's adapter.

    Args:
        path: of the kernel's layer.
        stack: the axes of a stack.
        matrix: (inputs, outputs).
        max_rank: the wanted slots, of all kernels or by name.
        initial_rank: active slots at the start.

    Returns:
        The wanted slots, at most min(inputs, outputs).

    Raises:
        InputError: an initial rank that the matrix or the buffer cannot have.
    """
    name = stack_names(path, stack)[0]
    if not isinstance(max_rank, int) and name not in max_rank:
        raise InputError(
            f"{name} is in no plan: the method was made for another model. Make one for this model"
        )
    wanted = max_rank if isinstance(max_rank, int) else max_rank[name]
    if initial_rank > min(*matrix, wanted):
        raise InputError(
            f"initial rank {initial_rank} of {path} exceeds its {matrix[0]} × {matrix[1]} kernel "
            f"or its {wanted} slots. Lower the initial rank, or exclude {path}"
        )
    return min(*matrix, wanted)


def subtree_selector(paths: Iterable[str], modules: Targets) -> Callable[[str], bool]:
    """Return a test of paths, true of and inside some subtrees, given as targets.

    Raises:
        InputError: a name that no subtree has.
    """
    parts = [path.split(".") for path in paths]
    subtrees = {".".join(p[:depth]) for p in parts for depth in range(1, len(p) + 1)}
    chosen = select(sorted(subtrees, key=module_order), modules, "modules_to_save", "subtree")
    return lambda path: any(f"{path}.".startswith(f"{subtree}.") for subtree in chosen)
