# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("03", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="story" pair="98fc6d85"
# ## 1. The article, and the word that it passes over
#
# This lesson belongs to the AIBR dialogue `ディープ生成モデルの忠実性と多様性の制御:擬似密度による手法`, on a paper by Li and others, *Controlling the Fidelity and Diversity
# of Deep Generative Models via Pseudo Density* ([arXiv 2407.08659](https://arxiv.org/abs/2407.08659)). Three of its statements are put to the test:
#
# 1. One number, computed from how similar a picture is to its neighbours in real data, says whether it is typical or rare, and moving that number moves the output.
# 2. Weighting at generation time needs no additional data and is comparatively cheap. Try it first, and measure the effect by FID.
# 3. A single picture can be adjusted with a little computation, and a short fine-tuning already has an effect.
#
# The dialogue hardly speaks of the price. The title of the paper does: fidelity **and** diversity, controlled, which means that one is paid for with the other.
# You will write the density and all three methods, and find out who pays, first with a generator that makes no mistakes and then with one that does.
#
# | the article's word | this course | in code |
# |---|---|---|
# | pseudo density, `疑似密度` | pseudo density | `rho` |
# | weighting at generation, `重要度サンプリング` | importance sampling: accept or reject | `acceptance` |
# | adjusting a single sample | perturbation of the initial noise | `push_step` |
# | short tuning of the model, `微調整` | weighted fine-tuning | `fixed_share` |

# %% [markdown] lang="ja" uid="story" pair="38c49bde"
# ## 1. 記事の主張と、そこで語られない言葉
#
# このレッスンで読む記事は、AIBR の対話『ディープ生成モデルの忠実性と多様性の制御:擬似密度による手法』です。もとの論文は Li らの *Controlling the Fidelity and
# Diversity of Deep Generative Models via Pseudo Density*([arXiv 2407.08659](https://arxiv.org/abs/2407.08659))です。次の3つの主張を確かめます。
#
# 1. 実データの近傍との類似度から求めた1つの数値で、画像が典型的か珍しいかが分かり、その数値を動かせば出力の傾向も動く。
# 2. 生成時の重み付けには追加データが要らず、費用も比較的少ない。まずこれを試し、効果は FID で測る。
# 3. 1枚だけの調整なら少しの計算で済み、モデルの短時間の学習でもすでに効果が出る。
#
# 記事は代償についてほとんど語りませんが、論文の題名には書かれています。忠実度**と**多様性を制御するとは、片方を得るためにもう片方を払うということです。
# ここでは密度の計算と3つの方法をすべて自分で書き、誰が代償を払うのかを調べます。最初は間違いを犯さない生成器で、次に間違いを犯す生成器で試します。
#
# | 記事の言葉 | この教材の言葉 | コード |
# |---|---|---|
# | 『疑似密度』 | 擬似密度 | `rho` |
# | 生成時の重み付け(『重要度サンプリング』) | 重点サンプリング: 受理か棄却か | `acceptance` |
# | 個別サンプルの調整 | 初期ノイズの摂動 | `push_step` |
# | モデルの短時間の学習(『微調整』) | 重み付きファインチューニング | `fixed_share` |

# %% uid="first-picture"
import numpy as np
import torch

from labkit.figures import curve_with_interval, density_map, kept_points, path_in_box
from labkit.figures import recorded_means, recorded_plane, strips
from labkit.studies import estimate, l03, l03_shipped, means

sizes, run_seed = lab.sizes, 100 + lab.seed
real = l03.reals(run_seed, sizes.reals)


def ends(pictures, rho, title):
    """en: The eight pictures of highest and of lowest density.
    ja: 密度が最も高い8枚と、最も低い8枚です。
    """
    order = rho.argsort(descending=True)
    rows = {t("l03.most_typical"): order[:8], t("l03.rarest"): order[-8:]}
    shown = {name: rho[chosen].tolist() for name, chosen in rows.items()}
    return strips({name: pictures[r] for name, r in rows.items()}, scores=shown, score_label=r"$\rho$", title=title)


ends(real.pictures, real.density.rho, t("l03.reals_title"))

# %% [markdown] lang="en" uid="first-reading" pair="d66e62f7"
# **What you see.** Real portraits of one population, sorted by a number $\rho$ that no one told what a portrait is. Above, the most typical: one drawing style, common
# hair, hardly anything that stands out. Below, the rarest. This population has rarities on purpose: few cartoon drawings, few sunglasses, few pink or blue heads.
# Look closer, though: rare *combinations* come first, and cartoons hardly appear. A kind with few members may be dense, if these few resemble one another.
# Remember one thing for later: *both* rows are real pictures. Nothing in the lower row is broken; it is only seldom.
#
# What made the difference between the rows? Write your guess in a sentence before you read on: what would a stranger have to count to sort the pictures like this?

# %% [markdown] lang="ja" uid="first-reading" pair="6199d09b"
# **図の読み方。** 同じ母集団から取った本物(以下、実データとも呼びます)のポートレートを、数値 $\rho$ の順に並べました。この数値は、ポートレートが何であるかを知らずに計算されています。上は最も典型的な画像です。
# 画風が同じで、髪の色もありふれていて、目立つものがほとんどありません。下は最も珍しい画像です。この母集団には、わざと珍しいものを混ぜてあります。アニメ調の絵、サングラス、
# ピンクや青の髪は少ししかありません。ただし、よく見ると、先に現れるのは珍しい*組み合わせ*で、アニメ調の絵はほとんど出てきません。数の少ない種類でも、互いに似ていれば密度は低くならないからです。後のために1つ覚えておいてください。*どちらの*行も本物の画像です。下の行に壊れた絵はなく、ただ数が少ないだけです。
#
# 2つの行を分けたのは何でしょうか。先へ進む前に、予想を1文で書いてみてください。何も知らない人が画像をこのように並べるには、何を数えればよいでしょうか。

# %% [markdown] lang="en" uid="see" pair="3b282e4a"
# ## 2. Density that can be seen
#
# **Intuition.** In a crowd your neighbours stand close; at the edge of the square you have to walk to reach ten people. The walk is the measure: short where people are many,
# long where they are few. No model of the crowd is needed, only distances.
#
# **Formula.** Take the features $F(x)$ that a frozen network gives a picture, because distances between pixels mean little. The mean distance to the $k$ nearest *real* samples,
# $x$ itself left out, is the walk; its inverse is large where the crowd is dense; divided by its average over the $N$ reals it needs no unit:
#
# $$d_k(x) = \frac{1}{k}\sum_{j=1}^{k}\lVert F(x) - F(\mathrm{nn}_j(x))\rVert, \qquad \rho(x) = \frac{(1/d_k(x))^n}{\frac{1}{N}\sum_m (1/d_k(x_m))^n}$$
#
# So $\rho = 2$ reads "twice the average density". The authors' code has $k = 10$ or $20$ and $n = 1$; it averages the $k$ distances, where other estimators take the $k$-th one.
#
# To see whether this deserves the name, we need a world whose true density is known: a ring of eight equally wide modes, of which the first holds 30 % of the points and
# the last 2 %. Before you compute anything: where is $\rho$ highest on average?

# %% [markdown] lang="ja" uid="see" pair="3928f4dc"
# ## 2. 目に見える密度
#
# **直感。** 人混みの中では、周りの人がすぐそばに立っています。広場の端では、10人に会うまでに長く歩かなければなりません。この歩く距離が尺度になります。人が多いところでは短く、少ない
# ところでは長くなります。人混みのモデルは要りません。必要なのは距離だけです。
#
# **式。** 画素どうしの距離にはあまり意味がないので、固定したネットワークの特徴量 $F(x)$ を使います。$x$ 自身を除いて近い順に $k$ 個の*実*サンプルを取り、そこまでの平均距離を
# 「歩く距離」とします。その逆数は、混んでいるところほど大きくなります。さらに $N$ 個の実データでの平均で割ると、単位の要らない数になります。
#
# $$d_k(x) = \frac{1}{k}\sum_{j=1}^{k}\lVert F(x) - F(\mathrm{nn}_j(x))\rVert, \qquad \rho(x) = \frac{(1/d_k(x))^n}{\frac{1}{N}\sum_m (1/d_k(x_m))^n}$$
#
# $\rho = 2$ なら「平均の2倍の密度」です。著者のコードでは $k = 10$ または $20$、$n = 1$ です。ほかの推定法では $k$ 番目の距離だけを使うことが多いのに対し、ここでは $k$ 個の距離を
# 平均します。
#
# これが密度と呼ぶに値するかどうかを見るには、真の密度が分かっている世界が必要です。同じ広さの8つの山が円周上に並び、最初の山には点の30%が、最後の山には2%があります。
# 計算する前に予想してください。$\rho$ の平均が最も高いのはどこでしょうか。

# %% uid="densest-predict" tags=["quiz"]
lab.predict("densest")

# %% [markdown] lang="en" uid="write-density" pair="a19887b9"
# **Exercise (difficulty 2, ten minutes).** Write `pseudo_density` with $n = 1$ for all rows of a real set. By hand: eleven points on a line, one apart, $k = 4$. The first one
# has the distances 1, 2, 3, 4 and so $d_4 = 2.5$; one in the middle has 1, 1, 2, 2 and $d_4 = 1.5$. The end of the line is the rarer place: $\rho$ is $0.666$ there, $1.110$ in
# the middle. Three mistakes are common: counting a point as its own neighbour, taking the $k$-th distance, and dividing by the sum.

# %% [markdown] lang="ja" uid="write-density" pair="92d60226"
# **課題(難易度2、10分)。** 実データのすべての行について、$n = 1$ の `pseudo_density` を書いてください。手計算の例: 間隔1で一直線に並ぶ11個の点と $k = 4$ を考えます。端の点から4個までの
# 距離は1、2、3、4なので $d_4 = 2.5$、中ほどの点では1、1、2、2なので $d_4 = 1.5$ です。端の方が珍しい場所で、$\rho$ は端で $0.666$、中ほどで $1.110$ になります。
# よくある間違いは3つです。自分自身を近傍に数えること、$k$ 番目の距離を使うこと、そして和で割ることです。


# %% uid="density-exercise" tags=["exercise"] exercise="pseudo_density"
def pseudo_density(features, k):
    """en: rho [N] of each row of features [N, d] among the other rows; its mean is 1.
    ja: features [N, d] の各行について、残りの行の中での rho [N] を求めます。rho の平均は1です。
    """
    # BEGIN SOLUTION
    distances = torch.cdist(features, features)  # [N, N]
    distances.fill_diagonal_(torch.inf)
    d_k = distances.topk(k, largest=False).values.mean(dim=1)  # [N]
    return (1 / d_k) / (1 / d_k).mean()
    # END SOLUTION


# %% uid="density-check" tags=["check"]
lab.check("pseudo_density")
pseudo_density = lab.use("pseudo_density")

# %% uid="ring"
from labkit.density import PseudoDensity, rank_correlation
from labkit.worlds.ring import ring_centres, ring_density, ring_generator, ring_reals

points = ring_reals(sizes.ring, lab.generator())  # [N, 2]
ring, rho = PseudoDensity(k=10).fit(points), pseudo_density(points, 10)
difference = float((rho - ring.rho).abs().max())
lab.verdict(t("l03.same_density", difference=difference), difference < 1e-3)
x, y = ring_density(points).log(), rho.log()
slope = float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())
print(t("l03.agreement", rank=rank_correlation(x, y), slope=slope))
# en: mode 0 has the most points
# ja: 山0の点が最も多い
mode = torch.cdist(points, ring_centres()).argmin(dim=1)  # [N]
by_mode = torch.stack([rho[mode == m].mean() for m in range(8)])
lab.reveal("densest", "biggest" if by_mode.argmax() == 0 else "other")

# %% uid="ring-widget" tags=["widget"]
from labkit.figures.widgets import choice, explore, slider

axis = torch.linspace(-2.7, 2.7, 121, dtype=torch.float64)
truth = ring_density(torch.cartesian_prod(axis, axis)).reshape(121, 121).T


def ring_picture(k, exponent, point):
    fitted = PseudoDensity(k=k, exponent=exponent).fit(points)
    titles = t("l03.true_density"), t("l03.one_point", rho=float(fitted.rho[point]))
    return density_map(
        points, fitted.rho, truth=truth, reach=2.7, ball=(point, float(fitted.distances[point])), titles=titles,
        label=t("l03.rho_axis"), alt=t("l03.ring_alt", k=k, n=exponent),
    )  # fmt: skip


