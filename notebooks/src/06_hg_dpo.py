# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("06", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="story" pair="63dd81f4"
# ## 1. The article, and what it leaves out
#
# This lesson belongs to the AIBR dialogue "人の画像生成を高める直接選好最適化とAIフィードバック" on HG-DPO ([arXiv 2405.20216](https://arxiv.org/abs/2405.20216)).
# Three of its sentences are put to the test:
#
# 1. Show the model pairs of a good and a bad photograph, and it learns what is good.
# 2. An AI as filter and teacher replaces the raters, and costs go down.
# 3. Not only quality improves, but what makes a person look human.
#
# The dialogue tells version 1 of the paper: an AI makes pairs, DPO learns from them, and a changed loss keeps colours from drifting. Version 2 adds the part
# that this lesson is about: **real photographs as winners**, and a **curriculum** of three stages that leads up to them, because taking them as winners at
# once destroyed the authors' model. You will run both, and the dull control that such tables need.
#
# | the article's word | this course | in code |
# |---|---|---|
# | AI feedback | training judge: PortraitCLIP, makes the pairs and never measures | `judge` |
# | human evaluation | gold judge: AttributeReader, measures and never trains | `l06.gold` |
# | good and bad photograph | preference pair: winner and loser | `pairs.easy` |
# | fine-tuning | fine-tuning, "SFT" in tables | `sft` |
# | what makes a person look human | faithfulness and realism, measured apart | `gold`, `distance` |

# %% [markdown] lang="ja" uid="story" pair="20ee09b5"
# ## 1. 記事の主張と、そこに書かれていないこと
#
# このレッスンで読む記事は、HG-DPO([arXiv 2405.20216](https://arxiv.org/abs/2405.20216))を解説した AIBR の対話「人の画像生成を高める直接選好最適化とAIフィードバック」です。
# 次の3つの主張を確かめます。
#
# 1. 良い写真と悪い写真の対を見せれば、モデルは何が良いかを学ぶ。
# 2. AI がフィルタ兼教師役になれば、人手の評価は要らず、コストが下がる。
# 3. 画質だけでなく、「人らしさ」まで良くなる。
#
# 記事が紹介しているのは論文の第1版です。AI がペアを作り、DPO で学習し、損失に手を加えて色のずれを抑えます。第2版で加わったのが、このレッスンの主題です。
# **実写画像を勝者にすること**と、そこへ3段階で近づく**カリキュラム**です。いきなり実写を勝者にすると、著者らのモデルは壊れてしまいました。ここでは両方を自分で
# 実行し、こうした表に欠かせない地味な対照実験も加えます。
#
# | 記事の言葉 | この教材の言葉 | コード |
# |---|---|---|
# | AI フィードバック | 学習用の評価役: PortraitCLIP。ペアを作るだけで、測定はしない | `judge` |
# | 人の評価 | 正解の評価役: AttributeReader。測定するだけで、学習には使わない | `l06.gold` |
# | 良い写真と悪い写真の対 | 選好ペア: 勝者と敗者 | `pairs.easy` |
# | 専門データでのファインチューニング | ファインチューニング(表では SFT) | `sft` |
# | 人らしさ | 忠実度と本物らしさの2つに分けて測る | `gold`, `distance` |

# %% uid="models"
import numpy as np
import torch

from IPython.display import display

from labkit.diffusion import decode_latents, image_generators, sample
from labkit.dpo import Term, best_and_worst, build_pool, dpo, sft, step_coefficient
from labkit.figures import bar_with_interval, curve_with_interval, image_grid, recorded_means, recorded_plane, strips
from labkit.figures.widgets import choice, explore, slider, text
from labkit.studies import l06, l06_shipped, l06_world, means

sizes = lab.sizes
pipe, reader, judge = l06.models().pipe, l06.models().reader, l06.models().judge
world = l06_shipped.world().first(sizes.prompts)
run_seed = l06_world.SEED + lab.seed
held_out = l06.half_named(128, 20_000)[1][: sizes.test_prompts]


def as_pictures(latents):
    """en: Latents [n, C, h, w] as pictures in [-1, 1].
    ja: 潜在変数 [n, C, h, w] を、値が [-1, 1] の画像にします。
    """
    with torch.no_grad():
        return decode_latents(pipe, latents).clamp(-1, 1)


# %% uid="marks" tags=["hide-input"]
from labkit.portraits import ATTRIBUTES, attribute_name, value_name
from labkit.portraits.parse import parse_caption


def marks(pictures, texts):
    """en: Per picture the named attributes with what the gold judge says: ○ right, × wrong.
    ja: 画像ごとに、指定された属性と正解の評価役の判定(○ 正しい、× 誤り)を並べます。
    """
    pictures = torch.stack(list(pictures))
    read = {a: p.argmax(1).tolist() for a, p in reader.probabilities(pictures).items()}
    asked = [parse_caption(text).items() for text in texts]
    return [
        "\n".join(f"{'○' if ATTRIBUTES[a][read[a][i]] == v else '×'} {value_name(a, v, lab.lang)}" for a, v in named)
        for i, named in enumerate(asked)
    ]


def marked(rows, texts, bare=None, **options):
    """en: Rows of pictures, one column per prompt, with a mark per named attribute; the prompts in full below.
    ja: 列ごとに同じプロンプトの画像を並べ、指定された属性に印を付けます。その下に、プロンプトの全文を表示します。
    """
    captions = {name: marks(pictures, texts) for name, pictures in rows.items()}
    display(strips((bare or {}) | rows, captions=captions, **options))
    print("\n".join(f"{k + 1}. {text}" for k, text in enumerate(texts)))


# %% uid="first-picture"
shown = {name: as_pictures(latents)[: len(held_out)] for name, latents in world.shown.items()}
right = {name: l06.gold(images, held_out[: len(images)]) for name, images in shown.items()}
change = right["hg"] - right["base"]
order = np.argsort(change)
# en: where it rose most, and where it fell most
# ja: 最も上がった列と、最も下がった列
columns = [int(i) for i in [*order[::-1][:4], *order[:2]]][: len(change)]
names = {"base": t("l06.base"), "easy": t("l06.easy"), "hg": t("l06.hg")}
print(t("l06.better_worse", better=int((change > 0.05).sum()), worse=int((change < -0.05).sum()), total=len(change)))
marked(
    {names[key]: [shown[key][i] for i in columns] for key in names},
    [held_out[i] for i in columns],
    bare={t("l06.real"): as_pictures(world.real[: len(columns)])},
    scores={names[key]: [right[key][i] for i in columns] for key in names},
    title=t("l06.first_title"),
)

# %% [markdown] lang="en" uid="first-reading" pair="aef58c41"
# **What you see.** Below the strip of real portraits (of other people) three models draw the same held-out prompts from the same noise. The number is the
# gold judge's mean probability of what the prompt names, the marks say what the picture shows: ○ as asked, × not. The base draws sharp pictures and reads its prompts badly: it was trained on captions in which each
# attribute but the style was wrong two times in five, as captions from the web are. The columns are the four where the number rose most and the two where it fell most;
# the line above counts all of them, so look at the losers as well.
#
# Now compare the *texture* with the top row. Before the VAE took them in, the real portraits got a fine grain, as photographs have it. Little of it comes out of the VAE: on a screen you see a mottled background
# at most, and section 5 measures the rest. The base has never seen grain, and no prompt names it. So there are two things to learn, and they need two measures:
#
# * **faithfulness**: is what the prompt names in the picture? Gold judge, higher is better.
# * **realism**: do the pictures lie where real ones lie? Kernel distance to real portraits in the gold judge's features, smaller is nearer.
#
# Written down when one seed was known, and kept for all later ones: both measures, prompts that no training saw, and the smallest effect that matters for each claim (`claims.yaml`).
# Which row made the difference in which measure? Keep your guess for section 7.

# %% [markdown] lang="ja" uid="first-reading" pair="7e00fe39"
# **図の読み方。** 一番上は本物のポートレート(別の人物)です。その下の3行では、3つのモデルが同じ未使用のプロンプトを同じノイズから描いています。数字は、プロンプトが指定した
# 属性に正解の評価役が与えた確率の平均で、その下の印は属性ごとの判定です(○は指定どおり、×は誤り)。基準モデルは鮮明な絵を描きますが、プロンプトをうまく読めません。Web のキャプションのように、画風以外の各属性が5回に2回は間違った
# キャプションで学習したからです。列は、数字が最も上がった4つと、最も下がった2つです。図の上の行には全体の数が出ているので、悪くなったものも確認してください。
#
# 次に、一番上の行と*質感*を比べてください。本物のポートレートには、VAE に通す前に、写真のような細かい粒(粒状感)を加えてあります。VAE を通ると粒はほとんど残らず、画面では背景の色むらが分かる程度です。
# 残りは第5節で測ります。基準モデルは粒状感を見たことがなく、どのプロンプトもそれを指定しません。つまり学ぶべきことは2つあり、尺度も2つ必要です。
#
# * **忠実度**: プロンプトが指定したものが描かれているか。正解の評価役で測り、高いほど良い。
# * **本物らしさ**: 本物と同じ場所に分布しているか。正解の評価役の特徴量で測った、本物とのカーネル距離。小さいほど近い。
#
# 最初の1シードを見た時点で決め、その後は変えていないこと: この2つの尺度、学習に使っていないプロンプト、主張ごとの意味のある最小の差(`claims.yaml`)。
# どの行が、どちらの尺度を良くしたのでしょうか。予想は第7節まで取っておいてください。

# %% [markdown] lang="en" uid="pool" pair="ccf31c1b"
# ## 2. The pool: let the model compete with itself
#
# Nobody draws better pictures for us; the model's own luck does. For each prompt it draws $N$ pictures from different noise, the training judge scores them, and
# the best against the worst becomes a pair. Why the extremes? The label of a pair is right more often the wider the gap. For scores that scatter normally with
# standard deviation $\sigma$ the expected gap is $\sigma\,R_N$ with $R_N$ the expected range of $N$ standard normal numbers: $R_2 = 1.13$, $R_8 = 2.85$,
# $R_{20} = 3.73$. Twenty candidates cost 2.5 times as much as eight and widen the gap by a third.
#
# Where does $R_N$ come from? A place $x$ lies inside of the range unless all $N$ scores are below it, which happens with probability $\Phi(x)^N$, or all are above, with $(1 - \Phi(x))^N$; $\Phi$ is the normal distribution function (`torch.special.ndtr`). The length of the range is the sum of all places inside of it, so
#
# $$R_N = \int \big(1 - \Phi(x)^N - (1 - \Phi(x))^N\big)\,dx.$$
#
# Write `expected_range` as a sum over a fine grid from $-8$ to 8. By hand: $R_1 = 0$ and $R_2 = 2/\sqrt\pi$. (Which picture is best and which is worst you chose in lesson 05; here `best_and_worst` of labkit does it.)

# %% [markdown] lang="ja" uid="pool" pair="a43b039b"
# ## 2. 候補画像のプール: モデル自身に競わせる
#
# 手本になる良い絵を描いてくれる人はいません。頼れるのは、モデル自身がたまに出す「当たり」です。プロンプトごとに異なるノイズから $N$ 枚を生成し、学習用の評価役が採点して、最高と最低の2枚をペアに
# します。両端を選ぶのは、得点差が大きいほどペアの勝敗を間違えにくいからです。得点が標準偏差 $\sigma$ の正規分布でばらつくなら、得点差の期待値は $\sigma\,R_N$ です。
# $R_N$ は $N$ 個の標準正規乱数の範囲(最大と最小の差)の期待値で、$R_2 = 1.13$、$R_8 = 2.85$、$R_{20} = 3.73$ です。候補を8枚から20枚に増やすと費用は2.5倍になりますが、得点差は
# 3割ほどしか広がりません。
#
# $R_N$ はどこから来るのでしょうか。位置 $x$ が範囲の内側にないのは、$N$ 個の得点がすべてそれより下にあるか(確率 $\Phi(x)^N$)、すべて上にあるとき(確率 $(1 - \Phi(x))^N$)だけです。$\Phi$ は正規分布の累積分布関数です(`torch.special.ndtr`)。範囲の長さは、内側にある位置をすべて足したものなので、
#
# $$R_N = \int \big(1 - \Phi(x)^N - (1 - \Phi(x))^N\big)\,dx.$$
#
# これを、$-8$ から8までの細かい格子の上の和として計算する `expected_range` を書いてください。手計算の例: $R_1 = 0$、$R_2 = 2/\sqrt\pi$ です(最良と最悪の画像を選ぶ関数はレッスン05で書いたので、ここでは labkit の `best_and_worst` を使います)。


