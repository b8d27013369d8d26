"""Causal sequence mixers behind one contract (`hybrid_lm.mixers.base`).

To add one: write ``hybrid_lm/mixers/KEY.py`` with a registered config and its module, and import
the config here.
"""

from hybrid_lm.mixers.attention import Attention
from hybrid_lm.mixers.base import CONTINUES, Context, Cost, Mixer, MixerConfig, get, names, register
from hybrid_lm.mixers.delta import Delta
from hybrid_lm.mixers.gated_delta import GatedDelta
from hybrid_lm.mixers.gla import GLA
from hybrid_lm.mixers.linear import Linear
from hybrid_lm.mixers.mamba import Mamba
from hybrid_lm.mixers.mamba2 import Mamba2
from hybrid_lm.mixers.s4d import S4D

__all__ = [
    "CONTINUES",
    "GLA",
    "S4D",
    "Attention",
    "Context",
    "Cost",
    "Delta",
    "GatedDelta",
    "Linear",
    "Mamba",
    "Mamba2",
    "Mixer",
    "MixerConfig",
    "get",
    "names",
    "register",
]
