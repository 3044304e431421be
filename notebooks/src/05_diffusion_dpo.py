# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("05", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="toy" pair="d40801b2"
# ## 1. Two dimensions, one minute
#
# A diffusion model of points: eight modes on a circle. A judge likes the right side. He never sees the model; he only says which of two
# samples he prefers. Pairs are the best and the worst of eight samples.

# %% [markdown] lang="ja" uid="toy" pair="64d7e509"
# ## 1. 2 次元なら 1 分で
#
# まずは点を生成する拡散モデルです。データは円周上の 8 つのモードで、評価役は右側を好みます。評価役はモデルの中身を知らず、2 つのサンプルの
# どちらが好みかを答えるだけです。8 個生成したうちの最良と最悪を選好ペアにします。

# %% uid="draw" tags=["hide-input"]
import numpy as np
import torch

from matplotlib.patches import Circle

from labkit.figures import bar_with_interval, curve_with_interval, figure_style, new_figure, strips


def scatter(panels, title):
    """en: Clouds of points side by side: name -> points [n, 2]; the circle is the data.
    ja: 点の集まりを並べて描きます。panels は、名前 -> 点 [n, 2] です。円はデータの位置です。
    """
    with figure_style():
        figure = new_figure(2.3 * len(panels), 2.7, layout="constrained")
        for k, (name, points) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), k + 1)
            axes.add_patch(Circle((0, 0), 1, fill=False, color="0.8"))
            axes.plot(*points[:600].T, ".", markersize=2, alpha=0.6)
            axes.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", title=name, xticks=[-1, 1], yticks=[-1, 1])
            axes.grid(False)
        figure.suptitle(title)
    figure.alt = title + ": " + ", ".join(panels)
    return figure


def table(heads, rows, title):
    """en: A table: rows are a name and numbers as text.
    ja: 表を描きます。各行は、名前と文字列にした数値です。
    """
    with figure_style():
        figure = new_figure(8.2, 0.8 + 0.3 * len(rows), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xlim=(-2.2, len(heads)), ylim=(len(rows), -1), title=title)
        axes.axis("off")
        for i, row in enumerate([["", *heads], *rows]):
            for j, text in enumerate(row):
                place = {"ha": "left"} if j == 0 else {"ha": "right"}
                place |= {"va": "center", "fontsize": 9, "fontweight": None if i else "bold"}
                axes.text(-2.2 if j == 0 else j - 0.1, i - 0.5, text, **place)
    figure.alt = title + "\n" + "\n".join(" | ".join(row) for row in rows)
    return figure


def over_seeds(values):
    """en: Mean and 95 % interval (Student's t) of one number per seed.
    ja: シードごとの値の平均と 95 % 区間(スチューデントの t)です。
    """
    values = np.asarray(values, dtype=float)
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}[len(values)]
    half = quantile * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), (float(values.mean() - half), float(values.mean() + half))


# %% uid="toy-base"
from labkit.worlds.toy import make_pairs, off_ring, pretrain, reward, sample_points

# en: the learning rate was chosen on seed 0
# ja: 学習率はシード 0 で決めました
toy_seeds = [lab.seed + 100 + k for k in range(lab.sizes.toy_seeds)]
bases = {s: pretrain(s, lab.sizes.toy_pretrain) for s in toy_seeds}
toy_pairs, duels = (
    {s: make_pairs(bases[s], lab.sizes.toy_pairs, pool, torch.Generator().manual_seed(s)) for s in toy_seeds}
    for pool in (8, 2)
)
points = {s: sample_points(bases[s], 2000, torch.Generator().manual_seed(s + 1)) for s in toy_seeds}
first = toy_seeds[0]
winners, losers = toy_pairs[first]
scatter({t("l05.base"): points[first], t("l05.winners"): winners, t("l05.losers"): losers}, t("l05.toy_title"))

# %% [markdown] lang="en" uid="derive" pair="cb032103"
# ## 2. From a judge to a loss
#
# 1. Wanted is a model that is rewarded but stays near the reference: maximise $E[r(x)] - \beta\,\mathrm{KL}(p_\theta\,\|\,p_\mathrm{ref})$. The
#    optimum is $p^*(x) \propto p_\mathrm{ref}(x)\,e^{r(x)/\beta}$, so $r(x) = \beta \log \frac{p^*(x)}{p_\mathrm{ref}(x)} + \text{const}$.
# 2. The judge follows Bradley and Terry: $P(w \succ l) = \sigma(r(w) - r(l))$. The constant cancels inside a pair.
# 3. A diffusion model has no cheap $\log p$. Its bound, one timestep at a time, turns the log-ratio into a difference of noise prediction errors
#    $e = \mathrm{mean}\,(\hat\epsilon - \epsilon)^2$ ([Wallace et al.](https://arxiv.org/abs/2311.12908), eq. 14):
#
# $$s = -\kappa\,\big[(e_w - e^\mathrm{ref}_w) - (e_l - e^\mathrm{ref}_l)\big], \qquad L = -\log\sigma(s)$$
#
# Winner and loser share $t$ and $\epsilon$, so that most of the luck cancels. Write the loss, one number per pair. Logits of $-200$ occur: what
# does the logarithm of a sigmoid do there?

