"""tritoncrf: CRFs on pixel grids over a network's logits, learned and answered by exact Gibbs sampling."""

from tritoncrf._version import VERSION
from tritoncrf.chains import ChainStore
from tritoncrf.lattice import Neighborhood
from tritoncrf.model import GridCRF
from tritoncrf.sampler import Sampler

__version__ = VERSION
__all__ = ["ChainStore", "GridCRF", "Neighborhood", "Sampler"]
