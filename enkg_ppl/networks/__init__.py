"""Networks that denoise, one architecture a file, all behind one interface.

A network is an Equinox module whose only arrays are its parameters (floats); everything else is static. It maps ONE
event ``x`` and a scalar ``noise`` (the preconditioning's noise coordinate) to an array of the event's shape, in the
precision of ``x``. ``noise`` comes in the caller's precision, which may be higher: the embedding of the noise is
computed in it and then cast to ``x.dtype``, since bfloat16 cannot tell noise levels apart.
``config()`` returns the arguments as JSON values, so that ``NETWORKS[name](**config, key=key)`` builds the same tree.

`NETWORKS` has those here by class name, which are what `save_prior` and `load_prior` know. A network of your own, of
the same form, goes into `enkg_ppl.NetworkPrior` as it is; it may be made of `enkg_ppl.networks.parts`.
"""

from enkg_ppl.networks._adm_unet import ADMUNet
from enkg_ppl.networks._config import Configured
from enkg_ppl.networks._conv_ddpm import ConvDDPM
from enkg_ppl.networks._mlp import ResidualMLP
from enkg_ppl.networks._song_unet import SongUNet
from enkg_ppl.networks._unet1d import UNet1d

# By class name, as files name them. A new network adds itself here.
NETWORKS: dict[str, type] = {
    "ResidualMLP": ResidualMLP,
    "UNet1d": UNet1d,
    "SongUNet": SongUNet,
    "ADMUNet": ADMUNet,
    "ConvDDPM": ConvDDPM,
}

__all__ = [
    "NETWORKS",
    "ADMUNet",
    "Configured",
    "ConvDDPM",
    "ResidualMLP",
    "SongUNet",
    "UNet1d",
]
