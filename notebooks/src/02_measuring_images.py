# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("02", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="article" pair="bac13b48"
# ## 1. A number without its ruler
#
# The article「ディープ生成モデルの忠実性と多様性の制御:擬似密度による手法」, on the paper of lesson 03 ([arXiv 2407.08659](https://arxiv.org/abs/2407.08659)),
# gives a manager this advice: start with a small experiment, and measure the effect by a quality index such as FID and by the judgement of the people in the field. Both halves are put to the test here,
# before anything is aligned. What does a quality index say about a *small* experiment? And how many judgements does a field need?
#
# A metric never sees pictures. It sees a table of **features**: one row of numbers for each picture, made by a network that was trained for something else. Ours are the 128 numbers
# before the last layer of the AttributeReader; published FIDs take 2048 from Inception. The reals of this lesson are renders. Now two models, A and B, whose true quality is known because we built
# them: one is perfect, its pictures are nothing but other renders. The other makes everything more alike, each picture's features lie a fifth nearer to the mean. The figure shows the Fréchet distance of both, **lower is
# better**, at four numbers of pictures. Which of the two is the perfect one?

# %% [markdown] lang="ja" uid="article" pair="e3451e41"
# ## 1. 物差しのない数値
#
# 記事『ディープ生成モデルの忠実性と多様性の制御:擬似密度による手法』は、レッスン03で扱う論文([arXiv 2407.08659](https://arxiv.org/abs/2407.08659))を紹介し、
# 導入を検討する役員にこう助言しています。まず小さな実験を行い、FIDのような品質指標と現場の評価で効果を測ること。このレッスンでは、モデルを調整する前に、この2つの助言を検証します。
# 品質指標は、*小さな*実験について何を教えてくれるのでしょうか。現場の評価は、何件あれば足りるのでしょうか。
#
# 指標は画像そのものを見ません。見るのは**特徴量**の表です。別の目的で学習したネットワークが、画像1枚を数値の行1つに変換したものです。ここではAttributeReaderの最終層の手前にある128個の数値を
# 使います。論文のFIDはInceptionの2048個です。このレッスンで本物と呼ぶのはレンダリング画像です。モデルAとBを用意しました。自作なので、本当の品質が分かっています。一方は完璧で、その画像は別のレンダリング画像
# そのものです。もう一方はどの画像も似たものにしてしまい、特徴量が平均に2割だけ近づきます。次の図は、4通りの枚数で測った両者のフレシェ距離です。**小さいほど良い**指標です。完璧なのはどちらでしょうか。

# %% uid="renders"
from types import SimpleNamespace

import numpy as np
import torch

from labkit.figures import bar_with_interval, curve_with_interval, recorded_means, strips
from labkit.diffusion import from_uint8
from labkit.metrics import frechet_distance, manifold_metrics, noise_floor
from labkit.models.paths import data_dir
from labkit.portraits import load_dataset
from labkit.studies import load_study, means
from labkit.studies.estimate import recorded_levels
from labkit.studies.l02 import MODE, SHRUNK, fd, more_alike, networks

size = lab.sizes.compare
arrays, specs = load_dataset(data_dir() / "portraits", 2 * size)
# en: two sets of one law
# ja: 同じ分布からの2つの集合
reals, others = from_uint8(arrays).chunk(2)
features, embed = networks().features, networks().clip
real_f, other_f = features(reals), features(others)
pool = torch.cat([real_f, other_f])
study = load_study("02")
sizes = SimpleNamespace(**(dict(study.sizes) | vars(lab.sizes)))


def draw(x, n, r):
    """en: Round r's random choice of n rows.
    ja: ラウンドrで、n行を無作為に選びます。
    """
    return x[torch.randperm(len(x), generator=lab.generator(r))[:n]]


counts = [n for n in (32, 64, 128, 256) if n <= size]
rounds = range(lab.sizes.rounds)
read = {
    "A": [[fd(draw(real_f, n, r), draw(other_f, n, r + 500)) for n in counts] for r in rounds],
    "B": [[fd(draw(real_f, n, r), draw(more_alike(other_f, SHRUNK), n, r + 500)) for n in counts] for r in rounds],
}
curve_with_interval(
    counts,
    {name: np.array(rows) for name, rows in read.items()},
    xlabel=t("l02.pictures_each"),
    ylabel=t("l02.frechet"),
    title=t("l02.first_title"),
    log_x=True,
    log_y=True,
)

# %% [markdown] lang="en" uid="first-reading" pair="cc436ff4"
# **What you see.** With few pictures B reads lower; with many, A does. The perfect model is A. At 64 pictures a metric that is used everywhere prefers the worse model in about seven of ten
# rounds, at 32 in nearly all. Nothing is wrong with the formula. Sections 2 to 4 find the reason and three remedies. First the formula itself.

# %% [markdown] lang="ja" uid="first-reading" pair="4c3f02e8"
# **図から読み取れること。** 枚数が少ないとBの値が小さく、多いとAの値が小さくなります。完璧なのはAです。つまり、広く使われている指標が、64枚なら10ラウンド中およそ7ラウンドで、32枚ならほぼ毎回、劣ったモデルを選びます。
# 式に誤りがあるわけではありません。第2節から第4節で理由を突き止め、3つの対策を学びます。まず式そのものを見ましょう。

# %% [markdown] lang="en" uid="frechet" pair="ed86b5ff"
# ### The Fréchet distance
#
# *In one dimension first.* Fit a normal distribution to each set. To carry $N(0, 1)$ over into $N(3, 4)$ with the least effort, shift it by 3 and stretch it from deviation 1 to 2. The squared effort is
# $(m_1-m_2)^2 + (s_1-s_2)^2 = 9 + 1 = 10$, where $m$ are means and $s$ standard deviations. Written out, the second term is $s_1^2 + s_2^2 - 2\,s_1 s_2$: variance plus variance minus twice the root of
# their product.
#
# *In many dimensions* the mean becomes a vector $\mu$ and the variance a covariance matrix $S$, and the same three terms remain:
#
# $$\mathrm{FD} = |\mu_1-\mu_2|^2 + \mathrm{tr}\,S_1 + \mathrm{tr}\,S_2 - 2\,\mathrm{tr}\,(S_1S_2)^{1/2}.$$
#
# The last trace is the sum of the square roots of the eigenvalues of $S_1S_2$. With Inception features this number is the FID; with ours we call it FD. Write `frechet` from means `[d]` and covariances `[d, d]`. A covariance
# may be singular, and it will be: 64 pictures span at most 63 of the 128 directions. A value to try: with equal means and the covariances diag(1, 4, 9) and diag(4, 9, 16) it is 3.
# Common mistakes: the root of each entry of the matrix instead of its eigenvalues, and the factor 2.

# %% [markdown] lang="ja" uid="frechet" pair="46ba99cf"
# ### フレシェ距離
#
# *まず1次元で考えます。* それぞれの集合に正規分布を当てはめます。$N(0, 1)$ を最小の手間で $N(3, 4)$ に重ねるには、3だけずらし、標準偏差を1から2に伸ばします。手間の2乗は
# $(m_1-m_2)^2 + (s_1-s_2)^2 = 9 + 1 = 10$ です。$m$ は平均、$s$ は標準偏差です。第2項を展開すると $s_1^2 + s_2^2 - 2\,s_1 s_2$、つまり「分散+分散−積の平方根の2倍」に
# なります。
#
# *多次元では*平均がベクトル $\mu$、分散が共分散行列 $S$ になりますが、項の形は同じです。
#
# $$\mathrm{FD} = |\mu_1-\mu_2|^2 + \mathrm{tr}\,S_1 + \mathrm{tr}\,S_2 - 2\,\mathrm{tr}\,(S_1S_2)^{1/2}.$$
#
# 最後のトレースは、$S_1S_2$ の固有値の平方根の和です。Inceptionの特徴量で計算した値がFIDです。ここでは自前の特徴量を使うので、FDと呼びます。平均 `[d]` と共分散 `[d, d]` から計算する `frechet` を書いてください。
# 共分散は特異になることがあります。実際、64枚の画像では、128方向のうち高々63方向しか分かりません。確認用の値: 平均が等しく、共分散が diag(1, 4, 9) と diag(4, 9, 16) なら3です。
# よくある誤りは、固有値ではなく行列の各成分の平方根を取ることと、係数2の書き忘れです。