# %% uid="expected-range" tags=["exercise"] exercise="expected_range"
def expected_range(n):
    """en: Expected largest minus smallest of n independent standard normal numbers, a float.
    ja: n 個の独立な標準正規乱数の、最大と最小の差の期待値(float)です。
    """
    # BEGIN SOLUTION
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    below = torch.special.ndtr(x)
    return float(torch.trapezoid(1 - below**n - (1 - below) ** n, x))
    # END SOLUTION


# %% uid="expected-range-check" tags=["check"]
lab.check("expected_range")
expected_range = lab.use("expected_range")

# %% [markdown] lang="en" uid="pool-live" pair="309c1bfd"
# A few prompts live, so that you see what a pool is; the whole pool of 96 prompts with 8 candidates each took minutes and is shipped.

# %% [markdown] lang="ja" uid="pool-live" pair="46766350"
# プールがどういうものかを見るために、まず数個のプロンプトだけをその場で生成します。96プロンプト、各8枚のプール全体は生成に数分かかるので、教材に含めてあります。

# %% uid="pool-run" tags=["slow"]
live = build_pool(pipe, world.prompts[: sizes.live], world.pool.n, scorers=[judge], seed=run_seed, steps=sizes.steps)
live_scores = live.scores[judge.name]
best, worst = best_and_worst(live_scores)
frames = {p * live.n + int(best[p]): "winner" for p in range(len(best))}
frames |= {p * live.n + int(worst[p]): "loser" for p in range(len(worst))}
image_grid(
    as_pictures(live.latents.flatten(0, 1)),
    scores=live_scores.flatten(),
    frames=frames,
    columns=live.n,
    row_labels=list(live.prompts),
    title=t("l06.pool_title"),
)

# %% uid="gaps"
scores = world.pool.scores["judge"]
counts = list(range(2, world.pool.n + 1))
gaps = np.array([(scores[:, :n].max(1).values - scores[:, :n].min(1).values).numpy() for n in counts]).T  # [P, N]
half = 1.96 * gaps.std(0) / len(gaps) ** 0.5
curve_with_interval(
    counts,
    {
        t("l06.measured_gap"): (gaps.mean(0), gaps.mean(0) - half, gaps.mean(0) + half),
        t("l06.normal_gap"): [scores.std(1).mean().item() * expected_range(n) for n in counts],
    },
    xlabel=t("l06.n"),
    ylabel=t("l06.gap"),
    title=t("l06.gap_title"),
)

# %% [markdown] lang="en" uid="gaps-reading" pair="f05e428e"
# **Reading.** In the grid each row is one prompt; green won, orange lost. Look for a pair whose label you would not sign: the judge is a network, too. In the
# curve the gap grows fast at first and then flattens, as the range of normal numbers does. It can lie a little below that curve, because the score ends at 1:
# where two candidates are already perfect, more of them change nothing. A sharper base would flatten it sooner.

# %% [markdown] lang="ja" uid="gaps-reading" pair="de5db909"
# **図の読み方。** 格子の各行が1つのプロンプトで、緑の枠が勝者、橙色の枠が敗者です。自分なら逆の判定をするペアを探してください。評価役もネットワークにすぎません。曲線では、得点差は最初は急に広がり、
# その後は頭打ちになります。正規乱数の範囲と同じ形です。実測が少し下回ることがあるのは、得点の上限が1だからです。すでに完璧な候補が2枚あれば、候補を増やしても差は広がりません。
# 基準モデルがもっと優秀なら、頭打ちはさらに早く来ます。

# %% [markdown] lang="en" uid="judging" pair="387dafdd"
# ## 3. Be the judge
#
# The second sentence of the article says that an AI replaces the raters. Find out how far it agrees with you. Type one letter per pair: l for left, r for right,
# t for a tie; a deleted letter takes a vote back. Below ten votes a simulated colleague stands in, who sees what the gold judge sees, guesses on one pair in
# five, and likes the left side.
#
# The plain share of equal votes misleads: two raters who both say "left" nine times in ten agree on 82 % of pairs without looking. Cohen's $\kappa$ takes
# that out (it shares its letter with the strength of DPO, nothing else), $\kappa = (p_o - p_e)/(1 - p_e)$: $p_o$ is the share of equal labels, $p_e$ the share that two raters with these label frequencies reach by chance,
# $p_e = \sum_v f_1(v)\,f_2(v)$. In the example $p_e = 0.9^2 + 0.1^2 = 0.82$, and $\kappa = 0$.

# %% [markdown] lang="ja" uid="judging" pair="9c2efaf4"
# ## 3. 自分で評価する
#
# 記事の2つ目の主張は、AI が人の評価を置き換えるというものです。評価役がどのくらい自分と一致するかを調べましょう。1組ごとに1文字、左なら l、右なら r、引き分けなら t と入力します。
# 文字を消せば投票を取り消せます。投票が10組に満たない場合は、仮想の同僚の投票を使います。この同僚には正解の評価役と同じものが見えていますが、5組に1組は当てずっぽうで、左側を好みます。
#
# 単純な一致率には落とし穴があります。どちらも10回中9回は「左」と答える2人は、画像を見なくても82%の組で一致します。コーエンの $\kappa$ は、この分を
# 差し引いた $\kappa = (p_o - p_e)/(1 - p_e)$ です(DPO の強さ $\kappa$ とは、文字が同じだけで別の量です)。$p_o$ は一致した割合、$p_e$ は同じラベル頻度の2人が偶然一致する割合で、$p_e = \sum_v f_1(v)\,f_2(v)$ です。先ほどの例では
# $p_e = 0.9^2 + 0.1^2 = 0.82$ となり、$\kappa = 0$ です。


# %% uid="kappa" tags=["exercise"] exercise="cohen_kappa"
def cohen_kappa(first, second):
    """en: Agreement of two raters beyond chance: two equally long lists of labels -> float; 1 is perfect, 0 is chance.

    Raters who both give one and the same label throughout agree perfectly by convention.
    ja: 偶然を除いた、2人の評価者の一致度です。同じ長さのラベルのリスト2つから float を返します。

    1は完全一致、0は偶然と同じ程度です。
    2人とも最初から最後まで同じ1つのラベルを付けた場合は、完全一致とみなします。
    """
    # BEGIN SOLUTION
    labels = set(first) | set(second)
    observed = np.mean([a == b for a, b in zip(first, second, strict=True)])
    chance = sum((first.count(v) / len(first)) * (second.count(v) / len(second)) for v in labels)
    return 1.0 if chance == 1 else float((observed - chance) / (1 - chance))
    # END SOLUTION


# %% uid="kappa-check" tags=["check"]
lab.check("cohen_kappa")
cohen_kappa = lab.use("cohen_kappa")

# %% uid="vote-widget" tags=["widget"]
rng = np.random.default_rng(lab.seed)
prompts = world.prompts
duels = [(p, *rng.choice(world.pool.n, 2, replace=False)) for p in rng.integers(0, len(prompts), sizes.duels)]
sides = [as_pictures(torch.stack([world.pool.latents[d[0], d[k]] for d in duels])) for k in (1, 2)]


def show_duel(votes):
    k = min(len(votes), len(duels) - 1)
    number = t("l06.duel", number=k + 1, total=len(duels), prompt=prompts[duels[k][0]])
    return image_grid([sides[0][k], sides[1][k]], columns=2, title=number)


voting = explore(show_duel, {"votes": text(t("l06.votes"))})
voting

# %% uid="agreement"
from labkit.metrics import krippendorff_alpha, sign_test

duel_prompts = [prompts[p] for p, _, _ in duels]


def labels(left, right, margin=0.02):
    return ["tie" if abs(a - b) <= margin else "left" if a > b else "right" for a, b in zip(left, right, strict=True)]


truth = labels(l06.gold(sides[0], duel_prompts), l06.gold(sides[1], duel_prompts))
machine = labels(*[[float(scores[d[0], d[k]]) for d in duels] for k in (1, 2)])
colleague = [str(rng.choice(["left", "left", "right"])) if rng.random() < 0.2 else label for label in truth]
keys = {"l": "left", "r": "right", "t": "tie"}
mine = [keys[key] for key in voting.values["votes"].lower() if key in keys][: len(duels)]
person = mine if len(mine) >= 10 else colleague
judged = {t("l06.judge"): machine[: len(person)], t("l06.gold"): truth[: len(person)]}

# %% uid="agreement-picture"
draws = [rng.integers(0, len(person), len(person)) for _ in range(300)]


def kappa_interval(other):
    """en: kappa and its bootstrap interval over pairs.
    ja: kappa と、ペア単位のブートストラップ区間です。
    """
    values = [cohen_kappa([person[i] for i in d], [other[i] for i in d]) for d in draws]
    middle = cohen_kappa(person, other)
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (middle, middle)
    return middle, min(low, middle), max(high, middle)


left, right_side = person.count("left"), person.count("right")
print(t("l06.position", left=left, right=right_side, p=sign_test(left, right_side)))
print(t("l06.alpha", alpha=krippendorff_alpha([person, *judged.values()])))
found = tuple(np.array([kappa_interval(other) for other in judged.values()]).T)
bar_with_interval(list(judged), found, xlabel=t("l06.kappa"), title=t("l06.kappa_title", n=len(person)))

# %% [markdown] lang="en" uid="agreement-reading" pair="846569d7"
# **Reading.** Around $\kappa = 0.4$ raters agree moderately, above $0.8$ nearly always. The interval of forty pairs is wide: it spans several tenths, so forty votes tell a useful
# judge from a useless one and not more. The first line asks whether your side mattered: a small $p$ would mean that you prefer left or right whatever is
# shown. If the training judge disagrees with you where the gold judge agrees, that gap is what training will exploit; section 8 shows it.

# %% [markdown] lang="ja" uid="agreement-reading" pair="7d7dccdc"
# **図の読み方。** $\kappa = 0.4$ 前後なら中程度の一致、$0.8$ を超えればほぼ常に一致です。40組では区間の幅が0.1の数倍になるので、役に立つ評価役とそうでないものを区別するのがやっとです。最初の
# 行は、左右の位置が投票に影響したかどうかです。$p$ が小さければ、内容と関係なく左または右を選んでいることになります。正解の評価役は自分と一致するのに学習用の評価役は一致しない場合、
# 学習は、その食い違いを利用します。それを第8節で確かめます。

# %% [markdown] lang="en" uid="colour" pair="8ba629dc"
# ## 4. The colours that the judge smuggles in
#
# Give the judge a secret taste: its score plus a bonus for warm pictures. No prompt asks for it. The best of many candidates is then warm more often than the
# worst, and DPO cannot tell what the label was for: whatever separates winners from losers on average is learnt. In the paper twenty candidates turned the
# mean hue by 99 degrees, two by 10.
#
# The cure, *statistics matching*, compares one denoising step of the model with the same step of the reference, and punishes a difference of the *channel means*, because that is
# where winners and losers differ. One DDPM step is
# $x_{t-1} = \frac{1}{\sqrt{\alpha_t}}\big(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon\big) + \sigma_t z$. Give both models the same $x_t$ and the same $z$ and subtract: everything but
# the predictions cancels, and what is left is $-c_t\,(\epsilon_\theta - \epsilon_{\mathrm{ref}})$ with $c_t = \beta_t / \sqrt{\alpha_t\,(1-\bar\alpha_t)}$. So
#
# $$L = c_t^2\,\sum_k \big(\mathrm{mean}_{hw}(\epsilon_\theta - \epsilon_{\mathrm{ref}})_k\big)^2,$$
#
# $k$ over channels, the mean over the pixels of one channel. Both predictions are there already: no further forward pass. Write it. By hand: two channels whose
# difference is 2 everywhere and $c = 0.5$ give $0.25 \cdot (4 + 4) = 2$.

# %% [markdown] lang="ja" uid="colour" pair="4d24caed"
# ## 4. 評価役が持ち込む色
#
# 評価役に、ひそかな好みを持たせます。暖色の画像なら、得点を上乗せするのです。暖色を求めるプロンプトはありません。それでも、多数の候補から選んだ最高の画像は、最低の画像より暖色であることが多くなります。
# DPO には、何を理由に勝敗が付いたのかが分かりません。勝者と敗者に平均して差があるものなら、何でも学習します。論文では、候補20枚で平均の色相が99度、2枚でも10度動きました。
#
# 対策となる*統計量合わせ*(statistics matching)では、モデルと参照モデルで同じノイズ除去を1ステップ進め、*チャネル平均*の差に罰則を与えます。勝者と敗者の違いがそこにあるからです。DDPM の1ステップは
# $x_{t-1} = \frac{1}{\sqrt{\alpha_t}}\big(x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,\epsilon\big) + \sigma_t z$ です。両方のモデルに同じ $x_t$ と同じ $z$ を与えて差を取ると、予測以外はすべて消え、
# 残るのは $-c_t\,(\epsilon_\theta - \epsilon_{\mathrm{ref}})$、ただし $c_t = \beta_t / \sqrt{\alpha_t\,(1-\bar\alpha_t)}$ です。したがって、
#
# $$L = c_t^2\,\sum_k \big(\mathrm{mean}_{hw}(\epsilon_\theta - \epsilon_{\mathrm{ref}})_k\big)^2,$$
#
# となります。$k$ はチャネル、平均はそのチャネルの全画素にわたります。2つの予測はすでに手元にあるので、順伝播を追加する必要はありません。これを書いてください。手計算の例: 2つのチャネルの差が
# どこでも2で $c = 0.5$ なら、$0.25 \cdot (4 + 4) = 2$ です。