# %% [markdown] lang="ja" uid="derive" pair="80d85b4f"
# ## 2. 評価から損失関数へ
#
# 1. 報酬を高めつつ参照モデルから離れすぎないモデルが目標です。$E[r(x)] - \beta\,\mathrm{KL}(p_\theta\,\|\,p_\mathrm{ref})$ を最大化すると、最適解は
#    $p^*(x) \propto p_\mathrm{ref}(x)\,e^{r(x)/\beta}$ となり、$r(x) = \beta \log \frac{p^*(x)}{p_\mathrm{ref}(x)} + \text{const}$ と書けます。
# 2. 評価役は Bradley-Terry モデルに従うとします: $P(w \succ l) = \sigma(r(w) - r(l))$。定数はペアの中で打ち消し合います。
# 3. 拡散モデルでは $\log p$ を安価に計算できません。そこで下界をタイムステップごとに使うと、対数比はノイズ予測の誤差
#    $e = \mathrm{mean}\,(\hat\epsilon - \epsilon)^2$ の差に置き換わります([Wallace et al.](https://arxiv.org/abs/2311.12908)、式 14)。
#
# $$s = -\kappa\,\big[(e_w - e^\mathrm{ref}_w) - (e_l - e^\mathrm{ref}_l)\big], \qquad L = -\log\sigma(s)$$
#
# 勝者と敗者には同じ $t$ と $\epsilon$ を使い、偶然の変動を打ち消します。ペアごとに 1 つの数を返す損失を書いてください。ロジットは $-200$ にもなります。
# そのとき、シグモイドの対数はどうなるでしょうか。


# %% uid="dpo-loss" tags=["exercise"] exercise="dpo_loss"
def dpo_loss(*, winner, loser, ref_winner, ref_loser, kappa):
    """en: Diffusion-DPO per pair [B] from errors [B] of winner and loser, under the policy and under the reference.
    ja: ペアごとの Diffusion-DPO 損失 [B] です。引数は、学習中のモデルと参照モデルでの、勝者と敗者の誤差 [B] です。
    """
    # BEGIN SOLUTION
    difference = (winner - ref_winner) - (loser - ref_loser)
    return -torch.nn.functional.logsigmoid(-kappa * difference)
    # END SOLUTION


# %% uid="dpo-loss-check" tags=["check"]
lab.check("dpo_loss")
dpo_loss = lab.use("dpo_loss")

# %% [markdown] lang="en" uid="runs" pair="0dbbd1a4"
# ## 3. What happens to the winners?
#
# Your loss trains the toy at four strengths $\kappa$; beside it the obvious baseline (fine-tuning on winners, SFT) and two cures:
# DPO with an SFT anchor, and SDPO, which scales the loser's gradient down wherever it would push the winner too. $d_w$ and $d_l$ are the changes
# of the errors against the reference: plot them apart, never the loss alone. Predict first.

# %% [markdown] lang="ja" uid="runs" pair="5380f8da"
# ## 3. 勝者に何が起きるか
#
# 書いた損失で、$\kappa$ を 4 通りに変えて学習します。比較対象は、勝者だけで学習するファインチューニング(SFT)と、2 つの対策です。1 つは SFT の項を
# 加えた DPO、もう 1 つは、勝者の誤差まで増やしてしまう場合に敗者の勾配を弱める SDPO です。$d_w$ と $d_l$ は参照モデルに対する誤差の変化です。損失だけでなく、
# 必ず別々に描きます。まず予想してください。

# %% uid="runs-predict" tags=["quiz"]
lab.predict("winner_error")

# %% uid="toy-runs" tags=["slow"]
from dataclasses import replace

from labkit.dpo import dpo, sdpo, sft
from labkit.dpo.toy import train_toy


def mine(kappa):
    """en: Your loss at one strength, as a function of a training step's pairs.
    ja: 強さを 1 つ決めて、自分の損失を、学習ステップのペアの関数にします。
    """
    return lambda p: dpo_loss(**p.errors, kappa=kappa)


