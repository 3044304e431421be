# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("05", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="article" pair="d4cd5871"
# The article of this lesson and the next is the AIBR dialogue "人の画像生成を高める直接選好最適化とAIフィードバック" on HG-DPO. Three of its statements
# are put to the test here: that DPO moves a model directly towards what is preferred, that an AI may say what is preferable in place of people, and that the
# pictures get better. The first rests on another paper, Diffusion-DPO ([Wallace et al.](https://arxiv.org/abs/2311.12908)), and on a formula that the
# article does not show. You will derive it, write it, break it, and then find out on portraits which of the three statements hold.
#
# | the article's word | this course | in code |
# |---|---|---|
# | direct preference optimisation | Diffusion-DPO | `dpo_loss` |
# | AI feedback | training judge: PortraitCLIP | `judge` |
# | pair of a better and a worse picture | preference pair: winner and loser | `winner`, `loser` |
# | the model before DPO | base; frozen, it is the reference | `ref_winner`, `ref_loser` |
#
# **State of the evidence.** The study of this lesson (`labkit study run 05`) is written and not recorded yet: charts show your own run alone, claims that need several
# seeds stay open, and numbers in the readings come from trial runs of a single seed. Read them as what to expect, not as results.

# %% [markdown] lang="ja" uid="article" pair="353a7076"
# このレッスンと次のレッスンで読む記事は、HG-DPO を解説した AIBR の対話「人の画像生成を高める直接選好最適化とAIフィードバック」です。ここでは、記事の3つの主張を
# 確かめます。DPO がモデルを好まれる方向へ直接動かすこと、何が好ましいかを人の代わりに AI が判定できること、そして画像が良くなることです。1つ目の根拠は別の論文
# Diffusion-DPO([Wallace et al.](https://arxiv.org/abs/2311.12908))の式で、記事には出てきません。その式を導き、書き、わざと壊したうえで、
# 3つの主張のどれが成り立つかをポートレートで調べます。
#
# | 記事の言葉 | この教材の言葉 | コード |
# |---|---|---|
# | 直接選好最適化 | Diffusion-DPO | `dpo_loss` |
# | AI フィードバック | 学習用の評価役: PortraitCLIP | `judge` |
# | 良い写真と悪い写真の対 | 選好ペア: 勝者と敗者 | `winner`, `loser` |
# | DPO 前のモデル | 基準モデル(凍結したものが参照モデル) | `ref_winner`, `ref_loser` |
#
# **裏付けの状況。** このレッスンの実験(`labkit study run 05`)はまだ記録されていません。グラフに出るのは自分の実行結果だけで、複数のシードが要る主張は未判定のままです。
# 図の見方に挙げた数値も、1つのシードで試した値です。結論ではなく、目安として読んでください。

# %% [markdown] lang="en" uid="toy" pair="748df7a4"
# ## 1. One picture first
#
# A diffusion model of points, its data eight modes on a circle. A judge likes the right side. He never sees the model; he only says which of two samples he
# prefers. Of eight samples the best becomes a winner, the worst a loser, and a few hundred steps of DPO train a copy of the model on such pairs.

# %% [markdown] lang="ja" uid="toy" pair="5869219f"
# ## 1. まずは1枚の図から
#
# 点を生成する拡散モデルです。データは円周上の8つのモードで、評価役は右側を好みます。評価役はモデルの中身を知らず、2つのサンプルのどちらが好みかを
# 答えるだけです。8個生成したうちの最良を勝者、最悪を敗者とし、そのペアを使った数百ステップの DPO で、モデルのコピーを学習します。

# %% uid="draw" tags=["hide-input"]
import numpy as np
import torch

from IPython.display import display
from matplotlib.patches import Circle

from labkit.figures import bar_with_interval, curve_with_interval, figure_style, new_figure, recorded_means, strips


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


# %% uid="toy-base"
from dataclasses import replace

from labkit.studies import Recorded, estimate, l05, means, read_record
from labkit.worlds.toy import off_ring, reward, sample_points


def toy_run(arm, terms=None):
    """en: Train the ring as an arm of the recorded study does, or with your own loss on its pairs; without the model.
    ja: 記録済みの実験の条件 arm で、または同じペアと自分の損失で、円周のモデルを学習します(モデルは返しません)。
    """
    return replace(l05.ring_run(arm, 0, lab.seed, lab.sizes, terms), model=None)


record = Recorded(read_record("05"))


def on_record(metric, arms, yours, xlabel, *, against=None, **options):
    """en: What the study recorded for some arms (label -> arm), and your own numbers on top of it.
    ja: 記録済みの実験の結果(表示名 -> 条件)に、自分の測定値を重ねて描きます。
    """
    found = means(record, metric, arms, against=against)
    if found:
        mine = {label: value for label, value in yours.items() if label in found}
        display(recorded_means(found, yours=mine, xlabel=xlabel, **options))


base = l05.ring_base(0, lab.sizes.toy_pretrain)
base_points = sample_points(base, 2000, torch.Generator().manual_seed(lab.seed + 1))
winners, losers = l05.ring_pairs(0, lab.seed, lab.sizes.toy_pairs, 8, lab.sizes.toy_pretrain)
after = lab.keep("first", toy_run, "dpo_50").points
panels = {t("l05.base"): base_points, t("l05.winners"): winners, t("l05.losers"): losers, t("l05.after"): after}
scatter(panels, t("l05.toy_title"))

# %% [markdown] lang="en" uid="toy-reading" pair="4e7e31cc"
# **What you see.** The base draws the whole ring. Winners crowd on the right, losers on the left, and after DPO the samples have moved right. **Why it is
# remarkable:** nobody told the model what "right" is. There was no reward in the loss, no sampling during training, no reinforcement learning; only points, two
# by two, and which of them won. **What would change it:** how far the model may go from the base. That is one number, and most of this lesson is about it.
#
# *Before reading on: what must a loss do with a pair so that this happens? Pull the winner? Push the loser? Both?*

# %% [markdown] lang="ja" uid="toy-reading" pair="13525ef1"
# **図の見方。** 基準モデルは円周全体を描きます。勝者は右に、敗者は左に集まり、DPO 後のサンプルは右へ移っています。**注目すべき点:** 「右」が何かを、
# 誰もモデルに教えていません。損失に報酬は現れず、学習中の生成も強化学習もありません。使ったのは、2つずつの点と、どちらが勝ったかだけです。**結果を左右するもの:**
# 基準モデルからどこまで離れてよいかです。それを決めるのは1つの数で、このレッスンの大半はその数をめぐる話です。
#
# *先を読む前に考えてください。こうなるためには、損失はペアをどう扱えばよいでしょうか。勝者を引くのか、敗者を押すのか、それとも両方でしょうか。*

# %% [markdown] lang="en" uid="leash" pair="72cb0672"
# ## 2. From a judge to a loss, in five steps
#
# **Step 1: a reward and a leash.** Let $r(x)$ be what the judge feels. A model that only maximises $r$ would draw one single best point for ever. So it is kept
# on a leash: reward, minus the distance from the reference, $E_{p}[r(x)] - \beta\,\mathrm{KL}(p\,\|\,p_\mathrm{ref})$. Write both terms as one
# expectation, $-\beta\,E_p\big[\log \frac{p(x)}{p_\mathrm{ref}(x)\,e^{r(x)/\beta}}\big]$: that is again a KL divergence, up to a constant, and a KL divergence is smallest
# when both sides agree. Hence
#
# $$p^*(x) = \tfrac{1}{Z}\; p_\mathrm{ref}(x)\,e^{r(x)/\beta}$$
#
# where $Z$ makes it sum to one. In words: the reference, tilted by the reward. Write it for a density on a grid. By hand: $p_\mathrm{ref} = (.5, .3, .2)$,
# $r = (0, 1, 2)$, $\beta = 1$ give $(.5, .82, 1.48)$ before normalising, so $(.18, .29, .53)$.