# %% uid="statistics" tags=["exercise"] exercise="statistics_loss"
def statistics_loss(eps, eps_ref, c):
    """en: Statistics matching per image: eps, eps_ref [B, C, h, w], c [B] -> [B].
    ja: 画像ごとの統計量合わせの損失です。eps, eps_ref [B, C, h, w] と c [B] から [B] を返します。
    """
    # BEGIN SOLUTION
    shift = (eps - eps_ref).mean((2, 3))  # [B, C]
    return c**2 * (shift**2).sum(1)
    # END SOLUTION


# %% uid="statistics-check" tags=["check"]
lab.check("statistics_loss")
statistics_loss = lab.use("statistics_loss")


# %% uid="statistics-term"
def matching(step):
    c = step_coefficient(step.t, step.alphas_cumprod)
    return sizes.statistics * statistics_loss(step.winner_pred, step.ref_winner_pred, c)


your_term = Term("statistics", matching, {"weight": sizes.statistics}, needs="predictions")
warm = world.pool.scores["warm"]
rows, gap = torch.arange(len(warm)), []
for n in counts:
    best, worst = best_and_worst(warm[:, :n])
    difference = world.pool.latents[rows, best] - world.pool.latents[rows, worst]  # [P, C, h, w]
    gap.append(float(difference.mean((0, 2, 3)).norm()))
curve_with_interval(counts, gap, xlabel=t("l06.n"), ylabel=t("l06.channel_gap"), title=t("l06.gap_by_n"))

# %% [markdown] lang="en" uid="colour-record" pair="1a2824f0"
# Before anything is trained, winners and losers already differ in their mean latent, and more so the more candidates there are. What training makes of it is
# recorded: the study trained three models per seed on the tainted judge's pairs (four minutes of one core a seed, which is why it is not run here; section 7 lets you
# train one of them).

# %% [markdown] lang="ja" uid="colour-record" pair="36932a9f"
# 学習の前から、勝者と敗者では潜在変数の平均が異なり、候補が多いほどその差は広がります。学習するとどうなるかは、記録済みの実験で見ます。偏った評価役のペアで、シードごとに
# 3つのモデルを学習してあります(1シードに1コアで約4分かかるので、ここでは実行しません。第7節では、そのうち1つを自分で学習できます)。

# %% uid="record-figure" tags=["hide-input"]
names |= {
    "warm_two": t("l06.warm_two"),
    "warm_all": t("l06.warm_all", n=world.pool.n),
    "warm_cured": t("l06.warm_cured", n=world.pool.n),
    "no_easy": t("l06.no_easy"),
    "no_normal": t("l06.no_normal"),
    "at_once": t("l06.at_once"),
    "leap": t("l06.leap"),
    "sft": t("l06.sft"),
    "real_sft": t("l06.real_sft"),
    "real_sft_careless": t("l06.real_sft_careless"),
    "sft_careless": t("l06.sft_careless"),
    "leap_careless": t("l06.leap_careless"),
    "leap_grainy": t("l06.leap_grainy"),
    "hg_words": t("l06.with_words"),
    "hg_half": t("l06.hg_half"),
    "hg_finish": t("l06.hg_finish"),
    "personal": t("l06.personal"),
    "personal_hg": t("l06.personal_hg"),
}
# en: arm -> measures of its pictures, filled below
# ja: 条件 -> 生成した画像の測定値(この後で埋めます)
results = {}


def on_record(metric, arms, xlabel, title, against=None):
    """en: Recorded means of these arms on the prompts of this run, with your own numbers where you have them.
    ja: この条件の記録済みの平均を、今回と同じプロンプトについて描き、自分の結果があれば重ねます。
    """
    recorded = means(lab.recorded, metric, {names[a]: a for a in arms}, against=against, prompts=len(held_out))
    base_value = 0.0 if against is None else results[against][metric].mean() if against in results else np.nan
    live = [a for a in arms if metric in results.get(a, ()) and np.isfinite(base_value)]
    yours = {names[a]: results[a][metric].mean() - base_value for a in live}
    if not recorded and not yours:
        return print(t("l06.no_record"))
    if not recorded:
        return bar_with_interval(list(yours), list(yours.values()), xlabel=xlabel, title=title)
    yours = {name: value for name, value in yours.items() if name in recorded}
    return recorded_means(recorded, xlabel=xlabel, yours=yours, title=title)


# %% uid="colour-run"
on_record("warmth", ["warm_two", "warm_all", "warm_cured"], t("l06.warmer"), t("l06.colour_title"), against="base")

# %% uid="claim-helper" tags=["hide-input"]
from labkit.metrics import cluster_bootstrap

measures = {
    "gold": t("l06.gold_score"),
    "judge": t("l06.judge_score"),
    "distance": t("l06.distance"),
    "warmth": t("l06.warmth"),
    "sharpness": t("l06.sharp"),
    "same_person": t("l06.same_person"),
}


def claim(id, arm, against, metric="gold"):
    """en: The recorded verdict on arm minus against, and your own difference where you have run both.
    ja: arm から against を引いた差について、記録済みの判定と、両方を実行した場合は自分の差を示します。
    """
    measured = t("l06.measure", metric=measures[metric], a=names[arm], b=names[against])
    if not {arm, against} <= set(results):
        return lab.claim(id, measured=measured, reason=t("l06.recorded_only"))
    differences = results[arm][metric] - results[against][metric]
    value, interval = float(differences.mean()), None
    if len(differences) > 1:
        low, high = cluster_bootstrap(differences, generator=np.random.default_rng(lab.seed), method="percentile")
        interval = (min(low, value), max(high, value))
    return lab.claim(id, measured=measured, value=value, interval=interval, seeds=[run_seed])


# %% uid="colour-claims"
claim("colour_grows", "warm_all", "warm_two", "warmth")
claim("statistics_cure", "warm_all", "warm_cured", "warmth")
claim("cure_is_free", "warm_cured", "warm_all", "judge")

# %% [markdown] lang="en" uid="colour-reading" pair="7f12214f"
# **Reading.** The dots are seeds, the bar a 95 % interval over seeds and prompts; zero is the base. Compare the first two rows: the same judge, the same
# steps, only more to choose from. Eight candidates carry more of the taste (.147) than two (.078), and the loss of the third row takes most of the difference back (.096): **reproduced**, both. It cost no faithfulness; the cured rows are, if anything, more faithful ($.031$ $[-.001, .063]$ by the training judge); likely because what a pair no longer spends on warmth it can spend on the prompt. The term can only act on a *mean* over pixels, so a taste for warm
# backgrounds beside cool faces would pass it untouched; and a prompt that asks for a red dress pays a little, because its mean has to move. The last
# claim says whether that price can be seen.

# %% [markdown] lang="ja" uid="colour-reading" pair="b28c2e78"
# **図の読み方。** 点はシードごとの平均、横棒はシードとプロンプトにわたる95%区間で、0が基準モデルです。まず上の2行を比べてください。評価役もステップ数も同じで、違うのは候補の数だけです。候補8枚(0.147)のほうが2枚(0.078)より好みを強く伝え、3行目で加えた統計量合わせの損失は、その差の大半を打ち消します(0.096)。
# どちらも**再現できました**。忠実度は犠牲になっていません。学習用の評価役で見ると、むしろ高いほどです($.031$ $[-.001, .063]$)。暖色に使われていた分を、ペアがプロンプトの学習に回せるからでしょう。罰則が効くのは画素の*平均*だけです。背景は暖色、顔は寒色という好みなら、この損失では防げません。また「赤い服」を求めるプロンプトでは
# 平均が動くのが正しいので、少し不利になります。その不利が目に見えるほどかどうかが、最後の主張です。

# %% [markdown] lang="en" uid="leap" pair="70eda5a0"
# ## 5. The leap, and what lies between
#
# The winners of the pool are the model's own pictures: they have no grain, so no number of them can teach it. Why not let the real picture win and a generated one
# lose, in one stage, the **leap**? A pair then differs in two things at once, in the named attributes and in the texture. Texture alone can tell winners from losers
# without reading the prompt. Where that cue is strong, the logit of a pair is soon large, its weight $\sigma(-s)$ falls towards zero
# (lesson 05), and the pair has stopped teaching before faithfulness had its turn. Between photographs and generated pictures it may well be strong. How strong is it here?
# The next cell sees nothing of a latent but its channel means, its spread and the steps between neighbours, and guesses the winner of pairs that it has not been fitted to.

# %% [markdown] lang="ja" uid="leap" pair="f0d65980"
# ## 5. 飛躍と、その間にあるもの
#
# プールの勝者はモデル自身の絵なので、粒状感がありません。何枚集めても、粒状感は教えられません。では、本物の画像を勝者、生成画像を敗者として、1段階で学習する**飛躍**ではいけないのでしょうか。
# この場合、ペアは指定した属性と質感という2つの点で同時に異なります。質感だけでも、プロンプトを読まずに勝者を見分ける手がかりになります。手がかりが強いと、ペアのロジットはすぐに大きくなり、その重み $\sigma(-s)$ は0に
# 近づきます(レッスン05)。忠実度を学ぶ番が来る前に、そのペアから学べることはなくなってしまいます。写真と生成画像なら、手がかりはおそらく強いでしょう。ここではどうでしょうか。
# 次のセルは、潜在変数のチャネルごとの平均、ばらつき、隣どうしの差だけを見て、規則を求めるのに使っていないペアの勝者を当てます。

# %% uid="shortcut"
from labkit.dpo import told_apart

pairs = world.pairs()
for name in ("leap", "easy", "normal", "hard"):
    stage = getattr(pairs, name).training()
    share, margin = told_apart(stage)
    print(t("l06.shortcut", stage=name, share=share, margin=margin, n=len(stage.prompts)))

# %% [markdown] lang="en" uid="recon-idea" pair="b37078d8"
# **Reading.** Chance is one half. The leap's winners are found by texture in about seven cases out of ten, so the cue exists. But hold it against the paper's own stages (*normal* and *hard*, the next cells make them): there it is as strong or stronger, for texture is what these stages are meant to teach. With 50 to 96 pairs
# the margins are wide; only the easy stage's cue is not clear of chance. So our leap is not the special case that the argument fears: the VAE has swallowed most of the grain, and photographs may be another matter.
# Remember that when you see what the leap does in section 7.
#
# **SDRecon** makes winners in between: noise the *real* picture up to timestep $t$ and let the base denoise it from there.
#
# ```text
# real picture --noise to t--> half drowned --base denoises, with the caption--> reconstruction
#   t = 100: almost the real picture                      t = 700: pose and colours real, texture the model's
# ```

# %% [markdown] lang="ja" uid="recon-idea" pair="b6cd983a"
# **結果の読み方。** 偶然なら半分です。飛躍の勝者は10組に7組ほど質感だけで当たるので、手がかりは確かにあります。ただし、論文の各段階(*normal* と *hard*。次のセルで作ります)と比べてください。質感はこれらの段階が教えるはずのものなので、手がかりは飛躍と同じか、さらに強くなっています。
# ペアは50〜96組なので誤差は大きく、偶然と区別できないのは easy だけです。つまり、ここでの飛躍は、先ほどの理屈が心配するような特別な場合ではありません。粒の大半を VAE が消してしまうからで、写真なら違うかもしれません。
# 第7節で飛躍の結果を見るときに、思い出してください。
#
# **SDRecon** は、その間に位置する勝者を作ります。*本物*の画像にタイムステップ $t$ までノイズを加え、そこから基準モデルでノイズ除去します。
#
# ```text
# 本物の画像 --t までノイズを加える--> 半ば埋もれた画像 --キャプション付きで基準モデルがノイズ除去--> 復元画像
#   t = 100: ほぼ本物                                     t = 700: 姿や色は本物、質感はモデルのもの
# ```

# %% uid="recon-widget" tags=["widget"]
from labkit.dpo import sd_recon


