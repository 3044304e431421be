# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("03", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="see" pair="c49adab3"
# ## 1. Density that can be seen
#
# How typical is a sample $x$ of a data set? Take its features $F(x)$ and the $k$ nearest real samples, $x$ itself left out:
#
# $$d_k(x) = \frac{1}{k}\sum_{j=1}^{k}\lVert F(x) - F(\mathrm{nn}_j(x))\rVert, \qquad \rho(x) = \frac{(1/d_k(x))^n}{\frac{1}{N}\sum_m (1/d_k(x_m))^n}$$
#
# $\rho$ is the pseudo density, in multiples of the average; the authors' code has $n = 1$. Our first world is a ring of eight modes whose true
# density is known. Before you compute anything: where is $\rho$ highest on average?

# %% [markdown] lang="ja" uid="see" pair="37ed84c8"
# ## 1. 目に見える密度
#
# サンプル $x$ は、データの中でどれくらい典型的でしょうか。特徴量 $F(x)$ を求め、$x$ 自身を除いて近い順に $k$ 個の実サンプルを取ります。
#
# $$d_k(x) = \frac{1}{k}\sum_{j=1}^{k}\lVert F(x) - F(\mathrm{nn}_j(x))\rVert, \qquad \rho(x) = \frac{(1/d_k(x))^n}{\frac{1}{N}\sum_m (1/d_k(x_m))^n}$$
#
# $\rho$ が擬似密度で、平均の何倍かを表します。著者のコードでは $n = 1$ です。最初の題材は、真の密度がわかっている 8 つの山のリングです。
# 計算する前に予想してください。$\rho$ の平均が最も高いのはどこでしょうか。

# %% uid="densest-predict" tags=["quiz"]
lab.predict("densest")

# %% [markdown] lang="en" uid="write-density" pair="fca1eca2"
# Write `pseudo_density` with $n = 1$ for all rows of a real set.

# %% [markdown] lang="ja" uid="write-density" pair="e4d6d700"
# 実データのすべての行について、$n = 1$ の `pseudo_density` を書いてください。

# %% uid="density-exercise" tags=["exercise"] exercise="pseudo_density"
import torch


def pseudo_density(features, k):
    """en: rho [N] of each row of features [N, d] among the other rows; its mean is 1.
    ja: features [N, d] の各行について、残りの行の中での rho [N] を求めます。rho の平均は 1 です。
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
import numpy as np

from labkit.density import PseudoDensity, rank_correlation
from labkit.worlds.ring import ring_centres, ring_density, ring_generator, ring_reals

reals = ring_reals(lab.sizes.ring, lab.generator())  # [N, 2]
ring = PseudoDensity(k=10).fit(reals)
difference = float((pseudo_density(reals, 10) - ring.rho).abs().max())
x, y = ring_density(reals).log(), ring.rho.log()
slope = float(((x - x.mean()) * y).sum() / (x - x.mean()).square().sum())
lab.verdict(t("l03.same_density", difference=difference), difference < 1e-3)
print(t("l03.agreement", rank=rank_correlation(x, y), slope=slope))
# en: mode 0 has the most points
# ja: モード 0 の点が最も多い
mode = torch.cdist(reals, ring_centres()).argmin(dim=1)  # [N]
by_mode = torch.stack([ring.rho[mode == m].mean() for m in range(8)])
lab.reveal("densest", "biggest" if by_mode.argmax() == 0 else "other")

# %% [markdown] lang="en" uid="ring-look" pair="e6b9308a"
# In two dimensions $\log\rho$ follows half of $\log p$: distances shrink with the $d$-th root of the density. The scale of $\rho$ therefore means
# little, its order means much. Change $n$: the colours change, the order of the points does not. Change $k$: the circle is the ball of one point.

# %% [markdown] lang="ja" uid="ring-look" pair="f94c7cb6"
# 2 次元では、$\log\rho$ は $\log p$ の半分の傾きになります。距離は密度の $d$ 乗根に反比例して縮むからです。したがって $\rho$ の値そのものより順序に
# 意味があります。$n$ を変えると色は変わりますが、順序は変わりません。$k$ を変えると、1 点の周りの球(円)の大きさが変わります。

# %% uid="ring-widget" tags=["widget"]
from matplotlib.patches import Circle

from labkit.figures import bar_with_interval, figure_style, image_grid, label_points, new_figure, strips
from labkit.figures.widgets import choice, explore, slider


def ring_picture(k, exponent, point):
    """en: True density, and the reals coloured by rho with the k-NN ball of one of them.
    ja: 真の密度と、rho で色分けした実データです。1 点には k 近傍の球を描きます。
    """
    fitted = PseudoDensity(k=k, exponent=exponent).fit(reals)
    axis = torch.linspace(-2.7, 2.7, 121, dtype=torch.float64)
    true = ring_density(torch.cartesian_prod(axis, axis)).reshape(121, 121).T
    with figure_style():
        figure = new_figure(8.4, 3.9, layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(true, origin="lower", extent=(-2.7, 2.7, -2.7, 2.7), cmap="magma")
        left.set_title(t("l03.true_density"))
        dots = right.scatter(*reals.T, c=fitted.rho, s=5, cmap="viridis", vmin=0, vmax=float(fitted.rho.quantile(0.99)))
        ball = Circle(
            reals[point].tolist(), float(fitted.distances[point]), fill=False, edgecolor="#D55E00", linewidth=2
        )
        right.add_patch(ball)
        right.set_title(t("l03.one_point", rho=float(fitted.rho[point])))
        figure.colorbar(dots, label=t("l03.rho_axis"))
        for axes in (left, right):
            axes.set(aspect="equal", xlim=(-2.7, 2.7), ylim=(-2.7, 2.7), xticks=[], yticks=[])
            axes.grid(visible=False)
    figure.alt = t("l03.ring_alt", k=k, n=exponent)
    return figure


controls = {
    "k": slider("k", 3, 50, 10),
    "exponent": slider("n", 0.5, 3.0, 1.0, 0.5),
    "point": slider(t("l03.point"), 0, len(reals) - 1, 0),
}
explore(ring_picture, controls)

# %% [markdown] lang="en" uid="accept" pair="a7eeade0"
# ## 2. Accept or reject
#
# Importance sampling with two levels: a threshold $\tau$ (a quantile of the real $\rho$) and a weight $w$. For $w \ge 1$ everything above $\tau$ is accepted
# and the rest with probability $1/w$; for $w < 1$ everything up to $\tau$ is accepted and the rest with probability $w$. A typical sample is then $w$ times
# as likely, relative to a rare one, as before. Write the rule.

# %% [markdown] lang="ja" uid="accept" pair="4643bdbb"
# ## 2. 受理か棄却か
#
# 2 段階の重点サンプリングです。しきい値 $\tau$(実データの $\rho$ の分位点)と重み $w$ を使います。$w \ge 1$ では、$\tau$ より上をすべて受理し、残りを確率 $1/w$ で
# 受理します。$w < 1$ では、$\tau$ 以下をすべて受理し、残りを確率 $w$ で受理します。その結果、珍しいサンプルに対する典型的なサンプルの比は、もとの $w$ 倍に
# なります。この規則を書いてください。


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

# %% [markdown] lang="en" uid="cost" pair="1a2de306"
# What does it cost? Let a share $\pi$ of the *generated* samples lie above $\tau$. Write `forecast`: the acceptance rate, the share above $\tau$ among
# the accepted, and the generated samples per accepted one.

# %% [markdown] lang="ja" uid="cost" pair="dad85314"
# コストはどうなるでしょうか。*生成した*サンプルのうち割合 $\pi$ が $\tau$ より上だとします。受理率、受理後に $\tau$ より上になる割合、受理 1 枚あたりの生成枚数を返す
# `forecast` を書いてください。

# %% uid="cost-predict" tags=["quiz"]
lab.predict("cost")


# %% uid="forecast-exercise" tags=["exercise"] exercise="forecast"
def forecast(pi, w):
    """en: (acceptance rate, share above tau among the accepted, generated samples per accepted one).
    ja: (受理率、受理したうち tau より上の割合、受理 1 つあたりの生成数)を返します。
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

