"""How well conditioned a network's loss is, and what coordinates make of it.

curvature.py     products with the Hessian and the Gauss-Newton matrix, also in neuron coordinates
spectrum.py      eigenvalues and spectral densities from such products: Lanczos
conditioning.py  the exact Gauss-Newton block of every neuron of a dense layer
"""

from torchnorm.analysis.conditioning import condition_numbers as condition_numbers
from torchnorm.analysis.conditioning import neuron_blocks as neuron_blocks
from torchnorm.analysis.curvature import gauss_newton_product as gauss_newton_product
from torchnorm.analysis.curvature import hessian_product as hessian_product
from torchnorm.analysis.curvature import in_coordinates as in_coordinates
from torchnorm.analysis.spectrum import Spectrum as Spectrum
from torchnorm.analysis.spectrum import lanczos as lanczos
from torchnorm.analysis.spectrum import spectral_density as spectral_density