controls = {"k": slider("k", 3, 50, 10), "exponent": slider("n", 0.5, 3.0, 1.0, 0.5)}
explore(ring_picture, controls | {"point": slider(t("l03.point"), 0, len(points) - 1, 0)})

# %% [markdown] lang="en" uid="ring-look" pair="29a15a62"
# **What you see.** The colours on the right rise where the map on the left is bright: the rank correlation says how faithfully. The slope says something subtler: $\log\rho$
# follows only about *half* of $\log p$. **Why:** in $d$ dimensions four times as many points bring neighbours nearer by $4^{1/d}$ only, so distances shrink with the $d$-th
# root of the density, and here $d = 2$. In the 128 dimensions of a network all distances become nearly equal. The scale of $\rho$ therefore means little, its **order** means
# much, and thresholds are quantiles, never fixed numbers.
#
# **What would change it:** turn $n$. The colours change and the order does not, for $n$ is a monotone map. Turn $k$, the circle around the chosen point: a small ball
# follows every accident of the sample, a large one smooths the small modes away.

# %% [markdown] lang="ja" uid="ring-look" pair="700ea28e"
# **図の読み方。** 左の真の密度が明るいところで、右の点の色も明るくなっています。どれほど忠実かは、順位相関が示します。傾きからは、もう少し細かいことが分かります。$\log\rho$ は $\log p$ の
# *約半分*しか動きません。**理由:** $d$ 次元では、点が4倍になっても近傍は $4^{1/d}$ 倍しか近づきません。距離は密度の $d$ 乗根に反比例し、ここでは $d = 2$ だからです。ネットワークの
# 128次元の特徴空間では、どの距離もほとんど同じになります。したがって、$\rho$ の値そのものにはあまり意味がなく、意味があるのは**順序**です。しきい値には固定の数値ではなく、分位点を使います。
#
# **結果を左右するもの:** $n$ を動かすと色は変わりますが、単調な変換なので順序は変わりません。$k$ は、選んだ点を囲む円の大きさです。小さな球は標本のたまたまの偏りに左右され、大きな球では
# 小さな山がならされて見えなくなります。

# %% [markdown] lang="en" uid="accept" pair="bd163003"
# ## 3. Accept or reject
#
# Now the second statement of the article. The generator stays as it is; we only look at what it makes and keep some of it:
#
# ```text
# noise --> generator --> picture --> features --> rho above tau?  --yes--> keep with one probability
#                                                                  --no---> keep with another
# ```
#
# $\tau$ is a quantile of the *real* $\rho$, and $w$ the wish: how many times as likely should a typical picture become, relative to a rare one? Probabilities must not
# exceed 1, so the favoured side is always kept and the other side pays. For $w \ge 1$ everything above $\tau$ is kept, the rest with probability $1/w$; for $w < 1$ everything
# up to $\tau$ is kept, the rest with probability $w$.
#
# **Exercise (difficulty 2).** Write the rule. By hand: $\tau = 1.2$, $\rho = (0.5, 1.2, 1.3, 2)$. For $w = 4$ the probabilities are $(.25, .25, 1, 1)$, for $w = 0.25$ they are
# $(1, 1, .25, .25)$. A tie with $\tau$ counts as below.

# %% [markdown] lang="ja" uid="accept" pair="66ede0ba"
# ## 3. 受理か棄却か
#
# 次は記事の2つ目の主張です。生成器には手を加えません。出てきたものを見て、その一部だけを残します。
#
# ```text
# ノイズ --> 生成器 --> 画像 --> 特徴量 --> rho は tau より上か --はい--> ある確率で残す
#                                                              --いいえ-> 別の確率で残す
# ```
#
# $\tau$ は*実データ*の $\rho$ の分位点です。$w$ は、珍しい画像に対して、典型的な画像を何倍出やすくしたいかを指定します。確率は1を超えられないので、優遇する側は
# 必ず残し、もう一方を減らします。$w \ge 1$ では、$\tau$ より上をすべて残し、残りを確率 $1/w$ で残します。$w < 1$ では、$\tau$ 以下をすべて残し、残りを確率 $w$ で残します。
#
# **課題(難易度2)。** この規則を書いてください。手計算の例: $\tau = 1.2$、$\rho = (0.5, 1.2, 1.3, 2)$ のとき、確率は $w = 4$ なら $(.25, .25, 1, 1)$、$w = 0.25$ なら
# $(1, 1, .25, .25)$ です。$\tau$ とちょうど等しいものは、下側として扱います。


# %% uid="accept-exercise" tags=["exercise"] exercise="acceptance"
def acceptance(rho, tau, w):
    """en: Probability [N] of accepting samples with pseudo densities rho [N].
    ja: 擬似密度が rho [N] のサンプルを受理する確率 [N] です。
    """
    # BEGIN SOLUTION
    above, below = (1.0, 1 / w) if w >= 1 else (w, 1.0)
    return torch.where(rho > tau, above, below).to(rho.dtype)
    # END SOLUTION


# %% uid="accept-check" tags=["check"]
lab.check("acceptance")
acceptance = lab.use("acceptance")

# %% [markdown] lang="en" uid="cost" pair="641fecb6"
# "Comparatively cheap", says the article. What is thrown away was generated all the same, so let us compute the price before paying it. Let a share $\pi$ of the *generated* samples
# lie above $\tau$. Of a hundred generated ones $100\,\pi$ are above and $100\,(1 - \pi)$ are not; each group shrinks by its probability, and what remains are the accepted ones.
#
# **Exercise (difficulty 3).** Write `forecast`: the acceptance rate, the share above $\tau$ among the accepted, and the generated samples per accepted one. By hand: $\pi = 0.2$
# and $w = 4$ give $0.2 + 0.8/4 = 0.4$, then $0.2/0.4 = 0.5$, and $1/0.4 = 2.5$.

# %% [markdown] lang="ja" uid="cost" pair="a288e7e1"
# 記事は「比較的低コスト」と言います。しかし、捨てる画像も生成はしています。払う前に費用を計算しましょう。*生成した*サンプルのうち、割合 $\pi$ が $\tau$ より上にあるとします。100個
# 生成すると、$100\,\pi$ 個が上側、$100\,(1 - \pi)$ 個が下側です。それぞれが自分の確率の分だけ減り、残ったものが受理されたサンプルです。
#
# **課題(難易度3)。** 受理率、受理したうち $\tau$ より上の割合、受理1個あたりの生成数を返す `forecast` を書いてください。手計算の例: $\pi = 0.2$、$w = 4$ なら、
# $0.2 + 0.8/4 = 0.4$、$0.2/0.4 = 0.5$、$1/0.4 = 2.5$ です。

# %% uid="cost-predict" tags=["quiz"]
lab.predict("cost")


# %% uid="forecast-exercise" tags=["exercise"] exercise="forecast"
def forecast(pi, w):
    """en: (acceptance rate, share above tau among the accepted, generated samples per accepted one).
    ja: (受理率、受理したうち tau より上の割合、受理1個あたりの生成数)を返します。
    """
    # BEGIN SOLUTION
    above, below = (pi, (1 - pi) / w) if w >= 1 else (w * pi, 1 - pi)
    rate = above + below
    return rate, above / rate, 1 / rate
    # END SOLUTION


# %% uid="forecast-check" tags=["check"]
lab.check("forecast")
forecast = lab.use("forecast")
for share in (0.9, 0.5, 0.1):
    print(t("l03.closed_form", pi=share, high=forecast(share, 33)[2], low=forecast(share, 0.03)[2]))
lab.reveal("cost", min({"two": 2, "eight": 8, "all": 33}.items(), key=lambda o: abs(o[1] - forecast(0.1, 33)[2]))[0])

# %% [markdown] lang="en" uid="ring-run" pair="4633eaf6"
# Does the rule do what it promises? The ring has a generator that knows all eight modes and smears a fifth of its points over the bridges between them: artefacts. Two measures
# from lesson 02: **precision**, the share of generated points that lie inside of the ball of some real point (fidelity), and **coverage**, the share of real balls
# that contain a generated one (diversity). Coverage may be used *here*, because a thousand points are kept of a thousand reals. `truncation`, a habit from GANs, shrinks the noise by a factor
# instead of selecting.

# %% [markdown] lang="ja" uid="ring-run" pair="6b6729db"
# この規則は約束どおりに働くでしょうか。リングの生成器は8つの山をすべて再現できますが、点の2割は山と山の間に落ちます。これがアーティファクトです。使う指標はレッスン02の2つです。
# **適合率**は、生成点のうち、どれかの実データの球に入るものの割合(忠実度)です。**被覆率**は、実データの球のうち、生成点を含むものの割合(多様性)です。*ここで*被覆率を使えるのは、
# 実データ1,000点に対して1,000点を残すからです。`truncation` は GAN で使われる手法で、選別はせず、ノイズに1より小さい係数を掛けます。

# %% uid="helpers" tags=["hide-input"]
names = {
    "w1": "w = 1",
    "w2": t("l03.setting", w="2", q="0.1"),
    "w33": "w = 33",
    "w33_half": t("l03.setting", w="33", q="0.5"),
    "w33_top": t("l03.setting", w="33", q="0.8"),
    "w003": "w = 0.03",
    "psi07": t("l03.at_truncation", psi=0.7),
    "psi03": t("l03.at_truncation", psi=0.3),
    "guidance1": t("l03.at_guidance", scale=1),
    "guidance6": t("l03.at_guidance", scale=6),
    "noise08": t("l03.at_noise", scale=0.8),
    "pretrained": t("l03.pretrained"),
    "up": t("l03.up"),
    "down": t("l03.down"),
    "mlp": t("l03.up_mlp"),
    "random": t("l03.random"),
}
measures = {
    "precision": t("l03.precision"),
    "recall": t("l03.recall"),
    "coverage": t("l03.coverage"),
    "vendi": t("l03.vendi"),
    "kernel": t("l03.kernel"),
    "frechet": t("l03.frechet"),
    "distance": t("l03.frechet"),
    "rare": t("l03.rare_share"),
    "calls": t("l03.calls"),
    "log_gain": t("l03.log_ratio"),
    "last": t("l03.log_last"),
    "log_rho": t("l03.log_rho"),
    "above": t("l03.share"),
}
parts = {"ideal": t("l03.ideal"), "model": "PortraitSD"}
# en: arm -> measure -> numbers of this run
# ja: 条件 -> 尺度 -> 今回の数値
results = {}


def label(arm):
    part, setting = arm.split(".")
    return f"{parts[part]}: {names[setting]}" if part in parts else names[setting]


def known(metric, arms, against=None):
    """en: Recorded estimates of the arms; runs of the ring are independent.
    ja: 各条件の記録済みの推定値です。リングの実行は互いに独立です。
    """
    if arms[0].startswith("ring."):
        there = [a for a in arms if lab.recorded.seeds(a)]
        return {label(a): estimate(l03.estimate_ring(metric, a)(lab.recorded)) for a in there}
    return means(lab.recorded, metric, {label(a): a for a in arms}, against=against)


def on_plane(x, y, arms, title):
    """en: Two measures of recorded arms, and of your own runs as stars.
    ja: 記録済みの条件を2つの尺度の平面に描き、自分の結果を星で重ねます。
    """
    found = [known(m, arms) for m in (x, y)]
    yours = {label(a): (np.mean(results[a][x]), np.mean(results[a][y])) for a in arms if a in results}
    yours = {name: point for name, point in yours.items() if np.isfinite(point).all()}
    both = {name: (found[0][name], found[1][name]) for name in found[0] if name in found[1]}
    return recorded_plane(both, yours=yours, xlabel=measures[x], ylabel=measures[y], title=title)


def on_record(metric, arms, title, against=None, reference=None):
    """en: A measure of recorded arms (or its gain over another arm), and of your own runs.
    ja: 記録済みの条件の尺度(または別の条件との差)を描き、自分の結果を重ねます。
    """
    found = known(metric, arms, against)
    base = np.mean(results[against][metric]) if against in results else np.nan if against else 0.0
    yours = {label(a): np.mean(results[a][metric]) - base for a in arms if a in results and np.isfinite(base)}
    if not found:
        return print(t("l03.no_record"))
    yours = {name: value for name, value in yours.items() if name in found and np.isfinite(value)}
    return recorded_means(found, xlabel=measures[metric], yours=yours, title=title, reference=reference)


