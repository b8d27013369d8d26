"""Causal sequence mixers behind one contract (`hybrid_lm.mixers.base`).

To add one: write ``hybrid_lm/mixers/KEY.py`` with a registered config and its module, and import
the config here.
"""

from hybrid_lm.mixers.attention import Attention
from hybrid_lm.mixers.base import CONTINUES, Context, Cost, Mixer, MixerConfig, get, names, register
from hybrid_lm.mixers.conv import Conv
from hybrid_lm.mixers.cosine import Cosine
from hybrid_lm.mixers.delta import Delta
from hybrid_lm.mixers.gated_delta import GatedDelta
from hybrid_lm.mixers.gla import GLA
from hybrid_lm.mixers.hyena import Hyena
from hybrid_lm.mixers.linear import Linear
from hybrid_lm.mixers.linformer import Linformer
from hybrid_lm.mixers.mamba import Mamba
from hybrid_lm.mixers.mamba2 import Mamba2
from hybrid_lm.mixers.nystrom import Nystrom
from hybrid_lm.mixers.performer import Performer
from hybrid_lm.mixers.reformer import Reformer
from hybrid_lm.mixers.rfa import RFA
from hybrid_lm.mixers.routed import Routed
from hybrid_lm.mixers.s4 import S4
from hybrid_lm.mixers.s4d import S4D
from hybrid_lm.mixers.sparse import Sparse

__all__ = [
    "CONTINUES",
    "GLA",
    "RFA",
    "S4",
    "S4D",
    "Attention",
    "Context",
    "Conv",
    "Cosine",
    "Cost",
    "Delta",
    "GatedDelta",
    "Hyena",
    "Linear",
    "Linformer",
    "Mamba",
    "Mamba2",
    "Mixer",
    "MixerConfig",
    "Nystrom",
    "Performer",
    "Reformer",
    "Routed",
    "Sparse",
    "get",
    "names",
    "register",
]