# %% [markdown] lang="ja" uid="leash" pair="55aebcd2"
# ## 2. 評価から損失関数へ: 5つのステップ
#
# **ステップ1: 報酬と引き綱。** 評価役の感じる好ましさを $r(x)$ とします。$r$ を最大にするだけのモデルは、最良の1点ばかりを描き続けるでしょう。そこで
# 参照モデルに引き綱でつなぎます。報酬から参照モデルとの隔たりを引いた $E_{p}[r(x)] - \beta\,\mathrm{KL}(p\,\|\,p_\mathrm{ref})$ を最大化するのです。2つの項を1つの
# 期待値 $-\beta\,E_p\big[\log \frac{p(x)}{p_\mathrm{ref}(x)\,e^{r(x)/\beta}}\big]$ にまとめると、定数を除いて、これも KLダイバージェンスです。KLダイバージェンスは
# 両者が一致するとき最小なので、
#
# $$p^*(x) = \tfrac{1}{Z}\; p_\mathrm{ref}(x)\,e^{r(x)/\beta}$$
#
# となります。$Z$ は合計を1にする定数です。つまり、参照モデルを報酬の方向に傾けた分布です。格子上の密度について書いてください。手計算の例: $p_\mathrm{ref} = (.5, .3, .2)$、
# $r = (0, 1, 2)$、$\beta = 1$ なら、正規化前は $(.5, .82, 1.48)$、正規化後は $(.18, .29, .53)$ です。


# %% uid="aligned-density" tags=["exercise"] exercise="aligned_density"
def aligned_density(p_ref, reward, beta):
    """en: p* on a grid: p_ref [n] sums to 1, reward [n], beta > 0 (may be as small as 0.01) -> [n], sums to 1.
    ja: 格子上の p* です。p_ref [n](合計1)、reward [n]、beta > 0(0.01 のこともあります)から [n](合計1)を返します。
    """
    # BEGIN SOLUTION
    return torch.softmax(p_ref.log() + reward / beta, 0)
    # END SOLUTION


# %% uid="aligned-density-check" tags=["check"]
lab.check("aligned_density")
aligned_density = lab.use("aligned_density")

# %% uid="densities"
x = torch.linspace(-2, 2, 81)
bumps = sum(torch.exp(-(((x - centre) / 0.2) ** 2)) for centre in (-1.0, 0.0, 1.0))
p_ref = bumps / bumps.sum()
tilted = {rf"$\beta$ = {beta}": aligned_density(p_ref, x, beta).numpy() for beta in (2.0, 0.5, 0.1)}
curve_with_interval(
    x.numpy(),
    {t("l05.reference_density"): p_ref.numpy(), **tilted},
    xlabel=t("l05.position"),
    ylabel=t("l05.density"),
    title=t("l05.density_title"),
)

# %% [markdown] lang="en" uid="derive" pair="0adbf9ec"
# **What you see.** A short leash ($\beta = 2$) barely tilts the three bumps. A long one ($\beta = 0.1$) keeps only the right bump, and even inside it the mass
# leans outwards. No mass appears *between* the bumps: where the reference is zero, no reward helps. Remember this; the trained models below do not always obey it.
#
# **Step 2: read it backwards.** Take the logarithm: $r(x) = \beta \log \frac{p^*(x)}{p_\mathrm{ref}(x)} + \beta \log Z$. Every model *is* a reward model: what it
# makes likelier than the reference, it prefers.
#
# **Step 3: a judge who compares.** Bradley and Terry: the better of two wins with probability $P(w \succ l) = \sigma(r(w) - r(l))$. Only a difference enters, so
# the unknown $\beta \log Z$ cancels. Put step 2 in and maximise the likelihood of the votes: $L = -\log\sigma\big(\beta \log\frac{p_\theta(w)}{p_\mathrm{ref}(w)} - \beta \log\frac{p_\theta(l)}{p_\mathrm{ref}(l)}\big)$.
# That is DPO. The reward has vanished; votes and two models are left.
#
# **Step 4: a diffusion model has no cheap $\log p$.** It has the bound it was trained on (lesson 01): $\log p(x)$ is at least a constant minus a weighted sum over
# timesteps of the noise prediction error. Take one timestep at a time, with $e = \mathrm{mean}\,(\hat\epsilon - \epsilon)^2$, and the log-ratio becomes
# $-(e_\theta - e_\mathrm{ref})$ times a constant. It joins $\beta$ in one strength $\kappa$ (equation 14):
#
# $$s = -\kappa\,\big[(e_w - e^\mathrm{ref}_w) - (e_l - e^\mathrm{ref}_l)\big], \qquad L = -\log\sigma(s)$$
#
# **Step 5: the same noise.** Winner and loser get the same $t$ and the same $\epsilon$. Theory does not ask for it; the variance does. An error depends
# far more on $t$ than on the picture, and what both share cancels. Section 6 measures by how much.
#
# Write the loss, one number per pair. If policy and reference agree, it must be $\ln 2$. Logits of $-200$ occur: what does the logarithm of a sigmoid do there?

# %% [markdown] lang="ja" uid="derive" pair="a2368961"
# **図の見方。** 引き綱が短い($\beta = 2$)と、3つの山はほとんど傾きません。長い($\beta = 0.1$)と右の山だけが残り、その山の中でも外側に寄ります。山と山の*間*に
# 確率は生まれません。参照モデルの密度が0の場所では、どんな報酬も役に立たないからです。覚えておいてください。後で学習するモデルは、必ずしもこれに従いません。
#
# **ステップ2: 逆に読む。** 対数を取ると $r(x) = \beta \log \frac{p^*(x)}{p_\mathrm{ref}(x)} + \beta \log Z$ です。どんなモデルも、それ自体が報酬モデルだと
# いえます。参照モデルより確率を高くしたものを、好んでいるのです。
#
# **ステップ3: 比べる評価役。** Bradley-Terry モデルでは、勝つ確率は $P(w \succ l) = \sigma(r(w) - r(l))$ です。差しか現れないので、未知の
# $\beta \log Z$ は打ち消し合います。ステップ2を代入し、投票の尤度を最大化すると $L = -\log\sigma\big(\beta \log\frac{p_\theta(w)}{p_\mathrm{ref}(w)} - \beta \log\frac{p_\theta(l)}{p_\mathrm{ref}(l)}\big)$ です。
# これが DPO です。報酬は消え、投票と2つのモデルだけが残りました。
#
# **ステップ4: 拡散モデルでは $\log p$ を安く計算できない。** その代わり、学習に使った下界(レッスン01)があります。$\log p(x)$ は、定数から、ノイズ予測の誤差を
# タイムステップについて重み付きで足したものを引いた値以上です。タイムステップを1つずつ使い、$e = \mathrm{mean}\,(\hat\epsilon - \epsilon)^2$ とおくと、対数比は
# $-(e_\theta - e_\mathrm{ref})$ の定数倍になります。この定数と $\beta$ を、1つの強さ $\kappa$ にまとめます(式14):
#
# $$s = -\kappa\,\big[(e_w - e^\mathrm{ref}_w) - (e_l - e^\mathrm{ref}_l)\big], \qquad L = -\log\sigma(s)$$
#
# **ステップ5: 同じノイズ。** 勝者と敗者には同じ $t$ と同じ $\epsilon$ を使います。理論上の要請ではなく、分散を減らすためです。誤差は画像よりも $t$ に大きく
# 左右されるので、共通の部分は打ち消し合います。どれだけ減るかは6節で測ります。
#
# ペアごとに1つの数を返す損失を書いてください。学習中のモデルと参照モデルが一致していれば $\ln 2$ になるはずです。ロジットは $-200$ にもなります。
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