# %% [markdown] lang="en" uid="ring-run" pair="c35a9a4b"
# The ring has a generator that knows all modes but smears a fifth of its samples over the bridges between them. Several settings, each with fresh
# noise; intervals are 95 %, Student's t over the repetitions. `truncation` shrinks the noise instead, as for GANs.

# %% [markdown] lang="ja" uid="ring-run" pair="9ff77098"
# このリングの生成器は 8 つの山をすべて再現できますが、サンプルの 2 割は山と山の間に落ちます。設定ごとに新しいノイズで繰り返します。区間は、繰り返しの結果から
# スチューデントの t 分布で求めた 95 % 区間です。`truncation` は GAN のようにノイズを縮める方法です。

# %% uid="ring-table"
from labkit.course.render import show, table
from labkit.density import importance_sample, pilot
from labkit.metrics import frechet_distance, manifold_metrics

# en: Student's t
# ja: スチューデントの t
T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
METRICS = (t("l03.precision"), t("l03.recall"), t("l03.coverage"), t("l03.frechet"))


def half_width(values):
    """en: Half the 95 % interval of a mean.
    ja: 平均の 95 % 区間の幅の半分です。
    """
    n = len(values)
    return T95.get(n, 1.96 + 2.37 / (n - 1) + 2.8 / (n - 1) ** 2) * values.std(ddof=1) / n**0.5


def paired(measured, a, b=0.0, seeds=(seed,)):
    """en: What `lab.claim` records: the mean of a - b over paired repetitions with its 95 % interval.
    ja: `lab.claim` に記録する値です。対にした繰り返しでの a - b の平均と、その 95 % 区間です。
    """
    gap = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    gap = gap[~np.isnan(gap)]
    if len(gap) < 2:
        return {"measured": measured, "reason": t("l03.too_few")}
    low, high = float(gap.mean() - half_width(gap)), float(gap.mean() + half_width(gap))
    return {"measured": measured, "value": float(gap.mean()), "interval": (low, high), "seeds": list(seeds)}


def quality(real, fake, k=5):
    """en: Precision, recall, coverage and squared Frechet distance of fake features; NaN for fewer than seven of them.
    ja: 生成側の特徴量の適合率、再現率、被覆率、フレシェ距離の 2 乗です。7 つに満たないときは NaN です。
    """
    if len(fake) < 7:
        return (np.nan,) * 4
    found = manifold_metrics(real=real, fake=fake, k=k)
    return found.precision, found.recall, found.coverage, float(frechet_distance(real=real, fake=fake))


selections = {"w = 1": (0.1, 1.0), "q 0.1, w 2": (0.1, 2.0), "q 0.1, w 33": (0.1, 33.0), "q 0.5, w 33": (0.5, 33.0)}
selections |= {"q 0.8, w 33": (0.8, 33.0), "q 0.1, w 0.03": (0.1, 0.03)}
truncations = {t("l03.at_truncation", psi=psi): psi for psi in (0.7, 0.3)}
n = lab.sizes.ring_kept
# en: name -> repetitions of (*quality, calls, forecast)
# ja: 名前 -> 繰り返しごとの (*quality, calls, forecast)
measured = {name: [] for name in [*selections, *truncations]}
for r in lab.progress_bar(range(lab.sizes.repeats), t("l03.repetitions"), lab.sizes.repeats):
    z = torch.randn(25 * n, 3, generator=lab.generator(100 + r), dtype=torch.float64)
    points = ring_generator(z)
    for name, (quantile, w) in selections.items():
        tau = ring.threshold(quantile)
        first = pilot(
            lambda i, count, all=points: all[-1 - i - count : -1 - i], ring.score, threshold=tau, ratio=w, n=n
        )
        kept = importance_sample(
            lambda i, count, all=points: all[i : i + count], ring.score, n=n, threshold=tau, ratio=w, budget=len(points) - n,
            generator=lab.generator(200 + r), batch=n,
        )  # fmt: skip
        measured[name].append((*quality(reals, kept.samples), kept.calls_per_sample, first.calls_per_sample))
    for name, psi in truncations.items():
        measured[name].append((*quality(reals, ring_generator(psi * z[:n])), 1.0, 1.0))
measured = {name: np.array(rows) for name, rows in measured.items()}  # [repetitions, 6]
head = [t("l03.setting"), *METRICS, t("l03.calls"), t("l03.forecast")]
show(*table(head, [[name, *(f"{v:.3f}" for v in rows.mean(0))] for name, rows in measured.items()]))

# %% uid="ring-plane"
from labkit.figures.base import wrap_text
from labkit.figures.style import MARKERS, PALETTE