def reconstructed(level):
    x = sd_recon(pipe, world.real[:4], prompts[:4], level, generators=image_generators(4, run_seed), steps=sizes.steps)
    pictures = {t("l06.real"): as_pictures(world.real[:4]), t("l06.recon"): as_pictures(x)}
    return strips(pictures, captions={t("l06.recon"): prompts[:4]})


explore(reconstructed, {"level": slider(t("l06.timestep"), 0, 1000, 500, 50)})

# %% uid="recon"
judged_real = judge(as_pictures(world.real), prompts)
per_level = torch.stack([judged_real, *world.recon_scores.values()])  # [levels, P]
mean, half = per_level.mean(1).numpy(), 1.96 * per_level.std(1).numpy() / per_level.shape[1] ** 0.5
curve_with_interval(
    [0, *world.recon_scores],
    {t("l06.recon_score"): (mean, mean - half, mean + half)},
    xlabel=t("l06.timestep"),
    ylabel=t("l06.judge_score"),
    reference={t("l06.easy_winners"): float(scores.max(1).values.mean()), t("l06.pool_mean"): float(scores.mean())},
    title=t("l06.recon_title"),
)

# %% [markdown] lang="en" uid="normal" pair="b3d1b8a0"
# **Reading.** The further the reconstruction walks from the real picture, the more of the base's misreading returns: the curve falls from the real pictures towards
# the mean of the pool. The window from 400 to 700 is the paper's choice for the middle: realistic where the judge looks, the model's own in texture.
#
# The **normal stage** takes for each picture the best scored of these levels as winner, against the *easy winner* as loser. It keeps a pair only if the
# new winner scores higher; otherwise it would teach to prefer the worse one. Write that choice. Equal scores teach no direction: they are dropped. Among equal
# levels the first (smallest $t$, nearest to the real picture) counts. By hand: scores $(0.7, 0.9)$ against an easy winner of $0.8$ give level 1, kept;
# against $0.9$ the same level, dropped.

# %% [markdown] lang="ja" uid="normal" pair="fc50b41c"
# **図の読み方。** 復元画像が本物から離れるほど、基準モデルの読み違いが戻ってきます。曲線は、本物の画像の得点からプールの平均に向かって下がります。400から700の範囲は、論文が中間として
# 選んだものです。評価役が見る点では本物に近く、質感はモデル自身のものです。
#
# **normal 段階**では、画像ごとに、この範囲で得点が最高の復元画像を勝者とし、*easy の勝者*を敗者とします。ただし、新しい勝者の得点の方が高いペアだけを残します。そうしないと、悪い方を
# 好むように教えてしまうからです。この選択を書いてください。同点のペアからは、どちらへ進むべきかを学べないので除きます。最高点の復元画像が複数あれば、先にあるもの($t$ が小さく、本物に近いもの)を採用します。
# 手計算の例: 得点 $(0.7, 0.9)$ で easy の勝者が $0.8$ なら、列1を選んで残します。$0.9$ なら、選ぶ列は同じですが除きます。


# %% uid="normal-winners" tags=["exercise"] exercise="normal_winners"
def normal_winners(recon_scores, easy_scores):
    """en: Best level of each picture, and whether its pair is kept.

    recon_scores [P, levels], easy_scores [P] -> column of the winner (int64 [P]), kept (bool [P]).
    ja: 画像ごとに最良の復元画像と、そのペアを残すかどうかを返します。

    recon_scores [P, levels] と easy_scores [P] から、勝者の列(int64 [P])と、残すかどうか(bool [P])を返します。
    """
    # BEGIN SOLUTION
    level, _ = best_and_worst(recon_scores)
    top = recon_scores[torch.arange(len(level)), level]
    return level, top > easy_scores
    # END SOLUTION


# %% uid="normal-winners-check" tags=["check"]
lab.check("normal_winners")
normal_winners = lab.use("normal_winners")

# %% uid="normal-use"
middle = [level for level in world.recons if level != 100]
recon_scores, easy_scores = torch.stack([world.recon_scores[m] for m in middle], 1), scores.max(1).values
level, kept = normal_winners(recon_scores, easy_scores)
better = recon_scores.gather(1, level[:, None])[:, 0] > easy_scores
lab.verdict(t("l06.kept", kept=int(kept.sum()), total=len(kept)), torch.equal(kept, better))
print(t("l06.levels", levels=", ".join(f"t = {m}: {int(((level == k) & kept).sum())}" for k, m in enumerate(middle))))
few_kept = [int(i) for i in kept.nonzero().flatten()[:5]] or [0]
strips(
    {
        t("l06.real"): as_pictures(world.real[few_kept]),
        t("l06.hard_winner"): as_pictures(world.recons[100][few_kept]),
        t("l06.normal_winner"): as_pictures(torch.stack([world.recons[middle[int(level[i])]][i] for i in few_kept])),
        t("l06.easy_winner"): as_pictures(torch.stack([world.pool.latents[i, scores[i].argmax()] for i in few_kept])),
        t("l06.easy_loser"): as_pictures(torch.stack([world.pool.latents[i, scores[i].argmin()] for i in few_kept])),
    },
    captions={t("l06.easy_loser"): [prompts[i] for i in few_kept]},
    title=t("l06.ladder"),
)

# %% [markdown] lang="en" uid="curriculum" pair="61061fef"
# This strip *is* the curriculum, read from the bottom: in each stage a row loses against the row above it. Why are so few pairs left for the middle? The best of
# eight candidates often has every named attribute already, and nothing can beat a perfect score.
#
# ## 6. The curriculum
#
# | stage | winner | loser | is meant to teach |
# |---|---|---|---|
# | easy | best of the pool | worst of the pool | faithfulness |
# | normal | best reconstruction, $t$ = 400 to 700 | easy winner | both, in small steps |
# | hard | reconstruction, $t$ = 100 | normal winner | realism |
#
# Each stage starts from the model that the last one left, and that model is its reference: the first loss is $\ln 2$ again. (The paper does not say which
# reference it used.) The steps are 60 + 20 + 20, not the paper's 15 : 1 : 1, which would leave two stages of six steps each. You know the training of the easy stage from lesson 05, so for the default seed its adapter comes with the course; you train the other two. What will the base, easy alone and all three stages
# differ by? Predict first.

# %% [markdown] lang="ja" uid="curriculum" pair="6fd74038"
# この図がそのままカリキュラムです。下から読むと、どの段階でも、ある行がすぐ上の行に負けます。中間に残るペアが少ないのは、8枚中の最良が、指定した属性をすでにすべて満たしていることが
# 多いからです。満点の画像に勝てるものはありません。
#
# ## 6. カリキュラム
#
# | 段階 | 勝者 | 敗者 | 教えるはずのもの |
# |---|---|---|---|
# | easy | プールの最高 | プールの最低 | 忠実度 |
# | normal | 最良の復元画像、$t$ = 400〜700 | easy の勝者 | 両方を少しずつ |
# | hard | 復元画像、$t$ = 100 | normal の勝者 | 本物らしさ |
#
# 各段階は前の段階が残したモデルから始まり、そのモデルが参照モデルになります。したがって、最初の損失は再び $\ln 2$ です(論文は、どれを参照モデルにしたかを書いていません)。ステップ数は
# 60 + 20 + 20です。論文の15 : 1 : 1では、後の2段階が6ステップずつになってしまいます。easy 段階の学習の手順はレッスン05ですでに試したので、既定のシードでは、学習済みのアダプタを教材に付けてあります。ここで学習するのは、残りの2段階です。基準モデル、easy のみ、3段階すべての3条件で、忠実度にどれだけ差がつくでしょうか。まず予想してください。

# %% uid="curriculum-predict" tags=["quiz"]
lab.predict("order")


# %% uid="easy-run" tags=["slow"]
from labkit.dpo import each_step


def train(plan, start=None):
    """en: Train stages (name, pairs, terms, steps) after the adapters of `start`; the states of all adapters.
    ja: `start` のアダプタに続けて、各段階(名前、ペア、損失項、ステップ数)を学習し、全アダプタの重みを返します。
    """
    ticks = iter(lab.progress_bar(range(sum(steps for *_, steps in plan)), t("l06.training")))
    next(ticks)
    with each_step(lambda: next(ticks, None)):
        return l06.align(plan, run_seed, sizes, start)


def draw(states):
    """en: One picture per held-out prompt, from the same noise for every model.
    ja: 未使用のプロンプトごとに1枚、どのモデルでも同じノイズから生成します。
    """
    return l06_world.pictures(held_out, run_seed, sizes.steps, states)


term = [dpo(sizes.kappa)]
first, rest = l06_shipped.easy_steps(sizes), round(0.2 * sizes.train_steps)
images = {"base": lab.keep("base pictures", draw, {})}

# en: lesson 05's training once more: shipped for the default seed, with the settings of lab.sizes; for any other seed, and
# en: on tier smoke, it is trained here
# ja: レッスン05と同じ学習です。既定のシードでは、lab.sizes の設定で学習したアダプタが教材に付属しています。ほかのシードと
# ja: tier smoke では、ここで学習します


def train_easy():
    return train([("easy", pairs.easy.training(), term, first)])


easy = lab.keep("easy", l06_shipped.easy_stage, run_seed, sizes, train_easy)

# %% uid="hg-run" tags=["slow"]
later = [("normal", pairs.normal.training(), term, rest), ("hard", pairs.hard.training(), term, rest)]
hg = lab.keep("hg", train, later, easy)
images |= {"easy": lab.keep("easy pictures", draw, easy), "hg": lab.keep("hg pictures", draw, hg)}
results |= {arm: world.measures(made, held_out) for arm, made in images.items()}


# %% uid="plane"
def plane(arms, title, yours=None):
    """en: Faithfulness against distance: recorded arms, and your own runs as stars.
    ja: 忠実度と距離の平面に、記録済みの条件と、自分の結果(星)を描きます。
    """
    found = {
        m: means(lab.recorded, m, {names[a]: a for a in arms}, prompts=len(held_out)) for m in ("gold", "distance")
    }
    both = {name: (found["gold"][name], found["distance"][name]) for name in found["gold"] if name in found["distance"]}
    own = {names[a]: (results[a]["gold"].mean(), results[a]["distance"].mean()) for a in arms if a in results}
    return recorded_plane(
        both, yours=own | (yours or {}), xlabel=t("l06.gold_score"), ylabel=t("l06.distance"), title=title
    )


plane(["base", "easy", "hg"], t("l06.plane_title"))

# %% uid="curriculum-claims"
# en: by the recorded seeds; one run cannot tell the first two apart
# ja: 記録したシードで判定します。1回の実行では、上位の2つを区別できません
ahead = means(lab.recorded, "gold", {"hg": "hg"}, against="easy", prompts=len(held_out)).get("hg")
lab.reveal("order", "alike" if ahead is None or abs(ahead.value) < 0.02 else "hg" if ahead.value > 0 else "easy")
claim("curriculum_beats_base", "hg", "base")
claim("curriculum_is_nearer", "hg", "base", "distance")
claim("curriculum_nearer_than_easy", "hg", "easy", "distance")

# %% [markdown] lang="en" uid="curriculum-reading" pair="d4d036ba"
# **Reading.** To the right is more faithful, *down* is nearer to real pictures. By the paper's story the easy stage goes right and not down, for its winners have no
# grain; the later stages go down and a little to the left, for no judge reads the prompt in the hard stage. In the paper the reward does fall slightly from easy to
# hard, while FID and image quality improve.
#
# Now hold your star against the record. Faithfulness is the steady axis, and on it the two later stages change nothing that shows: all three against easy alone, $.002$ $[-.019, .023]$. Before you believe any order on the other one, look at the vertical bars: over the five
# seeds that have the base as well the curriculum moved the distance by anything from -2 to +5, so one run, yours or a table of one seed, could tell any story. A likely reason: a hundred
# steps shift *all* pictures of a model together, by a cast of colour or tone, and the kernel distance counts a common shift in full. The boxes say what the
# recorded seeds decide. Whether it comes nearer at all would take about 145 seeds, more than the study's budget. Two remedies are on record and show no change of the distance either: the loss of section 4 in the easy stage, where the paper has it, $+0.3$ $[-2.1, 2.6]$ against the base (it costs easy no faithfulness, $-.003$ $[-.016, .010]$), and half strength (section 9), $+0.5$ $[-1.9, 3.0]$. What does come nearer, in section 7, is learning from real pictures directly: plain fine-tuning on them, and the leap.

