"""Find the heads of attention: run a model once, and keep of what its layers give which channel each number is.

A number is followed as long as it is only moved, or scaled as all others are: through reshapes, transpositions and
pieces. What else becomes of it ends the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from netgraft.deriving.axes import Atom, Axis, unify
from netgraft.deriving.following import ChannelMap, Product, sole_owners
from netgraft.deriving.heads import Logits, Rows, Values
from netgraft.deriving.sizes import WIDTHS_OF_A_HEAD
from netgraft.deriving.statistics import MOST_FEATURES
from netgraft.modules import eval_mode


def find_heads(model: nn.Module, found: ChannelMap, probe: Tensor) -> tuple[tuple[Logits, ...], tuple[Values, ...]]:
    """Return the products of queries with keys, and the values that are read, whose channels are known one by one.

    Each comes from linear layers or 1x1 convolutions without groups that are called once, and no channel serves in two
    heads. Where a module says one width for queries and values that were found apart, they become one.

    Args:
        model: As it was followed; unchanged.
        found: Its channels.
        probe: Images (B, C, H, W).
    """
    tracer = _Tracer(model)
    # fused kernels as the products that they are made of
    with torch.no_grad(), eval_mode(model), sdpa_kernel(SDPBackend.MATH), tracer:
        model(probe)
    layers = {product.layer: product for product in found.products if product.layer}
    logits, values = [], []
    for queries, keys in tracer.logits:
        if tracer.calls[queries.layer] == tracer.calls[keys.layer] == 1:
            atom = _atom_of(queries, layers[queries.layer].outputs)
            if atom is not None and atom is _atom_of(keys, layers[keys.layer].outputs):
                logits.append((atom, queries, keys))
    for written, read in tracer.values:
        if tracer.calls[written.layer] == tracer.calls[read.layer] == 1:
            atom = _atom_of(written, layers[written.layer].outputs)
            if atom is not None and atom is _atom_of(read, layers[read.layer].inputs):
                values.append((atom, written, read))
    modules = {atom: each.inside[-1] for atom, _, _ in logits for each in _sums_over(found, atom)}
    _join_what_is_said_once(model, found, modules, {atom for atom, _, _ in values})
    return (
        tuple(Logits(atom.root(), queries, keys, modules[atom]) for atom, queries, keys in logits if atom in modules),
        tuple(Values(atom.root(), written, read) for atom, written, read in values),
    )


def _sums_over(found: ChannelMap, atom: Atom) -> list[Product]:
    """Return the products without weights that sum over an atom alone."""
    return [each for each in found.products if not each.layer and each.inputs.segments == ((atom,),)]


def _atom_of(rows: Rows, axis: Axis) -> Atom | None:
    """Return the atom of an axis whose indices are the places within a head."""
    width = rows.numbers.shape[1]
    for atom in dict.fromkeys(axis.atoms()):
        if atom.size == width:
            positions = axis.positions_of(atom)
            if all(torch.isin(rows.numbers[:, place], positions[place]).all() for place in range(width)):
                return atom
    return None


def _join_what_is_said_once(
    model: nn.Module, found: ChannelMap, modules: dict[Atom, str], of_values: set[Atom]
) -> None:
    for product in found.products:
        for atom in of_values:
            if product.layer or product.outputs.segments != ((atom,),):
                continue
            for other, name in modules.items():
                said = vars(model.get_submodule(name))
                if (
                    other.root() is not atom.root()
                    and name == product.inside[-1]
                    and any(said.get(key) == other.size == atom.size for key in WIDTHS_OF_A_HEAD)
                ):
                    unify(Axis(((other,),)), Axis(((atom,),)))


@dataclass(frozen=True)
class _Origin:
    """What a tensor's numbers are.

    Attributes:
        layer: That gave them.
        channels: Which of its channels each is, in the tensor's shape.
        heads: Channels (heads, width), once they have been averaged over positions.
    """

    layer: str
    channels: Tensor
    heads: Tensor | None = None


class _Tracer(TorchDispatchMode):
    """Keeps which channels of layers a tensor's numbers are, and notes where they meet."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.logits: list[tuple[Rows, Rows]] = []
        self.values: list[tuple[Rows, Rows]] = []
        self.calls: Counter[str] = Counter()
        self._origins: dict[int, _Origin] = {}
        self._alive: list[Tensor] = []  # an object's identity is its own only as long as it lives
        self._convolutions: dict[int, str] = {}
        self._linear: dict[int, str] = {}
        self._transposed: dict[int, str] = {}
        self._biases: dict[int, str] = {}
        for name, layer in sole_owners(model):
            (self._convolutions if isinstance(layer, nn.Conv2d) else self._linear)[id(layer.weight)] = name
            if layer.bias is not None:
                self._biases[id(layer.bias)] = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        outputs = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor)]
        origins = list(self._given(name, func, args, kwargs, outputs))
        for output, origin in zip(outputs, origins or [None] * len(outputs), strict=True):
            # what worked in place made something else of it
            self._origins.pop(id(output), None)
            if origin is not None:
                self._origins[id(output)] = origin
                self._alive.append(output)
        return result

    def _given(
        self, name: str, func: Any, args: Any, kwargs: dict[str, Any], outputs: Sequence[Tensor]
    ) -> Iterator[_Origin | None]:
        """Yield what each output is, or nothing at all."""
        if name in {"t", "transpose"} and id(args[0]) in self._linear:
            self._transposed[id(outputs[0])] = self._linear[id(args[0])]
            self._alive.append(outputs[0])
        elif name in {"mm", "bmm"}:
            yield self._product(args[0], args[1], outputs[0])
        elif name in {"addmm", "baddbmm"}:
            yield self._product(args[1], args[2], outputs[0]) if id(args[2]) in self._transposed else None
        elif name == "convolution":
            yield self._convolution(args, outputs[0])
        elif name in {"mul", "div"}:
            yield self._scaled(args)
        elif name == "add":
            yield self._with_bias(args)
        elif isinstance(args[0] if args else None, Tensor) and id(args[0]) in self._origins:
            origin = self._origins[id(args[0])]
            for channels in _moved(name, func, origin.channels, args, kwargs, outputs):
                yield _Origin(origin.layer, channels, origin.heads)

    def _scaled(self, args: Any) -> _Origin | None:
        """All numbers are multiplied by one."""
        numbers = [each for each in args[:2] if not isinstance(each, Tensor) or each.numel() == 1]
        known = [self._origins[id(each)] for each in args[:2] if id(each) in self._origins]
        return known[0] if len(numbers) == 1 and len(known) == 1 else None

    def _with_bias(self, args: Any) -> _Origin | None:
        """A linear layer adds its bias by itself where what it takes in doesn't lie in one piece."""
        known = [self._origins[id(each)] for each in args[:2] if id(each) in self._origins]
        layers = [self._biases.get(id(each)) for each in args[:2]]
        return known[0] if len(known) == 1 and known[0].heads is None and known[0].layer in layers else None

    def _convolution(self, args: Any, output: Tensor) -> _Origin | None:
        images, weight, transposed, groups = args[0], args[1], args[6], args[8]
        layer = self._convolutions.get(id(weight), "")
        self.calls[layer] += 1
        if not layer or transposed or groups != 1 or weight[0, 0].numel() != 1 or weight.shape[1] > MOST_FEATURES:
            return None
        if id(images) in self._origins:
            self._read(layer, self._origins[id(images)], 1)
        return _Origin(layer, torch.arange(output.shape[1])[:, None, None].expand(output.shape))

    def _product(self, left: Tensor, right: Tensor, output: Tensor) -> _Origin | None:
        layer = self._transposed.get(id(right))
        if layer is not None:
            self.calls[layer] += 1
            if id(left) in self._origins:
                self._read(layer, self._origins[id(left)], -1)
            fits = right.shape[-2] <= MOST_FEATURES
            return _Origin(layer, torch.arange(output.shape[-1]).expand(output.shape)) if fits else None
        one, other = self._origins.get(id(left)), self._origins.get(id(right))
        if one is not None and other is not None:
            of_each = _alike_along(one.channels, -2), _alike_along(other.channels, -1)
            if of_each[0] is not None and of_each[1] is not None and one.heads is None and other.heads is None:
                self._meet(one.layer, of_each[0], other.layer, of_each[1])
        elif other is not None:
            return _averaged(other, -2, output)
        elif one is not None:
            return _averaged(one, -1, output)
        return None

    def _meet(self, queries: str, of_queries: Tensor, keys: str, of_keys: Tensor) -> None:
        width = of_queries.shape[-1]
        both = torch.cat([of_queries.reshape(-1, width), of_keys.reshape(-1, width)], 1).unique(dim=0)
        # in two heads, or twice in one, a channel has no place of its own
        if all(half.unique().numel() == half.numel() for half in (both[:, :width], both[:, width:])):
            self.logits.append((Rows(queries, both[:, :width]), Rows(keys, both[:, width:])))

    def _read(self, layer: str, origin: _Origin, dim: int) -> None:
        """A layer sums over what was averaged."""
        if origin.heads is None:
            return
        channels = _alike_along(origin.channels.movedim(dim, -1).flatten(0, -2), 0)
        if channels is None:
            return
        where = {channel: column for column, channel in enumerate(channels.tolist())}
        if len(where) == len(channels) == origin.heads.numel() and where.keys() == set(origin.heads.flatten().tolist()):
            columns = torch.tensor([[where[channel] for channel in head] for head in origin.heads.tolist()])
            self.values.append((Rows(origin.layer, origin.heads), Rows(layer, columns)))