def plane(groups, title):
    """en: Precision against coverage; groups: label -> {setting: (precision, coverage)}.
    ja: 被覆率に対する適合率です。groups は、ラベル -> {設定: (適合率, 被覆率)} です。
    """
    title = "\n".join(wrap_text(title, 5.9, 12))
    with figure_style():
        figure = new_figure(7.0, 4.4, layout="constrained")
        axes = figure.add_subplot()
        for index, (label, settings) in enumerate(groups.items()):
            across, up = [v[1] for v in settings.values()], [v[0] for v in settings.values()]
            axes.scatter(across, up, s=46, color=PALETTE[index], marker=MARKERS[index], label=label, zorder=3)
        axes.set(xlabel=t("l03.coverage_axis"), ylabel=t("l03.precision_axis"), title=title)
        axes.margins(0.16)
        figure.legend(loc="outside lower right", ncols=len(groups))
        label_points(axes, {name: (v[1], v[0]) for settings in groups.values() for name, v in settings.items()})
    points = [f"{name} {p:.2f}/{c:.2f}" for settings in groups.values() for name, (p, c) in settings.items()]
    figure.alt = t("l03.plane_alt", points=", ".join(points))
    return figure


means = {name: rows.mean(0) for name, rows in measured.items()}
groups = {t("l03.selection"): {name: means[name][[0, 2]] for name in selections}}
groups[t("l03.truncation")] = {name: means[name][[0, 2]] for name in truncations}
plane(groups, t("l03.ring_plane", repeats=lab.sizes.repeats, n=n))

# %% uid="ring-claims"
distance = {name: rows[:, 3] for name, rows in measured.items()}
cost_ratio = np.stack([measured[name][:, 4] / measured[name][:, 5] for name in selections]).mean(0)  # [repetitions]
mild, extreme = "q 0.1, w 2", "q 0.8, w 33"
lab.claim("mild_ring", **paired(t("l03.change", metric=METRICS[3], name=mild), distance[mild], distance["w = 1"]))
lab.claim(
    "extreme_ring", **paired(t("l03.change", metric=METRICS[3], name=extreme), distance[extreme], distance["w = 1"])
)
lab.claim("cost_forecast", **paired(t("l03.cost_ratio"), cost_ratio))

# %% [markdown] lang="en" uid="ring-slider" pair="1e0d45f7"
# From typical to rare with one slider. Blue points are accepted; every stop of the sliders leaves a point in the plane on the right. Find a setting that
# beats truncation in both directions, and the one with the smallest Fréchet distance. The overlay draws as many points as were accepted, made
# without any selection: with shrunken noise, or at random.

# %% [markdown] lang="ja" uid="ring-slider" pair="c63517f1"
# 1 つのスライダーで、典型的なサンプルから珍しいサンプルまで動かします。青い点が受理されたサンプルです。スライダーを止めるたびに、右の平面に点が残ります。
# truncation を両方の軸で上回る設定と、フレシェ距離が最小になる設定を探してください。重ね描きでは、受理された数と同じだけの点を選別なし(縮めたノイズ、または無作為)で
# 生成して比べます。

# %% uid="ring-slider-widget" tags=["widget"]
z_pool = torch.randn(1500, 3, generator=lab.generator(300), dtype=torch.float64)
pool_points = ring_generator(z_pool)
pool_rho = ring.score(pool_points)
# en: (log10 w, quantile) -> (precision, coverage, Frechet distance, generated per kept)
# ja: (log10 w, 分位点) -> (適合率, 被覆率, フレシェ距離, 採用 1 つあたりの生成数)
stops = {}


def stop(log_w, quantile):
    """en: Which points of the pool a setting accepts; what comes of it joins `stops`.
    ja: この設定で受理される点です。結果は `stops` に追加します。
    """
    u = torch.rand(len(pool_rho), generator=lab.generator(301), dtype=torch.float64)
    accepted = u < acceptance(pool_rho, ring.threshold(quantile), 10.0**log_w)
    precision, _, coverage, fd = quality(reals, pool_points[accepted])
    stops[log_w, quantile] = precision, coverage, fd, len(accepted) / max(int(accepted.sum()), 1)
    return accepted


def without_selection(kind, count):
    """en: Precision and coverage of `count` points: shrunken noise at four scales, or the first ones of the pool.
    ja: `count` 点の適合率と被覆率です。ノイズを 4 段階に縮めたものか、候補の先頭を使います。
    """
    z = [psi * z_pool[:count] for psi in {"truncation": (0.9, 0.7, 0.5, 0.3), "random": (1.0,)}.get(kind, ())]
    return np.array([quality(reals, ring_generator(one))[::2] for one in z]).reshape(-1, 2)


def typical_or_rare(log_w, quantile, overlay):
    """en: The pool, the plane with all stops so far, and what a kept point costs.
    ja: 候補の点、これまでの設定を示す平面、採用 1 つあたりのコストです。
    """
    accepted, w = stop(log_w, quantile), 10.0**log_w
    precision, coverage, fd, paid = stops[log_w, quantile]
    above = pool_rho > ring.threshold(quantile)
    _, share, calls = forecast(float(above.double().mean()), w)
    found = float(above[accepted].double().mean())
    bare = without_selection(overlay, int(accepted.sum()))
    with figure_style():
        figure = new_figure(8.6, 4.4, layout="constrained")
        axes = figure.subplot_mosaic([["points", "plane"], ["cost", "plane"]], height_ratios=[6, 1])
        axes["points"].scatter(*pool_points[~accepted].T, s=5, color="#C9C9C9", label=t("l03.rejected"))
        axes["points"].scatter(*pool_points[accepted].T, s=5, color=PALETTE[0], label=t("l03.accepted"))
        axes["points"].set(aspect="equal", xticks=[], yticks=[], title=t("l03.slider_share", found=found, share=share))
        axes["plane"].plot(*np.array(list(stops.values()))[:, [1, 0]].T, color="#9A9A9A", marker="o", markersize=4)
        axes["plane"].plot(coverage, precision, color=PALETTE[0], marker="o", markersize=9)
        axes["plane"].plot(*bare[:, ::-1].T, color=PALETTE[1], marker="s", linestyle="none")
        axes["plane"].set(
            xlabel=t("l03.coverage_axis"), ylabel=t("l03.precision_axis"), title=f"{METRICS[3]}: {fd:.3f}"
        )
        axes["cost"].barh([t("l03.forecast"), t("l03.paid")], [calls, paid], color=["#9A9A9A", PALETTE[0]])
        axes["cost"].set(xlabel=t("l03.calls"), xlim=(0, max(8, calls, paid)))
        for name in ("points", "cost"):
            axes[name].grid(visible=False)
        axes["points"].legend(loc="center", markerscale=3)
    figure.alt = t("l03.slider_alt", w=w, precision=precision, coverage=coverage, fd=fd, calls=calls, paid=paid)
    return figure