settings = {
    "SFT": [sft(1.0)],
    **{rf"DPO $\kappa$ = {k}": mine(k) for k in (2, 10, 50, 250)},
    "DPO 10, $N$ = 2": mine(10),
    "DPO 10 + SFT": [dpo(10.0), sft(1.0)],
    "SDPO 10": [sdpo(10.0, mu=0.5)],
}


def toy_run(name, s):
    """en: One setting on the pairs of one seed: log, samples and their scores, without the model.
    ja: 1 つの設定を、1 つのシードのペアで学習します。モデルを除き、記録、サンプル、その得点を返します。
    """
    pair_set = duels[s] if "$N$" in name else toy_pairs[s]
    run = train_toy(bases[s], *pair_set, settings[name], seed=s, steps=lab.sizes.toy_steps)
    return replace(run, model=None)


toy = {name: {} for name in settings}
jobs = [(name, s) for name in settings for s in toy_seeds]
for name, s in lab.progress_bar(jobs, t("l05.toy_runs"), len(jobs)):
    toy[name][s] = lab.keep("toy", toy_run, name, s)
heads = [t("l05.reward"), t("l05.off"), "$d_w$", "$d_l$", t("l05.accuracy")]
before = np.mean([[reward(p).mean(), off_ring(p).float().mean()] for p in points.values()], axis=0)
rows = [[t("l05.base"), f"{before[0]:z.2f}", f"{before[1]:.1%}", "", "", ""]]
for name, runs in toy.items():
    last = {k: np.mean([r.log[-1].get(k, np.nan) for r in runs.values()]) for k in ("d_w", "d_l", "accuracy")}
    mean = [np.mean([getattr(r, k) for r in runs.values()]) for k in ("reward", "off_ring")]
    row = [name, f"{mean[0]:z.2f}", f"{mean[1]:.1%}", f"{last['d_w']:+.3f}", f"{last['d_l']:+.3f}"]
    rows.append([*row, f"{last['accuracy']:.2f}"])
table(heads, rows, t("l05.toy_table", seeds=len(toy_seeds), steps=lab.sizes.toy_steps))

# %% uid="toy-curves"
steps = [record["step"] for record in toy["SFT"][first].log]
shown = {
    r"$\kappa$ = 2": r"DPO $\kappa$ = 2",
    r"$\kappa$ = 10": r"DPO $\kappa$ = 10",
    "+ SFT": "DPO 10 + SFT",
    "SDPO": "SDPO 10",
}
curve_with_interval(
    steps,
    {label: np.array([[r["d_w"] for r in toy[name][s].log] for s in toy_seeds]) for label, name in shown.items()},
    xlabel=t("l05.step"),
    ylabel=t("l05.d_w_axis"),
    reference={t("l05.no_change"): 0.0},
    title=t("l05.d_w_title"),
)

# %% uid="toy-clouds"
clouds = {name: toy[name][first].points for name in (r"DPO $\kappa$ = 2", r"DPO $\kappa$ = 250", "DPO 10 + SFT")}
scatter({t("l05.base"): points[first], **clouds}, t("l05.clouds_title"))

# %% uid="toy-widget" tags=["widget"]
from labkit.figures.widgets import choice, explore

explore(
    lambda setting: scatter({setting: toy[setting][first].points}, t("l05.clouds_title")),
    {"setting": choice(t("l05.setting"), list(settings))},
)

# %% uid="toy-claims"
final = {name: np.array([toy[name][s].log[-1].get("d_w", np.nan) for s in toy_seeds]) for name in settings}
drift = {name: np.array([toy[name][s].off_ring for s in toy_seeds]) for name in settings}
two, ten, large = (rf"DPO $\kappa$ = {k}" for k in (2, 10, 250))
value, interval = over_seeds(final[two])
measured = t("l05.m_d_w", setting="kappa 2")
lab.claim("winner_error_grows", measured=measured, value=value, interval=interval, seeds=toy_seeds)
value, interval = over_seeds(final["DPO 10 + SFT"])
measured = t("l05.m_d_w", setting="kappa 10 + SFT")
lab.claim("anchor_holds_winner", measured=measured, value=value, interval=interval, seeds=toy_seeds)
value, interval = over_seeds(final["SDPO 10"] - final[ten])
measured = t("l05.m_difference", a="SDPO", b="DPO")
lab.claim("sdpo_holds_winner", measured=measured, value=value, interval=interval, seeds=toy_seeds)
value, interval = over_seeds(drift[ten] - drift[large])
lab.claim("small_kappa_leaves_data", measured=t("l05.m_off"), value=value, interval=interval, seeds=toy_seeds)
lab.reveal("winner_error", "up" if final[two].mean() > 0 else "down")