def claim(id, arm, against, metric):
    """en: The recorded verdict on arm minus against, with your own difference where you have run both.
    ja: arm から against を引いた差について、記録済みの判定と、両方を実行した場合は自分の差を示します。
    """
    measured = t("l03.change", metric=measures[metric], a=label(arm), b=label(against))
    if not {arm, against} <= set(results):
        return lab.claim(id, measured=measured, reason=t("l03.recorded_only"))
    gap = np.asarray(results[arm][metric]) - np.asarray(results[against][metric])
    if not np.isfinite(gap).all():
        return lab.claim(id, measured=measured, reason=t("l03.too_few"))
    found = estimate(gap[None]) if np.size(gap) > 2 else None
    interval = (found.low, found.high) if found else None
    return lab.claim(id, measured=measured, value=float(np.mean(gap)), interval=interval, seeds=[run_seed])


# %% uid="ring-plane"
settings = [*l03.RING, *l03.TRUNCATIONS]
for s in lab.progress_bar(settings, t("l03.settings"), len(settings)):
    results[f"ring.{s}"] = l03.ring_unit(s, run_seed, sizes)
on_plane("coverage", "precision", [f"ring.{s}" for s in settings], t("l03.ring_plane"))

# %% uid="ring-claims"
claim("filter_ring", "ring.w33", "ring.w1", "precision")
claim("filter_is_free", "ring.w33", "ring.w1", "coverage")
claim("extreme_ring", "ring.w33_top", "ring.w1", "distance")
paid = [results[f"ring.{s}"]["calls"] / results[f"ring.{s}"]["forecast"] for s in l03.RING if s != "w1"]
lab.claim("cost_forecast", measured=t("l03.cost_ratio"), value=float(np.mean(paid)), seeds=[run_seed])

# %% [markdown] lang="en" uid="ring-reading" pair="7571ab0d"
# **What you see.** Blue: the recorded study, ten runs with their intervals; stars: your run. Go from `w = 1` to `w = 33`, both with the *lowest tenth* as threshold. Precision rises from .88 to
# .99 and coverage does not fall, because the points below that threshold are mostly the smeared ones. Selection acts as a **filter of artefacts** there. Raise the threshold to the half or to the upper fifth, and
# the same weight throws away honest small modes: precision has nothing left to win, coverage pays (.82, .76). Shrinking the noise to 0.7 hardly touches the artefacts: they do not lie far out
# in the noise.
#
# One claim of the paper is missing here: that *mild* weights lower the Fréchet distance. On the ring it went from .019 to .021 under `w = 2`, with an interval of $\pm .009$ over ten runs; a thousand points
# cannot tell, and a single run that decides gives chance a name. That difference scatters by 0.013 from run to run: to see an effect of .002 in four experiments out of five takes about 300 pairs of runs.
#
# **What would change it:** the place of the errors. If the generator erred *inside* of the big modes, density could not see it. And the forecast agrees with the price that was paid, because
# nothing but $\pi$ enters it; a pilot of a few hundred is enough.

# %% [markdown] lang="ja" uid="ring-reading" pair="4875ae4a"
# **図の読み方。** 青は記録済みの実験(10回の実行と区間)、星は今回の結果です。どちらも*下位1割*をしきい値とする `w = 1` から `w = 33` へ進んでみましょう。適合率は0.88から0.99に上がり、被覆率は
# 下がりません。このしきい値より下にあるのは、ほとんどが山の間に落ちた点だからです。ここでは選別が**アーティファクトのフィルタ**として働きます。しきい値を中央値や上位2割まで上げると、同じ重みが、
# 正しく生成された小さな山まで捨ててしまいます。適合率にはもう伸びしろがなく、被覆率だけが下がります(0.82、0.76)。ノイズを0.7倍に縮めても、アーティファクトはほとんど減りません。ノイズの空間では、
# 遠くにあるわけではないからです。
#
# ここでは、論文の主張を1つ省きました。*弱い*重みがフレシェ距離を下げるというものです。リングでは `w = 2` で0.019から0.021になり、10回の実行による区間は $\pm .009$ でした。1,000点では判定できません。
# 1回の実行で判定すれば、偶然のばらつきを結論と取り違えます。この差は実行ごとに0.013ほどばらつくからです。0.002の効果を5回中4回の実験で見つけるには、約300組の実行が要ります。
#
# **結果を左右するもの:** 誤りの起きる場所です。生成器が大きな山の*内側*で誤るなら、密度では見つけられません。費用の予測が実際と一致するのは、式に入るのが $\pi$ だけだからです。
# 数百個を試しに生成すれば足ります。

# %% uid="ring-slider" tags=["widget"]
z = torch.randn(1500, 3, generator=lab.generator(300), dtype=torch.float64)
candidates = ring_generator(z)
candidate_rho = ring.score(candidates)
stops = []
shrunk = {t("l03.truncation"): [l03.ring_quality(points, ring_generator(psi * z)) for psi in (0.9, 0.7, 0.5, 0.3)]}
shrunk = {name: [(q["coverage"], q["precision"]) for q in found] for name, found in shrunk.items()}


def typical_or_rare(log_w, quantile):
    """en: What a setting keeps of 1,500 points; every stop of the sliders stays in the plane.
    ja: 1,500点のうち、この設定が残す点です。スライダーを止めた設定は、平面に残っていきます。
    """
    u = torch.rand(len(candidates), generator=lab.generator(301), dtype=torch.float64)
    kept = u < acceptance(candidate_rho, ring.threshold(quantile), 10.0**log_w)
    found = l03.ring_quality(points, candidates[kept])
    stops.append((found["coverage"], found["precision"]))
    titles = t("l03.slider_cost", w=10.0**log_w, paid=len(kept) / int(kept.sum())), t("l03.fd", fd=found["distance"])
    return kept_points(
        candidates, kept, stops=stops, others=shrunk, names=(t("l03.rejected"), t("l03.accepted")), titles=titles,
        xlabel=measures["coverage"], ylabel=measures["precision"], alt=t("l03.slider_alt", w=10.0**log_w, **found),
    )  # fmt: skip


slider_controls = {
    "log_w": slider(t("l03.log_w"), -1.5, 1.5, 1.5, 0.25),
    "quantile": slider(t("l03.quantile"), 0.05, 0.95, 0.1, 0.05),
}
explore(typical_or_rare, slider_controls)

# %% [markdown] lang="en" uid="slider-reading" pair="2d3ee216"
# **Decide:** find a setting that beats every truncation in *both* directions, and the one with the smallest Fréchet distance (above the plane). Then push $w$ below 1 and look at what comes
# back first: the rare modes, or the bridges? Low density means rare **or** broken, and the rule cannot tell them apart. This is the riddle of section 6.

# %% [markdown] lang="ja" uid="slider-reading" pair="d7591c85"
# **選んでみましょう。** どの truncation よりも、*両方の*軸で優れた設定を探してください。フレシェ距離(平面の上に表示)が最小になる設定も探してください。次に $w$ を1より小さくして、最初に戻って
# くるのが珍しい山なのか、山の間の点なのかを見てください。密度が低いものは、珍しい**か**、壊れています。この規則には区別できません。これが第6節で解く謎です。

# %% [markdown] lang="en" uid="measure" pair="b103ed97"
# ## 4. Who measures, and how much it takes
#
# Before portraits are selected, the measures have to earn their place. Selection leaves a few *dozen* or hundred pictures, and small samples lie.
#
# **Diversity of a set by itself.** The Vendi score asks how many *different* pictures a set holds. Make every feature row a unit vector, so that the products
# $K_{ij} = x_i \cdot x_j$ are similarities with ones on the diagonal. The eigenvalues $\lambda_i$ of $K/n$ are non-negative and sum to 1: shares, as if the set had
# that much of each independent picture. The exponential of their entropy is the effective number:
#
# $$\mathrm{Vendi}(x_1, \dots, x_n) = \exp\Big(-\sum_i \lambda_i \ln \lambda_i\Big)$$
#
# $n$ copies of one picture have the single eigenvalue 1 and a score of 1; $n$ orthogonal ones have all $\lambda = 1/n$ and a score of $n$.
#
# **Exercise (difficulty 3).** Write `vendi` for features $[n, d]$ of any length. By hand: the rows $a, a, b, b$ with $a \perp b$ give $\lambda = (1/2, 1/2, 0, 0)$ and a score of 2.
# Zero eigenvalues contribute nothing, and rounding makes some of them slightly negative.

# %% [markdown] lang="ja" uid="measure" pair="00c015b9"
# ## 4. 何で測るか、何枚あれば足りるか
#
# ポートレートを選別する前に、指標の方を確かめておきましょう。選別の後に残るのは数十枚か数百枚で、標本が小さいと指標は当てになりません。
#
# **集合そのものの多様性。** Vendi スコアは、集合に何種類の*異なる*画像があるかを数えます。特徴量の各行を長さ1のベクトルにすると、内積 $K_{ij} = x_i \cdot x_j$ は、対角成分が1の類似度に
# なります。$K/n$ の固有値 $\lambda_i$ は0以上で、和は1です。つまり、互いに独立な画像がそれぞれどれだけの割合で含まれているかを表す、とみなせます。そのエントロピーの指数が、
# 実質的な枚数です。
#
# $$\mathrm{Vendi}(x_1, \dots, x_n) = \exp\Big(-\sum_i \lambda_i \ln \lambda_i\Big)$$
#
# 同じ画像が $n$ 枚なら、0でない固有値は1だけで、スコアは1です。互いに直交する $n$ 枚なら、どの固有値も $\lambda = 1/n$ で、スコアは $n$ です。
#
# **課題(難易度3)。** 行の長さが任意の特徴量 $[n, d]$ に対して `vendi` を書いてください。手計算の例: $a \perp b$ のとき、行 $a, a, b, b$ の固有値は
# $\lambda = (1/2, 1/2, 0, 0)$ で、スコアは2です。固有値0は何も加えません。丸め誤差でわずかに負になる固有値もあります。


# %% uid="vendi-exercise" tags=["exercise"] exercise="vendi"
def vendi(features):
    """en: Effective number of different rows of features [n, d], a float from 1 to n.
    ja: features [n, d] の異なる行の実質的な数です。1から n までの float を返します。
    """
    # BEGIN SOLUTION
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    shares = torch.linalg.eigvalsh(unit @ unit.T / len(unit))
    shares = shares[shares > 1e-12]
    return float((-(shares * shares.log()).sum()).exp())
    # END SOLUTION


# %% uid="vendi-check" tags=["check"]
lab.check("vendi")
vendi = lab.use("vendi")

# %% [markdown] lang="en" uid="floor" pair="fe87c814"
# **Diversity against the reals.** Recall is the mirror of precision: the share of *reals* that lie inside of the ball of some generated picture. It can rise with few pictures, because the balls of
# a few pictures are large. Coverage cannot: $n$ pictures touch only so many real balls, whatever they show.
#
# **One number for everything.** The article says FID. The Fréchet distance $\lVert\mu - \mu'\rVert^2 + \mathrm{tr}(\Sigma + \Sigma' - 2(\Sigma\Sigma')^{1/2})$ compares Gaussians, and a covariance
# of 128 features estimated from $n$ pictures is wrong in $n$'s own way. To see all these habits at once, measure a generator that makes **no mistakes at all**:
# fresh renders of the population that the reals come from. Call it the *ideal generator*. Whatever the table shows for it is not error but floor.

# %% [markdown] lang="ja" uid="floor" pair="6068ad67"
# **実データと比べた多様性。** 再現率は適合率の裏返しで、*実データ*のうち、どれかの生成画像の球に入るものの割合です。枚数が少ないと生成画像の球が大きくなるので、かえって高くなることがあります。
# 被覆率はそうはいきません。$n$ 枚の画像が触れられる実データの球の数には、何が描かれていようと限りがあります。
#
# **すべてをまとめた1つの数値。** 記事は FID を挙げています。フレシェ距離 $\lVert\mu - \mu'\rVert^2 + \mathrm{tr}(\Sigma + \Sigma' - 2(\Sigma\Sigma')^{1/2})$ は正規分布どうしを比べる
# もので、128個の特徴量の共分散を $n$ 枚から推定すると、$n$ に応じた誤差が入ります。こうした癖をまとめて見るために、**間違いをまったく犯さない**生成器を測ってみましょう。実データと
# 同じ母集団から新しく描いた画像です。これを*理想の生成器*と呼びます。表に出る値は、この生成器の誤りではなく、ノイズフロアです。

# %% uid="floor-run"
from labkit.course.render import show, table

