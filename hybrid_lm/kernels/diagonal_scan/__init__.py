"""Diagonal linear recurrences with a large state: the selective scan of Mamba and S4D's.

``h_t = exp(a_t) h_{t-1} + b_t``, ``y_t = read(h_t)``, where ``a``, ``b`` and ``read`` are cheap
functions of small per-token inputs. The states [B, L, ...] are never held all at once.
"""

from hybrid_lm.kernels.diagonal_scan.s4d import s4d_scan
from hybrid_lm.kernels.diagonal_scan.selective import selective_scan

__all__ = ["s4d_scan", "selective_scan"]