# %% [markdown] lang="en" uid="runs" pair="e88ea600"
# ## 3. What happens to the winners?
#
# Your loss trains the ring at four strengths $\kappa$; beside it stands the obvious baseline, fine-tuning on the winners alone (SFT), and DPO with SFT as an anchor.
# Two numbers to watch: $d_w = e_w - e^\mathrm{ref}_w$ and $d_l = e_l - e^\mathrm{ref}_l$, how far the errors of winners and losers have moved. And one number to distrust,
# the *implicit accuracy*: the share of pairs with $s > 0$, that is, where the model prefers the winner more than the reference does. It is 0.5 before training and says
# nothing about pictures. Predict first.

# %% [markdown] lang="ja" uid="runs" pair="50038173"
# ## 3. 勝者に何が起きるか
#
# 書いた損失で、$\kappa$ を4通りに変えて学習します。比較対象は、勝者だけで学習するファインチューニング(SFT)と、SFT の項を錨として加えた DPO です。見るべき数は2つ、
# 勝者と敗者の誤差の変化 $d_w = e_w - e^\mathrm{ref}_w$ と $d_l = e_l - e^\mathrm{ref}_l$ です。疑ってかかるべき数が1つ、*正解率*です。これは $s > 0$ となる
# ペア、つまり参照モデルより強く勝者を好んでいるペアの割合です。学習前は0.5で、画像の良し悪しについては何も語りません。まず予想してください。


# %% uid="runs-predict" tags=["quiz"]
lab.predict("winner_error")

# %% uid="toy-runs" tags=["slow"]
from labkit.dpo import dpo, sft


def mine(kappa):
    """en: Your loss at one strength, as a function of a training step's pairs.
    ja: 強さを1つ決めて、自分の損失を、学習ステップのペアの関数にします。
    """
    return lambda p: dpo_loss(**p.errors, kappa=kappa)


arms = {rf"DPO $\kappa$ = {k}": ("dpo" if k == 10 else f"dpo_{k}", mine(k)) for k in (2, 10, 50, 250)}
arms |= {"DPO 10 + SFT": ("anchor", [dpo(10.0), sft(1.0)]), "SFT": ("sft", [sft(5.0)])}
toy = {}
for name in lab.progress_bar(arms, t("l05.toy_runs"), len(arms)):
    toy[name] = lab.keep("toy", toy_run, *arms[name])
heads = [t("l05.reward"), t("l05.off"), "$d_w$", "$d_l$", t("l05.accuracy")]
before = f"{reward(base_points).mean():z.2f}", f"{off_ring(base_points).float().mean():.1%}"
rows = [[t("l05.base"), *before, "", "", ""]]
for name, run in toy.items():
    last = run.log[-1]
    rows.append([name, f"{run.reward:z.2f}", f"{run.off_ring:.1%}", f"{last['d_w']:+.3f}", f"{last['d_l']:+.3f}"])
    rows[-1].append(f"{last['accuracy']:.2f}")
table(heads, rows, t("l05.toy_table", steps=lab.sizes.toy_steps))

# %% uid="toy-curves"
shown = {"2": "dpo_2", "10": "dpo", "10 + SFT": "anchor"}
series = {}
for label, arm in shown.items():
    line = np.array([r["d_w"] for name, run in toy.items() if arms[name][0] == arm for r in run.log])
    curves = record.values("d_w_curve", f"toy_{arm}") if record.seeds(f"toy_{arm}") else line[None]
    curves = curves if curves.shape[1] == len(line) else line[None]
    series[label] = (line, np.minimum(line, curves.min(0)), np.maximum(line, curves.max(0)))
curve_with_interval(
    [r["step"] for r in toy["SFT"].log],
    series,
    xlabel=t("l05.step"),
    ylabel=t("l05.d_w_axis"),
    reference={t("l05.no_change"): 0.0},
    title=t("l05.d_w_title"),
)

# %% uid="toy-clouds"
clouds = {name: toy[name].points for name in (r"DPO $\kappa$ = 2", r"DPO $\kappa$ = 250", "DPO 10 + SFT")}
scatter({t("l05.base"): base_points, **clouds}, t("l05.clouds_title"))

# %% uid="toy-widget" tags=["widget"]
from labkit.figures.widgets import choice, explore

explore(
    lambda setting: scatter({setting: toy[setting].points}, t("l05.clouds_title")),
    {"setting": choice(t("l05.setting"), list(toy))},
)

# %% [markdown] lang="en" uid="runs-reading" pair="295549be"
# **What you see.** At $\kappa = 2$ the winners' error grows, with the loss near 0 and the accuracy near 1: both kinds get worse, the losers faster. The loss sees only the
# difference. In the picture the points have left the ring: the optimum of section 2 never does that, but the network does, because pushing a loser's noise prediction
# away pushes everything near it. A larger $\kappa$ stops earlier, since pairs with a large $s$ weigh $\sigma(-s)$, almost nothing. SFT cannot leave the data and cannot use the losers
# either. The anchor takes both: it pays for every rise of $d_w$.
#
# There is a finer cure. One gradient step moves the winner's error by its own pull, $-|g_w|^2$, and by the push on the loser, $+\lambda\,g_w \cdot g_l$,
# if both pictures move alike ($g$: prediction minus noise). **Diffusion-SDPO** ([arXiv 2511.03317](https://arxiv.org/abs/2511.03317)) picks the largest $\lambda \le 1$
# for which the sum is at most $-\mu\,|g_w|^2$. Derive it and write it. By hand, with $\mu = 0.5$: $g_w = (2, 0)$ and $g_l = (4, 3)$ give $\lambda = 0.25$;
# $g_l = (-4, 3)$ gives 1. Common mistakes: no cut at 1, and a negative scale where the gradients point apart.

# %% [markdown] lang="ja" uid="runs-reading" pair="77856834"
# **図と表の読み方。** $\kappa = 2$ では、損失がほぼ0、正解率がほぼ1でも、勝者の誤差は増えています。両方が悪化し、敗者のほうが速いのです。損失が見ているのは差だけです。
# 図では点が円周から外れています。2節の最適解なら起きないことですが、ネットワークでは起きます。敗者のノイズ予測を押しのけると、近くにあるものまで一緒に動くためです。
# $\kappa$ が大きいと早めに止まります。$s$ の大きいペアの重みは $\sigma(-s)$ で、ほとんど0になるからです。SFT はデータから外れませんが、敗者の情報を使えません。
# 錨を加えた DPO はその両方を取り入れ、$d_w$ が増えるたびに代償を払わせます。
#
# もっと細かい対策もあります。両方の画像が同じように動くと仮定すると、勾配1ステップで勝者の誤差は、自分の引く力により $-|g_w|^2$、敗者を押す力により $+\lambda\,g_w \cdot g_l$ だけ
# 動きます($g$ は予測からノイズを引いたもの)。**Diffusion-SDPO**([arXiv 2511.03317](https://arxiv.org/abs/2511.03317))は、合計が $-\mu\,|g_w|^2$ 以下になる最大の
# $\lambda \le 1$ を選びます。導いて、書いてください。$\mu = 0.5$ での手計算の例: $g_w = (2, 0)$、$g_l = (4, 3)$ なら $\lambda = 0.25$、
# $g_l = (-4, 3)$ なら1です。よくある間違いは、1で打ち切らないことと、勾配が反対を向くときに係数を負にすることです。