ideal = lab.keep("ideal", l03.pool, "ideal", run_seed, sizes)
rows = []
for n in [n for n in (24, 50, 100, 200, 400) if n <= len(ideal.rho)]:
    q = l03.quality(real.judged, ideal.judged[:n])
    shown = [f"{q['frechet']:.0f}", f"{q['kernel']:.2f}", f"{q['coverage']:.3f}", f"{q['recall']:.3f}"]
    rows.append([str(n), *shown, f"{vendi(ideal.judged[:n]):.2f}"])
columns = ["frechet", "kernel", "coverage", "recall", "vendi"]
show(*table([t("l03.pictures"), *(measures[m] for m in columns)], rows))

# %% [markdown] lang="en" uid="floor-reading" pair="73ff4be3"
# **What you see.** From top to bottom nothing changes but $n$, and the generator is perfect throughout. Yet the Fréchet distance falls to a tenth (from about 1,500 to 140), and the coverage grows sixfold. A table that prints "FD 1778" for
# 24 selected pictures says mostly "24". The **kernel distance** (KID) scatters about zero at every $n$, the less the more pictures: it is unbiased, and can even turn out negative. Recall and Vendi settle from about a
# hundred pictures on, and Vendi still grows slowly.
#
# **What follows:** every setting keeps the *same* number of pictures, a hundred; diversity is read from recall and Vendi; distances from the kernel; and the row of the ideal generator at $w = 1$
# stands beside every result as its floor. All of it in the space of the **judge**, the AttributeReader, which has no say in the selection: density is measured in
# the space of PortraitCLIP, the course's CLIP for portraits (*control*: it selects and pushes), and a space that was used to choose would praise its own choice.

# %% [markdown] lang="ja" uid="floor-reading" pair="4cf4f7eb"
# **表の読み方。** 上から下へ変わるのは $n$ だけで、生成器は終始完璧です。それでもフレシェ距離は10分の1に(1,500ほどから140ほどに)下がり、被覆率は6倍になります。選別した24枚に「FD 1778」と書いてある表は、ほとんど
# 「24枚」と言っているだけです。**カーネル距離**(KID)は、どの $n$ でも0のまわりにばらつき、枚数が多いほど0に近づきます。不偏なので、負になることもあります。再現率と Vendi スコアは100枚ほどで落ち着きますが、Vendi は
# その後も少しずつ増えます。
#
# **ここから決まること:** どの設定でも*同じ*枚数、100枚を残します。多様性は再現率と Vendi スコアで、距離はカーネル距離で読みます。理想の生成器の $w = 1$ の値を、どの結果にもノイズフロアとして並べます。
# すべて**評価役**である AttributeReader の空間で測り、評価役は選別に関わりません。密度は、この教材のポートレート用 CLIP である PortraitCLIP の空間で測ります(選別と摂動に使うので、*制御*用と呼びます)。選ぶのに使った空間で測れば、自分の選択を
# 自分で褒めることになるからです。

# %% [markdown] lang="en" uid="tradeoff" pair="9d4e6dcd"
# ## 5. The trade-off itself
#
# Now select from the ideal generator: $\tau$ is the median of the reals, and a hundred of its four hundred pictures are kept. It draws nothing broken, so there is nothing to filter. What can a
# weight of 33 possibly improve? And what does it cost? Predict.

# %% [markdown] lang="ja" uid="tradeoff" pair="f0ae15b8"
# ## 5. トレードオフそのもの
#
# では、理想の生成器から選別しましょう。$\tau$ は実データの中央値で、400枚から100枚を残します。壊れた絵は1枚もないので、取り除くものがありません。重み33は、何を良くできるのでしょうか。
# そして何を失うのでしょうか。予想してください。

# %% uid="ideal-predict" tags=["quiz"]
lab.predict("ideal")

# %% uid="ideal-run"
weights = ["w33", "w1", "w003"]


def selection(part, candidates):
    """en: Measure every setting on a pool; the first eight pictures that three of them keep.
    ja: 候補に対してすべての設定を測り、そのうち3つの設定が残す最初の8枚を示します。
    """
    for s in l03.SELECTIONS:
        results[f"{part}.{s}"] = l03.selected(candidates, s, run_seed, sizes)
    kept = {s: l03.select(candidates.rho, real.density, *l03.SELECTIONS[s], 8, run_seed)[0] for s in weights}
    n = min(len(rows) for rows in kept.values() if len(rows))
    kept = {names[s]: rows[:n] for s, rows in kept.items() if len(rows)}
    shown = {name: candidates.rho[rows].tolist() for name, rows in kept.items()}
    return strips({k: candidates.pictures[rows] for k, rows in kept.items()}, scores=shown, score_label=r"$\rho$")


selection("ideal", ideal)

# %% uid="ideal-plane"
ideal_arms = [f"ideal.{s}" for s in l03.SELECTIONS]
on_plane("recall", "precision", ideal_arms, t("l03.ideal_plane"))

# %% uid="ideal-vendi"
on_record("vendi", ideal_arms, t("l03.vendi_title"))

# %% uid="ideal-claims"
lab.reveal("ideal", "diversity" if results["ideal.w33"]["recall"] < results["ideal.w1"]["recall"] else "nothing")
claim("ideal_recall_down", "ideal.w33", "ideal.w1", "recall")
claim("ideal_vendi_down", "ideal.w33", "ideal.w1", "vendi")
claim("ideal_distance_up", "ideal.w33", "ideal.w1", "kernel")
claim("ideal_recall_up", "ideal.w003", "ideal.w1", "recall")
claim("ideal_vendi_up", "ideal.w003", "ideal.w1", "vendi")

# %% [markdown] lang="en" uid="ideal-reading" pair="cc59ab14"
# **What you see.** Look at the strips first: $w = 33$ keeps one style with common hair, $w = 0.03$ brings glasses, beards, white and red heads, now and then a cartoon, and *both* rows are flawless. In the plane, selection with 33
# moves up and to the left: on record precision rises from .94 to .97, recall falls from .93 to .82. Among a hundred pictures the effective number of different ones falls from 6.0 to 5.2; the other way round,
# $w = 0.03$ raises it to 6.4 and lowers precision to .90. Recall rises by no more than $.006$ $[.001, .010]$ over thirty-five seeds, less than the smallest difference that we care about; it stands near its ceiling already. The kernel distance to the population grows in **both** directions,
# from 0.1 to 3.6 and 5.4; the Fréchet distance goes from 380 to 498, of which 380 is floor.
#
# **Why:** without errors, selection can only take away. Even perfect pictures lie outside of the balls of six hundred reals now and then, namely the unusual ones; when they are dropped, precision rises, though no
# picture got better. That is the trade-off of the title, and the reason why the paper's FID explodes at both of its ends (2.8 becomes 61 for $w = 33$ and 22 for $w = 0.03$): FID asks whether two populations are
# *equal*, and here they are made unequal on purpose. The article's advice to measure the effect by FID answers a question that nobody asked.
#
# **What would change it:** a lower threshold. With $\tau$ at the lowest tenth, `w = 2` moves hardly anything: a perfect generator has nothing at that end that must go.

# %% [markdown] lang="ja" uid="ideal-reading" pair="e5bfe279"
# **図の読み方。** まず画像の列を見てください。$w = 33$ が残すのは、同じ画風でありふれた髪の画像です。$w = 0.03$ では、眼鏡、ひげ、白や赤の髪、ときにはアニメ調の絵が現れます。*どちらの*行にも欠点はありません。
# 平面では、33の選別は左上へ動きます。記録の平均で、適合率は0.94から0.97に上がり、再現率は0.93から0.82に下がります。100枚のうちの実質的な種類の数は、6.0から5.2に減ります。逆に $w = 0.03$ では
# 6.4に増え、適合率は0.90に下がります。再現率の上昇は、35のシードで $.006$ $[.001, .010]$ にとどまり、意味のある最小の差に届きません。もともと上限に近いからです。母集団とのカーネル距離は**どちらの**方向でも増え、0.1から3.6と5.4になります。
# フレシェ距離は380から498になりますが、そのうち380はノイズフロアです。
#
# **理由:** 誤りがなければ、選別にできるのは取り除くことだけです。完璧な画像でも、600枚の実データの球から外れることがあります。外れるのは変わった画像です。それを捨てれば適合率は上がりますが、良くなった画像は
# 1枚もありません。これが題名にあるトレードオフで、論文の FID が両端で跳ね上がる理由でもあります(2.8が、$w = 33$ では61、$w = 0.03$ では22になります)。FID が測るのは2つの母集団が*等しい*かどうかですが、
# ここではわざと違うものにしているからです。効果を FID で測るという記事の助言では、ここで知りたいことは分かりません。
#
# **結果を左右するもの:** しきい値を下げることです。$\tau$ を下位1割にした `w = 2` では、ほとんど何も動きません。完璧な生成器には、その端に取り除くべきものがないからです。

# %% [markdown] lang="en" uid="portraits" pair="7bb7be8c"
# ## 6. The same rule on a model that errs
#
# Now PortraitSD, with captions of the same population: four hundred candidates, drawn once; every setting selects from the same pool. The pictures are scored exactly, against the reals.
# For the default seed they come with the course, as latents (`python -m labkit.studies.l03_shipped` drew them); with another seed the cell draws them itself, in a minute or two. Which row of section 1 will the rarest *generated* pictures resemble?

# %% [markdown] lang="ja" uid="portraits" pair="296f453d"
# ## 6. 間違いを犯すモデルに同じ規則を使う
#
# 次は PortraitSD です。同じ母集団のキャプションを与え、候補400枚を一度だけ生成して、どの設定もそこから選びます。生成画像の擬似密度は、実データとの距離から近似なしで計算します。
# 既定のシードの候補は、潜在変数として教材に付属しています(`python -m labkit.studies.l03_shipped` で生成したものです)。別のシードでは、セルがその場で生成し、1〜2分かかります。*生成した*画像のうち最も珍しいものは、第1節のどちらの行に似るでしょうか。


# %% uid="pool-run" tags=["slow"]
def bar(numbers):
    return lab.progress_bar(numbers, t("l03.pool"), len(numbers))


pool = lab.keep("pool", l03_shipped.model_pool, run_seed, sizes, bar)
ends(pool.pictures, pool.rho, t("l03.pool_title"))

# %% uid="model-run"
above = float((pool.rho > real.density.threshold(0.5)).double().mean())
print(t("l03.above_median", share=above, calls=forecast(above, 33)[2]))
selection("model", pool)

# %% [markdown] lang="en" uid="rare-or-broken" pair="fd5d88f2"
# **What you see.** In the first figure the lower row is a mixture: rare heads as in section 1; some that are damaged, with hair that dissolves into the background or smeared glasses; and many in which nothing is wrong
# by itself, only *foreign*: a moustache under a hairstyle where the reals hardly have one. The printed line counts them: of an ideal generator half of the pictures lie above the reals' median, of this model about
# a third (.32 over the recorded seeds). In the second figure $w = 33$ returns pictures like the reals, $w = 0.03$ the rest.
#
# **Why:** a caption names only some attributes. The others the model draws as in its *own* training data, where nothing was rare: the judge finds rare things in 33 % of its pictures and in 11 % of the ideal generator's.
# Density asks one question, "are there reals nearby?", and rare, broken and foreign get the same answer. Would a model trained on these very reals behave differently? Section 9 trains one.

# %% [markdown] lang="ja" uid="rare-or-broken" pair="992e5243"
# **図の読み方。** 最初の図の下の行には、いろいろなものが混じっています。第1節のような珍しい画像。髪が背景に溶け込んだり、眼鏡がにじんだりした、壊れた画像。そして、それ自体は何もおかしくないのに*よそ者*である
# 画像です。たとえば、実データではほとんど口ひげを伴わない髪型に、口ひげがあります。表示された行はその数を示しています。理想の生成器なら、実データの中央値より上に半分が来ますが、このモデルでは3分の1ほどです
# (記録したシードの平均は0.32)。2つ目の図では、$w = 33$ が実データに似た画像を、$w = 0.03$ が残りを返しています。
#
# **理由:** キャプションが指定する属性は一部だけです。残りは、モデルが*自分の*学習データのとおりに描きますが、そこでは何も珍しくありませんでした。評価役が珍しいものを見つける割合は、理想の生成器の画像で11%、
# このモデルの画像で33%です。密度が尋ねるのは「近くに実データがあるか」だけなので、珍しい画像にも、壊れた画像にも、よそ者の画像にも、同じ答えが返ります。この実データそのもので学習したモデルなら、
# 違うでしょうか。それは第9節で試します。