# %% [markdown] lang="ja" uid="curriculum-reading" pair="d3339f23"
# **図の読み方。** 右ほど忠実で、*下*ほど本物に近いことを表します。論文の筋書きでは、easy 段階は右へ動きますが、勝者に粒状感がないので下へは動きません。後の2段階は下へ、そして少し左へ
# 動きます。hard 段階ではどの評価役もプロンプトを読まないからです。実際に論文では、easy から hard へ進むと報酬がわずかに下がり、FID と画質は良くなります。
#
# 自分の星を記録と比べてください。安定しているのは忠実度の軸で、後の2段階による変化は見られません(3段階と easy のみの差は $.002$ $[-.019, .023]$)。もう一方の軸で順位を信じる前に、縦の棒を見てください。カリキュラムによる距離の変化は、基準モデルも測った5つのシードで、−2から+5まで分かれました。
# 1回の実行だけなら、自分の結果でも1シードの表でも、どんな筋書きにも見えてしまいます。考えられる理由は、100ステップの学習が*すべて*の画像の色合いや明るさを同じ向きにずらし、その共通の
# ずれがカーネル距離にそのまま表れることです。記録したシードで何が決まったかは、判定の枠に出ています。本物に近づくかどうかを決めるには、およそ145のシードが必要で、実験の予算を超えます。対策も2つ試して記録しましたが、距離の変化は見られませんでした。論文と同じく easy 段階に第4節の損失を入れると基準モデルとの差は $+0.3$ $[-2.1, 2.6]$(easy の忠実度の変化は $-.003$ $[-.016, .010]$ で、犠牲になってはいません)、
# アダプタを半分の強さにすると(第9節) $+0.5$ $[-1.9, 3.0]$ です。本物に近づくのは、第7節で見るように、本物の画像を直接の手本にした場合です(通常のファインチューニングと飛躍)。

# %% [markdown] lang="en" uid="own" pair="d2b9390e"
# ## 7. An experiment of your own
#
# The stages are recipes now, and you have a budget of 100 steps. Choose a plan, predict where its star will land, run it. Some that the paper or a sceptic
# would try:
#
# * `[("leap", 100)]`: real against generated at once; in the paper it destroys the model.
# * `[("normal", 60), ("hard", 40)]`: without easy. `[("easy", 60), ("hard", 40)]`: without normal.
# * `[("together", 100)]`: the same pairs of all stages, in no order.
# * `[("real", 100)]`: the dull control, plain fine-tuning on the 96 real pictures, no loser at all. (The paper's nearest row is its base fine-tuned on the
#   hard winners, which gained little.)
# * `[("warm", 60)]` and `[("cured", 60)]`: the tainted judge of section 4, without and with *your* loss.
#
# Three things are yours to decide: which pairs, when to stop, and the length of the leash, `own_kappa` (400 in section 6; by lesson 05, less moves the model further).
#
# **Open task.** Find a plan of at most 100 steps that no recorded arm beats on both axes at once. There is no single answer; the next section's function
# judges it. Difficulty 5 of 5 if you may not use `real`.

# %% [markdown] lang="ja" uid="own" pair="4601ff49"
# ## 7. 自分の実験
#
# ここまでの各段階を、組み合わせ自由なレシピとして使います。予算は100ステップです。計画を選び、星がどこに来るかを予想してから実行してください。論文の著者や、疑い深い人が試しそうな例を挙げます。
#
# * `[("leap", 100)]`: いきなり本物と生成画像を競わせます。論文ではモデルが壊れます。
# * `[("normal", 60), ("hard", 40)]`: easy なし。`[("easy", 60), ("hard", 40)]`: normal なし。
# * `[("together", 100)]`: 全段階のペアを、順序を付けずに一括で学習します。
# * `[("real", 100)]`: 地味な対照実験です。96枚の本物の画像による通常のファインチューニングで、敗者は使いません(論文でこれに最も近いのは、基準モデルを hard の勝者で
#   ファインチューニングした条件で、ほとんど伸びていません)。
# * `[("warm", 60)]` と `[("cured", 60)]`: 第4節の偏った評価役です。それぞれ、*自分の*損失なしと、ありです。
#
# 決められることは3つあります。どのペアを使うか、何ステップで止めるか、そして引き綱の強さ `own_kappa` です(第6節の既定は400。レッスン05のとおり、小さいほど大きく動きます)。
#
# **自由課題。** 合計100ステップ以内で、記録済みのどの条件にも「両方の軸で同時に」負けない計画を見つけてください。正解は1つではなく、この後に書く関数で判定します。
# `real` を使わないなら、難易度は5段階の5です。

# %% uid="own-predict" tags=["quiz"]
lab.predict("leap")

# %% uid="own-run" tags=["open", "slow"]
own_plan, own_kappa = [("leap", 100)], sizes.kappa

own_term = [dpo(own_kappa)]
warm_pairs = l06_world.best_vs_worst(world.pool, "warm").training()
recipes = {name: (getattr(pairs, name).training(), own_term) for name in ("easy", "normal", "hard", "leap")}
recipes |= {
    "together": (l06_world.together(pairs.easy, pairs.normal, pairs.hard), own_term),
    "real": (pairs.leap.training(), [sft(own_kappa / 2)]),
    "warm": (warm_pairs, own_term),
    "cured": (warm_pairs, [*own_term, your_term]),
}
scale = sizes.train_steps / 100
stages = [(f"{name}{k}", *recipes[name], max(1, round(steps * scale))) for k, (name, steps) in enumerate(own_plan)]
own_states = lab.keep("own plan", train, stages)

# %% uid="own-picture"
known = {
    (("leap", 100),): "leap",
    (("normal", 60), ("hard", 40)): "no_easy",
    (("easy", 60), ("hard", 40)): "no_normal",
    (("together", 100),): "at_once",
    (("real", 100),): "real_sft",
    (("warm", 60),): "warm_all",
    (("cured", 60),): "warm_cured",
}
arm = known.get(tuple(own_plan), "own") if own_kappa == sizes.kappa else "own"
names["own"] = t("l06.own")
images[arm] = lab.keep("own pictures", draw, own_states)
results[arm] = world.measures(images[arm], held_out)
arms = ["base", "easy", "hg", "leap", "no_easy", "no_normal", "at_once", "sft", "real_sft"]
own_star = {names["own"]: (results["own"]["gold"].mean(), results["own"]["distance"].mean())} if arm == "own" else {}
plane(arms, t("l06.all_arms"), own_star)

# %% uid="own-pictures"
moved = results[arm]["gold"] - results["base"]["gold"]
order = np.argsort(moved)
columns = [int(i) for i in dict.fromkeys([*order[::-1][:3], *order[:3]])]
print(t("l06.better_worse", better=int((moved > 0.05).sum()), worse=int((moved < -0.05).sum()), total=len(moved)))
rows = list(dict.fromkeys(["base", "hg", arm]))
marked(
    {names[key]: [images[key][i] for i in columns] for key in rows},
    [held_out[i] for i in columns],
    scores={names[key]: [results[key]["gold"][i] for i in columns] for key in rows},
    title=t("l06.same_seeds"),
)

# %% uid="own-claims"
# en: by the recorded seeds, as for the order of the stages: one run of a leap can end on either side of the curriculum
# ja: 段階の順序と同じく、記録したシードで判定します。1回の飛躍は、カリキュラムのどちら側にも転びえます
leap = means(lab.recorded, "gold", {"leap": "leap"}, against="base").get("leap")
lab.reveal("leap", "alike" if leap is None else "above" if leap.low > 0 else "below" if leap.high < 0 else "alike")
claim("leap_collapses", "leap", "hg")
claim("leap_below_base", "leap", "base")
claim("easy_matters", "hg", "no_easy")
claim("normal_matters", "hg", "no_normal")
claim("order_matters", "hg", "at_once")
claim("sft_erases", "sft", "easy")
claim("pairs_beat_fine_tuning", "hg", "real_sft")
claim("leap_is_nearer", "leap", "hg", "distance")
claim("real_is_nearer", "real_sft", "hg", "distance")

# %% [markdown] lang="en" uid="own-reading" pair="0c2a169d"
# **Reading.** Compare the leap with the curriculum first, by the intervals and not by the dots. Does it fall below the curriculum, or even below the base, as in
# the paper (FID from 37 to 113)? On record it does not fall below the base: it gains $.090$ $[.045, .136]$, **contradicted**, and whether it ends below the curriculum is
# open ($-.003$ $[-.055, .049]$). On the other axis it leads: it ends nearer to real pictures than the curriculum, by $5.1$ $[0.5, 9.6]$. What the record does decide are the stages: without easy the curriculum loses $.113$ $[.089, .137]$, without normal
# $.030$ $[.018, .042]$; the *order* of the stages is worth less than the two points that would matter: all pairs at once do as well, to within $.006$ $[-.002, .013]$ over eighteen seeds. Fine-tuning on the hard winners after easy does not undo what easy gained: it adds $.015$ $[.001, .028]$ (**contradicted**). Why does the leap hold its ground? Two guesses. Texture: section 5 found it no louder in the leap than in the curriculum's own stages, so there was little to drown in;
# photographs differ from generated pictures in everything at once, and the paper trained for hundreds of thousands of steps.
# And *what* it teaches: the winner of a leap is a picture whose caption is right. The next section tests both.
#
# Now the uncomfortable dot: **plain fine-tuning on the real pictures**. It lies to the right of the curriculum (.85 against .81) *and* below it (a distance of 6 against 12, nearer by $5.9$ $[4.3, 7.6]$). Both
# differences go the same way in each of eighteen seeds. (That leap and fine-tuning end nearer than the curriculum we saw first and declared afterwards, and the boxes say so.) That the curriculum is the more faithful one is **contradicted**: it falls short by $.042$ $[.030, .054]$. *Here*, no pairs and no judge would have been needed. Why? This base was spoilt in one particular way, by wrong captions. Are 96 real pictures with *right* captions the direct antidote? They carry the grain as well.

# %% [markdown] lang="ja" uid="own-reading" pair="7cda1626"
# **図の読み方。** まず、飛躍とカリキュラムを、点ではなく区間で比べてください。飛躍はカリキュラムを下回るでしょうか。あるいは論文のように(FID が37から113)、
# 基準モデルよりも悪くなるでしょうか。記録では、飛躍は基準モデルを下回らず、$.090$ $[.045, .136]$ 上回ります。「基準モデルより忠実度が低くなる」という主張は、**反対の結果になりました**。カリキュラムより低くなるかどうかは、まだ決まっていません($-.003$ $[-.055, .049]$)。もう一方の軸では飛躍のほうが優れ、カリキュラムより $5.1$ $[0.5, 9.6]$ だけ本物に近くなります。
# 記録からはっきりしたのは、各段階の効果です。カリキュラムの忠実度は、easy を省くと $.113$ $[.089, .137]$、normal を省くと $.030$ $[.018, .042]$ 下がります。一方、段階の*順序*の効果は、意味のある差とした0.02に届きません。すべてのペアを一括で学習しても、18のシードで差は $.006$ $[-.002, .013]$ です。easy の後に hard の勝者でファインチューニングしても、easy で得たものは消えず、$.015$ $[.001, .028]$ 増えました(**反対の結果**)。
# 飛躍が持ちこたえるのはなぜでしょうか。推測は2つあります。1つは質感です。第5節で測ったとおり、質感の手がかりは、飛躍でもカリキュラムの各段階より強くはないので、忠実度の学習を妨げるほどではなかったのでしょう。写真と生成画像ならあらゆる点で同時に異なり、論文では学習も数十万ステップ続きます。
# もう1つは、教える*内容*です。飛躍の勝者は、キャプションの正しい画像です。どちらも次の節で確かめます。
#
# 次に、図の中の不都合な1点を見てください。**本物の画像による通常のファインチューニング**の点です。カリキュラムより右(0.85対0.81)で、*しかも*下(距離が6対12、差は $5.9$ $[4.3, 7.6]$)にあります。どちらの差も、18のシードすべてで同じ向きです(飛躍とファインチューニングがカリキュラムより本物に近いという2つの主張は、結果を見てから宣言したもので、判定の枠にもそう記してあります)。カリキュラムのほうが忠実だという主張は**反対の結果になりました**。カリキュラムのほうが $.042$ $[.030, .054]$ 低いのです。
# つまり、*ここでは*ペアも評価役も要らなかったことになります。なぜでしょうか。
# この基準モデルは、誤ったキャプションという特定の原因で歪んでいます。*正しい*キャプションの付いた本物96枚が、その直接の薬になったのでしょうか。本物の画像は、粒状感も一緒に教えます。