slider_controls = {
    "log_w": slider(t("l03.log_w"), -1.5, 1.5, 1.5, 0.25),
    "quantile": slider(t("l03.quantile"), 0.05, 0.95, 0.1, 0.05),
}
overlays = {t("l03.nothing"): "nothing", t("l03.truncation"): "truncation", t("l03.at_random"): "random"}
explore(typical_or_rare, slider_controls | {"overlay": choice(t("l03.overlay"), overlays, "truncation")})

# %% [markdown] lang="en" uid="learner-curve" pair="3f7e861d"
# Your curve: all stops so far, a few of which are there from the start. Run this cell again after moving the sliders; it saves the picture as well.

# %% [markdown] lang="ja" uid="learner-curve" pair="a7315a04"
# あなたの曲線です。これまでに止めた設定をすべて描きます(いくつかは最初から入っています)。スライダーを動かしたら、このセルをもう一度実行してください。図はファイルにも保存されます。

# %% uid="learner-curve-run"
from labkit.course.claims import results_folder

for log_w, quantile in ((-1.5, 0.1), (-0.75, 0.1), (0.0, 0.1), (0.75, 0.1), (1.5, 0.5), (1.5, 0.8)):
    stop(log_w, quantile)
bare = without_selection("truncation", len(pool_points))
yours = {f"w {10**log_w:.2g}, q {quantile:g}": found[:2] for (log_w, quantile), found in sorted(stops.items())}
groups = {
    t("l03.selection"): yours,
    t("l03.truncation"): dict(zip((r"$\psi$ 0.9", "0.7", "0.5", "0.3"), bare, strict=True)),
}
figure = plane(groups, t("l03.your_curve"))
path = results_folder(lab.results) / "l03.curve.png"
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path)
best = min(stops, key=lambda setting: stops[setting][2])
better = sum(bool((np.array(found) > bare).all(1).any()) for found in yours.values())
print(t("l03.best_stop", w=10 ** best[0], q=best[1], fd=stops[best][2], better=better, n=len(stops), file=path.name))
figure

# %% [markdown] lang="en" uid="portraits" pair="447c1237"
# ## 3. Portraits: what is typical, what is rare
#
# Now a data set in which some things are rare on purpose: few drawings in the cartoon style, few sunglasses, few pink or blue heads. The
# pseudo density is measured in PortraitCLIP's image space (the *control* space). PortraitSD and this data set serve all tiers, because only here are
# the attributes of every picture known.

# %% [markdown] lang="ja" uid="portraits" pair="e844f264"
# ## 3. ポートレート: 何が典型的で、何が珍しいのか
#
# 次は、一部をわざと珍しくしたデータです。アニメ調の絵、サングラス、ピンクや青の髪は少ししかありません。擬似密度は PortraitCLIP の画像空間(*制御*用の空間)で
# 測ります。すべての画像の属性がわかっているのはこのデータだけなので、どの tier でも PortraitSD を使います。

# %% uid="portrait-data"
from labkit.metrics.extractors import clip_extractor, reader_extractor
from labkit.portraits import random_caption, render_tensor, sample_specs

skew = {"style": {"avataaars": 8, "personas": 3, "toon-head": 0.5}, "glasses": {"none": 8, "sunglasses": 0.3}}
skew |= {"hair_color": {"brown": 5, "black": 5, "pink": 0.3, "blue": 0.3}, "beard": {"none": 6}}
specs = sample_specs(lab.sizes.reals, seed=lab.seed, marginals=skew)
pictures = render_tensor(specs)  # [N, 3, 64, 64]
control, judge = clip_extractor("cpu", device=lab.device), reader_extractor(device=lab.device)
typical = PseudoDensity(k=10).fit(control(pictures), fingerprint=control.fingerprint)
order = typical.rho.argsort(descending=True)
ends = {t("l03.most_typical"): order[:8], t("l03.rarest"): order[-8:]}
shown_rho = {label: typical.rho[rows].tolist() for label, rows in ends.items()}
strips({label: pictures[rows] for label, rows in ends.items()}, scores=shown_rho, score_label=r"$\rho$")

# %% uid="portrait-styles"
from labkit.density import fit_mlp
from labkit.portraits import value_name

styles = ("avataaars", "personas", "toon-head")
rows = {style: typical.rho[[i for i, spec in enumerate(specs) if spec.style == style]].numpy() for style in styles}
rows = {style: values for style, values in rows.items() if len(values) > 1}
half = [1.96 * v.std(ddof=1) / len(v) ** 0.5 for v in rows.values()]
centre = np.array([v.mean() for v in rows.values()])
labels = [f"{value_name('style', style, lab.lang)} ({len(v) / len(specs):.0%})" for style, v in rows.items()]
mlp = fit_mlp(typical, generator=lab.generator(), epochs=lab.sizes.mlp_epochs)
print(t("l03.mlp", rank=mlp.rank_correlation, n=len(mlp.held_out)))
bar_with_interval(labels, (centre, centre - half, centre + half), xlabel=t("l03.rho_axis"), title=t("l03.styles_title"))

# %% [markdown] lang="en" uid="pool" pair="3858f4b8"
# The generator: PortraitSD with captions of the same population. One pool of candidates is drawn once; every setting selects from it, and a
# generated picture is scored exactly, against the reals.

# %% [markdown] lang="ja" uid="pool" pair="379812f0"
# 生成器は、同じ母集団のキャプションを与えた PortraitSD です。候補のプールを一度だけ生成し、どの設定もそこから選びます。生成画像は、実データに対して厳密に採点します。

# %% uid="pool-run" tags=["slow"]
from labkit.density import CandidateStream
from labkit.models import load_pipeline

pipe = load_pipeline("cpu", lab.device)
rng = np.random.default_rng(lab.seed)
others = sample_specs(lab.sizes.pool, seed=lab.seed + 1, marginals=skew)
prompts = [random_caption(spec, rng).text for spec in others]
options = {"seed": lab.seed, "steps": lab.sizes.steps}


