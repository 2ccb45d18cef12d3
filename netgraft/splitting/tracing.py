"""Trace a model's forward with ``torch.fx``: only into the modules asked for, and into none that can't be traced.

What is not traced into stays one call, with its own weights and its own train and eval mode.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from netgraft.errors import RequestError

TracesInto = Callable[[str, nn.Module], bool]
"""Whether to trace into the module with this name instead of keeping it as one call."""


class _Sized(fx.Proxy):
    """Stands for a value that may be asked how long it is."""

    tracer: _Tracer

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _SizedAttribute(self, k)


class _SizedAttribute(_Sized, fx.proxy.Attribute):
    """An attribute of such a value, its shape for instance."""

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        fx.proxy.Attribute.__init__(self, root, attr)


class _Buffer(_Sized):
    """Stands for a buffer, whose shape is a fact."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, value: Tensor) -> None:
        super().__init__(node, tracer)
        self._value = value

    @property
    def shape(self) -> torch.Size:
        return self._value.shape

    @property
    def ndim(self) -> int:
        return self._value.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self._value.size() if dim is None else self._value.size(dim)

    def numel(self) -> int:
        return self._value.numel()

    def __len__(self) -> int:
        return len(self._value)


class _Tracer(fx.Tracer):
    """Traces into the modules that ``traces_into`` names and remembers the innermost one whose forward failed.

    ``lengths`` says of values that are unpacked, by the names of their nodes, how long they are; the first that isn't
    known ends the attempt.
    """

    def __init__(
        self, traces_into: TracesInto, wrapped: Sequence[Callable[..., Any]], lengths: Mapping[str, int]
    ) -> None:
        super().__init__(autowrap_functions=tuple(wrapped), param_shapes_constant=True)
        self._traces_into = traces_into
        self._lengths = lengths
        self.unpacked: fx.Node | None = None
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._traces_into(module_qualified_name, m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Read a buffer of a module that is traced into when the block runs; fx would bake in what it holds now."""
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            for name, buffer in self.root.named_buffers():
                if buffer is attr_val:
                    if name not in parameter_proxy_cache:
                        parameter_proxy_cache[name] = self.create_proxy(
                            "get_attr", name, (), {}, proxy_factory_fn=lambda node: _Buffer(node, self, attr_val)
                        )
                    return parameter_proxy_cache[name]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Unpack a value whose length fx can't read off the code: a size, or a tuple that a module returned."""
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            return iter([operator.getitem(cast(Any, obj), index) for index in range(self.length(obj))])

    def length(self, obj: fx.Proxy) -> int:
        """Look up the length of a value; raise what ends the attempt where it isn't known."""
        if obj.node.name not in self._lengths:
            self.unpacked = obj.node
            raise fx.proxy.TraceError("the length of a value is asked for")
        return self._lengths[obj.node.name]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or (self.submodule_paths or {}).get(m)
            raise


@contextmanager
def eval_mode_for_tracing(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode; afterwards give back every mode, and drop what tracing left on the model."""
    attributes = set(vars(model))
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        set_modes(modes)
        for name in set(vars(model)) - attributes:
            delattr(model, name)  # fx keeps tensors made in the forward as attributes of the root


def set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Give each module its mode, with what its own ``train`` does beside: some drop what they keep for eval mode."""
    for module, training in modes:
        if module.training != training and overrides_train(module):
            module.train(training)
    for module, training in modes:
        module.training = training


def overrides_train(module: nn.Module) -> bool:
    """Whether a change of mode does more to ``module`` than to set a flag."""
    return type(module).train is not nn.Module.train


def is_ancestor(name: str, cuts: Sequence[str]) -> bool:
    """Whether one of the modules named in ``cuts`` lies inside the module ``name``."""
    return any(cut.startswith(name + ".") for cut in cuts)


def is_container(module: nn.Module) -> bool:
    """Whether ``module`` is a list of blocks or holds one.

    A module with a state that depends on the mode is none: traced into, that state would be lost.
    """
    if overrides_train(module) or isinstance(module, fx.GraphModule):
        return False
    lists = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    if isinstance(module, lists):
        return True
    return any(
        isinstance(child, lists) and any(next(member.children(), None) is not None for member in child.children())
        for child in module.children()
    )


def _holds_container(module: nn.Module) -> bool:
    return not overrides_train(module) and any(is_container(inside) for inside in module.modules())


def trace(
    model: nn.Module, cuts: Sequence[str], images: Tensor, *, deep: bool = False, through: bool = False
) -> fx.Graph:
    """Trace the forward of ``model`` in its present mode, with the defaults of optional arguments.

    Args:
        model: Takes images.
        cuts: Names of modules; their ancestors are traced into.
        images: (B, C, H, W), to run the model on where that tells how long a tuple is.
        deep: Trace into every list of blocks as well, as far as that works.
        through: And into whatever holds one further inside.

    Raises:
        RequestError: The forward needs more than images, or can't be traced.
    """
    # timm marks functions that can't be traced; they stay single calls
    from timm.layers import get_notrace_functions

    defaults = defaults_of(model)
    leaves: set[str | type] = set()
    lengths: dict[str, int] = {}

    def traces_into(name: str, module: nn.Module) -> bool:
        if is_ancestor(name, cuts):
            return True
        if not deep or name in leaves or type(module) in leaves:
            return False
        return is_container(module) or (through and _holds_container(module))

    while True:
        tracer = _Tracer(traces_into, get_notrace_functions(), lengths)
        try:
            graph = tracer.trace(model, concrete_args=defaults)
        except Exception as error:  # fx raises whatever the model's own forward raised
            length = _observed_length(model, tracer, [images[:1], *defaults.values()])
            if length is not None:
                lengths.update(length)
                continue
            if tracer.failed is None or is_ancestor(tracer.failed, cuts):
                where = f" at {', '.join(cuts)}" if cuts else ""
                inside = f" of {tracer.failed}" if tracer.failed else ""
                mode = "train" if model.training else "eval"
                raise RequestError(
                    f"{type(model).__name__} can't be cut{where}: tracing its forward{inside} failed in {mode} mode "
                    f"({type(error).__name__}: {_first_line(error)}); choose other cuts"
                ) from error
            culprit = model.get_submodule(tracer.failed)
            # others of its class would fail in the same way, but any list of modules may hold a single bad one
            leaves.add(tracer.failed if type(culprit).__module__.startswith("torch.") else type(culprit))
            continue
        _drop_specialisation_checks(graph)
        _read_properties_early(graph)
        return graph


@torch.no_grad()
def _observed_length(model: nn.Module, tracer: _Tracer, arguments: Sequence[Any]) -> dict[str, int] | None:
    """Run the model as far as it has been traced, to the value that could not be unpacked."""
    if tracer.unpacked is None:
        return None
    runner = fx.Interpreter(model, garbage_collect_values=False, graph=tracer.graph)
    runner.run(*arguments, enable_io_processing=False)
    value = runner.env.get(tracer.unpacked)
    return {tracer.unpacked.name: len(value)} if isinstance(value, tuple | list) else None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def defaults_of(model: nn.Module) -> dict[str, Any]:
    """Return the defaults of all arguments of the forward but the first.

    Raises:
        RequestError: One has no default.
    """
    # the defaults of optional arguments are facts, not inputs
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    for parameter in parameters:
        if parameter.name not in defaults and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise RequestError(
                f"{type(model).__name__} needs {parameter.name!r} beside the images; only models of images can be cut"
            )
    return defaults


def _drop_specialisation_checks(graph: fx.Graph) -> None:
    """Remove the placeholders, and the checks on them, that fx leaves behind for arguments with defaults."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder in placeholders[1:]:
        pending = list(placeholder.users)
        doomed = [placeholder]
        while pending:
            node = pending.pop()
            doomed.append(node)
            pending.extend(node.users)
        for node in reversed(doomed):
            if not node._erased:
                graph.erase_node(node)


def _read_properties_early(graph: fx.Graph) -> None:
    """Read shapes, formats and devices where the tensor is made: fx does so where they are used, and keeps it alive."""
    for node in list(graph.nodes):
        if node.target is getattr and node.args[1] in {"shape", "ndim", "dtype", "device"}:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            source.append(node)
