"""labkit: a small laboratory for aligning diffusion models.

Importing the package itself is cheap; torch, diffusers and transformers load with the subpackage that needs them.
"""

import os

# OpenMP reads this once, when torch loads it. Threads that wait spin before they sleep. GNU's spin so long that, where
# another program holds one of two cores, they keep the working thread from running (a training step takes 47 to 138 ms
# a row); without any spinning they wake too late, and two quiet cores are no faster than one (15 ms a row instead of
# 10). Three thousand rounds cost a fifth on quiet cores, and make 25 to 30 ms a row beside a busy program.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "3000"

__version__ = "0.1.0"
