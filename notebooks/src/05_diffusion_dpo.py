# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("05", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="article" pair="1de848ce"
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
# **State of the evidence.** The study of this lesson (`labkit study run 05`) is recorded: 34 arms, every loss of labkit on the same pairs with the same budget, three seeds or, where three left a difference open, up to thirteen. Charts show the
# record in blue with its 95 % intervals, and your own run as a star on top of it. A claim's verdict comes from the record; your run says whether it fits.

# %% [markdown] lang="ja" uid="article" pair="dbdf2f91"
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
# **裏付けの状況。** このレッスンの実験(`labkit study run 05`)は記録済みです。34の条件で、labkit のすべての損失を、同じペアと同じステップ数で比べました。シードは3つで、差を判断できなかったものは最大13まで増やしています。グラフでは、記録を95%区間つきの青で、
# 自分の実行結果を星で示します。主張の判定は記録に基づきます。自分の実行結果については、記録と矛盾しないかどうかが表示されます。

# %% [markdown] lang="en" uid="toy" pair="36aa7896"
# ## 1. One picture first
#
# A diffusion model of points, its data eight modes on a circle. A judge likes the right side. He never sees the model; he only says which of two samples he
# prefers. Of eight samples the best becomes a winner, the worst a loser, and a few hundred steps of DPO train a copy of the model on such pairs.

# %% [markdown] lang="ja" uid="toy" pair="5869219f"
# ## 1. まずは1枚の図から
#
# 題材は、2次元の点を生成する拡散モデルです。データは円周上の8つの塊(モード)で、評価役は右側を好みます。評価役はモデルの中身を知らず、2つのサンプルの
# どちらが好みかを答えるだけです。8個生成したうちの最良を勝者、最悪を敗者とし、そのようなペアで、モデルのコピーを DPO で数百ステップ学習します。

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

from labkit.studies import Recorded, estimate, l05, l05_shipped, means, read_record
from labkit.worlds.toy import off_ring, reward, sample_points

run_seed = 100 + lab.seed


def toy_run(arm, terms=None):
    """en: Train the ring as an arm of the recorded study does, or with your own loss on its pairs; without the model.
    ja: 記録済みの実験の条件 arm で、または同じペアと自分の損失で、円周のモデルを学習します(モデルは返しません)。
    """
    return replace(l05.ring_run(arm, 0, run_seed, lab.sizes, terms), model=None)


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
base_points = sample_points(base, 2000, torch.Generator().manual_seed(run_seed + 1))
winners, losers = l05.ring_pairs(0, run_seed, lab.sizes.toy_pairs, 8, lab.sizes.toy_pretrain)
after = lab.keep("first", toy_run, "dpo_50").points
panels = {t("l05.base"): base_points, t("l05.winners"): winners, t("l05.losers"): losers, t("l05.after"): after}
scatter(panels, t("l05.toy_title"))

# %% [markdown] lang="en" uid="toy-reading" pair="08309080"
# **What you see.** The base draws the whole ring. Winners crowd on the right, losers on the left, and after DPO the samples have moved right. **Why it is
# remarkable:** nobody told the model what "right" is. There was no reward in the loss, no sampling during training, no reinforcement learning; only points, two
# by two, and which of them won. **What would change it:** how far the model may go from the base. That is one number, and most of this lesson is about it.
#
# *Before reading on: what must a loss do with a pair so that this happens? Pull the winner? Push the loser? Both?*

# %% [markdown] lang="ja" uid="toy-reading" pair="13525ef1"
# **図の読み方。** 基準モデルは円周全体を描きます。勝者は右に、敗者は左に集まり、DPO 後のサンプルは右へ移っています。**注目すべき点:** 「右」が何かを、
# 誰もモデルに教えていません。損失に報酬は現れず、学習中の生成も強化学習もありません。使ったのは、2つずつの点と、どちらが勝ったかだけです。**結果を左右するもの:**
# 基準モデルからどこまで離れてよいかです。それを決めるのは1つの数で、このレッスンの大半はその数をめぐる話です。
#
# *先を読む前に考えてください。こうなるためには、損失はペアをどう扱えばよいでしょうか。勝者を引くのか、敗者を押すのか、それとも両方でしょうか。*

# %% [markdown] lang="en" uid="leash" pair="5bf468b1"
# ## 2. From a judge to a loss, in five steps
#
# **Step 1: a reward and a leash.** Let $r(x)$ be what the judge feels. A model that only maximises $r$ would draw one single best point for ever. So it is kept
# on a leash: reward, minus the distance from the reference, $E_{p}[r(x)] - \beta\,\mathrm{KL}(p\,\|\,p_\mathrm{ref})$. The larger $\beta$, the shorter the leash. Write both terms as one
# expectation, $-\beta\,E_p\big[\log \frac{p(x)}{p_\mathrm{ref}(x)\,e^{r(x)/\beta}}\big]$: that is again a KL divergence, up to a constant, and a KL divergence is smallest
# when both sides agree. Hence
#
# $$p^*(x) = \tfrac{1}{Z}\; p_\mathrm{ref}(x)\,e^{r(x)/\beta}$$
#
# where $Z$ makes it sum to one. In words: the reference, tilted by the reward. Write it for a density on a grid. By hand: $p_\mathrm{ref} = (.5, .3, .2)$,
# $r = (0, 1, 2)$, $\beta = 1$ give $(.5, .82, 1.48)$ before normalising, so $(.18, .29, .53)$.

# %% [markdown] lang="ja" uid="leash" pair="e9e9741f"
# ## 2. 評価から損失関数へ: 5つのステップ
#
# **ステップ1: 報酬と引き綱。** 評価役の感じる好ましさを $r(x)$ とします。$r$ を最大にするだけのモデルは、最良の1点ばかりを描き続けるでしょう。そこで
# 犬に引き綱を付けるように、モデルを参照モデルにつなぎます。報酬から参照モデルとの隔たりを引いた $E_{p}[r(x)] - \beta\,\mathrm{KL}(p\,\|\,p_\mathrm{ref})$ を
# 最大化するのです。$\beta$ が大きいほど、引き綱は短くなります。2つの項を1つの
# 期待値 $-\beta\,E_p\big[\log \frac{p(x)}{p_\mathrm{ref}(x)\,e^{r(x)/\beta}}\big]$ にまとめると、定数を除いて、これも KLダイバージェンスです。KLダイバージェンスは
# 両者が一致するとき最小なので、
#
# $$p^*(x) = \tfrac{1}{Z}\; p_\mathrm{ref}(x)\,e^{r(x)/\beta}$$
#
# となります。$Z$ は合計を1にする定数です。つまり、参照モデルを報酬の方向に傾けた分布です。格子上の密度に対して、この式を計算する関数を書いてください。手計算の例: $p_\mathrm{ref} = (.5, .3, .2)$、
# $r = (0, 1, 2)$、$\beta = 1$ なら、正規化前は $(.5, .82, 1.48)$、正規化後は $(.18, .29, .53)$ です。


