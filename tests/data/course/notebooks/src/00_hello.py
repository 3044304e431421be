# %% [markdown] lang="en" uid="intro" pair="72a78f51"
# ## Mixing
#
# A picture $x_0$ becomes $x_t = \sqrt{\bar\alpha}\,x_0 + \sqrt{1-\bar\alpha}\,\epsilon$
# (see [the paper](https://arxiv.org/abs/2006.11239), equation 4).

# %% [markdown] lang="ja" uid="intro" pair="80c0ce79"
# ## ノイズを混ぜる
#
# 画像 $x_0$ から $x_t = \sqrt{\bar\alpha}\,x_0 + \sqrt{1-\bar\alpha}\,\epsilon$ を作ります
# ([論文](https://arxiv.org/abs/2006.11239)の式 4)。

# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"  # "en" or "ja"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("00", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="ja" uid="ex-noise" pair="7e8f7c5f"
"""
### 課題: ノイズを加える

`add_noise` を完成させてください。
"""

# %% [markdown] lang="en" uid="ex-noise" pair="256acc57"
"""
### Exercise: add noise

Complete `add_noise`.
"""


# %% uid="noise" tags=["exercise"] exercise="add_noise"
def add_noise(x0, noise, alpha_bar):
    """en: Mix x0 and noise so that the variance stays one.
    ja: 分散が 1 のままになるように、x0 とノイズを混ぜます。

    x0 と noise は同じ形です。
    """
    # BEGIN SOLUTION
    signal = alpha_bar**0.5 * x0
    return signal + (1 - alpha_bar) ** 0.5 * noise
    # END SOLUTION


# %% uid="noise-check" tags=["check"]
lab.check("add_noise")
add_noise = lab.use("add_noise")

# %% uid="weights" tags=["exercise"] exercise="weights"
alpha_bar = 0.64
# BEGIN SOLUTION
weights = [alpha_bar**0.5, (1 - alpha_bar) ** 0.5]
# END SOLUTION
lab.check("weights")
used_weights = lab.use("weights")

# %% uid="plot" tags=["hide-input"]
import matplotlib.pyplot as plt

# en: sixteen pictures on the cpu tier
# ja: tier が cpu なら 16 枚です
figure, axes = plt.subplots()
axes.plot([add_noise(1.0, 0.0, step / lab.sizes.images) for step in range(lab.sizes.images)])
axes.set_title(t("l00.title", t=0.5))
axes.set_xlabel(lab.t("l00.x"))

# %% uid="quiz" tags=["quiz"]
lab.quiz("variance")
lab.predict("larger")

# %% uid="claim"
lab.claim("variance", measured=r"$\sigma^2$", value=1.0, interval=(0.9, 1.1), seeds=[seed])

# %% [markdown] lang="en" uid="teaching" pair="3bd89edc" tags=["instructor"]
# Ask the room for the variance of a sum first.

# %% [markdown] lang="ja" uid="teaching" pair="34ed86dd" tags=["instructor"]
# 先に、和の分散を全員に尋ねてください。
