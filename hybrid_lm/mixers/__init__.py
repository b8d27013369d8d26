"""Causal sequence mixers behind one contract (`hybrid_lm.mixers.base`).

To add one: write ``hybrid_lm/mixers/KEY.py`` with a registered config and its module, and import
the config here.
"""

from hybrid_lm.mixers.attention import Attention
from hybrid_lm.mixers.base import CONTINUES, Context, Cost, Mixer, MixerConfig, get, names, register
from hybrid_lm.mixers.conv import Conv
from hybrid_lm.mixers.linear import Linear
from hybrid_lm.mixers.linformer import Linformer
from hybrid_lm.mixers.mamba import Mamba
from hybrid_lm.mixers.mamba2 import Mamba2
from hybrid_lm.mixers.nystrom import Nystrom
from hybrid_lm.mixers.s4 import S4
from hybrid_lm.mixers.s4d import S4D

__all__ = [
    "CONTINUES",
    "S4",
    "S4D",
    "Attention",
    "Context",
    "Conv",
    "Cost",
    "Linear",
    "Linformer",
    "Mamba",
    "Mamba2",
    "Mixer",
    "MixerConfig",
    "Nystrom",
    "get",
    "names",
    "register",
]