# %% [markdown] lang="en" uid="convention" pair="75d35eb3"
# ## 4. One number, four betas
#
# The paper, its code and two scripts of diffusers print four different "betas". They differ in whether the squared error is averaged or summed
# over the $d$ elements of a latent, and in a factor one half:
#
# | source | error | logit | printed value |
# |---|---|---|---|
# | paper, eq. 14 | sum | $-\beta D$ | 2000 to 5000 |
# | authors' code | mean | $-\frac{\beta}{2} D$ | 5000 |
# | diffusers, SD script | mean | $-\beta D$ | 2500 |
# | diffusers, SDXL script | mean | $-\frac{\beta}{2} D$ | 5000 |
#
# Here $\kappa$ is always per unit of the *mean*: $s = -\kappa D$. Write the converter.

# %% [markdown] lang="ja" uid="convention" pair="791ba5e3"
# ## 4. 1 つの数に 4 つの「ベータ」
#
# 論文、著者のコード、diffusers の 2 つのスクリプトに書かれている「ベータ」は、意味がそれぞれ異なります。違いは、二乗誤差を潜在変数の $d$ 個の要素で平均するか
# 合計するかと、係数 2 分の 1 の有無です。
#
# | 出典 | 誤差 | ロジット | 記載の値 |
# |---|---|---|---|
# | 論文の式 14 | 合計 | $-\beta D$ | 2000〜5000 |
# | 著者のコード | 平均 | $-\frac{\beta}{2} D$ | 5000 |
# | diffusers の SD 用スクリプト | 平均 | $-\beta D$ | 2500 |
# | diffusers の SDXL 用スクリプト | 平均 | $-\frac{\beta}{2} D$ | 5000 |
#
# この教材の $\kappa$ は、常に*平均*誤差に対する強さです: $s = -\kappa D$。変換関数を書いてください。


# %% uid="kappa-of" tags=["exercise"] exercise="kappa_of"
def kappa_of(beta, summed, half, elements):
    """en: kappa per unit of mean error; summed: the error is a sum over `elements`; half: the logit has a factor 1/2.
    ja: 平均誤差を単位とする kappa です。summed: 誤差は `elements` 個の要素の和、half: ロジットに係数 1/2 が付く。
    """
    # BEGIN SOLUTION
    kappa = beta * elements if summed else beta
    return kappa / 2 if half else kappa
    # END SOLUTION


# %% uid="kappa-of-check" tags=["check"]
lab.check("kappa_of")
kappa_of = lab.use("kappa_of")

# %% uid="kappa-print"
print(t("l05.kappas", code=kappa_of(5000, False, True, 16384), script=kappa_of(2500, False, False, 16384)))
print(t("l05.kappa_paper", paper=kappa_of(2000, True, False, 16384), elements=16384))

# %% [markdown] lang="en" uid="break" pair="74528b55"
# ## 5. Break it on purpose
#
# Precision first. The reference and the policy are the same network, so every logit must be 0. Round the predictions and their mean to half
# precision on one side only, as a reference kept in half precision does, and look at the logits that come out of nothing.

# %% [markdown] lang="ja" uid="break" pair="f8826cf8"
# ## 5. わざと壊してみる
#
# まずは精度です。参照モデルと学習中のモデルが同じなら、ロジットはすべて 0 のはずです。参照モデルを半精度で持つ場合のように、片側だけ予測と平均を半精度に
# 丸めると、何もないところからロジットが生まれます。

# %% uid="precision"
from labkit.dpo import epsilon_error

noise = torch.randn(64, 4, 64, 64, generator=lab.generator(1))
prediction = noise + 0.39 * torch.randn(noise.shape, generator=lab.generator(2))
exact = epsilon_error(prediction, noise)
spurious = []
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    reduced = (prediction.to(dtype) - noise.to(dtype)).square().flatten(1).mean(1)
    spurious.append((2500 * (reduced.float() - exact)).abs().numpy())
lab.verdict(t("l05.no_logit", value=spurious[0].max()), spurious[0].max() < 1e-3)
bar_with_interval(
    ["float32", "float16", "bfloat16"],
    ([s.mean() for s in spurious], [np.quantile(s, 0.05) for s in spurious], [np.quantile(s, 0.95) for s in spurious]),
    xlabel=t("l05.spurious_axis"),
    title=t("l05.spurious_title"),
    value_format="{:.3f}",
)

# %% [markdown] lang="en" uid="museum" pair="513dab75"
# Now a museum of failures: four broken runs, known by their logs alone. Which is which: policy and reference are one object; labels swapped;
# labels random; $\kappa$ taken from another convention? The samples are shown only afterwards.

# %% [markdown] lang="ja" uid="museum" pair="94ff4c2c"
# 次は失敗の博物館です。壊れた実行が 4 つあり、手がかりはログだけです。「学習中のモデルと参照モデルが同一」「ラベルが逆」「ラベルがでたらめ」
# 「$\kappa$ の単位の取り違え」は、それぞれどれでしょうか。サンプルはそのあとで表示します。

