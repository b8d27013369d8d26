"""What the mixers of each group are worth: the quickstart with linear attention in their place.

python -m hybrid_lm.sweep --config exp/quickstart_swaps.py
"""

from hybrid_lm import config as configs
from hybrid_lm.config import Sweep
from hybrid_lm.sweep import swaps


def sweep() -> Sweep:
    """The quickstart and one swap per group, two seeds each."""
    base = configs.load("quickstart")
    points = {"quickstart": base, **swaps(base, "linear")}
    return Sweep(points, seeds=(0, 1), instruments=("knockout", "shapley"))
