"""Bokeh, without asking its classes the same for every property of every figure.

A page has some 240 models of some 60 properties each; what Bokeh would set by itself it looks up
again for each of them, though it is a matter of the class, and works out values of all of them to
write the few that differ. Nothing of this is a promise of Bokeh's: a version that has it no more
goes without.
"""

import functools
from collections.abc import Callable

from bokeh.core.has_props import HasProps
from bokeh.core.property.descriptors import PropertyDescriptor


def use() -> None:
    """Have Bokeh do so; what it makes is the same."""
    if isinstance(vars(HasProps).get("_overridden_defaults"), classmethod):
        of_class = functools.cache(HasProps._overridden_defaults.__func__)
        HasProps._overridden_defaults = classmethod(of_class)
    if hasattr(PropertyDescriptor, "has_unstable_default"):
        PropertyDescriptor.has_unstable_default = _once_per_class(
            PropertyDescriptor.has_unstable_default
        )
    if {"_property_values", "_unstable_default_values"} <= set(vars(HasProps())):
        HasProps.properties_with_values = _of_those_set(HasProps.properties_with_values)


def _once_per_class(asked: Callable) -> Callable:
    """Return a question to a property of a model, that is asked once for each kind of model."""
    known: dict[tuple[PropertyDescriptor, type], bool] = {}

    @functools.wraps(asked)
    def ask(descriptor: PropertyDescriptor, model: HasProps) -> bool:
        key = descriptor, type(model)
        if key not in known:
            known[key] = asked(descriptor, model)
        return known[key]

    return ask


def _of_those_set(found: Callable) -> Callable:
    """Return `properties_with_values` that works out no value which it would leave out."""

    @functools.wraps(found)
    def values(
        model: HasProps, *, include_defaults: bool = True, include_undefined: bool = False
    ) -> dict[str, object]:
        more = {"include_defaults": include_defaults, "include_undefined": include_undefined}
        if include_defaults or include_undefined:
            return found(model, **more)
        names = {*model._property_values, *model._unstable_default_values}
        names.update(model.themed_values() or ())

        def is_wanted(one: PropertyDescriptor) -> bool:
            return one.name in names and one.serialized

        return model.query_properties_with_values(is_wanted, **more)

    return values