# %% uid="safe-scale" tags=["exercise"] exercise="safe_scale"
def safe_scale(g_w, g_l, mu):
    """en: lambda [B] in 0..1 from the gradients g_w, g_l [B, n] with respect to the predictions.
    ja: 予測に関する勾配 g_w、g_l [B, n] から、0〜1の lambda [B] を返します。
    """
    # BEGIN SOLUTION
    overlap = (g_w * g_l).sum(1)
    scale = ((1 - mu) * g_w.square().sum(1) / overlap.clamp(min=1e-30)).clamp(0, 1)
    return torch.where(overlap > 0, scale, torch.ones_like(overlap))
    # END SOLUTION


# %% uid="safe-scale-check" tags=["check"]
lab.check("safe_scale")
safe_scale = lab.use("safe_scale")


# %% uid="all-losses"
def my_sdpo(p):
    """en: Your loss at kappa 10; only the share lambda of the loser's error carries a gradient.
    ja: κ = 10 の自分の損失です。敗者の誤差のうち、割合 lambda だけに勾配を流します。
    """
    scale = safe_scale((p.winner_pred - p.noise).detach(), (p.loser_pred - p.noise).detach(), 0.5)
    held = scale * p.loser_error + (1 - scale) * p.loser_error.detach()
    return dpo_loss(**{**p.errors, "loser": held}, kappa=10)


toy["SDPO 10"] = lab.keep("toy", toy_run, "sdpo", my_sdpo)
arms["SDPO 10"] = ("sdpo", my_sdpo)
ring_arms = {name: f"toy_{arm}" for name, (arm, _) in arms.items()}
ring_arms |= {"DPO 10, q = 0.1": "toy_conservative", "IPO 10": "toy_ipo", "hinge 10": "toy_hinge"}
ring_arms |= {"MaPO 10": "toy_mapo", "KTO 10": "toy_kto"}
off = {name: run.off_ring for name, run in toy.items()}
on_record("off_ring", ring_arms, off, t("l05.off"), title=t("l05.off_title"))
on_record("d_w", ring_arms, {n: r.log[-1]["d_w"] for n, r in toy.items()}, t("l05.d_w_axis"), title=t("l05.d_w_all"))

# %% [markdown] lang="en" uid="losses-reading" pair="9d95c987"
# **What you see.** Grey: the recorded study, three bases; blue: your one base. The dots to look at are those right of zero in $d_w$: their winners got worse. Losses that stop asking once
# the gap is reached (IPO wants a fixed gap, the hinge ignores pairs beyond its margin, label smoothing charges for certainty) move least; those that go on asking move most.
# None of them is best in itself: how far to go is the choice of $\kappa$ in another dress. **What would change it:** wrong labels. Then certainty is a mistake, which the last claim below tests.
#
# *A decision:* you must ship one setting to a colleague who will not look at any curve. Which, and what does it cost you in reward?

# %% [markdown] lang="ja" uid="losses-reading" pair="5b0b038a"
# **図の見方。** 灰色は記録済みの実験(基準モデル3つ)、青はあなたの基準モデル1つです。$d_w$ が0より右にある点に注目してください。勝者が悪化した損失です。差が付いたらそれ以上を求めない損失
# (一定の差を目標にする IPO、余裕を超えたペアを無視する hinge、確信に罰を与えるラベル平滑化)では動きが小さく、際限なく求める損失では大きくなります。それ自体が最良の損失は
# ありません。どこまで進むかという $\kappa$ の選択が、形を変えて現れているのです。**結果を左右するもの:** ラベルの誤りです。誤りがあれば、確信を持つこと自体が間違いになります。次の最後の主張で確かめます。
#
# *ここで決めてください。* 曲線を一切見ない同僚に、設定を1つだけ渡すとします。どれを選びますか。また、報酬をどれだけ諦めることになりますか。

# %% uid="toy-claims"
final = {name: run.log[-1]["d_w"] for name, run in toy.items()}
two, ten, large = (rf"DPO $\kappa$ = {k}" for k in (2, 10, 250))
lab.claim("winner_error_grows", measured=t("l05.m_d_w", setting="kappa 2"), value=final[two], seeds=[lab.seed])
measured = t("l05.m_d_w", setting="kappa 10 + SFT")
lab.claim("anchor_holds_winner", measured=measured, value=final["DPO 10 + SFT"], seeds=[lab.seed])
measured = t("l05.m_difference", a="SDPO", b="DPO")
lab.claim("sdpo_holds_winner", measured=measured, value=final["SDPO 10"] - final[ten], seeds=[lab.seed])
measured = t("l05.m_off", a="kappa 10", b="kappa 250")
value = toy[ten].off_ring - toy[large].off_ring
lab.claim("small_kappa_leaves_data", measured=measured, value=value, seeds=[lab.seed])
noisy = {arm: lab.keep("toy", toy_run, arm).off_ring for arm in ("noisy_dpo", "noisy_smooth")}
measured = t("l05.m_off", a="q = 0.25", b="q = 0")
value = noisy["noisy_smooth"] - noisy["noisy_dpo"]
lab.claim("smoothing_guards", measured=measured, value=value, seeds=[lab.seed])
lab.reveal("winner_error", "up" if final[two] > 0 else "down")


# %% [markdown] lang="en" uid="convention" pair="29433e8d"
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
# ## 4. 1つの数に4つの「ベータ」
#
# 論文、著者のコード、diffusers の2つのスクリプトに書かれている「ベータ」は、意味がそれぞれ異なります。違いは、二乗誤差を潜在変数の $d$ 個の要素で平均するか
# 合計するかと、係数2分の1 の有無です。
#
# | 出典 | 誤差 | ロジット | 記載の値 |
# |---|---|---|---|
# | 論文の式14 | 合計 | $-\beta D$ | 2000〜5000 |
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

# %% [markdown] lang="en" uid="convention-reading" pair="82e7b5f1"
# **What you see.** Three sources mean $\kappa = 2500$, though they print 5000 and 2500; the paper's equation, taken literally, means something sixteen thousand
# times stronger. A recipe copied without its convention is off by a factor, not by a nuance. **And a decision for you:** should $\kappa$ grow with the number of elements
# (keep the strength per element of the sum) or stay (keep it per mean)? Decide before section 7, where you meet a latent 32 times smaller.

# %% [markdown] lang="ja" uid="convention-reading" pair="bd088f21"
# **結果の読み方。** 5000や2500と書かれていても、3つの出典は $\kappa = 2500$ を意味しています。論文の式を文字どおりに読むと、その1万6千倍も強い値になります。
# 単位を確かめずに設定を写すと、微妙な違いではなく桁で間違えます。**ここで1つ決めてください。** $\kappa$ は要素数に比例させる(合計に対する強さを保つ)べきでしょうか。
# それとも変えない(平均に対する強さを保つ)べきでしょうか。7節では32分の1の大きさの潜在変数を扱います。それまでに決めておきましょう。


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

# %% [markdown] lang="en" uid="precision-reading" pair="9aaeb5ba"
# **What you see.** Nothing was trained, yet bfloat16 invents logits of the size of a real preference. **Why:** the error is a mean of thousands of squares near .15;
# bfloat16 has three digits for it, and $\kappa = 2500$ magnifies the last one. **What to do:** compute the networks in half precision if you like, the errors never.

# %% [markdown] lang="ja" uid="precision-reading" pair="a5300eab"
# **図の見方。** 何も学習していないのに、bfloat16 では本物の選好に匹敵するロジットが生まれています。**理由:** 誤差は0.15前後の二乗を何千個も平均した値です。bfloat16 では
# 3桁ほどしか表せず、最後の桁が $\kappa = 2500$ で拡大されます。**対策:** ネットワークは半精度で計算してもかまいませんが、誤差は必ず float32 で計算します。


