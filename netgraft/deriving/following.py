"""Follow channels through a model: run it once, and say of each dimension of each parameter which others it goes with.

What is followed are the operations that a forward carries out on tensors, not the classes of its modules: one
mechanism for every architecture. An operation without a rule fixes the channels that it takes in, so what can't be
followed stays whole and the rest can still be narrowed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from netgraft.deriving.axes import ONE, Atom, Axis, concatenated, cut_out, divided, merged, unify
from netgraft.deriving.heads import Logits, Values
from netgraft.deriving.stream_norm import StreamNorm
from netgraft.errors import RequestError
from netgraft.modules import eval_mode

Axes = tuple[Axis, ...]
"""Of a tensor: one a dimension."""


@dataclass(frozen=True, eq=False)
class Product:
    """One convolution or matrix product of the forward.

    Attributes:
        axes: Its multiply-accumulates are the product of their sizes, times ``factor``.
        factor: Multiply-accumulates for each combination of indices: positions and taps of a kernel.
        layer: Name of the module whose weight it multiplies with; empty where there is none.
        inputs: What it sums over.
        outputs: What it gives.
        groups: Of a grouped convolution, the axis of its groups; None elsewhere.
        inside: Names of the modules in whose forward it is carried out, the outermost first.
        norm: Name of the layer norm whose output it takes in, in another form perhaps; empty where there is none.
    """

    axes: Axes
    factor: int
    layer: str
    inputs: Axis
    outputs: Axis
    groups: Axis | None = None
    inside: tuple[str, ...] = ()
    norm: str = ""


@dataclass
class ChannelMap:
    """What one forward says of a model's channels.

    Attributes:
        tensors: Axes of each parameter and buffer, by name.
        products: Convolutions and matrix products, in the order of the forward.
        norms: Batch norm that takes in nothing but a layer's output, by the name of that layer; of those that are
            called once.
        inputs: Axes of the first tensor that each module takes in, by its name; of those that are called once.
        outputs: Axes of what each module gives, likewise; of those that give one tensor.
        layer_norms: What each layer norm takes its mean over, by its name.
        stream_norms: What each norm of a stream takes its mean square over, by its name.
        response_norms: What each global response norm takes its mean over, by its name: where less is left, the mean is
            larger by as much.
        normed: Names of the modules that give what a norm of a stream gave, in another form perhaps.
        logits: Products of queries with keys whose channels are known one by one.
        values: What such products average, likewise.
        by_width: Widths of heads by whose root the module that takes the logits divides them: where less is left,
            queries are scaled.
        low_rank: Names of the convolutions that are two each.
    """

    tensors: dict[str, Axes] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    norms: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Axes] = field(default_factory=dict)
    outputs: dict[str, Axes] = field(default_factory=dict)
    layer_norms: dict[str, Axis] = field(default_factory=dict)
    stream_norms: dict[str, Axis] = field(default_factory=dict)
    response_norms: dict[str, Axis] = field(default_factory=dict)
    normed: set[str] = field(default_factory=set)
    logits: tuple[Logits, ...] = ()
    values: tuple[Values, ...] = ()
    by_width: frozenset[Atom] = frozenset()
    low_rank: frozenset[str] = frozenset()

    @property
    def heads(self) -> list[Logits | Values]:
        """All that is known of attention's heads."""
        return [*self.logits, *self.values]

    @property
    def widths(self) -> set[Atom]:
        """Widths of attention's heads."""
        return {each.atom for each in self.heads}

    def free_atoms(self) -> list[Atom]:
        """Return what can be narrowed, in the order of the parameters that carry it."""
        for product in self.products:
            for axis in (*product.axes, product.inputs, product.outputs):
                axis.atoms()
        # all are looked up before any is judged: looking up may fix some
        carried = [atom for axes in self.tensors.values() for axis in axes for atom in axis.atoms()]
        return [atom for atom in dict.fromkeys(carried) if not atom.fixed]


