# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("02", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="ruler" pair="7b2778d1"
# ## 1. Two sets and a ruler
#
# A metric never sees pictures. It sees a table of features per set. Here the reals are renders, the fakes come from PortraitSD, and the
# features are the 128 penultimate activations of the AttributeReader; published FIDs take 2048 from Inception instead. (PortraitSD
# draws on every tier, because only portraits have known attributes.)

# %% [markdown] lang="ja" uid="ruler" pair="cf1854fa"
# ## 1. 2 つの集合と物差し
#
# 指標は画像そのものを見ません。見るのは、集合ごとの特徴量の表です。このレッスンの本物の画像はレンダリングしたポートレート、生成画像は PortraitSD の出力です。
# 特徴量には AttributeReader の最後から 2 番目の層の 128 次元を使います。論文の FID では Inception の 2048 次元です。
# 属性が分かっているのはポートレートだけなので、どの tier でも PortraitSD を使います。

# %% uid="renders" tags=["slow"]
import torch

from labkit.figures import bar_with_interval, curve_with_interval, strips
from labkit.diffusion import image_generators, sample
from labkit.metrics import frechet_distance, manifold_metrics, noise_floor
from labkit.metrics.extractors import reader_extractor
from labkit.models import load_pipeline, load_reader
from labkit.portraits import HELD_OUT_COMBINATIONS, caption, render_tensor, sample_specs

size, rounds = lab.sizes.compare, lab.sizes.rounds
# en: what PortraitSD was trained on
# ja: PortraitSD の学習データと同じ条件
law = {"exclude": HELD_OUT_COMBINATIONS}
specs = sample_specs(2 * lab.sizes.renders, seed=lab.seed, **law)
parts = [specs[i : i + 32] for i in range(0, len(specs), 32)]
renders = torch.cat([render_tensor(part) for part in lab.progress_bar(parts, t("l02.rendering"), len(parts))])
# en: two sets of one law
# ja: 同じ分布の 2 つの集合
reals, others = renders.chunk(2)

pipe, reader = load_pipeline("cpu", lab.device), load_reader()
features = reader_extractor(reader)


def paint(prompts, guidance_scale, desc):
    """en: Pictures of the prompts in batches, with a forecast.
    ja: プロンプトの画像をバッチごとに生成し、残り時間の見込みを表示します。
    """
    pictures, batch = [], 16
    starts = range(0, len(prompts), batch)
    for first in lab.progress_bar(starts, desc, len(starts)):
        texts = prompts[first : first + batch]
        generators = image_generators(len(texts), lab.seed, first=first)
        pictures.append(
            sample(pipe, texts, generators=generators, steps=lab.sizes.steps, guidance_scale=guidance_scale).cpu()
        )
    return torch.cat(pictures)


asked = sample_specs(size, seed=lab.seed + 1, **law)
asked_texts = [caption(spec).text for spec in asked]
generated = lab.keep("generated", paint, asked_texts, lab.sizes.guidance, t("l02.painting"))
real_f, other_f, made_f = features(reals), features(others), features(generated)
shown = min(8, size)
rows = {t("l02.renders"): list(reals[:shown]), t("l02.generated"): list(generated[:shown])}
strips(rows, title=t("l02.two_sets", d=real_f.shape[1]))

# %% [markdown] lang="en" uid="frechet" pair="78c767a2"
# The Fréchet distance fits a Gaussian to each set and compares the two:
# $|\mu_1-\mu_2|^2 + \mathrm{tr}\,S_1 + \mathrm{tr}\,S_2 - 2\,\mathrm{tr}\,(S_1S_2)^{1/2}$. The last trace is the sum of the square roots
# of the eigenvalues of $S_1S_2$. Write `frechet` from means `[d]` and covariances `[d, d]`; a covariance may be singular.

# %% [markdown] lang="ja" uid="frechet" pair="ef3b1084"
# フレシェ距離は、それぞれの集合に正規分布を当てはめ、その 2 つを比べます:
# $|\mu_1-\mu_2|^2 + \mathrm{tr}\,S_1 + \mathrm{tr}\,S_2 - 2\,\mathrm{tr}\,(S_1S_2)^{1/2}$。最後のトレースは、
# $S_1S_2$ の固有値の平方根の和です。平均 `[d]` と共分散 `[d, d]` から `frechet` を書いてください。共分散は特異なこともあります。