# %% [markdown] lang="en" uid="museum" pair="1d6069db"
# Now a museum of failures: four broken runs, known by their logs alone. Which is which: policy and reference are one object; labels swapped;
# labels random; $\kappa$ taken from another convention? The samples are shown only afterwards.

# %% [markdown] lang="ja" uid="museum" pair="94ff4c2c"
# 次は失敗の博物館です。壊れた実行が4つあり、手がかりはログだけです。「学習中のモデルと参照モデルが同一」「ラベルが逆」「ラベルがでたらめ」
# 「$\kappa$ の単位の取り違え」は、それぞれどれでしょうか。サンプルはそのあとで表示します。

# %% uid="museum-runs" tags=["slow"]
from labkit.dpo.toy import train_toy

w, lo = winners, losers
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
    museum[name] = train_toy(base, *exhibits[name], seed=lab.seed, steps=lab.sizes.toy_steps, lr=lab.sizes.toy_lr)
columns = ("loss", "accuracy", "d_w", "d_l")
heads = [t("l05.loss"), t("l05.accuracy"), "$d_w$", "$d_l$"]
rows = [[name, *(f"{run.log[-1][c]:.3f}" for c in columns)] for name, run in museum.items()]
table(heads, rows, t("l05.museum_title"))

# %% uid="museum-quiz" tags=["quiz"]
lab.quiz("museum_a")
lab.quiz("museum_b")

# %% uid="museum-clouds"
scatter({name: run.points for name, run in museum.items()}, t("l05.museum_clouds"))

# %% [markdown] lang="en" uid="museum-reading" pair="23a3ec2c"
# **The guide's notes.** A has the best log of all and goes left: swapped labels. B stands at $\ln 2$ and nothing moves: one object.
# C cannot get its accuracy far from one half: random labels. D has hardly any loss to lose because $\kappa = 0.02$ makes every logit tiny, so the model may run as far as
# the optimiser carries it. **What to keep:** the log tells whether training does what *you asked*. Only samples tell whether you asked for the right thing.

# %% [markdown] lang="ja" uid="museum-reading" pair="e704984d"
# **解説員のメモ。** A はログが最も良いのに左へ動きます。ラベルが逆です。B は $\ln 2$ のまま何も動きません。学習中のモデルと参照モデルが同一だからです。C は正解率が
# 0.5からほとんど離れません。ラベルがでたらめです。D は $\kappa = 0.02$ でロジットが極端に小さく、損失が下がらないまま、最適化が続くかぎりモデルが遠くへ動いていきます。
# **覚えておくこと:** ログから分かるのは、学習が*頼んだとおり*に進んでいるかどうかだけです。頼んだ内容が正しかったかどうかは、サンプルを見なければ分かりません。

# %% [markdown] lang="en" uid="pairs" pair="2a97f2f1"
# ## 6. Pairs by AI feedback
#
# Now portraits. The base draws sharp pictures and often the wrong ones, for a reason that real models share: the captions it learnt from were wrong, each attribute with
# probability 0.4. The training judge is PortraitCLIP: how probable are the attributes that the prompt names? Several images per prompt, best against worst. The
# AttributeReader takes no part here; it is the gold judge of section 8. Where all images tie, there is nothing to learn. **Ties never train**; the published scripts of
# diffusers keep them and read them as wins of the first image. Write the choice.

# %% [markdown] lang="ja" uid="pairs" pair="663041ee"
# ## 6. AI フィードバックで選好ペアを作る
#
# ここからはポートレートです。基準モデルの画像は鮮明ですが、内容をよく間違えます。原因は実際のモデルと同じで、学習に使ったキャプションが、属性ごとに0.4の確率で誤っていたためです。
# 学習用の評価役は PortraitCLIP で、プロンプトが指定した属性がどれだけ確からしいかを採点します。プロンプトごとに何枚か生成し、最良と最悪を組にします。AttributeReader は
# ここでは使わず、8節で正解の評価役を務めます。全画像が同点なら、学べることはありません。**同点は学習に使いません。** 公開されている diffusers のスクリプトは同点を除かず、
# 1枚目の勝ちとして扱います。選び方を書いてください。


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
from labkit.diffusion import decode_latents
from labkit.dpo import PreferencePairs, build_pool, fingerprints
from labkit.figures.widgets import picture
from labkit.portraits import ATTRIBUTES
from labkit.portraits.parse import parse_caption