def follow_channels(model: nn.Module, probe: Tensor) -> ChannelMap:
    """Run ``model`` in eval mode and follow its channels.

    Args:
        model: A classifier; unchanged.
        probe: Images (B, C, H, W); two small ones will do.

    Raises:
        RequestError: The forward failed on the probe.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))
        >>> found = follow_channels(model, torch.zeros(2, 3, 6, 6))
        >>> [atom.size for atom in found.free_atoms()]
        [8]
        >>> [axis.size for axis in found.tensors["3.weight"]]
        [5, 8, 1, 1]
        >>> found.norms
        {'0': '1'}
    """
    follower = _Follower(model)
    # as the products that it is made of: what is fused has no rule of its own
    with torch.no_grad(), eval_mode(model), sdpa_kernel(SDPBackend.MATH), follower.listening(model), follower:
        follower.hold(probe, "the images' own channels")
        try:
            result = model(probe)
        except Exception as error:
            raise RequestError(
                f"{type(model).__name__} could not be followed on images {tuple(probe.shape)} "
                f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
            ) from error
    for output in tree_flatten(result)[0]:
        if isinstance(output, Tensor):
            for axis in follower.axes(output):
                axis.fix("the model's answer")
    return follower.found()


@dataclass(frozen=True)
class _Made:
    """A layer's output.

    Attributes:
        layer: Its name.
        channels: Of the output.
        views: Identities of the output, of a view of it, of a view of that, and so on.
    """

    layer: str
    channels: Axis
    views: tuple[int, ...]