# %% [markdown] lang="en" uid="careless" pair="7dd9de84"
# ### Is it the captions, or the texture?
#
# The second guess about the leap and the question about plain fine-tuning both name the captions, so change them and nothing else: the same winners (real pictures, or the hard stage's reconstructions of them), the same steps, but captions as careless as those that made this base, in which each named attribute but the style is wrong with probability 0.4.
# Three runs get such captions: plain fine-tuning, fine-tuning after the easy stage, and the leap. They were declared after the others had been seen and before they were recorded. (The first round was recorded in bfloat16, these runs in float32, so the boxes compare them with partners that were trained again in float32. In fifteen runs that moved the faithfulness of none by more than .003.)
#
# A fourth run, declared in the same way, tests the guess about texture: the leap with right captions and grain three times as strong.

# %% [markdown] lang="ja" uid="careless" pair="7fea2018"
# ### 原因はキャプションか、質感か
#
# 飛躍についての2つ目の推測も、通常のファインチューニングについての疑問も、キャプションに行き着きます。そこで、キャプションだけを変えます。勝者(本物の画像、または hard 段階の復元画像)もステップ数も同じで、キャプションは、この基準モデルの学習に使ったものと同じくらい不正確にします。画風以外の属性は、それぞれ0.4の確率で誤っています。
# このキャプションで新たに試すのは、通常のファインチューニング、easy 段階の後のファインチューニング、飛躍の3つです。ほかの条件の結果を見た後、記録を始める前に宣言しました(最初の記録は bfloat16、この3つは float32 の学習なので、判定では、float32 で学習し直したものを比較相手にします。学習し直した15回で、忠実度の変化はどれも0.003以下でした)。
#
# 質感についての推測も、同じように宣言してから試しました。キャプションは正しいまま、本物の画像の粒を3倍に強めた飛躍です。

# %% uid="careless-record"
careless = ["base", "easy", "hg", "leap", "leap_careless", "leap_grainy"]
careless += ["sft", "sft_careless", "real_sft", "real_sft_careless"]
on_record("gold", careless, t("l06.gold_score"), t("l06.careless_title"))

# %% uid="careless-claims"
claim("right_captions_help", "real_sft", "real_sft_careless")
claim("pairs_beat_careless", "hg", "real_sft_careless")
claim("careless_sft_erases", "sft_careless", "easy")
claim("careless_leap_below_base", "leap_careless", "base")
claim("grainy_leap_below_base", "leap_grainy", "base")

# %% [markdown] lang="en" uid="careless-reading" pair="feb5eb0d"
# **Reading.** With careless captions plain fine-tuning is $.113$ $[.098, .128]$ less faithful and ends near the base (.74 against .72): the right captions were most of the antidote. The curriculum, whose judge looks at the pictures, is now ahead of it by $.078$ $[.042, .115]$. After the easy stage such captions do erase something, $.024$ $[.002, .047]$.
# The leap ends at .75 with them instead of .81, so much of what it had gained came with its winners' captions as well. Whether it then ends above or below the base is open, $.022$ $[-.020, .064]$ over five seeds.
#
# **It is the texture that makes a leap collapse.** Where the grain is three times as strong, texture alone finds 97 % of the winners, and the same leap, with the same right captions, ends *below* the base, by $.071$ $[.019, .123]$: **reproduced**, as in the paper. So the "contradicted" further up speaks of weak grain. A pair that gives its winner away without the prompt stops teaching the prompt, just as section 5 argued. (Whether the curriculum stands such grain was not tried.)
#
# In the paper fine-tuning on the hard winners, after any stage, ends at the same modest place. Its base had been fine-tuned on 300,000 photographs before, so an antidote of this kind may have had nothing left to cure; that is an inference, our runs cannot test it. The lesson for your own project is a question about your base: is it wrong because of its data
# (then mend the data), or is it right on average and you want its better half (then preferences)? A table without these controls cannot tell.

# %% [markdown] lang="ja" uid="careless-reading" pair="241427e3"
# **図の読み方。** 誤りを含むキャプションでは、通常のファインチューニングの忠実度は $.113$ $[.098, .128]$ 低く、基準モデルに近い値で終わります(0.74と0.72)。効いていたのは、主に正しいキャプションでした。評価役が画像そのものを見て選ぶカリキュラムは、今度は、この通常のファインチューニングを $.078$ $[.042, .115]$ 上回ります。easy 段階の後に、このキャプションでファインチューニングすると、easy で得た忠実度の一部が、今度は実際に失われます($.024$ $[.002, .047]$)。
# 飛躍の忠実度も、0.81から0.75に下がります。飛躍による伸びも、多くは、勝者に正しいキャプションが付いていたおかげだったことになります。そのときの飛躍が基準モデルより上か下かは、5つのシードでは決まりません(差は $.022$ $[-.020, .064]$)。
#
# **飛躍が崩れるかどうかを決めるのは、質感です。** 粒を3倍に強めると、質感だけで勝者の97%が当たります。すると同じ飛躍が、同じ正しいキャプションのままで、基準モデルを $.071$ $[.019, .123]$ *下回ります*。論文と同じ結果が**再現できました**。つまり、先ほどの「反対の結果」は、粒が弱い場合の話です。プロンプトを読まなくても勝者が分かるペアは、プロンプトに従うことを教えなくなります。第5節で述べた理屈のとおりです(カリキュラムがこの強さの粒に耐えるかどうかは、試していません)。
#
# 論文では、hard の勝者でファインチューニングすると、どの段階の後でも、同じようにぱっとしない結果に落ち着きます。論文の基準モデルはすでに30万枚の写真でファインチューニング済みなので、この種の薬で治すところが残っていなかったのかもしれません。これは推測で、ここでの実験では確かめられません。
# 自分のプロジェクトに引きつければ、問うべきは基準モデルの状態です。データのせいで間違っているのか(それならデータを直す)、平均的には正しく、その出力のうち良いほうだけが欲しいのか(それなら選好で学習する)。こうした対照実験がない表からは、どちらなのか分かりません。

# %% [markdown] lang="en" uid="pareto" pair="74096645"
# With two axes "best" is no longer a number. An arm is **dominated** if another one is at least as good on both axes and better on one; what no one dominates
# is the Pareto front, and between its points the numbers cannot choose for you. Write it: points are rows (faithfulness, distance), *more* faithfulness and
# *less* distance are better. By hand: of $(0.8, 9)$, $(0.7, 9)$, $(0.9, 11)$ the second is dominated by the first; two equal points do not dominate
# each other.

# %% [markdown] lang="ja" uid="pareto" pair="3356f282"
# 軸が2つあると、「最良」は1つの数字では決まりません。ある条件が別の条件に**支配される**とは、別の条件が両方の軸で同等以上で、少なくとも一方では優れていることです。何にも支配されない条件の集まりが
# パレートフロントです。その中のどれを選ぶかは、数字だけでは決まりません。パレートフロントを求める関数を書いてください。行は(忠実度, 距離)で、忠実度は*大きい*ほど、距離は*小さい*ほど良いものとします。
# 手計算の例: $(0.8, 9)$、$(0.7, 9)$、$(0.9, 11)$ では、2つ目が1つ目に支配されます。等しい2点は、互いに支配しません。


# %% uid="pareto-front" tags=["exercise"] exercise="pareto_front"
def pareto_front(points):
    """en: Which points nobody dominates: array [n, 2] of (faithfulness, distance) -> bool array [n].
    ja: どれにも支配されない点です。(忠実度, 距離)の配列 [n, 2] から、bool の配列 [n] を返します。
    """
    # BEGIN SOLUTION
    # en: larger is better on both axes; row i is at least as good as column j
    # ja: どちらの軸も大きいほど良い。行 i は列 j と同等以上
    better = np.asarray(points, dtype=float) * [1, -1]
    as_good = (better[:, None] >= better[None]).all(-1)  # [n, n]
    strictly = (better[:, None] > better[None]).any(-1)
    return ~(as_good & strictly).any(0)
    # END SOLUTION


# %% uid="pareto-front-check" tags=["check"]
lab.check("pareto_front")
pareto_front = lab.use("pareto_front")

# %% uid="pareto-use"
known_arms = means(lab.recorded, "gold", {a: a for a in arms}, prompts=len(held_out))
known_distances = means(lab.recorded, "distance", {a: a for a in arms})
points = {names[a]: (known_arms[a].value, known_distances[a].value) for a in known_arms if a in known_distances}
points |= {f"{names[a]} (★)": (r["gold"].mean(), r["distance"].mean()) for a, r in results.items()}
for (name, (faithful, far)), free in zip(points.items(), pareto_front(np.array(list(points.values()))), strict=True):
    numbers = {"name": name, "gold": faithful, "distance": far}
    print(t("l06.front", **numbers) if free else t("l06.dominated", **numbers))

# %% [markdown] lang="en" uid="proof" pair="120d4c88"
# ## 8. Prove it
#
# A judge that made the pairs cannot prove anything. Read its score beside a judge that it never met, and beside sharpness, which any fine
# change raises, right or wrong. Below, for every arm of this run, the share of held-out prompts on which it beats the base from the same noise (ties count half).

# %% [markdown] lang="ja" uid="proof" pair="01318e4b"
# ## 8. 証明する
#
# ペアを作った評価役の採点は、何の証拠にもなりません。学習に使っていない評価役の得点と並べて読む必要があります。鮮鋭度も並べますが、正しくても誤りでも、細かい変化が増えれば上がる値です。
# 今回実行した条件ごとに、同じノイズから描いた基準モデルの画像に勝ったプロンプトの割合を示します(引き分けは半分として数えます)。

# %% uid="proof-run"
from labkit.metrics import outcomes, win_rate

tried = [a for a in results if a != "base"]
table = {}
for metric in ("judge", "gold", "sharpness"):
    for a in tried:
        won = outcomes(candidate=results[a][metric], baseline=results["base"][metric])
        rate = win_rate(won, prompts=held_out, generator=np.random.default_rng(lab.seed), resamples=2000)
        table[a, metric] = (rate.value, min(rate.low, rate.value), max(rate.high, rate.value))
bar_with_interval(
    [names[a] for a in tried],
    {measures[m]: tuple(np.array([table[a, m] for a in tried]).T) for m in ("judge", "gold", "sharpness")},
    xlabel=t("l06.win_rate"),
    reference={t("l06.chance"): 0.5},
    xlim=(0, 1),
    value_format="{:.0%}",
    title=t("l06.proof_title", prompts=len(held_out)),
)

# %% uid="proof-claims"
value, low, high = table["hg", "gold"]
lab.claim("wins_by_gold", measured=t("l06.measure_win"), value=value, interval=(low, high), seeds=[run_seed])
claim("sharper_is_not_better", "leap", "base", "sharpness")

# %% [markdown] lang="en" uid="goodhart" pair="2f6eb5c7"
# **Reading.** An arm that wins by sharpness and not by the gold judge has learnt texture. The two judges should agree in direction; where the training judge
# gives more, the surplus is its own error, learnt.
#
# When a measure becomes a target, it stops being a good measure (Goodhart). The easy adapter at twice and four times its strength goes further along the
# direction that training found: an *analogy* of a training that nobody stopped, not the thing itself. Where do the two judges part?

# %% [markdown] lang="ja" uid="goodhart" pair="a5188d64"
# **図の読み方。** 鮮鋭度で勝ち、正解の評価役で勝っていない条件は、質感を学んだだけです。2つの評価役は同じ向きに動くはずです。学習用の評価役の得点の方が大きく伸びていれば、その余分は、評価役の誤りを
# 学んだ分です。
#
# 測定の尺度は、それ自体が目標になると良い尺度ではなくなります(グッドハートの法則)。easy のアダプタを2倍、4倍の強さで使うと、学習が見つけた方向へさらに進みます。止めどきを過ぎた学習そのものではありませんが、
# その*たとえ*になります。2つの評価役の得点は、どこで分かれるでしょうか。

# %% uid="goodhart-run" tags=["slow"]
from labkit.diffusion import use_adapters

few = held_out[: sizes.goodhart]
strengths, pushed = (0.0, 0.5, 1.0, 2.0, 4.0), []
for strength in strengths:
    with l06.adapters(easy), use_adapters(pipe.unet, {"easy": strength}):
        made = images["easy" if strength else "base"][: len(few)]
        if strength not in (0.0, 1.0):
            generators = image_generators(len(few), 1000 + run_seed)
            made = sample(pipe, few, generators=generators, steps=sizes.steps, batch_size=64).cpu().clamp(-1, 1)
    measured = world.measures(made, few)
    pushed.append([measured[m].mean() for m in ("judge", "gold")])
gain = np.array(pushed).T - np.array(pushed[:1]).T  # [judges, strengths]
curve_with_interval(
    strengths,
    {t("l06.judge"): gain[0], t("l06.gold"): gain[1]},
    xlabel=t("l06.strength"),
    ylabel=t("l06.against_base"),
    reference={t("l06.base"): 0.0},
    title=t("l06.goodhart_title"),
)