def draw(candidates, count, label):
    """en: The first `count` candidates, drawn batch by batch.
    ja: 先頭から `count` 枚の候補を、バッチごとに生成します。
    """
    starts = range(0, count, lab.sizes.batch)
    parts = [candidates(i, min(lab.sizes.batch, count - i)) for i in lab.progress_bar(starts, label, len(starts))]
    return torch.cat(parts).cpu()


pool = lab.keep("pool", draw, CandidateStream(pipe, prompts, **options), lab.sizes.pool, t("l03.pool"))
rho = typical.score(control(pool), fingerprint=control.fingerprint)
order = rho.argsort(descending=True)
ends = {t("l03.most_typical"): order[:8], t("l03.rarest"): order[-8:]}
shown_rho = {label: rho[rows].tolist() for label, rows in ends.items()}
strips({label: pool[rows] for label, rows in ends.items()}, scores=shown_rho, score_label=r"$\rho$")

# %% [markdown] lang="en" uid="rare-or-broken" pair="ab66fc5b"
# Look at the lower row: low density means rare **or** broken. One number cannot tell them apart. And look back at the bars: a style with few
# drawings need not have a low density, if those few resemble one another.

# %% [markdown] lang="ja" uid="rare-or-broken" pair="5b7f0340"
# 下の行を見てください。密度が低いのは、珍しい**か**、壊れているかのどちらかです。1 つの数値では区別できません。棒グラフにも戻ってみてください。枚数の少ない画風でも、
# 互いに似ていれば密度が低いとは限りません。

# %% uid="portrait-slider" tags=["widget"]
from labkit.density import BudgetExhausted


def select(rows, quantile, w, n, stream):
    """en: Candidate numbers accepted from `rows`, and the generated samples per accepted one.
    ja: `rows` から受理された候補の番号と、受理 1 つあたりの生成数です。
    """
    try:
        got = importance_sample(
            lambda i, count: rows[i : i + count], lambda chosen: rho[chosen], n=n, threshold=typical.threshold(quantile),
            ratio=w, budget=len(rows), generator=lab.generator(400 + stream),
        )  # fmt: skip
    except BudgetExhausted as error:
        got = error.selection
    return got.samples, got.calls_per_sample


def chosen_portraits(log_w, quantile):
    """en: The first pictures that a setting accepts, with forecast and cost.
    ja: この設定で最初に受理される画像を、予測値と実際のコストとともに表示します。
    """
    w = 10.0**log_w
    chosen, calls = select(torch.arange(len(pool)), quantile, w, min(12, len(pool)), 99)
    _, share, expected = forecast(float((rho > typical.threshold(quantile)).double().mean()), w)
    if len(chosen) == 0:
        chosen = order[:1]
    title = t("l03.portrait_title", w=w, expected=expected, calls=calls)
    return image_grid(pool[chosen], scores=rho[chosen].tolist(), score_label=r"$\rho$", columns=6, title=title)


explore(chosen_portraits, {**slider_controls, "quantile": slider(t("l03.quantile"), 0.05, 0.95, 0.5, 0.05)})

# %% [markdown] lang="en" uid="curve" pair="d65cc02d"
# ## 4. The curve, and who measures it
#
# Selection against what a diffusion model offers otherwise: the guidance scale and the scale of the initial noise. Precision, recall and coverage are
# measured in the AttributeReader's space, which had no say in the selection, and once more in the control space. The pool is cut into folds that
# share no picture, and every setting keeps the same number of each: an interval over the folds says how far another pool would differ.
# Balls reach to the third neighbour, as in the paper: with the fifth nearly all portraits are inside of one, and precision has nowhere to rise.
# Before anything runs, the closed form says whether a fold is large enough; it is fed with the first fold only.

# %% [markdown] lang="ja" uid="curve" pair="e9242cf2"
# ## 4. トレードオフ曲線と、それを測る空間
#
# 選別を、拡散モデルのほかの調整手段である誘導スケールと初期ノイズの大きさと比べます。適合率、再現率、被覆率は、選別に関わっていない AttributeReader の空間で測り、
# さらに制御用の空間でも測ります。プールを重複のないグループに分け、どの設定も各グループから同じ枚数を残します。グループ単位の区間は、プールを取り直したときのばらつきを表します。
# 球は、論文と同じく 3 番目の近傍まで取ります。5 番目まで取ると、ほとんどのポートレートがどれかの球に入り、適合率は上がりようがなくなります。
# 実行する前に、1 つのグループで足りるかどうかを閉じた式で確かめます。式に入れるのは最初のグループの値だけです。

# %% uid="curve-forecast"
folds, n_kept = lab.sizes.folds, lab.sizes.kept
settings = {"w 33, q 0.5": (0.5, 33.0), "w 2, q 0.1": (0.1, 2.0), "w 0.03, q 0.5": (0.5, 0.03), "w 1": (0.5, 1.0)}
parts = torch.arange(len(pool)).tensor_split(folds)
# en: setting -> (acceptance, share above tau afterwards, generated per kept)
# ja: 設定 -> (受理率, 受理後に tau より上の割合, 採用 1 つあたりの生成数)
predicted = {}
for name, (quantile, w) in settings.items():
    predicted[name] = forecast(float((rho[parts[0]] > typical.threshold(quantile)).double().mean()), w)
head = [t("l03.setting"), t("l03.forecast"), t("l03.needed", n=n_kept, size=len(parts[0]))]
show(*table(head, [[name, f"{calls:.2f}", f"{calls * n_kept:.0f}"] for name, (*_, calls) in predicted.items()]))

# %% uid="curve-run" tags=["slow"]
# en: of reals and pool
# ja: 本物と候補の特徴量
spaces = {"judge": (judge(pictures), judge(pool)), "control": (typical.features, control(pool))}
scores = {(name, space): [] for name in settings for space in spaces}  # -> [folds, metric]
paid = {name: [] for name in settings}
for f, rows in lab.progress_bar(enumerate(parts), t("l03.folds"), folds):
    for name, (quantile, w) in settings.items():
        found = {space: [] for space in spaces}
        # en: other orders and decisions on the same fold: less chance in what is kept
        # ja: 同じ分割で順序と判定を変えて繰り返し、偶然の影響を減らします
        for r in range(lab.sizes.reruns):
            shuffled = rows[torch.randperm(len(rows), generator=lab.generator(3000 + 100 * f + r))]
            chosen, calls = select(shuffled, quantile, w, n_kept, 100 * f + r)
            paid[name].append(calls)
            for space, (real, fake) in spaces.items():
                found[space].append(quality(real, fake[chosen], 3) if len(chosen) == n_kept else (np.nan,) * 4)
        for space in spaces:
            scores[name, space].append(np.mean(found[space], axis=0))

