"""Says which methods of a class a subclass overrides, and refuses overrides that nobody calls."""

from collections.abc import Collection


def refuse_dead_overrides(cls: type) -> None:
    """Check a new class against what its bases say they never call.

    A base lists in `NEVER_CALLED` names that pipecat's class of this name has, each with what to do
    instead. An override of such a name would be ignored in silence.

    Raises:
        TypeError: The class, or a class mixed into it, has such a name.
    """
    for base in cls.__mro__[1:]:
        for instead, names in base.__dict__.get("NEVER_CALLED", {}).items():
            for name in names:
                if hasattr(cls, name):
                    raise TypeError(
                        f"{cls.__name__}.{name} would never be called: {base.__name__} here has no "
                        f"such method. {instead}"
                    )


def overridden(owner: object, base: type, names: Collection[str]) -> bool:
    """Tell whether any of these methods of `base` is replaced, in a subclass or on the object."""
    cls = type(owner)
    if cls is not base and any(getattr(cls, name) is not getattr(base, name) for name in names):
        return True
    return not owner.__dict__.keys().isdisjoint(names)