# %% [markdown] lang="en" uid="side" pair="af015dbd"
# **Reading.** Beyond some strength both fall: the pictures break. What matters is the stretch before: where the training judge still holds while the gold judge
# gives way, stopping by the training judge would have stopped too late.
#
# What happened to attributes that no prompt asked for? The paper does not look; a person who signs for the result has to. The gold judge reads how their
# shares moved from the base to the curriculum. Intervals and p-values count prompts; p-values are corrected for the number of attributes (Holm).

# %% [markdown] lang="ja" uid="side" pair="6ac869da"
# **図の読み方。** ある強さを超えると両方とも下がります。画像が壊れるからです。大切なのはその手前です。学習用の評価役がまだ持ちこたえ、正解の評価役が下がり始める区間があれば、学習用の評価役だけを
# 見ていると止めるのが遅れます。
#
# プロンプトが指定していない属性には、何が起きたでしょうか。論文は調べていませんが、結果に責任を持つ人は調べる必要があります。基準モデルからカリキュラムまでに割合がどう動いたかを、正解の評価役で
# 読み取ります。区間と p 値はプロンプトを単位とし、p 値は属性の数で補正してあります(次に説明するホルムの方法)。

# %% [markdown] lang="en" uid="holm" pair="82fdb351"
# ### Many questions at once
#
# This section has asked three measures of every arm and now asks about nine attributes. Whoever asks twenty questions at a level of 5 % finds one answer on average, even if nothing is going on. *Bonferroni's* cure multiplies every p-value by the number $m$ of questions: that is safe and severe. *Holm's* is as safe and milder. Once the smallest p-value has passed with the factor $m$, only $m - 1$ questions are
# open, so the next one is multiplied by $m - 1$, the next by $m - 2$, down to 1. An adjusted p-value is never smaller than one before it, and never above 1.
#
# Write `holm`, in the order of the input. By hand: (.01, .04, .03) becomes (.03, .06, .06). The smallest is multiplied by 3 and the middle one by 2; the largest, multiplied by 1, would be .04 and is raised to the .06 before it.

# %% [markdown] lang="ja" uid="holm" pair="bad3fa18"
# ### 一度にたくさんの問いを立てるとき
#
# この節の初めには条件ごとに3つの尺度で調べ、次は9つの属性を調べます。5%の水準で20の問いを立てれば、何の違いもなくても、平均して1つは「違いがある」と出ます。*ボンフェローニ*の方法では、どの p 値にも問いの数 $m$ を掛けます。安全ですが、厳しすぎます。*ホルム*の方法は、同じくらい安全で、もう少し緩やかです。最小の p 値が $m$ 倍でも水準を
# 満たしたなら、残る問いは $m - 1$ 個です。そこで次は $m - 1$ 倍、その次は $m - 2$ 倍とし、最後は1倍です。補正後の p 値は、前のものより小さくならず、1を超えません。
#
# 入力の順に返す `holm` を書いてください。手計算の例: (0.01, 0.04, 0.03) は (0.03, 0.06, 0.06) になります。最小のものを3倍、次を2倍にします。最大のものは1倍で0.04ですが、その前の0.06に引き上げます。


# %% uid="holm-exercise" tags=["exercise"] exercise="holm"
def holm(p_values):
    """en: Holm's adjusted p-values [m] of an array of p-values [m], in the same order.
    ja: p 値の配列 [m] から、ホルムの方法で補正した p 値 [m] を、同じ順で返します。
    """
    # BEGIN SOLUTION
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(adjusted, 1.0)
    # END SOLUTION


# %% uid="holm-exercise-check" tags=["check"]
lab.check("holm")
holm = lab.use("holm")

# %% uid="holm-use"
raw = []
for a in tried:
    for metric in ("judge", "gold", "sharpness"):
        won = outcomes(candidate=results[a][metric], baseline=results["base"][metric])
        raw.append(sign_test(int((won == 1).sum()), int((won == 0).sum())))
kept = int((holm(np.array(raw)) <= 0.05).sum())
print(t("l06.survive", arms=len(tried), judges=3, all=len(raw), raw=int((np.array(raw) <= 0.05).sum()), kept=kept))

# %% [markdown] lang="en" uid="holm-reading" pair="2c7bbeb8"
# **Reading.** Where effects are large, nothing is lost by asking many questions; what disappears are the discoveries at the edge. The figure below shows the largest of dozens of changes, so its winner is lucky as well as large. Its p-values are corrected by this function.

# %% [markdown] lang="ja" uid="holm-reading" pair="2727566a"
# **結果の読み方。** 効果が大きければ、問いが多くても何も失われません。消えるのは、水準ぎりぎりの発見です。次の図では、何十もの変化の中から大きいものを選んで示すので、上位のものには偶然の分も含まれています。図の前に表示される p 値は、この関数で補正したものです。

# %% uid="side-run"
from labkit.dpo import side_effects

generator = np.random.default_rng(lab.seed)
report = side_effects(reader, before=images["base"], after=images["hg"], prompts=held_out, generator=generator)
largest = report.largest(8)
for effect in report.attributes:
    print(t("l06.moved", name=attribute_name(effect.attribute, lab.lang), distance=effect.distance, p=effect.p_value))
changes = np.array([(s.change, min(s.low, s.change), max(s.high, s.change)) for s in largest]).T
bar_with_interval(
    [": ".join((attribute_name(s.attribute, lab.lang), value_name(s.attribute, s.value, lab.lang))) for s in largest],
    tuple(changes),
    xlabel=t("l06.share_change"),
    title=t("l06.side_title"),
    value_format="{:+.2f}",
)

# %% uid="diversity"
on_record("diversity", ["base", "easy", "hg", "leap", "real_sft"], t("l06.vendi"), t("l06.vendi_title"))

# %% [markdown] lang="en" uid="finish" pair="00acdcd7"
# **Reading.** A bar whose interval misses zero is a change nobody asked for: a colour of skin or hair that became commoner because the real pictures, or
# the judge's winners, have it more often. It need not be bad (the base's own shares are skewed), but somebody has to know. The Vendi score counts how
# many *different* pictures an arm draws (128 in the study): a model that always draws its favourite face would win prompts and lose here.
#
# ## 9. Finish like the paper
#
# At inference the paper runs its adapters at half strength, and the last stage's in the decoder blocks alone, because everywhere it cost diversity. The adapters lie
# side by side, so this is one context manager. What does it cost, and what does it keep?

# %% [markdown] lang="ja" uid="finish" pair="54b1553b"
# **図の読み方。** 区間が0を含まない棒は、誰も求めていない変化です。本物の画像や評価役が選んだ勝者に多い肌や髪の色が、増えたのかもしれません。悪いこととは限りませんが(基準モデルの割合も偏っています)、
# 誰かが知っておくべきことです。Vendi スコアは、その条件が何種類の*異なる*絵を描くかを数えます(記録では128枚)。いつも同じ得意な顔を描くモデルは、プロンプトでは勝っても、ここで負けます。
#
# ## 9. 論文の仕上げ
#
# 論文は推論時にアダプタの強さを半分にし、最後の段階のアダプタはデコーダ側のブロックだけで使います。全ブロックで使うと多様性が下がったからです。アダプタは別々に保持しているので、
# コンテキストマネージャ1つで済みます。何が失われ、何が残るでしょうか。

# %% [markdown] lang="en" uid="merged" pair="7a802aca"
# What *is* an adapter at half strength? LoRA leaves the weight $W$ of a layer alone and puts a product of two thin matrices beside it, `down` $[r, \mathrm{in}]$ and `up` $[\mathrm{out}, r]$ with a small rank $r$. The layer then computes with
#
# $$W + \sum_k s_k\, \mathrm{up}_k\, \mathrm{down}_k,$$
#
# one term per stage, each with a strength $s_k$ of its own. Nothing is lost, so everything can be taken back: at $s = 0$ the base stands there untouched. Write `merged`, the whole weight; `updates` is a list of `(up, down, strength)`. By hand: $W = (2, 0)$, up 1, down $(4, 6)$ and strength 0.5 give $(4, 3)$.

# %% [markdown] lang="ja" uid="merged" pair="675b9483"
# 半分の強さのアダプタとは、どういうものでしょうか。LoRA は層の重み $W$ に手を付けず、細長い2つの行列の積を横に置きます。小さなランク $r$ に対して、`down` は $[r, \mathrm{in}]$、`up` は $[\mathrm{out}, r]$ です。層は次の重みで計算します。
#
# $$W + \sum_k s_k\, \mathrm{up}_k\, \mathrm{down}_k,$$
#
# 段階ごとに1項あり、それぞれに強さ $s_k$ が付きます。元の重みは失われないので、いつでも元に戻せます。$s = 0$ なら、基準モデルそのものです。全体の重みを返す `merged` を書いてください。`updates` は `(up, down, 強さ)` のリストです。手計算の例: $W = (2, 0)$、up が1、down が $(4, 6)$、強さ0.5なら $(4, 3)$ です。


# %% uid="merged-exercise" tags=["exercise"] exercise="merged"
def merged(weight, updates):
    """en: Weight [out, in] of a layer with adapters; updates: list of (up [out, r], down [r, in], strength).
    ja: アダプタを含めた層の重み [out, in] です。updates は (up [out, r], down [r, in], 強さ) のリストです。
    """
    # BEGIN SOLUTION
    return weight + sum(scale * (up @ down) for up, down, scale in updates)
    # END SOLUTION


# %% uid="merged-exercise-check" tags=["check"]
lab.check("merged")
merged = lab.use("merged")

# %% uid="merged-use"
from labkit.diffusion.adapters import adapter_layers

with l06.adapters(hg):
    # en: the first linear layer that carries an adapter of every stage
    # ja: すべての段階のアダプタを持つ、最初の線形層
    name, layer = next(
        (k, m) for k, m in adapter_layers(pipe.unet).items() if isinstance(m.base_layer, torch.nn.Linear)
    )
    pieces = {stage: (layer.lora_B[stage].weight, layer.lora_A[stage].weight) for stage in hg}
    x = torch.randn(2, layer.in_features, generator=lab.generator(8))
    with torch.no_grad(), use_adapters(pipe.unet, dict.fromkeys(hg, 0.5)):
        whole = merged(layer.base_layer.weight, [(up, down, layer.scaling[k]) for k, (up, down) in pieces.items()])
        gap = float((layer(x) - torch.nn.functional.linear(x, whole, layer.base_layer.bias)).abs().max())
    lab.verdict(t("l06.same_merge", value=gap), gap < 1e-4)
    for stage, (up, down) in pieces.items():
        print(t("l06.adapter_size", name=stage, numbers=up.numel() + down.numel(), full=whole.numel()))

# %% uid="finish-widget" tags=["widget"]
from labkit.dpo import up_blocks


def finished(scale, decoder_only):
    some = held_out[:6]
    with l06.adapters(hg):
        with use_adapters(pipe.unet, dict.fromkeys(hg, scale), where={"hard": up_blocks} if decoder_only else None):
            made = sample(pipe, some, generators=image_generators(len(some), 1000 + run_seed), steps=sizes.steps)
    return image_grid(made, captions=marks(made, some), scores=l06.gold(made, some), columns=6)


explore(
    finished,
    {
        "scale": slider(t("l06.scale"), 0.0, 1.5, 0.5, 0.25),
        "decoder_only": choice(t("l06.where"), {t("l06.all_blocks"): False, t("l06.decoder"): True}),
    },
)

# %% [markdown] lang="en" uid="words" pair="38812706"
# Two more parts of the paper are too long for a live run and rest on the record alone.
#
# **Words.** The hard stage has no judge that reads the prompt. To make up for it the paper trains the text encoder by itself on the easy pairs, and uses it for
# $900 \le t \le 1000$ only, where the composition is decided; the detail of later steps keeps the words it was trained with.
#
# **A personal model.** One person, drawn with many moods and clothes, is learnt by an adapter of its own (plain fine-tuning). Then the curriculum's adapters are put
# beside it without further training. Does the person stay the same, and are the prompts kept better?

# %% [markdown] lang="ja" uid="words" pair="dd94765d"
# 論文の残る2つの要素は、その場で実行するには長すぎるので、記録だけで判断します。
#
# **言葉。** hard 段階には、プロンプトを読む評価役がいません。それを補うため、論文ではテキストエンコーダを easy のペアで別に学習し、構図が決まる $900 \le t \le 1000$ だけで使います。細部を描く
# 後のステップでは、もともと U-Net と一緒に学習したテキストエンコーダをそのまま使います。
#
# **特定の人物のモデル。** ある1人の人物を、さまざまな表情と服装の画像から、専用のアダプタに通常のファインチューニングで覚えさせます。その隣にカリキュラムのアダプタを、追加の学習なしで並べます。
# 人物は同じままで、プロンプトへの忠実度は上がるでしょうか。

