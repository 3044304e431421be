"""labkit: a small laboratory for aligning diffusion models.

Importing the package itself is cheap; torch, diffusers and transformers load with the subpackage that needs them.
"""

import os

# OpenMP reads this once, when torch loads it. By default its idle threads spin, and where another program holds one of
# two cores the spinning thread keeps the working one from running: 16 ms a row of the U-Net instead of 6.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