# %% uid="baselines-run" tags=["slow"]
guided = {t("l03.at_guidance", scale=scale): (scale, 1.0) for scale in (1.0, 6.0)}
noisy = {t("l03.at_noise", scale=scale): (3.0, scale) for scale in (0.8, 1.1)}
for name, (guidance, noise) in (guided | noisy).items():
    stream = CandidateStream(pipe, prompts, **options, guidance_scale=guidance, noise_scale=noise)
    images = lab.keep("baselines", draw, stream, lab.sizes.baseline_folds * n_kept, name)
    scores[name, "judge"] = [quality(spaces["judge"][0], part, 3) for part in judge(images).split(n_kept)]
scores = {key: np.array(values) for key, values in scores.items()}

# %% uid="curve-picture"
judged = {name: np.ma.masked_invalid(values) for (name, space), values in scores.items() if space == "judge"}
middle = {name: values.mean(axis=0).filled(np.nan) for name, values in judged.items()}
groups = {t("l03.selection"): {name: middle[name][[0, 2]] for name in settings}}
groups[t("l03.guidance")] = {name: middle[name][[0, 2]] for name in guided}
groups[t("l03.noise")] = {name: middle[name][[0, 2]] for name in noisy}
head = [t("l03.setting"), *METRICS, t("l03.calls"), t("l03.forecast")]
cost = {name: (np.mean(paid[name]), predicted[name][2]) if name in paid else (1.0, 1.0) for name in middle}
show(*table(head, [[k, *(f"{v:.3f}" for v in row), *(f"{v:.2f}" for v in cost[k])] for k, row in middle.items()]))
plane(groups, t("l03.portrait_plane", n=n_kept))

# %% uid="curve-claims"


def against_plain(name, column):
    """en: A setting against w = 1, fold by fold, in the judge's space.
    ja: ある設定と w = 1 を、評価役の空間でグループごとに比べます。
    """
    said = t("l03.change", metric=METRICS[column], name=name)
    return paired(said, scores[name, "judge"][:, column], scores["w 1", "judge"][:, column])


lab.claim("fidelity_up", **against_plain("w 33, q 0.5", 0))
lab.claim("diversity_down", **against_plain("w 33, q 0.5", 1))
lab.claim("coverage_down", **against_plain("w 33, q 0.5", 2))
lab.claim("fidelity_down", **against_plain("w 0.03, q 0.5", 0))
lab.claim("diversity_up", **against_plain("w 0.03, q 0.5", 1))
lab.claim("coverage_up", **against_plain("w 0.03, q 0.5", 2))
lab.claim("mild_portraits", **against_plain("w 2, q 0.1", 3))
lab.claim("extreme_portraits", **against_plain("w 33, q 0.5", 3))
gain = {space: (scores["w 33, q 0.5", space] - scores["w 1", space])[:, 0] for space in spaces}
lab.claim("own_space", **paired(t("l03.own_space"), gain["control"], gain["judge"]))

# %% [markdown] lang="en" uid="coverage-note" pair="43b7f9c0"
# Read coverage with care: it counts the reals that have a generated sample in their ball. A sample in a dense region lies in many balls, a rare one in
# few, so a handful of rare samples can be more diverse and still cover less. And a precision near 1 before the selection leaves nothing to gain.

# %% [markdown] lang="ja" uid="coverage-note" pair="b454918d"
# 被覆率は注意して読んでください。被覆率は、自分の球の中に生成サンプルがある実サンプルを数えます。密な領域のサンプルは多くの球に入り、珍しいサンプルは少ししか入りません。
# そのため、少数の珍しいサンプルは、多様であっても被覆率が低くなることがあります。また、選別前の適合率が 1 に近ければ、それ以上は上がりません。

# %% [markdown] lang="en" uid="push" pair="d6abfcfe"
# ## 5. Pushing one sample
#
# Selection waits for good luck; perturbation changes the initial noise $z$ of one image: maximise or minimise $\rho(F(G(z + \delta)))$ under
# $\lVert\delta\rVert_\infty \le \epsilon$. Each step adds $\alpha\,\mathrm{sign}(g)$, $g$ being the gradient, and clips $\delta$ back into the box. Write the step.

# %% [markdown] lang="ja" uid="push" pair="271263f3"
# ## 5. 1 枚を動かす
#
# 選別では当たりを待ちますが、摂動では 1 枚の画像の初期ノイズ $z$ を変えます。$\lVert\delta\rVert_\infty \le \epsilon$ のもとで $\rho(F(G(z + \delta)))$ を最大化または最小化します。
# 各ステップでは、勾配 $g$ を使って $\alpha\,\mathrm{sign}(g)$ を加え、$\delta$ を箱の中に戻します。この 1 ステップを書いてください。


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

# %% uid="push-ring" tags=["widget"]
ring_mlp = fit_mlp(ring, generator=lab.generator(), epochs=lab.sizes.mlp_epochs, widths=(64, 64))
z_ring = torch.randn(40, 3, generator=lab.generator(500), dtype=torch.float64)
# en: the rarest of the forty
# ja: 40 点のうち最も珍しい点
lost = int(ring.score(ring_generator(z_ring)).argmin())


