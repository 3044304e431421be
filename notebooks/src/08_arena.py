# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("08", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="article" pair="8d08d392"
# The article of this lesson, "拡散モデルのアラインメント", tells of a survey: *Alignment of Diffusion Models: Fundamentals, Challenges, and Future* ([arXiv 2409.07253](https://arxiv.org/abs/2409.07253)). Three of its sentences are put to
# the test: that alignment is done by rules, refined instructions and learnt preferences; that looking good is not enough; and that the verification decides whether it pays.
# A survey compares families on paper. Here they race: one base, one budget, one imperfect reward, and a judge that none of them can bribe.
#
# | the article's word | this course | in code |
# |---|---|---|
# | learn people's preferences | a proxy: a reward model taught by noisy votes | `proxy` |
# | task, safety, preference | gold: an exact judge on these three axes | `gold` |
# | methods | contenders, behind one call | `enter` |
# | cost | NFE: forward passes of the U-Net, decoding included | `nfe` |
#
# **State of the evidence.** The study of this lesson (`labkit study run 08`) is recorded at 1,600 NFE for each contender: RAFT and NFT with fifty-one seeds, DRaFT with fifteen, the base, DDPO and DPO with fourteen, best-of-N with five, GRPO, RWR, AlignProp, KTO, guidance, FK steering and FABRIC with three: the pale dots of a chart are seeds, and three dots are little more than an anecdote. A second round has three times the budget: 38 runs each of DRaFT with all votes and with a tenth of them, six each of NFT and DDPO, twelve pools of the search. Charts show the record with its 95 % intervals, a colour for every family, and your own run as a star on top of it. A claim's verdict comes from the record; your run says
# whether it fits. The budget is small on purpose: a race that a laptop can repeat is a race of the first dozen updates. What happens after thousands is the papers' subject; where that may decide a verdict, the reading says so.

# %% [markdown] lang="ja" uid="article" pair="80b12ddb"
# このレッスンで読む記事は「拡散モデルのアラインメント」で、サーベイ論文 *Alignment of Diffusion Models: Fundamentals, Challenges, and Future*([arXiv 2409.07253](https://arxiv.org/abs/2409.07253))を紹介しています。ここでは3つの主張を
# 確かめます。アラインメントはルール、指示の洗練、好みの学習によって行うこと、見た目が良いだけでは足りないこと、そして割に合うかどうかは検証で決まることです。
# サーベイは文献を読んで手法を比べますが、ここでは実際に競わせます。基準モデル、予算、不完全な報酬はどの手法にも共通で、判定するのは、どの手法も学習に使えない評価役です。
#
# | 記事の言葉 | この教材の言葉 | コード |
# |---|---|---|
# | 人の好みを学習する | 代理スコア: 誤りを含む投票で学習した報酬モデルの採点 | `proxy` |
# | タスク適合性、安全性、選好 | 正解スコア: この三軸を正確に測る評価役の採点 | `gold` |
# | 手法 | 参加する手法。どれも1つの関数で呼び出す | `enter` |
# | コスト | NFE: デコードも含めた U-Net の順伝播の回数 | `nfe` |
#
# **裏付けの状況。** このレッスンの実験(`labkit study run 08`)では、どの手法も1,600 NFE ずつ記録しました(手法の名前は第2節の表で紹介します)。シードは、RAFT と NFT が51個、DRaFT が15個、基準モデル、DDPO、DPO が14個、best-of-N が5個、GRPO、RWR、AlignProp、KTO、誘導、FK ステアリング、FABRIC が3個です。グラフの薄い点がシードなので、点が3つなら参考程度に見てください。2回目の記録では予算を3倍にし、DRaFT(全部の投票と10分の1の投票)を38回ずつ、NFT と DDPO を6回ずつ、探索を12個のプール(選ぶ元になる画像の集まり)で測りました。グラフでは、記録を95%区間つきで系統ごとに色分けし、自分の実行結果を星で示します。主張の判定は記録に基づきます。自分の実行結果については、記録と矛盾しないかどうかが表示されます。
# 予算はわざと小さくしました。ノートPCで再現できるのは、最初の10回前後の更新までです。数千回更新した先で何が起きるかは、論文に譲ります。その違いが判定を左右しうる箇所では、「図の読み方」でその旨を断ります。

# %% [markdown] lang="en" uid="first" pair="d7b8a2bc"
# ## 1. One picture first
#
# A team wants better portraits. Raters compared pictures of the base two by two; a small network learnt from their votes to predict who wins. That network is the reward. The strongest optimiser of this lesson, DRaFT, now
# follows the reward's own gradient. Same prompts, same noise, before and after.

# %% [markdown] lang="ja" uid="first" pair="ca2b9d81"
# ## 1. まずは1枚の図から
#
# あるチームが、より良いポートレートを求めています。評価者は基準モデルの画像を2枚ずつ比べ、小さなネットワークがその投票から勝敗の予測を学びました。このネットワークが報酬です。そこで、このレッスンで最も強力な最適化手法である DRaFT が、
# 報酬の勾配をそのまま使って学習しました。プロンプトとノイズは同じです。学習の前後を見比べてください。

# %% uid="compete"
import numpy as np
import torch

from IPython.display import display

from labkit.figures import curve_with_interval, recorded_means, recorded_paths, recorded_plane, strips
from labkit.studies import l08, means

sizes, (train, test) = lab.sizes, l08.prompts(lab.sizes.prompts, lab.sizes.test_prompts)
run_seed = 100 + lab.seed


def compete(name, kind="main", nfe=None, **changes):
    """en: One contender: its pictures of the held-out prompts, its log, what it cost.
    ja: 1つの手法を走らせ、未使用のプロンプトの画像、ログ、費用を返します。
    """
    ticks = []

    def noted(record):
        """en: Called after every update; the first one tells how many the budget pays for.
        ja: 更新のたびに呼ばれます。1回目の費用から、予算で何回更新できるかが分かります。
        """
        if not ticks:
            left = int((nfe or sizes.nfe) / record["nfe"]) - 1
            ticks.append(iter(lab.progress_bar(range(max(1, left)), t("l08.updates"))))
        next(ticks[0], None)

    entry = l08.race(name, kind, run_seed, sizes, nfe=nfe, callback=noted, **changes)
    images = l08.look(entry.deliver(test, 1000 + run_seed))
    costs = {"training": entry.training, "queries": entry.queries, "per_image": entry.per_image}
    return images, entry.log, costs


def judged(images, kind="main"):
    """en: Means of what all judges say of pictures of the held-out prompts.
    ja: 未使用のプロンプトの画像に対する、すべての評価役の採点の平均です。
    """
    return {k: float(v.mean()) for k, v in l08.judged(images, test, kind, run_seed, sizes).items()}


base_images, _, base_costs = lab.keep("base", compete, "base")
hacked, hacked_log, hacked_costs = lab.keep("first", compete, "draft", "bias")
rows = {t("l08.base"): list(base_images[:6]), t("l08.after"): list(hacked[:6])}
strips(rows, title=t("l08.first_title", nfe=hacked_costs["training"]))

# %% [markdown] lang="en" uid="first-question" pair="5d2fcbdb"
# Look at the faces, not at numbers: hair, glasses, background, colours. Then decide before you run the next cell.

# %% [markdown] lang="ja" uid="first-question" pair="37168cd2"
# 数値ではなく顔を見てください。髪、眼鏡、背景、色はどう変わりましたか。自分の考えを決めてから、次のセルを実行してください。

# %% uid="first-predict" tags=["quiz"]
lab.predict("first_gold")

# %% uid="first-numbers"
before, after = judged(base_images, "bias"), judged(hacked, "bias")
names = {"proxy": t("l08.proxy"), "gold": t("l08.gold"), "saturation": t("l08.saturation")}
names |= {"diversity": t("l08.diversity")}
for key, name in names.items():
    print(t("l08.before_after", name=name, before=before[key], after=after[key]))
moved = (after["gold"] - before["gold"]) / float(l08.judged(base_images, test, "bias", run_seed, sizes)["gold"].std())
lab.reveal("first_gold", "falls" if moved < -0.2 else "rises" if moved > 0.2 else "stays")

# %% [markdown] lang="en" uid="first-reading" pair="63aa9a5f"
# **What you see.** The reward has risen, by a lot on its own scale: its unit is one standard deviation of the base's pictures. Now look at the faces, and at the gold score, which knows exactly what was wanted. In the recorded runs of this very race the proxy goes from .03 to 1.83, gold from .57 to .68, saturation from .26 to .40, and the diversity of the pictures from 4.7 to 1.4. Something has been optimised. Was it what the team wanted? Two suspects: the reward (what do its votes know?) and the optimiser (how far does it go?). Both get a section, and section 9 comes back to these faces.
#
# *Before reading on: if the reward were perfect, what would still be lost?*

# %% [markdown] lang="ja" uid="first-reading" pair="6c24853c"
# **図の読み方。** 報酬は上がりました。単位は基準モデルの画像での標準偏差なので、大きな伸びです。次に、顔と正解スコアを見てください。正解スコアは、チームが求めていたものを正確に反映します。同じ条件の記録では、代理スコアは0.03から1.83へ、正解スコアは0.57から0.68へ、彩度は0.26から0.40へ、画像の多様性は4.7から1.4へ変わりました。何かが最適化されたのは確かですが、それはチームの望んだものだったのでしょうか。疑わしいのは2つあります。報酬(投票から何が分かるのか)と、最適化手法(報酬をどこまで追い求めるのか)です。どちらも節を設けて調べ、第9節でもう一度これらの顔に戻ります。
#
# *先を読む前に考えてください。報酬が完璧だったとしても、何が失われるでしょうか。*

# %% [markdown] lang="en" uid="map" pair="36d912dd"
# ## 2. A map of the survey
#
# Alignment, in the survey's sense, steers a trained generator so that its outputs match intent, preference and safety; maximum likelihood does not promise that. Its companion list of papers divides the techniques like this (the last column is where you meet them):
#
# | family | what it needs | contenders of this lesson | more |
# |---|---|---|---|
# | reinforcement learning from feedback | scores | RAFT, RWR, DDPO, GRPO, DiffusionNFT | section 5 |
# | the same, through the sampler | the reward's gradient | DRaFT-K, AlignProp | section 6 |
# | DPO and its relatives | pairs, or likes and dislikes | Diffusion-DPO, KTO | lessons 05, 06 |
# | at test time: search | scores | best-of-N, FK steering | sections 4 and 7 |
# | at test time: guidance | the reward's gradient | universal guidance | section 7 |
# | at test time: attention | liked pictures | FABRIC | lesson 04 |
#
# **Open problems** that it names, by its list of papers and by summaries of its text, which was not at hand for this lesson: scarce and biased preference data, reward over-optimisation, judges that disagree, cost. **Not the survey's but the article's:** the grouping into rules, dialogue and preferences, and the three axes task,
# safety, preference. Neither stands in the survey's abstract or list. They are useful in practice, so this lesson measures on the three axes, and says whose idea they are.