# %% uid="frechet-exercise" tags=["exercise"] exercise="frechet"
def frechet(mean_1, cov_1, mean_2, cov_2):
    """en: Squared Frechet distance of two Gaussians.
    ja: 2つの正規分布の間のフレシェ距離の2乗です。
    """
    # BEGIN SOLUTION
    values, vectors = torch.linalg.eigh(cov_1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # en: the eigenvalues of S1 S2
    # ja: S1 S2の固有値
    product = torch.linalg.eigvalsh(root @ cov_2 @ root)
    return (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * product.clamp(min=0).sqrt().sum()
    # END SOLUTION


# %% uid="frechet-check" tags=["check"]
lab.check("frechet")
frechet = lab.use("frechet")

# %% uid="frechet-use" tags=["slow"]
from labkit.portraits import HELD_OUT_COMBINATIONS, sample_specs
from labkit.studies.l02 import painted


def moments(x):
    """en: Mean [d] and covariance [d, d] of features [n, d].
    ja: 特徴量 [n, d] の平均 [d] と共分散 [d, d] です。
    """
    x = x.double()
    return x.mean(0), torch.cov(x.T)


asked = sample_specs(lab.sizes.painted, seed=lab.seed + 1, exclude=HELD_OUT_COMBINATIONS)
generated = lab.keep("generated", painted, asked, lab.seed + 100, sizes, sizes.guidance)
made_f = features(generated)
for name, fake in {t("l02.other_renders"): other_f, t("l02.generated"): made_f}.items():
    mine, theirs = float(frechet(*moments(real_f), *moments(fake))), float(frechet_distance(real=real_f, fake=fake))
    lab.verdict(t("l02.two_values", name=name, mine=mine, theirs=theirs), abs(mine - theirs) < 1e-3 * theirs)
strips(
    {t("l02.renders"): list(reals[:8]), t("l02.generated"): list(generated[:8])},
    title=t("l02.two_sets", d=real_f.shape[1]),
)

# %% [markdown] lang="en" uid="bias" pair="5aa1727d"
# **Reading.** A render and a picture by PortraitSD are hard to tell apart at this size. PortraitSD's distance is larger, but there are also fewer pictures on its side; and the distance of renders to *other renders* is not 0 either, although
# both come from one law. How large is such a number without any difference behind it?
#
# ## 2. Bias and spread are two things
#
# Take two samples of one law. Their means differ by chance, their covariances too, and every chance difference enters with its square: nothing cancels. So the reading lies above the truth **on average**. That is a
# **bias**, and for equal laws it has a name, the **noise floor**. To first order it is $\frac{2}{n}$ times a constant of the law's eigenvalues, when both sides have $n$ pictures. The **spread** is
# something else: by how much the reading changes when the pictures are drawn again. Predict first.

# %% [markdown] lang="ja" uid="bias" pair="df91a55b"
# **図の読み方。** レンダリング画像とPortraitSDの画像は、この大きさではほとんど見分けがつきません。PortraitSDの距離の方が大きいのですが、枚数も少なくなっています。それに、*別のレンダリング画像*との距離も0ではありません。
# どちらも同じ分布から得た画像です。違いが何もないのに出てくるこの値は、どのくらいの大きさなのでしょうか。
#
# ## 2. バイアスとばらつきは別のもの
#
# 同じ分布から2つの標本を取ると、平均も共分散も偶然の分だけ食い違います。食い違いはどれも2乗で加わるので、打ち消し合いません。そのため、測定値は**平均して**真の値より大きくなります。これが**バイアス**です。
# 分布が同じときのバイアスを、特に**ノイズフロア**と呼びます。両側が $n$ 枚なら、1次近似で $\frac{2}{n}$ に、分布の固有値で決まる定数を掛けた値です。**ばらつき**はこれとは別で、画像を選び直したときに
# 測定値がどれだけ変わるかを表します。まず予想してください。

# %% uid="floor-predict" tags=["quiz"]
lab.predict("floor")

# %% uid="floor-run"
law = torch.cov(pool.double().T)
same_law = np.empty((lab.sizes.rounds, len(counts)))
for r in rounds:
    mixed = draw(pool, len(pool), r)
    same_law[r] = [fd(mixed[:n], mixed[-n:]) for n in counts]
curve_with_interval(
    counts,
    {
        t("l02.recorded_same"): recorded_levels("02", [f"fd@{n}" for n in counts], "same"),
        t("l02.yours"): same_law,
        t("l02.formula"): [noise_floor(law, n_real=n, n_fake=n) for n in counts],
    },
    xlabel=t("l02.pictures_each"),
    ylabel=t("l02.frechet"),
    title=t("l02.floor_title"),
    reference={t("l02.model_at", n=32): recorded_levels("02", ["fd@32"], "model")[0][0]},
    log_x=True,
    log_y=True,
)

# %% uid="floor-claim"
at_first = recorded_levels("02", ["fd@32"], "model")[0][0]
lab.reveal("floor", "large" if float(same_law[:, 0].mean()) > at_first / 2 else "small")
# en: slope between the last two numbers, in a log-log plot, for every round
# ja: 両対数で、最後の2つの枚数の間の傾き(ラウンドごと)
slopes = np.diff(np.log(same_law[:, -2:]), axis=1)[:, 0] / np.log(2)


def spread(values):
    """en: Mean, and the interval that holds 95 % of the rounds.
    ja: 平均と、ラウンドの95%が入る区間です。
    """
    low, high = np.quantile(values, [0.025, 0.975])
    return {"value": float(np.mean(values)), "interval": (float(low), float(high)), "seeds": [lab.seed]}


lab.claim("bias_falls", measured=t("l02.m_slope"), **spread(slopes))

# %% [markdown] lang="en" uid="floor-reading" pair="74ad73c3"
# **What you see.** At 32 pictures renders against renders read almost 2,000, as much as PortraitSD reads there; the floor halves with every doubling, and the formula knows it well as soon as there are more pictures than features.
# But look at the bands: the floor is large and the spread is small, a tenth of it or less. **Why it matters.** A floor lifts *every* reading, like a scale that shows two kilograms too much. Such a scale still tells who is
# heavier. Hence the rule "a change below the noise floor is no change" must be wrong. Is it? And is the other rule right, "compare at equal numbers"? Decide before the experiment.

# %% [markdown] lang="ja" uid="floor-reading" pair="ecbffea9"
# **図から読み取れること。** 32枚では、レンダリング画像どうしの値がおよそ2000になり、PortraitSDの値とほとんど変わりません。ノイズフロアは枚数が2倍になるごとに半減し、枚数が特徴量の次元を超えると近似式ともよく合います。
# ここで帯の幅に注目してください。ノイズフロアは大きいのに、ばらつきはその1割以下です。**なぜ重要か。** ノイズフロアは*すべての*測定値を押し上げます。いつも2kg多く表示する体重計のようなものです。それでも、どちらが重いかは
# 分かります。だとすると「ノイズフロアより小さい変化は変化ではない」という規則は間違っているはずです。本当にそうでしょうか。もう1つの規則「枚数をそろえて比べればよい」は正しいのでしょうか。実験の前に予想してください。

# %% uid="ranking-predict" tags=["quiz"]
lab.predict("below_floor")
lab.predict("equal_numbers")

# %% uid="ranking-run"
from labkit.studies.l02 import reads_lower, rivals

data, n = pool.double(), min(64, size // 2)
# en: "shift": the mean is off by so much that the true distance is an eighth of the floor; "alike": less variety
# ja: "shift": 真の距離がノイズフロアの8分の1になるように平均をずらす、"alike": 多様性を下げる
rival = rivals(data, n, lab.generator(7))
worse = {"shift": rival.shift, "alike": rival.alike}
turns = [reads_lower(data, n, worse, lab.generator(1000 + r))[0] for r in range(lab.sizes.rankings)]
shares = {name: float(np.mean([turn[name] for turn in turns])) for name in turns[0]}
arms = {t("l02.rank_shift"): "shift", t("l02.rank_shift_paired"): "shift.paired"}
arms |= {t("l02.rank_alike"): "alike", t("l02.rank_alike_paired"): "alike.paired"}
found = {}
for label, arm in arms.items():
    found |= means(lab.recorded, f"{arm}@64", {label: "ranking"})
for many in (128, 256):
    label = t("l02.rank_alike_at", n=many)
    found |= means(lab.recorded, f"alike@{many}", {label: "ranking"})
recorded_means(
    found,
    yours={label: shares[arm] for label, arm in arms.items()},
    xlabel=t("l02.right_share"),
    title=t("l02.ranking_title"),
    reference={t("l02.coin"): 0.5},
    value_format="{:.2f}",
)

# %% uid="ranking-claims"
by_shift, by_variety = shares["shift"], shares["alike"]
lab.reveal("below_floor", "ranked" if by_shift > 0.7 else "hidden")
lab.reveal("equal_numbers", "fair" if by_variety > 0.5 else "unfair")


def binomial(share, n):
    """en: A share of n trials with its 95 % interval.
    ja: n回の試行における割合と、その95%区間です。
    """
    half = 1.96 * max(share * (1 - share), 0.25 / n) ** 0.5 / n**0.5
    return {"value": share, "interval": (share - half, share + half), "seeds": [lab.seed]}


lab.claim("floor_hides", measured=t("l02.m_right"), **binomial(by_shift, lab.sizes.rankings))
lab.claim("equal_numbers", measured=t("l02.m_right"), **binomial(by_variety, lab.sizes.rankings))

# %% [markdown] lang="en" uid="ranking-reading" pair="dfb473a5"
# **What you see.** A difference of an eighth of the floor is ranked right in most rounds with fresh samples, and practically always with the *same* samples, as two models share prompts and seeds. The less varied model, at the same
# number of pictures, is preferred to the perfect one; from 128 on it no longer is. **Both rules are wrong, for one reason.** What hides a difference is the *spread of the difference*, and sharing the seeds removes most of
# it. What turns a ranking round is a *difference of the biases*. The bias comes from each model's own variance: who varies less has less of it. B saves more bias than it pays in true distance, until $n$ is so large that the
# bias is small. **What would change it.** More pictures, or taking the bias out. The next section does that.

# %% [markdown] lang="ja" uid="ranking-reading" pair="6e8bfbab"
# **図から読み取れること。** ノイズフロアの8分の1しかない差でも、別々の標本でたいてい正しく順位が付きます。2つのモデルでプロンプトとシードを共通にした場合のように*同じ*標本を使えば、ほぼ毎回正しくなります。一方、多様性の低いモデルは、
# 同じ枚数で比べているのに、完璧なモデルより良い値になります。128枚からはそうなりません。**2つの規則が間違っている理由は共通です。** 差を隠すのは*差のばらつき*で、シードを共通にすればその大半が消えます。順位を入れ替えるのは
# *バイアスの違い*です。バイアスは各モデル自身の分散から生じるので、ばらつきの小さいモデルほどバイアスも小さくなります。Bは真の距離で損をしても、バイアスでそれ以上に得をします。$n$ が大きくなってバイアスが小さくなるまで、この関係は
# 続きます。**何を変えればよいか。** 枚数を増やすか、バイアスを取り除きます。次の節で取り除き方を学びます。

# %% [markdown] lang="en" uid="infinity" pair="aa0367be"
# ## 3. Extrapolate: FID at infinity
#
# *Intuition.* The bias is a straight line in $1/n$. Measure at a few $n$, draw FD over $1/n$, lay a line through the points and read off where it meets $1/n = 0$: infinitely many pictures. That is the proposal of Chong and Forsyth
# ([arXiv 1911.07023](https://arxiv.org/abs/1911.07023)).
#
# *Formula.* With $x_i = 1/n_i$ and readings $y_i$ the least-squares line has the slope $b = \sum_i (x_i-\bar x)(y_i-\bar y) / \sum_i (x_i-\bar x)^2$ and the intercept $\bar y - b\,\bar x$, which is wanted. Write
# `at_infinity(ns, values)`. By hand: readings 30 at $n = 1$ and 20 at $n = 2$ lie on $10 + 20/n$, so the answer is 10. A common mistake is a line in $n$, which has no limit at all.

# %% [markdown] lang="ja" uid="infinity" pair="3b5654de"
# ## 3. 外挿: 枚数無限大でのFID
#
# *直感。* バイアスは $1/n$ に比例します。いくつかの $n$ で測り、FDを $1/n$ に対して描き、点に直線を当てはめて、$1/n = 0$、つまり枚数が無限大のときの値を読み取ります。これがChongとForsythの方法です
# ([arXiv 1911.07023](https://arxiv.org/abs/1911.07023))。
#
# *式。* $x_i = 1/n_i$、測定値を $y_i$ とすると、最小二乗直線の傾きは $b = \sum_i (x_i-\bar x)(y_i-\bar y) / \sum_i (x_i-\bar x)^2$、求める切片は $\bar y - b\,\bar x$ です。`at_infinity(ns, values)` を
# 書いてください。手計算の例: $n = 1$ で30、$n = 2$ で20なら、$10 + 20/n$ に乗るので、答えは10です。よくある誤りは $n$ に対して直線を引くことで、これでは極限がありません。


# %% uid="infinity-exercise" tags=["exercise"] exercise="at_infinity"
def at_infinity(ns, values):
    """en: Intercept at 1/n = 0 of the least-squares line through values over 1/n; lists of equal length.
    ja: 1/nに対する値の最小二乗直線の、1/n = 0での切片です。nsとvaluesは同じ長さのリストです。
    """
    # BEGIN SOLUTION
    x = 1 / torch.tensor(ns, dtype=torch.float64)
    y = torch.tensor(values, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean())
    # END SOLUTION


# %% uid="infinity-check" tags=["check"]
lab.check("at_infinity")
at_infinity = lab.use("at_infinity")

# %% uid="infinity-run"
three = counts[-3:]
lines = {"A": np.array(read["A"])[:, -len(three) :].mean(0), "B": np.array(read["B"])[:, -len(three) :].mean(0)}
ends = {name: at_infinity(three, list(values)) for name, values in lines.items()}
truth = {"A": 0.0, "B": (1 - SHRUNK) ** 2 * float(law.trace())}
for name, end in ends.items():
    print(t("l02.at_infinity", name=name, end=end, truth=truth[name]))
curve_with_interval(
    [0, *(1 / n for n in reversed(three))],
    {name: [ends[name], *reversed(lines[name])] for name in lines},
    xlabel="1 / n",
    ylabel=t("l02.frechet"),
    title=t("l02.infinity_title"),
)

# %% uid="infinity-claim"
lab.claim("infinity_ranks", measured=t("l02.m_right"), value=float(ends["A"] < ends["B"]), seeds=[lab.seed])

# %% [markdown] lang="en" uid="infinity-reading" pair="78a49215"
# **What you see.** The lines cross: B starts lower on the right (few pictures) and ends higher on the left. The intercepts stand in the order of the truth, and near it. **What it costs.** An intercept has a larger spread than a reading, because it lies outside
# the points; a negative distance is possible and means "not distinguishable from 0". **What would change it.** Both sides must grow together, as here, or the reals be so many that they add no bias; otherwise the real side's bias stays in the
# intercept. Below as many pictures as features the curve bends and the line lies.

# %% [markdown] lang="ja" uid="infinity-reading" pair="a54f12fb"
# **図から読み取れること。** 2本の線は交わります。Bは右側(枚数が少ない側)では下にあり、左側では上に来ます。切片の順序は真の距離の順序と一致し、値も近くなっています。**代償。** 切片は測定点の外側にあるので、測定値そのものよりばらつきます。
# 負の距離になることもあり、その場合は「0と区別できない」と読みます。**何を変えればよいか。** ここのように両側の枚数を同時に増やすか、バイアスが無視できるほど多くの本物を用意します。そうしないと、本物の側のバイアスが切片に残ります。
# また、枚数が特徴量の次元より少ないと曲線が曲がり、直線の外挿は外れます。

# %% [markdown] lang="en" uid="null" pair="3190e556"
# ## 4. Is there a difference at all? The permutation null
#
# Sometimes the question is not *how far* but *whether*. Suppose reals and fakes come from one law. Then the labels "real" and "fake" mean nothing, and any other way of dealing out the labels would have been as likely. So deal them out
# again, many times, and measure each time: that is the distribution of the reading under "no difference", the **null**, with its floor and its spread, at exactly these numbers of pictures. No formula is needed.
#
# The p-value is the share of deals that read at least as much as the observed one. The observed deal is itself one of the possible deals, so it is counted: $p = (1 + \#\{\text{null} \ge \text{observed}\}) / (1 + R)$ for $R$ deals.
# Write `p_value`. By hand: null readings 1, 2, 3, 4 and the observed reading 4 give $(1 + 1)/5 = 0.4$; a p-value of 0 is impossible.

# %% [markdown] lang="ja" uid="null" pair="67bc5946"
# ## 4. そもそも差はあるのか: 並べ替え検定
#
# 知りたいのが*どれだけ違うか*ではなく、*違うかどうか*のこともあります。本物と生成画像が同じ分布に従うと仮定しましょう。そのとき「本物」「生成」というラベルには意味がなく、ラベルをどう配り直しても同じ確率で起こりえます。そこで、
# ラベルを何度も配り直し、そのたびに測ります。こうして、ちょうどこの枚数での「差がないとき」の測定値の分布(**帰無分布**)が、ノイズフロアもばらつきも含めて得られます。近似式は要りません。
#
# p値は、観測値以上になった配り直しの割合です。観測した配り方も可能な配り方の1つなので、数に入れます。$R$ 回の配り直しに対して $p = (1 + \#\{\text{null} \ge \text{observed}\}) / (1 + R)$ です。
# `p_value` を書いてください。手計算の例: 配り直しの値が1、2、3、4、観測値が4なら $(1 + 1)/5 = 0.4$ です。p値が0になることはありません。


# %% uid="null-exercise" tags=["exercise"] exercise="p_value"
def p_value(observed, null):
    """en: Permutation p-value of a reading (large means different); null: list of readings [R].
    ja: 測定値の並べ替え検定によるp値です(値が大きいほど違いが大きい)。nullは配り直したときの測定値 [R] です。
    """
    # BEGIN SOLUTION
    return (1 + sum(value >= observed for value in null)) / (1 + len(null))
    # END SOLUTION


# %% uid="null-check" tags=["check"]
lab.check("p_value")
p_value = lab.use("p_value")

# %% uid="null-run"
from labkit.figures import figure_style, new_figure


def dealt(real, fake, deals, r):
    """en: The observed FD and those of `deals` random deals of the labels.
    ja: 観測したFDと、ラベルを無作為に配り直したときのFDです。
    """
    both, g = torch.cat([real, fake]), lab.generator(r)
    orders = [torch.randperm(len(both), generator=g) for _ in range(deals)]
    return fd(real, fake), [fd(both[order[: len(real)]], both[order[len(real) :]]) for order in orders]


toon = torch.tensor([spec.style == MODE for spec in specs[size:]])
few = min(64, len(made_f), size // 4)
sides = {t("l02.other_renders"): other_f, t("l02.generated"): made_f, t("l02.no_mode"): other_f[~toon]}
panels = {
    name: dealt(draw(real_f, few, 1), draw(fake, few, 2), lab.sizes.deals, 3 + i)
    for i, (name, fake) in enumerate(sides.items())
}
with figure_style():
    figure = new_figure(8.4, 2.7, layout="constrained")
    for axes, (name, (observed, null)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.hist(null, 20, color="#B8C4D6")
        axes.axvline(observed, color="#C4501B", linewidth=2)
        axes.set(xlabel=t("l02.frechet"), title=t("l02.null_title", name=name, p=p_value(observed, null)))
    figure.axes[0].set_ylabel(t("l02.deals"))
figure.alt = t("l02.null_alt", n=few)
figure

# %% uid="null-claims"


def alarm_share(fake, n):
    """en: Share of tests at n pictures a side with p <= 0.05.
    ja: 片側n枚での検定のうち、p <= 0.05となった割合です。
    """
    tests = [dealt(draw(real_f, n, 10 + r), draw(fake, n, 600 + r), 39, 1000 + r) for r in range(lab.sizes.tests)]
    return float(np.mean([p_value(*test) <= 0.05 for test in tests]))


at = min(32, len(made_f))
lab.claim("null_is_level", measured=t("l02.m_alarms"), **binomial(alarm_share(other_f, at), lab.sizes.tests))
lab.claim("null_sees_model", measured=t("l02.m_alarms"), **binomial(alarm_share(made_f, at), lab.sizes.tests))
lab.claim("null_sees_model_at_128", reason=t("l02.only_recorded"))

# %% [markdown] lang="en" uid="null-reading" pair="c33b0981"
# **What you see.** The set in which a style is missing falls at the right end of its null, although most of its reading is floor: a reading that is "mostly floor" can prove a difference all the same. Renders lie inside of theirs. **The surprise** is PortraitSD, which a single test may find either way: in the recorded study it sounds the alarm (a p-value of at most 0.05) in 6 % of the tests at 32 pictures, and renders do so in 5 %. Asked with complete captions, and
# seen through the eyes of a network that reads attributes, so few of its pictures are not distinguishable from renders. **What that does not say.** That there is no difference. No alarm means "not at this $n$, not in these features"; one alarm at 5 % is what every twentieth pair of equal sets gives; and no alarm says how large a difference is. **What would change it.** Four times as many pictures are not enough: with 128 it sounds in $.085$ $[.032, .138]$ of the tests, as for renders ($.090$ $[.030, .150]$, an interval that holds the 5 % of the level). "The test finds PortraitSD different in more than half of the cases" is **contradicted** with 32 pictures and with 128: in this range the number is not what hides the model. Perhaps other features, or captions that leave things open, where the model must choose by itself.

# %% [markdown] lang="ja" uid="null-reading" pair="f05a9ec2"
# **図から読み取れること。** 画風が1つ欠けた集合は、測定値の大半がノイズフロアなのに、帰無分布の右端に来ます。ノイズフロアが大半を占めていても、差があることは示せるのです。レンダリング画像どうしの値は、帰無分布の内側にあります。**意外なのは**PortraitSDで、1回の検定ではどちらの結果にもなりえます。記録済みの実験では、32枚での検定の6%で、p値が0.05以下になりました(これを「警報が鳴る」と呼びます)。レンダリング画像どうしでは5%です。すべての属性を述べたキャプションで生成し、
# 属性を読み取るネットワークの目で見る限り、この枚数ではレンダリング画像と区別できません。**この検定で分からないこと。** 警報が出なくても、差がないとはいえません。「この枚数($n$)、この特徴量では見つからない」という意味です。5%の水準なら、等しい集合どうしでも20回に1回は警報が鳴ります。警報から差の大きさは分かりません。**何を変えればよいか。** 枚数を4倍の128枚に増やすだけでは足りません。128枚で警報が鳴る割合は $.085$ $[.032, .138]$ で、レンダリング画像どうしの $.090$ $[.030, .150]$(水準の5%もこの区間に入ります)と変わりません。「半数を超える検定でPortraitSDとの違いを検出する」という主張は、32枚でも128枚でも**反対の結果になりました**。少なくともこの範囲では、見つからない原因は枚数ではありません。特徴量を変えるか、属性を省いたキャプションを使ってモデル自身に選ばせれば、違いが見えるかもしれません。

# %% [markdown] lang="en" uid="kid" pair="ec212f7a"
# ### A metric without bias
#
# The bias of section 2 comes from squares of chance differences. In a sum over *pairs* one can see where it sits: a picture compared with itself always fits perfectly, and the fewer pictures there are, the larger the share of such pairs. KID ([arXiv 1801.01401](https://arxiv.org/abs/1801.01401)) leaves them out. With the kernel $k(x, y) = (x\cdot y/d + 1)^3$, a similarity of two
# feature rows of length $d$,
#
# $$\mathrm{KID} = \frac{1}{n(n-1)}\sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)}\sum_{i \ne j} k(y_i, y_j) - \frac{2}{nm}\sum_{i, j} k(x_i, y_j).$$
#
# In words: how alike are reals among themselves, plus fakes among themselves, minus twice the reals with the fakes. Under equal laws all three means are equal, and the sum is 0 on average at *any* $n$. Write `kid`. By hand: reals 0 and 1, fakes 0 and 1 ($d = 1$) give $1 + 1 - 2\cdot 11/4 = -3.5$. Yes, it may be negative.

# %% [markdown] lang="ja" uid="kid" pair="a07f8a74"
# ### バイアスのない指標
#
# 第2節のバイアスは、偶然の食い違いを2乗することから生じます。*ペア*についての和で考えると、その在りかが分かります。自分自身とのペアは必ず完全に一致し、枚数が少ないほど、そのようなペアの割合が大きくなります。KID([arXiv 1801.01401](https://arxiv.org/abs/1801.01401))は、これを除きます。長さ $d$ の特徴量どうしの類似度を、カーネル
# $k(x, y) = (x\cdot y/d + 1)^3$ で測ると、
#
# $$\mathrm{KID} = \frac{1}{n(n-1)}\sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)}\sum_{i \ne j} k(y_i, y_j) - \frac{2}{nm}\sum_{i, j} k(x_i, y_j).$$
#
# 本物どうしの類似度と生成画像どうしの類似度を足し、本物と生成画像の類似度の2倍を引いたものです。分布が同じなら3つの平均は等しく、$n$ が*いくつでも*、平均して0になります。`kid` を書いてください。手計算の例: 本物が0と1、生成側も0と1($d = 1$)なら、$1 + 1 - 2\cdot 11/4 = -3.5$ です。このように負になることもあります。


# %% uid="kid-exercise" tags=["exercise"] exercise="kid"
def kid(real, fake):
    """en: Unbiased kernel distance of features [n, d] and [m, d], kernel (x.y / d + 1)^3; a number, may be negative.
    ja: 特徴量 [n, d] と [m, d] の不偏なカーネル距離です。カーネルは (x・y / d + 1)^3。値は負にもなります。
    """

    # BEGIN SOLUTION
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def without_self(x):
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return without_self(real) + without_self(fake) - 2 * kernel(real, fake).mean()
    # END SOLUTION


# %% uid="kid-exercise-check" tags=["check"]
lab.check("kid")
kid = lab.use("kid")

# %% uid="kid-use"
from labkit.metrics import kernel_distance

mine, theirs = float(kid(real_f.double(), other_f.double())), float(kernel_distance(real=real_f, fake=other_f))
lab.verdict(t("l02.kid_same", mine=mine, theirs=theirs), abs(mine - theirs) < 1e-3 * abs(theirs) + 1e-3)
for k, n in enumerate(counts):
    halves = [draw(pool.double(), 2 * n, 5000 + r).chunk(2) for r in rounds]
    found = [float(kid(*both)) for both in halves]
    print(t("l02.kid_floor", n=n, kid=np.mean(found), spread=np.std(found), fd=same_law[:, k].mean()))

# %% [markdown] lang="en" uid="kid-reading" pair="3057758d"
# **Reading.** All lines are renders against renders. FD is a floor that shrinks; KID lies about 0 from the start, and what shrinks is its spread. No floor, then, but a spread all the same, and a small set can still see nothing. The figure asks of three metrics how many standard deviations of *renders against renders* a missing style moves them.

# %% [markdown] lang="ja" uid="kid-reading" pair="1ff58d17"
# **結果の読み方。** どの行もレンダリング画像どうしの値です。FDはノイズフロアそのもので、枚数とともに小さくなります。KIDは最初から0の近くにあり、小さくなるのはばらつきです。つまり、ノイズフロアはなくてもばらつきはあり、枚数が少なければ何も検出できないことがあります。次の図は、画風が1つ欠けたとき、3つの指標がそれぞれ*レンダリング画像どうし*の標準偏差の何倍動くかを示します。

# %% uid="few-run"


def deviations(metric, arm, ns):
    """en: Recorded: how far `arm` lies from renders against renders, in standard deviations of one round of these.
    ja: 記録済みの値: armの測定値が、レンダリング画像どうしの値から、1ラウンドの標準偏差の何倍離れているか。
    """
    mean = {name: [lab.recorded.values(f"{metric}@{n}", name).mean() for n in ns] for name in (arm, "same")}
    deviation = [lab.recorded.values(f"{metric}.sd@{n}", "same").mean() for n in ns]
    return (np.array(mean[arm]) - np.array(mean["same"])) / np.array(deviation)


ns = [32, 64, 128]
curve_with_interval(
    ns,
    {name: deviations(key, "no_mode", ns) for name, key in (("FD", "fd"), ("KID", "kid"), ("CMMD", "cmmd"))},
    xlabel=t("l02.pictures_each"),
    ylabel=t("l02.alarm"),
    title=t("l02.few_title"),
    reference={t("l02.two_sd"): 2.0},
    log_x=True,
)

# %% [markdown] lang="en" uid="few-reading" pair="97435019"
# **Reading.** All three see a missing style from some number of pictures on; where a line crosses 2 is about the number that you need. A metric without bias is not one that sees more. What decides is again the change in units of the spread, and this
# ratio depends on the change: the next section has one that KID sees several times as clearly as FD.

# %% [markdown] lang="ja" uid="few-reading" pair="16ed3894"
# **図の読み方。** どの指標も、ある枚数からは画風の欠落に反応します。線が2を超えるところが、必要な枚数の目安です。バイアスがない指標ほどよく見える、というわけではありません。ここでも決め手は、ばらつきを単位とした変化の大きさです。この比は
# 変化の種類によって変わります。次の節には、KIDの方がFDより数倍はっきり反応する変化が出てきます。

# %% [markdown] lang="en" uid="damage" pair="9f2907dd"
# ## 5. Damage that nobody sees
#
# Parmar, Zhang and Zhu ([arXiv 2104.11222](https://arxiv.org/abs/2104.11222)) found that the way in which pictures are *stored and reduced* moves FID by more than many a new model. Below the same portraits: untouched, saved as JPEG, converted to 8 bits by cutting off instead of
# rounding, and reduced from 192 pixels with and without antialiasing (AA: averaging over the pixels that are lost). Look for the differences before you run the cell with the bars.

# %% [markdown] lang="ja" uid="damage" pair="0ffe300a"
# ## 5. 目に見えない劣化
#
# Parmar、Zhang、Zhuの論文([arXiv 2104.11222](https://arxiv.org/abs/2104.11222))は、画像の*保存と縮小の方法*だけで、新しいモデルの改良分よりFIDが大きく動くことを示しました。次の図は、同じポートレートに、JPEG保存、8ビットへの変換での切り捨て、192画素からの
# 縮小(アンチエイリアスあり・なし)を施したものです。アンチエイリアス(AA)は、失われる画素を平均に含める処理です。棒グラフのセルを実行する前に、違いを探してください。

# %% uid="damage-run"
from labkit.metrics import ImagePipeline
from labkit.portraits import render_tensor
from labkit.studies.l02 import jpeg, truncated

large = render_tensor(specs[size : size + 6], 192)
damaged = {
    t("l02.untouched"): others[:6],
    t("l02.truncated"): truncated(others[:6]),
    "JPEG 90": jpeg(others[:6], 90),
    "JPEG 75": jpeg(others[:6], 75),
    t("l02.antialias"): ImagePipeline("smooth", 64, "bilinear-antialias")(large),
    t("l02.no_antialias"): ImagePipeline("rough", 64, "bilinear")(large),
}
strips({name: list(pictures) for name, pictures in damaged.items()}, size=1.1)

# %% uid="damage-bars"
arms = dict(zip(damaged, ("same", "truncated", "jpeg90", "jpeg75", "antialiased", "aliased"), strict=True))
jpeg_f, half = features(jpeg(others, 75)), size // 2


def by_halves(metric, real, fake):
    """en: A metric of each half of the reals against as many fakes drawn at random, averaged: two rounds.
    ja: 本物の前半と後半を、それぞれ無作為に選んだ同数の生成画像と比べ、平均します(2ラウンド)。
    """
    return (metric(real[:half], draw(fake, half, 801)) + metric(real[half:], draw(fake, half, 802))) / 2


base, squeezed = by_halves(fd, real_f, other_f), by_halves(fd, real_f, jpeg_f)
recorded_means(
    means(lab.recorded, "fd@128", arms | {t("l02.generated"): "model"}),
    yours={t("l02.untouched"): base, "JPEG 75": squeezed} if half == 128 else None,
    xlabel=t("l02.frechet_at", n=128),
    title=t("l02.damage_title"),
    value_format="{:.0f}",
)

# %% uid="damage-claims"


def two_rounds(metric, value):
    """en: A mean over two rounds, with the interval that follows from the recorded deviation of one round.
    ja: 2ラウンドの平均に、記録済みの1ラウンドの標準偏差から求めた区間を添えます。
    """
    margin = 1.96 * recorded_levels("02", [f"{metric}.sd@128"], "same")[0][0] / 2**0.5
    return {"value": value, "interval": (value - margin, value + margin), "seeds": [lab.seed]}


lab.claim("jpeg", measured=t("l02.m_jpeg"), **two_rounds("fd", squeezed - base))
lab.claim("aliasing", reason=t("l02.only_recorded"))

# %% [markdown] lang="en" uid="damage-reading" pair="296da12d"
# **What you see.** JPEG 75 moves the distance by about 60, although nobody would return such a picture. The step from renders to PortraitSD is smaller, $16$ $[-5, 36]$ at 128 pictures, and does not even show in ten seeds: who stores reals as PNG and fakes as JPEG measures the file format. Missing antialiasing adds about a quarter of what JPEG does here, and cutting off instead of rounding nothing. **Why.** The network behind the features was trained on
# clean pictures and reacts to blocks of 8 × 8 pixels, which JPEG makes; our eyes forgive them. The paper found a large effect of aliasing; its photographs are full of fine detail, our drawings are flat areas with few edges. **What would change it.** Damage on *both* sides: it is the difference of treatment that is measured. So reals and fakes go through one pipeline, and the pipeline is named beside the number.

# %% [markdown] lang="ja" uid="damage-reading" pair="c7c32810"
# **図から読み取れること。** JPEG 75で保存すると、距離がおよそ60動きます。見た目で返品する人はいないでしょう。レンダリング画像からPortraitSDへの差はそれより小さく(128枚で $16$ $[-5, 36]$)、10シードでは差があるとさえいえません。本物をPNG、生成画像をJPEGで保存していたら、測っているのはファイル形式です。アンチエイリアスなしの影響は、ここでは JPEG の4分の1ほどです。切り捨ての影響はありません。**理由。** 特徴量の
# ネットワークはきれいな画像で学習したので、JPEGが作る8×8画素のブロックに反応します。人間の目は気にしません。論文ではエイリアシングの影響が大きかったのですが、対象は細部の多い写真でした。この教材のイラストは、平らな面が多く輪郭が少ない画像です。**何を変えればよいか。** *両方の*画像に同じ処理を施せば、差は消えます。測られているのは処理の違いだからです。本物と生成画像は同じ前処理に通し、
# どんな前処理かを数値に添えます。

# %% [markdown] lang="en" uid="manifold" pair="71353c61"
# ## 6. Fidelity and diversity apart
#
# One distance cannot tell *bad* pictures from *missing* ones. The next metrics can, and lesson 03 is about trading one for the other. Draw a ball around each real picture that reaches to its $k$-th nearest other real; all balls together stand for "where real pictures are".
#
# * **Precision**: share of fakes in at least one real ball. Fidelity.
# * **Recall**: share of reals in at least one *fake* ball (balls around fakes). Diversity.
# * **Coverage**: share of real balls that hold at least one fake. Diversity again, but from balls that do not depend on the fakes.
# * **Density**: how many real balls hold a fake, scaled so that equal laws give 1 on average.
#
# Write `coverage` for features `[n, d]` and `[m, d]`; a point on the sphere is inside. By hand: reals at 0, 1, 2, 10 on a line, fakes at 0.5 and 0.6, $k = 1$: the balls of 0 and 1 have radius 1 and hold a fake, that of 2 reaches down to 1 and does not, and the
# ball of 10 has radius 8. It reaches to 2 and holds none. The answer is 0.5. Mistakes to avoid: a real is its own nearest neighbour at distance 0; and precision, which is a share of fakes.

# %% [markdown] lang="ja" uid="manifold" pair="fdca30c9"
# ## 6. 忠実度と多様性を分ける
#
# 距離が1つだけでは、画像が*悪い*のか、あるはずの画像が*足りない*のかを区別できません。次の指標なら区別できます。レッスン03では、この2つのトレードオフを扱います。本物の画像1枚ごとに、$k$ 番目に近い別の本物まで届く球を描きます。すべての球を合わせたものを「本物のある場所」と
# みなします。
#
# * **適合率**: いずれかの本物の球に入る生成画像の割合。忠実度を表します。
# * **再現率**: いずれかの*生成画像の*球に入る本物の割合。多様性を表します。
# * **被覆率**: 生成画像を1枚以上含む、本物の球の割合。これも多様性ですが、球が生成画像に左右されません。
# * **密度**: 生成画像がいくつの本物の球に入るか。同じ分布なら平均1になるように割ります。
#
# 特徴量 `[n, d]` と `[m, d]` に対する `coverage` を書いてください。球面上の点は内側とみなします。手計算の例: 直線上の本物が0、1、2、10、生成側が0.5と0.6、$k = 1$ のとき、0と1の球は半径1で生成側の点を含みます。2の球は1までしか届かず、含みません。
# 10の球は半径8で、2まで届きますが、含みません。答えは0.5です。注意点は2つあります。本物自身は距離0の最近傍なので除くこと。そして、生成画像のうちの割合である適合率と取り違えないことです。


# %% uid="coverage-exercise" tags=["exercise"] exercise="coverage"
def coverage(real, fake, k):
    """en: Share of real balls that hold at least one fake.
    ja: 生成画像を1つ以上含む、本物の球の割合です。
    """
    # BEGIN SOLUTION
    between_reals = torch.cdist(real, real).fill_diagonal_(float("inf"))  # [n, n]
    radius = between_reals.kthvalue(k, dim=1).values  # [n]
    nearest_fake = torch.cdist(real, fake).min(dim=1).values  # [n]
    return (nearest_fake <= radius).double().mean()
    # END SOLUTION


# %% uid="coverage-check" tags=["check"]
lab.check("coverage")
coverage = lab.use("coverage")

# %% [markdown] lang="en" uid="modes" pair="1e7ed6f9"
# Now spoil the fakes in two ways. *Remove a mode*: the portraits in the style toon-head, a third of all. *Add junk*: half of the fakes become the mean of two portraits, pixel by pixel, ghosts with four eyes. And a third set is nothing but *noise*. Which number falls in which case?

# %% [markdown] lang="ja" uid="modes" pair="e58bd108"
# 生成画像の側を2通りの方法でわざと劣化させます。*モードの欠落*では、全体の3分の1を占める画風toon-headを取り除きます。*不自然な画像の混入*では、半分を、2枚のポートレートを画素ごとに平均した、目が4つある幽霊のような画像に置き換えます。さらに、*ノイズだけ*の集合も
# 用意します。それぞれどの数値が下がるでしょうか。

# %% uid="modes-predict" tags=["quiz"]
lab.predict("lost_mode")
lab.predict("noise")

# %% uid="modes-run"
from labkit.studies.l02 import blends, noise_pictures

ghosts, noise = blends(others, lab.generator(900)), noise_pictures(size, lab.generator(10))
fakes = {
    "same": other_f,
    "no_mode": other_f[~toon],
    "junk": torch.where(torch.arange(size)[:, None] % 2 > 0, features(ghosts), other_f),
    "noise": features(noise),
}
names = [t("l02.precision"), t("l02.recall"), t("l02.coverage")]
metrics = ["precision5@128", "recall5@128", "coverage5@128"]
titles = {
    "same": t("l02.other_renders"), "no_mode": t("l02.no_mode"), "junk": t("l02.half_junk"), "noise": t("l02.noise")
}  # fmt: skip
strips({t("l02.half_junk"): list(ghosts[:6]), t("l02.noise"): list(noise[:6])}, size=1.1)

# %% uid="modes-bars"


def balls(real, fake):
    """en: Precision, recall, coverage at k = 5.
    ja: k = 5での適合率、再現率、被覆率です。
    """
    result = manifold_metrics(real=real, fake=fake, k=5)
    return np.array([result.precision, result.recall, result.coverage])


mine = {kind: by_halves(balls, real_f, fake) for kind, fake in fakes.items()}
bar_with_interval(
    names,
    {titles[kind]: recorded_levels("02", metrics, kind) for kind in titles},
    xlabel=t("l02.score"),
    title=t("l02.modes_title"),
    xlim=(0, 1.15),
)

# %% uid="modes-claims"
fall = {kind: values - mine["same"] for kind, values in mine.items()}
lab.reveal("lost_mode", "recall" if fall["no_mode"][1] < fall["no_mode"][0] else "precision")
lab.claim("recall_sees_lost_mode", measured=t("l02.m_lost"), **two_rounds("recall5", float(fall["no_mode"][1])))
lab.claim("precision_sees_junk", measured=t("l02.m_junk"), **two_rounds("precision5", float(fall["junk"][0])))
difference = float(fall["no_mode"][1] - fall["no_mode"][2])
lab.claim("coverage_beats_recall", measured=t("l02.m_falls"), **two_rounds("recall5", difference))

# %% [markdown] lang="en" uid="modes-reading" pair="e58f3702"
# **What you see.** Without the mode recall falls and precision does not, and coverage falls further than recall. So far the textbook. Then the two surprises: half of the fakes are four-eyed ghosts, and precision hardly notices; *all* fakes are noise, and precision at $k = 5$ is nearly perfect. **Why.** The balls
# live in the space of a network. A network that has never seen a ghost puts it where it has a place for everything that is between two portraits: between them. There the balls overlap. Precision answers "is it near a real picture *in this space*?", not "is it a good picture?". But is that a law
# of networks, or of these 128 pictures? Whoever measures at one number of pictures will print the law.

# %% [markdown] lang="ja" uid="modes-reading" pair="4d2aea3c"
# **図から読み取れること。** モードが欠けると再現率が下がり、適合率は下がりません。被覆率は再現率よりさらに大きく下がります。ここまでは教科書どおりです。意外なことが2つあります。半分が目の4つある幽霊になっても、適合率はほとんど変わりません。*すべて*がノイズでも、$k = 5$ の適合率は
# ほぼ満点です。**理由。** 球はネットワークの特徴空間に描かれています。幽霊を見たことのないネットワークは、2枚のポートレートの中間のものを、そのまま2枚の間に置きます。そこでは球が重なり合っています。適合率が答えるのは「*この空間で*本物に近いか」であり、「良い画像か」ではありません。
# では、これはネットワークの性質でしょうか。それとも、この128枚の性質でしょうか。1通りの枚数でしか測らなければ、前者を法則として書いてしまうでしょう。

# %% [markdown] lang="en" uid="curves" pair="4d061931"
# ### N-curves and k-curves
#
# Every ball depends on two choices: how many reals there are, and $k$. More reals make smaller balls, a larger $k$ makes larger ones. One measurement is one point in a plane. Draw the whole curve before you believe a sentence about precision. Choose $k$ and see what you would have concluded.

# %% [markdown] lang="ja" uid="curves" pair="a41f8368"
# ### 枚数の曲線とkの曲線
#
# 球の大きさは、本物の枚数と $k$ の2つで決まります。本物が増えると球は小さくなり、$k$ を大きくすると球は大きくなります。1回の測定は、平面上の1点にすぎません。適合率について何かを主張する前に、曲線全体を描きましょう。$k$ を選び、自分ならどう結論したかを考えてください。

# %% uid="curves-widget" tags=["widget"]
from labkit.figures.widgets import choice, explore

every = list(study.sizes["ns"])


def noise_curve(k):
    """en: Recorded precision of noise and of other renders over the number of reals, for one k.
    ja: 記録済みの値: 本物の枚数に対する、ノイズと別のレンダリング画像の適合率(kごと)。
    """
    metrics = [f"precision{k}@{n}" for n in every]
    curves = {titles[kind]: recorded_levels("02", metrics, kind) for kind in ("same", "noise")}
    if k == 3:
        curves[t("l02.noise_colours")] = recorded_levels("02", [f"colours.precision3@{n}" for n in every], "noise")
    title = t("l02.curves_title", k=k)
    return curve_with_interval(
        every, curves, xlabel=t("l02.reals"), ylabel=t("l02.precision"), title=title, log_x=True, ylim=(0, 1.05)
    )


explore(noise_curve, {"k": choice("k", {"1": 1, "3": 3, "5": 5, "10": 10}, 3)})

# %% uid="curves-claims"
at_three = manifold_metrics(real=real_f, fake=fakes["noise"], k=3).precision
lab.reveal("noise", "high" if mine["noise"][0] > 0.5 else "low")
lab.claim("noise_is_imprecise", measured=t("l02.m_noise"), **two_rounds("precision3", at_three))
lab.claim("noise_needs_reals", reason=t("l02.only_recorded"))

# %% [markdown] lang="en" uid="curves-reading" pair="98f8ff9f"
# **What you see.** The precision of noise is no number but a curve: near 1 with some hundred reals, and falling. With 1,600 reals and $k = 3$ about half of the noise pictures lie outside of every ball, while other renders stay where they were. In mean colours, a space in which nothing was trained, noise is outside from 256 reals on. **Why.** Noise lands at one place inside the cloud; as reals are added, the balls there shrink and uncover it. **What it means for the claim.** "Precision is fooled by noise" is true at 256 reals, $.945$ $[.922, .967]$. At 1,600 the answer depends on $k$ and on the draw: $.474$ $[.305, .642]$ at $k = 3$, .98 at $k = 10$. The paper works with 50,000. Report $N$ and $k$ with the number, and the
# reading of *real against real* beside it.
#
# ### One outlier is enough
#
# A toy on a line shows the other weakness. Reals: 999 points between 0 and 1, and one at 2. Fakes: 999 points between 2 and 3, and one at 1. The sets have nothing in common.

# %% [markdown] lang="ja" uid="curves-reading" pair="4ae76b33"
# **図から読み取れること。** ノイズの適合率は1つの数値ではなく曲線です。本物が数百枚のうちは1に近く、そこから下がっていきます。本物が1600枚で $k = 3$ なら、ノイズ画像の約半分がどの球にも入りません。別のレンダリング画像の適合率は変わりません。何も学習していない平均色の空間では、本物が256枚あれば、ノイズは
# 球の外です。**理由。** ノイズは本物の集まりの内側のほぼ1か所に写ります。本物が増えると、そこの球が小さくなり、ノイズがはみ出します。**主張についての結論。** 「適合率はノイズにだまされる」は、本物が256枚なら正しいといえます($.945$ $[.922, .967]$)。1600枚では、答えが $k$ と標本によって変わります。$k = 3$ では $.474$ $[.305, .642]$、$k = 10$ では0.98です。論文では5万枚を使っています。数値には $N$ と $k$ を添え、
# *本物どうし*の値も並べて示しましょう。
#
# ### 外れ値が1つあるだけで
#
# 直線上の簡単な例で、もう1つの弱点を示します。本物は0から1の間の999点と、2にある1点。生成側は2から3の間の999点と、1にある1点です。2つの集合に共通部分はありません。

# %% uid="outlier-run"
from labkit.studies.l02 import disjoint_sets

toy = manifold_metrics(**dict(zip(("real", "fake"), disjoint_sets(1000, lab.generator(5)), strict=True)), k=5)
bar_with_interval(names, [toy.precision, toy.recall, toy.coverage], xlabel=t("l02.score"), title=t("l02.toy"))

# %% uid="outlier-claims"
lab.claim("outlier_fools_both", measured=t("l02.m_outlier"), value=min(toy.precision, toy.recall), seeds=[lab.seed])
lab.claim("coverage_resists", measured=t("l02.m_resists"), value=toy.coverage, seeds=[lab.seed])

# %% [markdown] lang="en" uid="outlier-reading" pair="012d6d77"
# **Reading.** Precision and recall are perfect, for sets that do not even touch. The outlier's fifth neighbour is far away, so its ball is large enough to hold the whole other set. Coverage counts balls, and one ball in a thousand is one in a thousand. That is why Naeem and others
# ([arXiv 2002.09797](https://arxiv.org/abs/2002.09797)) proposed it.
#
# ## 7. CMMD is almost a difference of means
#
# CMMD ([arXiv 2401.09603](https://arxiv.org/abs/2401.09603)) compares CLIP embeddings with a Gaussian kernel $e^{-r^2/2\sigma^2}$ of width $\sigma = 10$ and makes no assumption about the distribution. But embeddings have length 1, so no distance $r$ exceeds 2, and on that range $e^{-r^2/200}$ is practically the
# straight line $1 - r^2/200$. Put the line into the formula of the MMD (KID's formula with this kernel in place of its own): the squared lengths cancel and what is left is $10\,|\bar x-\bar y|^2$, a distance of means. If that is so, a change that keeps the mean must go unnoticed. Halve every embedding's distance to the mean of its set, as a model would that makes
# everything alike.

# %% [markdown] lang="ja" uid="outlier-reading" pair="c8f4e956"
# **図の読み方。** 触れ合ってさえいない集合なのに、適合率も再現率も満点です。外れ値の5番目の近傍は遠いので、その球は相手の集合全体を含むほど大きくなります。被覆率は球の数を数えるので、1000個のうちの1個は1000分の1でしかありません。Naeemらが被覆率を提案した理由は
# ここにあります([arXiv 2002.09797](https://arxiv.org/abs/2002.09797))。
#
# ## 7. CMMDはほぼ平均の差
#
# CMMD([arXiv 2401.09603](https://arxiv.org/abs/2401.09603))は、CLIPの埋め込みを幅 $\sigma = 10$ のガウスカーネル $e^{-r^2/2\sigma^2}$ で比べます。分布には何も仮定しません。しかし、埋め込みの長さは1なので、距離 $r$ は2を超えません。この範囲で $e^{-r^2/200}$ は、ほぼ直線
# $1 - r^2/200$ です。この直線をMMDの式(KIDの式でカーネルだけを替えたもの)に代入すると、長さの2乗が打ち消し合い、平均の差 $10\,|\bar x-\bar y|^2$ だけが残ります。もしそうなら、平均を変えない変化には反応しないはずです。似たものばかり生成するモデルのように、各埋め込みから集合の平均までの距離を半分にして
# 確かめましょう。

# %% uid="cmmd-run"
from labkit.metrics import cmmd

real_e, other_e, made_e = embed(reals), embed(others), embed(generated)
for name, fake in {t("l02.other_renders"): other_e, t("l02.generated"): made_e}.items():
    result = cmmd(real=real_e, fake=fake)
    print(t("l02.cmmd_parts", name=name, value=result.value, mean_part=result.mean_part, bias=result.bias))
kernels = {
    r"CMMD, $\sigma = 10$": lambda real, fake: float(cmmd(real=real, fake=fake, normalise=False)),
    t("l02.median_kernel"): lambda real, fake: float(cmmd(real=real, fake=fake, normalise=False, sigma="median")),
    t("l02.frechet_clip"): fd,
}
alarm = {}
for name, metric in kernels.items():
    quiet = np.array([metric(draw(real_e, half, r), draw(other_e, half, r + 500)) for r in rounds])
    spoilt = np.array([metric(draw(real_e, half, r), draw(more_alike(other_e), half, r + 500)) for r in rounds])
    alarm[name] = (spoilt - quiet) / quiet.std()
bar_with_interval(
    list(alarm),
    np.array(list(alarm.values())).T,
    xlabel=t("l02.alarm"),
    title=t("l02.cmmd_title"),
    value_format="{:.1f}",
)

# %% uid="cmmd-claim"
wide = kernels[r"CMMD, $\sigma = 10$"]
change = by_halves(wide, real_e, more_alike(other_e)) - by_halves(wide, real_e, other_e)
lab.claim("cmmd_sees_variety", measured=t("l02.m_variety"), **two_rounds("cmmd", change))
lab.claim("median_kernel_sees", reason=t("l02.only_recorded"))

# %% [markdown] lang="en" uid="cmmd-reading" pair="0f09ae4c"
# **What you see.** The printed CMMD and its mean part agree in the first digits. Half of the variety is gone, and the reading does not rise; it even *falls*, for the reason of section 2: less variety, less bias. A kernel as wide as the typical distance sees the loss (on record it rises by $4.0$ $[3.8, 4.3]$ times what renders read against renders), and so does the Fréchet distance on the same embeddings.
# **What follows.** The claim "no assumption about the distribution" is right about the formula and wrong about the published setting. A metric is its formula *and* its constants.

# %% [markdown] lang="ja" uid="cmmd-reading" pair="6ae5e354"
# **図から読み取れること。** 表示されたCMMDとその平均の差の部分は、最初の数桁まで一致します。多様性が半分になったのに、値は上がりません。むしろ*下がります*。第2節と同じ理由で、多様性が小さいほどバイアスも小さいからです。埋め込みどうしの距離の中央値を幅とするカーネルなら、この変化を検出できます。記録では、レンダリング画像どうしの値の $4.0$ $[3.8, 4.3]$ 倍に当たる分が上乗せされ、およそ5倍になります。同じ埋め込みのフレシェ距離でも検出できます。
# **結論。** 「分布に何も仮定しない」という主張は、式については正しいのですが、公開されている設定については当てはまりません。指標とは、式*と*定数の組です。

# %% [markdown] lang="en" uid="overview" pair="004958ee"
# ## 8. Which metric notices which change
#
# All changes against all metrics, recorded at 128 pictures. Each cell is the change in standard deviations of renders against renders, with the sign that means "worse" turned to plus; coloured where it exceeds 2.

# %% [markdown] lang="ja" uid="overview" pair="17f79265"
# ## 8. どの指標がどの変化を検出できるか
#
# すべての変化とすべての指標の組み合わせを、128枚で記録しました。各マスは、レンダリング画像どうしの標準偏差を単位とした変化で、「悪化」の向きを正にそろえています。2を超えるマスに色を付けました。

# %% uid="overview-table" tags=["hide-input"]
from matplotlib.patches import Rectangle

heads = {
    "FD": ("fd", 1), "KID": ("kid", 1), "CMMD": ("cmmd", 1), names[0]: ("precision5", -1), names[1]: ("recall5", -1),
    t("l02.density"): ("density5", -1), names[2]: ("coverage5", -1),
}  # fmt: skip
lines = {
    "JPEG 75": "jpeg75", t("l02.no_mode"): "no_mode", t("l02.half_junk"): "junk", t("l02.alike"): "alike",
    t("l02.noise"): "noise", t("l02.generated"): "model",
}  # fmt: skip
cells = np.array([[s * deviations(key, arm, [128])[0] for key, s in heads.values()] for arm in lines.values()])
with figure_style():
    figure = new_figure(8.2, 0.9 + 0.36 * len(lines), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-2.6, len(heads)), ylim=(len(lines), -1))
    axes.axis("off")
    place = {"ha": "center", "va": "center", "fontsize": 9}
    for j, head in enumerate(heads):
        axes.text(j + 0.5, -0.5, head, **place)
    for i, name in enumerate(lines):
        axes.text(-2.6, i + 0.5, name, va="center", fontsize=9)
        for j, number in enumerate(cells[i]):
            if number > 2:
                axes.add_patch(Rectangle((j + 0.06, i + 0.08), 0.88, 0.84, color="#F6D5C3", lw=0))
            axes.text(j + 0.5, i + 0.5, f"{number:z.1f}".replace("-", "\N{MINUS SIGN}"), **place)
    axes.set_title(t("l02.overview_title"))
marked = {
    name: ", ".join(head for head, number in zip(heads, row, strict=True) if number > 2) or "-"
    for name, row in zip(lines, cells, strict=True)
}
figure.alt = t("l02.overview_title") + ". " + "; ".join(f"{name}: {found}" for name, found in marked.items())
figure

# %% [markdown] lang="en" uid="open" pair="4451e617"
# **What you see.** No row is coloured throughout, and no column is. FD needs more pictures for JPEG than KID does; recall notices more than its name promises; precision misses ghosts and noise; CMMD misses variety. PortraitSD's row is empty: with complete captions, 128 of its pictures pass for renders in every column. Two things no column can notice. *Copies* of the training pictures have FD 0 and a perfect score everywhere. And a model that paints beautiful portraits for
# *other people's prompts* is perfect too, for set metrics never see a prompt. Both need tests of their own: the distance to the nearest training picture, and a reader of attributes.
#
# **Open task (difficulty 5/5).** Build the alarm that your factory would want: one function of two tables of features, large when something is wrong, at only 64 pictures a side. It is judged by its *weakest* result: the smallest share of detections over the five damages, where the alarm level is set so that 5 % of the sets
# of good renders sound it. FD alone stands in the cell. Combine metrics, divide each by what it reads on good renders, choose $k$, look at features in another way: there is no single right answer. Above .9 is excellent.

# %% [markdown] lang="ja" uid="open" pair="bb41c7e7"
# **図から読み取れること。** すべてのマスに色が付いた行も列もありません。JPEGに対して、FDはKIDより多くの枚数を必要とします。再現率は、名前から想像する以上に多くの変化に反応します。適合率は幽霊とノイズを、CMMDは多様性の低下を見逃します。PortraitSDの行には色がありません。すべての属性を述べたキャプションなら、128枚はどの列でもレンダリング画像と区別できません。どの列にも検出できないものが2つあります。学習画像の*丸写し*は、FDが0で、ほかの指標でも満点です。*別の人の
# プロンプト*に対して美しい画像を描くモデルも満点です。集合の指標はプロンプトを見ないからです。それぞれ専用の検査が必要です。前者には最も近い学習画像までの距離、後者には属性を読み取る評価役を使います。
#
# **自由課題(難易度5/5)。** 工場で使いたい警報を作ってください。2つの特徴量の表から、異常があるほど大きな値を返す関数です。使えるのは片側64枚だけです。評価は*最も悪い*結果で行います。良品のレンダリング画像の集合のうち5%で鳴るように警報の水準を決め、5種類の劣化での検出率のうち最小のものを得点とします。
# セルにはFDだけの例があります。指標を組み合わせる、良品での値で割ってそろえる、$k$ を選ぶ、特徴量を別の角度から見るなど、正解は1つではありません。0.9を超えれば優秀です。

# %% uid="open-task" tags=["open"]
from labkit.metrics import kernel_distance, vendi_score


def my_alarm(real, fake):
    """en: Large when the fakes are not like the reals; features [n, 128] each.
    ja: 生成側が本物と異なるほど大きな値を返します。どちらも特徴量 [n, 128] です。
    """
    return fd(real, fake)


damages = {
    "JPEG 75": jpeg_f,
    t("l02.no_mode"): fakes["no_mode"],
    t("l02.half_junk"): fakes["junk"],
    t("l02.alike"): more_alike(other_f),
    t("l02.noise"): fakes["noise"],
}


def detection(alarm, n, tries):
    """en: Share of detections per damage, at 5 % false alarms on good renders.
    ja: 良品での誤検出を5%としたときの、劣化ごとの検出率です。
    """
    good = [alarm(*draw(pool, 2 * n, 2000 + r).chunk(2)) for r in range(2 * tries)]
    level = np.quantile(good, 0.95)
    return {
        name: float(np.mean([alarm(draw(real_f, n, 3000 + r), draw(fake, n, 4000 + r)) > level for r in range(tries)]))
        for name, fake in damages.items()
    }


scored = detection(my_alarm, min(64, half // 2), lab.sizes.tries)
bar_with_interval(
    list(scored),
    list(scored.values()),
    xlabel=t("l02.detected"),
    title=t("l02.open_title", score=min(scored.values())),
    reference={t("l02.false_alarms"): 0.05},
    xlim=(0, 1.12),
)

# %% [markdown] lang="en" uid="open-reading" pair="00b15f1c"
# **Reading.** One damage is almost invisible to FD at this number of pictures, another is seen now and then, and the score is that of the weakest. A hint for a start: look in the table of section 8 for a column that sees what FD misses, and remember that two numbers can only be added after each has been divided by its own spread on good sets. `vendi_score(features)` measures the diversity of one side alone.
# What you tune on these five damages will look better than it is: try a sixth of your own afterwards.

# %% [markdown] lang="ja" uid="open-reading" pair="a5dc5142"
# **図の読み方。** この枚数では、FDにほとんど見えない劣化が1つ、たまにしか見えない劣化が1つあり、得点は最も悪いものになります。手がかりを1つ挙げます。第8節の表で、FDが見逃すものを検出できる列を探してください。2つの指標を足し合わせるなら、それぞれを、良品の集合でのばらつきで割ってそろえる必要があります。`vendi_score(features)` は、片側だけの多様性を測ります。
# この5種類に合わせて調整した警報は、実力より良く見えます。調整が終わったら、6種類目の劣化を自分で考えて試しましょう。

# %% [markdown] lang="en" uid="wins" pair="4887dd55"
# ## 9. Win rates: the prompt is the unit
#
# Now the article's second half, the judgement of the field. Which is more faithful: guidance 3 or guidance 2 (lesson 01)? Same prompts, same seeds; a picture's score is the share of its attributes that the AttributeReader reads as asked. A comparison is a win (1), a tie (0.5) or a loss (0).
#
# Several pictures of one prompt resemble each other. If a prompt asks for sunglasses and the model draws them well, it will win on all copies of that prompt. Eight copies are then not eight observations but hardly more than one. So the **prompt** is the unit: average inside each prompt, then ask how the mean would change with *other prompts*. The
# bootstrap does that without a formula: draw as many prompts as there are, with replacement, average, repeat 2,000 times, and take the middle 95 % of the averages.
#
# Write `cluster_interval`. A property to try: if every copy of a prompt has the same outcome, the interval must not depend on the number of copies. Common mistakes: drawing pictures instead of prompts, and taking quantiles of the prompts instead of those of the means.

# %% [markdown] lang="ja" uid="wins" pair="c9ffcda5"
# ## 9. 勝率: 単位はプロンプト
#
# 助言の後半、現場の評価に移ります。誘導スケール3と2(レッスン01)では、どちらの画像が忠実でしょうか。プロンプトとシードは共通で、画像の得点は、AttributeReaderが指定どおりと読み取った属性の割合です。比較の結果は、勝ち(1)、引き分け(0.5)、負け(0)のいずれかです。
#
# 同じプロンプトの画像は互いに似ています。サングラスを求めるプロンプトで、モデルがサングラスを上手に描けるなら、そのプロンプトの画像はどれも勝ちます。8枚あっても8件の観測ではなく、1件よりわずかに多いだけです。そこで、**プロンプト**を単位とします。まずプロンプトごとに平均し、次に*別のプロンプト*なら
# 平均がどれだけ変わるかを調べます。ブートストラップなら式は要りません。元と同じ数のプロンプトを復元抽出して平均する操作を2000回繰り返し、平均の中央95%を取ります。
#
# `cluster_interval` を書いてください。確認用の性質: 同じプロンプトの結果がすべて等しければ、区間は枚数によらないはずです。よくある誤りは、プロンプトではなく画像を抽出することと、平均の分位点ではなくプロンプトの分位点を取ることです。


# %% uid="cluster-exercise" tags=["exercise"] exercise="cluster_interval"
def cluster_interval(values, prompts, generator, resamples=2000):
    """en: 95 % bootstrap interval (low, high) of a mean over prompts.

    values: outcomes [n], float64; prompts: the prompt of each, whole numbers [n] from 0 to P - 1.
    ja: プロンプト単位の平均の95%ブートストラップ区間 (low, high) です。

    values: 比較の結果 [n](float64)、prompts: それぞれのプロンプトの番号 [n](0からP - 1の整数)。
    """
    # BEGIN SOLUTION
    count = torch.bincount(prompts)  # [P]
    per_prompt = torch.bincount(prompts, weights=values) / count  # [P]
    chosen = torch.randint(len(count), (resamples, len(count)), generator=generator)  # [resamples, P]
    means = per_prompt[chosen].mean(dim=1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))
    # END SOLUTION


# %% uid="cluster-check" tags=["check"]
lab.check("cluster_interval")
cluster_interval = lab.use("cluster_interval")

# %% uid="wins-run" tags=["slow"]
from labkit.metrics import outcomes, sign_test
from labkit.studies.l02 import inflation, share_right

contest = sample_specs(lab.sizes.prompts, seed=lab.seed + 2, exclude=HELD_OUT_COMBINATIONS)
judged = [spec for spec in contest for _ in range(lab.sizes.copies)]
of_prompt = torch.arange(len(contest)).repeat_interleave(lab.sizes.copies)


def contest_scores(scale):
    """en: Share of attributes read as asked, one per picture.
    ja: 指定どおりに読み取れた属性の割合を、画像ごとに返します。
    """
    return share_right(painted(contest, lab.seed + 200, sizes, scale, lab.sizes.copies), judged)


strong, weak = lab.keep("wins", contest_scores, 3.0), lab.keep("wins", contest_scores, 2.0)
won = torch.as_tensor(outcomes(candidate=strong, baseline=weak))
table = won.reshape(-1, lab.sizes.copies).numpy()  # [prompts, copies]
intervals = {
    t("l02.by_picture"): cluster_interval(won, torch.arange(len(won)), lab.generator(20)),
    t("l02.by_prompt"): cluster_interval(won, of_prompt, lab.generator(20)),
}
low, high = np.array(list(intervals.values())).T
recorded_wins = recorded_levels("02", ["won"], "wins")
mean = np.clip(np.full(2, float(won.mean())), low, high)
bar_with_interval(
    [*intervals, t("l02.recorded_wins")],
    tuple(np.append(mine, theirs) for mine, theirs in zip((mean, low, high), recorded_wins, strict=True)),
    xlabel=t("l02.win_rate"),
    title=t("l02.wins_title", prompts=len(contest), copies=lab.sizes.copies),
    reference={t("l02.even"): 0.5},
    xlim=(0, 1),
)

# %% uid="wins-claim"
if table.std() > 0:
    resampled = [table[torch.randint(len(table), (len(table),), generator=lab.generator(30 + i))] for i in range(400)]
    ratios = spread([inflation(rows) for rows in resampled if rows.std() > 0])
    lab.claim("clusters_matter", measured=t("l02.m_clusters"), **ratios | {"value": inflation(table)})
else:
    lab.claim("clusters_matter", reason=t("l02.no_variation"), seeds=[lab.seed])

# %% [markdown] lang="en" uid="enough" pair="587e0907"
# **Reading.** Guidance 3 wins hardly more often than guidance 2, on record in .517 $[.508, .525]$ of the cases: with complete captions both paint nearly everything that was asked for. And the two intervals are nearly equally wide. Over 143 recorded seeds the standard error by prompt is $1.05$ $[1.02, 1.07]$ times the one by picture: counting pictures does make it too small, the claim is **reproduced**, but by a twentieth. In
# seven more seeds every picture tied, and neither error exists. Ten seeds could not tell the factor from 1. **Why.** Where both models are nearly always right, the rare failure is decided more by the seed than by the prompt, so copies of one prompt are nearly independent. **What would change it.** Prompts of different difficulty, for instance some with combinations that the model never saw. Then the ratio grows up to the root of the number of copies. Count prompts all the same: it costs nothing where copies are independent, and saves you where they are not, which you cannot know beforehand.
#
# How many prompts does a claim need? First judge an example: a colleague reports 60 wins in 100 prompts.

# %% [markdown] lang="ja" uid="enough" pair="10087b49"
# **図の読み方。** 誘導スケール3がスケール2に勝つ割合は、0.5をほとんど上回りません(記録では0.517 $[.508, .525]$)。すべての属性を述べたキャプションなら、どちらも指定をほぼ満たすからです。2つの区間の幅もほぼ同じです。記録した143のシードでは、プロンプト単位の標準誤差は画像単位の $1.05$ $[1.02, 1.07]$ 倍でした。画像を数えると標準誤差が小さくなりすぎるという主張は**再現できました**が、その差は5%ほどです。
# このほかに7つのシードでは全画像が引き分けとなり、どちらの標準誤差も定まりません。10のシードでは、比が1かどうかを決められませんでした。**理由。** どちらのモデルもほとんど間違えないとき、まれな失敗を決めるのは、プロンプトよりもシードです。だから、同じプロンプトの画像もほぼ独立です。**何を変えるとどうなるか。** 見たことのない組み合わせを含めるなど、難しさの異なるプロンプトを混ぜると、比は大きくなり、最大で枚数の平方根に達します。それでも単位はプロンプトとしましょう。独立なら何も失わず、独立でなければ誤りを防げます。どちらなのかは、前もっては分かりません。
#
# では、主張にはプロンプトがいくつ必要でしょうか。まず例を判断してください。同僚が「100プロンプトのうち60勝」と報告してきました。

# %% uid="enough-predict" tags=["quiz"]
lab.predict("sixty")

# %% [markdown] lang="en" uid="needed" pair="d5a52ded"
# How many would have been enough? Two errors are to be rare. *False alarm:* if the true rate is 0.5, the share of wins of $n$ prompts scatters with $0.5/\sqrt n$ about 0.5, and only one time in twenty may it lie farther off than $1.96$ of these (2.5 % on either side). *Miss:* if the true rate is $p$, it scatters with $\sqrt{p(1-p)}/\sqrt n$ about $p$, and only one time in five may it fall short of the
# boundary, which is $0.84$ of these below $p$. Both distances must fit between 0.5 and $p$:
#
# $$1.96\,\frac{0.5}{\sqrt n} + 0.84\,\frac{\sqrt{p(1-p)}}{\sqrt n} \le |p - 0.5|.$$
#
# Solve for the smallest whole $n$ and write `prompts_needed(rate, z_alarm, z_miss)`. By hand: a true rate of 0.6 needs $(0.98 + 0.41)^2/0.1^2$, that is 194 prompts. Common mistakes: leaving out the second term, and forgetting the square.

# %% [markdown] lang="ja" uid="needed" pair="facfff93"
# 何プロンプトあれば足りたのでしょうか。避けたい誤りは2つあります。*誤検出*: 真の勝率が0.5のとき、$n$ プロンプトでの勝率は0.5のまわりに $0.5/\sqrt n$ の幅でばらつきます。その $1.96$ 倍より離れるのは20回に1回(両側に2.5%ずつ)までとします。*見逃し*: 真の勝率が $p$ のときは、$p$ のまわりに $\sqrt{p(1-p)}/\sqrt n$ の幅でばらつきます。境界に届かないのは5回に1回までとします。
# そのためには、境界が $p$ からこの幅の $0.84$ 倍だけ下にあればよく、2つの距離が0.5と $p$ の間に収まらなければなりません。
#
# $$1.96\,\frac{0.5}{\sqrt n} + 0.84\,\frac{\sqrt{p(1-p)}}{\sqrt n} \le |p - 0.5|.$$
#
# これを満たす最小の整数 $n$ を返す `prompts_needed(rate, z_alarm, z_miss)` を書いてください。手計算の例: 真の勝率が0.6なら $(0.98 + 0.41)^2/0.1^2$、つまり194プロンプトです。よくある誤りは、第2項を落とすことと、2乗を忘れることです。


# %% uid="needed-exercise" tags=["exercise"] exercise="prompts_needed"
import math


def prompts_needed(rate, z_alarm=1.96, z_miss=0.84):
    """en: Smallest number (int) of prompts that tells a true win rate from 0.5.
    ja: 真の勝率 rate を0.5と区別できる、最小のプロンプト数(int)です。
    """
    # BEGIN SOLUTION
    reach = z_alarm * 0.5 + z_miss * (rate * (1 - rate)) ** 0.5
    return math.ceil((reach / (rate - 0.5)) ** 2)
    # END SOLUTION


# %% uid="needed-exercise-check" tags=["check"]
lab.check("prompts_needed")
prompts_needed = lab.use("prompts_needed")

# %% uid="enough-needed"
lab.reveal("sixty", "yes" if sign_test(60, 40) < 0.05 else "no")
rates = [0.52, 0.54, 0.56, 0.58, 0.6, 0.65, 0.7, 0.75, 0.8]
curve_with_interval(
    rates,
    [prompts_needed(rate) for rate in rates],
    xlabel=t("l02.true_rate"),
    ylabel=t("l02.prompts_needed"),
    title=t("l02.needed_title"),
    reference={t("l02.this_lesson"): len(contest)},
    log_y=True,
)

# %% [markdown] lang="en" uid="rules" pair="f6b86849"
# **Reading.** A true win rate of 60 % needs about 200 prompts, one of 55 % four times as many: half the margin, four times the prompts. A small experiment shows large effects and nothing else. Where the effect may be small, say beforehand how many prompts there will be.
#
# ## 10. What to write beside a number
#
# - Pictures on both sides, features and pipeline, and the number that *real against real* reads under the same conditions.
# - For a **ranking** of two models: the same prompts and seeds for both, and the difference with its spread, not two readings and a floor.
# - When the models may differ in *variety*: readings at three $n$ and the intercept, or so many pictures that bias no longer matters. Equal numbers do not help.
# - For "different or not": the permutation p-value at these very numbers.
# - One number for fidelity and one for diversity, with $N$ and $k$; a sentence about precision needs a curve over $N$.
# - Faithfulness to the prompt and a test for copies: no set metric has either.
# - For win rates: prompts, ties, an interval over prompts, and the metric that was chosen before the run.

# %% [markdown] lang="ja" uid="rules" pair="537729de"
# **図の読み方。** 真の勝率が60%なら約200プロンプト、55%ならその4倍が必要です。差が半分になると、必要な数は4倍になります。小さな実験で分かるのは、大きな効果だけです。効果が小さいかもしれないなら、プロンプトの数を実験の前に決めて宣言しておきます。
#
# ## 10. 数値に添えるもの
#
# - 両側の枚数、特徴量、前処理。同じ条件で*本物どうし*を測った値。
# - 2つのモデルの**順位**には、プロンプトとシードを共通にし、差とそのばらつきを示す。2つの測定値とノイズフロアでは足りない。
# - モデルの*多様性*が異なりうるなら、3通りの $n$ での値と切片を示すか、バイアスが問題にならない枚数を使う。枚数をそろえるだけでは解決しない。
# - 「違うかどうか」には、その枚数での並べ替え検定のp値。
# - 忠実度と多様性を1つずつ、$N$ と $k$ を添えて。適合率について述べるなら、$N$ に対する曲線も示す。
# - プロンプトへの忠実さと、丸写しの検査。集合の指標ではどちらも測れない。
# - 勝率なら、プロンプト数、引き分けの数、プロンプト単位の信頼区間、実行前に決めた指標。

# %% [markdown] lang="en" uid="own" pair="acc6ddf8"
# ### Your own two folders
#
# What this list asks of two sets alone (counts and features, the reading of real against real, the p-value of the permutation test, fidelity and diversity, the test for copies) is one call, `measure`, or one command: `labkit measure REAL FAKE --html report.html`. Comparing models, measuring at several counts, faithfulness and win rates remain with you. The cell writes two small folders of renders, the second one a little darker, and measures them. Before you run it: at 48 pictures,
# which lines of the report do you expect to see the difference, and which cannot? Then give `own_real` and `own_fake` the paths of two folders of yours. The reader of portraits is the wrong network for other pictures:
# pass `extractor="clip"` or `"inception"` with your weights, as `docs/measure.md` tells.

# %% [markdown] lang="ja" uid="own" pair="b1a6fe2d"
# ### 自分の2つのフォルダ
#
# この一覧のうち2つの集合だけから分かるもの(枚数と特徴量、本物どうしの値、並べ替え検定のp値、忠実度と多様性、丸写しの検査)は、関数 `measure` を1回呼べばそろいます。コマンドなら `labkit measure REAL FAKE --html report.html` です。モデルどうしの比較、枚数を変えた測定、プロンプトへの忠実さ、勝率は含みません。次のセルは、レンダリング画像の小さなフォルダを2つ書き出して測ります。2つ目は少し暗くしてあります。実行する前に予想してください。
# 48枚で、レポートのどの行なら差が見え、どの行では見えないでしょうか。結果を見たら、`own_real` と `own_fake` に手元の2つのフォルダのパスを入れて、もう一度実行してください。ポートレート以外の画像に、AttributeReader は向きません。
# `docs/measure.ja.md` のとおり、`extractor="clip"` か `"inception"` に手元の重みを渡してください。

# %% uid="own-measure"
from pathlib import Path
from tempfile import TemporaryDirectory

from labkit.diffusion import to_pil
from labkit.measuring import measure
from labkit.measuring.report import measurement_lines

# en: put the paths of two folders of your own here
# ja: 自分の2つのフォルダのパスをここに入れてください
own_real, own_fake = None, None

with TemporaryDirectory() as folder:
    for side, rows in (("real", reals[:48]), ("fake", 0.85 * others[:48] - 0.15)):
        (Path(folder) / side).mkdir()
        for i, picture in enumerate(to_pil(rows)):
            picture.save(Path(folder) / side / f"{i:02d}.png")
    own = measure(real=own_real or f"{folder}/real", fake=own_fake or f"{folder}/fake", seed=lab.seed)
print("\n".join(measurement_lines(own, lang)))

# %% [markdown] lang="en" uid="own-reading" pair="b68c2526"
# **How to read it.** The lines with an exclamation mark come first, because they say which of the numbers below to leave alone. Then each number stands beside what the reals read without any difference, and the last sentence of a line is the most that may be said. A line that sees nothing is no proof that nothing is there.

# %% [markdown] lang="ja" uid="own-reading" pair="08dc5416"
# **レポートの読み方。** 先頭の「!」の行から読みます。下の数値のうち、どれを当てにしてはいけないかが書いてあります。その下では、どの数値にも、差がないときに本物どうしで測った値が並びます。各行の最後の文が、その数値から言える限度です。差が見えないという行は、差がないことの証明ではありません。

# %% [markdown] lang="en" uid="map" pair="053db7cc"
# ## 11. Paper, article, your numbers

# %% [markdown] lang="ja" uid="map" pair="e2bfc274"
# ## 11. 論文、記事、自分の数値

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz()
