"""The methods that are compared, by name."""

from validation.methods import enkg, ensemble, nested, nuts, smc, walkers
from validation.methods._base import Method, Result

__all__ = ["DEFAULT", "METHODS", "Method", "Result"]

METHODS: dict[str, Method] = {
    method.name: method for module in (enkg, nuts, smc, ensemble, walkers, nested) for method in module.METHODS
}
DEFAULT = "enkg"
