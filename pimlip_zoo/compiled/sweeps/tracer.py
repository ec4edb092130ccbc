"""Symbolic tracing that other threads do not notice.

While torch.fx's own tracer works, its hooks are in ``torch.nn.Module`` itself, and modules that other threads call
meanwhile are recorded, too, or get proxies for their parameters. Here the hooks are in a stand-in of the one model:
modules of the same code, the same parameters and the same names, whose calls are recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

_CALL: Callable[..., Any] = nn.Module.__call__


class LocalTracer(fx.Tracer):
    """Traces one module in one thread; nothing outside of it is changed.

    Functions are recorded as one call where they ask ``torch.overrides.has_torch_function`` of their arguments.

    Args:
        is_leaf: says of which modules the calls are recorded, beside torch's own; all others are gone into.
    """

    def __init__(self, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__(autowrap_modules=())  # type: ignore[arg-type]
        self._is_leaf = is_leaf
        self._original: dict[nn.Module, nn.Module] = {}
        self._stand_in: dict[nn.Module, nn.Module] = {}
        self._proxies: dict[str, fx.Proxy] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The calls of ``root.forward``; modules, parameters and buffers by their names in it."""
        if concrete_args:
            raise TypeError("all arguments are traced")
        self.root = stand_in = self._made(root)
        self.root_module_name = type(root).__name__
        self.submodule_paths = {module: name for name, module in stand_in.named_modules()}
        self.graph = fx.Graph(tracer_cls=type(self))
        self.tensor_attrs = {
            value: f"{prefix}.{name}" if prefix else name
            for prefix, module in root.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        forward, arguments = self.create_args_for_root(type(root).forward, is_module=True)
        self.create_node("output", "output", (self.create_arg(forward(*arguments)),), {})
        return self.graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Asked for stand-ins, answered for what they stand for."""
        original = self._original[m]
        return self._is_leaf(original) or super().is_leaf_module(original, module_qualified_name)

    def _made(self, module: nn.Module) -> nn.Module:
        """The stand-in of a module and of all that are in it."""
        known = self._stand_in.get(module)
        if known is not None:
            return known
        kind = type(module)

        def call(made: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.call_module(made, lambda *a, **k: _CALL(made, *a, **k), args, kwargs)

        def attribute(made: nn.Module, name: str) -> Any:
            return self.getattr(name, kind.__getattr__(made, name), self._proxies)

        hooked = type(
            kind.__name__,
            (kind,),
            {"__call__": call, "__getattr__": attribute, "__module__": kind.__module__},
        )
        made: nn.Module = object.__new__(hooked)
        made.__dict__.update(vars(module))
        self._stand_in[module], self._original[made] = made, module
        # A stand-in has children of its own; named_children is silent of those that are None.
        made.__dict__["_modules"] = {
            name: None if child is None else self._made(child)
            for name, child in module._modules.items()  # noqa: SLF001
        }
        return made