# %% uid="museum-runs" tags=["slow"]
w, lo = toy_pairs[first]
coin = torch.rand(len(w), 1, generator=lab.generator(3)) < 0.5


def one_object(p):
    """en: The policy's errors in the place of the reference's.
    ja: 参照モデルの誤差の代わりに、学習中のモデルの誤差を使います。
    """
    return dpo_loss(**{**p.errors, "ref_winner": p.winner_error, "ref_loser": p.loser_error}, kappa=10)


exhibits = {
    "A": (lo, w, mine(10)),
    "B": (w, lo, one_object),
    "C": (torch.where(coin, w, lo), torch.where(coin, lo, w), mine(10)),
    "D": (w, lo, mine(0.02)),
}
museum = {}
for name in lab.progress_bar(exhibits, t("l05.museum_runs"), len(exhibits)):
    museum[name] = train_toy(bases[first], *exhibits[name], seed=first, steps=lab.sizes.toy_steps)
columns = ("loss", "accuracy", "d_w", "d_l")
heads = [t("l05.loss"), t("l05.accuracy"), "$d_w$", "$d_l$"]
rows = [[name, *(f"{run.log[-1][c]:.3f}" for c in columns)] for name, run in museum.items()]
table(heads, rows, t("l05.museum_title"))

# %% uid="museum-quiz" tags=["quiz"]
lab.quiz("museum_a")
lab.quiz("museum_b")

# %% uid="museum-clouds"
scatter({name: run.points for name, run in museum.items()}, t("l05.museum_clouds"))

# %% [markdown] lang="en" uid="pairs" pair="a974b086"
# ## 6. Pairs by AI feedback
#
# Now portraits. The model to be aligned is PortraitSD's early checkpoint; the training judge is PortraitCLIP: how probable are the attributes that the
# prompt names? Several images per prompt, best against worst. The AttributeReader takes no part: it is the gold judge of section 8. Some
# prompts name nothing, so all their images tie. **Ties never train.** Write the choice.

# %% [markdown] lang="ja" uid="pairs" pair="5f2967db"
# ## 6. AI フィードバックで選好ペアを作る
#
# ここからはポートレートです。改善したいモデルは PortraitSD の学習初期のチェックポイント、学習用の評価役は PortraitCLIP で、プロンプトが指定した属性がどれだけ確からしいかを
# 採点します。プロンプトごとに何枚か生成し、最良と最悪を組にします。AttributeReader はここでは使わず、8 節で正解の評価役を務めます。何も指定しないプロンプトでは
# 全画像が同点になります。**同点は学習に使いません。** 選び方を書いてください。


# %% uid="choose-pairs" tags=["exercise"] exercise="choose_pairs"
def choose_pairs(scores):
    """en: scores [P, N] -> index of the best [P], index of the worst [P], and which prompts are no ties [P] (bool).
    ja: scores [P, N] から、最良の番号 [P]、最悪の番号 [P]、同点でないプロンプトかどうか [P](bool)を返します。
    """
    # BEGIN SOLUTION
    best, worst = scores.max(1), scores.min(1)
    return best.indices, worst.indices, best.values > worst.values
    # END SOLUTION


# %% uid="choose-pairs-check" tags=["check"]
lab.check("choose_pairs")
choose_pairs = lab.use("choose_pairs")

# %% uid="pool" tags=["slow"]
from labkit.diffusion import decode_latents, image_generators, sample
from labkit.dpo import DPOConfig, DPOTrainer, PreferencePairs, build_pool, faithfulness, fingerprints
from labkit.models import load_clip, load_pipeline, load_reader
from labkit.portraits import ATTRIBUTES, random_caption, sample_specs

pipe = load_pipeline("cpu", lab.device, variant="portrait-sd-base")
judge, reader = faithfulness(*load_clip("cpu", lab.device)), load_reader(lab.device)
sampler = {"steps": lab.sizes.sampler, "guidance_scale": lab.sizes.guidance}


def captions(n, seed):
    """en: n specs, and captions that leave attributes open.
    ja: n 個の spec と、一部の属性を指定しないキャプションです。
    """
    specs, rng = sample_specs(n, seed=seed), np.random.default_rng(seed)
    return specs, [random_caption(spec, rng) for spec in specs]