def push_on_ring(which, direction, scorer):
    """en: The path of one generated point under ten steps in a box of 0.3, and what the climbed and the exact score say.
    ja: 生成した 1 点が、0.3 の箱の中で 10 ステップたどる経路です。登るのに使ったスコアと正確なスコアも返します。
    """
    score = {"exact": ring.soft_score, "mlp": ring_mlp.soft_score}[scorer]
    z, delta = z_ring[which : which + 1], torch.zeros(1, 3, dtype=torch.float64)
    path, deltas = [ring_generator(z)], [delta]
    for _ in range(10):
        moved = (z + delta).requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(ring_generator(moved)).sum(), moved)
        delta = push_step(delta, direction * gradient, 0.075, 0.3)
        path.append(ring_generator(z + delta))
        deltas.append(delta)
    path = torch.cat(path)  # [11, 2]
    said, true = (float(f(path[-1:]) / f(path[:1])) for f in (score, ring.score))
    path, title = path.numpy(), "\n".join(wrap_text(t("l03.push_title", said=said, true=true), 7.8, 12))
    with figure_style():
        figure = new_figure(8.4, 4.0, layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, line in enumerate(torch.cat(deltas).T):
            left.plot(line, color=PALETTE[i], marker=MARKERS[i], markersize=4, label=f"$\\delta_{i + 1}$")
        for wall in (-0.3, 0.3):
            left.axhline(wall, color="#6B6B6B", linestyle=(0, (4, 3)))
        left.set(xlabel=t("l03.step"), ylabel=t("l03.delta_axis"), ylim=(-0.45, 0.36), title=t("l03.in_the_box"))
        left.legend(loc="lower center", ncols=3)
        right.scatter(*reals.T, s=4, color="#C9C9C9")
        right.plot(*path[0], color=PALETTE[0], marker="o", markersize=8)
        right.plot(*path.T, color=PALETTE[1], marker=".", linewidth=1.5)
        right.set(aspect="equal", xticks=[], yticks=[], title=t("l03.in_the_data"))
        right.grid(visible=False)
        figure.suptitle(title, fontsize=12)
    figure.alt = title
    return figure


push_controls = {
    "which": slider(t("l03.point"), 0, 39, lost),
    "direction": choice(t("l03.direction"), {t("l03.up"): 1, t("l03.down"): -1}),
    "scorer": choice(t("l03.scorer"), {t("l03.exact"): "exact", "MLP": "mlp"}),
}
explore(push_on_ring, push_controls)

# %% [markdown] lang="en" uid="push-portraits" pair="033401ad"
# The same through a whole diffusion sampler. The score that is climbed is exact or the MLP that the paper trains on the reals; the result is always
# scored exactly. Random signs are the control.

# %% [markdown] lang="ja" uid="push-portraits" pair="9c10bfa8"
# 同じことを拡散モデルのサンプラー全体を通して行います。最大化する目的関数は、厳密なスコアか、論文のように実データで学習した MLP です。結果は必ず厳密に採点し直します。
# 対照はランダムな符号です。

# %% uid="push-run" tags=["slow"]
from labkit.density import perturb

few = CandidateStream(pipe, prompts, seed=lab.seed + 2, steps=lab.sizes.push_steps)
z = few.noise(0, lab.sizes.push)
mean, std = (torch.tensor(v, device=lab.device).view(1, 3, 1, 1) for v in (control.pipeline.mean, control.pipeline.std))


def features_with_gradient(images):
    """en: The control space without rounding, [B, d].
    ja: 丸めを行わない、制御用の空間の特徴量 [B, d] です。
    """
    return control.network((images / 2 + 0.5 - mean) / std)


exact = few.judge(lambda images: typical.score(control(images)), 0)
plans = {"up": ("up", typical, "sign"), "down": ("down", typical, "sign")}
plans |= {"up, MLP": ("up", mlp, "sign"), "random": ("up", typical, "random")}
pushed = {}
for name in lab.progress_bar(plans, t("l03.pushing"), len(plans)):
    direction, scorer, method = plans[name]
    pushed[name] = perturb(
        few.scorer(features_with_gradient, scorer.soft_score, 0), z, exact=exact, direction=direction, method=method,
        steps=lab.sizes.pgd, generator=lab.generator(600), eps=lab.sizes.eps,
    )  # fmt: skip
with torch.no_grad():
    seen = {name: few.images(run.z, 0).clamp(-1, 1).cpu() for name, run in list(pushed.items())[:3]}
    start_images = few(0, len(z)).cpu()
strip = {t("l03.pushed_down"): seen["down"], t("l03.start"): start_images, t("l03.pushed_up"): seen["up"]}
strip_rho = {t("l03.pushed_down"): pushed["down"].after, t("l03.start"): pushed["up"].before}
strip_rho[t("l03.pushed_up")] = pushed["up"].after
strips(strip, scores={label: v.tolist() for label, v in strip_rho.items()}, score_label=r"$\rho$")

# %% uid="push-claims"
log_gain = {name: (run.after / run.before).log().numpy() for name, run in pushed.items()}
labels = {"up": t("l03.up"), "down": t("l03.down"), "up, MLP": t("l03.up_mlp"), "random": t("l03.random")}


promised = (pushed["up, MLP"].climbed[-1] / pushed["up, MLP"].climbed[0]).log().numpy()
lab.claim("push_up", **paired(t("l03.log_ratio"), log_gain["up"], log_gain["random"]))
lab.claim("push_down", **paired(t("l03.log_ratio"), log_gain["down"], log_gain["random"]))
lab.claim("mlp_overrates", **paired(t("l03.log_ratio"), promised, log_gain["up, MLP"]))
centre = np.array([values.mean() for values in log_gain.values()])
half = np.array([half_width(values) for values in log_gain.values()])
bar_with_interval(
    [labels[name] for name in log_gain],
    (centre, centre - half, centre + half),
    xlabel=t("l03.log_ratio"),
    title=t("l03.push_bars"),
    value_format="{:.3f}",
)

# %% [markdown] lang="en" uid="tune" pair="de7a99ba"
# ## 6. Fine-tuning with weights
#
# The third method changes the model: training pictures above $\tau$ are drawn $w$ times as often. Where does that lead? First a GAN on two bins, whose
# discriminator is ideal: it sees reals above $\tau$ with weight $w_{\text{real}}$ and fakes above $\tau$ with $w_{\text{fake}}$, and the generator follows its odds. At
# the fixed point $p \propto p_{\text{data}}\,w_{\text{real}}/w_{\text{fake}}$. The paper sets $w_{\text{fake}} = 1/w_{\text{real}}$; a diffusion model sees no fakes in training. labkit calls the
# effective number `ratio`.

# %% [markdown] lang="ja" uid="tune" pair="35dc6d0d"
# ## 6. 重み付きファインチューニング
#
# 3 つ目の方法はモデル自体を変えます。$\tau$ より上の学習画像を $w$ 倍の頻度で引きます。その結果、どこに収束するでしょうか。まず、2 つのビンだけの GAN で確かめます。理想的な
# 識別器は、$\tau$ より上の実データを重み $w_{\text{real}}$、生成データを重み $w_{\text{fake}}$ で見て、生成器はそのオッズに従って動きます。不動点は
# $p \propto p_{\text{data}}\,w_{\text{real}}/w_{\text{fake}}$ です。論文では $w_{\text{fake}} = 1/w_{\text{real}}$ とします。拡散モデルの学習には生成画像が現れません。labkit では、実効的な値を
# `ratio` と呼びます。

# %% uid="histogram-gan"
from labkit.figures import curve_with_interval


def histogram_gan(w_real, w_fake, updates=40):
    """en: How often above : below the fakes lie, relative to the reals, before and after each update.
    ja: 生成側の「中央値より上 : 下」の比を本物の比で割った値です。初期値と、更新するたびの値を返します。
    """
    # en: shares below and above the median
    # ja: 中央値より下と上の割合
    real = torch.tensor([0.5, 0.5])
    fake, odds = real.clone(), []
    for _ in range(updates + 1):
        odds.append(float((fake[1] / fake[0]) / (real[1] / real[0])))
        seen_real, seen_fake = (w / (w @ p) * p for w, p in ((w_real, real), (w_fake, fake)))
        # en: D / (1 - D) of the ideal discriminator, in small steps
        # ja: 理想的な識別器の D / (1 - D) に向けて、少しずつ進みます
        fake = fake * (seen_real / seen_fake) ** 0.2
        fake = fake / fake.sum()
    return odds


w = torch.tensor([1.0, 4.0])
odds = {t("l03.weights_reals"): histogram_gan(w, torch.ones(2)), t("l03.weights_both"): histogram_gan(w, 1 / w)}
print(t("l03.gan_end", one=odds[t("l03.weights_reals")][-1], both=odds[t("l03.weights_both")][-1]))
curve_with_interval(
    range(41), odds, xlabel=t("l03.updates"), ylabel=t("l03.odds"), title=t("l03.gan_title"),
    reference={"$w$": 4, "$w^2$": 16}, log_y=True,
)  # fmt: skip

# %% [markdown] lang="en" uid="tune-portraits" pair="5184b0bf"
# Now PortraitSD. The paper compares with the pretrained model. Here the same steps also run **without weights**: whatever they do is not due to pseudo
# density. Everything is repeated with several seeds, and the intervals are over the seeds. The prompt is open, "a portrait of a person", so that
# the model itself decides how typical its pictures are.

# %% [markdown] lang="ja" uid="tune-portraits" pair="15d75967"
# 次は PortraitSD です。論文の比較対象は事前学習済みモデルです。ここでは同じステップを**重みなし**でも実行します。そこで生じる変化は、擬似密度の効果ではありません。
# すべてを複数のシードで繰り返し、区間はシード単位です。プロンプトは "a portrait of a person" だけにして、どれくらい典型的な画像にするかをモデルに任せます。

# %% uid="tune-run" tags=["slow"]
from contextlib import nullcontext

from labkit.density import fine_tune, training_weights
from labkit.diffusion import encode_images, encode_prompts

tau, tune_seeds = typical.threshold(0.5), range(lab.seed, lab.seed + lab.sizes.tune_seeds)
with torch.no_grad():
    latents = encode_images(pipe, pictures, batch_size=64)
    conditions = encode_prompts(pipe, [random_caption(spec, rng).text for spec in specs])
weights = {t("l03.pretrained"): None, t("l03.control"): 1.0, t("l03.typical"): 33.0, t("l03.rare"): 0.03}
tuned, shares, shown = {label: [] for label in weights}, {label: [] for label in weights}, {}
total = len(tune_seeds) * 3 * lab.sizes.tune_steps
bar = iter(lab.progress_bar(range(total), t("l03.tuning"), total))


def tune(s, w):
    """en: Pictures of the model finetuned with ratio w (None: as it is); the pipeline is as before.
    ja: 比 w でファインチューニングしたモデル(None なら元のまま)の画像です。パイプライン自体は変わりません。
    """
    run = w and fine_tune(
        pipe, latents, conditions, weights=training_weights(typical.rho, threshold=tau, ratio=w), seed=s,
        steps=lab.sizes.tune_steps, batch=lab.sizes.tune_batch, learning_rate=lab.sizes.learning_rate,
        progress=lambda *_: next(bar),
    )  # fmt: skip
    stream = CandidateStream(pipe, "a portrait of a person", seed=s, steps=lab.sizes.steps, batch_size=lab.sizes.batch)
    with run.applied(pipe) if run else nullcontext():
        return stream(0, lab.sizes.tune_images).cpu()


for s in tune_seeds:
    for label, w in weights.items():
        images = lab.keep("tuned", tune, s, w)
        values = typical.score(control(images))
        shares[label].append(float((values > tau).double().mean()))
        tuned[label].append(quality(spaces["judge"][0], judge(images), 3))
        shown.setdefault(label, (images[:8], values[:8].tolist()))
# en: the bar reports its end
# ja: 進捗バーを最後まで進めます
_ = list(bar)

# %% uid="tune-look"
tuned, shares = ({label: np.array(rows) for label, rows in found.items()} for found in (tuned, shares))
head = [t("l03.run"), *METRICS, t("l03.share")]
show(*table(head, [[k, *(f"{v:.3f}" for v in tuned[k].mean(0)), f"{shares[k].mean():.3f}"] for k in weights]))
pi = shares[t("l03.control")].mean()
for w in (33.0, 0.03):
    print(t("l03.fixed_point", w=w, pi=pi, share=forecast(pi, w)[1]))
images, values = ({label: pair[i] for label, pair in shown.items()} for i in range(2))
strips(images, scores=values, score_label=r"$\rho$", title=t("l03.same_noise"))

# %% uid="tune-claims"
plain, typ, rare = t("l03.control"), t("l03.typical"), t("l03.rare")
lab.claim("tune_share", **paired(t("l03.share"), shares[typ], shares[plain], tune_seeds))
lab.claim("tune_fidelity", **paired(METRICS[0], tuned[typ][:, 0], tuned[plain][:, 0], tune_seeds))
lab.claim("tune_diversity", **paired(METRICS[1], tuned[rare][:, 1], tuned[plain][:, 1], tune_seeds))
lab.claim("tune_coverage", **paired(METRICS[2], tuned[rare][:, 2], tuned[plain][:, 2], tune_seeds))
lab.claim("control_alone", **paired(METRICS[3], tuned[plain][:, 3], tuned[t("l03.pretrained")][:, 3], tune_seeds))

# %% [markdown] lang="en" uid="end" pair="d453d92a"
# ## 7. What the article says, and what was measured

# %% [markdown] lang="ja" uid="end" pair="d65d7a94"
# ## 7. 記事の説明と、測った結果

# %% uid="article"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz()