# %% uid="both-plane"
model_arms = [f"model.{s}" for s in (*l03.SELECTIONS, *l03.OTHER_KNOBS)]
on_plane("recall", "precision", ["ideal.w1", "ideal.w33", "ideal.w003", *model_arms], t("l03.both_plane"))

# %% uid="both-table"
columns = ["precision", "recall", "vendi", "kernel", "frechet", "rare", "calls"]
found = {m: means(lab.recorded, m, {a: a for a in ideal_arms + model_arms}) for m in columns}
rows = [
    [label(a), *(f"{found[m][a].value:.3g}" for m in columns)] for a in ideal_arms + model_arms if a in found["calls"]
]
show(*table([t("l03.recorded_setting"), *(measures[m] for m in columns)], rows))

# %% uid="model-claims"
claim("fidelity_up", "model.w33", "model.w1", "precision")
claim("diversity_down", "model.w33", "model.w1", "recall")
claim("vendi_down", "model.w33", "model.w1", "vendi")
claim("fidelity_down", "model.w003", "model.w1", "precision")
claim("diversity_up", "model.w003", "model.w1", "recall")
claim("vendi_up", "model.w003", "model.w1", "vendi")
claim("mild_portraits", "model.w2", "model.w1", "kernel")
claim("extreme_portraits", "model.w33", "model.w1", "kernel")
gain = {m: results["model.w33"][m] - results["model.w1"][m] for m in ("own_precision", "precision")}
extra = gain["own_precision"] - gain["precision"]
why = "" if np.isfinite(extra) else t("l03.too_few")
lab.claim("own_space", t("l03.own_space"), value=None if why else extra, seeds=[run_seed], reason=why)

# %% [markdown] lang="en" uid="model-reading" pair="943c1fc1"
# **What you see.** $w = 33$ does what the paper says to fidelity and diversity: precision from .89 to .96, recall from .92 to .85, Vendi from 6.5 to 5.5, at three generated pictures per kept one. But the distance
# **falls**, from 7.0 to 1.8, where the ideal generator's rose from 0.1 to 3.6; the claim that an extreme weight raises it is contradicted here, and a mild one lowers it as in the paper. The other end disappoints:
# $w = 0.03$ *lowers* recall, from .92 to .88, the Vendi score rises by less than the smallest difference that we care about, and the distance doubles.
#
# **Why:** this model's errors are larger than the trade-off. What $w = 33$ throws away is mostly what the reals do not have, so its share of rare things drops from 33 % to 9 %, close to the population's 11 %: the selection repairs a
# wrong population and is paid for it. What $w = 0.03$ keeps is different from other *pictures* (Vendi) and just as different from the *reals* (recall): diverse, but not in the sense that anybody wants. An average
# over both generators would have shown "no effect" and hidden two opposite ones. Guidance and noise scale are the knobs that a diffusion model has anyway. Over five seeds less noise (0.8) raises precision by $.028$ $[.001, .055]$; whether it costs recall, $-.040$ $[-.092, .013]$, they cannot say. Guidance 1 lowers recall by $.033$ $[.002, .064]$ and guidance 6 shows nothing. That any of the three brings
# the distance down does not show either ($+1.4$ to $+2.4$, with intervals of about 5 both ways). We would not expect it: none of them knows who the reals are.
#
# **What would change it:** a better model. As its errors shrink, its points move towards those of the ideal generator. The last box compares the gain of precision in the space that chose with that of the judge: the
# first is larger, by .043 $[.025, .062]$ over fourteen seeds. With five seeds that interval still touched zero. A space in which one selects flatters the selection.

# %% [markdown] lang="ja" uid="model-reading" pair="3f0b7fd8"
# **図の読み方。** $w = 33$ は、忠実度と多様性については論文のとおりに働きます。適合率は0.89から0.96に上がり、再現率は0.92から0.85に、Vendi スコアは6.5から5.5に下がります。費用は採用1枚あたり3枚の生成です。ところが、
# 距離は7.0から1.8に**下がります**。理想の生成器では0.1から3.6に増えていました。極端な重みが距離を増やすという主張は、ここでは反対の結果になりました。弱い重みは、論文と同じく距離を減らします。反対側は期待外れです。
# $w = 0.03$ では、再現率がかえって0.92から0.88に*下がり*、Vendi スコアの上昇は意味のある最小の差に届かず、距離は2倍になります。
#
# **理由:** このモデルの誤りが、トレードオフより大きいからです。$w = 33$ が捨てるものの大半は、実データにないものです。珍しいものの割合は33%から9%に減り、母集団の11%に近づきます。つまり、選別が間違った
# 母集団を直し、その分だけ得をしています。$w = 0.03$ が残すものは、ほかの*画像*とも違いますが(Vendi)、*実データ*とも違います(再現率)。数字の上では多様でも、誰も求めていない多様さです。2つの生成器を平均していたら
# 「効果なし」に見え、正反対の2つの効果が隠れていたでしょう。誘導スケールとノイズの大きさは、拡散モデルにもともとある調整手段です。5つのシードで、ノイズを0.8倍に減らすと適合率が $.028$ $[.001, .055]$ 上がりますが、再現率が下がるかどうかは決まりません($-.040$ $[-.092, .013]$)。誘導スケール1では再現率が $.033$ $[.002, .064]$ 下がり、6では変化が見られません。距離が下がる様子は、
# 3つのどれにもありません($+1.4$ から $+2.4$、区間はどちらの向きにも5ほど)。どの手段も実データを知らないので、下がると期待する理由もありません。
#
# **結果を左右するもの:** モデルの良さです。誤りが減るほど、点は理想の生成器の点に近づきます。最後の枠は、適合率の上昇を、選別に使った空間と評価役の空間とで比べたものです。14のシードでは、前者が
# 0.043 $[.025, .062]$ だけ大きくなりました。5つのシードでは、区間がまだ0にかかっていました。選別に使った空間で測ると、選別の効果は実際より大きく見えます。

# %% [markdown] lang="en" uid="weights" pair="fbc4ae4e"
# ### Weights instead of dice
#
# The paper calls selection *importance sampling*, and the textbook method of that name throws nothing away: every candidate stays and counts with a weight $a_i$, here your acceptance probability. For an average $m$ of some property $v$ over the wished-for population,
#
# $$m = \frac{\sum_i a_i v_i}{\sum_i a_i}, \qquad \mathrm{error}(m) = \frac{\sqrt{\sum_i a_i^2 (v_i - m)^2}}{\sum_i a_i}, \qquad n_{\mathrm{eff}} = \frac{(\sum_i a_i)^2}{\sum_i a_i^2}.$$
#
# The first is a mean in which weights take the place of counts. The second is the usual error of a mean: each term $a_i (v_i - m)$ is an independent chance with its own size, their squares add up, and the sum of weights divides. The third asks how many *equal* samples would be worth as much; put $a_i = 1$ into it and $n$ comes out. Only the ratios of the weights matter.
#
# **Exercise (difficulty 4).** Write `weighted_mean`, all three numbers. By hand: $v = (1, 0, 1, 0)$ with $a = (1, 1, .25, .25)$ gives $m = 1.25/2.5 = 0.5$, the error $\sqrt{2.125 \cdot 0.25}/2.5 = 0.292$, and $n_{\mathrm{eff}} = 6.25/2.125 = 2.94$. What can dice do that weights cannot?

# %% [markdown] lang="ja" uid="weights" pair="6a522eed"
# ### さいころの代わりに重みを使う
#
# 論文は選別を*重点サンプリング*と呼びますが、教科書でこの名前が付いている方法は何も捨てません。すべての候補を残し、1枚ずつ重み $a_i$ を付けて数えます。ここでの重みは、先ほど書いた受理確率です。望む母集団での、ある性質 $v$ の平均 $m$ は次のようになります。
#
# $$m = \frac{\sum_i a_i v_i}{\sum_i a_i}, \qquad \mathrm{error}(m) = \frac{\sqrt{\sum_i a_i^2 (v_i - m)^2}}{\sum_i a_i}, \qquad n_{\mathrm{eff}} = \frac{(\sum_i a_i)^2}{\sum_i a_i^2}.$$
#
# 1つ目は、枚数の代わりに重みで数えた平均です。2つ目は平均の誤差です。各項 $a_i (v_i - m)$ はそれぞれの大きさを持つ独立な偶然なので、2乗して足し、重みの和で割ります。3つ目は、重みの*等しい*標本なら何枚分に当たるかを表します。$a_i = 1$ を代入すると $n$ になります。意味を持つのは重みの比だけです。
#
# **課題(難易度4)。** 3つの数を返す `weighted_mean` を書いてください。手計算の例: $v = (1, 0, 1, 0)$、$a = (1, 1, .25, .25)$ なら、$m = 1.25/2.5 = 0.5$、誤差は $\sqrt{2.125 \cdot 0.25}/2.5 = 0.292$、$n_{\mathrm{eff}} = 6.25/2.125 = 2.94$ です。さいころにはできて、重みにはできないことは何でしょうか。


# %% uid="weights-exercise" tags=["exercise"] exercise="weighted_mean"
def weighted_mean(values, weights):
    """en: (mean, its standard error, effective number) of values [n] with weights [n], three floats.
    ja: 値 values [n] と重み weights [n] から、(平均, その標準誤差, 実質的な標本数) を3つのfloatで返します。
    """
    # BEGIN SOLUTION
    total = weights.sum()
    mean = (weights * values).sum() / total
    error = (weights.square() * (values - mean).square()).sum().sqrt() / total
    return float(mean), float(error), float(total.square() / weights.square().sum())
    # END SOLUTION


# %% uid="weights-exercise-check" tags=["check"]
lab.check("weighted_mean")
weighted_mean = lab.use("weighted_mean")

# %% uid="weights-use"
median = real.density.threshold(0.5)
for s, w in {"w1": 1.0, "w33": 33.0, "w003": 0.03}.items():
    chances = acceptance(pool.rho, median, w).double()
    mean, error, effective = weighted_mean(pool.rare.double(), chances)
    found = {"mean": mean, "error": error, "effective": effective, "total": len(chances)}
    print(t("l03.by_weights", w=w, n=sizes.kept, kept=results[f"model.{s}"]["rare"], **found))

# %% [markdown] lang="en" uid="weights-reading" pair="92acf207"
# **Reading.** Both ways estimate the same share, and the weights need no dice: four hundred pictures went in, and no chance came on top. What $w = 33$ costs is visible all the same. Of four hundred pictures about 140 count, about as many as the dice would have kept: $n_{\mathrm{eff}}$ is the price of section 3 in another currency. With a mild weight the weights win, for they also use the rejected
# pictures a little. **What dice can do and weights cannot:** ship. An average can be weighted; a picture is either in the catalogue or not.

# %% [markdown] lang="ja" uid="weights-reading" pair="ff9bbd71"
# **結果の読み方。** どちらの方法も同じ割合を推定しています。重みを使えばさいころが要らないので、400枚の候補に、さいころの偶然は加わりません。それでも、$w = 33$ の代償は見えます。400枚のうち数に入るのは140枚ほどで、さいころで残る枚数とほぼ同じです。$n_{\mathrm{eff}}$ は、第3節の費用を別の単位で表したものなのです。弱い重みなら、棄却されるはずの画像も少しは使えるので、
# 重みの方が得です。**さいころにできて、重みにできないこと**は、出荷です。平均なら重みを付けて計算できますが、画像はカタログに載せるか載せないかのどちらかです。

# %% [markdown] lang="en" uid="own" pair="0913cfc1"
# ## 7. Your experiment: rare, but whole
#
# **Open task (difficulty 5).** Choose a hundred pictures of your pool in which rare things are *more frequent* than under $w = 1$, at a precision that is no more than 0.02 lower. One density cannot do it. You may use two: `rho`, with $k = 10$ neighbours, and
# `rho_near`, with $k = 2$. A cartoon drawing has few relatives among the reals, but it has *some*: a small $k$ can find them, where ten neighbours reach beyond its kind. A broken picture has none
# at either scale. Your rule may be a band, a product, a ratio, anything that gives a probability. There is no single right answer: precision and the share of rare things, as the judge reads them, say
# how good it is. (The judge itself must not be used for choosing.)
#
# The rule below is a first try: on the pool of the default seed it gains rare things and gives up too much precision. Predict where your star will lie, then run. Change the rule and run again; ten seconds each.