# %% uid="aligned-density" tags=["exercise"] exercise="aligned_density"
def aligned_density(p_ref, reward, beta):
    """en: p* on a grid: p_ref [n] sums to 1, reward [n], beta > 0 (may be as small as 0.01) -> [n], sums to 1.
    ja: 格子上の p* です。p_ref [n](合計1)、reward [n]、beta > 0(0.01のこともあります)から [n](合計1)を返します。
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

# %% [markdown] lang="en" uid="derive" pair="199d8cc4"
# **What you see.** A short leash ($\beta = 2$) barely tilts the three bumps. A long one ($\beta = 0.1$) keeps only the right bump, and even inside it the mass
# leans outwards. No mass appears *between* the bumps: where the reference is zero, no reward helps. Remember this; the trained models below do not always obey it.
#
# **Step 2: read it backwards.** Take the logarithm: $r(x) = \beta \log \frac{p^*(x)}{p_\mathrm{ref}(x)} + \beta \log Z$. Every model *is* a reward model: what it
# makes likelier than the reference, it prefers.
#
# **Step 3: a judge who compares.** Bradley and Terry: $w$ wins against $l$ with probability $P(w \succ l) = \sigma(r(w) - r(l))$. Only a difference enters, so
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

# %% [markdown] lang="ja" uid="derive" pair="8358bfad"
# **図の読み方。** 引き綱が短い($\beta = 2$)と、3つの山はほとんど傾きません。長い($\beta = 0.1$)と右の山だけが残り、その山の中でも外側に寄ります。山と山の*間*に
# 確率は生まれません。参照モデルの密度が0の場所では、どんな報酬も効かないからです。このことを覚えておいてください。後で学習するモデルは、必ずしもこれに従いません。
#
# **ステップ2: 逆に読む。** 対数を取ると $r(x) = \beta \log \frac{p^*(x)}{p_\mathrm{ref}(x)} + \beta \log Z$ です。どんなモデルも、それ自体が報酬モデルだと
# いえます。参照モデルより高い確率を与えたものを、好んでいるからです。
#
# **ステップ3: 比べるだけの評価役。** Bradley-Terry モデルでは、$w$ が $l$ に勝つ確率は $P(w \succ l) = \sigma(r(w) - r(l))$ です。差しか現れないので、未知の
# $\beta \log Z$ は打ち消し合います。ステップ2を代入し、評価役の投票(どちらが勝ったか)の尤度を最大化すると $L = -\log\sigma\big(\beta \log\frac{p_\theta(w)}{p_\mathrm{ref}(w)} - \beta \log\frac{p_\theta(l)}{p_\mathrm{ref}(l)}\big)$ です。
# これが DPO です。報酬は消え、投票と2つのモデルだけが残りました。
#
# **ステップ4: 拡散モデルの $\log p$ は、手軽には計算できません。** その代わり、学習に使った下界(レッスン01)があります。$\log p(x)$ は、定数から、ノイズ予測の誤差を
# タイムステップについて重み付きで足したものを引いた値以上です。タイムステップを1つずつ使い、$e = \mathrm{mean}\,(\hat\epsilon - \epsilon)^2$ とおくと、対数比は
# $-(e_\theta - e_\mathrm{ref})$ の定数倍になります。この定数と $\beta$ を、1つの強さ $\kappa$ にまとめます(式14):
#
# $$s = -\kappa\,\big[(e_w - e^\mathrm{ref}_w) - (e_l - e^\mathrm{ref}_l)\big], \qquad L = -\log\sigma(s)$$
#
# **ステップ5: 同じノイズ。** 勝者と敗者には同じ $t$ と同じ $\epsilon$ を使います。理論が求めるからではなく、分散を減らすためです。誤差は画像よりも $t$ に大きく
# 左右され、共通の部分は差を取れば打ち消し合うからです。どれだけ減るかは第6節で測ります。
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

# %% [markdown] lang="en" uid="runs" pair="5715258b"
# ## 3. What happens to the winners?
#
# Your loss trains the ring at four strengths $\kappa$; beside it stands the obvious baseline, fine-tuning on the winners alone (SFT), and DPO with SFT as an anchor, a term that holds the winners' error down.
# Two numbers to watch: $d_w = e_w - e^\mathrm{ref}_w$ and $d_l = e_l - e^\mathrm{ref}_l$, how far the errors of winners and losers have moved. And one number to distrust,
# the *implicit accuracy* ("accuracy" in tables): the share of pairs with $s > 0$, that is, where the model prefers the winner more than the reference does. It is 0.5 before training and says
# nothing about pictures. Write it, from the logits $s$ of the pairs; a tie, $s = 0$, counts a half. By hand: $s = (1, 3, -2, 0)$ gives $(1 + 1 + 0 + 0.5)/4 = 0.625$.

# %% [markdown] lang="ja" uid="runs" pair="6537caff"
# ## 3. 勝者に何が起きるか
#
# 書いた損失で、$\kappa$ を4通りに変えて学習します。比較対象は、勝者だけで学習するファインチューニング(SFT)と、SFT の項を錨として加えた DPO です。錨とは、
# 勝者の誤差が増えないように引き留める項のことです。見るべき数は2つ、勝者と敗者の誤差の変化 $d_w = e_w - e^\mathrm{ref}_w$ と $d_l = e_l - e^\mathrm{ref}_l$ です。
# 疑ってかかるべき数は1つ、*暗黙の正解率*(表では「正解率」)です。これは $s > 0$ となるペア、つまり参照モデルより強く勝者を好んでいるペアの割合です。
# 学習前は0.5で、画像の良し悪しについては何も語りません。ペアごとのロジット $s$ から、これを計算する関数を書いてください。同点($s = 0$)は0.5として数えます。手計算の例: $s = (1, 3, -2, 0)$ なら
# $(1 + 1 + 0 + 0.5)/4 = 0.625$ です。


# %% uid="implicit-accuracy" tags=["exercise"] exercise="implicit_accuracy"
def implicit_accuracy(s):
    """en: Share of the logits s [B] above 0, a tie counting a half: a number from 0 to 1.
    ja: ロジット s [B] のうち0より大きいものの割合です(同点は0.5)。0から1の数を返します。
    """
    # BEGIN SOLUTION
    return (s > 0).float().mean() + 0.5 * (s == 0).float().mean()
    # END SOLUTION


# %% uid="implicit-accuracy-check" tags=["check"]
lab.check("implicit_accuracy")
implicit_accuracy = lab.use("implicit_accuracy")

# %% [markdown] lang="en" uid="runs-first" pair="f3a22182"
# Before the runs, predict: the loss falls. What happens to the winners?

# %% [markdown] lang="ja" uid="runs-first" pair="3d3ff02e"
# 実行する前に予想してください。損失が下がるとき、勝者には何が起きるでしょうか。

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
shown = {r"$\kappa$ = 2": "dpo_2", r"$\kappa$ = 10": "dpo", r"$\kappa$ = 10 + SFT": "anchor"}
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
clouds = {name: toy[name].points for name in (r"DPO $\kappa$ = 2", r"DPO $\kappa$ = 10", "DPO 10 + SFT")}
scatter({t("l05.base"): base_points, **clouds}, t("l05.clouds_title"))

# %% uid="toy-widget" tags=["widget"]
from labkit.figures.widgets import choice, explore

explore(
    lambda setting: scatter({setting: toy[setting].points}, t("l05.clouds_title")),
    {"setting": choice(t("l05.setting"), list(toy))},
)

# %% [markdown] lang="en" uid="runs-reading" pair="f85b6b2e"
# **What you see.** At $\kappa = 2$ the winners' error grows, with the loss near 0 and the accuracy near 1: both kinds get worse, the losers faster. The loss sees only the
# difference. Now look for points off the ring: the optimum of section 2 never puts one there, but the network may, because pushing a loser's noise prediction
# away pushes everything near it. At $\kappa = 10$ it happens on each of the three bases of the record, to 1 to 13 samples in a hundred. At $\kappa = 2$ the errors are ten times as large, yet only one base loses a fifth of its samples, and yours is not that one: there they all crowd onto a thin line at the best reward, whose end hardly leaves what still counts as the ring (five standard deviations of the data). How far the
# errors run and where the samples end are two questions. A larger $\kappa$ stops earlier, since pairs with a large $s$ weigh $\sigma(-s)$, almost nothing. SFT cannot leave the data and cannot use the losers
# either. The anchor takes both: it pays for every rise of $d_w$.
#
# There is a finer cure. One gradient step moves the winner's error by its own pull, $-|g_w|^2$, and by the push on the loser, $+\lambda\,g_w \cdot g_l$,
# if both pictures move alike ($g$: prediction minus noise). **Diffusion-SDPO** ([arXiv 2511.03317](https://arxiv.org/abs/2511.03317)) picks the largest $\lambda \le 1$
# for which the sum is at most $-\mu\,|g_w|^2$. Derive it and write it. By hand, with $\mu = 0.5$: $g_w = (2, 0)$ and $g_l = (4, 3)$ give $\lambda = 0.25$;
# $g_l = (-4, 3)$ gives 1. Common mistakes: no cut at 1, and a negative scale where the gradients point apart.

# %% [markdown] lang="ja" uid="runs-reading" pair="a2495ebf"
# **図と表の読み方。** $\kappa = 2$ では、損失がほぼ0、正解率がほぼ1でも、勝者の誤差は増えています。両方が悪化し、敗者の悪化のほうが速いのです。損失が見ているのは差だけです。
# 次に、円周から外れた点を探してください。第2節の最適解なら起きないことですが、ネットワークでは起こりえます。敗者のノイズ予測を押しのけると、近くにあるものまで一緒に動くためです。$\kappa = 10$ では、記録にある3つの基準モデルのすべてで、100個に1〜13個のサンプルが外れました。
# $\kappa = 2$ の誤差はその10倍に増えますが、サンプルの5分の1が外れたのは1つの基準モデルだけで、手元のモデルはそれではありません。手元では全部のサンプルが報酬の最も高いところの細い線に集まり、その端も、円周と見なす範囲(データの標準偏差の5倍)からほとんど出ていません。誤差がどこまで増えるかと、サンプルがどこに落ち着くかは、別の問題です。
# $\kappa$ が大きいと早めに止まります。$s$ の大きいペアの重みは $\sigma(-s)$ で、ほとんど0になるからです。SFT はデータから外れませんが、敗者の情報を使えません。
# 錨を加えた DPO は両方の長所を取り入れ、$d_w$ が増えるたびに損失が増えるようにします。
#
# もっと細かい対策もあります。両方の画像が同じように動くと仮定すると、勾配1ステップで勝者の誤差は、勝者を引く力により $-|g_w|^2$、敗者を押す力により $+\lambda\,g_w \cdot g_l$ だけ
# 動きます($g$ は予測からノイズを引いたもの)。**Diffusion-SDPO**([arXiv 2511.03317](https://arxiv.org/abs/2511.03317))は、合計が $-\mu\,|g_w|^2$ 以下になる最大の
# $\lambda \le 1$ を選びます。式を導いて、関数を書いてください。$\mu = 0.5$ での手計算の例: $g_w = (2, 0)$、$g_l = (4, 3)$ なら $\lambda = 0.25$、
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
    ja: κ = 10の自分の損失です。敗者の誤差のうち、割合 lambda だけに勾配を流します。
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

# %% [markdown] lang="en" uid="losses-reading" pair="adb8864f"
# **What you see.** Blue with intervals: the record, three bases for each seed; the stars: your one base. The charts add the losses of other papers: KTO learns from likes and dislikes without pairs, MaPO has no reference, IPO aims at a fixed gap, and the hinge stops learning from a pair once its gap is wide enough. Read the two charts together. KTO at this strength never stops asking: its winners' error grows by more than 4, six samples in ten
# have left the ring, and its mean reward, about 1.2, is the highest of all. On the ring nothing lies further right than 1: **a reward above the best point of the data is the mark of over-optimisation**, and whoever looks at rewards
# alone would ship it. In $d_w$, DPO 2 and DPO 10 follow; losses that stop asking move little (IPO wants a fixed gap, label smoothing charges for certainty). SFT, MaPO, SDPO and the anchor keep the winners' error below the reference's.
# **What $d_w$ does not tell.** DPO 50 has hardly any $d_w$ and yet 5 % of its samples off the ring, no fewer than DPO 10; SDPO is below zero and loses 2 %. The error is measured on the training pairs; the samples go where no pair was.
#
# **Wrong labels, and a claim that fails.** With a quarter of the labels wrong one expects certainty to be a mistake, and label smoothing to guard against it. The record says: no difference worth the name. Plain DPO is not certain there
# either, its accuracy stops at .72, for the pairs contradict each other, and neither model leaves the ring. The noise does the smoothing. **What would change it:** few pairs and many steps, so that single wrong labels can be learnt by heart.
#
# *A decision:* you must ship one setting to a colleague who will not look at any curve. Which, and what does it cost you in reward?

# %% [markdown] lang="ja" uid="losses-reading" pair="cb08c143"
# **図の読み方。** 区間つきの青が記録(シードごとに基準モデル3つ)、星が自分の基準モデル1つです。図には、ほかの論文の損失も並べました。KTO はペアを使わず「好き」と「嫌い」だけで学び、MaPO は参照モデルを使いません。IPO は一定の差を目標とし、hinge は差が十分に付いたペアから学ぶのをやめます。2つの図を合わせて見てください。この強さの KTO は際限なく差を求めます。勝者の誤差は4以上増え、サンプルの6割が円周から外れ、
# それでいて平均報酬は約1.2で最高です。円周上に1より右の点はありません。**データの最良点を超える報酬は、過剰最適化のしるしです。** 報酬しか見ない人なら、これを採用するでしょう。$d_w$ が次に大きいのは、DPO 2と DPO 10です。差が付いたらそれ以上を
# 求めない損失(一定の差を目標にする IPO、確信に罰を与えるラベル平滑化)は、あまり動きません。SFT、MaPO、SDPO、錨を加えた DPO では、勝者の誤差が参照モデルより小さく保たれます。
# **$d_w$ では分からないこと。** DPO 50は $d_w$ がほぼ0なのに、DPO 10に劣らず、5%のサンプルが円周から外れています。SDPO も $d_w$ は負ですが、2%が外れます。誤差は学習ペアの上で測りますが、サンプルはペアのない場所へも行くからです。
#
# **誤ったラベルと、成り立たなかった主張。** ラベルの4分の1が誤っていれば、確信は間違いのもとで、ラベル平滑化がそれを防ぐと予想できます。記録では、意味のある差はありませんでした。ペアどうしが矛盾するので、通常の DPO も確信を持てず、正解率は
# 0.72で止まり、どちらのモデルも円周から外れません。ノイズそのものが平滑化の役目を果たしたのです。**結果を左右するもの:** ペアが少なくステップが多ければ、誤ったラベルを1つずつ覚え込むことがあり得ます。
#
# *ここで決めてください。* 曲線を一切見ない同僚に、設定を1つだけ渡すとします。どれを選びますか。また、報酬をどれだけ諦めることになりますか。

# %% uid="toy-claims"
final = {name: run.log[-1]["d_w"] for name, run in toy.items()}
two, ten, large = (rf"DPO $\kappa$ = {k}" for k in (2, 10, 250))
lab.claim("winner_error_grows", measured=t("l05.m_d_w", setting="kappa 2"), value=final[two], seeds=[run_seed])
measured = t("l05.m_d_w", setting="kappa 10 + SFT")
lab.claim("anchor_holds_winner", measured=measured, value=final["DPO 10 + SFT"], seeds=[run_seed])
measured = t("l05.m_difference", a="SDPO", b="DPO")
lab.claim("sdpo_holds_winner", measured=measured, value=final["SDPO 10"] - final[ten], seeds=[run_seed])
measured = t("l05.m_off", a="kappa 10", b="kappa 250")
value = toy[ten].off_ring - toy[large].off_ring
lab.claim("small_kappa_leaves_data", measured=measured, value=value, seeds=[run_seed])
noisy = {arm: lab.keep("toy", toy_run, arm).off_ring for arm in ("noisy_dpo", "noisy_smooth")}
measured = t("l05.m_off", a="q = 0.25", b="q = 0")
value = noisy["noisy_smooth"] - noisy["noisy_dpo"]
lab.claim("smoothing_guards", measured=measured, value=value, seeds=[run_seed])
lab.reveal("winner_error", "up" if final[two] > 0 else "down")


# %% [markdown] lang="en" uid="convention" pair="f9a1e610"
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
# 合計するかと、係数2分の1の有無です。
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
    ja: 平均誤差を単位とする kappa です。summed: 誤差は `elements` 個の要素の和、half: ロジットに係数1/2が付く。
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

# %% [markdown] lang="en" uid="convention-reading" pair="2c717614"
# **What you see.** Three sources mean $\kappa = 2500$, though they print 5000 and 2500; the paper's equation, taken literally, means something more than ten thousand
# times stronger. A recipe copied without its convention is off by a factor, not by a nuance. **And a decision for you:** should $\kappa$ grow with the number of elements
# (keep the strength per element of the sum) or stay (keep it per mean)? Decide before section 7, where you meet a latent 32 times smaller.

# %% [markdown] lang="ja" uid="convention-reading" pair="7017118d"
# **結果の読み方。** 5000や2500と書かれていても、3つの出典は $\kappa = 2500$ を意味しています。論文の式を文字どおりに読むと、その1万倍を超える強さになります。
# 単位を確かめずに設定を写すと、わずかな違いでは済まず、桁を間違えます。**ここで1つ決めてください。** $\kappa$ は要素数に比例させる(合計に対する強さを保つ)べきでしょうか。
# それとも変えない(平均に対する強さを保つ)べきでしょうか。第7節では、要素数が32分の1の潜在変数を扱います。それまでに決めておきましょう。


# %% [markdown] lang="en" uid="break" pair="339d3819"
# ## 5. Break it on purpose
#
# Precision first. The reference and the policy are the same network, so every logit must be 0. Round the predictions and their mean to half
# precision on one side only, as a reference kept in half precision does, and look at the logits that come out of nothing.

# %% [markdown] lang="ja" uid="break" pair="f8826cf8"
# ## 5. わざと壊してみる
#
# まずは精度です。参照モデルと学習中のモデルが同じなら、ロジットはすべて0のはずです。参照モデルを半精度で持つ場合のように、片側だけ予測と平均を半精度に
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

# %% [markdown] lang="en" uid="precision-reading" pair="ed3f78c7"
# **What you see.** Nothing was trained, yet bfloat16 invents logits of the size of a real preference. **Why:** the error is a mean of thousands of squares near .15;
# bfloat16 has three digits for it, and $\kappa = 2500$ magnifies the last one. **What to do:** compute the networks in half precision if you like, the errors never.

# %% [markdown] lang="ja" uid="precision-reading" pair="a5300eab"
# **図の読み方。** 何も学習していないのに、bfloat16では本物の選好に匹敵するロジットが生まれています。**理由:** 誤差は、0.15前後の二乗を何千個も平均した値です。bfloat16では
# 3桁ほどしか表せず、最後の桁が $\kappa = 2500$ で拡大されます。**対策:** ネットワークは半精度で計算してもかまいませんが、誤差は必ず float32で計算します。


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
    museum[name] = train_toy(base, *exhibits[name], seed=run_seed, steps=lab.sizes.toy_steps, lr=lab.sizes.toy_lr)
columns = ("loss", "accuracy", "d_w", "d_l")
heads = [t("l05.loss"), t("l05.accuracy"), "$d_w$", "$d_l$"]
rows = [[name, *(f"{run.log[-1][c]:z.3f}" for c in columns)] for name, run in museum.items()]
table(heads, rows, t("l05.museum_title"))

# %% uid="museum-quiz" tags=["quiz"]
lab.quiz("museum_a")
lab.quiz("museum_b")

# %% uid="museum-clouds"
scatter({name: run.points for name, run in museum.items()}, t("l05.museum_clouds"))

# %% [markdown] lang="en" uid="museum-reading" pair="c520d7ac"
# **The guide's notes.** A has the best log of all and goes left: swapped labels. B stands at $\ln 2$ and nothing moves: one object. C cannot get its accuracy far from one half: random labels. D looks healthy in its loss and accuracy; its
# errors do not. With $\kappa = 0.02$ a logit of 2 needs a gap of 100 where $\kappa = 10$ needs 0.2, so the model runs until the errors are in the hundreds. **What to keep:** loss and accuracy tell whether training does what *you asked*. $d_w$ and $d_l$ tell at what price,
# and only samples tell whether you asked for the right thing.

# %% [markdown] lang="ja" uid="museum-reading" pair="de407d42"
# **解説員のメモ。** A はログが最も良いのに左へ動きます。ラベルが逆です。B は $\ln 2$ のまま何も動きません。学習中のモデルと参照モデルが同一だからです。C は正解率が0.5からほとんど離れません。ラベルがでたらめです。D の損失と正解率は健全に見えますが、
# 誤差は違います。ロジットを2にするのに、$\kappa = 10$ なら0.2の差で足りますが、$\kappa = 0.02$ では100の差が要ります。そのため、誤差が数百になるまでモデルが動き続けます。**覚えておくこと:** 損失と正解率から分かるのは、学習が*頼んだとおり*に進んでいるかどうかです。
# その代償は $d_w$ と $d_l$ に表れ、頼んだ内容が正しかったかどうかは、サンプルを見なければ分かりません。

# %% [markdown] lang="en" uid="pairs" pair="393671cc"
# ## 6. Pairs by AI feedback
#
# Now portraits. The base draws sharp pictures and often the wrong ones, for a reason that real models share: the captions it learnt from were wrong, each attribute with
# probability 0.4. The training judge is PortraitCLIP: how probable are the attributes that the prompt names? Several images per prompt, best against worst. The
# AttributeReader takes no part here; it is the gold judge of section 8, which measures and never trains. Where all images tie, there is nothing to learn. **Ties never train**; the published scripts of
# diffusers keep them and read them as wins of the first image. Write the choice.

# %% [markdown] lang="ja" uid="pairs" pair="b264cc8b"
# ## 6. AI フィードバックで選好ペアを作る
#
# ここからはポートレートです。基準モデルの画像は鮮明ですが、内容をよく間違えます。原因は実際のモデルと同じで、学習に使ったキャプションが、属性ごとに0.4の確率で誤っていたためです。
# 学習用の評価役は PortraitCLIP で、プロンプトが指定した属性がどれだけ確からしいかを採点します。プロンプトごとに何枚か生成し、最良と最悪を組にします。AttributeReader は
# ここでは使わず、第8節で正解の評価役(測定するだけで、学習には使わない評価役)を務めます。全画像が同点なら、学べることはありません。**同点は学習に使いません。** 公開されている diffusers のスクリプトは同点を除かず、
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
from labkit.dpo import PreferencePairs, fingerprints
from labkit.figures.widgets import picture
from labkit.portraits import ATTRIBUTES
from labkit.portraits.parse import parse_caption

models = l05.models()
pipe, judge, reader = models.pipe, models.judge, models.reader


def pool_bar():
    return lab.progress_bar(range(-(-lab.sizes.prompts // l05_shipped.SHARD)), t("l05.pool"))


# en: tier cpu ships them for the default seed; they are drawn here for any other seed or tier
# ja: tier cpu では、既定のシードの候補が教材に付属しています。ほかのシードや tier ではここで生成します
candidates = lab.keep("pool", l05_shipped.pool, run_seed, lab.sizes, pool_bar)
prompts, latents = candidates.prompts, candidates.latents  # latents [prompts, candidates, C, h, w]
scores = candidates.scores[judge.name]  # [prompts, candidates]
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
        lines.append("\n".join(f"{'○' if ok else '×'} {name}" for name, ok in right))
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


def error(latents, noise, when):
    """en: Errors [n] of the base on the pairs' prompts.
    ja: ペアのプロンプトに対する基準モデルの誤差 [n] です。
    """
    with torch.no_grad():
        noisy = add_noise(latents, noise, when, pipe.scheduler.alphas_cumprod)
        prediction = unet_output(pipe.unet, noisy, when, encode_prompts(pipe, pairs.prompts))
    return epsilon_error(prediction, noise)


generator, spreads = lab.generator(5), []
# en: which noise and which timesteps the loser takes
# ja: 敗者に使うノイズとタイムステップの番号です
shared = {t("l05.same_both"): (0, 0), t("l05.same_t"): (1, 0), t("l05.same_none"): (1, 1)}
for _ in range(8):
    noises = [torch.randn(pairs.winner.shape, generator=generator) for _ in range(2)]
    times = [torch.randint(1000, (len(pairs),), generator=generator) for _ in range(2)]
    of_winner = error(pairs.winner, noises[0], times[0])
    gaps = [of_winner - error(pairs.loser, noises[i], times[j]) for i, j in shared.values()]
    spreads.append([float(gap.std()) for gap in gaps])
bar_with_interval(
    list(shared), np.array(spreads), xlabel=t("l05.noise_axis"), title=t("l05.noise_title"), value_format="{:.3f}"
)

# %% [markdown] lang="en" uid="pairs-reading" pair="76ffc674"
# **What you see.** Under each picture stand the attributes that its prompt names. The widest gaps are no matters of taste: losers wear the wrong thing. The bars are step 5 of the derivation, measured. In our run (seed 0, eight draws) the difference of two errors spreads by
# .024 under one noise and one timestep, by .025 under two noises at the same timestep, and by .074 when the timesteps differ too. So the gain comes from sharing $t$; what sharing the noise adds does not show on forty pairs. The signal is the same in all three; three times the spread takes nine times the pairs to see it.

# %% [markdown] lang="ja" uid="pairs-reading" pair="d4511578"
# **図の読み方。** 画像の下には、プロンプトが指定した属性が並んでいます。評価の差が最も大きいペアを見ると、違いは好みの問題ではありません。敗者には、指定と違うものが描かれています。棒グラフは、導出のステップ5を測ったものです。シード0の実行(ノイズとタイムステップを8回引いた平均)では、誤差の差のばらつきは、ノイズもタイムステップも共通なら
# 0.024、タイムステップだけ共通なら0.025、どちらも別々なら0.074でした。つまり、効いているのは $t$ をそろえることで、ノイズをそろえる効果は、40組では見えません。信号の大きさは3つとも同じなので、ばらつきが3倍になれば、見分けるのに9倍のペアが要ります。

# %% [markdown] lang="en" uid="train" pair="2bf8d0d7"
# ## 7. Training, watched live
#
# Ten pairs a step train a LoRA adapter (a small addition to the weights) in every layer; the reference is the same U-Net with the adapter off, so one network in memory serves as both. Which $\kappa$?
# $2500$ on Stable Diffusion is $2500 / 16384 = 0.15$ per element of the sum. Your converter carries that over to our smaller latents; but the useful range of this
# model was found by trying, and lies higher. Neither rule of section 4 transfers, which is why papers sweep. Watch $d_w$ and $d_l$ apart.

# %% [markdown] lang="ja" uid="train" pair="a4b752c9"
# ## 7. 学習を見守る
#
# 1ステップに10ペアを使い、すべての層の LoRA アダプタ(重みに足す小さな差分)を学習します。参照モデルはアダプタを切った同じ U-Net なので、メモリに置くネットワークは1つで足ります。$\kappa$ は
# いくつにすべきでしょうか。Stable Diffusion での $2500$ は、二乗誤差の合計に対する係数に直すと $2500 / 16384 = 0.15$ です。第4節で書いた変換関数を使えば、この教材の小さな潜在変数に換算
# できます。しかし、このモデルで実際に試して見つけた値は、もっと大きいものでした。第4節のどちらの規則も、そのままでは通用しません。論文が何通りも試すのは、このためです。$d_w$ と $d_l$ は
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
    series = {f"${name}$": [r[name] for r in log] for name in ("d_w", "d_l")}
    axes = {"xlabel": t("l05.step"), "ylabel": t("l05.d_axis"), "reference": {t("l05.no_change"): 0.0}}
    figure = curve_with_interval([r["step"] for r in log], series, title=t("l05.live_title", kappa=kappa), **axes)
    handle.update(picture(figure))


def with_bar(terms, watch=lambda record: None):
    """en: Train on your pairs; ten times on the way the bar moves and `watch` sees the log's new record.
    ja: 自分のペアで学習します。途中で10回、進み具合の表示を更新し、ログの新しい記録を `watch` に渡します。
    """
    steps = lab.sizes.train_steps
    ticks = iter(lab.progress_bar(range(len(range(0, steps, max(1, steps // 10)))), t("l05.training")))
    next(ticks)

    def noted(record):
        """en: Called after every tenth of the steps.
        ja: ステップの10分の1ごとに呼ばれます。
        """
        watch(record)
        next(ticks, None)

    return l05.align(pairs, terms, run_seed, lab.sizes, noted)


def train(terms):
    """en: The log of one run on your pairs, and pictures of the held-out prompts after it; always the same noise.
    ja: 自分のペアによる学習のログと、未使用のプロンプトの学習後の画像です。初期ノイズは常に同じです。
    """
    log.clear()
    run = with_bar(terms, live) if lab.interactive else with_bar(terms)
    return run, l05.pictures(test, run_seed, lab.sizes, {"dpo": run.state})


base_images = lab.keep("base", l05.pictures, test, run_seed, lab.sizes)
run, aligned = lab.keep("aligned", train, [dpo(kappa)])
log[:] = run.log[:-1]
live(run.log[-1])

# %% [markdown] lang="en" uid="train-reading" pair="113fba6e"
# **What you see.** Both curves rise. $d_l$ rises faster, so the loss is content, and the accuracy on the training pairs is close to 1. The record agrees: over thirteen seeds $d_w$ ends between $+0.003$ and $+0.026$, $d_l$ between $+0.017$ and $+0.044$. The winners' error *rose* here too. By section 3 that is a warning,
# yet the next section finds the pictures better. **Why no contradiction:** an error of noise prediction on the base's own pictures measures how well the model remembers them, not how good new ones are. What would worry us is $d_w$ running away; here it stays small beside errors of about a third.

# %% [markdown] lang="ja" uid="train-reading" pair="82e7b60d"
# **図の読み方。** 2本とも上がっています。$d_l$ のほうが速く上がるので損失は下がり、学習ペアでの正解率は1に近づきます。13シードの記録でも同じで、最終の $d_w$ は $+0.003$〜$+0.026$、$d_l$ は $+0.017$〜$+0.044$ でした。ここでも勝者の誤差は*増えた*のです。第3節によれば危険な兆候ですが、次の節で見るように
# 画像は良くなります。**矛盾しない理由:** 基準モデル自身の画像に対するノイズ予測の誤差は、モデルがその画像をどれだけ覚えているかを表すもので、新しい画像の良さを表すものではありません。心配すべきなのは $d_w$ が際限なく増える場合です。ここでは、0.3ほどの誤差に比べてわずかです。

# %% [markdown] lang="en" uid="prove" pair="a2e4d9c7"
# ## 8. Does it win?
#
# Held-out prompts, the same noise for both models, one number per prompt. The judge that made the pairs cannot testify for itself: the claim stands or falls with
# the gold judge, the AttributeReader's mean probability of the named attributes. Papers report win rates, so write one: how many prompts got better? Two readings within
# 0.01 are no win for anybody.

# %% [markdown] lang="ja" uid="prove" pair="d54c4d78"
# ## 8. 本当に勝っているか
#
# 未使用のプロンプトで、両モデルに同じ初期ノイズを使い、プロンプトごとに1つの数にまとめます。ペアを作った評価役の採点は証拠になりません。主張の成否は正解の評価役、つまり指定した属性に
# AttributeReader が与える確率の平均で決めます。論文は勝率で報告するので、勝率を求める関数を書きましょう。良くなったプロンプトはどれだけあるでしょうか。差が0.01以内なら、どちらの
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
better, worse = [k for k in order[::-1] if gap[k] > 0.05], [k for k in order if gap[k] < -0.05]
titles = t("l05.better", n=len(better), all=len(gap)), t("l05.worse", n=len(worse), all=len(gap))
for found, title in zip((better, worse), titles, strict=True):
    if not found:
        print(title)
        continue
    index = torch.tensor(found[:4])
    rows = {t("l05.base"): base_images[index], t("l05.after"): aligned[index]}
    portraits(rows, [test[k] for k in found[:4]], title)

# %% uid="portrait-claims"
e = rates[t("l05.training_judge")]
measured = t("l05.m_win", judge=t("l05.training_judge"), prompts=len(test), kappa=kappa)
lab.claim("judge_is_pleased", measured=measured, value=e.value, interval=(e.low, e.high), seeds=[run_seed])
e = rates[t("l05.gold_judge")]
measured = t("l05.m_win", judge=t("l05.gold_judge"), prompts=len(test), kappa=kappa)
lab.claim("dpo_beats_base", measured=measured, value=e.value, interval=(e.low, e.high), seeds=[run_seed])

# %% [markdown] lang="en" uid="prove-reading" pair="e4d2d0d2"
# **What you see.** In the record (128 prompts) four prompts in ten got better, six or seven in a hundred worse and the rest stayed as they were, by either judge; the gold judge's mean rose by $.091$ $[.078, .103]$, from .715 to .806. The judge that never trained agrees with the one that did, so DPO has
# learnt the prompts and not just a taste. Look at the second strip as well: some prompts got *worse*, and the marks show which attribute was lost. Ties count half, so a win rate of two in three is made of these four in ten and of half the ties. It does not say that two in three improved, and the article's "quality improves" is a statement
# about the mean. **What would change it:** more steps, more pairs, and a base that is wrong for another reason than its captions.

# %% [markdown] lang="ja" uid="prove-reading" pair="7d46da0d"
# **図の読み方。** 記録(128プロンプト)では、どちらの評価役から見ても、10件に4件のプロンプトが良くなり、悪くなったのは100件に6〜7件で、残りは変わりませんでした。正解の評価役による平均は0.715から0.806へ、$.091$ $[.078, .103]$ 上がっています。学習に使わなかった評価役が、使った評価役と同じ結論を出したので、DPO は評価役の癖だけでなく、
# プロンプトに従うことを学んだといえます。2つ目の図も見てください。*悪くなった*プロンプトもあり、どの属性が失われたかを印が示しています。引き分けは0.5勝と数えるので、勝率3分の2は、この4割の勝ちに引き分けの半分を足した値です。3件に2件が良くなったという意味ではありません。記事の「品質が高まる」は、平均についての主張です。
# **結果を左右するもの:** ステップ数やペアの数、そして、キャプション以外の理由で間違える基準モデルです。

# %% [markdown] lang="en" uid="own" pair="71b4e229"
# ## 9. Your own loss
#
# The study of this lesson puts every loss that labkit has on the same pairs with the same budget. Below is your place among those that are recorded. Change `my_terms`: any
# sum of `dpo`, `sft`, `sdpo`, `ipo`, `hinge`, `mapo`, `kto` with any numbers. **Predict** the gain before each run, then run. There is no single right answer. Good
# questions: does half the $\kappa$ give more? Does an anchor cost faithfulness here, where the ring needed it? Which loss keeps $d_w$ below zero and still gains? ("DPO, margin" in the figure asks for a larger logit $s$ where the judge's scores differ more.)

# %% [markdown] lang="ja" uid="own" pair="1f2dc97e"
# ## 9. 自分の損失を試す
#
# このレッスンの実験では、labkit にあるすべての損失を、同じペアと同じステップ数で比べます。記録済みのものの中で、自分の損失はどこに位置するでしょうか。`my_terms` を書き換えてください。
# `dpo`、`sft`、`sdpo`、`ipo`、`hinge`、`mapo`、`kto` を、好きな数値で自由に足し合わせられます。実行する前に、伸びを**予想**してください。正解は1つではありません。
# 考えるとよい問い: $\kappa$ を半分にすると伸びは増えるでしょうか。円周では必要だった錨は、ここでは忠実度を下げるでしょうか。$d_w$ を0未満に保ったまま伸びる損失はどれでしょうか。なお、図の「DPO、マージン付き」は、評価役の得点差が大きいペアほど大きなロジット $s$ を要求する DPO です。

# %% uid="own-run" tags=["open", "slow"]
from labkit.dpo import hinge, ipo, kto, mapo, sdpo

my_terms = [sdpo(kappa, mu=0.5)]
own_run, own_images = lab.keep("own", train, my_terms)
own = estimate(l05.gold(own_images, test) - gold["base"])
print(t("l05.own_rank", gain=own.value, prompts=len(test), d_w=own_run.log[-1]["d_w"], d_l=own_run.log[-1]["d_l"]))
dpo_gain = estimate(gold["dpo"] - gold["base"])
losses = {
    "DPO": "dpo", "SDPO": "sdpo", "DPO + SFT": "anchor", "DPO, q = 0.1": "conservative", "IPO": "ipo",
    "hinge": "hinge", "MaPO": "mapo", "KTO": "kto", "SFT": "sft", t("l05.with_margin"): "margin",
}  # fmt: skip
options = {"against": "base", "reference": {t("l05.no_change"): 0.0}, "title": t("l05.gain_title")}
on_record("gold", losses, {"DPO": dpo_gain.value, "SDPO": own.value}, t("l05.gain_axis"), **options)

# %% [markdown] lang="en" uid="paired" pair="b9370101"
# **Reading.** Your star has an interval of about $\pm 0.05$ from 48 prompts, so most losses are its neighbours. Does that mean that 48 prompts cannot tell two losses apart? Some prompts are easy and some are hard, for every model. If both are asked the *same* prompts, that part cancels in the difference.
#
# Write `paired_gain`: the mean gain, half its 95 % interval prompt by prompt (1.96 standard errors of the differences), and the half width that the same scores would have if the two models had been asked different prompts (then the two variances add up). By hand: (.5, .7, .9) after (.25, .45, .65) is a gain of .25, with a half width of 0 prompt by prompt and of .32 otherwise.

# %% [markdown] lang="ja" uid="paired" pair="8a7a68d5"
# **図の読み方。** 48プロンプトで測った星の区間はおよそ $\pm 0.05$ なので、ほとんどの損失と重なります。では、48プロンプトでは2つの損失を区別できないのでしょうか。どのモデルにとっても、易しいプロンプトと難しいプロンプトがあります。両方に*同じ*プロンプトを与えれば、その部分は差を取ると打ち消し合います。
#
# `paired_gain` を書いてください。平均の伸び、プロンプトごとに比べたときの95%区間の半幅(差の標準誤差の1.96倍)、そして、同じ得点を別々のプロンプトで得たとしたときの半幅(2つの分散が足し合わされます)を返します。手計算の例: (0.25, 0.45, 0.65) が (0.5, 0.7, 0.9) になれば、伸びは0.25、半幅はプロンプトごとに比べると0、そうでなければ0.32です。


# %% uid="paired-gain" tags=["exercise"] exercise="paired_gain"
def paired_gain(after, before):
    """en: (mean gain, half width prompt by prompt, half width with other prompts) of scores [n], [n]: three floats.
    ja: 得点 [n]、[n] から (平均の伸び, プロンプトごとに比べた半幅, 別々のプロンプトでの半幅) をfloatで返します。
    """
    # BEGIN SOLUTION
    n, gap = len(after), after - before
    paired = 1.96 * (gap.var(ddof=1) / n) ** 0.5
    apart = 1.96 * (after.var(ddof=1) / n + before.var(ddof=1) / n) ** 0.5
    return float(gap.mean()), float(paired), float(apart)
    # END SOLUTION


# %% uid="paired-gain-check" tags=["check"]
lab.check("paired_gain")
paired_gain = lab.use("paired_gain")

# %% uid="paired-use"
gain, narrow, wide = paired_gain(l05.gold(own_images, test), gold["dpo"])
print(t("l05.paired", gain=gain, paired=narrow, apart=wide))

# %% uid="loss-claims"
lab.claim("dpo_beats_sft", reason=t("l05.only_recorded"))
lab.claim("sdpo_beats_dpo", reason=t("l05.only_recorded"))
lab.claim("authors_mu_helps", reason=t("l05.only_recorded"))
lab.claim("mapo_keeps_up", reason=t("l05.only_recorded"))
lab.claim("weaker_mapo_keeps_up", reason=t("l05.only_recorded"))
lab.claim("kto_beats_dpo", reason=t("l05.only_recorded"))
lab.claim("weaker_kto_beats_dpo", reason=t("l05.only_recorded"))
lab.claim("margin_helps", reason=t("l05.only_recorded"))

# %% [markdown] lang="en" uid="own-reading" pair="782be311"
# **Reading.** The same prompts make the difference of two losses far more exact than either of them: all contrasts of the record are taken prompt by prompt. **What the record decides.** DPO, KTO, the hinge, SDPO and the anchored
# loss all gain between .08 and .09; KTO is not better than DPO, as its paper finds on another task, but a trifle worse (by .013). So is SDPO, over thirteen seeds (by .012 $[.004, .020]$): its guard takes away a part of the losers' gradient, and sixty steps of DPO break nothing here that needed it. That the losers are held back is not shown to be the reason, though: $\mu = 0.9$, the authors' value for SD 1.5, holds them back *more* and reads $.009$ $[.000, .018]$ better than 0.5 (three seeds); neither difference is one that matters by our measure of .02. MaPO gains half as much as DPO ($.045$ $[.036, .055]$). One strength serves all losses and none was tuned for it, so that says what happens when you swap the loss and nothing else. **What a quarter of the strength does.** Without a reference nothing cancels what makes one picture of a pair harder than the other for *any* model, and a strong MaPO is likely to saturate on it: at a quarter it comes nearer to DPO at full strength, but stays behind by $.032$ $[.022, .042]$ (thirteen seeds): that is a third of the gap, not all of it. (These controls were recorded in float32, the first round in bfloat16; so DPO and SDPO beside them were trained again in float32, which moved no run by more than .006.) KTO stays a trifle behind DPO, both at a quarter, as before: by $.011$ $[.002, .020]$. A margin, a larger logit $s$ asked for where the judge's scores differ more, changes nothing: $.001$ $[-.012, .014]$. IPO at the 400 that is $\kappa$ for the others barely moves: its $\tau$ fixes the gap to reach, which is a tiny one at 400. **The surprise is the baseline:** fine-tuning on the winners
# alone gains as much as DPO, the difference is smaller than .02 either way. **Why:** the winners here are right where the base is often wrong, so copying them already teaches the prompts. The paper saw the same on its weaker model (SD 1.5: SFT wins 55.5 %) and the opposite on its stronger one (SDXL),
# whose own pictures are better than the winners. What does tell them apart is $d_w$: below zero for SFT and the anchor, above for DPO.

# %% [markdown] lang="ja" uid="own-reading" pair="8797cc46"
# **結果の読み方。** 同じプロンプトで比べると、2つの損失の差は、それぞれの値よりずっと正確に測れます。記録済みの比較も、すべてプロンプトごとの差です。**記録から決まること。** DPO、KTO、hinge、SDPO、錨を加えた DPO の伸びは、どれも0.08から0.09です。KTO は、別の課題で測った論文とは
# 違って DPO より良くはなく、ごくわずかに(0.013)劣りました。SDPO も、13個のシードで比べるとわずかに劣ります(差は0.012 $[.004, .020]$)。SDPO は歯止めとして敗者の勾配を弱めますが、60ステップの DPO では、歯止めが要るほどの破綻が起きません。ただし、弱めたことが劣った原因だとはいえません。敗者の勾配をいっそう弱める $\mu = 0.9$(著者の SD 1.5用の値)のほうが、0.5のときより忠実度が $.009$ $[.000, .018]$ 高かったからです(3シード。どちらの差も、意味があるとした0.02には届きません)。MaPO の伸びは DPO の半分です($.045$ $[.036, .055]$)。強さはすべての損失で共通にし、損失ごとの調整はしていません。つまりこれは、損失だけを取り替えたときに何が起こるかの比較です。**強さを4分の1にすると。** ペアの2枚には、*どの*モデルにとっても、一方のほうがノイズを予測しにくいという差があります。参照モデルがなければこの差は打ち消されません。そのため、強さの大きい MaPO では、この差だけで損失が飽和してしまうのでしょう。4分の1の強さなら、元の強さの DPO に近づきますが、まだ $.032$ $[.022, .042]$ 劣ります(13シード)。埋まったのは、差の3分の1にとどまります(最初の記録は bfloat16、これらの対照は float32 の学習なので、比べる DPO と SDPO は float32 で学習し直しました。それによる変化は、どの実行でも0.006以下です)。KTO と DPO の強さをどちらも4分の1にしても、KTO はやはりわずかに($.011$ $[.002, .020]$)劣ります。評価役の得点差が大きいペアほど、大きなロジット $s$ を要求する「マージン付き」も、結果を変えませんでした($.001$ $[-.012, .014]$)。ほかの損失の $\kappa$ と同じ400を $\tau$ に入れた IPO は、ほとんど動きません。この $\tau$ は目標とする差を決める数で、400では目標がごく小さくなるからです。**意外なのは比較対象の SFT です。** 勝者だけのファインチューニングの伸びは DPO と変わらず、差はどちらの向きにも0.02未満です。**理由:** 基準モデルがよく
# 間違えるところで勝者は正しいので、まねるだけでもプロンプトに従うことを学べます。論文でも、弱いモデル(SD 1.5)では SFT の勝率が55.5%でした。自分の画像が勝者より良い、強いモデル(SDXL)では逆の結果です。違いが表れるのは $d_w$ で、SFT と錨を加えた DPO では負、DPO では正です。

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


def worse():
    """en: The model that was trained to prefer the losers.
    ja: 敗者を好むように学習したモデルです。
    """
    return with_bar([npo(kappa)])


# en: tier cpu ships the pictures for the default seed, made with the reference's pairs and the kappa of lab.sizes: your
# en: own changes of these do not reach them. For any other seed or tier the worse model is trained here, on your pairs
# ja: tier cpu では、既定のシードの画像が教材に付属しています。模範解答のペアと lab.sizes の kappa で作ってあるので、
# ja: ペアや kappa を変えても、この画像には反映されません。ほかのシードや tier では、悪いモデルを手元のペアで学習します
away = lab.keep("negative", l05_shipped.guided_away, run_seed, lab.sizes, worse)
plain, worded = (l05.gold(away[arm], test) for arm in l05_shipped.AWAY)
names = {t("l05.empty_prompt"): "npo", t("l05.full_prompt"): "npo_words"}
yours = {name: float((score - gold["base"]).mean()) for name, score in zip(names, (plain, worded), strict=True)}
options = {"against": "base", "reference": {t("l05.no_change"): 0.0}, "title": t("l05.npo_title")}
on_record("gold", names, yours, t("l05.gain_axis"), **options)

# %% uid="negative-claim"
e = estimate(wins(plain, gold["base"], 0.01))
measured = t("l05.m_npo", judge=t("l05.gold_judge"), prompts=len(test))
lab.claim("npo_helps", measured=measured, value=e.value, interval=(e.low, e.high), seeds=[run_seed])
e = estimate(worded - plain)
measured = t("l05.m_words", prompts=len(test))
lab.claim("npo_needs_words", measured=measured, value=e.value, interval=(e.low, e.high), seeds=[run_seed])
lab.claim("unprompted_npo_helps", reason=t("l05.only_recorded"))

# %% [markdown] lang="en" uid="negative-reading" pair="640f090f"
# **What you see: the opposite of the paper.** Guidance away from the bad model loses to plain guidance, a little when it is asked for nothing (a win rate of .44, ties counting half: 17 % of the prompts got better, 29 % worse), by far when it is asked for the prompt. Two reasons. First, our preference is
# faithfulness: without the prompt nobody knows what would be wrong, so the empty branch has only drifted. A first control trains the model to avoid *with* empty prompts, as it is asked for them: it is no better signpost, the win rate is $.458$ $[.418, .497]$. The pairs hold nothing that an empty prompt could learn. The paper's preferences were people's, and an ugly picture is ugly without a prompt. Second, the other control, the one in the chart:
# asking the bad model for the prompt removes the difference between *prompt* and *no prompt* from guidance, and that difference was doing most of the work. It shows that much and no more: against plain guidance two things change in it at once, for what is subtracted is another model *and* has the prompt. **What would change it:** a preference that shows without a prompt; or mixing the negative model with the base, for which the authors' code has a setting (not tried here).

# %% [markdown] lang="ja" uid="negative-reading" pair="6009d5c2"
# **図の読み方: 論文と反対の結果です。** 悪いモデルから遠ざかる誘導は、通常の誘導に負けました。悪いモデルに空のプロンプトを与えた場合は小差(引き分けを0.5勝として勝率0.44。良くなったプロンプトは17%、悪くなったものは29%)、プロンプトそのものを与えた場合は大差です。理由は2つあります。1つ目に、ここでの選好は忠実度です。プロンプトがなければ何が誤りかが分からないので、空のプロンプトを与えた側の予測は、意味のない方向へ動いただけです。そこで1つ目の対照実験では、避けるべきモデルを、使うときと同じ*空の*プロンプトで学習しました。それでも道しるべとしては良くならず、勝率は $.458$ $[.418, .497]$ です。空のプロンプトから学べるものが、ペアの中にないのです。
# 論文の選好は人によるもので、見た目の悪い画像はプロンプトがなくても悪い画像です。2つ目は、図にあるもう1つの対照実験から分かります。悪いモデルにプロンプトを与えると、「プロンプトあり」と「なし」の差が誘導から消えますが、効いていたのは主にその差でした。ただし、この対照では、予測から差し引かれるものが、悪いモデルになることと、プロンプトを持つことの2点で同時に変わるので、分かるのはここまでです。
# **結果を左右するもの:** プロンプトがなくても表れる選好かどうかです。避けるべきモデルを基準モデルと混ぜる方法(著者のコードに設定があります)は、ここでは試していません。

# %% [markdown] lang="en" uid="side" pair="15ace629"
# ## 11. Side effects, and realism
#
# Nobody asked about the attributes that the prompts leave open. Did they move? And a second question that no preference here named: are the pictures, as a crowd, nearer to
# real ones? The paper that the article tells promises realism, so it is measured apart from faithfulness.

# %% [markdown] lang="ja" uid="side" pair="d21395af"
# ## 11. 副作用と本物らしさ
#
# プロンプトが指定していない属性については、誰も何も求めていません。それらは動いたでしょうか。もう1つ、ここでの選好が触れていない問いがあります。画像は全体として、
# 本物に近づいたでしょうか。記事が紹介する論文は本物らしさを約束しているので、忠実度とは別に測ります。

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

# %% [markdown] lang="en" uid="side-reading" pair="6a186aeb"
# **What you see.** Bars whose interval crosses zero are no news. A bar that does not is a habit the model has picked up from the winners, although no prompt asked for it; with six bars shown out of dozens, the
# largest are the luckiest too. In the second figure look at the small dots, one a seed: DPO is nearer to real pictures than the base in one seed and farther in another, and three seeds a loss tell none from another. Three losses have thirteen, and there SDPO ends a little nearer than DPO, by $1.1$ $[0.4, 1.9]$. We saw that only after looking through all pairs of losses, so take it as something to test, not as a finding. Faithful and real are two axes, and
# lesson 06 is about the second.

# %% [markdown] lang="ja" uid="side-reading" pair="57c1e954"
# **図の読み方。** 区間が0をまたぐ棒は、変化したとはいえません。またがない棒は、どのプロンプトも求めていないのに、モデルが勝者から身に付けた癖を示します。ただし、何十もの中から大きい6本を選んで見せているので、偶然大きく出たものも混じります。2つ目の図では、シードごとの小さな点を見てください。DPO は、あるシードでは
# 基準モデルより本物に近く、別のシードでは遠くなり、損失ごとに3シードでは優劣を決められません。13シードある3つの損失では、SDPO が DPO より $1.1$ $[0.4, 1.9]$ だけ本物に近くなりました。ただし、すべての組み合わせを見た後で気づいた差です。結論ではなく、次に検証すべき仮説と考えてください。忠実度と本物らしさは別の軸で、2つ目の軸はレッスン06で扱います。

# %% [markdown] lang="en" uid="take-home" pair="4b363aa6"
# ## 12. Take it home: your own pairs
#
# Everything above also works on pictures that you collected. `labkit dpo PAIRS --out runs/mine` reads a table of winners and losers (or two folders), trains, and writes a report; its page is
# `docs/own_pairs.en.md`. What it leaves is a LoRA file that needs no labkit. Here is that last step with the adapter that you trained in section 7: saved, then read by plain diffusers.

# %% [markdown] lang="ja" uid="take-home" pair="ad9bde7d"
# ## 12. 持ち帰って使う: 自分のペア
#
# ここまでのことは、自分で集めた画像でもできます。`labkit dpo ペア --out runs/mine` は、勝者と敗者の表(または2つのフォルダ)を読んで学習し、報告を書きます。使い方は `docs/own_pairs.ja.md` にあります。
# できるのは、labkit がなくても使える LoRA のファイルです。最後の手順だけを、第7節で学習したアダプタで試します。ファイルに保存し、diffusers の機能だけで読み込みます。

# %% uid="take-home-run"
from tempfile import TemporaryDirectory

from labkit.diffusion import remove_lora, save_lora
from labkit.dpo import attach
from labkit.models import load_pipeline
from labkit.models.load import quiet


def drawn(some_pipe):
    """en: One picture [1, 3, 64, 64] of the first held-out prompt, by diffusers itself.
    ja: 最初の未使用のプロンプトの画像 [1, 3, 64, 64] を、diffusers 自身の機能で描きます。
    """
    generator = torch.Generator().manual_seed(lab.seed)
    return some_pipe(test[0], num_inference_steps=lab.sizes.steps, generator=generator, output_type="pt").images


with TemporaryDirectory() as folder, quiet():
    attach(pipe.unet, "dpo", run.state)
    file = save_lora(folder, pipe, "dpo")
    mine = drawn(pipe)
    remove_lora(pipe.unet, "dpo")
    without = load_pipeline("cpu", variant="portrait-sd-base")
    without.load_lora_weights(folder, weight_name=file.name)
print(t("l05.same_pixels", largest=float((drawn(without) - mine).abs().max())))

# %% [markdown] lang="en" uid="real" pair="b4a1a46e"
# ## 13. The same on Stable Diffusion
#
# The loss knows nothing of portraits, and neither does the trainer. So run the whole chain once more, from pool to proof, with what a practitioner has: a judge scores a few candidates for each prompt, best against worst
# becomes a pair, a few dozen steps of DPO train a LoRA, and held-out prompts are drawn from the same noise before and after. `lab.real` supplies model, judges and sizes of the tier:
#
# | tier | pictures | who chooses | who only watches |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5, or SDXL with `model="sdxl"` | PickScore, or `reward="imagereward"` and others | CLIP |
# | smoke, cpu | PortraitSD, or PortraitFlow with `model="portrait-flow"` | PortraitCLIP: what the prompt names, no sunglasses, a cool background | AttributeReader, the same questions |
#
# With `lab.real(pipe, rounds=2, pools=1, runs=1, model="portrait-flow")` this very cell trains a transformer in the layout of Stable Diffusion 3, on tiers smoke and cpu. It predicts a velocity, $v = \epsilon - x_0$, in place of the
# noise: the loss is the same, of velocity errors ([Flow-DPO](https://arxiv.org/abs/2501.13918), whose authors weigh all times alike), with a `kappa` of its own; and in place of self-attention LoRA meets *joint attention*, where picture and text attend to both.
#
# Before a weight is loaded, the box says what the gpu tier will draw and train, how much memory that needs and how long it takes; without a GPU it says so for a T4.
#
# **Decide first:** one judge made the pairs, the other never did. Which of the two win rates would convince you, and how far from one half would it have to be with this many prompts?

# %% [markdown] lang="ja" uid="real" pair="b551e3a3"
# ## 13. 同じことを Stable Diffusion で
#
# 損失関数にも学習器にも、ポートレート専用の部分はありません。そこで、候補の生成から検証までの全体を、実務で手に入る道具だけでもう一度動かします。評価役がプロンプトごとに候補を採点し、最良と最悪がペアになり、数十ステップの DPO で LoRA を学習します。未使用のプロンプトの画像は、
# 学習の前後で同じノイズから生成します。モデル、評価役、規模は、tier に応じて `lab.real` が用意します。
#
# | tier | 画像 | 選ぶ評価役 | 見守るだけの評価役 |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5(`model="sdxl"` なら SDXL) | PickScore(`reward="imagereward"` などに変更できます) | CLIP |
# | smoke, cpu | PortraitSD(`model="portrait-flow"` なら PortraitFlow) | PortraitCLIP: プロンプトの指定、サングラスがないこと、寒色の背景 | AttributeReader(同じ3点) |
#
# `lab.real(pipe, rounds=2, pools=1, runs=1, model="portrait-flow")` とすると、tier smoke と cpu では、同じセルが Stable Diffusion 3と同じ構成の Transformer を学習します。このモデルは、ノイズの代わりに速度 $v = \epsilon - x_0$ を予測します。
# 損失の式は同じで、速度の誤差を使います(時刻によらず重みを一定にする [Flow-DPO](https://arxiv.org/abs/2501.13918) の方法です)。`kappa` には専用の値を使います。LoRA が入る注意の層も、自己注意ではなく、画像とテキストの両方に注意を向ける*ジョイント注意*(joint attention)です。
#
# 重みを読み込む前に、tier gpu で何をどれだけ生成・学習し、メモリと時間がどれだけかかるかを表示します。GPU がなければ、T4 での見込みを示します。
#
# **先に決めてください。** 片方の評価役はペアを作り、もう片方は何もしていません。どちらの勝率なら納得できますか。この枚数のプロンプトでは、2分の1からどれだけ離れている必要があるでしょうか。

# %% uid="real-run" tags=["slow"]
from labkit.dpo import DPOTrainer, build_pool
from labkit.metrics import win_rate

sd = lab.real(pipe, rounds=2, pools=1, runs=1)
pool = build_pool(
    sd.pipe, sd.prompts, sd.candidates, scorers=[sd.reward], seed=lab.seed, **sd.sampling
)  # fmt: skip
top, bottom, apart = choose_pairs(pool.scores[sd.reward.name])
rows = torch.arange(len(sd.prompts))[apart]
sd_pairs = PreferencePairs(
    prompts=[sd.prompts[k] for k in rows],
    winner=pool.latents[rows, top[apart]],
    loser=pool.latents[rows, bottom[apart]],
    hashes=fingerprints(sd.pipe),
)
untrained = sd.draw(sd.held_out)
with DPOTrainer(sd.pipe, sd_pairs, sd.config, [dpo(sd.kappa)]) as trainer:
    trainer.run()
    tuned = sd.draw(sd.held_out)
old, new = (sd.opinions(images, sd.held_out) for images in (untrained, tuned))
for role, a, b in zip(("reward", "judge"), new, old, strict=True):
    e = win_rate(wins(a, b, 0.0), generator=np.random.default_rng(lab.seed))
    print(t("l05.real_win", judge=sd.names[role], rate=e.value, low=e.low, high=e.high, prompts=len(a)))
strips(
    {t("l05.base"): untrained[:6], t("l05.after"): tuned[:6]},
    scores={t("l05.base"): old[0][:6], t("l05.after"): new[0][:6]},
    title=t("l05.real_title", model=sd.name, steps=sd.config.steps),
)

# %% [markdown] lang="en" uid="real-reading" pair="d03ca465"
# **Reading.** Columns share prompt and noise; the number under a picture is the score of the judge that made the pairs. With eight or sixteen prompts an interval is wide: most runs of this size decide nothing, and the lines above say so. What they do show is a chain that is complete. Take more prompts, more steps
# and your own judge, and read the second line first.
#
# On the gpu tier the adapter sits in the attention, `kappa` is the published 2500 and the micro-batch is what fits beside the judges; the losses of section 9 work there as well. The box counts work, it measured no time; this cell was tested on random weights in the layouts of Stable Diffusion 1.5 and SDXL, which shows that it runs there, and nothing about its pictures.

# %% [markdown] lang="ja" uid="real-reading" pair="ba7d04f5"
# **図の読み方。** 各列はプロンプトもノイズも同じで、画像の下の数字は、ペアを作った評価役の得点です。8個や16個のプロンプトでは区間が広く、この規模ではたいてい何も決まりません。上の行にもそう出ているはずです。分かるのは、全体がつながって動くことです。プロンプトとステップを増やし、自分の評価役を使って、
# 2行目から読んでください。
#
# tier gpu では、アダプタを注意の層に入れ、`kappa` は公開されている2500、マイクロバッチは評価役と一緒に載る大きさにしています。第9節の損失も使えます。最初に表示した見込みは計算量から求めたもので、実測ではありません。このセルは、Stable Diffusion 1.5と SDXL の構造に乱数の重みを入れたモデルで試験しています。動くことは確かめましたが、画像の質については何も分かりません。

# %% [markdown] lang="en" uid="map" pair="4f7fc388"
# ## 14. Paper, article, your numbers
#
# Where to go next: [lesson 06](06_hg_dpo.ipynb) takes the same loss, changes only who wins, and climbs from generated to real pictures.

# %% [markdown] lang="ja" uid="map" pair="95f6841f"
# ## 14. 論文、記事、自分の数値
#
# 次に進むなら、[レッスン06](06_hg_dpo.ipynb)です。同じ損失のまま、何を勝者にするかだけを変えて、生成画像から本物の画像へと登っていきます。

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz("accuracy")
lab.quiz("why_npo")
lab.quiz("same_gain")
