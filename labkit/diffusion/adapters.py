"""Which adapters a model has, which are on, and context managers that cannot leave them in the wrong state.

Toggling adapters with the plain libraries (disable, enable, set) rewrites `requires_grad` of every adapter, also of
those you froze, and forgetting to switch them on again trains nothing without an error. Here everything is put back on
exit, also after an exception, and no flag ever changes. Works on models with PEFT layers: U-Nets, text encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import nn

from labkit.errors import LabkitError


class AdapterError(LabkitError, RuntimeError):
    """An adapter is missing, exists already, or would not be trained."""


def adapter_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Module name -> PEFT layer, for every layer of the model that carries adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of all adapters of the model, sorted; active or not."""
    return tuple(sorted({name for layer in adapter_layers(model).values() for name in names_on(layer)}))


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters that take part in the forward pass now, sorted; empty while they are disabled."""
    layers = adapter_layers(model).values()
    return tuple(
        sorted(
            {n for layer in layers if not layer.disable_adapters for n in layer.active_adapters if n in names_on(layer)}
        )
    )


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameter path -> parameter of one adapter. Raises AdapterError if the model has no such adapter."""
    found = {
        f"{path}.{attribute}.{name}.{key}": parameter
        for path, layer in adapter_layers(model).items()
        for attribute in layer.adapter_layer_names
        if isinstance(getattr(layer, attribute), nn.ModuleDict) and name in getattr(layer, attribute)
        for key, parameter in getattr(layer, attribute)[name].named_parameters()
    }
    if not found:
        raise AdapterError(f"no adapter named {name!r}: the model has {list(adapter_names(model)) or 'none'}")
    return found


def names_on(layer: nn.Module) -> set[str]:
    """Adapters present on one layer."""
    return {n for attribute in layer.adapter_layer_names for n in getattr(layer, attribute).keys()}


class AdapterSnapshot:
    """Which adapters are active, disabled and how scaled, and every requires_grad flag of a model, to be put back."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.layers = {
            id(layer): (tuple(layer.active_adapters), layer.disable_adapters, dict(layer.scaling))
            for layer in adapter_layers(model).values()
        }
        self.flags = [(p, p.requires_grad) for p in model.parameters()]

    def restore(self, activate: tuple[str, ...] = ()) -> None:
        """Put everything back; `activate` names a new adapter that is to be active in addition."""
        for layer in adapter_layers(self.model).values():
            active, disabled, scaling = self.layers.get(id(layer), ((), False, {}))
            layer.set_adapter([n for n in (*active, *activate) if n in names_on(layer)])
            layer._disable_adapters = disabled  # enable_adapters(False) would do the same and clear flags
            layer.scaling.update({n: s for n, s in scaling.items() if n in layer.scaling})
        self.restore_flags()

    def restore_flags(self) -> None:
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)


@contextmanager
def disabled_adapters(*models: nn.Module) -> Iterator[None]:
    """Inside, the models are their base models (the reference); afterwards everything is as it was.

    Restored: which adapters are active, whether they were disabled already, their scales. `requires_grad` is not even
    changed inside. Models without adapters are fine.
    """
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(switched(model, lambda path, layer: layer.enable_adapters(False)))
        yield


@contextmanager
def use_adapters(
    model: nn.Module,
    scales: Mapping[str, float],
    *,
    where: Callable[[str], bool] | Mapping[str, Callable[[str], bool]] | None = None,
) -> Iterator[None]:
    """Inside, exactly the adapters in `scales` are active, each with its update multiplied by its scale.

    {"easy": 1.0, "hard": 0.5} combines two, {} switches all off. `where` restricts them to some layers by name, for
    example `lambda name: name.startswith("up_blocks")`; as a mapping, each adapter that it names has its own rule.
    State, scales and flags come back afterwards. Raises AdapterError for a name the model does not have.
    """
    rules = where if isinstance(where, Mapping) else dict.fromkeys(scales, where) if where else {}
    unknown = sorted((set(scales) | set(rules)) - set(adapter_names(model)))
    if unknown:
        raise AdapterError(f"no adapter named {unknown}: the model has {list(adapter_names(model)) or 'none'}")

    def switch(path: str, layer: nn.Module) -> None:
        names = [n for n in scales if n in names_on(layer) and (n not in rules or rules[n](path))]
        layer.enable_adapters(True)
        layer.set_adapter(names)
        for n in names:
            layer.scaling[n] = layer.scaling[n] * scales[n]

    with switched(model, switch):
        yield


@contextmanager
def switched(model: nn.Module, switch: Callable[[str, nn.Module], None]) -> Iterator[None]:
    """Apply `switch` to every adapter layer, keep all flags, and undo it on exit."""
    state = AdapterSnapshot(model)
    try:
        for path, layer in adapter_layers(model).items():
            switch(path, layer)
        state.restore_flags()
        yield
    finally:
        state.restore()