# %% uid="frechet-exercise" tags=["exercise"] exercise="frechet"
def frechet(mean_1, cov_1, mean_2, cov_2):
    """en: Squared Frechet distance of two Gaussians.
    ja: 2 つの正規分布の間のフレシェ距離の 2 乗です。
    """
    # BEGIN SOLUTION
    values, vectors = torch.linalg.eigh(cov_1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # en: the eigenvalues of S1 S2
    # ja: S1 S2 の固有値
    product = torch.linalg.eigvalsh(root @ cov_2 @ root)
    return (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * product.clamp(min=0).sqrt().sum()
    # END SOLUTION


# %% uid="frechet-check" tags=["check"]
lab.check("frechet")
frechet = lab.use("frechet")


# %% uid="frechet-use"
def moments(x):
    """en: Mean [d] and covariance [d, d] of features [n, d].
    ja: 特徴量 [n, d] の平均 [d] と共分散 [d, d] です。
    """
    x = x.double()
    return x.mean(0), torch.cov(x.T)


for name, fake in {t("l02.other_renders"): other_f, t("l02.generated"): made_f}.items():
    mine, theirs = float(frechet(*moments(real_f), *moments(fake))), float(frechet_distance(real=real_f, fake=fake))
    lab.verdict(t("l02.two_values", name=name, mine=mine, theirs=theirs), abs(mine - theirs) < 1e-3 * theirs)

# %% [markdown] lang="en" uid="floor" pair="35949ab5"
# ## 2. The noise floor
#
# Both halves of the renders follow one law, so their distance ought to be 0. Predict what it is with few pictures.

# %% [markdown] lang="ja" uid="floor" pair="8aff26f5"
# ## 2. ノイズフロア
#
# レンダリングした画像の前半と後半は同じ分布に従うので、距離は 0 のはずです。枚数が少ないとき、実際にはいくつになるか予想してください。

# %% uid="floor-predict" tags=["quiz"]
lab.predict("floor")


# %% uid="floor-run"
def draw(x, n, r):
    """en: Round r's random choice of n rows.
    ja: ラウンド r で n 行を無作為に選びます。
    """
    return x[torch.randperm(len(x), generator=lab.generator(r))[:n]]


pool = torch.cat([real_f, other_f])
halves = [len(real_f) // 2**k for k in (3, 2, 1, 0)]
# en: Frechet distance of two samples of one law
# ja: 同じ分布からの 2 つの標本の間のフレシェ距離
same_law = torch.empty(rounds, len(halves))
for r in range(rounds):
    mixed = draw(pool, len(pool), r)
    for j, n in enumerate(halves):
        same_law[r, j] = float(frechet_distance(real=mixed[:n], fake=mixed[-n:]))
made_n = [n for n in halves if n <= size]
made = torch.tensor(
    [[float(frechet_distance(real=draw(real_f, n, r), fake=draw(made_f, n, r))) for n in made_n] for r in range(rounds)]
)
floor = [noise_floor(torch.cov(pool.double().T), n_real=n, n_fake=n) for n in halves]
curve_with_interval(
    halves,
    {t("l02.one_law"): same_law.numpy(), t("l02.formula"): floor},
    xlabel=t("l02.pictures_each"),
    ylabel=t("l02.frechet"),
    title=t("l02.floor_title"),
    reference={t("l02.generated_at", n=made_n[-1]): float(made[:, -1].mean())},
    log_x=True,
    log_y=True,
)

# %% uid="floor-claim"
lab.reveal("floor", "large" if float(same_law[:, 0].mean()) > float(made[:, -1].mean()) / 2 else "small")
log_n, log_d = (
    torch.tensor(halves[-3:]).log(),
    same_law[:, -3:].log(),
    # en: where there are about as many pictures as features
    # ja: 画像の枚数が特徴量の次元と同じくらいの範囲
)
slopes = ((log_d - log_d.mean(1, keepdim=True)) @ (log_n - log_n.mean())) / (log_n - log_n.mean()).square().sum()


def spread(values):
    """en: Mean and the interval that holds 95 % of the rounds: what one experiment of this size may read.
    ja: 平均と、ラウンドの 95 % が入る区間です。この規模の実験 1 回で読み取りうる値の範囲を表します。
    """
    values = torch.as_tensor(values).double()
    return float(values.mean()), (float(values.quantile(0.025)), float(values.quantile(0.975)))


value, interval = spread(slopes)
lab.claim("bias_falls", measured=t("l02.m_slope"), value=value, interval=interval, seeds=[seed])

# %% [markdown] lang="en" uid="few" pair="62f73a12"
# A Fréchet distance without its number of pictures and its floor says little. Do kernel distances need as many? Here the fakes differ for certain: they
# are renders without the style toon-head. Each line is divided by its own value at the largest number; the band is where 95 % of the rounds lie.
# CLIP embeddings serve CMMD.

# %% [markdown] lang="ja" uid="few" pair="bee8ffd1"
# フレシェ距離は、枚数とノイズフロアを添えなければほとんど意味がありません。カーネルに基づく距離にも同じだけの枚数が必要でしょうか。
# 確かに差がある例として、生成側にはスタイル toon-head を除いたレンダリング画像を使います。各線は、最大の枚数での値を 1 としています。帯には全ラウンドの 95 % が入ります。
# CMMD には CLIP の埋め込みを使います。

# %% uid="few-run"
from labkit.metrics import cmmd, kernel_distance
from labkit.metrics.extractors import clip_extractor

embed = clip_extractor(lab.tier, device=lab.device)
real_e, other_e, made_e = embed(reals), embed(others), embed(generated)
toon = torch.tensor([spec.style == "toon-head" for spec in specs[lab.sizes.renders :]])
read = {"FD": frechet_distance, "KID": kernel_distance, "CMMD": cmmd}
few = {}
for name, metric in read.items():
    real, fake = (real_e, other_e[~toon]) if name == "CMMD" else (real_f, other_f[~toon])
    table = torch.tensor(
        [[float(metric(real=draw(real, n, r), fake=draw(fake, n, r + 500))) for n in made_n] for r in range(rounds)]
    )
    table = table / table[:, -1].mean()
    few[name] = tuple(
        row.double().numpy() for row in (table.mean(0), table.quantile(0.025, 0), table.quantile(0.975, 0))
    )
curve_with_interval(
    made_n, few, xlabel=t("l02.pictures_each"), ylabel=t("l02.relative"), title=t("l02.few_title"), log_x=True
)

# %% [markdown] lang="en" uid="damage" pair="de9bfa6e"
# ## 3. Damage that nobody sees
#
# The same pictures, saved as JPEG, truncated instead of rounded to uint8, or reduced from 192 pixels by a filter with and without antialiasing. The
# two reduced sets are compared with reals that were drawn at 192 pixels as well and reduced with antialiasing: only the antialiasing differs.

# %% [markdown] lang="ja" uid="damage" pair="d8f16105"
# ## 3. 目に見えない劣化
#
# 同じ画像を JPEG で保存する、uint8 への変換で四捨五入せずに切り捨てる、192 画素からアンチエイリアス (AA) あり・なしのフィルタで縮小する、という処理を加えます。
# 縮小した 2 組は、同じく 192 画素で描いて AA ありで縮小した本物と比べます。違いはアンチエイリアスの有無だけです。

# %% uid="damage-run" tags=["slow"]
import io

import numpy as np
from PIL import Image

from labkit.diffusion import to_pil
from labkit.metrics import ImagePipeline


def jpeg(pictures, quality):
    """en: What is left after saving as JPEG.
    ja: JPEG で保存して読み直した画像です。
    """
    kept = []
    for picture in to_pil(pictures):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        kept.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(kept) / 127.5 - 1


filters = {kind: ImagePipeline(kind, 64, kind) for kind in ("bilinear-antialias", "bilinear")}
small = {kind: [] for kind in filters}
# en: all reals, and as many others as are damaged
# ja: 本物のすべてと、劣化させる枚数の別のレンダリング
count = lab.sizes.renders + size
parts = [specs[i : min(i + 16, count)] for i in range(0, count, 16)]
for part in lab.progress_bar(parts, t("l02.rendering_large"), len(parts)):
    large = render_tensor(part, 192)
    for kind, reduce in filters.items():
        small[kind].append(reduce(large))
small = {kind: torch.cat(batches) for kind, batches in small.items()}
small_real, plain = small["bilinear-antialias"][: lab.sizes.renders], others[:size]
damaged = {
    t("l02.untouched"): plain,
    t("l02.truncated"): ((plain + 1) * 127.5).floor() / 127.5 - 1,
    "JPEG 90": jpeg(plain, 90),
    "JPEG 75": jpeg(plain, 75),
    t("l02.antialias"): small["bilinear-antialias"][lab.sizes.renders :],
    t("l02.no_antialias"): small["bilinear"][lab.sizes.renders :],
}
strips({name: list(pictures[:6]) for name, pictures in damaged.items()}, size=1.1)

# %% uid="damage-bars"
damaged_f = {name: features(pictures) for name, pictures in damaged.items()}


def over_rounds(fakes, metric=frechet_distance, real=real_f):
    """en: The metric of `fakes` against another choice of reals in every round, [rounds].
    ja: `fakes` を、ラウンドごとに選び直した本物と比べたときの指標です。形は [rounds] です。
    """
    return torch.tensor(
        [float(metric(real=draw(real, size, r), fake=draw(fakes, size, r + 500))) for r in range(rounds)]
    )


small_f, reduced = features(small_real), (t("l02.antialias"), t("l02.no_antialias"))
damage = {name: over_rounds(fakes, real=small_f if name in reduced else real_f) for name, fakes in damaged_f.items()}
columns = [spread(values) for values in damage.values()]
bars = [value for value, _ in columns], [low for _, (low, _) in columns], [high for _, (_, high) in columns]
bar_with_interval(
    list(damage),
    tuple(np.array(column) for column in bars),
    xlabel=t("l02.frechet"),
    title=t("l02.damage_title", n=size),
    reference={t("l02.generated"): float(over_rounds(made_f).mean())},
)

# %% uid="damage-claims"
compressed = damage["JPEG 75"] - damage[t("l02.untouched")]
aliased = damage[t("l02.no_antialias")] - damage[t("l02.antialias")]
value, interval = spread(compressed)
lab.claim("jpeg", measured=t("l02.m_jpeg"), value=value, interval=interval, seeds=[seed])
value, interval = spread(aliased)
lab.claim("aliasing", measured=t("l02.m_aliasing"), value=value, interval=interval, seeds=[seed])

# %% [markdown] lang="en" uid="manifold" pair="98bee198"
# ## 4. Fidelity and diversity apart
#
# One distance cannot tell *bad* pictures from *missing* ones. Draw a ball around each real picture that reaches to its $k$-th nearest other real.
# **Precision** is the share of fakes in some real ball, **recall** the share of reals in some fake ball (balls around fakes), **coverage**
# the share of real balls that hold a fake, **density** counts how many real balls hold a fake, on average 1 for equal laws.
# Write `coverage` for features `[n, d]` and `[m, d]`; a point on the sphere is inside.

# %% [markdown] lang="ja" uid="manifold" pair="714c2c1a"
# ## 4. 忠実度と多様性を分ける
#
# 距離が 1 つだけでは、画像が*悪い*のか、あるはずの画像が*足りない*のかを区別できません。そこで、本物の画像 1 枚ごとに、$k$ 番目に近い別の本物まで届く球を描きます。
# **適合率**は本物の球に入る生成画像の割合、**再現率**は(生成画像の側に描いた)球に入る本物の割合、**被覆率**は生成画像を 1 枚でも含む本物の球の割合です。
# **密度**は生成画像がいくつの本物の球に入るかを数え、同じ分布なら平均 1 になるように割ったものです。
# 特徴量 `[n, d]` と `[m, d]` に対する `coverage` を書いてください。球面上の点は内側とみなします。


# %% uid="coverage-exercise" tags=["exercise"] exercise="coverage"
def coverage(real, fake, k):
    """en: Share of real balls that hold at least one fake.
    ja: 生成画像を 1 つ以上含む、本物の球の割合です。
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

# %% [markdown] lang="en" uid="modes" pair="5c89c7a2"
# Now spoil the fakes in two ways. Remove a mode: the portraits in the style toon-head, a third of all. Add junk: the mean of two portraits, pixel by
# pixel. Which number falls in which case?

# %% [markdown] lang="ja" uid="modes" pair="e540476f"
# 生成画像の側を 2 通りの方法でわざと劣化させます。1 つは、全体の 3 分の 1 を占めるスタイル toon-head のポートレートを取り除くこと(モードの欠落)、
# もう 1 つは、2 枚のポートレートの画素を平均した不自然な画像を混ぜることです。それぞれどの数値が下がるでしょうか。

# %% uid="modes-predict" tags=["quiz"]
lab.predict("lost_mode")

# %% uid="modes-run"
with_mode, without_mode = other_f[toon], other_f[~toon]
blends = (others + others[torch.randperm(len(others), generator=lab.generator(900))]) / 2
blend_f = features(blends)
fours = ("precision", "recall", "density", "coverage")


def spoiled(removed, junk, r):
    """en: Fakes of round r with a share of the mode removed and a share of junk instead of good pictures.
    ja: ラウンド r の生成側の画像です。モードの一部を除き、良い画像の一部を不自然な画像に置き換えます。
    """
    left = draw(with_mode, round((1 - removed) * len(with_mode)), r + 500)
    good = draw(torch.cat([without_mode, left]), size - round(junk * size), r + 600)
    return torch.cat([good, draw(blend_f, round(junk * size), r + 700)])


def four_scores(fake, r):
    """en: Precision, recall, density, coverage of round r.
    ja: ラウンド r の適合率、再現率、密度、被覆率です。
    """
    return list(manifold_metrics(real=draw(real_f, size, r), fake=fake, k=5).as_dict().values())


shares = [0.0, 0.25, 0.5, 0.75, 1.0]
removal, addition = np.empty((4, rounds, 5)), np.empty((4, rounds, 5))  # [score, round, share]
for r in lab.progress_bar(range(rounds), t("l02.rounds"), rounds):
    for j, share in enumerate(shares):
        removal[:, r, j] = four_scores(spoiled(share, 0, r), r)
        addition[:, r, j] = four_scores(spoiled(0, share / 2, r), r)
names = [t("l02.precision"), t("l02.recall"), t("l02.density"), t("l02.coverage")]
curve_with_interval(
    shares,
    dict(zip(names, removal, strict=True)),
    xlabel=t("l02.removed_axis"),
    ylabel=t("l02.score"),
    title=t("l02.removed_title", n=size),
)

# %% uid="junk-curve"
curve_with_interval(
    [share / 2 for share in shares],
    dict(zip(names, addition, strict=True)),
    xlabel=t("l02.junk_axis"),
    ylabel=t("l02.score"),
    title=t("l02.junk_title", n=size),
)

# %% uid="modes-claims"
fall = {name: removal[i, :, -1] - removal[i, :, 0] for i, name in enumerate(fours)}
drop = {name: addition[i, :, -1] - addition[i, :, 0] for i, name in enumerate(fours)}
lab.reveal("lost_mode", "recall" if fall["recall"].mean() < fall["precision"].mean() else "precision")
value, interval = spread(fall["recall"])
lab.claim("recall_sees_lost_mode", measured=t("l02.m_lost"), value=value, interval=interval, seeds=[seed])
value, interval = spread(drop["precision"])
lab.claim("precision_sees_junk", measured=t("l02.m_junk"), value=value, interval=interval, seeds=[seed])
value, interval = spread(fall["recall"] - fall["coverage"])
lab.claim("coverage_beats_recall", measured=t("l02.m_falls"), value=value, interval=interval, seeds=[seed])

# %% uid="modes-widget" tags=["widget"]
from labkit.figures.widgets import explore, slider


def mixture(removed, junk):
    runs = np.array([four_scores(spoiled(removed, junk, r), r) for r in range(min(rounds, 4))])
    plain_runs = np.array([removal[:, r, 0] for r in range(min(rounds, 4))])
    return bar_with_interval(names, {t("l02.spoiled"): runs, t("l02.untouched"): plain_runs}, xlabel=t("l02.score"))


explore(
    mixture,
    {"removed": slider(t("l02.removed_axis"), 0, 1, 0.5, 0.25), "junk": slider(t("l02.junk_axis"), 0, 0.6, 0.2, 0.1)},
)

# %% [markdown] lang="en" uid="outlier" pair="f931277d"
# ## 5. What balls cannot see
#
# A toy first: reals are 999 points between 0 and 1 and one point at 2; fakes are 999 points between 2 and 3 and one at 1. Then pictures: let the fakes be
# nothing but noise, in three feature spaces: those of two trained networks, and the mean colours of 16 x 16 squares. A ball reaches to the fifth neighbour; in 128 dimensions that is a long way, as the printed distances show.

# %% [markdown] lang="ja" uid="outlier" pair="4a75f173"
# ## 5. 球では見えないもの
#
# まず簡単な例です。本物は 0 から 1 の間の 999 点と 2 にある 1 点、生成側は 2 から 3 の間の 999 点と 1 にある 1 点とします。次は画像です。生成側をすべて
# ノイズの画像にし、3 つの特徴空間で測ります。学習済みネットワーク 2 つの空間と、16 x 16 のマス目の平均色です。球は 5 番目の最近傍まで届きます。128 次元ではそれがかなり遠いことを、表示される距離で確かめてください。


# %% uid="outlier-run"
def toy_scores(r):
    """en: Two disjoint sets on a line, each with one outlier.
    ja: 直線上の互いに離れた 2 つの集合です。それぞれに外れ値が 1 つずつあります。
    """
    g = lab.generator(r)
    real = torch.cat([torch.rand(999, 1, generator=g), torch.tensor([[2.0]])])
    fake = torch.cat([torch.rand(999, 1, generator=g) + 2, torch.tensor([[1.0]])])
    return list(manifold_metrics(real=real, fake=fake, k=5).as_dict().values())


def mean_colours(pictures):
    """en: Mean colour of each of 16 x 16 squares, [n, 768]: nothing was trained for this space.
    ja: 16 × 16 個のマスそれぞれの平均色 [n, 768] です。学習を一切していない特徴空間です。
    """
    return torch.nn.functional.avg_pool2d(pictures, 4).flatten(1)


noise = torch.rand(size, 3, 64, 64, generator=lab.generator(10)) * 2 - 1
noise_f, noise_e, real_c, noise_c = features(noise), embed(noise), mean_colours(reals), mean_colours(noise)
toys, junk_reader, junk_clip, junk_colours = np.empty((4, rounds, 4))
for r in range(rounds):
    toys[r], junk_reader[r] = toy_scores(r), four_scores(noise_f, r)
    result = manifold_metrics(real=draw(real_e, size, r), fake=noise_e, k=5)
    junk_clip[r] = list(result.as_dict().values())
    junk_colours[r] = list(manifold_metrics(real=draw(real_c, size, r), fake=noise_c, k=5).as_dict().values())
centre_f = real_f.mean(0)
reals_at, blends_at, noise_at = (float((x - centre_f).norm(dim=1).median()) for x in (real_f, blend_f, noise_f))
print(t("l02.from_centre", blends=blends_at / reals_at, noise=noise_at / reals_at))
print(t("l02.radii", radius=float(result.radii_real.median()), distance=float(result.nearest_distance.median())))
bar_with_interval(
    names,
    {
        t("l02.toy"): toys,
        t("l02.noise_reader"): junk_reader,
        t("l02.noise_clip"): junk_clip,
        t("l02.noise_colours"): junk_colours,
    },
    xlabel=t("l02.score"),
    title=t("l02.outlier_title"),
)

# %% uid="outlier-claims"
value, interval = spread(toys[:, :2].min(1))
lab.claim("outlier_fools_both", measured=t("l02.m_outlier"), value=value, interval=interval, seeds=[seed])
value, interval = spread(toys[:, 3])
lab.claim("coverage_resists", measured=t("l02.m_resists"), value=value, interval=interval, seeds=[seed])
value, interval = spread(junk_reader[:, 0])
lab.claim("noise_is_imprecise", measured=t("l02.m_noise"), value=value, interval=interval, seeds=[seed])

# %% [markdown] lang="en" uid="inside" pair="3df5c268"
# That is no bad luck. A trained network sends pictures unlike any it has seen to the inside of its feature space, where the balls overlap, and the mean
# of two portraits lies between them. In mean colours, with some hundred reals, noise is outside of every ball. Precision asks whether a picture is near a
# real one **in this space**, not whether it is good.

# %% [markdown] lang="ja" uid="inside" pair="3654e60d"
# これは偶然ではありません。学習済みネットワークは、見たことのない画像を特徴空間の内側、つまり球が重なり合う場所に送り込みます。2 枚の平均も、その 2 枚の間に入ります。
# 平均色の空間では、本物が数百枚あれば、ノイズはどの球にも入りません。
# 適合率が答えるのは、**その空間で**本物に近いかどうかであって、良い画像かどうかではありません。

# %% [markdown] lang="en" uid="cmmd" pair="04994c80"
# ## 6. CMMD is almost a difference of means
#
# CMMD compares CLIP embeddings with a Gaussian kernel of width $\sigma = 10$. But embeddings have length 1, so distances are at most 2, and
# $e^{-r^2/200}$ is almost a straight line in $r^2$: what is left is $10\,|\bar x-\bar y|^2$. Test it with a change that keeps the mean: halve
# every embedding's distance to the mean of its set, as a model that makes everything alike would. The bars say by how many standard deviations of
# the noise (renders against renders) each metric moves; alarm means to the right.

# %% [markdown] lang="ja" uid="cmmd" pair="13f57f9f"
# ## 6. CMMD はほぼ平均の差
#
# CMMD は CLIP の埋め込みを、幅 $\sigma = 10$ のガウスカーネルで比べます。ところが埋め込みの長さは 1 なので距離は高々 2 で、$e^{-r^2/200}$ は $r^2$ に
# ついてほぼ直線です。したがって残るのは $10\,|\bar x-\bar y|^2$ です。平均を変えない変化で確かめましょう。似たものばかり生成するモデルのように、
# 各埋め込みから集合の平均までの距離を半分にします。棒は、ノイズ(レンダリング画像どうしの比較)の標準偏差を単位として、各指標がどれだけ動いたかを示します。
# 右に伸びれば、その指標が変化を検出できたことを示します。

# %% uid="cmmd-mean"
for name, fake in {t("l02.other_renders"): other_e, t("l02.generated"): made_e}.items():
    result = cmmd(real=real_e, fake=fake)
    print(t("l02.cmmd_parts", name=name, value=result.value, mean_part=result.mean_part, bias=result.bias))

# %% uid="cmmd-run"
centre = other_e.mean(0)
alike_e = centre + (other_e - centre) / 2
kernels = {
    r"CMMD, $\sigma = 10$": lambda real, fake: cmmd(real=real, fake=fake, normalise=False),
    t("l02.median_kernel"): lambda real, fake: cmmd(real=real, fake=fake, normalise=False, sigma="median"),
    t("l02.frechet_clip"): frechet_distance,
}
alarm, differences = [], []
for metric in kernels.values():
    quiet = over_rounds(other_e, metric, real_e)
    differences.append(over_rounds(alike_e, metric, real_e) - quiet)
    alarm.append((differences[-1] / quiet.std()).tolist())
bar_with_interval(
    list(kernels), np.array(alarm).T, xlabel=t("l02.alarm"), title=t("l02.cmmd_title"), value_format="{:.1f}"
)

# %% uid="cmmd-claim"
value, interval = spread(differences[0])
lab.claim("cmmd_sees_variety", measured=t("l02.m_variety"), value=value, interval=interval, seeds=[seed])

# %% [markdown] lang="en" uid="overview" pair="7a0cf0ea"
# ## 7. Who sees what
#
# All metrics, all changes. A number is marked where it leaves the range of *renders against renders*. The last column is no set metric: the share of attributes
# that the AttributeReader reads as ordered. In the last row each picture is judged by another picture's prompt.

# %% [markdown] lang="ja" uid="overview" pair="fefb1bfa"
# ## 7. どの指標がどの変化を検出できるか
#
# すべての指標とすべての変化を並べます。*レンダリング画像どうし*を比べた範囲から外れた数値に印を付けます。右端の列だけは集合の指標ではなく、AttributeReader が
# 注文どおりと判定した属性の割合です。一番下の行では、各画像を別の画像のプロンプトで採点します。

# %% uid="overview-run"
metrics = {
    t("l02.frechet_short"): lambda real, fake: float(frechet_distance(real=real, fake=fake)),
    "KID": lambda real, fake: float(kernel_distance(real=real, fake=fake)),
}


def every_score(real, fake):
    """en: All set metrics of one round.
    ja: 1 ラウンド分の、集合を比べるすべての指標です。
    """
    return [metric(real, fake) for metric in metrics.values()] + list(
        manifold_metrics(real=real, fake=fake).as_dict().values()
    )


def faithful(pictures, orders):
    """en: Share of attributes that are read as ordered.
    ja: 注文どおりに読み取れた属性の割合です。
    """
    right = reader.correct(features.pipeline(pictures), orders)
    return float(torch.stack([hits.float() for hits in right.values()]).mean())


order = specs[lab.sizes.renders :]
# en: what the fakes of round r are, and how faithful the pictures are to their orders
# ja: ラウンド r の生成側の画像と、注文に対する忠実さ
changes = {
    t("l02.other_renders"): (lambda r: draw(other_f, size, r + 500), faithful(plain, order[:size])),
    t("l02.copies"): (lambda r: draw(real_f, size, r), faithful(reals[:size], specs[:size])),
    "JPEG 75": (lambda r: damaged_f["JPEG 75"], faithful(damaged["JPEG 75"], order[:size])),
    t("l02.no_antialias"): (
        lambda r: damaged_f[t("l02.no_antialias")],
        faithful(damaged[t("l02.no_antialias")], order[:size]),
    ),
    t("l02.no_mode"): (lambda r: spoiled(1, 0, r), faithful(plain, order[:size])),
    t("l02.some_junk"): (lambda r: spoiled(0, 0.2, r), float("nan")),
    t("l02.noise"): (lambda r: noise_f, float("nan")),
    t("l02.generated"): (lambda r: made_f, faithful(generated, asked)),
    t("l02.wrong_prompts"): (lambda r: made_f, faithful(generated, asked[1:] + asked[:1])),
}
scores = np.array(
    [
        [every_score(draw(real_f, size, r), fakes(r)) for r in range(rounds)]
        for fakes, _ in lab.progress_bar(changes.values(), t("l02.changes"), len(changes))
    ]
)  # [change, round, metric]
usual = np.quantile(scores[0], 0.025, axis=0), np.quantile(scores[0], 0.975, axis=0)

# %% uid="overview-table" tags=["hide-input"]
from matplotlib.patches import Rectangle

from labkit.figures import figure_style, new_figure

heads = [*metrics, *names, t("l02.faithful")]
means = np.column_stack([scores.mean(1), [share for _, share in changes.values()]])  # [change, metric + 1]
outside = (means[:, :-1] < usual[0]) | (means[:, :-1] > usual[1])
# en: the row that sets the range
# ja: 範囲の基準になる行
outside[0] = False
seen = {
    name: [head for head, mark in zip(heads, row, strict=False) if mark]
    for name, row in zip(changes, outside, strict=True)
}
with figure_style():
    figure = new_figure(8.2, 0.9 + 0.36 * len(changes), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-2.6, len(heads)), ylim=(len(changes), -1))
    axes.axis("off")
    place = {"ha": "center", "va": "center", "fontsize": 9}
    for j, head in enumerate(heads):
        axes.text(j + 0.5, -0.5, head, **place)
    for i, (name, row) in enumerate(zip(changes, means, strict=True)):
        axes.text(-2.6, i + 0.5, name, va="center", fontsize=9)
        for j, number in enumerate(row):
            if heads[j] in seen[name]:
                axes.add_patch(Rectangle((j + 0.06, i + 0.08), 0.88, 0.84, color="#F6D5C3", lw=0))
            shape = "{:.0f}" if j < len(metrics) else "{:.2f}"
            axes.text(j + 0.5, i + 0.5, "-" if np.isnan(number) else shape.format(number), **place)
    axes.set_title(t("l02.overview_title", n=size, rounds=rounds))
marked = "; ".join(name + ": " + (", ".join(found) or "-") for name, found in seen.items())
figure.alt = t("l02.overview_title", n=size, rounds=rounds) + ". " + marked
figure

# %% [markdown] lang="en" uid="wins" pair="f1c92287"
# ## 8. Win rates: the prompt is the unit
#
# Which is more faithful: guidance 3 or guidance 2? Same prompts, same seeds; a picture's score is the share of its attributes that are read as
# asked. A comparison is a win (1), a tie (0.5) or a loss (0). Several pictures of one prompt resemble each other, so they are not as many
# independent observations. Write `cluster_interval`: average inside each prompt, then resample whole prompts with replacement.

# %% [markdown] lang="ja" uid="wins" pair="5e728707"
# ## 8. 勝率: 単位はプロンプト
#
# 誘導スケール 3 と 2 では、どちらの画像が忠実でしょうか。プロンプトとシードは共通で、画像のスコアは、属性のうち指定どおりに読み取れたものの割合です。
# 比較の結果は、勝ち (1)、引き分け (0.5)、負け (0) です。同じプロンプトの画像は互いに似ているので、枚数と同じ数の独立な観測とはみなせません。
# `cluster_interval` を書いてください。まずプロンプトごとに平均し、次にプロンプトを丸ごと復元抽出します。


# %% uid="cluster-exercise" tags=["exercise"] exercise="cluster_interval"
def cluster_interval(values, prompts, generator, resamples=2000):
    """en: 95 % bootstrap interval (low, high) of a mean over prompts.

    values: outcomes [n], float64; prompts: the prompt of each, whole numbers [n] from 0 to P - 1.
    ja: プロンプト単位の平均の 95 % ブートストラップ区間 (low, high) です。

    values: 比較の結果 [n](float64)、prompts: それぞれのプロンプトの番号 [n](0 から P - 1 の整数)。
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
from labkit.metrics import outcomes, sample_size, sign_test, win_rate

judged = [spec for spec in asked[: lab.sizes.prompts] for _ in range(lab.sizes.copies)]
of_prompt = torch.arange(lab.sizes.prompts).repeat_interleave(lab.sizes.copies)[: len(judged)]
texts = [caption(spec).text for spec in judged]


def share_right(scale):
    """en: Share of attributes read as asked, one per picture.
    ja: 指定どおりに読み取れた属性の割合を、画像ごとに返します。
    """
    right = reader.correct(paint(texts, scale, t("l02.guidance", scale=scale)), judged)
    return torch.stack([hits.double() for hits in right.values()]).mean(0)


strong, weak = lab.keep("wins", share_right, 3.0), lab.keep("wins", share_right, 2.0)
outcome = outcomes(candidate=strong, baseline=weak)
result = win_rate(outcome, prompts=of_prompt.tolist(), generator=np.random.default_rng(lab.seed))
print(t("l02.wins", wins=result.wins, ties=result.ties, losses=result.losses, p=result.p_value))

# %% uid="wins-interval"
won = torch.as_tensor(outcome)
intervals = {
    t("l02.by_picture"): cluster_interval(won, torch.arange(len(won)), lab.generator(20)),
    t("l02.by_prompt"): cluster_interval(won, of_prompt, lab.generator(20)),
    t("l02.by_bca"): (result.low, result.high),
}
low, high = np.array(list(intervals.values())).T
mean = np.clip(np.full(len(intervals), result.value), low, high)
bar_with_interval(
    list(intervals),
    (mean, low, high),
    xlabel=t("l02.win_rate"),
    title=t("l02.wins_title", prompts=result.prompts, copies=lab.sizes.copies),
    reference={t("l02.even"): 0.5},
    xlim=(0, 1),
)

# %% uid="wins-claim"
table = won.reshape(-1, lab.sizes.copies)  # [prompts, copies]


def inflation(rows):
    """en: Standard error by prompt over standard error by picture.
    ja: プロンプト単位の標準誤差を、画像単位の標準誤差で割った値です。
    """
    by_prompt = rows.mean(1).std() / len(rows) ** 0.5
    return float(by_prompt / (rows.std() / rows.numel() ** 0.5))


resampled = [table[torch.randint(len(table), (len(table),), generator=lab.generator(30 + i))] for i in range(400)]
ratios = [inflation(rows) for rows in resampled if rows.std() > 0]
if table.std() > 0:
    words = t("l02.m_clusters")
    lab.claim("clusters_matter", measured=words, value=inflation(table), interval=spread(ratios)[1], seeds=[seed])
else:
    lab.claim("clusters_matter", reason=t("l02.no_variation"), seeds=[seed])

# %% [markdown] lang="en" uid="enough" pair="caba9453"
# How many prompts does a claim need? First judge an example: 60 wins in 100 prompts.

# %% [markdown] lang="ja" uid="enough" pair="74d11085"
# 主張にはプロンプトがいくつ必要でしょうか。まず例を判断してください。100 プロンプトのうち 60 勝です。

# %% uid="enough-predict" tags=["quiz"]
lab.predict("sixty")

# %% uid="enough-needed"
lab.reveal("sixty", "yes" if sign_test(60, 40) < 0.05 else "no")
rates = [0.52, 0.54, 0.56, 0.58, 0.6, 0.65, 0.7, 0.75, 0.8]
curve_with_interval(
    rates,
    [sample_size(rate) for rate in rates],
    xlabel=t("l02.true_rate"),
    ylabel=t("l02.prompts_needed"),
    title=t("l02.needed_title"),
    reference={t("l02.this_lesson"): result.prompts},
    log_y=True,
)

# %% uid="enough-power"
per_prompt = table.mean(1)
counts = [8, 16, 32, 64, 128, 256]
# en: share of experiments with this many prompts that find a difference
# ja: この数のプロンプトによる実験のうち、差を検出できた割合
found = []
for m in counts:
    picked = per_prompt[torch.randint(len(per_prompt), (400, m), generator=lab.generator(40))]  # [400, m]
    p_values = [sign_test(int((row > 0.5).sum()), int((row < 0.5).sum())) for row in picked]
    found.append(np.mean(np.array(p_values) < 0.05))
curve_with_interval(
    counts,
    found,
    xlabel=t("l02.prompts_axis"),
    ylabel=t("l02.power"),
    title=t("l02.power_title"),
    reference={t("l02.usual_power"): 0.8},
    log_x=True,
    ylim=(0, 1.05),
)

# %% [markdown] lang="en" uid="rules" pair="ddaca624"
# ## What to write beside a number
#
# - Number of pictures, features, image pipeline, and the noise floor; a change below it is no change.
# - One number for fidelity and one for diversity, with what *real against real* reads.
# - A measure of faithfulness to the prompt: no set metric has one, and none notices copies.
# - For win rates: prompts, ties, an interval over prompts, and the metric that was chosen before the run.

# %% [markdown] lang="ja" uid="rules" pair="eb5ec637"
# ## 数値に添えるもの
#
# - 画像の枚数、特徴量、画像の前処理、そしてノイズフロア。それより小さい変化は、変化とはいえません。
# - 忠実度と多様性をそれぞれ 1 つずつ。*本物どうし*を比べた値も添えます。
# - プロンプトへの忠実度。集合の指標では測れません。また、学習画像の丸写しにも気付きません。
# - 勝率なら、プロンプト数、引き分けの数、プロンプト単位の信頼区間、そして実行前に決めた主指標。

# %% uid="article"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz()