# %% [markdown] lang="ja" uid="own" pair="68923268"
# ## 7. 自分の実験: 珍しく、しかも壊れていない画像
#
# **自由課題(難易度5)。** 自分の候補から100枚を選び、適合率の低下を0.02以内に抑えながら、珍しいものを $w = 1$ のときより*多く*してください。密度1つではできません。使えるのは2つです。
# 近傍が $k = 10$ 個の `rho` と、$k = 2$ 個の `rho_near` です。アニメ調の絵には、実データの中に仲間が少ししかいませんが、*少しは*います。10個の近傍では種類の違う画像まで
# 届いてしまいますが、小さな $k$ なら仲間が見つかります。壊れた画像には、どちらの尺度でも仲間がいません。規則は、区間でも、積でも、比でも、確率になるものなら何でもかまいません。正解は1つではなく、
# 評価役が読み取る適合率と、珍しいものの割合で判定します(評価役を選別に使ってはいけません)。
#
# 下の規則は最初の試みです。既定のシードの候補では、珍しいものは増えますが、適合率を失いすぎます。星がどこに来るかを予想してから実行してください。規則を変えて何度でも試せます。1回10秒ほどです。


# %% uid="own-rule" tags=["open"]
def my_rule(rho, rho_near, quantile):
    """en: Probability [P] of keeping each candidate; quantile(values, q) is the q-quantile of the reals of either density.
    ja: 各候補を残す確率 [P] です。quantile(密度, q) は、その密度の実データでの q 分位点です。
    """
    whole = rho_near > quantile("rho_near", 0.25)
    rare = rho < quantile("rho", 0.4)
    return (whole & rare).double() + 0.02


# %% uid="own-run"
near = PseudoDensity(k=2).fit(real.density.features)
quantiles = {"rho": real.density.threshold, "rho_near": near.threshold}
wish = my_rule(pool.rho, near.score(pool.control), lambda name, q: quantiles[name](q)).clamp(0, 1)
chance = torch.rand(len(wish), generator=lab.generator(700), dtype=torch.float64)
# en: the candidates that chance and your rule like best
# ja: 偶然と規則が最も好む候補
chosen = (chance / wish.clamp(min=1e-9)).argsort()[: sizes.kept]
own, plain = l03.of_rows(pool, chosen, real), results["model.w1"]
print(t("l03.own_result", rare=own["rare"], rare_plain=plain["rare"], lost=plain["precision"] - own["precision"]))
strips({t("l03.own_choice"): pool.pictures[chosen[:8]]}, scores={t("l03.own_choice"): pool.rho[chosen[:8]].tolist()})

# %% uid="own-plane"
arms = [f"model.{s}" for s in l03.SELECTIONS]
found = [means(lab.recorded, m, {label(a): a for a in arms}) for m in ("rare", "precision")]
both = {name: (found[0][name], found[1][name]) for name in found[0]}
stars = {names["w1"]: (plain["rare"], plain["precision"]), t("l03.own_choice"): (own["rare"], own["precision"])}
recorded_plane(both, yours=stars, xlabel=measures["rare"], ylabel=measures["precision"], title=t("l03.own_title"))

# %% [markdown] lang="en" uid="own-reading" pair="4bc169c5"
# **Reading.** The recorded points lie on a falling line: with one density, what is rare is bought with precision. A star to the upper right of the line has found a second piece of information. Look
# at the faces as well, for the judge is a network, too. If your rule does no better than the line: does `rho_near` carry anything that `rho` does not? Compare their ranks on the pool. What would change it: a larger
# real set. With six hundred reals only about two dozen are cartoons, and a rarer kind would have no neighbours even at $k = 2$.

# %% [markdown] lang="ja" uid="own-reading" pair="38fb226c"
# **図の読み方。** 記録済みの点は右下がりに並びます。密度が1つだけなら、珍しさは適合率と引き換えです。星がその線より右上にあれば、2つ目の情報を見つけたことになります。評価役もネットワークに
# すぎないので、顔も見てください。線より良くならなければ、`rho_near` に `rho` とは違う情報があるかどうかを、候補での順位で比べてみましょう。結果を変えるのは、実データを増やすことです。600枚の
# 実データのうち、アニメ調の絵は20数枚しかありません。もっと珍しいものには、$k = 2$ でも近傍がありません。

# %% [markdown] lang="en" uid="push" pair="4517b09d"
# ## 8. Pushing one picture
#
# Selection waits for good luck. The first method of the paper makes it: keep the picture's initial noise $z$ and change it a little. How little? No coordinate by more than $\epsilon$, a
# box. Inside of it climb the density of what comes out:
#
# $$\max_{\lVert\delta\rVert_\infty \le \epsilon} \; \rho\big(F(G(z + \delta))\big)$$
#
# $G$ is the whole sampler, $F$ the control network. The gradient $g$ with respect to $\delta$ runs backwards through both. Its size depends on the scale of $\rho$, which means little (section 2), so
# only its sign is used: every coordinate moves by $\alpha$, then the sum is clipped into the box.
#
# **Exercise (difficulty 2).** Write the step. By hand, with $\alpha = 0.025$ and $\epsilon = 0.1$: a coordinate at $0.09$ with a positive gradient goes to $0.1$, not $0.115$.

# %% [markdown] lang="ja" uid="push" pair="83f3abc3"
# ## 8. 1枚を動かす
#
# 選別は当たりが出るのを待つ方法です。論文の1つ目の方法は、当たりを自分で作ります。画像の初期ノイズ $z$ を少しだけ変えるのです。「少し」とは、どの成分も $\epsilon$ までという意味で、
# 箱の形になります。その中で、生成される画像の密度が最も高くなる点を探します。
#
# $$\max_{\lVert\delta\rVert_\infty \le \epsilon} \; \rho\big(F(G(z + \delta))\big)$$
#
# $G$ はサンプラー全体、$F$ は制御用のネットワークです。$\delta$ についての勾配 $g$ は、両方を逆向きに通って届きます。その大きさは、あまり意味のない $\rho$ の値の尺度に左右されるので
# (第2節)、使うのは符号だけです。どの成分も $\alpha$ だけ動かし、和を箱の中に戻します。
#
# **課題(難易度2)。** この1ステップを書いてください。手計算の例: $\alpha = 0.025$、$\epsilon = 0.1$ のとき、勾配が正で $0.09$ にある成分は、$0.115$ ではなく $0.1$ になります。


# %% uid="push-exercise" tags=["exercise"] exercise="push_step"
def push_step(delta, gradient, alpha, eps):
    """en: The next delta: one sign step of length alpha, then back into the box of half width eps.
    ja: 次の delta です。勾配の符号の方向に alpha だけ進み、幅の半分が eps の箱の中に戻します。
    """
    # BEGIN SOLUTION
    return (delta + alpha * gradient.sign()).clamp(-eps, eps)
    # END SOLUTION


# %% uid="push-check" tags=["check"]
lab.check("push_step")
push_step = lab.use("push_step")

# %% [markdown] lang="en" uid="best" pair="260da457"
# A step of fixed length has a flaw: near the top it jumps across, and the last iterate is seldom the best one. The paper's code returns the last. Every iterate has been scored on the way, so keeping
# the best one costs nothing.
#
# **Exercise (difficulty 3).** Write `best_iterate`: `path` $[S, B, \dots]$ holds the noise of $B$ pictures after $0, 1, \dots, S - 1$ steps, `scores` $[S, B]$ what they scored. Return for each picture
# its best iterate $[B, \dots]$. Different pictures may have their best at different steps; the start counts, too. By hand: scores $(1, 3, 2)$ for one picture and $(5, 4, 4)$ for another keep step 1 of
# the first and step 0 of the second.

# %% [markdown] lang="ja" uid="best" pair="9782c3d6"
# 歩幅が一定だと、困ったことが起きます。頂上の近くでは飛び越えてしまい、最後の点が最良であることはまれです。論文のコードは最後の点を返します。途中の点はすべて採点済みなので、最良の点を
# 取っておくのに追加の計算は要りません。
#
# **課題(難易度3)。** `best_iterate` を書いてください。`path` $[S, B, \dots]$ は $B$ 枚の画像の $0, 1, \dots, S - 1$ ステップ後のノイズ、`scores` $[S, B]$ はその得点です。画像ごとに最良の点
# $[B, \dots]$ を返します。最良のステップは、画像ごとに異なることがあります。出発点も候補に含めます。手計算の例: 得点が $(1, 3, 2)$ の画像ではステップ1、$(5, 4, 4)$ の画像ではステップ0を
# 残します。


# %% uid="best-exercise" tags=["exercise"] exercise="best_iterate"
def best_iterate(path, scores):
    """en: The iterate of the highest score of each picture: path [S, B, ...], scores [S, B] -> [B, ...].
    ja: 画像ごとに得点が最も高い点です。path [S, B, ...] と scores [S, B] から [B, ...] を返します。
    """
    # BEGIN SOLUTION
    return path[scores.argmax(dim=0), torch.arange(path.shape[1])]
    # END SOLUTION


# %% uid="best-check" tags=["check"]
lab.check("best_iterate")
best_iterate = lab.use("best_iterate")

# %% uid="push-ring" tags=["widget"]
from labkit.density import fit_mlp

ring_mlp = fit_mlp(ring, generator=lab.generator(), epochs=sizes.mlp_epochs, widths=(64, 64))
z_ring = torch.randn(40, 3, generator=lab.generator(500), dtype=torch.float64)
lost = int(ring.score(ring_generator(z_ring)).argmin())


def push_on_ring(which, direction, scorer):
    """en: Ten steps of one generated point in a box of 0.3.
    ja: 生成した1点を、0.3の箱の中で10ステップ動かします。
    """
    score = {"exact": ring.soft_score, "mlp": ring_mlp.soft_score}[scorer]
    z, deltas = z_ring[which : which + 1], [torch.zeros(1, 3, dtype=torch.float64)]
    for _ in range(10):
        moved = (z + deltas[-1]).requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(ring_generator(moved)).sum(), moved)
        deltas.append(push_step(deltas[-1], direction * gradient, 0.075, 0.3))
    made = [ring_generator(z + delta) for delta in deltas]
    climbed = direction * torch.stack([score(x) for x in made])  # [11, 1]
    best = int(climbed.argmax())
    kept = best_iterate(torch.stack(made), climbed)
    said, true = (float(f(kept) / f(made[0])) for f in (score, ring.score))
    return path_in_box(
        torch.cat(deltas), torch.cat(made), eps=0.3, background=points, best=best, xlabel=t("l03.step"),
        title=t("l03.push_title", said=said, true=true, best=best), ylabel=t("l03.delta_axis"),
        titles=(t("l03.in_the_box"), t("l03.in_the_data")),
    )  # fmt: skip


push_controls = {
    "which": slider(t("l03.point"), 0, 39, lost),
    "direction": choice(t("l03.direction"), {t("l03.up"): 1, t("l03.down"): -1}),
    "scorer": choice(t("l03.scorer"), {t("l03.exact"): "exact", "MLP": "mlp"}),
}
explore(push_on_ring, push_controls)

# %% [markdown] lang="en" uid="push-portraits" pair="9e330b0e"
# **What to look for:** the coordinates run to the walls of the box and zigzag where the top is near; the ring marks the iterate that is kept. Switch the scorer to the **MLP**: the paper does not climb the exact
# density but a small network that was trained on the reals to imitate it. Find a point where it promises more than the exact density keeps.
#
# Now through a whole diffusion sampler, a few pictures. The control takes the same number of steps with *random* signs, and keeps its best iterate as well: eleven lottery tickets against ten gradients.

# %% [markdown] lang="ja" uid="push-portraits" pair="55e684f1"
# **見るところ:** 各成分は箱の壁へ向かって進み、頂上が近いとジグザグに動きます。丸で囲んだのが、残す点です。次に、スコアを **MLP** に切り替えてください。論文が最大化するのは厳密な密度ではなく、それを
# 真似るように実データで学習した小さなネットワークです。MLP の約束が、厳密な密度より大きい点を探してください。
#
# 次は拡散モデルのサンプラー全体を通して、数枚の画像で行います。対照は、同じ回数だけ*ランダムな*符号で動かすもので、こちらも最良の点を残します。10回の勾配と、11枚のくじの勝負です。

# %% uid="push-run" tags=["slow"]
plans = ["up", "down", "random"]
total = len(plans) * (sizes.pgd + 1)
ticks = iter(lab.progress_bar(range(total), t("l03.pushing"), total))
pushes = {plan: lab.keep("push", l03.pushed, plan, run_seed, sizes, lambda: next(ticks, None)) for plan in plans}
_ = list(ticks)
for plan, run in pushes.items():
    last = (run.climbed[-1] / run.climbed[0]).log()
    results[f"push.{plan}"] = {"log_gain": (run.after / run.before).log().numpy(), "last": last.numpy()}
