"""labkit: a small laboratory for aligning diffusion models.

Importing the package itself is cheap; torch, diffusers and transformers load with the subpackage that needs them.
"""

__version__ = "0.1.0"
