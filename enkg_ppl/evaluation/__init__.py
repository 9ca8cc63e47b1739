"""Running the simulator: whole ensembles, host code, batches, and one account of what was simulated.

`blackbox` makes a simulator of host code (a `BlackBox`, which raises `BlackBoxError`). An `Evaluator` simulates
ensembles and books every simulation in its `Ledger`, which refuses those beyond the limit (`BudgetEnd`) and records
the stage that a run has `Reached`; the results of an ensemble are `Simulated`. A correction calls `Respond`.
`EnsembleMethod` names the ways in which several ensembles may run; side by side, their simulations are joined in a
`Barrier`.

Refinements are given an `Evaluator` and corrections a `Respond`: neither calls the simulator itself. To run simulations
elsewhere (a cluster, another process), write a function for `blackbox`, or give it an executor. `command_simulator`
makes one of an external program, `umbridge_simulator` one of a model behind an UM-Bridge server (each an
`External`). A `Store` keeps finished `Simulations`, so that none is run twice.
"""

from enkg_ppl.evaluation._black_box import BlackBox, blackbox
from enkg_ppl.evaluation._command import command_simulator
from enkg_ppl.evaluation._ensembles import Barrier, EnsembleMethod
from enkg_ppl.evaluation._evaluator import Evaluator, Respond, Simulated
from enkg_ppl.evaluation._external import External
from enkg_ppl.evaluation._failure import BlackBoxError
from enkg_ppl.evaluation._ledger import BudgetEnd, Ledger, Reached
from enkg_ppl.evaluation._store import Simulations, Store
from enkg_ppl.evaluation._umbridge import umbridge_simulator

__all__ = [
    "Barrier",
    "BlackBox",
    "BlackBoxError",
    "BudgetEnd",
    "EnsembleMethod",
    "Evaluator",
    "External",
    "Ledger",
    "Reached",
    "Respond",
    "Simulated",
    "Simulations",
    "Store",
    "blackbox",
    "command_simulator",
    "umbridge_simulator",
]