pushed_pictures = l03.push_pictures({name: pushes[name].z for name in ("up", "down")}, run_seed, sizes)
shown = {t("l03.pushed_down"): "down", t("l03.start"): "start", t("l03.pushed_up"): "up"}
values = {"start": pushes["up"].before, "down": pushes["down"].after, "up": pushes["up"].after}
strips(
    {name: pushed_pictures[key] for name, key in shown.items()},
    scores={name: values[key].tolist() for name, key in shown.items()}, score_label=r"$\rho$",
)  # fmt: skip

# %% uid="push-record"
on_record("log_gain", [f"push.{plan}" for plan in l03.PUSHES], t("l03.push_bars"))

# %% uid="push-claims"
claim("push_up", "push.up", "push.random", "log_gain")
claim("push_down", "push.down", "push.random", "last")
lab.claim("mlp_overrates", measured=t("l03.promise"), reason=t("l03.recorded_only"))

# %% [markdown] lang="en" uid="push-reading" pair="4b149cd0"
# **What you see.** Over forty recorded pictures ten gradient steps multiply the density by 1.08 ($e^{.078}$) upwards and by 0.94 downwards. The last iterate would have given 1.05: two fifths of the gain had been walked past,
# and the best one was found after seven steps on average. Eleven random tickets give 1.01. In the strip the change is hard to see: a shade, an outline, no other person. Between the two rows of section 1 lies a factor of about 1.5.
#
# **Why:** the box is small. No coordinate of the noise may move by more than 0.1, a tenth of its standard deviation, and a deterministic sampler turns near noises into near pictures. Such a push polishes; it does not make a typical person of
# a rare one.
#
# **What did not come true:** we had expected the MLP to promise more than the exact density keeps, for a network can be fooled along its own gradient. Over fourteen seeds it promised $.050$ and kept $.045$; a difference of $.005$ $[-.006, .016]$ is less than
# the two per cent that we call an effect. In this small box the pictures stay where the MLP was trained. **What would change it:** a larger $\epsilon$ (on the ring, with 0.3, you found points where it errs) or fewer reals to train on.

# %% [markdown] lang="ja" uid="push-reading" pair="680afd05"
# **図の読み方。** 記録した40枚では、10回の勾配ステップで密度が上向きに1.08倍($e^{.078}$)、下向きに0.94倍になりました。最後の点なら1.05倍でした。途中で得たものの5分の2を失っていたわけで、最良の点は平均して7ステップ目に
# ありました。11枚のランダムなくじでは1.01倍です。画像の列では、違いがほとんど分かりません。色合いや輪郭が少し変わるだけで、別の人にはなりません。第1節の2つの行の間には、約1.5倍の差があります。
#
# **理由:** 箱が小さいからです。ノイズのどの成分も0.1、つまり標準偏差の10分の1までしか動けません。そして決定論的なサンプラーは、近いノイズから近い画像を作ります。このような摂動は磨くだけで、珍しい人を典型的な人に
# 変えることはありません。
#
# **予想が外れたこと:** ネットワークは自分の勾配に沿って騙されやすいので、MLP の約束は厳密な密度より大きいと予想していました。実際には、14個のシードの平均で、約束が $.050$、厳密な値が $.045$ でした。差は $.005$ $[-.006, .016]$ で、効果とみなす2%に届きません。
# この小さな箱の中では、画像が MLP の学習した範囲にとどまるからです。**結果を左右するもの:** $\epsilon$ を大きくするか(0.3にしたリングでは、MLP が間違える点が見つかりました)、学習に使う実データを減らすことです。

# %% [markdown] lang="en" uid="tune" pair="db41ab5a"
# ## 9. Changing the model
#
# The third method trains: pictures above $\tau$ are drawn $w$ times as often. Where does that lead in the end? Think of a GAN on two bins, above and below, with shares $\pi$ and $1 - \pi$ of the reals. Its ideal
# discriminator sees reals above $\tau$ with weight $w_{\text{real}}$ and fakes above $\tau$ with weight $w_{\text{fake}}$. The generator stops changing when both look alike in both bins, that is when
# $p \, w_{\text{fake}} \propto \pi \, w_{\text{real}}$, so
#
# $$p_{\text{above}} : p_{\text{below}} = \frac{w_{\text{real}}}{w_{\text{fake}}}\,\pi : (1 - \pi)$$
#
# The paper sets $w_{\text{fake}} = 1/w_{\text{real}}$, which makes the ratio $w^2$: a weight of 33 means 1089. A diffusion model sees no fakes in training: its ratio is $w$.
#
# **Exercise (difficulty 3).** Write `fixed_share`, the share above $\tau$ at that point. By hand: $\pi = 0.5$ and $w_{\text{real}} = 4$ give $0.8$; with $w_{\text{fake}} = 1/4$ as well, $16/17 = 0.941$.

# %% [markdown] lang="ja" uid="tune" pair="170ce71d"
# ## 9. モデルを変える
#
# 3つ目の方法は学習です。$\tau$ より上の画像を $w$ 倍の頻度で引きます。最後にはどこへ行き着くのでしょうか。上側と下側という2つのビンだけの GAN を考えます。実データの割合は $\pi$ と
# $1 - \pi$ です。理想的な識別器は、$\tau$ より上の実データを重み $w_{\text{real}}$ で、生成データを重み $w_{\text{fake}}$ で見ます。両方のビンで実データと生成データが同じに見えれば、つまり
# $p \, w_{\text{fake}} \propto \pi \, w_{\text{real}}$ になれば、生成器は変わらなくなります。したがって、
#
# $$p_{\text{above}} : p_{\text{below}} = \frac{w_{\text{real}}}{w_{\text{fake}}}\,\pi : (1 - \pi)$$
#
# 論文では $w_{\text{fake}} = 1/w_{\text{real}}$ とするので、この比は $w^2$ です。重み33は1089倍を意味します。拡散モデルの学習には生成データが現れないので、比は $w$ です。
#
# **課題(難易度3)。** この状態で $\tau$ より上にある割合 `fixed_share` を書いてください。手計算の例: $\pi = 0.5$、$w_{\text{real}} = 4$ なら $0.8$ です。さらに $w_{\text{fake}} = 1/4$ なら、
# $16/17 = 0.941$ です。


# %% uid="share-exercise" tags=["exercise"] exercise="fixed_share"
def fixed_share(pi, w_real, w_fake=1.0):
    """en: Share above tau where weighted training leads, from the share pi of the reals: a float in (0, 1).
    ja: 重み付き学習が行き着く、tau より上の割合です。実データの割合 pi から、(0, 1) の float を返します。
    """
    # BEGIN SOLUTION
    above = pi * w_real / w_fake
    return above / (above + 1 - pi)
    # END SOLUTION


# %% uid="share-check" tags=["check"]
lab.check("fixed_share")
fixed_share = lab.use("fixed_share")


# %% uid="histogram-gan"
def histogram_gan(w_real, w_fake, pi=0.5, updates=40):
    """en: Share above tau of a generator on two bins that follows an ideal discriminator, after each update.
    ja: 理想的な識別器に従う、2つのビンの生成器です。tau より上の割合を更新ごとに返します。
    """
    reals, fakes, shares = torch.tensor([1 - pi, pi]), torch.tensor([1 - pi, pi]), []
    for _ in range(updates + 1):
        shares.append(float(fakes[1]))
        seen = [
            w * p / (w * p).sum()
            for w, p in ((torch.tensor([1.0, w_real]), reals), (torch.tensor([1.0, w_fake]), fakes))
        ]
        # en: towards the odds D / (1 - D), in small steps
        # ja: オッズ D / (1 - D) に向けて、少しずつ進みます
        fakes = fakes * (seen[0] / seen[1]) ** 0.2
        fakes = fakes / fakes.sum()
    return shares


curves = {t("l03.weights_reals"): histogram_gan(4.0, 1.0), t("l03.weights_both"): histogram_gan(4.0, 0.25)}
curve_with_interval(
    range(41), curves, xlabel=t("l03.updates"), ylabel=t("l03.share"), title=t("l03.gan_title"),
    reference={"$w$": fixed_share(0.5, 4.0), "$w^2$": fixed_share(0.5, 4.0, 0.25)},
)  # fmt: skip

# %% [markdown] lang="en" uid="tune-portraits" pair="6648cc41"
# **Reading.** Both curves end on the dashed lines that your formula drew: the number called $w$ in the paper is not the ratio that comes out. But look at *when*: nobody who trains for a few hundred steps is near
# the end, so how long one trains is part of the method.
#
# Now PortraitSD. The paper compares with the *pretrained* model. Here the same steps also run **without weights**: what they do is not due to pseudo density. All runs share noise and
# timesteps, and the pictures share their initial noise, so that each picture can be compared with itself. The prompt is open ("a portrait of a person") and guidance is off, so that the model decides how typical it is.
#
# **Decide.** Choose a weight for your own run: 33 and 0.03 are the paper's and recorded; anything else is new. Which numbers will differ from the run without weights?

# %% [markdown] lang="ja" uid="tune-portraits" pair="64814eb1"
# **図の読み方。** どちらの曲線も、自分の式が描いた破線に行き着きます。論文で $w$ と呼ばれる数は、実際に現れる比とは違うのです。ただし、*いつ*行き着くかも見てください。数百ステップ学習しただけでは、
# 終点にはほど遠いのです。どれだけ長く学習するかも、方法の一部です。
#
# 次は PortraitSD です。論文の比較対象は*事前学習済み*モデルです。ここでは同じステップを**重みなし**でも実行します。それで変わるものは、擬似密度の効果ではありません。どの学習も同じノイズと
# タイムステップを使い、画像の初期ノイズも共通なので、1枚ごとに比べられます。プロンプトは何も指定しない "a portrait of a person" とし、誘導も使いません。どれだけ典型的な画像にするかは、モデルに任せます。
#
# **選んでみましょう。** 自分の実行で使う重みを決めてください。33と0.03は論文の値で、記録もあります。それ以外なら新しい実験です。重みなしと違ってくるのは、どの数値でしょうか。

# %% uid="tune-predict" tags=["quiz"]
lab.predict("tune")

# %% uid="tune-run" tags=["slow"]
own_w = 33.0

own_arm = {33.0: "w33", 0.03: "w003"}.get(own_w, "own")
names |= {"own": t("l03.own_w", w=own_w), "w1": t("l03.no_weights")}


def steps_bar():
    return iter(lab.progress_bar(range(sizes.tune_steps), t("l03.tuning")))


# en: None: not tuned at all; 1.0: tuned without weights. For the default seed the pictures of these two are shipped
# en: (not on tier smoke); your own weight trains here
# ja: None は学習前のモデル、1.0は重みなしの学習です。既定のシードでは、この2つのモデルの画像が教材に付属しています
# ja: (tier smoke を除く)。自分の重みの学習は、ここで行います
weights_of_runs = {"pretrained": None, "w1": 1.0, own_arm: own_w}
tuned = {
    arm: lab.keep("tuned", l03_shipped.tuned_pool, w, run_seed, sizes, steps_bar) for arm, w in weights_of_runs.items()
}

# %% uid="tune-look"
results |= {f"tune.{arm}": l03.tune_measures(made, run_seed, sizes) for arm, made in tuned.items()}
pi = float(np.mean(results["tune.w1"]["above"]))
print(
    t(
        "l03.fixed_point",
        w=own_w,
        pi=pi,
        share=fixed_share(pi, own_w),
        found=np.mean(results[f"tune.{own_arm}"]["above"]),
    )
)
shown = {label(f"tune.{arm}"): made for arm, made in tuned.items()}
strips(
    {name: made.pictures[:8] for name, made in shown.items()},
    scores={name: made.rho[:8].tolist() for name, made in shown.items()}, score_label=r"$\rho$",
    title=t("l03.same_noise"),
)  # fmt: skip

# %% uid="tune-record"
tune_arms = [f"tune.{arm}" for arm in l03.RATIOS]
on_record("above", tune_arms, t("l03.tune_share_title"))

# %% uid="tune-diversity"
on_plane("recall", "precision", tune_arms, t("l03.tune_plane"))

# %% uid="tune-claims"
claim("tune_density", "tune.w33", "tune.w1", "log_rho")
claim("tune_share", "tune.w33", "tune.w1", "above")
claim("tune_fidelity", "tune.w33", "tune.w1", "precision")
claim("tune_diversity", "tune.w003", "tune.w1", "recall")
claim("tune_vendi", "tune.w003", "tune.w1", "vendi")
claim("control_alone", "tune.w1", "tune.pretrained", "kernel")
lab.reveal("tune", "share" if np.mean(results[f"tune.{own_arm}"]["above"]) > pi else "nothing")

