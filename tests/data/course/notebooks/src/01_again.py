# %% [markdown] lang="en" uid="intro" pair="876471f6"
# Once more.

# %% [markdown] lang="ja" uid="intro" pair="38a32858"
# もう一度です。

# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start

lab = start("01", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)
