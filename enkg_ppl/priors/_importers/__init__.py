"""Reading of diffusion models that others trained: one family of files, one file."""

from enkg_ppl.priors._importers._adm import import_adm
from enkg_ppl.priors._importers._ddpm import import_ddpm
from enkg_ppl.priors._importers._diffusers import import_diffusers
from enkg_ppl.priors._importers._edm import import_edm

__all__ = ["import_adm", "import_ddpm", "import_diffusers", "import_edm"]