models = l05.models()
pipe, judge, reader = models.pipe, models.judge, models.reader
_, prompts = l05.half_named(lab.sizes.prompts, 10_000 + lab.seed)
parts = []
for k in lab.progress_bar(range(0, len(prompts), 8), t("l05.pool"), -(-len(prompts) // 8)):
    some = prompts[k : k + 8]
    options = {"scorers": [judge], "seed": 1000 * lab.seed + k, "steps": lab.sizes.steps}
    parts.append(build_pool(pipe, some, lab.sizes.candidates, **options))
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
print(t("l05.pairs_kept", pairs=len(pairs), prompts=len(prompts), images=scores.numel()))

# %% uid="pairs-seen" tags=["hide-input"]
from labkit.portraits import attribute_name, value_name


def marks(images, texts):
    """en: Per image the named attributes with what the gold judge says: ○ right, × wrong.
    ja: 画像ごとに、指定された属性と正解の評価役の判定(○ 正しい、× 誤り)を並べます。
    """
    read = {a: p.argmax(1).tolist() for a, p in reader.probabilities(images).items()}
    lines = []
    for i, text in enumerate(texts):
        named = parse_caption(text).items()
        right = [(value_name(a, v, lab.lang), ATTRIBUTES[a][read[a][i]] == v) for a, v in named]
        lines.append(" ".join(f"{name}{'○' if ok else '×'}" for name, ok in right))
    return lines


def portraits(rows, texts, title):
    """en: Rows of pictures, one column per prompt; full prompts are printed below.
    ja: 列ごとに同じプロンプトの画像を並べ、その下にプロンプトの全文を表示します。
    """
    captions = {name: marks(images, texts) for name, images in rows.items()}
    display(strips({name: list(images) for name, images in rows.items()}, captions=captions, size=1.6, title=title))
    print("\n".join(f"{k + 1}. {text}" for k, text in enumerate(texts)))


widest = pairs.margin.argsort(descending=True)[:4]
with torch.no_grad():
    seen = [decode_latents(pipe, x[widest]).clamp(-1, 1) for x in (pairs.winner, pairs.loser)]
portraits(
    {t("l05.winners"): seen[0], t("l05.losers"): seen[1]}, [pairs.prompts[k] for k in widest], t("l05.pairs_title")
)

# %% uid="same-noise"
from labkit.diffusion import add_noise, encode_prompts, unet_output

generator, n = lab.generator(5), len(pairs)
noises = [torch.randn(pairs.winner.shape, generator=generator) for _ in range(2)]
times = [torch.randint(1000, (n,), generator=generator) for _ in range(2)]


def error(latents, noise, when):
    """en: Errors [n] of the base on the pairs' prompts.
    ja: ペアのプロンプトに対する基準モデルの誤差 [n] です。
    """
    with torch.no_grad():
        noisy = add_noise(latents, noise, when, pipe.scheduler.alphas_cumprod)
        prediction = unet_output(pipe.unet, noisy, when, encode_prompts(pipe, pairs.prompts))
    return epsilon_error(prediction, noise)


first = error(pairs.winner, noises[0], times[0])
shared = {"same_both": (0, 0), "same_t": (1, 0), "same_none": (1, 1)}
spread = [float((first - error(pairs.loser, noises[i], times[j])).std()) for i, j in shared.values()]
labels = [t("l05.same_both"), t("l05.same_t"), t("l05.same_none")]
bar_with_interval(labels, spread, xlabel=t("l05.noise_axis"), title=t("l05.noise_title"), value_format="{:.3f}")

# %% [markdown] lang="en" uid="pairs-reading" pair="6a8a6a40"
# **What you see.** Under each picture stand the attributes that its prompt names. The widest gaps are no matters of taste: losers wear the wrong thing. The bars are step 5
# of the derivation, measured: two pictures under one noise differ by little; give them different noises or timesteps, and chance drowns the pair. The signal is the same in all three.

# %% [markdown] lang="ja" uid="pairs-reading" pair="d62e3598"
# **図の見方。** 画像の下には、プロンプトが指定した属性が並んでいます。評価の差が最も大きいペアで分かれたのは、好みではありません。敗者は指定と違うものを描いています。
# 棒グラフは、導出のステップ5を測ったものです。同じノイズなら2枚の差はわずかですが、ノイズやタイムステップを別々にすると、ペアの違いが偶然に埋もれます。信号の大きさは3つとも同じです。

# %% [markdown] lang="en" uid="train" pair="117333a5"
# ## 7. Training, watched live
#
# Ten pairs a step train a LoRA adapter in every layer; the reference is the same U-Net with the adapter off, so one network in memory serves as both. Which $\kappa$?
# $2500$ on Stable Diffusion is $2500 / 16384 = 0.15$ per element of the sum. Your converter carries that over to our smaller latents; but the useful range of this
# model was found by trying, and lies higher. Neither rule of section 4 transfers, which is why papers sweep. Watch $d_w$ and $d_l$ apart.

# %% [markdown] lang="ja" uid="train" pair="3b071cf0"
# ## 7. 学習を見守る
#
# 1ステップに10ペアを使い、すべての層の LoRA アダプタを学習します。参照モデルはアダプタを切った同じ U-Net なので、メモリに置くネットワークは1つで足ります。$\kappa$ は
# いくつにすべきでしょうか。Stable Diffusion での $2500$ は、二乗誤差の合計に対する係数に直すと $2500 / 16384 = 0.15$ です。書いた変換関数で、小さな潜在変数に換算
# できます。しかし、このモデルで実際に試して見つけた値は、もっと大きいものでした。4節のどちらの規則もそのままでは通用せず、論文が何通りも試すのはこのためです。$d_w$ と $d_l$ は
# 別々に見てください。

# %% uid="train-run" tags=["slow"]
kappa = lab.sizes.kappa
elements = latents[0, 0].numel()
print(t("l05.kappa_here", elements=elements, kappa=round(kappa_of(2500 / 16384, True, False, elements)), used=kappa))
test = l05.held_out(lab.sizes.test_prompts)
handle = display(t("l05.waiting"), display_id=True)
log = []


def live(record):
    """en: Draw the errors of winners and losers so far.
    ja: これまでの勝者と敗者の誤差を描きます。
    """
    log.append(record)
    series = {name: [r[name] for r in log] for name in ("d_w", "d_l")}
    axes = {"xlabel": t("l05.step"), "ylabel": t("l05.d_axis"), "reference": {t("l05.no_change"): 0.0}}
    figure = curve_with_interval([r["step"] for r in log], series, title=t("l05.live_title", kappa=kappa), **axes)
    handle.update(picture(figure))


def train(terms):
    """en: The log of one run on your pairs, and pictures of the held-out prompts after it; always the same noise.
    ja: 自分のペアによる学習のログと、未使用のプロンプトの学習後の画像です。初期ノイズは常に同じです。
    """
    log.clear()
    run = l05.align(pairs, terms, lab.seed, lab.sizes, live if lab.interactive else None)
    return run, l05.pictures(test, lab.seed, lab.sizes, {"dpo": run.state})


base_images = lab.keep("base", l05.pictures, test, lab.seed, lab.sizes)
run, aligned = lab.keep("aligned", train, [dpo(kappa)])
log[:] = run.log[:-1]
live(run.log[-1])

# %% [markdown] lang="en" uid="train-reading" pair="42daf69a"
# **What you see.** Both curves rise. $d_l$ rises faster, so the loss is content, and the accuracy on the training pairs is close to 1. In one trial run (seed 0) $d_w$ ended at $+0.009$ and $d_l$ at
# $+0.026$: the winners' error *rose* here too. By section 3 that is a warning, yet the next section finds the pictures better. **Why no contradiction:** an error of noise prediction on the base's own
# pictures measures how well the model remembers them, not how good new ones are. What would worry us is $d_w$ running away; here it stays small beside errors of about a third.

# %% [markdown] lang="ja" uid="train-reading" pair="d2517a2d"
# **図の見方。** 2本とも上がっています。$d_l$ のほうが速く上がるので損失は下がり、学習ペアでの正解率は1に近づきます。試しに1回(シード0で)実行したときは、最終の $d_w$ は $+0.009$、$d_l$ は
# $+0.026$ でした。ここでも勝者の誤差は*増えた*のです。3節によれば危険な兆候ですが、次の節で見るように画像は良くなります。**矛盾しない理由:** 基準モデル自身の画像に対するノイズ予測の誤差は、
# モデルがその画像をどれだけ覚えているかの指標で、新しい画像の良さではありません。心配すべきなのは $d_w$ が際限なく増える場合です。ここでは、全体の誤差に比べてわずかです。

# %% [markdown] lang="en" uid="prove" pair="a3469a4a"
# ## 8. Does it win?
#
# Held-out prompts, the same noise for both models, one number per prompt. The judge that made the pairs cannot testify for itself: the claim stands or falls with
# the gold judge, the AttributeReader's mean probability of the named attributes. Papers report win rates, so write one: how many prompts got better? Two readings within
# 0.01 are no win for anybody.

# %% [markdown] lang="ja" uid="prove" pair="d54c4d78"
# ## 8. 本当に勝っているか
#
# 未使用のプロンプトで、両モデルに同じ初期ノイズを使い、プロンプトごとに1つの数にまとめます。自分の採点は証拠になりません。主張の成否は正解の評価役、つまり指定した属性に
# AttributeReader が与える確率の平均で決めます。論文は勝率で報告するので、これを書きましょう。良くなったプロンプトはどれだけあるでしょうか。差が0.01以内なら、どちらの
# 勝ちでもありません。


# %% uid="wins" tags=["exercise"] exercise="wins"
def wins(after, before, margin):
    """en: Per prompt 1 where `after` is better by more than the margin, 0.5 within it, 0 where it is worse. [n] -> [n]
    ja: プロンプトごとに、`after` が margin を超えて良ければ1、差が margin 以内なら0.5、悪ければ0です。[n] -> [n]
    """
    # BEGIN SOLUTION
    gap = after - before
    return np.where(np.abs(gap) <= margin, 0.5, (gap > 0).astype(float))
    # END SOLUTION


# %% uid="wins-check" tags=["check"]
lab.check("wins")
wins = lab.use("wins")

# %% uid="win-rates"
gold = {"base": l05.gold(base_images, test), "dpo": l05.gold(aligned, test)}
pleased = {"base": judge(base_images, test).numpy(), "dpo": judge(aligned, test).numpy()}
by = {t("l05.training_judge"): pleased, t("l05.gold_judge"): gold}
rates = {name: estimate(wins(score["dpo"], score["base"], 0.01)) for name, score in by.items()}
bar_with_interval(
    list(by),
    tuple(np.array([(e.value, e.low, e.high) for e in rates.values()]).T),
    xlabel=t("l05.win_rate"),
    reference={t("l05.chance"): 0.5},
    xlim=(0, 1),
    value_format="{:.0%}",
    title=t("l05.win_title", prompts=len(test)),
)

# %% uid="pictures"
gap = gold["dpo"] - gold["base"]
order = np.argsort(gap)
for chosen, key in ((order[::-1][:4], "better"), (order[:4], "worse")):
    count = int((gap > 0.01).sum() if key == "better" else (gap < -0.01).sum())
    title = t("l05.better", n=count, all=len(gap)) if key == "better" else t("l05.worse", n=count, all=len(gap))
    index = torch.tensor(chosen.copy())
    rows = {t("l05.base"): base_images[index], t("l05.after"): aligned[index]}
    portraits(rows, [test[k] for k in chosen], title)

# %% uid="portrait-claims"
e = rates[t("l05.training_judge")]
measured = t("l05.m_win", judge=t("l05.training_judge"), prompts=len(test), kappa=kappa)
lab.claim("judge_is_pleased", measured=measured, value=e.value, interval=(e.low, e.high), seeds=[lab.seed])
e = rates[t("l05.gold_judge")]
measured = t("l05.m_win", judge=t("l05.gold_judge"), prompts=len(test), kappa=kappa)
lab.claim("dpo_beats_base", measured=measured, value=e.value, interval=(e.low, e.high), seeds=[lab.seed])

# %% [markdown] lang="en" uid="prove-reading" pair="f2fed525"
# **What you see.** In one trial run (seed 0, 128 prompts) about two prompts in three got better, by either judge: the gold judge's mean rose from .73 to .83. The judge that never trained agrees with the one that did, so DPO has
# learnt the prompts and not just a taste. Look at the second strip as well: some prompts got *worse*, and the marks show which attribute was lost. A win rate of two in three
# is also a loss rate of one in three, and the article's "quality improves" is a statement about the mean. **What would change it:** more steps, prompts and seeds.

# %% [markdown] lang="ja" uid="prove-reading" pair="9a509db6"
# **図の見方。** 試しに1回(シード0、128プロンプトで)実行したときは、どちらの評価役から見ても、およそ3件に2件のプロンプトが良くなりました。正解の評価役による平均は0.73から0.83に上がっています。学習に使わなかった評価役が、使った評価役と
# 同じ結論を出したので、DPO は評価役の癖だけでなく、プロンプトに従うことを学んだといえます。2つ目の図も見てください。*悪くなった*プロンプトもあり、どの属性が失われたかを印が示しています。
# 3件に2件勝つなら、勝てないものも3件に1件あります。記事の「品質が高まる」は、平均についての主張です。**結果を左右するもの:** ステップ数、プロンプト数、シード数です。

# %% [markdown] lang="en" uid="own" pair="0220bc0b"
# ## 9. Your own loss
#
# The study of this lesson puts every loss that labkit has on the same pairs with the same budget. Below is your place among those that are recorded. Change `my_terms`: any
# sum of `dpo`, `sft`, `sdpo`, `ipo`, `hinge`, `mapo`, `kto` with any numbers. **Predict** the gain before each run, then run. There is no single right answer. Good
# questions: does half the $\kappa$ give more? Does an anchor cost faithfulness here, where the ring needed it? Which loss keeps $d_w$ below zero and still gains?

# %% [markdown] lang="ja" uid="own" pair="ff364cab"
# ## 9. 自分の損失を試す
#
# このレッスンの実験では、labkit にあるすべての損失を、同じペアと同じステップ数で比べます。記録済みのものの中で、あなたの損失はどこに位置するでしょうか。`my_terms` を書き換えてください。
# `dpo`、`sft`、`sdpo`、`ipo`、`hinge`、`mapo`、`kto` を、好きな数値で自由に足し合わせられます。実行する前に、伸びを**予想**してください。正解は1つではありません。
# 考えるとよい問い: $\kappa$ を半分にすると伸びは増えるでしょうか。円周では必要だった錨は、ここでは忠実さを損なうでしょうか。$d_w$ を0未満に保ったまま伸びる損失はどれでしょうか。

# %% uid="own-run" tags=["open", "slow"]
from labkit.dpo import hinge, ipo, kto, mapo, sdpo

my_terms = [sdpo(kappa, mu=0.5)]
own_run, own_images = lab.keep("own", train, my_terms)
own = estimate(l05.gold(own_images, test) - gold["base"])
print(t("l05.own_rank", gain=own.value, prompts=len(test), d_w=own_run.log[-1]["d_w"], d_l=own_run.log[-1]["d_l"]))
dpo_gain = estimate(gold["dpo"] - gold["base"])
losses = {
    "DPO": "dpo", "SDPO": "sdpo", "DPO + SFT": "anchor", "DPO, q = 0.1": "conservative", "IPO": "ipo",
    "hinge": "hinge", "MaPO": "mapo", "KTO": "kto", "SFT": "sft",
}  # fmt: skip
options = {"against": "base", "reference": {t("l05.no_change"): 0.0}, "title": t("l05.gain_title")}
on_record("gold", losses, {"DPO": dpo_gain.value, "SDPO": own.value}, t("l05.gain_axis"), **options)

# %% uid="loss-claims"
lab.claim("dpo_beats_sft", reason=t("l05.only_recorded"))
lab.claim("sdpo_beats_dpo", reason=t("l05.only_recorded"))
lab.claim("mapo_keeps_up", reason=t("l05.only_recorded"))
lab.claim("kto_beats_dpo", reason=t("l05.only_recorded"))

# %% [markdown] lang="en" uid="own-reading" pair="5beb9479"
# **How to read your dot.** 48 prompts give it an interval of about $\pm 0.05$, so most losses are its neighbours; a difference between two losses is best measured on the *same* prompts,
# prompt by prompt, where it is far more exact. The surprise of the trial run is the baseline: fine-tuning on the winners alone gains $.080$, DPO $.092$, and the paired difference, $.013\ [-.008, .033]$,
# does not tell them apart. **Why:** the winners here are right where the base is often wrong, so copying them already teaches the prompts. The paper saw the same on its weaker model (SD 1.5: SFT wins 55.5 %)
# and the opposite on its stronger one (SDXL), whose own pictures are better than the winners. What does tell them apart is $d_w$: $-0.007$ for SFT, $+0.009$ for DPO.

# %% [markdown] lang="ja" uid="own-reading" pair="aa661a25"
# **自分の点の読み方。** 48プロンプトでは区間がおよそ $\pm 0.05$ あり、ほとんどの損失と重なります。2つの損失の差は、*同じ*プロンプトで1件ずつ比べると、ずっと正確に測れます。記録の中で意外なのは
# 比較対象の SFT です。勝者だけのファインチューニングの伸びは $.080$、DPO は $.092$ で、対にした差 $.013\ [-.008, .033]$ からは優劣を決められません。**理由:** 基準モデルがよく間違える
# ところで勝者は正しいので、まねるだけでもプロンプトに従うことを学べます。論文でも、弱いモデル(SD 1.5)では SFT の勝率が 55.5 % でした。自分の画像が勝者より良い、強いモデル(SDXL)では逆の
# 結果です。違いが表れるのは $d_w$ で、SFT は $-0.007$、DPO は $+0.009$ です。

# %% [markdown] lang="en" uid="negative" pair="2734a0c4"
# ## 10. The worst model as a signpost
#
# Guidance points away from an unconditional prediction: $\epsilon_\varnothing + g\,(\epsilon_c - \epsilon_\varnothing)$. Diffusion-NPO
# ([arXiv 2505.11245](https://arxiv.org/abs/2505.11245)) makes that a model worth avoiding: trained on the same pairs with
# their labels swapped, and asked for $\epsilon_\varnothing$ only. The conditional half is the untouched base. Does it beat plain guidance of the same strength?
# Beside it a control of our own: the same bad model, asked for the prompt itself instead of for nothing.

# %% [markdown] lang="ja" uid="negative" pair="ea5e2ae4"
# ## 10. 悪いモデルを道しるべにする
#
# 分類器なし誘導(ガイダンス)は、無条件の予測から遠ざかる方向へ進みます: $\epsilon_\varnothing + g\,(\epsilon_c - \epsilon_\varnothing)$。Diffusion-NPO
# ([arXiv 2505.11245](https://arxiv.org/abs/2505.11245))は、ここに「避けるべきモデル」を置きます。同じペアのラベルを入れ替えて学習したモデルで、
# $\epsilon_\varnothing$ の計算だけに使います。条件付きの側は基準モデルのままです。同じ強さの通常の誘導に勝てるでしょうか。
# 対照として、この教材独自の条件も試します。同じ悪いモデルに、空のプロンプトではなくプロンプトそのものを与えます。

# %% uid="negative-run" tags=["slow"]
from labkit.dpo import npo


def guided():
    """en: Pictures guided away from a model that was trained to prefer the losers, without and with the prompt.
    ja: 敗者を好むように学習したモデルから遠ざけた画像です(プロンプトなしと、あり)。
    """
    worse = l05.align(pairs, [npo(kappa)], lab.seed, lab.sizes)
    return [l05.away_from(worse.state, test, lab.seed, lab.sizes, with_words=words) for words in (False, True)]


plain, worded = (l05.gold(images, test) for images in lab.keep("negative", guided))
names = {t("l05.empty_prompt"): "npo", t("l05.full_prompt"): "npo_words"}
yours = {name: float((score - gold["base"]).mean()) for name, score in zip(names, (plain, worded), strict=True)}
options = {"against": "base", "reference": {t("l05.no_change"): 0.0}, "title": t("l05.npo_title")}
on_record("gold", names, yours, t("l05.gain_axis"), **options)

# %% uid="negative-claim"
e = estimate(wins(plain, gold["base"], 0.01))
measured = t("l05.m_npo", judge=t("l05.gold_judge"), prompts=len(test))
lab.claim("npo_helps", measured=measured, value=e.value, interval=(e.low, e.high), seeds=[lab.seed])
e = estimate(worded - plain)
measured = t("l05.m_words", prompts=len(test))
lab.claim("npo_needs_words", measured=measured, value=e.value, interval=(e.low, e.high), seeds=[lab.seed])

# %% [markdown] lang="en" uid="negative-reading" pair="44f5940c"
# **What you see: the opposite of the paper.** Guidance away from the bad model loses to plain guidance, a little when it is asked for nothing, by far when it is asked for the prompt. Two likely reasons. First, our preference is
# faithfulness: without the prompt nobody knows what would be wrong, so the empty branch has only drifted. The paper's preferences were people's, and an ugly picture is ugly without a prompt. Second, the control:
# asking the bad model for the prompt removes the difference between *prompt* and *no prompt* from guidance, and that difference was doing most of the work. Bad against good is a weaker signpost
# than something against nothing. **What would change it:** training the negative model with dropped captions, and mixing it with the base, as the paper does; neither was tried here.

# %% [markdown] lang="ja" uid="negative-reading" pair="bb746544"
# **図の見方: 論文と反対の結果です。** 悪いモデルから遠ざける誘導は、通常の誘導に負けました。空のプロンプトなら少し、プロンプトを与えると大きく負けます。理由として2つ考えられます。1つ目に、ここでの選好は
# 忠実さです。プロンプトがなければ何が誤りかが分からないので、空のプロンプトの側はずれただけで終わります。論文の選好は人によるもので、見た目の悪い画像はプロンプトがなくても悪い画像です。2つ目は対照実験から
# 分かります。悪いモデルにプロンプトを与えると、「プロンプトあり」と「なし」の差が誘導から消えますが、効いていたのは主にその差でした。良いモデルと悪いモデルの差は、プロンプトの有無の差より弱い
# 道しるべなのです。**結果を左右するもの:** 論文のように、キャプションを一部落として学習し、基準モデルと混ぜることです。どちらもこの記録には含まれていません。

# %% [markdown] lang="en" uid="side" pair="614239e1"
# ## 11. Side effects, and realism
#
# Nobody asked about the attributes that the prompts leave open. Did they move? And a second question that no preference here named: are the pictures, as a crowd, nearer to
# real ones? The paper that the article tells promises realism, so it is measured apart from faithfulness.

# %% [markdown] lang="ja" uid="side" pair="d21395af"
# ## 11. 副作用と本物らしさ
#
# プロンプトが指定していない属性については、誰も何も求めていません。それらは動いたでしょうか。もう1つ、ここでの選好が触れていない問いがあります。画像は全体として、
# 本物に近づいたでしょうか。記事が紹介する論文は本物らしさを約束しているので、忠実さとは別に測ります。

# %% uid="side-effects"
from labkit.dpo import side_effects

report = side_effects(
    reader, before=base_images, after=aligned, prompts=test, generator=np.random.default_rng(lab.seed)
)
largest = report.largest(6)
bar_with_interval(
    [": ".join((attribute_name(s.attribute, lang), value_name(s.attribute, s.value, lang))) for s in largest],
    ([s.change for s in largest], [s.low for s in largest], [s.high for s in largest]),
    xlabel=t("l05.share_change"),
    reference={t("l05.no_change"): 0.0},
    value_format="{:+.0%}",
    title=t("l05.side_title"),
)

# %% uid="realism"
on_record("distance", {t("l05.base"): "base", **losses}, {}, t("l05.distance_axis"), title=t("l05.distance_title"))

# %% [markdown] lang="en" uid="side-reading" pair="e18b2220"
# **What you see.** Bars whose interval crosses zero are no news. A bar that does not is a habit the model has picked up from the winners, although no prompt asked for it; with six bars shown out of dozens, the
# largest are the luckiest too. In the second figure DPO lies a little nearer to real pictures than its base and fine-tuning does not, one seed each: a hint, no proof. Faithful and real are two axes, and
# lesson 06 is about the second.

# %% [markdown] lang="ja" uid="side-reading" pair="dc104682"
# **図の見方。** 区間が0をまたぐ棒は、変化したとはいえません。またがない棒は、どのプロンプトも求めていないのに、モデルが勝者から身に付けた癖です。ただし、何十もの中から大きい6本を選んで見せているので、偶然大きく
# 出たものも混じります。2つ目の図では、DPO は基準モデルより少し本物に近く、ファインチューニングはそうではありません。記録したシードは1つずつなので、手がかりであって証明ではありません。忠実さと本物らしさは別の軸で、
# 2つ目の軸はレッスン06で扱います。

# %% [markdown] lang="en" uid="map" pair="3c368349"
# ## 12. Paper, article, your numbers
#
# Where to go next: [lesson 06](06_hg_dpo.ipynb) takes the same loss, changes only who wins, and climbs from generated to real pictures.

# %% [markdown] lang="ja" uid="map" pair="7fb8342d"
# ## 12. 論文、記事、測定値
#
# 次に進むなら、[レッスン06](06_hg_dpo.ipynb)です。同じ損失のまま、何を勝者にするかだけを変えて、生成画像から本物の画像へと登っていきます。

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz("accuracy")
lab.quiz("why_npo")
lab.quiz("same_gain")