# %% uid="words-record"
on_record(
    "gold",
    ["base", "hg", "hg_half", "hg_finish", "hg_words", "personal", "personal_hg"],
    t("l06.gold_score"),
    t("l06.finish_title"),
)

# %% uid="finish-claims"
claim("finish_keeps", "hg_finish", "hg")
claim("words_help", "hg_words", "hg")
claim("identity_stays", "personal_hg", "personal", "same_person")
claim("transfer_helps", "personal_hg", "personal")

# %% [markdown] lang="en" uid="cost" pair="8aaea061"
# **Reading.** Half strength is a dial between the base and the trained model, so some faithfulness must go; the question is whether what remains still beats
# the base clearly. The paper's inference, half strength and the last stage in the decoder alone, loses $.030$ $[.022, .037]$, less than the 0.05 allowed (**reproduced**). The text encoder of the first steps adds $.014$ $[.004, .024]$ on record: **reproduced**, if on average by less than the two points that would be worth its
# training. The personal rows answer other prompts than the rows above them and can only be compared with each other. The person stays: the person's own
# attributes gain $.021$ $[.001, .041]$, where a loss of 0.05 was allowed (**reproduced**). The prompts are kept a little better, by $.013$ $[.007, .020]$: less than the two points that would matter.
#
# ## 10. The manager's questions
#
# The article asks what it costs and who is still needed. Count U-Net evaluations (NFE: one picture, once through the U-Net; in training a picture costs three,
# because the way back costs twice the way forth). Labels: the judge scored every candidate; a person who compares pairs would give one vote per pair.

# %% [markdown] lang="ja" uid="cost" pair="197437e5"
# **図の読み方。** 半分の強さは、基準モデルと学習後のモデルの間のダイヤルです。忠実度がいくらか失われるのは当然で、問題は、残った分が基準モデルをはっきり上回るかどうかです。論文の推論方法(半分の強さ、最後の段階はデコーダ側だけ)で失われるのは $.030$ $[.022, .037]$ で、許容した0.05に届きません(**再現できました**)。最初のステップだけに使うテキストエンコーダは、記録では
# $.014$ $[.004, .024]$ の上昇をもたらしました。主張は**再現できました**が、平均では、学習の手間に見合う0.02に届きません。人物の2行は上の行とは別のプロンプトで測ったものなので、この2行どうしでだけ比べてください。人物は保たれます。本人の属性は
# $.021$ $[.001, .041]$ 上がり、許容した0.05の低下は起きません(**再現できました**)。プロンプトへの忠実度の上昇は $.013$ $[.007, .020]$ で、意味のある差とした0.02に届きません。
#
# ## 10. 経営者の質問
#
# 記事の問いは、費用と人の役割です。費用は U-Net の計算回数(NFE)で数えます。画像1枚を U-Net に1回通すと1回です。学習では、逆伝播に順伝播の2倍かかるので、1枚が3回分になります。ラベルについては、
# 評価役は候補1枚ごとに1回採点しました。人がペアを比べるなら、ペアごとに1票を入れます。

# %% uid="cost-run"
# en: with guidance every step costs two
# ja: 誘導があると1ステップにつき2回
per_picture = 2 * sizes.steps
pool_rows = scores.numel() * per_picture
# en: winner and loser through the policy (3 each) and the reference (1 each)
# ja: 勝者と敗者を、学習中のモデル(各3回分)と参照モデル(各1回)に通します
train_rows = (first + 2 * rest) * sizes.batch * 2 * (3 + 1)
votes = len(pairs.easy.training()) + len(pairs.normal.training())
print(t("l06.cost", pool=pool_rows, train=train_rows, labels=scores.numel(), votes=votes))
print(t("l06.break_even", pictures=(pool_rows + train_rows) / (per_picture * (world.pool.n - 1)), n=world.pool.n))
lab.article_map()

# %% [markdown] lang="en" uid="real" pair="989fb593"
# ## 11. The same on Stable Diffusion
#
# The hard stage of the paper needs photographs of real people, and this repository holds none, so on the gpu tier the curriculum is made of what a pool alone can give: *easy* is the best candidate against the worst, *hard* is the best against the second best, where the judge hardly sees a
# difference. Each stage starts from the weights of the one before, as in section 6. `lab.real` supplies model, judges and sizes of the tier:
#
# | tier | pictures | who chooses | who only watches |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5, or SDXL with `model="sdxl"` | PickScore, or `reward="imagereward"` and others | CLIP |
# | smoke, cpu | PortraitSD, or PortraitFlow with `model="portrait-flow"` | PortraitCLIP: what the prompt names, no sunglasses, a cool background | AttributeReader, the same questions |
#
# With `lab.real(pipe, rounds=3, pools=1, runs=2, model="portrait-flow")` this very cell climbs on a transformer in the layout of Stable Diffusion 3, on tiers smoke and cpu: its errors are those of a velocity, $v = \epsilon - x_0$, in place of
# the noise, and in place of self-attention each stage's LoRA meets *joint attention*, where picture and text attend to both. Merging, references and stages stay as they are.
#
# Before a weight is loaded, the box says what the gpu tier will draw and train, how much memory that needs and how long it takes; without a GPU it says so for a T4.
#
# **Predict:** will the second stage add what the first could not, or only noise? Compare the two printed margins before you look at the pictures.

# %% [markdown] lang="ja" uid="real" pair="e34d323e"
# ## 11. 同じことを Stable Diffusion で
#
# 論文の hard 段階には本物の人物写真が必要ですが、このリポジトリにはありません。そこで tier gpu では、プールだけから作れるカリキュラムにします。*easy* は最良の候補と最悪の候補、*hard* は最良の候補と2番目の候補の組で、評価役にもほとんど差が見えません。第6節と同じく、各段階は前の段階の重みから始まります。
# モデル、評価役、規模は、tier に応じて `lab.real` が用意します。
#
# | tier | 画像 | 選ぶ評価役 | 見守るだけの評価役 |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5(`model="sdxl"` なら SDXL) | PickScore(`reward="imagereward"` などに変更できます) | CLIP |
# | smoke, cpu | PortraitSD(`model="portrait-flow"` なら PortraitFlow) | PortraitCLIP: プロンプトの指定、サングラスがないこと、寒色の背景 | AttributeReader(同じ3点) |
#
# `lab.real(pipe, rounds=3, pools=1, runs=2, model="portrait-flow")` とすると、tier smoke と cpu では、同じセルで Stable Diffusion 3と同じ構成の Transformer を段階ごとに学習します。誤差は、ノイズの代わりに速度 $v = \epsilon - x_0$ で測ります。
# 各段階の LoRA が入る注意の層も、自己注意ではなく、画像とテキストの両方に注意を向ける*ジョイント注意*(joint attention)です。統合の仕方、参照モデル、段階の進め方は変わりません。
#
# 重みを読み込む前に、tier gpu で何をどれだけ生成・学習し、メモリと時間がどれだけかかるかを表示します。GPU がなければ、T4 での見込みを示します。
#
# **予想してください。** 2段階目は、1段階目にできなかったことを加えるでしょうか。それとも、評価役の雑音を学ぶだけでしょうか。画像を見る前に、表示された2つの差を比べてください。

# %% uid="real-run" tags=["slow"]
from dataclasses import replace

from labkit.diffusion import remove_lora
from labkit.dpo import Stage, best_vs_worst, run_stages

sd = lab.real(pipe, rounds=3, pools=1, runs=2)
whole = build_pool(
    sd.pipe, sd.prompts, sd.candidates, scorers=[sd.reward], seed=lab.seed, **sd.sampling
)  # fmt: skip
by = sd.reward.name
two, row = whole.scores[by].topk(2, 1).indices, torch.arange(len(sd.prompts))[:, None]
close = replace(whole, latents=whole.latents[row, two], scores={by: whole.scores[by][row, two]})
sd_stages = {"easy": best_vs_worst(whole, by), "hard": best_vs_worst(close, by, stage="hard")}
for name, one in sd_stages.items():
    print(t("l06.real_margin", stage=name, margin=np.mean(one.column("margin"))))
ticks = iter(lab.progress_bar(range(len(sd_stages) * sd.config.steps), t("l06.training")))
next(ticks)
with each_step(lambda: next(ticks, None)):
    run_stages(
        sd.pipe, [Stage(name, one.training(), [dpo(sd.kappa)], sd.config) for name, one in sd_stages.items()]
    )  # fmt: skip
drawn = {}
for label, worn in {t("l06.base"): (), "easy": ("easy",), "easy → hard": ("easy", "hard")}.items():
    with use_adapters(sd.denoiser, dict.fromkeys(worn, 1.0)):
        drawn[label] = sd.draw(sd.held_out)
for name in sd_stages:
    remove_lora(sd.denoiser, name)
said = {label: sd.opinions(images, sd.held_out) for label, images in drawn.items()}
for label, (chosen, seen) in said.items():
    print(t("real.means", name=label, chosen=chosen.mean(), seen=seen.mean()))
strips(
    {label: images[:6] for label, images in drawn.items()},
    scores={label: chosen[:6] for label, (chosen, _) in said.items()},
    title=t("l06.real_title", model=sd.name),
)

# %% [markdown] lang="en" uid="real-reading" pair="68418581"
# **Reading.** Columns share prompt and noise, rows are the stages. The margins say how much the judge had to tell in each stage: where best and second best are nearly equal, a label is close to a coin, and the stage trains on the judge's noise. That is why the paper leaves the pool for its later stages and takes its winners from real pictures; with photographs of your own,
# `sd_recon` of section 5, and `normal_pairs` and `hard_pairs` of `labkit.dpo`, take them in. Believe a rise only if the judge that never chose confirms it, and on more prompts than these.
#
# The box counts work, it measured no time; this cell was tested on random weights in the layouts of Stable Diffusion 1.5 and SDXL, which shows that it runs there, and nothing about its pictures.

# %% [markdown] lang="ja" uid="real-reading" pair="7db901cf"
# **図の読み方。** 列ごとにプロンプトとノイズが同じで、行が段階です。表示された差は、各段階で評価役に見えていた違いの大きさです。最良と2番目がほとんど等しいときは、ラベルは硬貨投げに近く、その段階は評価役の雑音で学習することになります。論文が後の段階でプールを離れ、本物の画像から勝者を取るのはこのためです。自分の写真があれば、
# 第5節の `sd_recon` と、`labkit.dpo` の `normal_pairs`、`hard_pairs` で取り込めます。上昇を信じるのは、選んでいない評価役も認め、プロンプトをもっと増やしても変わらないときだけにしてください。
#
# 最初に表示した見込みは計算量から求めたもので、実測ではありません。このセルは、Stable Diffusion 1.5と SDXL の構造に乱数の重みを入れたモデルで試験しています。動くことは確かめましたが、画像の質については何も分かりません。

# %% [markdown] lang="en" uid="where-next" pair="001db81c"
# ## 12. What to keep
#
# * Pairs from the model's own pool teach what the model can already do sometimes. What it can never do has to come from outside. The paper takes it there in steps; here the direct way, plain fine-tuning on real pictures, went further on both axes.
# * Whatever separates winners from losers is learnt: the judge's taste, the grain, a colour. Look at the pairs before you look at the loss, and let `told_apart` say how many winners are known without the prompt.
# * Two goals need two measures, and a table needs the dull control, too.
#
# Three questions to think about, then lesson 07, which asks whether the judge itself understands a sentence: [PC-CLIP](07_pc_clip.ipynb).

# %% [markdown] lang="ja" uid="where-next" pair="843eaad1"
# ## 12. 持ち帰ること
#
# * モデル自身のプールから作ったペアが教えるのは、モデルがすでに時々できることです。一度もできないことは、外から持ち込む必要があります。論文はそれを段階的に教えます。ここでは、本物の画像による通常のファインチューニングという直接の方法のほうが、両方の軸で先へ進みました。
# * 勝者と敗者を分けるものは、評価役の好みでも、粒状感でも、色でも、何でも学習されます。損失を見る前に、ペアを見てください。プロンプトなしで勝者が分かるペアの割合は、`told_apart` で測れます。
# * 目標が2つなら、尺度も2つ必要です。そして表には、地味な対照実験も必要です。
#
# 最後に考える問いを解き、次はレッスン07に進みましょう。評価役自身が文を理解しているのかを調べます: [PC-CLIP](07_pc_clip.ipynb)。

# %% uid="quiz" tags=["quiz"]
lab.quiz()
