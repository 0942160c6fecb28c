"""What the configuration classes are made with: checks, merging by dotted names, conversion from plain values."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any


class ConfigError(ValueError):
    """A configuration value, field or preset name that cannot be used."""


def check(condition: bool, owner: Any, name: str, rule: str) -> None:
    """Raises `ConfigError` for the field `name` of `owner` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{type(owner).__name__}.{name} = {getattr(owner, name)!r}: {rule}")


def merge(target: dict, path: list[str], value: Any, full_name: str) -> None:
    """Sets the value at `path` in nested dictionaries; a dictionary is merged into its section.

    Raises:
        ConfigError: an unknown name, with the nearest known one.
    """
    head, rest = str(path[0]), path[1:]
    if head not in target:
        raise ConfigError(f"unknown option '{full_name}'{_nearest(head, target)}")
    if rest:
        if not isinstance(target[head], dict):
            raise ConfigError(f"unknown option '{full_name}': '{head}' has no fields of its own")
        merge(target[head], rest, value, full_name)
    elif isinstance(target[head], dict):
        if not isinstance(value, dict):
            raise ConfigError(f"'{full_name}' is a section: give it a dictionary of its fields, not {value!r}")
        for name, inner in value.items():
            merge(target[head], [name], inner, f"{full_name}.{name}")
    else:
        target[head] = value


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(sorted(known))}"


def build(cls, values: dict, prefix: str):
    """An instance of the dataclass `cls`, and of those nested in it, from plain values.

    Raises:
        ConfigError: an unknown field, named with its `prefix`, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"'{prefix or 'config'}' should be a dictionary, got {repr(values)[:60]}")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise ConfigError(f"unknown option '{prefix}{name}'{_nearest(name, hints)}")
    built = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            built[name] = build(hint, value, f"{prefix}{name}.")
        else:
            built[name] = _convert(value, hint, f"{prefix}{name}")
    return cls(**built)


def _convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint`: int, float, bool, str, or (nested) tuples of these."""
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            value = (value,)  # one number where several may stand: shorter_edge=800
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(value):
            raise ConfigError(f"{name} = {value!r}: needs {len(kinds)} values")
        return tuple(_convert(item, kind, name) for item, kind in zip(value, kinds))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    if hint is int and is_number and float(value).is_integer():
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise ConfigError(f"{name} = {value!r}: should be of type {hint.__name__}")