prompts = [c.text for c in captions(lab.sizes.prompts, lab.seed + 1)[1]]
parts = []
for k in lab.progress_bar(range(0, len(prompts), 8), t("l05.pool"), -(-len(prompts) // 8)):
    options = {"scorers": [judge], "seed": lab.seed * 1000 + k, **sampler}
    parts.append(build_pool(pipe, prompts[k : k + 8], lab.sizes.candidates, **options))
latents = torch.cat([part.latents for part in parts])  # [prompts, candidates, C, h, w]
scores = torch.cat([part.scores[judge.name] for part in parts])  # [prompts, candidates]
best, worst, keep = choose_pairs(scores)
index = torch.arange(len(prompts))
pairs = PreferencePairs(
    prompts=[p for p, k in zip(prompts, keep, strict=True) if k],
    winner=latents[index, best][keep],
    loser=latents[index, worst][keep],
    margin=(scores.max(1).values - scores.min(1).values)[keep],
    hashes=fingerprints(pipe),
)
with torch.no_grad():
    shown = [decode_latents(pipe, x[:8].to(pipe.device)).clamp(-1, 1) for x in (pairs.winner, pairs.loser)]
kept = keep.nonzero().flatten()[:8]
print(t("l05.pairs_kept", pairs=len(pairs), prompts=len(prompts), images=scores.numel()))
strips(
    {t("l05.winners"): list(shown[0]), t("l05.losers"): list(shown[1])},
    scores={t("l05.winners"): scores[kept, best[kept]].tolist(), t("l05.losers"): scores[kept, worst[kept]].tolist()},
    score_label=t("l05.judge_score"),
    title=t("l05.pairs_title"),
)

# %% [markdown] lang="en" uid="train" pair="847d98d7"
# ## 7. Training, watched live
#
# PortraitSD is small enough to train all of its weights; the reference is a frozen copy, computed first. (On Stable Diffusion one trains a LoRA adapter, and
# the reference is the same U-Net with the adapter off.) Which $\kappa$? Per element of the sum, $2500$ is $2500 / 16384 = 0.15$ on Stable Diffusion. Your converter
# carries that over to our smaller latents: the left end of the sweep. Three seeds in the middle (other noise, other order), one at either end. Learning
# rate, middle $\kappa$ and timesteps (250 and up) were chosen in a pilot on other prompts. Watch $d_w$ and $d_l$ apart.

# %% [markdown] lang="ja" uid="train" pair="da71f10f"
# ## 7. 学習を見守る
#
# PortraitSD は小さいので、すべての重みを学習します。参照モデルは凍結したコピーで、先に計算します(Stable Diffusion では LoRA アダプタを学習し、アダプタを
# 切った同じ U-Net を参照モデルにするのが普通です)。$\kappa$ はいくつにすべきでしょうか。Stable Diffusion での $2500$ は、二乗誤差の合計に対する
# 係数に直すと $2500 / 16384 = 0.15$ です。書いた変換関数でこれを小さな潜在変数に換算した値が、比較の左端になります。中央では 3 つのシード(ノイズと順序が異なります)、両端では
# 1 つずつ学習します。学習率、中央の $\kappa$、タイムステップの範囲(250 以上)は、別のプロンプトでの予備実験で決めました。$d_w$ と $d_l$ は別々に見てください。

# %% uid="train-run" tags=["slow"]
from IPython.display import display

from labkit.dpo import base_weights_kept
from labkit.figures.widgets import picture

held_specs, held = captions(lab.sizes.held_out, lab.seed + 2)
copies = lab.sizes.copies
texts = [c.text for c in held for _ in range(copies)]


def pictures(**options):
    """en: Images of the held-out prompts by the U-Net as it is now; always the same seeds.
    ja: 現在の U-Net で、評価用プロンプトの画像を生成します。シードは常に同じです。
    """
    generators = image_generators(len(texts), lab.seed + 99)
    return sample(pipe, texts, generators=generators, batch_size=64, **sampler, **options).cpu()


def live(kappa, log):
    """en: The errors of winners and losers so far.
    ja: これまでの勝者と敗者の誤差です。
    """
    series = {name: [record[name] for record in log] for name in ("d_w", "d_l")}
    axes = {"xlabel": t("l05.step"), "ylabel": t("l05.d_axis"), "reference": {t("l05.no_change"): 0.0}}
    figure = curve_with_interval([r["step"] for r in log], series, title=t("l05.live_title", kappa=kappa), **axes)
    # en: it takes the place of what is shown; a figure would appear below it
    # ja: 表示中の図と入れ替わります。図のまま渡すと、下に追加されてしまいます
    return picture(figure)


def config(s):
    """en: A run of all weights; learning rate and timesteps are those of a pilot on other prompts.
    ja: 全重みを学習する設定です。学習率とタイムステップは、別のプロンプトでの予備実験で決めました。
    """
    every = max(1, lab.sizes.steps // 10)
    run = {"steps": lab.sizes.steps, "batch_size": lab.sizes.batch, "seed": s, "log_every": every}
    return DPOConfig(**run, trainable="full", reference="copy", lr=3e-5, precision="auto", t_window=(250, 1000))


def train(kappa, s):
    """en: The errors during one run, and the pictures after it; the pipeline is as before.
    ja: 学習中の誤差と、学習後の画像です。パイプライン自体は変わりません。
    """
    with base_weights_kept(pipe.unet), DPOTrainer(pipe, pairs, config(s), [dpo(kappa)]) as trainer:
        show = (lambda record: handle.update(live(kappa, trainer.log))) if lab.interactive else None
        return trainer.run(show), pictures()


base_images, aligned, logs = lab.keep("base", pictures), {}, {}
train_seeds = [lab.seed + k for k in range(lab.sizes.seeds)]
low = round(kappa_of(2500 / 16384, True, False, latents[0, 0].numel()))
middle, high = 400, 2000
print(t("l05.kappa_here", elements=latents[0, 0].numel(), kappa=low))
plan = [(middle, s) for s in train_seeds] + [(low, lab.seed), (high, lab.seed)]
handle = display({"text/plain": t("l05.waiting")}, raw=True, display_id=True)
for kappa, s in lab.progress_bar(plan, t("l05.training"), len(plan)):
    logs[kappa, s], aligned[kappa, s] = lab.keep("aligned", train, kappa, s)
handle.update(live(middle, logs[middle, lab.seed]))

# %% [markdown] lang="en" uid="prove" pair="1c7fc0cf"
# ## 8. Does it win?
#
# Held-out prompts, same seeds for both models, one number per prompt, intervals over prompts. The judge that made the pairs is not a witness:
# the claim stands or falls with the gold judge, the AttributeReader's mean probability of the named attributes.

# %% [markdown] lang="ja" uid="prove" pair="b06474fc"
# ## 8. 本当に勝っているか
#
# 未使用のプロンプトで、両モデルに同じシードを使い、プロンプトごとに 1 つの数にまとめ、区間はプロンプトについて求めます。ペアを作った評価役による採点は証拠になりません。
# 主張の成否は正解の評価役、つまり指定した属性に AttributeReader が与える確率の平均で決めます。

# %% uid="win-rates"
from labkit.metrics import outcomes, win_rate


def gold(images):
    """en: Mean probability that the AttributeReader gives to the named attributes, per image (0 where none is named).
    ja: AttributeReader が指定属性に与える確率の平均を、画像ごとに返します(指定がなければ 0)。
    """
    probability = reader.probabilities(images.to(lab.device))
    named = [(i, a) for i in range(len(images)) for a in held[i // copies].named]
    score = np.zeros(len(images))
    for i, a in named:
        value = ATTRIBUTES[a].index(getattr(held_specs[i // copies], a))
        score[i] += float(probability[a][i, value]) / len(held[i // copies].named)
    return score


def rate(score, after, runs=1):
    """en: Win rate of `after` (one or several runs) against the base, clustered by prompt.
    ja: `after`(1 回または複数回の実行)の基準モデルに対する勝率です。プロンプト単位で集計します。
    """
    wins = outcomes(candidate=score(after), baseline=np.tile(score(base_images), runs))
    rng = np.random.default_rng(lab.seed)
    return win_rate(wins, prompts=[i // copies for i in range(len(texts))] * runs, method="percentile", generator=rng)


def by_judge(images):
    return judge(images, texts * (len(images) // len(texts))).numpy()


def by_gold(images):
    return np.concatenate([gold(part) for part in images.split(len(texts))])


kappas = [low, middle, high]
rates = {"judge": [], "gold": []}
for kappa in kappas:
    runs = [image for (k, _), image in aligned.items() if k == kappa]
    for name, score in (("judge", by_judge), ("gold", by_gold)):
        rates[name].append(rate(score, torch.cat(runs), len(runs)))
names = {"judge": t("l05.training_judge"), "gold": t("l05.gold_judge")}
bar_with_interval(
    [rf"$\kappa$ = {k}" for k in kappas],
    {names[n]: ([r.value for r in rs], [r.low for r in rs], [r.high for r in rs]) for n, rs in rates.items()},
    xlabel=t("l05.win_rate"),
    reference={t("l05.chance"): 0.5},
    xlim=(0, 1),
    value_format="{:.0%}",
    title=t("l05.win_title", prompts=len(held), copies=copies),
)

# %% uid="pictures"
strips(
    {
        t("l05.base"): list(base_images[::copies][:8]),
        **{rf"$\kappa$ = {k}": list(aligned[k, lab.seed][::copies][:8]) for k in (high, middle, low)},
    },
    title=t("l05.pictures_title"),
)

# %% uid="portrait-claims"
r = rates["judge"][1]
measured = t("l05.m_win", judge=names["judge"], prompts=r.prompts, kappa=middle)
lab.claim("judge_is_pleased", measured=measured, value=r.value, interval=(r.low, r.high), seeds=train_seeds)
r = rates["gold"][1]
measured = t("l05.m_win", judge=names["gold"], prompts=r.prompts, kappa=middle)
lab.claim("dpo_beats_base", measured=measured, value=r.value, interval=(r.low, r.high), seeds=train_seeds)
ends = {name: logs[k, lab.seed][-1]["d_w"] for name, k in (("at_low", low), ("at_high", high))}
print(t("l05.d_w_portraits", low=low, high=high, **ends))

# %% [markdown] lang="en" uid="negative" pair="58c925b2"
# ## 9. The worst model as a signpost
#
# Guidance points away from an unconditional prediction: $\epsilon_\varnothing + g\,(\epsilon_c - \epsilon_\varnothing)$. Diffusion-NPO
# ([arXiv 2505.11245](https://arxiv.org/abs/2505.11245)) makes that a model worth avoiding: trained on the same pairs with
# their labels swapped, and asked for $\epsilon_\varnothing$ only. The conditional half below is the untouched base. Does it beat plain guidance of the same strength?

# %% [markdown] lang="ja" uid="negative" pair="c5423e24"
# ## 9. 悪いモデルを道しるべにする
#
# 誘導は無条件の予測から遠ざかる方向へ進みます: $\epsilon_\varnothing + g\,(\epsilon_c - \epsilon_\varnothing)$。Diffusion-NPO
# ([arXiv 2505.11245](https://arxiv.org/abs/2505.11245))は、ここに「避けるべきモデル」を置きます。同じペアのラベルを入れ替えて学習したモデルで、
# $\epsilon_\varnothing$ の計算だけに使います。条件付きの側は基準モデルのままです。同じ強さの通常の誘導に勝てるでしょうか。

# %% uid="negative-run" tags=["slow"]
from copy import deepcopy

from labkit.dpo import npo


def train_negative(s):
    """en: Pictures guided away from a model that was trained to prefer the losers.
    ja: 敗者を好むように学習したモデルから遠ざけて生成した画像です。
    """
    with base_weights_kept(pipe.unet), DPOTrainer(pipe, pairs, config(s), [npo(middle)]) as trainer:
        trainer.run()
        worse = deepcopy(pipe.unet)
    return pictures(negative_model=worse)


bar = lab.progress_bar(train_seeds, t("l05.training"), len(train_seeds))
guided = [lab.keep("negative", train_negative, s) for s in bar]
npo_rates = [rate(score, torch.cat(guided), len(guided)) for score in (by_judge, by_gold)]
bar_with_interval(
    list(names.values()),
    {
        "DPO": tuple(np.array([(rates[n][1].value, rates[n][1].low, rates[n][1].high) for n in names]).T),
        "NPO": tuple(np.array([(r.value, r.low, r.high) for r in npo_rates]).T),
    },
    xlabel=t("l05.win_rate"),
    reference={t("l05.chance"): 0.5},
    xlim=(0, 1),
    value_format="{:.0%}",
    title=t("l05.npo_title", seeds=len(train_seeds)),
)

# %% uid="negative-claim"
r = npo_rates[1]
measured = t("l05.m_npo", judge=names["gold"], prompts=r.prompts)
lab.claim("npo_helps", measured=measured, value=r.value, interval=(r.low, r.high), seeds=train_seeds)

# %% [markdown] lang="en" uid="side" pair="baf3fd87"
# ## 10. Side effects
#
# Nobody asked about the attributes that the prompts leave open. Did they move?

# %% [markdown] lang="ja" uid="side" pair="90865a90"
# ## 10. 副作用
#
# プロンプトが指定していない属性については、誰も何も求めていません。それらは動いたでしょうか。

# %% uid="side-effects"
from labkit.dpo import side_effects
from labkit.portraits import attribute_name, value_name

report = side_effects(
    reader,
    before=base_images.to(lab.device),
    after=aligned[middle, lab.seed].to(lab.device),
    prompts=texts,
    generator=np.random.default_rng(lab.seed),
)
largest = report.largest(8)
bar_with_interval(
    [": ".join((attribute_name(s.attribute, lang), value_name(s.attribute, s.value, lang))) for s in largest],
    ([s.change for s in largest], [s.low for s in largest], [s.high for s in largest]),
    xlabel=t("l05.share_change"),
    reference={t("l05.no_change"): 0.0},
    value_format="{:+.0%}",
    title=t("l05.side_title", kappa=middle),
)

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz("accuracy")