def _alike_along(channels: Tensor, dim: int) -> Tensor | None:
    """Return the channels without a dimension along which they don't change; None where they do."""
    first = channels.select(dim, 0)
    return first if bool((channels == first.unsqueeze(dim)).all()) else None


def _averaged(values: _Origin, positions: int, output: Tensor) -> _Origin | None:
    """Values are weighted by something and summed over positions."""
    channels = _alike_along(values.channels, positions)
    if channels is None or values.heads is not None:
        return None
    heads = channels.reshape(-1, channels.shape[-1]).unique(dim=0)
    if heads.unique().numel() != heads.numel():
        return None
    return _Origin(values.layer, channels.unsqueeze(positions).expand(output.shape), heads)


def _moved(
    name: str, func: Any, channels: Tensor, args: Any, kwargs: dict[str, Any], outputs: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return the channels of what an operation gives that only moves numbers; none where it does something else."""
    if name in _RESHAPES:
        return [channels.reshape(outputs[0].shape)]
    if name in _COPIES:
        return [channels]
    return list(tree_flatten(func(channels, *args[1:], **kwargs))[0]) if name in _MOVES else []


_RESHAPES = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze"})
_COPIES = frozenset({"clone", "detach", "alias", "_to_copy", "contiguous"})
_MOVES = frozenset(
    {"t", "transpose", "permute", "expand", "select", "unbind", "slice", "split", "split_with_sizes", "roll", "flip"}
)