# %% [markdown] lang="en" uid="tune-reading" pair="3f342588"
# **What you see.** Take two comparisons apart. *No weights against pretrained*: the same pictures, drawn evenly, already teach the model whom this population consists of. On record the share above $\tau$ rises from .14 to .24 and
# the kernel distance falls from 24 to 17, over the thirty seeds that both have. None of that is due to pseudo density, and a table that compares the weighted run with the pretrained model alone would credit it with all of this. *A weight against no weights*: same noise, same
# timesteps, same initial noise, only the draws differ. $w = 33$ ends at .33 and $w = 0.03$ at .18, in the directions that the paper promises.
#
# **What the record decides.** $w = 33$ against no weights, over thirty seeds: more pictures above $\tau$, $+.091$ $[.068, .114]$; higher log density, $+.022$ $[.017, .027]$; higher precision, $+.030$ $[.015, .045]$. All three are **reproduced**. With the first five seeds none of them
# was: the share stood at $+.06$ $[-.02, .14]$, and one seed of five went the other way. $w = 0.03$ buys no diversity that matters: over 97 seeds Vendi gains $.06$ $[.04, .09]$, and we had asked for .2. Recall, which should rise, even falls, by $.013$ $[.004, .021]$: **contradicted**. It took all of the 97: after thirty it still stood at $-.009$ $[-.026, .007]$. Why? The weight seems to slow down what the same steps teach without it, for its draws come from the reals that are least like the others. Training evenly raises recall, from .81 to .83; this weight leaves it at .81. The kernel distance ends at 21 instead of 18 (the mean of all 97), farther by $3.0$ $[2.5, 3.6]$, and of the base's 54 % of rare pictures 43 % are left instead of 38 %. We noticed that afterwards, and no run with more steps has tested it.
# The share at 33 less that at 0.03 we noticed *after* the first five seeds, so those cannot prove it. The twenty-five seeds that came later can: .144 $[.117, .172]$.
#
# **Why it is small so far:** compare with the fixed point in the printed line, which is far away. A hundred and twenty steps are the beginning of the way. **What would change it:** more steps, more seeds. But on the way to $w = 33$ the model
# unlearns half of its population, which is the price of section 5 again, paid once and for good.

# %% [markdown] lang="ja" uid="tune-reading" pair="1e62e7cb"
# **図の読み方。** 2つの比較を分けて読んでください。*重みなしと事前学習済み*: 同じ画像を均等に引いて学習するだけでも、モデルはこの母集団にどんな人がいるかを学びます。両方を記録した30のシードの平均で、$\tau$ より上の割合は0.14から0.24に上がり、
# カーネル距離は24から17に下がります。これは擬似密度の効果ではありません。重み付きの結果を事前学習済みモデルとだけ比べた表では、すべて重みの手柄になってしまいます。*重みありと重みなし*: 学習のノイズもタイムステップも、画像の初期ノイズも同じで、
# 違うのは引き方だけです。$w = 33$ は0.33、$w = 0.03$ は0.18に達し、向きは論文の約束どおりです。
#
# **記録から決まること。** 30のシードで重みなしと比べると、$w = 33$ では、$\tau$ より上の画像の割合が $+.091$ $[.068, .114]$、密度の対数が $+.022$ $[.017, .027]$、適合率が $+.030$ $[.015, .045]$ だけ上がります。3つとも**再現できました**。最初の5つのシードでは、どれも
# 決まりませんでした。割合の差は $+.06$ $[-.02, .14]$ で、5つのうち1つが逆に動いたからです。$w = 0.03$ では、意味のあるほどの多様性は得られません。97シードで、Vendi スコアの増加は $.06$ $[.04, .09]$ にとどまり、宣言した最小の差0.2に届きません。上がるはずの再現率は、逆に $.013$ $[.004, .021]$ 下がり、**反対の結果になりました**。決着には97シードすべてが必要で、30シードの時点では、まだ $-.009$ $[-.026, .007]$ でした。なぜでしょうか。この重みで多く引かれるのは、ほかの実データに最も似ていないものです。そのため、同じステップ数でも学習の進みが遅くなるようです。均等に引いて学習すると、再現率は0.81から0.83に上がりますが、この重みでは0.81のままです。カーネル距離は21で、重みなしの18(97シードの平均)より $3.0$ $[2.5, 3.6]$ 大きいままです。珍しい画像の割合は、学習前の54%から、重みなしでは38%、この重みでは43%になります。これは後から気づいたことで、ステップ数を増やした実験では確かめていません。
# 重み33と重み0.03を比べたときの、$\tau$ より上の割合の差は、最初の5つのシードを見た*後で*気づいたものなので、その5つは証拠になりません。後から記録した25のシードなら証拠になり、差は0.144 $[.117, .172]$ です。
#
# **まだ小さい理由:** 表示された行にある、終わりなく学習した場合の値と比べてください。まだ遠く離れています。120ステップは道のりの始まりにすぎません。**結果を左右するもの:** ステップ数とシードを増やすことです。ただし、$w = 33$ へ進むほど、
# モデルは母集団の半分を忘れていきます。第5節の代償を、今度は一度に、しかも取り返しのつかない形で払うことになります。

# %% [markdown] lang="en" uid="real" pair="5ae0ff75"
# ## 10. The same on Stable Diffusion
#
# Pseudo density needs features and a reference, no portraits. Here the pipeline's own pictures are both: half of them are the reference, the other half are the candidates, and your `acceptance` decides twice, once for the typical and once for the rare. `lab.real` supplies the pipeline of the
# tier and CLIP, in whose space the distances are taken:
#
# | tier | pictures | who chooses | who only watches |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5, or SDXL with `model="sdxl"` | PickScore, or `reward="imagereward"` and others | CLIP |
# | smoke, cpu | PortraitSD | PortraitCLIP: what the prompt names, no sunglasses, a cool background | AttributeReader, the same questions |
#
# Before a weight is loaded, the box says what the gpu tier will draw and train, how much memory that needs and how long it takes; without a GPU it says so for a T4.
#
# **Predict:** a prompt each for several subjects, all drawn equally often. Which pictures will have the lowest density: broken ones, unusual ones, or simply those whose subject is unlike all others?

# %% [markdown] lang="ja" uid="real" pair="8fd9d836"
# ## 10. 同じことを Stable Diffusion で
#
# 擬似密度に必要なのは特徴量と基準の集まりで、ポートレートである必要はありません。ここではパイプライン自身の画像を両方に使います。半分を基準、残りの半分を候補とし、あなたの `acceptance` で、典型的なものを優遇する場合と珍しいものを優遇する場合の2通りに選別します。パイプラインと、
# 距離を測る空間である CLIP は、tier に応じて `lab.real` が用意します。
#
# | tier | 画像 | 選ぶ評価役 | 見守るだけの評価役 |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5(`model="sdxl"` なら SDXL) | PickScore(`reward="imagereward"` などに変更できます) | CLIP |
# | smoke, cpu | PortraitSD | PortraitCLIP: プロンプトの指定、サングラスがないこと、寒色の背景 | AttributeReader(同じ3点) |
#
# 重みを読み込む前に、tier gpu で何をどれだけ生成・学習し、メモリと時間がどれだけかかるかを表示します。GPU がなければ、T4 での見込みを示します。
#
# **予想してください。** 題材の異なるプロンプトから、同じ枚数ずつ生成します。密度が最も低いのは、壊れた画像、珍しい画像、それとも単に題材がほかと似ていない画像でしょうか。

# %% uid="real-run" tags=["slow"]
sd = lab.real(l03.models().pipe, rounds=4)
texts = sd.prompts * 4
pictures = sd.draw(texts)
u, half = sd.embed(pictures).cpu(), len(texts) // 2
sd_density = PseudoDensity(k=3).fit(u[:half])
scored, tau = sd_density.score(u[half:]), sd_density.threshold(0.5)
coin = torch.rand(len(scored), generator=lab.generator(150))
order = scored.argsort()[:: max(1, len(scored) // 8)]
shown, taken = {}, {}
for number, (name, w) in enumerate({t("l03.real_typical"): 10.0, t("l03.real_rare"): 0.1}.items()):
    kept = coin < acceptance(scored, tau, w)
    print(
        t(
            "l03.real_kept",
            name=name,
            kept=int(kept.sum()),
            all=len(kept),
            vendi=vendi(u[half:][kept]),
            before=vendi(u[half:]),
        )
    )
    shown[name] = pictures[half:][order]
    taken |= {number * len(order) + k: "good" for k, row in enumerate(order.tolist()) if kept[row]}
strips(
    shown,
    scores={name: scored[order].tolist() for name in shown},
    frames=taken,
    score_label=r"$\rho$",
    title=t("l03.real_title", model=sd.name),
)

# %% [markdown] lang="en" uid="real-reading" pair="1971a2f5"
# **Reading.** Both rows show the same candidates, from the rarest to the most typical; a frame says that the row's rule has accepted the picture. The Vendi score beside the counts is that of what was accepted, and it depends on the count too, so compare the two rows with each other only if they kept about as many.
# In the space of CLIP a subject that stands alone is rare, well drawn or not: section 6's warning, on any model. A reference of your own photographs would ask a better question than the pipeline's own pictures do.
#
# The box counts work, it measured no time; this cell was tested on random weights in the layouts of Stable Diffusion 1.5 and SDXL, which shows that it runs there, and nothing about its pictures.

# %% [markdown] lang="ja" uid="real-reading" pair="8daeb942"
# **図の読み方。** 2つの行は同じ候補を、最も珍しいものから最も典型的なものへ並べています。枠は、その行の規則で受理されたことを示します。枚数の横に表示した Vendi スコアは、受理された画像のものです。枚数にも左右されるので、2つの行を比べるのは、受理された枚数が同じくらいのときだけにしてください。
# CLIP の空間では、ほかと似ていない題材は、うまく描けていてもいなくても珍しいと判定されます。第6節の注意は、どのモデルにも当てはまります。自分の写真を基準にすれば、パイプライン自身の画像を基準にするより、意味のある問いになります。
#
# 最初に表示した見込みは計算量から求めたもので、実測ではありません。このセルは、Stable Diffusion 1.5と SDXL の構造に乱数の重みを入れたモデルで試験しています。動くことは確かめましたが、画像の質については何も分かりません。

# %% [markdown] lang="en" uid="end" pair="adde3d7c"
# ## 11. What to keep
#
# * Density is a walk to the neighbours. Low means rare, broken **or** foreign. A perfect generator shows the trade-off; on an imperfect one selection first repairs what is wrong.
# * Compute the price before paying it; measure fidelity and diversity apart, with equal numbers of pictures, in a space that had no say, beside the floor of a perfect generator.
# * A method that trains needs the same training without its idea as a control.
#
# The three methods in order of price: selection costs up to $1/\pi$ pictures for one, a push costs twenty passes through the sampler and one picture comes out, training costs once and moves every picture.

# %% [markdown] lang="ja" uid="end" pair="5026aca6"
# ## 11. 持ち帰ること
#
# * 密度は、近傍まで歩く距離から分かります。低いのは、珍しいか、壊れているか、**または**よそ者の画像です。完璧な生成器ではトレードオフが見えますが、不完全な生成器では、選別はまず誤りを取り除きます。
# * 費用は払う前に計算します。忠実度と多様性は別々に、同じ枚数で、選別に使わなかった空間で測り、完璧な生成器の値(ノイズフロア)と並べます。
# * 学習を伴う方法には、そのアイデアを除いた同じ学習が対照として必要です。
#
# 3つの方法を費用の順に並べると、選別は1枚につき最大 $1/\pi$ 枚の生成、摂動はサンプラーを約20回通して1枚、学習は一度だけ払ってすべての画像が動く、となります。

# %% uid="article"
lab.article_map()

# %% [markdown] lang="en" uid="where-next" pair="a673e3c2"
# Three questions to think about. Then lesson 04, where a person's likes, and not the density of a data set, decide what comes next: [FABRIC](04_fabric.ipynb).

# %% [markdown] lang="ja" uid="where-next" pair="8aad4205"
# 最後に、考える問いが3つあります。その次はレッスン04です。次に何を描くかを、データの密度ではなく人の好みが決めます: [FABRIC](04_fabric.ipynb)。

# %% uid="quiz" tags=["quiz"]
lab.quiz()
