"""Running the simulator: whole ensembles, host code, batches, and one account of what was simulated."""

from enkg_ppl.evaluation._black_box import blackbox
from enkg_ppl.evaluation._evaluator import Evaluator, Respond, Simulated
from enkg_ppl.evaluation._failure import BlackBoxError
from enkg_ppl.evaluation._ledger import BudgetEnd, Ledger
from enkg_ppl.evaluation._store import Simulations, Store

__all__ = [
    "BlackBoxError",
    "BudgetEnd",
    "Evaluator",
    "Ledger",
    "Respond",
    "Simulated",
    "Simulations",
    "Store",
    "blackbox",
]
