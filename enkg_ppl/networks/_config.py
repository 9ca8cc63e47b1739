"""What a network was made with, as a file holds it: its static fields are the arguments of its constructor."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx


class Configured(eqx.Module):
    """A network that can be made anew from its `config`, but for the weights."""

    def config(self) -> dict[str, Any]:
        """The arguments of the constructor, as JSON values."""
        static = [field.name for field in dataclasses.fields(self) if field.metadata.get("static")]
        return {name: _as_json(getattr(self, name)) for name in static}


def _as_json(value: Any) -> Any:
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
