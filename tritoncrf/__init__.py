"""tritoncrf: CRFs on pixel grids over a network's logits, learned and answered by exact Gibbs sampling."""

from tritoncrf._version import VERSION
from tritoncrf.datasets import Indexed, concat
from tritoncrf.factor_crf import FactorCRF
from tritoncrf.graphs import FactorGraph
from tritoncrf.grid_crf import GridCRF
from tritoncrf.head import CRFHead
from tritoncrf.index_sampler import DistributedIndexSampler
from tritoncrf.inference import anneal, estimate, marginals, max_marginal
from tritoncrf.lattice import Neighborhood
from tritoncrf.loss import CRFLoss
from tritoncrf.sampler import Sampler
from tritoncrf.store import ChainStore
from tritoncrf.training import Trainer

__version__ = VERSION
__all__ = [
    "CRFHead",
    "CRFLoss",
    "ChainStore",
    "DistributedIndexSampler",
    "FactorCRF",
    "FactorGraph",
    "GridCRF",
    "Indexed",
    "Neighborhood",
    "Sampler",
    "Trainer",
    "anneal",
    "concat",
    "estimate",
    "marginals",
    "max_marginal",
]