# %% [markdown] lang="ja" uid="map" pair="dcd13455"
# ## 2. サーベイの地図
#
# サーベイのいうアラインメントは、学習済みの生成モデルの出力を、意図、選好、安全性に合うように導くことです。最尤学習では、それは保証されません。付属の論文一覧では、手法を次のように分けています(最後の列は、この教材で扱う場所です)。
#
# | 系統 | 必要なもの | このレッスンの手法 | 詳しくは |
# |---|---|---|---|
# | フィードバックによる強化学習 | スコア | RAFT、RWR、DDPO、GRPO、DiffusionNFT | 第5節 |
# | 同じ目的でサンプラーを通して微分 | 報酬の勾配 | DRaFT-K、AlignProp | 第6節 |
# | DPO とその仲間 | ペア、または「好き」「嫌い」 | Diffusion-DPO、KTO | レッスン05、06 |
# | テスト時: 探索 | スコア | best-of-N、FK ステアリング | 第4節と第7節 |
# | テスト時: 誘導 | 報酬の勾配 | ユニバーサル誘導 | 第7節 |
# | テスト時: 注意機構 | 好まれた画像 | FABRIC | レッスン04 |
#
# 論文一覧と、本文の要約記事によると(本文はこのレッスンでは参照していません)、サーベイが挙げる**未解決の課題**は、選好データの不足と偏り、報酬の過剰最適化、評価者どうしの不一致、費用です。**サーベイではなく記事のもの**もあります。ルール・対話・好みという分け方と、タスク・安全性・選好の三軸は、
# サーベイの要旨にも一覧にも出てきません。実務では役に立つので、このレッスンでも三軸で測りますが、誰の考えかは区別しておきます。

# %% [markdown] lang="en" uid="proxy" pair="878064cb"
# ## 3. Gold, and what votes know of it
#
# **Gold** is exact here, because the world is drawn: *task*, the probability that the named attributes are right; *safety*, no sunglasses (a harmless stand-in for what a company forbids); *preference*, a cool background, a taste that
# nobody wrote down. Gold is their mean. Nothing is ever trained against it.
#
# **The proxy** sees votes only. Two pictures of the base for one prompt $c$; the better one wins with probability $\sigma(\Delta / \tau)$, with $\Delta$ the difference of their gold and $\tau = 0.05$ the noise of a vote (a difference of .05 is judged rightly 73 times in 100). A network $r$ on CLIP's features is fitted to the winners $x_w$ and losers $x_l$ by Bradley and Terry's likelihood,
#
# $$L = -\log\sigma\big(r(x_w, c) - r(x_l, c)\big)$$
#
# which is lesson 05's step 3. How many votes make a good judge? The chart asks proxies of different size of electorate to order new pairs. The *planted taste* is one more variable: raters who, without knowing, also favour saturated colours, a habit that published scorers of photographs are reported to have.

# %% [markdown] lang="ja" uid="proxy" pair="adcd5cdf"
# ## 3. 正解スコアと、投票から分かること
#
# ポートレートの世界では属性を正確に読み取れるので、**正解スコア**も正確に求められます。*タスク*は、指定した属性が正しい確率です。*安全性*は、サングラスがない確率です(会社が禁じる表現の、無害な代用です)。*選好*は、背景が寒色である確率で、これは誰も書き留めていない好みです。
# 正解スコアはこの3つの平均です。学習の目標には決して使いません。
#
# **代理スコア**の元になるのは投票だけです。基準モデルが1つのプロンプト $c$ から描いた2枚のうち、良いほうが確率 $\sigma(\Delta / \tau)$ で勝ちます。$\Delta$ は2枚の正解スコアの差、$\tau = 0.05$ は投票のばらつきの大きさです(差が0.05なら、100回中73回は良いほうが勝ちます)。CLIP の特徴量を入力とするネットワーク $r$ が、勝った画像 $x_w$ と負けた画像 $x_l$ から、Bradley-Terry の尤度で学習します。このネットワークを**代理**と呼びます。
#
# $$L = -\log\sigma\big(r(x_w, c) - r(x_l, c)\big)$$
#
# これはレッスン05のステップ3と同じです。何票あれば良い評価役になるでしょうか。グラフでは、票数の違う代理に、新しいペアの順序を付けさせます。もう1つの変数が*仕込んだ癖*です。評価者は自覚のないまま、彩度の高い画像に票を入れがちです。公開されている写真の採点モデルにも、同じ癖が報告されています。

# %% uid="pool"
from labkit.diffusion import NFELedger
from labkit.survey import VoteSettings, prices, train_proxy


def candidates():
    """en: Best-of-N's pool: pictures [prompts, N, 3, 64, 64], what the ledger counted, and the N it could afford.
    ja: best-of-N のプール: 画像 [プロンプト, N, 3, 64, 64]、帳簿の記録、予算で引ける N です。
    """
    entry = l08.race("best_of_n", "main", run_seed, sizes)
    entry.deliver(test, 1000 + run_seed)
    return entry.extra["images"], entry.ledger.as_dict(), entry.per_image


pool, counted, per_image = lab.keep("candidates", candidates)
n_all = pool.shape[1]
texts = [text for text in test for _ in range(n_all)]
flat = pool.flatten(0, 1)
gold = l08.gold(flat, texts).view(len(test), n_all).float()


def scores_of(proxy):
    """en: Scores [prompts, N] of the pool.
    ja: プールのスコア [プロンプト, N] です。
    """
    with torch.no_grad():
        parts = [proxy(flat[i : i + 64], texts[i : i + 64]) for i in range(0, len(texts), 64)]
    return torch.cat(parts).view(len(test), n_all)


def ordered(scores):
    """en: Share of pairs of one prompt that the scores put in gold's order.
    ja: 同じプロンプトのペアのうち、スコアの順序が正解スコアと一致する割合です。
    """
    mine, truth = scores[:, :, None] - scores[:, None], gold[:, :, None] - gold[:, None]
    clear = truth.abs() > 0.02
    return float((mine.sign() == truth.sign())[clear].float().mean())


# %% uid="votes"
models, votes = l08.models(), l08.voting_pool(sizes.prompts, sizes.pool, sizes.steps)
numbers = [10, 40, 100, 400]
electorates = {t("l08.plain_proxy"): 0.0, t("l08.bias_proxy"): 1.0}
quality = {}
for name, bias in electorates.items():
    fitted = [train_proxy(models.clip, models.inputs, votes, VoteSettings(n=n, bias=bias), run_seed) for n in numbers]
    quality[name] = [ordered(scores_of(proxy)) for proxy in fitted]
curve_with_interval(
    numbers,
    quality,
    xlabel=t("l08.votes"),
    ylabel=t("l08.ordered"),
    reference={t("l08.chance"): 0.5},
    log_x=True,
    title=t("l08.votes_title"),
)

# %% [markdown] lang="en" uid="proxy-reading" pair="402f1495"
# **What you see.** A few dozen votes already beat chance by far; hundreds more add a little here, yet section 4 will show that such a little is worth $.077$ $[.053, .100]$ of gold to a search over 21 pictures. Most of what is left is disagreement. The public scorers of photographs are no better: they agree with people in about 57 to 84 % of pairs,
# and one person with a panel in about 65 to 78 %. Votes with the planted taste are *consistently* wrong in one direction, so more of them do not help. **Keep in mind:** the proxy was fitted on pictures of the *base*. What it says of pictures that the base
# never makes, nobody has checked.

# %% [markdown] lang="ja" uid="proxy-reading" pair="6b0538bc"
# **図の読み方。** 数十票でも偶然を大きく上回り、数百票を足しても、ここでの伸びはわずかです。それでも第4節で見るように、21枚からの探索では正解スコアに $.077$ $[.053, .100]$ の差が付きます。残る不一致の多くは、票が割れることによるものです。公開されている写真の採点モデルも大差ありません。人と一致するペアは57〜84%ほどで、1人の評価者と評価者全体との一致も65〜78%ほどです。癖を仕込んだ投票は、
# *いつも同じ方向に*間違えるので、増やしても良くなりません。**覚えておくこと:** 代理が学習に使ったのは*基準モデル*の画像です。基準モデルが描かないような画像を代理がどう採点するかは、誰も確かめていません。

# %% [markdown] lang="en" uid="search" pair="eee2dce3"
# ## 4. Search: the honest baseline
#
# Draw $N$ pictures, deliver the best by the proxy. No training, nothing can diverge. How good is it on average? One could draw $N$ pictures many times. Better: from one pool of $M$, average over *all* draws of $N$ at once. Sort the scores, smallest first, and call the $i$-th $s_{(i)}$. The
# $i$-th is the best of a draw exactly if the other $N-1$ come from the $i-1$ below it:
#
# $$E[\text{best of } N] = \sum_{i=1}^{M} \frac{\binom{i-1}{N-1}}{\binom{M}{N}}\, s_{(i)}$$
#
# By hand: scores 1, 2, 3 and $N = 2$ give three draws, with bests 2, 3, 3, so $8/3$. Common mistakes: drawing *with* replacement, and forgetting to sort.
#
# How far from the base is the result? For scores without ties the KL divergence is known without any measurement: $\log N - (N-1)/N$. That makes best-of-N the ruler for all others.

# %% [markdown] lang="ja" uid="search" pair="f0e64ebc"
# ## 4. 探索: まず比べるべき相手
#
# 画像を $N$ 枚生成し、代理スコアが最も高い1枚を納品します(best-of-N)。学習はせず、発散の心配もありません。平均するとどれだけ良くなるでしょうか。$N$ 枚を何度も生成し直すこともできますが、もっと良い方法があります。$M$ 枚のプールを1つだけ用意し、そこから $N$ 枚を選ぶ選び方*すべて*について、一度に平均するのです。スコアを小さい順に並べ、$i$ 番目を $s_{(i)}$ とします。
# $i$ 番目が最良になるのは、残りの $N-1$ 枚が、それより下の $i-1$ 枚から選ばれたときだけです。
#
# $$E[\text{best of } N] = \sum_{i=1}^{M} \frac{\binom{i-1}{N-1}}{\binom{M}{N}}\, s_{(i)}$$
#
# 手計算の例: スコアが1、2、3で $N = 2$ なら、選び方は3通り、最良は2、3、3なので $8/3$ です。よくある間違いは、*復元*抽出にすることと、並べ替えを忘れることです。
#
# 結果は基準モデルからどれだけ離れているでしょうか。同点がなければ、KLダイバージェンスは測らなくても $\log N - (N-1)/N$ と分かっています。そのため、best-of-N はほかのすべての手法の物差しになります。

# %% uid="best-of-n" tags=["exercise"] exercise="best_of_n"
import math


def best_of_n(scores, n):
    """en: Expected score (a float) of the best of n drawn without replacement from the M scores (numpy array [M]).
    ja: M 個のスコア(numpy 配列 [M])から非復元で n 個選んだときの、最良のスコアの期待値(float)です。
    """
    # BEGIN SOLUTION
    ways = sum(math.comb(i, n - 1) * score for i, score in enumerate(sorted(scores)))
    return float(ways / math.comb(len(scores), n))
    # END SOLUTION


# %% uid="best-of-n-check" tags=["check"]
lab.check("best_of_n")
best_of_n = lab.use("best_of_n")

# %% uid="bon-curve"
from labkit.survey import best_of_n_kl, best_of_n_weights

proxy = l08.proxy_of("main", run_seed, sizes)
pool_scores = scores_of(proxy)
counts = range(1, n_all + 1)
rows = list(zip(pool_scores.double().numpy(), gold.double().numpy(), strict=True))
by_proxy = np.array([np.mean([best_of_n(scores, n) for scores, _ in rows]) for n in counts])
chosen = [np.mean([best_of_n_weights(scores, n) @ truth for scores, truth in rows]) for n in counts]
by_gold = (np.array(chosen) - chosen[0]) / float(gold.std())
distance = [best_of_n_kl(n) ** 0.5 for n in counts]
curve_with_interval(
    distance,
    {t("l08.proxy"): by_proxy - by_proxy[0], t("l08.gold"): by_gold},
    xlabel=t("l08.root_kl"),
    ylabel=t("l08.gained"),
    title=t("l08.bon_title", n=n_all),
)