def sole_owners(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Return layers whose weight is theirs, or shared with layers that have the same bias, one for each weight."""
    of_weight: dict[int, tuple[str, nn.Conv2d | nn.Linear]] = {}
    apart = set()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            _, first = of_weight.setdefault(id(layer.weight), (name, layer))
            if layer.bias is not first.bias or type(layer) is not type(first):
                apart.add(id(layer.weight))
    return [owner for weight, owner in of_weight.items() if weight not in apart]


class _Follower(TorchDispatchMode):
    """Keeps the axes of every tensor that the forward makes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._known: dict[int, Axes] = {}
        self._alive: list[Tensor] = []  # an object's identity is its own only as long as it lives
        self._names: dict[int, str] = {}
        self._layers: dict[int, str] = {}  # of a weight as its layer multiplies with it, the layer
        self._linear: dict[int, str] = {}  # of a weight that its layer transposes first
        self._makers: dict[int, _Made] = {}
        self._uses: dict[int, int] = {}
        self._normed: dict[str, tuple[str, _Made]] = {}
        self._norm_calls: Counter[str] = Counter()
        self._inside: list[str] = []
        self._normed_by: dict[int, str] = {}  # of what a layer norm gave, in whatever form, the layer norm
        self._modules = dict(model.named_modules())
        self._map = ChannelMap()
        saved = model.state_dict().keys()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            fixed = "" if name in saved else "a buffer that is not saved"
            axes = tuple(Axis.of(size, fixed) for size in tensor.shape)
            self._map.tensors[name] = axes
            self._known[id(tensor)] = axes
            self._names[id(tensor)] = name
        for name, layer in sole_owners(model):
            (self._layers if isinstance(layer, nn.Conv2d) else self._linear)[id(layer.weight)] = name

    def found(self) -> ChannelMap:
        """Return what was found."""
        calls = Counter(product.layer for product in self._map.products)
        self._map.norms = {
            layer: norm
            for layer, (norm, made) in self._normed.items()
            if calls[layer] == self._norm_calls[norm] == 1 and all(self._uses.get(view) == 1 for view in made.views)
        }
        return self._map

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Note what each module gives, as long as the context lasts."""

        calls: Counter[str] = Counter()

        def entered(name: str) -> Callable[[nn.Module, Any], None]:
            def hook(module: nn.Module, inputs: Any) -> None:
                calls[name] += 1
                self._inside.append(name)
                if inputs and isinstance(inputs[0], Tensor):
                    self._map.inputs[name] = self.axes(inputs[0])

            return hook

        def left(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                self._inside.pop()
                if isinstance(output, Tensor):
                    self._note_output(name, module, output)

            return hook

        hooks = [module.register_forward_pre_hook(entered(name)) for name, module in model.named_modules()]
        hooks += [module.register_forward_hook(left(name)) for name, module in model.named_modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for name in [name for name, count in calls.items() if count > 1]:
            for noted in (self._map.inputs, self._map.outputs):
                noted.pop(name, None)

    def _note_output(self, name: str, module: nn.Module, output: Tensor) -> None:
        self._map.outputs[name] = self.axes(output)
        if isinstance(module, StreamNorm):
            self._normed_by[id(output)] = name
        if id(output) in self._normed_by:
            self._map.normed.add(name)

    def hold(self, tensor: Tensor, fixed: str) -> None:
        """Enter a tensor whose channels can't be narrowed."""
        self._enter(tensor, tuple(Axis.of(size, fixed) for size in tensor.shape))

    def _enter(self, tensor: Tensor, axes: Axes) -> None:
        self._known[id(tensor)] = axes
        self._alive.append(tensor)

    def axes(self, tensor: Tensor) -> Axes:
        """Return a tensor's axes; of one that came from nowhere, all fixed."""
        if id(tensor) not in self._known:
            self.hold(tensor, "made by the forward itself")
        return self._known[id(tensor)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        for tensor in tensors:
            self._uses[id(tensor)] = self._uses.get(id(tensor), 0) + 1
        name = func._schema.name.removeprefix("aten::")
        rule = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
        outputs = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor)]
        if rule is not None:
            made = rule(self, args, kwargs, outputs)
        elif torch.Tag.pointwise in func.tags or name.removesuffix("_") in _POINTWISE:
            made = [self._broadcast(tensors, outputs[0])]
        else:
            made = [self._unfollowed(name, tensors, output) for output in outputs]
        if len(tensors) == 1 and id(tensors[0]) in self._normed_by:
            self._normed_by |= {id(output): self._normed_by[id(tensors[0])] for output in outputs}
        for output, axes in zip(outputs, made, strict=False):
            self._enter(output, axes)
        for output in outputs[len(made) :]:
            self.hold(output, f"beside what {name} gives")
        return result

    def _unfollowed(self, name: str, inputs: Sequence[Tensor], output: Tensor) -> Axes:
        for tensor in inputs:
            for axis in self.axes(tensor):
                axis.fix(f"{name} can't be followed")
        return tuple(Axis.of(size, f"made by {name}") for size in output.shape)

    def _broadcast(self, tensors: Sequence[Tensor], output: Tensor) -> Axes:
        found: list[Axis] = []
        for back in range(1, output.dim() + 1):
            here = [self.axes(tensor)[-back] for tensor in tensors if tensor.dim() >= back]
            real = [axis for axis in here if axis.size != 1]
            for axis in real[1:]:
                unify(real[0], axis)
            found.append(real[0] if real else ONE)
        return tuple(reversed(found))

    # What follows are the rules: of one operation or several, from its arguments to the axes of its outputs.

    def convolution(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        inputs, weight, bias = args[:3]
        groups = args[8]
        images, channels, *positions = self.axes(inputs)
        out, within, *taps_of = self.axes(weight)
        for axis in taps_of:
            axis.fix("taps of a kernel")
        for axis in positions:
            axis.fix("positions")
        if args[6]:  # transposed: the weight's dimensions mean something else
            found = self._unfollowed("a transposed convolution", [inputs, weight], outputs[0])
            # each position that it takes in goes to as many as there are taps
            factor = math.prod(inputs.shape[2:]) * math.prod(weight.shape[2:])
            self._map.products.append(
                Product((images, out, within), factor, "", channels, found[1], inside=tuple(self._inside))
            )
            return [found]
        of_groups = None
        if groups == 1:
            unify(channels, within)
        else:
            of_groups, inner = divided(channels, [groups, channels.size // groups])
            outer, _ = divided(out, [groups, out.size // groups])
            unify(of_groups, outer)
            unify(inner, within)
        if bias is not None:
            unify(out, self.axes(bias)[0])
        layer = self._layers.get(id(weight), "")
        if not layer:
            within.fix("a weight that is computed")
            out.fix("a weight that is computed")
        sizes = outputs[0].shape[2:]
        taps = math.prod(weight.shape[2:])
        self._map.products.append(
            Product(
                (images, out, within),
                math.prod(sizes) * taps,
                layer,
                channels,
                out,
                of_groups,
                tuple(self._inside),
                self._normed_by.get(id(inputs), ""),
            )
        )
        self._makers[id(outputs[0])] = _Made(layer, out, (id(outputs[0]),))
        return [(images, out, *(Axis.of(size, "positions") for size in sizes))]

    def _multiply(self, left: Tensor, right: Tensor) -> Axes:
        """Of (..., M, K) and (..., K, N)."""
        *many, rows, inner = self.axes(left)
        *others, inner_too, columns = self.axes(right)
        unify(inner, inner_too)
        for one, other in zip(many, others, strict=True):
            unify(one, other)
        layer = self._layers.get(id(right), "")
        axes = (*many, rows, inner, columns)
        norm = self._normed_by.get(id(left), "")
        self._map.products.append(Product(axes, 1, layer, inner, columns, inside=tuple(self._inside), norm=norm))
        return (*many, rows, columns)

    def matrix_product(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self._multiply(args[0], args[1])
        self._makers[id(outputs[0])] = _Made(self._map.products[-1].layer, axes[-1], (id(outputs[0]),))
        return [axes]

    def added_product(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self._multiply(args[1], args[2])
        for axis, bias in zip(reversed(axes), reversed(self.axes(args[0])), strict=False):
            if bias.size != 1:
                unify(axis, bias)
        self._makers[id(outputs[0])] = _Made(self._map.products[-1].layer, axes[-1], (id(outputs[0]),))
        return [axes]

    def batch_norm(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self.axes(args[0])
        for value in args[1:5]:
            if isinstance(value, Tensor):
                unify(axes[1], self.axes(value)[0])
        made, mean = self._makers.get(id(args[0])), args[3]
        if isinstance(mean, Tensor) and id(mean) in self._names:
            norm = self._names[id(mean)].rpartition(".")[0]
            self._norm_calls[norm] += 1
            if made is not None and made.layer and axes[1].segments == made.channels.segments:
                self._normed[made.layer] = (norm, made)
        return [axes]

    def layer_norm(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self.axes(args[0])
        normalized = axes[len(axes) - len(args[1]) :]
        for axis in normalized:
            axis.fix("a layer norm takes its mean over them")
        for value in args[2:4]:
            if isinstance(value, Tensor):
                for one, other in zip(normalized, self.axes(value), strict=True):
                    unify(one, other)
        if self._inside and len(normalized) == 1:
            self._map.layer_norms[self._inside[-1]] = normalized[0]
            self._normed_by[id(outputs[0])] = self._inside[-1]
        return [axes]

    def group_norm(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self.axes(args[0])
        axes[1].fix("a group norm takes its mean over them")
        for value in args[1:3]:
            if isinstance(value, Tensor):
                unify(axes[1], self.axes(value)[0])
        return [axes]

    def reduction(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        return [self._reduced(args[0], args[1] if len(args) > 1 else kwargs.get("dim"), outputs[0])]

    def vector_norm(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        return [self._reduced(args[0], args[2] if len(args) > 2 else kwargs.get("dim"), outputs[0])]

    def _reduced(self, source: Tensor, dims: Any, output: Tensor) -> Axes:
        axes = self.axes(source)
        chosen = range(len(axes)) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else dims)
        reduced = {dim % len(axes) for dim in chosen}
        inside = self._inside[-1] if self._inside else ""
        module = self._modules[inside]
        if isinstance(module, StreamNorm):
            # a sum of squares: what is zero adds nothing to it
            self._map.stream_norms[inside] = axes[-1]
        elif isinstance(module, GlobalResponseNorm) and reduced == {module.channel_dim % len(axes)}:
            [dim] = reduced
            self._map.response_norms[inside] = axes[dim]
        else:
            for dim in reduced:
                axes[dim].fix("one value is taken of all of them")
        keep = len(axes) == output.dim()
        return tuple(ONE if dim in reduced else axis for dim, axis in enumerate(axes) if keep or dim not in reduced)

    def softmax(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        self.axes(args[0])[args[1]].fix("a softmax goes over them")
        return [self.axes(args[0])]

    def pooling(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self.axes(args[0])
        front = axes[: len(axes) - 2]
        for axis in axes[len(front) :]:
            axis.fix("positions")
        return [(*front, *(Axis.of(size, "positions") for size in outputs[0].shape[len(front) :]))]

    def padding(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        source = self.axes(args[0])
        made = []
        for axis, size in zip(source, outputs[0].shape, strict=True):
            if axis.size == size:
                made.append(axis)
            else:
                axis.fix("they are padded")
                made.append(Axis.of(size, "padded"))
        return [tuple(made)]

    def same(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        if outputs[0].shape != args[0].shape:  # of another shape as_strided can do anything
            return [self._unfollowed("another view", [args[0]], outputs[0])]
        return [self.axes(args[0])]

    def copied(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        """Values of one tensor are written into another."""
        return [self._broadcast([args[0], args[1]], outputs[0])]

    def moved(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        """Indices change places along some dimensions: ``roll``, ``flip``."""
        axes = self.axes(args[0])
        for dim in args[-1]:
            axes[dim].fix("they change places")
        return [axes]

    def reshape(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self.axes(args[0])
        self._keep_maker(args[0], outputs[0])
        return [_reshaped(axes, list(outputs[0].shape))]

    def _keep_maker(self, source: Tensor, view: Tensor) -> None:
        if id(source) in self._makers and view is not source:
            made = self._makers[id(source)]
            self._makers[id(view)] = replace(made, views=(*made.views, id(view)))

    def transpose(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = list(self.axes(args[0]))
        first, second = args[1:3] if len(args) == 3 else (0, 1)
        if len(axes) > 1:
            axes[first], axes[second] = axes[second], axes[first]
        if id(args[0]) in self._linear:
            self._layers[id(outputs[0])] = self._linear[id(args[0])]
        self._keep_maker(args[0], outputs[0])
        return [tuple(axes)]

    def permute(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self.axes(args[0])
        return [tuple(axes[dim] for dim in args[1])]

    def expand(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        shape = outputs[0].shape
        axes = (*([ONE] * (len(shape) - args[0].dim())), *self.axes(args[0]))
        return [
            tuple(
                axis if axis.size == size else Axis.of(size, "repeated") for axis, size in zip(axes, shape, strict=True)
            )
        ]

    def unsqueeze(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = list(self.axes(args[0]))
        axes.insert(args[1] % (len(axes) + 1), ONE)
        return [tuple(axes)]

    def squeeze(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self.axes(args[0])
        dims = range(len(axes)) if len(args) < 2 else ([args[1]] if isinstance(args[1], int) else args[1])
        gone = {dim % len(axes) for dim in dims}
        return [tuple(axis for dim, axis in enumerate(axes) if not (dim in gone and axis.size == 1))]

    def select(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = list(self.axes(args[0]))
        axes.pop(args[1]).fix("one of them is picked")
        return [tuple(axes)]

    def unbind(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        return self.select((args[0], args[1] if len(args) > 1 else 0), kwargs, outputs) * len(outputs)

    def slice(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = list(self.axes(args[0]))
        dim = args[1] if len(args) > 1 else 0
        size = axes[dim].size
        start = min(max(_from_front(args[2] if len(args) > 2 and args[2] is not None else 0, size), 0), size)
        step = args[4] if len(args) > 4 else 1
        kept = outputs[0].shape[dim]
        if kept == size:
            return [tuple(axes)]
        if step != 1 or kept == 0:
            axes[dim].fix("every so many of them are taken")
            axes[dim] = Axis.of(kept, "every so many of others")
        else:
            axes[dim] = cut_out(axes[dim], start, start + kept)
        return [tuple(axes)]

    def split(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        axes = self.axes(args[0])
        dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        dim %= len(axes)
        made, start = [], 0
        for output in outputs:
            size = output.shape[dim]
            made.append((*axes[:dim], cut_out(axes[dim], start, start + size), *axes[dim + 1 :]))
            start += size
        if len({output.shape[dim] for output in outputs}) == 1:
            # cut again, a narrower whole falls into as many equal pieces: they stay of one width
            for each in made[1:]:
                unify(made[0][dim], each[dim])
        return made

    def index(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        """Rows of a table are looked up: the other dimensions go along."""
        axes = self.axes(args[0])
        by = args[1] if isinstance(args[1], list | tuple) else [*[None] * (args[1] % len(axes)), args[2]]
        given = [dim for dim, each in enumerate(by) if each is not None]
        if len(given) != 1 or by[given[0]].dtype == torch.bool:
            return [self._unfollowed("an index", [args[0]], outputs[0])]
        [dim] = given
        axes[dim].fix("some of them are looked up")
        looked_up = outputs[0].shape[dim : dim + by[dim].dim()]
        return [(*axes[:dim], *(Axis.of(size, "looked up") for size in looked_up), *axes[dim + 1 :])]

    def cat(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        tensors = [tensor for tensor in args[0] if tensor.numel()]
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outputs[0].dim()
        all_axes = [self.axes(tensor) for tensor in tensors]
        axes = list(all_axes[0])
        for others in all_axes[1:]:
            for place, (one, other) in enumerate(zip(axes, others, strict=True)):
                if place != dim and one.size != 1:
                    unify(one, other)
        axes[dim] = concatenated([each[dim] for each in all_axes])
        return [tuple(axes)]

    def stack(self, args: Any, kwargs: Any, outputs: list[Tensor]) -> list[Axes]:
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outputs[0].dim()
        axes = list(self._broadcast(args[0], args[0][0]))
        axes.insert(dim, Axis.of(len(args[0]), "tensors that are stacked"))
        return [tuple(axes)]


def _from_front(index: int, size: int) -> int:
    return index + size if index < 0 else index


def _reshaped(axes: Axes, shape: Sequence[int]) -> Axes:
    made: list[Axis] = []
    for old, new in _matching_groups(axes, shape):
        made += divided(merged(old), new)
    return tuple(made)


def _matching_groups(axes: Axes, shape: Sequence[int]) -> Iterator[tuple[list[Axis], list[int]]]:
    """Yield the smallest runs of old and new dimensions that have as many indices."""
    old, new = list(axes), list(shape)
    while old or new:
        first: list[Axis] = [old.pop(0)] if old else []
        second: list[int] = [new.pop(0)] if new else []
        while math.prod(axis.size for axis in first) != math.prod(second):
            if math.prod(axis.size for axis in first) < math.prod(second):
                first.append(old.pop(0))
            else:
                second.append(new.pop(0))
        yield first, second


_Rule = Callable[[_Follower, Any, Any, list[Tensor]], list[Axes]]

_RULES: dict[str, _Rule] = {
    name: rule
    for names, rule in (
        ("convolution", _Follower.convolution),
        ("mm bmm", _Follower.matrix_product),
        ("addmm baddbmm", _Follower.added_product),
        (
            "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm batch_norm",
            _Follower.batch_norm,
        ),
        ("native_layer_norm", _Follower.layer_norm),
        ("native_group_norm", _Follower.group_norm),
        ("mean sum amax amin prod var std max min var_mean", _Follower.reduction),
        ("linalg_vector_norm", _Follower.vector_norm),
        ("_softmax _safe_softmax _log_softmax", _Follower.softmax),
        (
            "avg_pool2d max_pool2d_with_indices max_pool2d _adaptive_avg_pool2d adaptive_max_pool2d mkldnn_max_pool2d "
            "upsample_bilinear2d upsample_nearest2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
            _Follower.pooling,
        ),
        ("constant_pad_nd reflection_pad2d replication_pad2d", _Follower.padding),
        (
            "clone detach alias _to_copy as_strided lift_fresh dropout native_dropout "
            "zeros_like ones_like full_like empty_like fill zero",
            _Follower.same,
        ),
        ("copy", _Follower.copied),
        ("roll flip", _Follower.moved),
        ("view _unsafe_view reshape _reshape_alias", _Follower.reshape),
        ("t transpose", _Follower.transpose),
        ("permute", _Follower.permute),
        ("expand", _Follower.expand),
        ("unsqueeze", _Follower.unsqueeze),
        ("squeeze", _Follower.squeeze),
        ("select", _Follower.select),
        ("unbind", _Follower.unbind),
        ("slice", _Follower.slice),
        ("split split_with_sizes", _Follower.split),
        ("index index_select", _Follower.index),
        ("cat", _Follower.cat),
        ("stack", _Follower.stack),
    )
    for name in names.split()
}

_POINTWISE = frozenset({"hardswish", "log_sigmoid_forward", "masked_fill", "_prelu_kernel", "rsub"})
"""Functions of single numbers that torch doesn't tag as such."""