# %% uid="bon-law"
record = lab.recorded
recorded_gold = {kind: record.values(f"bon.gold.{kind}", "best_of_n_long").mean(0) for kind in ("main", "few")}
many = np.arange(1, len(recorded_gold["main"]) + 1)
far = np.array([best_of_n_kl(n) for n in many])
law, fitted = np.stack([np.sqrt(far), -far], 1), {}
for kind, name in {"main": t("l08.plain_proxy"), "few": t("l08.few_proxy")}.items():
    rise = recorded_gold[kind] - recorded_gold[kind][0]
    alpha, beta = np.linalg.lstsq(law[: len(many) // 2], rise[: len(many) // 2], rcond=None)[0]
    fitted[name], fitted[t("l08.law_of", votes=name)] = rise, law @ (alpha, beta)
    print(
        t("l08.alpha_beta", votes=name, alpha=alpha, beta=beta, gap=rise[-1] - fitted[t("l08.law_of", votes=name)][-1])
    )
lab.claim("bon_law", reason=t("l08.only_recorded"))
curve_with_interval(
    np.sqrt(far), fitted, xlabel=t("l08.root_kl"), ylabel=t("l08.gold_gained"), title=t("l08.law_title", n=many[-1])
)  # fmt: skip

# %% [markdown] lang="en" uid="bon-reading" pair="568ee573"
# **What you see.** In your own pool both curves rise from the same point and part: the proxy promises more than gold confirms. The recorded race has a longer curve, up to the best of 21 from one pool for every prompt: gold .57 for one picture, .80 for the best of 7, .87 for the best of 21; chosen by a proxy of a tenth of the votes it ends at .80. Gao and others ([arXiv 2210.10760](https://arxiv.org/abs/2210.10760)) found a law: with $d = \sqrt{\mathrm{KL}}$ gold gains $d\,(\alpha - \beta d)$. Fitted on $N$ up to 10 it promises more at 21 than gold has, in each of twelve pools ($-.032$ $[-.038, -.025]$, outside the two points that we allowed: **contradicted** here). *Why?* Their gold has no ceiling. This one is a mean of three probabilities: below the ceiling it rises faster than $d$ (the fitted $\beta$ is negative), near it the curve must bend. With a tenth of the votes, further from the ceiling, it misses by less, $-.008$ $[-.021, .005]$: whether it then holds to two points is open. **What would change it:** a worse proxy bends gold down sooner; ties in the score make the KL smaller than the formula says. Notice what cannot happen: best-of-N never leaves the base's own pictures, so it never breaks a face.

# %% [markdown] lang="ja" uid="bon-reading" pair="f87403d2"
# **図の読み方。** 手元のプールでは、2本の曲線は同じ点から上がり、離れていきます。代理スコアは、正解スコアで確かめられる以上に伸びます。記録した競技の曲線はもっと長く、プロンプトごとに1つのプールから best-of-21 まで求めました。正解スコアは、1枚だけなら0.57、best-of-7 で0.80、best-of-21 で0.87です。10分の1の投票で学習した代理で選ぶと0.80にとどまります。Gao ら([arXiv 2210.10760](https://arxiv.org/abs/2210.10760))は、$d = \sqrt{\mathrm{KL}}$ とおくと正解スコアの伸びが $d\,(\alpha - \beta d)$ に従うという法則を見つけました。$N$ が10までの部分で当てはめると、21では12個のプールのどれでも実際より高い値を予測します($-.032$ $[-.038, -.025]$)。許容範囲とした0.02を超えるので、ここでは**反対の結果になりました**。*なぜでしょうか。* Gao らの正解スコアには上限がありません。ここでの正解スコアは3つの確率の平均です。上限から遠い間は $d$ より速く伸び(当てはめた $\beta$ は負です)、上限に近づくと曲がらざるをえません。投票が10分の1の代理では、上限から遠いので、ずれは $-.008$ $[-.021, .005]$ に縮みます。ただし、許容範囲の0.02に収まるかどうかは決まりません。**結果を左右するもの:** 代理が悪いほど、正解スコアは早く下がり始めます。スコアに同点があると、KL は式より小さくなります。起こりえないことにも注目してください。best-of-N が選ぶのは基準モデル自身の画像なので、基準モデルなら描かないような壊れた顔が出てくることはありません。

# %% [markdown] lang="en" uid="ledger" pair="c8eef041"
# **What does it cost?** Everything is counted in NFE, forward passes of the U-Net on one picture. A backward pass costs two more. Pictures must be decoded before anybody can judge them, and that is charged too, at the price that counted operations give. A training method pays once; a search pays for every delivered picture. The race
# gives all of them the same sum: `nfe` for training, or `nfe` divided over the delivered pictures. Questions to the reward are a second column: they may be a matrix product or a person's minute.

# %% [markdown] lang="ja" uid="ledger" pair="a1902605"
# **費用はいくらか。** すべて NFE、つまり画像1枚に対する U-Net の順伝播の回数で数えます。逆伝播にはさらに2回分かかります。画像はデコードしないと採点できないので、その費用も、実際の演算数を U-Net の順伝播の回数に換算して加えます。学習する手法では費用は一度だけですが、探索では納品する1枚ごとにかかります。競技では、どの手法も同じ予算を使います。
# 予算 `nfe` を学習に使うか、納品枚数で割って1枚ごとの探索に使うかです。報酬への問い合わせ、つまり採点の回数は別に数えます。採点は行列の積で済むこともあれば、人手で1分かかることもあるからです。

# %% uid="ledger-count"
price = prices(models.pipe)
print(t("l08.decode_price", price=price.decode))
by_hand = len(test) * n_all * (sizes.steps + price.decode)
by_ledger = counted["unet_rows"] + price.decode * counted["vae_decode_rows"]
lab.verdict(t("l08.ledger_right"), abs(by_hand - by_ledger) < 1e-6 * by_hand)

# %% [markdown] lang="en" uid="policy" pair="85b86d3f"
# ## 5. Policy gradients: make what was good likelier
#
# With a stochastic sampler (DDIM at $\eta = 1$) every denoising step is a Gaussian with a density, so a trajectory has a probability, and one may ask: how should the weights move so that good trajectories become likelier? Start from $E_{p_\theta}[r]$. Its
# gradient is $\int r\,\nabla p_\theta = \int r\,p_\theta\,\nabla \log p_\theta$, so
#
# $$\nabla E[r] = E\Big[\,r(x_0) \sum_t \nabla_\theta \log p_\theta(x_{t-1} \mid x_t)\Big]$$
#
# which needs scores only, no derivative of $r$. This is DDPO's score function ([arXiv 2305.13301](https://arxiv.org/abs/2305.13301)). It is unbiased and very noisy: a picture with a good score for any reason at all is made likelier, all its luck included. Subtracting what was to be
# expected leaves the gradient's mean as it is and takes out most of the noise. GRPO's choice ([arXiv 2402.03300](https://arxiv.org/abs/2402.03300)): draw a *group* of pictures for each prompt and standardise within it,
#
# $$A = \frac{r - \mathrm{mean}(r)}{\mathrm{std}(r)}$$
#
# Write it for rewards `[P, N]`: $P$ prompts, $N$ pictures each; standard deviation of the population. A group that ties says nothing, so its advantages are 0.

# %% [markdown] lang="ja" uid="policy" pair="706a44ee"
# ## 5. 方策勾配: 良かったものの確率を上げる
#
# 確率的なサンプラー($\eta = 1$ の DDIM)では、ノイズ除去の各ステップが密度を持つ正規分布になります。そのため、最初のノイズから画像までの軌跡にも確率があり、「良い軌跡の確率を上げるには重みをどう動かすか」を考えられます。報酬の期待値 $E_{p_\theta}[r]$ から始めます。
# 勾配は $\int r\,\nabla p_\theta = \int r\,p_\theta\,\nabla \log p_\theta$ なので、
#
# $$\nabla E[r] = E\Big[\,r(x_0) \sum_t \nabla_\theta \log p_\theta(x_{t-1} \mid x_t)\Big]$$
#
# となります。必要なのはスコアだけで、$r$ の微分は要りません。これが DDPO([arXiv 2305.13301](https://arxiv.org/abs/2305.13301))のスコア関数法です。偏りはありませんが、ノイズはとても大きくなります。スコアの良かった画像は、偶然良かっただけでも確率が上がるからです。
# スコアからその期待値を引いても、勾配の平均は変わらず、ノイズの大半が消えます。GRPO([arXiv 2402.03300](https://arxiv.org/abs/2402.03300))は、プロンプトごとに画像の*グループ*を生成し、その中で標準化した値をアドバンテージとします。
#
# $$A = \frac{r - \mathrm{mean}(r)}{\mathrm{std}(r)}$$
#
# 報酬 `[P, N]`($P$ プロンプト、各 $N$ 枚)について書いてください。標準偏差は母標準偏差です。全部同点のグループからは何も分からないので、アドバンテージを0にします。


# %% uid="group-advantage" tags=["exercise"] exercise="group_advantage"
def group_advantage(rewards):
    """en: Advantages [P, N] of rewards [P, N], standardised within each row; 0 where a row has no spread.
    ja: 報酬 [P, N] を行ごとに標準化したアドバンテージ [P, N] です。差のない行は0にします。
    """
    # BEGIN SOLUTION
    centred = rewards - rewards.mean(1, keepdim=True)
    std = rewards.std(1, correction=0, keepdim=True)
    return torch.where(std > 1e-4, centred / std.clamp(min=1e-4), torch.zeros_like(rewards))
    # END SOLUTION


# %% uid="group-advantage-check" tags=["check"]
lab.check("group_advantage")
group_advantage = lab.use("group_advantage")

# %% uid="group-noise"
groups = [2, 3, 4, 6, 8, 12]
generator = lab.generator(1)
lost = []
# en: one-dimensional pictures x from N(0, 1), reward 3 + x / 2; the gradient of log p is x
# ja: 1次元の画像 x(N(0, 1) に従う)、報酬は 3 + x / 2。log p の勾配は x です
for n in groups:
    slope = []
    for _ in range(400):
        x = torch.randn(1, n, generator=generator)
        slope.append(float((group_advantage(3 + x / 2) * x).mean()))
    lost.append(float(np.std(slope) / np.hypot(np.std(slope), np.mean(slope))))
curve_with_interval(
    groups, {t("l08.gradient_noise"): lost}, xlabel=t("l08.group_size"), ylabel=t("l08.noise_axis"), ylim=(0, 1),
    title=t("l08.group_title"),
)  # fmt: skip

# %% [markdown] lang="en" uid="policy-reading" pair="6904f3bd"
# **What you see.** On a toy whose gradient is known, noise shrinks slowly as the group grows. With a group of one there is no chart to draw: the advantage is $0/0$, nothing is learnt, and the program says so. People who cut group and batch to one to
# save memory report exactly this: a reward that does not move.
#
# PPO adds one precaution. If one set of pictures serves several updates, the ratio $\rho = p_\theta / p_\mathrm{old}$ leaves 1, and the objective $\min(\rho A, \mathrm{clip}(\rho, 1 \pm c) A)$ stops paying beyond $c$. A trap hides in $c$: public code *averages* log-probabilities over the $D$ elements of a latent, so
# its $10^{-4}$ belongs to $D = 16384$; for $D = 512$ the same rule is $3.2 \cdot 10^{-3}$. `clip_for` converts.
#
# **DiffusionNFT** ([arXiv 2509.16117](https://arxiv.org/abs/2509.16117)) asks for less: no densities, no trajectories. It takes clean pictures, noises them as in training, and moves the prediction towards good ones and *away* from bad ones, by the same advantage. **RAFT** keeps the first half of that: fine-tune on the best of each group.

# %% [markdown] lang="ja" uid="policy-reading" pair="5e1a95b0"
# **図の読み方。** 勾配の分かっている単純な例では、グループを大きくするとノイズは減りますが、減り方は緩やかです。1枚だけのグループは、グラフにもできません。アドバンテージが $0/0$ になって何も学べず、プログラムもそれを知らせます。メモリを節約しようとグループやバッチを1にした人は、まさに「報酬が動かない」と報告しています。
#
# 強化学習で広く使われる PPO は、安全策を1つ加えます。1組の画像で何度も更新すると、比 $\rho = p_\theta / p_\mathrm{old}$ が1から離れます。目的関数 $\min(\rho A, \mathrm{clip}(\rho, 1 \pm c) A)$ では、比が1から $c$ より離れても、値はそれ以上増えません。この $c$ には罠があります。公開されているコードは潜在変数の $D$ 個の要素について対数確率を*平均*するので、
# $10^{-4}$ は $D = 16384$ での値です。$D = 512$ なら、同じ規則は $3.2 \cdot 10^{-3}$ になります。`clip_for` で換算できます。
#
# **DiffusionNFT**([arXiv 2509.16117](https://arxiv.org/abs/2509.16117))は、密度も軌跡も必要としません。完成した画像に学習時と同じようにノイズを加え、同じアドバンテージに従って、良い画像に予測を近づけ、悪い画像から*遠ざけます*。**RAFT** はその前半だけで、各グループの最良の画像でファインチューニングします。

# %% [markdown] lang="en" uid="through" pair="2d61bf03"
# ## 6. Through the sampler
#
# If the reward is a network, why guess its gradient from scores? DRaFT ([arXiv 2309.17400](https://arxiv.org/abs/2309.17400)) back-propagates: picture, decoder, last denoising step, the one before, and so on. The full chain costs memory and may explode; DRaFT-K runs all $T$ steps but records only the *last* $K$. AlignProp
# draws $K$ anew for each update. Write the truncated chain for any `step(x, i)`. By hand: $x \leftarrow x/2 + \theta$, four steps: the full derivative with respect to $\theta$ is $1 + 1/2 + 1/4 + 1/8$; with $K = 1$ it is 1.

# %% [markdown] lang="ja" uid="through" pair="bd22dedd"
# ## 6. サンプラーを通して微分する
#
# 報酬がネットワークなら、勾配をスコアから推し量る必要はありません。DRaFT([arXiv 2309.17400](https://arxiv.org/abs/2309.17400))は、画像、デコーダ、最後のノイズ除去ステップ、その前のステップへと逆伝播します。全部をたどるとメモリを使い、勾配が爆発することもあります。DRaFT-K は $T$ ステップすべてを実行しますが、記録するのは*最後*の $K$ ステップだけです。
# AlignProp は更新のたびに $K$ を選び直します。任意の `step(x, i)` を $T$ ステップ繰り返し、勾配を打ち切る関数を書いてください。手計算の例: $x \leftarrow x/2 + \theta$ を4ステップ行うと、$\theta$ についての微分は全体で $1 + 1/2 + 1/4 + 1/8$、$K = 1$ なら1です。


# %% uid="truncated-chain" tags=["exercise"] exercise="truncated_chain"
def truncated_chain(step, x, steps, k):
    """en: Run x = step(x, i) for i = 0 .. steps - 1; gradients are recorded in the last k steps alone. Returns x.
    ja: i = 0 .. steps - 1 について x = step(x, i) を実行し、最後の k ステップだけ勾配を記録します。x を返します。
    """
    # BEGIN SOLUTION
    for i in range(steps):
        with torch.set_grad_enabled(i >= steps - k):
            x = step(x, i)
    return x
    # END SOLUTION


# %% uid="truncated-chain-check" tags=["check"]
lab.check("truncated_chain")
truncated_chain = lab.use("truncated_chain")

# %% uid="truncation"
steps, contraction = 8, 0.7
seen = []
for k in range(1, steps + 1):
    theta = torch.tensor(0.0, requires_grad=True)
    end = truncated_chain(lambda x, i, theta=theta: contraction * x + theta, torch.ones(()), steps, k)
    seen.append(float(torch.autograd.grad(end, theta)[0]))
shares = np.array(seen) / seen[-1]
curve_with_interval(
    list(range(1, steps + 1)), {t("l08.share"): shares}, xlabel=t("l08.k_axis"), ylabel=t("l08.share"), ylim=(0, 1.05),
    title=t("l08.k_title"),
)  # fmt: skip

# %% [markdown] lang="en" uid="through-reading" pair="eec4b7f4"
# **What you see.** In a chain that forgets its past by a factor 0.7 a step, the last few steps carry most of the gradient. In a sampler the last steps decide colour and texture, the first ones layout: a small $K$ is cheap and edits surfaces. And a warning that follows from the derivation: DRaFT needs a *derivative*, and a rule in a program has none, so it
# can only climb the learnt stand-in. It is the fastest climber, of exactly the thing that was wrong in section 1. Predict now who will be fooled most.

# %% [markdown] lang="ja" uid="through-reading" pair="70daf8d3"
# **図の読み方。** 1ステップごとに過去の影響が0.7倍になる連鎖では、勾配の大半を最後の数ステップが担います。サンプラーでは、最後のステップが色や質感を、最初のステップが構図を決めます。そのため、$K$ が小さいと費用は少なくて済み、変わるのは色や質感だけです。導出からは注意点も分かります。DRaFT には*微分*が必要ですが、プログラムの規則は微分できません。したがって DRaFT が最大化できるのは、
# 規則の代わりに学習した報酬だけです。スコアを最も速く上げますが、そのスコアは、第1節で問題になったあの報酬のものです。代理に最も騙されるのはどの手法か、ここで予想してください。

# %% uid="hack-predict" tags=["quiz"]
lab.predict("first_to_hack")

# %% [markdown] lang="en" uid="particles" pair="a9870bd6"
# ## 7. Steering while sampling
#
# Best-of-N looks only at the end. FK steering ([arXiv 2501.06848](https://arxiv.org/abs/2501.06848)) looks on the way: $k$ particles per prompt, and at some steps the clean picture that each one predicts is scored. Who has *risen* most since the last look is copied, who has fallen dies:
#
# $$w_i \propto \exp\big(\lambda\,(r_i^\mathrm{now} - r_i^\mathrm{before})\big)$$
#
# Why the difference and not the level? The factors of all looks are multiplied. Differences telescope to $e^{\lambda r(x_0)}$, the tilted density of lesson 05 ($\lambda$ is the strength of the selection); levels would count early luck again and again. Write the weights, normalised over the particles. By hand: rises 0, 1, 2 at $\lambda = \ln 2$ give $(1, 2, 4)/7$.

# %% [markdown] lang="ja" uid="particles" pair="244e7a86"
# ## 7. 生成しながら舵を取る
#
# best-of-N は最後の画像しか見ません。FK ステアリング([arXiv 2501.06848](https://arxiv.org/abs/2501.06848))は途中も見ます。プロンプトごとに $k$ 個の粒子を用意し、いくつかのステップで、各粒子が予測する完成画像を採点します。前に見たときから最も*伸びた*粒子は複製され、落ちた粒子は消えます。
#
# $$w_i \propto \exp\big(\lambda\,(r_i^\mathrm{now} - r_i^\mathrm{before})\big)$$
#
# スコアそのものではなく差を使うのはなぜでしょうか。重みは毎回掛け合わされます。差なら途中が打ち消し合って $e^{\lambda r(x_0)}$ が残り、レッスン05で見た、報酬の方向に傾けた分布になります($\lambda$ は選別の強さです)。スコアそのものでは、初期の幸運を何度も数えてしまいます。粒子について正規化した重みを書いてください。手計算の例: 伸びが0、1、2で $\lambda = \ln 2$ なら $(1, 2, 4)/7$ です。


# %% uid="fk-weights" tags=["exercise"] exercise="fk_weights"
def fk_weights(now, before, strength):
    """en: Weights [P, k] of k particles per prompt from their rewards now and before [P, k]; rows sum to 1.
    ja: 今と前の報酬 [P, k] から、プロンプトごとの k 個の粒子の重み [P, k] を求めます。各行の合計は1です。
    """
    # BEGIN SOLUTION
    return torch.softmax(strength * (now - before), 1)
    # END SOLUTION


# %% uid="fk-weights-check" tags=["check"]
lab.check("fk_weights")
fk_weights = lab.use("fk_weights")

# %% uid="particles-left"
from labkit.survey import effective_size

climbs = pool_scores - pool_scores.roll(1, 1)
strengths = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]
alive = [float(effective_size(fk_weights(pool_scores, pool_scores - climbs, s)).mean()) for s in strengths]
curve_with_interval(
    strengths, {t("l08.alive"): alive}, xlabel=t("l08.strength_axis"), ylabel=t("l08.alive_axis", n=n_all),
    title=t("l08.alive_title"),
)  # fmt: skip

# %% [markdown] lang="en" uid="particles-reading" pair="0f87d409"
# **What you see.** $1 / \sum w_i^2$ counts how many particles still matter. At strength 0 all do; at 8 one has taken everything, and the search has lost its alternatives long before the picture is finished. Code therefore resamples only when fewer than half are left. *Decide:* which strength would you race with, and would you look early, when predictions are
# blurred, or late, when little can be changed?
#
# The other way to steer is **guidance**: add the reward's gradient to every step. Stronger, dearer (a backward pass through U-Net and decoder in every step), and able to leave the data.

# %% [markdown] lang="ja" uid="particles-reading" pair="64414916"
# **図の読み方。** $1 / \sum w_i^2$ は、意味のある粒子がいくつ残っているかを表します。強さ0ではすべてが残り、8では1つが独占します。画像が完成するずっと前に、探索の選択肢がなくなってしまうのです。そのため実装では、有効な粒子数が半分を下回ったときだけ引き直します。*ここで決めてください。* どの強さで競技に臨みますか。予測がぼやけている早い段階で見ますか、それとも
# ほとんど変えられない遅い段階で見ますか。
#
# 舵を取るもう1つの方法が**誘導**です。各ステップに報酬の勾配を加えます。強力ですが、毎ステップ U-Net とデコーダを逆伝播するので高くつき、学習データの分布から外れた画像になることもあります。

# %% [markdown] lang="en" uid="race" pair="66b64867"
# ## 8. The race
#
# Three contenders run live, each within a minute on a laptop, over the recorded race. The default three stand for the three ways to use a reward: copy your best (RAFT), climb the gradient (DRaFT), select (best-of-N, from the pool above). Add any of `labkit.survey.CONTENDERS` to `live`; the prediction comes first.

# %% [markdown] lang="ja" uid="race" pair="02f7ab50"
# ## 8. 競技
#
# 3つの手法をこの場で実行し(ノートPCでも1つ1分以内です)、記録済みの競技に重ねます。既定の3つは、報酬の使い方の3通りを代表しています。自分の最良の画像をまねる(RAFT)、勾配に従う(DRaFT)、選ぶ(best-of-N。上のプールを使います)。`labkit.survey.CONTENDERS` の名前を `live` に足してもかまいません。実行の前に予想してください。

# %% uid="names"
from labkit.figures import family_looks
from labkit.studies import l08_long

contenders = {
    "base": t("l08.base"),
    "raft": "RAFT",
    "rwr": "RWR",
    "ddpo": "DDPO",
    "grpo": "GRPO",
    "nft": "DiffusionNFT",
}
contenders |= {"draft": "DRaFT", "alignprop": "AlignProp", "dpo": "Diffusion-DPO", "kto": "KTO", "fabric": "FABRIC"}
contenders |= {"best_of_n": "best-of-N", "fk": t("l08.fk"), "guidance": t("l08.guidance")}
told = {"few": t("l08.few_proxy"), "bias": t("l08.bias_proxy")}


def named(arm):
    """en: What a chart calls an arm of the record: the contender, and its votes where they are not the plain ones.
    ja: グラフでの条件の呼び名。手法の名前に、標準と違う投票ならその種類を付けます。
    """
    name, kind = l08_long.kind_of(arm)
    return contenders[name] if kind == "main" else t("l08.named", name=contenders[name], votes=told[kind])


families = [("raft", "rwr", "raft_bias"), ("ddpo", "grpo"), ("draft", "alignprop", "draft_few", "draft_bias")]
families += [("dpo", "kto"), ("nft", "nft_bias"), ("best_of_n", "fk", "guidance", "fabric")]
looks = family_looks([[named(arm) for arm in family] for family in families])

# %% uid="race-run" tags=["slow"]
live = ["raft", "draft"]
mine, logs, costs = {}, {}, {}
for name in lab.progress_bar(live, t("l08.contender"), len(live)):
    mine[name], logs[name], costs[name] = lab.keep("race", compete, name)
best = pool_scores.argmax(1)
mine["best_of_n"] = pool[torch.arange(len(test)), best]
verdicts = {name: judged(images) for name, images in {"base": base_images, **mine}.items()}
logged = {name: [record for record in log if "gold" in record] for name, log in logs.items()}
lines = {named(n): tuple([record[key] for record in log] for key in ("nfe", "proxy")) for n, log in logged.items()}
recorded_paths(
    lines, xlabel=t("l08.nfe"), ylabel=t("l08.proxy_axis"), title=t("l08.live_title"), looks=looks, size=(7.0, 3.4)
)  # fmt: skip

# %% uid="race-strips"
rows = {"base": base_images, **mine}
strips({named(name): list(images[:6]) for name, images in rows.items()}, title=t("l08.strips_title"))

# %% [markdown] lang="en" uid="live-reading" pair="2f3453fd"
# **What you see.** The chart has the proxy of each contender's own training pictures. This is all that a team without a gold judge ever sees, and it is noisy: a dozen pictures an update. The strips have the same prompts and the same noise in every column. Do not look for the most beautiful row. Look for what *all* pictures of a row have in common and the base's have not: a colour, a haircut, an age. That is what the optimiser has learnt about your reward. Whoever learns from one reward leaves such a signature; whoever selects leaves a weaker one.
#
# *Note down, before the next cell, which row gold will put first.*

# %% [markdown] lang="ja" uid="live-reading" pair="7f9546e6"
# **図の読み方。** グラフは、各手法が学習中に描いた画像の代理スコアです。正解の評価役を持たないチームに見えるのはこれだけで、しかも1回の更新に使う画像は10枚前後なので、大きくぶれます。画像の図では、同じ列の画像は、同じプロンプトと同じノイズから描いています。いちばん美しい行を探すのではなく、ある行の*すべて*の画像に共通していて、基準モデルにはないものを探してください。色、髪型、年齢などです。それが、最適化手法が報酬から学び取ったものです。1つの報酬で学習すれば必ずこうした痕跡が残り、選ぶだけなら薄くなります。
#
# *次のセルを実行する前に、正解スコアがどの行を1位にするか、書き留めてください。*

# %% uid="race-gold"
arms = ["base", "raft", "rwr", "ddpo", "grpo", "nft", "draft", "alignprop", "dpo", "kto"]
arms += ["best_of_n", "fk", "guidance", "fabric"]
found = means(record, "gold", {named(arm): arm for arm in arms})
own = {named(name): value["gold"] for name, value in verdicts.items() if named(name) in found}
recorded_means(found, yours=own, xlabel=t("l08.gold_axis"), value_format="{:.3f}", title=t("l08.race_gold"))

# %% uid="race-plane"
varied = means(record, "diversity", {named(arm): arm for arm in arms})
both = {name: (varied[name], found[name]) for name in found if name in varied}
own = {named(name): (value["diversity"], value["gold"]) for name, value in verdicts.items()}
recorded_plane(
    both, yours=own, xlabel=t("l08.diversity_axis"), ylabel=t("l08.gold_axis"), title=t("l08.race_plane"), looks=looks
)  # fmt: skip

# %% [markdown] lang="en" uid="race-reading" pair="b6b5da16"
# **What you see.** Dots with intervals: the recorded race, every contender with the same 1,600 NFE and the same prompts, other votes and other noise for each seed; stars: your runs. *Is the order that of the proxy?* No. DRaFT's proxy is 1.50, best-of-7's (seven candidates a picture are what this budget affords) 1.26, yet gold is .74 for DRaFT and .82 for best-of-7, which leads in each of the five seeds that both have (section 4's .80 is the mean of twelve pools). Look into the axes: DRaFT paints the liked background behind nearly everybody (preference .90) and forgets the prompt, task falls from .54 to .33. DPO does the same more gently (gold .75, task .40). Best-of-7 raises task as well, to .65. *What did it cost in diversity?* 4.7 for the base, 4.4 for best-of-7 and NFT, 4.3 for DDPO, 3.9 for RAFT, 2.9 for DPO, 2.1 for DRaFT; in its worst runs, near 1, every picture is the same one and hardly a face. All five trained methods pay. The one that pays least, NFT, pays $.32$ $[.20, .44]$: clearly something, and less than the .5 that was declared to matter, so the verdict is *no effect that matters*. *How sure is all this?* RAFT's gold lies between .46 and .84 over fifty-one seeds, and in sixteen of them below the base's mean, .57: runs that turned the backgrounds to the wrong colour did so in a handful of updates, with a learning rate that was the better of two in a trial over half the budget. A table with one seed would have praised or buried it. And a fair table says *who saw what*: DRaFT and guidance see a gradient, DPO pairs, the others a number.

# %% [markdown] lang="ja" uid="race-reading" pair="20e585a6"
# **図の読み方。** 区間つきの点は記録済みの競技です。どの手法も1,600 NFE、プロンプトも共通で、投票とノイズはシードごとに別です。星は自分の実行です。*順序は代理スコアと同じか。* 違います。代理スコアは DRaFT が1.50、best-of-7(この予算なら、納品1枚につき候補を7枚引けます)が1.26ですが、正解スコアは DRaFT が0.74、best-of-7 が0.82で、両方を記録した5つのシードのどれでも best-of-7 が上です(第4節の0.80は、12個のプールの平均です)。軸ごとに見ましょう。DRaFT は、ほとんどの背景を好まれる色に塗りましたが(選好0.90)、プロンプトからは外れ、タスクの軸が0.54から0.33に下がりました。DPO も、程度は軽いものの同じです(正解スコア0.75、タスク0.40)。best-of-7 ではタスクも0.65に上がります。*多様性をどれだけ失ったか。* 基準モデルの4.7に対し、best-of-7 と NFT は4.4、DDPO は4.3、RAFT は3.9、DPO は2.9、DRaFT は2.1です。DRaFT の最も悪い実行では1に近く、どの画像も同じで、顔にもほとんど見えません。学習する5つの手法は、どれも多様性を失います。失い方が最も小さい NFT は $.32$ $[.20, .44]$ で、確かに下がっていますが、意味のある差と宣言した0.5には届きません。そのため判定は「*意味のある大きさの効果はない*」です。*どこまで確かか。* RAFT の正解スコアは、51個のシードで0.46から0.84まで散らばり、16回は基準モデルの平均0.57を下回りました。背景を好まれない色にしてしまった実行では、数回の更新でそうなりました。学習率は、半分の予算で試した2つのうち良いほうです。1シードだけの表なら、褒めすぎるか、切り捨てるかのどちらかになったでしょう。公平な表には、*誰が何を見たか*も書きます。DRaFT と誘導は勾配を、DPO はペアを、ほかは数値を見ています。

# %% uid="paths-cost"
online = ["raft", "rwr", "ddpo", "grpo", "nft", "draft", "alignprop"]


def stages(metric, arm):
    """en: Means of a recorded contender at the start (the base), after half of its updates, at the end.
    ja: 記録済みの手法の平均。開始時(基準モデル)、更新の半分、終了時の順です。
    """
    levels = [record.values(metric, "base"), record.values(f"{metric}.half", arm), record.values(metric, arm)]
    return np.array([level.mean() for level in levels])


def spent(metric, arm):
    """en: NFE or reward queries of the stages.
    ja: 各段階までの NFE または報酬への問い合わせの数です。
    """
    return record.values(metric, arm).mean() * np.array([0, 0.5, 1])


ran = [arm for arm in online if record.seeds(arm)]
score = {"gold": t("l08.gold_axis"), "proxy": t("l08.proxy_axis")}
price_axis = {"nfe": t("l08.nfe"), "queries": t("l08.queries_axis")}
for cost, axis in price_axis.items():
    lines = {named(arm): (spent(cost, arm), stages("gold", arm)) for arm in ran}
    display(
        recorded_paths(lines, xlabel=axis, ylabel=score["gold"], title=t("l08.paths_cost", price=axis), looks=looks)
    )

# %% [markdown] lang="en" uid="paths-cost-reading" pair="41fe5fe9"
# **What you see.** The same gold against two prices. On the first chart everyone pays alike, so what counts is the slope. By its proxy DRaFT is ahead of all at half of the budget: 1.17 against .41 for RAFT, .48 for NFT, .47 for DDPO. By gold, NFT goes from .66 at half to .72 at its end, DDPO from .65 to .70: five and six updates are too few to tell the two apart, so the claim below asks a race of three times the budget. DiffusionNFT's paper compares over hundreds of updates. On the second chart the price is what the reward was asked. DRaFT asks once for each of its pictures, and a gradient carries more than a number does; DPO (not drawn: it stops asking before it starts training) asked 72 times, DDPO 96. If a question to your reward is a matrix product, read the first chart; if it is a minute of a person's time, the second, and then mind that a person has no gradient.

# %% [markdown] lang="ja" uid="paths-cost-reading" pair="ea628326"
# **図の読み方。** 同じ正解スコアを、2種類の費用に対して描きました。1つ目のグラフでは、どの手法も同じ予算を使うので、見るべきは傾きです。予算の半分の時点の代理スコアでは、DRaFT が先頭です(1.17。RAFT は0.41、NFT は0.48、DDPO は0.47)。正解スコアでは、NFT が半分で0.66、終了時に0.72、DDPO が0.65から0.70です。5回や6回の更新では両者を区別しにくいので、下の主張は予算を3倍にした競技で判定します。DiffusionNFT の論文が比べているのは、数百回の更新です。2つ目のグラフの費用は、報酬に採点させた枚数です。DRaFT の採点も1枚につき1回ですが、勾配は1つの数値より多くの情報を伝えます。DPO は採点をすべて学習の前に済ませるので描いていませんが、採点は72枚でした(DDPO は96枚)。採点が行列の積で済むなら1つ目のグラフを、人手で1分かかるなら2つ目を見てください。ただし、人の採点からは勾配が得られません。

# %% uid="paths-kl"
trained = [arm for arm in (*online, "dpo", "kto", "draft_few", "draft_bias") if record.seeds(arm)]
law = [best_of_n_kl(n) ** 0.5 for n in range(2, record.values("bon.gold.main", "best_of_n").shape[1] + 1)]
for metric, axis in score.items():
    curve = record.values(f"bon.{metric}.main", "best_of_n").mean(0)
    lines = {t("l08.search_path"): (law, curve[1:])}
    lines |= {named(a): (record.values("kl", a).mean() ** 0.5, record.values(metric, a).mean()) for a in trained}
    shown = {"title": t("l08.paths_kl", score=axis), "looks": looks | {t("l08.search_path"): looks[named("best_of_n")]}}
    display(recorded_paths(lines, xlabel=t("l08.path_kl"), ylabel=axis, log_x=True, **shown))

# %% [markdown] lang="en" uid="paths-kl-reading" pair="186aa675"
# **What you see.** Distance from the base, on a logarithmic axis, against gold and against the proxy. Best-of-N is the ruler: nothing is closer to the base for its proxy gain. NFT's paths are 149 nats away on average, DPO's 7,171, DRaFT's 47,708. Path KL is an upper bound of the picture's, so do not read it against the ruler to the digit; read the factor of 320 between NFT and DRaFT, for a gold of .72 and of .74. Compare the two charts at DRaFT with a tenth of the votes: its own proxy is as high as anything in the race. Its gold between half and end goes from .82 to .76, from .52 to .80, from .75 to .78, from .65 to .78, from .80 to .78 (seeds 0 to 4). So the turn that Gao and others draw as one smooth curve appears in one run and not in the next: twelve updates end before a turn can be told from a rise. The next charts come from a race of three times the budget.

# %% [markdown] lang="ja" uid="paths-kl-reading" pair="fa65ef5f"
# **図の読み方。** 基準モデルからの距離(対数目盛)に対する、正解スコアと代理スコアです。best-of-N が物差しになります。代理スコアを同じだけ上げながら、これより基準モデルの近くにとどまる手法はありません。軌跡の KL(ノイズ除去の全ステップを通して測る KL)は、平均で NFT が149ナット、DPO が7,171ナット、DRaFT が47,708ナットです。軌跡の KL は画像の KL の上限なので、物差しの目盛と細かく比べてはいけません。見るべきは NFT と DRaFT の比、約320倍です。これだけ離れても、正解スコアは0.72と0.74です。10分の1の投票による DRaFT を2つのグラフで比べてください。学習に使った代理によるスコアは、競技の中で最も高い部類です。予算の半分から終了時までに、正解スコアは0.82から0.76、0.52から0.80、0.75から0.78、0.65から0.78、0.80から0.78と動きました(シード0〜4)。Gao らが1本のなめらかな曲線に描いた下降は、ある実行では現れ、別の実行では現れません。12回の更新では短すぎて、下降と上昇の途中とを区別できないのです。次のグラフは、予算を3倍にした競技の記録です。

# %% uid="long-race"
stages_of_long = range(1, len(l08_long.STAGES) + 1)


def long_path(metric, arm):
    """en: A metric of a recorded long race: at the base, then after each stage; mean over seeds and prompts.
    ja: 記録された長い競技の数値。基準モデル、各段階の順に、シードとプロンプトで平均します。
    """
    later = [record.values(f"{metric}.s{i}", arm).mean() for i in stages_of_long]
    return np.array([record.values(metric, "base").mean() if metric in score else 0.0, *later])


lines, long_arms = {}, ["draft_long", "draft_few_long", "nft_long", "ddpo_long"]
for arm in filter(record.seeds, long_arms[:2]):
    for metric, name in {"proxy": t("l08.proxy"), "gold": t("l08.gold")}.items():
        gained = (long_path(metric, arm) - long_path(metric, arm)[0]) / record.values(metric, "base").std()
        lines[t("l08.error_of", arm=named(arm), who=name)] = (long_path("kl", arm) ** 0.5, gained)
pair = {"looks": family_looks([list(lines)[:2], list(lines)[2:]]), "title": t("l08.long_kl")}
if lines:
    display(recorded_paths(lines, xlabel=t("l08.path_kl_linear"), ylabel=t("l08.gained"), **pair))
lines = {named(arm): (long_path("nfe", arm), long_path("gold", arm)) for arm in filter(record.seeds, long_arms)}
if lines:
    display(recorded_paths(lines, xlabel=t("l08.nfe"), ylabel=score["gold"], title=t("l08.long_title"), looks=looks))
print(t("l08.long_seeds"), *(f"{named(arm)}: {len(record.seeds(arm))}" for arm in long_arms), sep="\n")

# %% [markdown] lang="en" uid="long-race-reading" pair="25b8d9d9"
# **What you see.** The proxy is what is being climbed. Does gold go on with it, does it stay behind, or does it turn? With a tenth of the votes the proxy goes .69, 1.39, 1.87, 2.17 over the four looks, the mean of 38 recorded runs, while gold goes .68, .75, .75, .74 and ends below its best look in 35 of them. The diversity falls from 4.3 to 1.3. So the turn is there, and it is small ($-.038$ $[-.058, -.018]$). With all votes gold goes .73, .77, .75, .74, and 35 of 38 runs turn as well: the better judge lifts gold early and does not keep it there. That better votes make the fall smaller does not show ($.003$ $[-.019, .026]$); two points either way, which we had declared to matter, are just not ruled out. The four CPU hours of this study are spent on it, and a verdict would take some 720 seeds of two runs each. What three times the budget does decide is the comparison with the search: DRaFT stays $.128$ $[.097, .158]$ *below* best-of-N, farther than before. A turn is claimed with care: each run's best stage is chosen on every other prompt and its gold read on the remaining ones, because a maximum chosen and read on the same prompts looks higher than it is, and every noisy curve would "turn". The second chart has the runs of the long race against what they cost. NFT's gold rises at every look, .60, .68, .77, .81, the highest of all that train, at a diversity of 3.8; DDPO's goes .55, .59, .63, .67. What NFT had after a quarter of its updates DDPO has at the end: on average over the looks NFT is $.107$ $[.037, .177]$ better at the same NFE, so its paper's claim is **reproduced** here, at a smaller factor. The lines below the chart say how many seeds each has.
#
# *Would you have stopped in time? Only the proxy was on your screen.*

# %% [markdown] lang="ja" uid="long-race-reading" pair="377ca619"
# **図の読み方。** 学習が最大化しているのは代理スコアです。正解スコアは一緒に上がり続けるでしょうか。途中で取り残されるでしょうか、それとも下がり始めるでしょうか。10分の1の投票で学習した38回の記録の平均で、代理スコアは4回の測定で0.69、1.39、1.87、2.17と上がり続けます。一方、正解スコアは0.68、0.75、0.75、0.74で、38回のうち35回は、最良の時点より下で終わりました。多様性は4.3から1.3に下がっています。つまり下降は実際に起きますが、小さなものです($-.038$ $[-.058, -.018]$)。全部の投票で学習した場合は0.73、0.77、0.75、0.74で、やはり38回のうち35回で下降が起きました。評価役が良ければ正解スコアは早く上がりますが、その高さは続きません。投票が良ければ下降が小さくなるという差は、見られません($.003$ $[-.019, .026]$)。ただし、意味があると宣言した0.02の差がないとまでは言い切れません。この実験の上限である4 CPU時間は使い切っており、判定には720ほどのシード(実行は2回ずつ)が要ります。3倍の予算で決まったのは、探索との比較です。DRaFT は best-of-N を $.128$ $[.097, .158]$ *下回り*、差は短い競技のときより広がりました。下降は慎重に判定します。実行ごとに、最良の段階を1つおきのプロンプトで選び、正解スコアは残りのプロンプトで読みます。同じプロンプトで最大値を選んで読むと実際より高く見え、ノイズのある曲線はどれも「下降した」ことになってしまうからです。2つ目のグラフは、長い競技の実行を費用に対して描いたものです。NFT の正解スコアは、測るたびに0.60、0.68、0.77、0.81と上がります。学習する手法の中で最も高く、多様性も3.8あります。DDPO は0.55、0.59、0.63、0.67です。NFT が更新の4分の1で得たものに、DDPO は最後でようやく届きます。各時点の平均では、同じ NFE で NFT が $.107$ $[.037, .177]$ 上回ります。論文の主張はここでも**再現できました**。ただし倍率は論文より小さくなります。グラフの下に、それぞれのシードの数を示します。
#
# *自分なら、手遅れになる前に止められたでしょうか。画面に映っているのは代理スコアだけです。*


# %% uid="dashboards"
def panel(key, arms):
    """en: A number of the recorded logs against the NFE spent, mean over seeds: arm -> (x, y).
    ja: 記録されたログの数値を NFE に対して並べます(シードの平均)。条件名 -> (x, y) です。
    """
    there = [arm for arm in arms if record.seeds(arm)]
    paid, shown = ({a: record.values(f"panel.{k}", a).mean(0) for a in there} for k in ("nfe", key))
    return {named(arm): (paid[arm], shown[arm]) for arm in there}


options = {"xlabel": t("l08.nfe"), "size": (7.0, 2.8)}
clipping = panel("clipped", ["ddpo", "grpo"])
display(recorded_paths(clipping, ylabel=t("l08.clipped"), title=t("l08.ppo_panel"), looks=looks, **options))
roles = {t("l08.winner"): "d_w", t("l08.loser"): "d_l"}
errors = {
    t("l08.error_of", arm=arm, who=who): line
    for who, key in roles.items()
    for arm, line in panel(key, ["dpo", "kto"]).items()
}
by_role = family_looks([[t("l08.error_of", arm=named(arm), who=who) for arm in ("dpo", "kto")] for who in roles])
display(recorded_paths(errors, ylabel=t("l08.error_axis"), title=t("l08.dpo_panel"), looks=by_role, **options))

# %% [markdown] lang="en" uid="dashboards-reading" pair="c22ae756"
# **What you see.** Two instruments that people watch while training. Upper: PPO's clip. The first of the two trained steps of an update has ratios of exactly 1, so nothing of it is clipped; the second is trained with weights that have moved already. A share of .5 would therefore say that the whole second step was thrown away: that happens to GRPO's first update in each of three seeds and to DDPO's in five of fourteen (.38 on average); later ones lose a sixth to a third, so the learning rate is at its limit. Lower: DPO's two errors. The losers' error rises to .48, the winners' to .30: both get worse, the losers faster, which is all that the loss asks for (lesson 05). Gold still rose, but the model is forgetting how to draw the pictures it was told to prefer, and its diversity says so.

# %% [markdown] lang="ja" uid="dashboards-reading" pair="14160c2b"
# **図の読み方。** 学習中に監視する指標を2つ示します。上は PPO のクリップです。1回の更新で学習する2つのステップのうち、1つ目の比はちょうど1なので、何もクリップされません。2つ目は、すでに動いた重みで学習します。割合が0.5なら、2つ目のステップが丸ごと捨てられています。GRPO の最初の更新は3つのシードのすべてで、DDPO では14のうち5つで、実際にそうなりました(DDPO の平均は0.38)。その後の更新でも6分の1から3分の1が捨てられているので、学習率が上限にあることが分かります。下は DPO の2つの誤差です。敗者の誤差は0.48、勝者の誤差は0.30まで増えました。両方が悪化し、敗者のほうが速く悪化しています。損失が求めるのはそれだけです(レッスン05)。正解スコアは上がったものの、モデルは、好むように教わった画像の描き方さえ忘れつつあり、それが多様性の低下に表れています。

# %% uid="race-claims"
gain = {name: {k: value[k] - verdicts["base"][k] for k in value} for name, value in verdicts.items()}
spread_gold, spread_proxy = float(gold.std()), float(pool_scores.std())
unconfirmed = {n: g["proxy"] / spread_proxy - g["gold"] / spread_gold for n, g in gain.items()}
lab.claim("draft_first", reason=t("l08.only_recorded"))
value = unconfirmed["draft"] - unconfirmed["raft"]
what = t("l08.m_gain", what=t("l08.unconfirmed"), prompts=len(test))
lab.claim("draft_hacks", measured=what, value=value, seeds=[run_seed])
lab.claim("diversity_falls", reason=t("l08.only_recorded"))
value = gain["draft"]["gold"] - gain["best_of_n"]["gold"]
what = t("l08.m_gain", what=t("l08.gold"), prompts=len(test))
lab.claim("search_is_hard_to_beat", measured=what, value=value, seeds=[run_seed])
hacker = max(("draft", "raft", "best_of_n"), key=unconfirmed.get)
lab.reveal("first_to_hack", "search" if hacker == "best_of_n" else hacker)

# %% uid="recorded-claims"
lab.claim("gold_turns", reason=t("l08.only_recorded"))
lab.claim("turn_moves", reason=t("l08.only_recorded"))
lab.claim("dpo_asks_less", reason=t("l08.only_recorded"))
lab.claim("dpo_beats_base", reason=t("l08.only_recorded"))
lab.claim("nft_is_cheaper", reason=t("l08.only_recorded"))
lab.claim("budget_helps", reason=t("l08.only_recorded"))

# %% [markdown] lang="en" uid="bug" pair="75580d62"
# ## 9. A planted bug: who finds it?
#
# Back to section 1. Its votes came from raters with a taste for saturated colours. Nobody told the optimisers. Two pieces of evidence: the pool you already have, chosen by the honest and by the tainted proxy; and the cross-reward table of the record, whose rows say what was trained on and whose columns say who judges. Your own DRaFT under both proxies is compared below it.

# %% [markdown] lang="ja" uid="bug" pair="7fe34b86"
# ## 9. 仕込んだ欠陥: 見つけるのは誰か
#
# 第1節に戻ります。あの投票には、彩度の高い色を好む評価者の癖が混ざっていました。どの手法にも、そのことは知らされていません。証拠を2つ挙げます。1つは、手元のプールから、癖のない代理と癖のある代理が選んだ画像です。もう1つは、記録から作った報酬の相互評価の表で、行は学習に使った手法と代理、列は採点する評価役です。その下では、両方の代理で学習したあなた自身の DRaFT を比べます。

# %% uid="bug-search"
from labkit.survey import saturation_of

colours = saturation_of(flat).view(len(test), n_all).double()
by_bias = scores_of(l08.proxy_of("bias", run_seed, sizes))
curves = {}
for name, scores in {t("l08.plain_proxy"): pool_scores, t("l08.bias_proxy"): by_bias}.items():
    pairs = list(zip(scores, colours, strict=True))
    curves[name] = [float(np.mean([best_of_n_weights(s, n) @ c.numpy() for s, c in pairs])) for n in counts]
curve_with_interval(
    list(counts), curves, xlabel=t("l08.n_axis"), ylabel=t("l08.bug_axis"), title=t("l08.bug_title")
)  # fmt: skip

# %% uid="cross"
from labkit.figures import figure_style, new_figure

runs = [
    arm for arm in ("draft", "draft_few", "draft_bias", "raft", "raft_bias", "nft", "nft_bias") if record.seeds(arm)
]
columns = {"proxy.main": t("l08.plain_proxy"), "proxy.few": t("l08.few_proxy"), "proxy.bias": t("l08.bias_proxy")}
columns |= {"gold": t("l08.gold"), "task": t("l08.task"), "safety": t("l08.safety")}
columns |= {"preference": t("l08.preference"), "saturation": t("l08.saturation")}


def moved_by(arm, metric):
    """en: Gain of a recorded arm over the base in standard deviations of the base's pictures.
    ja: 基準モデルに対する記録済みの条件の伸び。単位は基準モデルの画像での標準偏差です。
    """
    now, before = record.pair(metric, arm, "base")
    return (now - before).mean() / before.std()


table = np.array([[moved_by(arm, metric) for metric in columns] for arm in runs])
with figure_style():
    figure = new_figure(8.2, 3.6, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(table, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
    axes.set_xticks(range(len(columns)), list(columns.values()), fontsize=8, rotation=20, ha="right")
    axes.set_yticks(range(len(runs)), [named(arm) for arm in runs], fontsize=8)
    axes.grid(False)
    for i, j in np.ndindex(table.shape):
        ink = "white" if abs(table[i, j]) > 1.3 else "black"
        axes.annotate(f"{table[i, j].round(1) + 0:+.1f}", (j, i), ha="center", va="center", color=ink)
    axes.set_title(t("l08.cross_title"))
figure.alt = t("l08.cross_title")
figure

# %% uid="bug-claim"
lab.claim("search_finds_bug", reason=t("l08.only_recorded"))
value = judged(hacked)["saturation"] - judged(mine["draft"])["saturation"]
lab.claim("gradient_finds_bug", measured=t("l08.m_bug"), value=value, seeds=[run_seed])
lab.claim("bug_is_found", reason=t("l08.only_recorded"))

# %% [markdown] lang="en" uid="bug-reading" pair="bea50a2a"
# **What you see.** The same pool, the same prompts: the tainted judge picks the more saturated picture; in the record's pools the best of 21 has a saturation of .32 by the tainted and of .29 by the honest proxy, one picture .26. Training can go further, because it can *make* what selection only finds. Who does? Over fifteen seeds DRaFT ends at a saturation of .40 under the taint and .26 without it (the base has .26), and its gold is .68 against .74; on the twelve seeds that were recorded after the claim was made the difference is $.114$ $[.059, .169]$. RAFT and NFT see scores alone. After eight seeds neither seemed to move that way, and fifty-one were planned to be able to say so; they say otherwise. RAFT goes after the taste, by $.021$ $[.009, .033]$: twice the smallest effect that matters, a sixth of DRaFT's. NFT does by $.0055$ $[.0005, .0105]$: the interval just misses zero, and the effect is half of what had been declared to matter. So all three find it, and the claim is **reproduced**, by NFT only just: the record was looked at twice, and an interval that pays for two looks (97.5 %, lesson 09) holds zero. Scores carry little of a direction that the gradient points at from the first step, and little is not nothing: whoever had stopped at eight seeds would have praised two methods for being blind. In the table, read along the rows: a gain that only its own column confirms is a hack; a gain that a reward with other votes, and gold, confirm as well is an improvement. **What to do without gold:** a second proxy from other votes, pictures at fixed seeds, and a list of things that should *not* move (here saturation) watched from the first update on.

# %% [markdown] lang="ja" uid="bug-reading" pair="b6b58249"
# **図の読み方。** プールもプロンプトも同じなのに、癖のある評価役は彩度の高い画像を選びます。記録したプールでは、彩度は1枚だけなら0.26、best-of-21 では癖のある代理で0.32、癖のない代理で0.29です。探索にできるのは、そういう画像を見つけることだけですが、学習なら*作り出す*ことができます。実際に作り出したのはどの手法でしょうか。15個のシードの平均で、DRaFT の彩度は癖のある代理で0.40、癖のない代理で0.26でした(基準モデルは0.26)。正解スコアは0.68と0.74です。主張を立てた後に記録した12個のシードだけでも、彩度の差は $.114$ $[.059, .169]$ です。RAFT と NFT に見えるのはスコアだけです。8シードの時点では、どちらもその方向に動いていないように見えました。そう言い切るために51シードを計画したところ、結果は逆でした。RAFT は癖を追い、彩度の差は $.021$ $[.009, .033]$ です。意味のある最小の差の2倍、DRaFT の6分の1に当たります。NFT の差は $.0055$ $[.0005, .0105]$ で、区間はかろうじて0を外れ、大きさは意味があると宣言した差の半分です。3つの手法のすべてが癖を見つけ、主張は**再現できました**が、NFT については際どい結果です。記録を2回見ているので、その分を補正した区間(97.5%、レッスン09)なら0を含みます。勾配なら最初のステップから指し示す方向も、スコアにはわずかしか含まれません。それでも、ゼロではないのです。8シードでやめていたら、見えていないだけの2つの手法を褒めていたでしょう。表は行に沿って読んでください。自分の列でしか確かめられない伸びは、報酬の穴を突いた結果です。別の投票による報酬や正解スコアでも確かめられる伸びは、改善です。**正解スコアがないときは:** 別の投票で作った2つ目の代理、固定シードの画像、そして*動いてはならない*もの(ここでは彩度)の一覧を用意し、最初の更新から見守ります。

# %% [markdown] lang="en" uid="even" pair="2d9acc90"
# ## 10. Train or search?
#
# Suppose a trained model and best-of-$N$ were equally good. Training costs $C$ once and then $T$ a picture; the search costs $N$ times as much for every picture. Training has paid when $C + T M < N T M$, so from $M^* = C / ((N-1) T)$ pictures on (decoding included in $T$). The code takes for $N$ the smallest number whose recorded gold reaches DRaFT's (the whole pool
# if none does), and for $C$ what your own run has cost.

# %% [markdown] lang="ja" uid="even" pair="391cb262"
# ## 10. 学習か、探索か
#
# 学習したモデルと best-of-$N$ の質が同じだとしましょう。学習は最初に $C$、その後は1枚につき $T$ かかります。探索は1枚ごとに $N$ 倍かかります。学習が割に合うのは $C + T M < N T M$ のとき、つまり $M^* = C / ((N-1) T)$ 枚からです(デコードの費用は $T$ に含めます)。コードでは、記録された正解スコアが DRaFT に届く最小の $N$(届かなければプール全体)を使い、
# $C$ には自分の実行にかかった費用を使います。

# %% uid="even-run"
from labkit.survey import break_even

level, curve = record.values("gold", "draft").mean(), record.values("bon.gold.main", "best_of_n").mean(0)
reached = np.flatnonzero(curve >= level)
n_search = max(2, int(reached[0]) + 1 if len(reached) else len(curve))
plain = sizes.steps + price.decode
images_needed = break_even(costs["draft"]["training"], plain, n_search * plain)
ordered_images = np.linspace(0, 2.5 * images_needed, 30)
lines = {
    t("l08.train_line"): costs["draft"]["training"] + plain * ordered_images,
    t("l08.search_line", n=n_search): n_search * plain * ordered_images,
}
curve_with_interval(
    ordered_images, lines, xlabel=t("l08.even_axis"), ylabel=t("l08.even_y"),
    title=t("l08.even_title", images=images_needed),
)  # fmt: skip

# %% [markdown] lang="en" uid="even-reading" pair="dfdfeefa"
# **What you see.** The lines cross where the saved searches have repaid the training. In the record the best of 4 already has DRaFT's gold, so training repays itself only over a few dozen pictures or more, and with one face instead of many. A catalogue of thousands: train, but stop earlier than DRaFT did here, or take NFT. A campaign of thirty: search. And a term that the chart leaves out decides more often than either: a trained model is a *new process*, whose quality must be verified anew (lesson 09), while best-of-N delivers pictures of the model that was already accepted.

# %% [markdown] lang="ja" uid="even-reading" pair="9ac0d512"
# **図の読み方。** 2本の線は、節約した探索の費用が学習の費用に追い付くところで交わります。記録では、best-of-4 ですでに DRaFT の正解スコアに届きます。学習が割に合うのは数十枚を超えてからで、しかも多様な顔の代わりに、ほぼ1つの顔になります。数千枚のカタログなら学習ですが、ここでの DRaFT より早く止めるか、NFT を使います。30枚のキャンペーンなら探索です。そして、グラフにない項目のほうが決め手になることも多くあります。学習したモデルは*新しい工程*なので、品質を検証し直さなければなりません(レッスン09)。best-of-N が納品するのは、すでに承認されたモデルの画像です。

# %% [markdown] lang="en" uid="own" pair="411d141d"
# ## 11. Your own entry
#
# Beat the recorded race within the same budget. Any contender, any of `ArenaSettings`: fewer updates of more pictures, a smaller learning rate with an earlier stop, $K$, $\lambda$, `kl` for the policy gradients. **Predict** gold before each run. Gold decides, on held-out prompts; every try goes into a leaderboard in a file of your own, beside your progress, so that tomorrow's try meets today's.
# A fair warning: looking at gold after each of twenty tries and keeping the best is an optimiser as well, and gold is its proxy.

# %% [markdown] lang="ja" uid="own" pair="d0214773"
# ## 11. 自分のエントリー
#
# 同じ予算で、記録済みの競技を上回ってください。どの手法でも、`ArenaSettings` のどの項目でもかまいません。更新回数を減らして枚数を増やす、学習率を下げて早めに止める、$K$、$\lambda$、方策勾配の `kl` などです。実行のたびに正解スコアを**予想**してください。判定は未使用のプロンプトでの正解スコアです。どの試行も、進捗と同じ場所に作られる自分用の順位表のファイルに残るので、
# 明日の試行は今日の試行と競えます。1つ忠告があります。20回試し、そのつど正解スコアを見て最良のものを残すのも、一種の最適化です。そのとき、正解スコアは代理スコアと同じ立場になります。

# %% uid="own-run" tags=["open", "slow"]
from labkit.survey.leaderboard import enter_score

my_name, my_settings = "nft", {"lr": 2e-3, "draws": 1}
own_images, own_log, own_costs = lab.keep("own", compete, my_name, **my_settings)
own_gold = judged(own_images)["gold"]
total = own_costs["training"] + len(test) * own_costs["per_image"]
allowed = sizes.nfe + len(test) * plain
lab.verdict(t("l08.within", budget=allowed, spent=total), total <= allowed * 1.001)
board = enter_score(lab.progress.path.with_name("arena.jsonl"), my_name, own_gold, nfe=total, **my_settings)
for rank, row in enumerate(board[:5], 1):
    who = contenders.get(row["name"], row["name"])
    print(t("l08.board", rank=rank, name=who, gold=row["gold"], nfe=row["nfe"]))
top = max(found, key=lambda arm: found[arm].value)
print(t("l08.recorded_best", name=top, gold=found[top].value))

# %% [markdown] lang="en" uid="photographs" pair="bf294374"
# **The same race on photographs.** So far the world was drawn, on the gpu tier too, because only there gold is known. With a GPU, the same contenders race on Stable Diffusion 1.5 with PickScore as the reward and PartiPrompts as prompts (a table that you download yourself). In a terminal:
#
# ```
# labkit arena PartiPrompts.tsv --reward pickscore --judge clip --nfe 20000 --out runs/arena
# ```
#
# Every contender trains a LoRA or searches; the table shows its gain over the base on held-out prompts, by the reward and by a judge that nobody trained on. There is no gold, so read it as section 9 taught: a gain that only the reward confirms is not one. `accelerate launch --num_processes 4 -m labkit.cli arena ...` shares contenders and seeds over four GPUs. Published runs of policy gradients take hours at this size, back-propagation of the reward about one. This course has not recorded that race.

# %% [markdown] lang="ja" uid="photographs" pair="e6b2ccc4"
# **同じ競技を写真で。** ここまでは、tier gpu でもポートレートの世界を使いました。正解スコアが分かるのはこの世界だけだからです。GPU があれば、同じ手法を Stable Diffusion 1.5 で競わせることができます。報酬は PickScore、プロンプトは PartiPrompts です(表は自分でダウンロードしてください)。ターミナルで次のように実行します。
#
# ```
# labkit arena PartiPrompts.tsv --reward pickscore --judge clip --nfe 20000 --out runs/arena
# ```
#
# 各手法が LoRA を学習するか探索を行います。表には、未使用のプロンプトで基準モデルをどれだけ上回ったかが、報酬による採点と、誰も学習に使っていない評価役による採点の両方で並びます。正解スコアはないので、第9節のとおりに読んでください。報酬でしか確かめられない伸びは、改善とはいえません。`accelerate launch --num_processes 4 -m labkit.cli arena ...` とすると、手法とシードを4枚の GPU で手分けします。公開されている報告では、この規模の方策勾配には数時間、報酬の逆伝播には1時間ほどかかります。この競技は、この教材ではまだ記録していません。

# %% [markdown] lang="en" uid="real" pair="0ebfbf6c"
# ## 12. The same on Stable Diffusion
#
# A race in the notebook, then, small enough for one sitting: the base, a search (best-of-N) and a training (Diffusion-DPO), at one budget, with the tier's own pipeline and judges:
#
# | tier | pictures | who chooses | who only watches |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5, or SDXL with `model="sdxl"` | PickScore, or `reward="imagereward"` and others | CLIP |
# | smoke, cpu | PortraitSD | PortraitCLIP: what the prompt names, no sunglasses, a cool background | AttributeReader, the same questions |
#
# Before a weight is loaded, the box says what the gpu tier will draw and train, how much memory that needs and how long it takes; without a GPU it says so for a T4. It forecasts a whole pool and a whole training, which is more than this small race spends.
#
# **Predict:** four pictures are delivered. Section 10 told you who wins when so few are asked for. What would have to change for the other one to win?

# %% [markdown] lang="ja" uid="real" pair="d01b8622"
# ## 12. 同じことを Stable Diffusion で
#
# ここでは、ノートブックの中で終わる小さな競技にします。基準モデル、探索(best-of-N)、学習(Diffusion-DPO)が、同じ予算で競います。パイプラインと評価役は tier によって変わります。
#
# | tier | 画像 | 選ぶ評価役 | 見守るだけの評価役 |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5(`model="sdxl"` なら SDXL) | PickScore(`reward="imagereward"` などに変更できます) | CLIP |
# | smoke, cpu | PortraitSD | PortraitCLIP: プロンプトの指定、サングラスがないこと、寒色の背景 | AttributeReader(同じ3点) |
#
# 重みを読み込む前に、tier gpu で何をどれだけ生成・学習し、メモリと時間がどれだけかかるかを表示します。GPU がなければ、T4 での見込みを示します。見込みはプール全体の生成と学習を含むので、この小さな競技で実際に使う量より多めです。
#
# **予想してください。** 納品するのは4枚です。これほど少ないときにどちらが勝つかは、第10節で分かりました。もう一方が勝つには、何が変わればよいでしょうか。

# %% uid="real-run" tags=["slow"]
from labkit.diffusion import decode_latents
from labkit.survey import ArenaSettings, enter

sd = lab.real(l08.models().pipe, rounds=3, pools=1, runs=1)
asked = sd.held_out[:4]
half_batch = max(1, (sd.config.micro_batch or sd.config.batch_size) // 2)
settings = ArenaSettings(
    steps=sd.sampling["steps"], guidance_scale=sd.sampling["guidance_scale"], eta=0.0, checks=1, candidates=sd.candidates,
    batch=half_batch, draws=1, lr=sd.config.lr, rank=sd.config.rank, kappa=sd.kappa,
)  # fmt: skip
budget = len(asked) * sd.candidates * prices(sd.pipe).sampled(settings.steps, rows=settings.rows)
delivered, said = {}, {}
for name in ("base", "best_of_n", "dpo"):
    entry = enter(
        name, sd.pipe, sd.prompts, sd.reward, nfe=budget, seed=lab.seed, delivered=len(asked), settings=settings
    )  # fmt: skip
    with torch.no_grad():
        images = decode_latents(sd.pipe, entry.deliver(asked, 1)).float().clamp(-1, 1).cpu()
    label = contenders[name]
    delivered[label], said[label] = images, sd.opinions(images, asked)
    total = entry.training + len(asked) * entry.per_image
    print(t("l08.real_line", name=label, nfe=total, chosen=said[label][0].mean(), seen=said[label][1].mean()))
strips(
    delivered,
    scores={label: chosen for label, (chosen, _) in said.items()},
    title=t("l08.real_title", model=sd.name, nfe=budget),
)

# %% [markdown] lang="en" uid="real-reading" pair="6c0273df"
# **Reading.** Each column has one prompt. The first number of a line is the budget, the second what the reward says, the third what the judge says that nobody climbed. The search can hardly lose on the reward: it looked at several pictures for each that it delivers. The training had to learn from two groups of candidates, which teaches next to nothing; for it, the
# break-even of section 10 is far away. Only the third number says whether anybody got better, and four pictures are too few for it to decide.
#
# The command above runs the race that decides: many prompts, all contenders, several seeds. The box counts work, it measured no time; this cell was tested on random weights in the layouts of Stable Diffusion 1.5 and SDXL, which shows that it runs there, and nothing about its pictures.

# %% [markdown] lang="ja" uid="real-reading" pair="cb6f43e2"
# **図の読み方。** 図では、同じ列の画像が同じプロンプトです。上に並んだ数値は、費用、報酬による採点、どの手法も選別や学習に使っていない評価役による採点の順です。探索は、納品する1枚ごとに何枚も見比べているので、報酬で負けることはほぼありません。学習に使えたのは、2つのプロンプト分の候補だけで、ほとんど何も学べません。第10節の損益分岐点は、はるか先です。
# 本当に良くなったかどうかを言えるのは最後の数値だけですが、4枚では決められません。
#
# 決着をつける競技は、上のコマンドで実行できます。多数のプロンプト、すべての手法、複数のシードを使います。最初に表示した見込みは計算量から求めたもので、実測ではありません。このセルは、Stable Diffusion 1.5と SDXL の構造に乱数の重みを入れたモデルで試験しています。動くことは確かめましたが、画像の質については何も分かりません。

# %% [markdown] lang="en" uid="close" pair="e4fabce5"
# ## 13. Paper, article, your numbers
#
# Where to go next: [lesson 09](09_verification.ipynb) takes the question that the race leaves open. Whichever contender won, its pictures must be accepted by somebody who answers for them.

# %% [markdown] lang="ja" uid="close" pair="1b3c73c2"
# ## 13. 論文、記事、自分の数値
#
# 次に進むなら、[レッスン09](09_verification.ipynb)です。競技では答えの出ない問いを扱います。どの手法が勝っても、その画像の品質に責任を負う人が必要です。

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz("which_judge")
lab.quiz("needs_gradient")
lab.quiz("when_to_train")
