# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("06", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="story" pair="c5c88324"
# ## 1. Three steps, and what they miss
#
# The article tells version 1 of the paper: fine-tune a model for people, let an AI judge make preference pairs, train on them with DPO. Version 2
# ([arXiv 2405.20216](https://arxiv.org/abs/2405.20216)) found three things missing: real photographs as winners, a curriculum that leads up to them,
# and a cure for the colours that the judge smuggles in. Here all of it is measured on portraits whose truth is known. The base model is
# PortraitSD's early checkpoint. Two judges are kept apart: the **training judge** (PortraitCLIP) makes the pairs, the **gold judge** (the
# AttributeReader, never trained against) measures.
#
# Written down before the run: the primary metric is the gold judge's share of named attributes that are right, on held-out prompts, and prompts
# are the unit of every interval.

# %% [markdown] lang="ja" uid="story" pair="da50fdb5"
# ## 1. 3 つの手順と、そこに欠けているもの
#
# 記事が紹介しているのは論文の第 1 版です。人物向けにモデルをファインチューニングし、AI に選好ペアを作らせ、DPO で学習します。第 2 版
# ([arXiv 2405.20216](https://arxiv.org/abs/2405.20216))で著者らは、欠けていたものを 3 つ挙げました。実写画像を勝者にすること、そこへ段階的に
# 近づくカリキュラム、そして評価役が持ち込む色の偏りへの対策です。このレッスンでは、正解が分かっているポートレートですべてを実測します。
# 出発点は PortraitSD の学習初期のチェックポイントです。評価役は 2 つに分けます。選好ペアを作る**学習用の評価役**は PortraitCLIP、測定専用の
# **正解の評価役**は、学習には決して使わない AttributeReader です。
#
# 実行前に決めておくこと: 主要指標は、未使用のプロンプトで指定した属性のうち、正解の評価役が正しいと読み取った割合です。区間はすべてプロンプトを
# 単位として求めます。

# %% uid="models"
import numpy as np
import torch

from labkit.figures import bar_with_interval, curve_with_interval, image_grid, strips
from labkit.figures.widgets import choice, explore, slider, text
from labkit.diffusion import decode_latents, encode_images, image_generators, sample
from labkit.models import load_clip, load_pipeline, load_reader
from labkit.portraits import ATTRIBUTES, caption, render_tensor, sample_specs
from labkit.portraits.parse import parse_caption

sizes = lab.sizes
pipe, reader = load_pipeline("cpu", lab.device, variant="portrait-sd-base"), load_reader(lab.device)
clip, clip_inputs = load_clip("cpu", lab.device)


def half_named(n, seed):
    """en: n specs and captions that name about half of the attributes, and at least one.
    ja: n 個の spec と、属性の約半分(少なくとも 1 つ)を指定するキャプションです。
    """
    rng, found = np.random.default_rng(seed), []
    for spec in sample_specs(4 * n + 8, seed=seed):
        said = caption(spec, drop=[name for name in ATTRIBUTES if rng.random() < 0.5])
        found += [(spec, said.text)] if said.named else []
    return [spec for spec, _ in found[:n]], [text for _, text in found[:n]]


def gold(images, prompts):
    """en: Share of the named attributes that the AttributeReader finds right, per image.
    ja: 指定した属性のうち、AttributeReader が正しいと読み取った割合を、画像ごとに返します。
    """
    read = {name: found.cpu() for name, found in reader.read(images).items()}
    return np.array(
        [np.mean([ATTRIBUTES[a][read[a][i]] == v for a, v in parse_caption(p).items()]) for i, p in enumerate(prompts)]
    )


specs, prompts = half_named(sizes.prompts, lab.seed + 1)
_, held_out = half_named(sizes.test_prompts, lab.seed + 2)
test = [p for p in held_out for _ in range(sizes.copies)]

# %% [markdown] lang="en" uid="pool" pair="cf21e9ea"
# ## 2. The pool
#
# For every prompt the base model draws $N$ pictures and the judge scores them: best against worst becomes a pair. The expected gap grows with $N$
# like the range of $N$ normal numbers. Write `best_and_worst`; candidates are columns, and where scores are equal the first one counts.

# %% [markdown] lang="ja" uid="pool" pair="21b6e738"
# ## 2. 候補画像のプール
#
# プロンプトごとに基準モデルで $N$ 枚を生成し、評価役が採点します。最高と最低の 2 枚が選好ペアになります。得点差の期待値は、$N$ 個の正規乱数の
# 範囲と同じように $N$ とともに増えます。`best_and_worst` を書いてください。候補は列方向に並び、同点なら先にある方を採用します。


# %% uid="best-and-worst" tags=["exercise"] exercise="best_and_worst"
def best_and_worst(scores):
    """en: Column of the highest and of the lowest score of each row: scores [prompts, N] -> two int64 tensors [prompts].
    ja: 各行で最高と最低の得点がある列です。scores [prompts, N] から、int64 のテンソル [prompts] を 2 つ返します。
    """
    # BEGIN SOLUTION
    columns = torch.arange(scores.shape[1])
    top, bottom = scores.max(1, keepdim=True).values, scores.min(1, keepdim=True).values
    best = torch.where(scores == top, columns, scores.shape[1]).min(1).values
    worst = torch.where(scores == bottom, columns, scores.shape[1]).min(1).values
    return best, worst
    # END SOLUTION


# %% uid="best-and-worst-check" tags=["check"]
lab.check("best_and_worst")
best_and_worst = lab.use("best_and_worst")

# %% uid="pool-run" tags=["slow"]
from labkit.diffusion import NFELedger
from labkit.dpo import blend, build_pool, expected_range, faithfulness, warmth

judge = faithfulness(clip, clip_inputs)
# en: a faithful judge with a secret taste for warm colours
# ja: 忠実さを評価しながら、ひそかに暖色を好む評価役
biased = blend([(judge, 1.0), (warmth(), sizes.bias)])
shard = max(1, sizes.prompts // 8)
bar = iter(lab.progress_bar(range(-(-sizes.prompts // shard)), t("l06.pool"), -(-sizes.prompts // shard)))
next(bar)


def make_pool():
    """en: The pool, the U-Net rows it took, and the seconds.
    ja: 候補のプールと、U-Net の計算回数、所要時間(秒)です。
    """
    with NFELedger(pipe) as cost:
        made = build_pool(
            pipe, prompts, sizes.candidates, scorers=[judge, biased], seed=lab.seed, steps=sizes.steps, shard=shard,
            progress=lambda done, total: next(bar, None),
        )  # fmt: skip
    return made, cost.nfe, cost.seconds


pool, pool_rows, seconds = lab.keep("pool", make_pool)
# en: the bar reaches its end, also where the result was kept
# ja: 保存済みの結果を読み込んだ場合も、進捗バーを最後まで進めます
_ = list(bar)
scores = pool.scores[judge.name]
print(t("l06.pool_cost", images=scores.numel(), rows=pool_rows, seconds=seconds))

# %% uid="gaps"
counts = list(range(2, sizes.candidates + 1))
gaps = np.array([(scores[:, :n].max(1).values - scores[:, :n].min(1).values).numpy() for n in counts]).T  # [prompts, N]
half = 1.96 * gaps.std(0) / len(gaps) ** 0.5
spread = scores.std(1).mean().item()
curve_with_interval(
    counts,
    {
        t("l06.measured_gap"): (gaps.mean(0), gaps.mean(0) - half, gaps.mean(0) + half),
        t("l06.normal_gap"): [spread * expected_range(n) for n in counts],
    },
    xlabel=t("l06.n"),
    ylabel=t("l06.gap"),
    title=t("l06.gap_title"),
)

# %% uid="pool-widget" tags=["widget"]


def winners_and_losers(n):
    best, worst = best_and_worst(scores[:4, :n])
    rows = {}
    for name, chosen in ((t("l06.best"), best), (t("l06.worst"), worst)):
        with torch.no_grad():
            images = decode_latents(pipe, pool.latents[torch.arange(len(chosen)), chosen]).clamp(-1, 1)
        rows[name] = list(images)
    return strips(rows, captions=dict.fromkeys(rows, prompts[:4]))


explore(winners_and_losers, {"n": slider(t("l06.n"), 2, sizes.candidates, sizes.candidates, 1)})

# %% [markdown] lang="en" uid="judging" pair="5914f5e4"
# ## 3. Be the judge
#
# Which picture keeps its prompt better? Type one letter per pair: l for left, r for right, t for a tie; the next pair appears, and a deleted letter takes
# a vote back. Below ten votes a simulated colleague stands in: it sees what the gold judge sees, guesses on one pair in five, and likes the left side. Agreement is Cohen's $\kappa = (p_o - p_e)/(1 - p_e)$: the share of equal
# labels $p_o$, corrected by the share $p_e$ that two raters with these label frequencies reach by chance. Write it. For all three raters together
# there is Krippendorff's $\alpha$, on the same scale.

# %% [markdown] lang="ja" uid="judging" pair="1b0f73bc"
# ## 3. 自分で評価する
#
# どちらの画像がプロンプトに忠実でしょうか。1 組ごとに 1 文字、左なら l、右なら r、引き分けなら t と入力すると、次のペアが表示されます。文字を消せば投票を取り消せます。
# 投票が 10 組に満たない場合は、仮想の同僚の投票を使います。この同僚は正解の評価役と同じものを見ますが、5 組に 1 組は当てずっぽうで、左側をやや好みます。一致度にはコーエンの $\kappa = (p_o - p_e)/(1 - p_e)$ を使います。一致した割合
# $p_o$ を、同じラベル頻度の 2 人が偶然一致する割合 $p_e$ で補正した値です。これを書いてください。3 者全体の一致度には、同じ尺度のクリッペンドルフの $\alpha$ を使います。


# %% uid="kappa" tags=["exercise"] exercise="cohen_kappa"
def cohen_kappa(first, second):
    """en: Agreement of two raters beyond chance: two equally long lists of labels -> float; 1 is perfect, 0 is chance.

    Raters who both give one and the same label throughout agree perfectly by convention.
    ja: 偶然を除いた、2 人の評価者の一致度です。同じ長さのラベルのリスト 2 つから float を返します。

    1 は完全一致、0 は偶然と同じ程度です。
    2 人とも最初から最後まで同じ 1 つのラベルを付けた場合は、完全一致とみなします。
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
duels = [(p, *rng.choice(pool.n, 2, replace=False)) for p in rng.integers(0, len(prompts), sizes.duels)]
with torch.no_grad():
    sides = [decode_latents(pipe, torch.stack([pool.latents[d[0], d[k]] for d in duels])).clamp(-1, 1) for k in (1, 2)]


def show_duel(votes):
    k = min(len(votes), len(duels) - 1)
    number = t("l06.duel", number=k + 1, total=len(duels), prompt=prompts[duels[k][0]])
    return image_grid([sides[0][k], sides[1][k]], columns=2, title=number)


voting = explore(show_duel, {"votes": text(t("l06.votes"))})
voting

# %% uid="agreement"
from labkit.metrics import krippendorff_alpha, sign_test

duel_prompts = [prompts[p] for p, _, _ in duels]


def labels(left, right, margin=0.0):
    return ["tie" if abs(a - b) <= margin else "left" if a > b else "right" for a, b in zip(left, right, strict=True)]


truth = labels(gold(sides[0], duel_prompts), gold(sides[1], duel_prompts))
machine = labels(*[[float(scores[d[0], d[k]]) for d in duels] for k in (1, 2)], margin=0.02)
colleague = [rng.choice(["left", "left", "right"]) if rng.random() < 0.2 else label for label in truth]
keys = {"l": "left", "r": "right", "t": "tie"}
mine = [keys[key] for key in voting.values["votes"].lower() if key in keys][: len(duels)]
person = mine if len(mine) >= 10 else [str(label) for label in colleague]
seen = range(len(person))
judged = {t("l06.judge"): [machine[k] for k in seen], t("l06.gold"): [truth[k] for k in seen]}
draws = [rng.integers(0, len(seen), len(seen)) for _ in range(300)]


def kappa_interval(other):
    """en: kappa and its bootstrap interval over pairs.
    ja: kappa と、ペア単位のブートストラップ区間です。
    """
    values = [cohen_kappa([person[i] for i in d], [other[i] for i in d]) for d in draws]
    middle = cohen_kappa(person, other)
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (middle, middle)
    return middle, min(low, middle), max(high, middle)


found = np.array([kappa_interval(other) for other in judged.values()]).T
left, right = person.count("left"), person.count("right")
print(t("l06.position", left=left, right=right, p=sign_test(left, right)))
print(t("l06.alpha", alpha=krippendorff_alpha([person, *judged.values()])))
bar_with_interval(list(judged), tuple(found), xlabel=t("l06.kappa"), title=t("l06.kappa_title", n=len(seen)))

# %% [markdown] lang="en" uid="colour" pair="b3cb239e"
# ## 4. The colours that the judge smuggles in
#
# Let the judge have a secret taste for warm colours. More candidates pick its taste more sharply: the larger $N$, the more the winners differ from
# the losers in their mean colour, and DPO learns it. The cure of the paper compares one denoising step of the model with one of its reference and punishes a
# difference of channel means; in closed form $L = c_t^2\,\sum_k \big(\mathrm{mean}_{hw}(\epsilon_\theta - \epsilon_{\mathrm{ref}})_k\big)^2$. Write it: no
# further forward pass is needed.

# %% [markdown] lang="ja" uid="colour" pair="7fe0408d"
# ## 4. 評価役が持ち込む色
#
# 評価役に、暖色をひそかに好む偏りを持たせます。候補が多いほどその偏りは強く選ばれます。$N$ が大きいほど勝者と敗者の平均色の差が広がり、DPO はそれを
# 学習してしまいます。論文の対策は、モデルと参照モデルでノイズ除去を 1 ステップ進め、チャネル平均の差に罰則を与えることです。閉じた形では
# $L = c_t^2\,\sum_k \big(\mathrm{mean}_{hw}(\epsilon_\theta - \epsilon_{\mathrm{ref}})_k\big)^2$ となり、順伝播を追加する必要はありません。これを書いてください。


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
from contextlib import contextmanager

from labkit.diffusion import adapter_names, adapter_state, remove_lora
from labkit.dpo import (
    DPOConfig,
    Stage,
    Term,
    attach,
    best_vs_worst,
    channel_gap,
    dpo,
    run_stages,
    step_coefficient,
    warmth_of,
)


def matching(step):
    c = step_coefficient(step.t, step.alphas_cumprod)
    return 10_000 * statistics_loss(step.winner_pred, step.ref_winner_pred, c)


your_term = Term("statistics", matching, {"weight": 10_000.0}, needs="predictions")
seeds = list(range(lab.seed, lab.seed + sizes.seeds))


@contextmanager
def adapters(states):
    """en: Inside, the U-Net carries these adapters (name -> state); afterwards it has none.
    ja: with の中では、U-Net にこれらのアダプタ(名前 -> 重み)が付きます。抜けるとすべて外れます。
    """
    try:
        for name, state in dict(states).items():
            attach(pipe.unet, name, state)
        yield
    finally:
        for name in adapter_names(pipe.unet):
            remove_lora(pipe.unet, name)


def align(stages, seed, start=()):
    """en: Train (name, pairs, terms, units of steps) stages after those in `start`.

    Returns adapter states, pictures of the test prompts, and U-Net rows.
    ja: `start` のアダプタに続けて、各段階(名前、ペア、損失項、ステップ数の単位)を学習します。

    アダプタの重み、テスト用プロンプトの画像、U-Net の計算回数を返します。
    """
    options = {"batch_size": sizes.batch, "lr": sizes.lr, "rank": sizes.rank, "targets": "all", "precision": "auto"}

    def config(units):
        # en: the U-Net is small: adapters sit in every layer
        # ja: U-Net が小さいので、すべての層にアダプタを付けます
        steps = units * sizes.train_steps
        return DPOConfig(steps=steps, warmup=5, seed=seed, log_every=steps, **options)

    with NFELedger(pipe) as cost, adapters(start):
        run_stages(pipe, [Stage(name, pairs, terms, config(units)) for name, pairs, terms, units in stages])
        trained = {name: adapter_state(pipe.unet, name) for name in adapter_names(pipe.unet)}
        images = pictures(seed)
    return trained, images, cost.nfe


def pictures(seed):
    generators = image_generators(len(test), 1000 + seed)
    return sample(pipe, test, generators=generators, steps=sizes.steps, batch_size=48).cpu()


def by_prompt(values):
    """en: Numbers [seeds, prompts * copies] -> mean per prompt [prompts].
    ja: [seeds, prompts * copies] の値を、プロンプトごとに平均して [prompts] にします。
    """
    return np.asarray(values, dtype=float).reshape(len(values), -1, sizes.copies).mean((0, 2))


# %% uid="colour-run" tags=["slow"]
arms = {
    "n2": (best_vs_worst(pool.first(2), biased.name).training(), [dpo(sizes.kappa)]),
    "n_all": (best_vs_worst(pool, biased.name).training(), [dpo(sizes.kappa)]),
    "n_all_cured": (best_vs_worst(pool, biased.name).training(), [dpo(sizes.kappa), your_term]),
}
arm_names = {"n2": t("l06.n2"), "n_all": t("l06.n_all", n=pool.n), "n_all_cured": t("l06.n_all_cured", n=pool.n)}
for key, (pairs, _) in arms.items():
    print(t("l06.channel_gap", arm=arm_names[key], gap=float(channel_gap(pairs).norm())))
base = [pictures(s) for s in seeds]
colour = {key: [] for key in arms}
jobs = [(key, s) for s in seeds for key in arms]
for key, s in lab.progress_bar(jobs, t("l06.training"), len(jobs)):
    colour[key].append(lab.keep("colour", align, [("colour", *arms[key], 3)], s)[1])

# %% uid="colour-picture"
shift = {
    key: by_prompt([(warmth_of(x) - warmth_of(b)).numpy() for x, b in zip(images, base, strict=True)])
    for key, images in colour.items()
}
score = {
    key: by_prompt([(judge(x, test) - judge(b, test)).numpy() for x, b in zip(images, base, strict=True)])
    for key, images in colour.items()
}


def with_interval(values):
    """en: Mean and 95 % interval over prompts for each row of values.
    ja: values の各行について、プロンプト単位の平均と 95 % 区間を返します。
    """
    mean = np.mean(values, axis=1)
    half = 1.96 * np.std(values, axis=1, ddof=1) / np.shape(values)[1] ** 0.5
    return mean, mean - half, mean + half


bar_with_interval(
    list(arm_names.values()),
    {t("l06.warmer"): with_interval(list(shift.values())), t("l06.score_gain"): with_interval(list(score.values()))},
    xlabel=t("l06.against_base"),
    title=t("l06.colour_title", seeds=len(seeds)),
    value_format="{:+.3f}",
)

# %% uid="colour-pictures"
shown = [i * sizes.copies for i in range(min(6, sizes.test_prompts))]
rows = {t("l06.base"): [base[0][i] for i in shown]}
strips(rows | {arm_names[key]: [colour[key][0][i] for i in shown] for key in arms}, title=t("l06.same_seeds"))

# %% uid="colour-claims"
from labkit.metrics import cluster_bootstrap


def claim(id, measured, differences, used=seeds):
    """en: Mean difference over prompts with its bootstrap interval, into the ledger.
    ja: プロンプト単位の差の平均とブートストラップ区間を記録します。
    """
    interval = cluster_bootstrap(differences, generator=np.random.default_rng(lab.seed), method="percentile")
    value = float(np.mean(differences))
    lab.claim(
        id, measured=measured, value=value, interval=(min(interval[0], value), max(interval[1], value)), seeds=used
    )


claim("colour_grows", t("l06.measure_colour", n=pool.n), shift["n_all"] - shift["n2"])
claim("statistics_cure", t("l06.measure_cure"), shift["n_all"] - shift["n_all_cured"])
claim("cure_is_free", t("l06.measure_free"), score["n_all_cured"] - score["n_all"])

# %% [markdown] lang="en" uid="leap" pair="4909c33e"
# ## 5. The leap that fails, and what lies between
#
# Why not let the real picture win and a generated one lose, in one step? The two are easily told apart without looking at the prompt, and the model learns
# that difference. SDRecon makes winners in between: noise the real picture to timestep $t$ and let the base model denoise it.

# %% [markdown] lang="ja" uid="leap" pair="0fb86bd5"
# ## 5. 失敗する飛躍と、その中間
#
# 本物の画像を勝者、生成画像を敗者として、一度に学習してはいけないのでしょうか。両者はプロンプトを見なくても簡単に区別できるので、モデルはその違いの方を
# 学習してしまいます。SDRecon はその中間の勝者を作ります。本物の画像にタイムステップ $t$ までノイズを加え、基準モデルでノイズ除去します。

# %% uid="recon" tags=["slow"]
from labkit.dpo import recon_levels, sd_recon

with torch.no_grad():
    real = encode_images(pipe, render_tensor(specs)).cpu()
    recons = recon_levels(
        pipe, real, prompts, (100, 400, 500, 600, 700), seed=lab.seed, steps=sizes.steps, batch_size=64
    )
    judged_recons = {t_: judge(decode_latents(pipe, x).clamp(-1, 1), prompts) for t_, x in recons.items()}
    real_score = judge(decode_latents(pipe, real).clamp(-1, 1), prompts)
levels = [0, *recons]
per_level = np.stack([real_score.numpy(), *(s.numpy() for s in judged_recons.values())], 1)  # [prompts, levels]
curve_with_interval(
    levels,
    {t("l06.recon_score"): tuple(with_interval(per_level.T))},
    xlabel=t("l06.timestep"),
    ylabel=t("l06.judge_score"),
    reference={t("l06.easy_winners"): float(scores.max(1).values.mean()), t("l06.pool_mean"): float(scores.mean())},
    title=t("l06.recon_title"),
)

# %% uid="recon-widget" tags=["widget"]


def reconstructed(level):
    x = sd_recon(pipe, real[:4], prompts[:4], level, generators=image_generators(4, lab.seed), steps=sizes.steps)
    with torch.no_grad():
        rows = {
            t("l06.real"): decode_latents(pipe, real[:4]).clamp(-1, 1),
            t("l06.recon"): decode_latents(pipe, x).clamp(-1, 1),
        }
    return strips({name: list(images) for name, images in rows.items()}, captions={t("l06.recon"): prompts[:4]})


explore(reconstructed, {"level": slider(t("l06.timestep"), 0, 1000, 500, 50)})

# %% [markdown] lang="en" uid="curriculum" pair="b910daab"
# ## 6. The curriculum and its ablations
#
# *Easy*: best of the pool against its worst. *Normal*: the best reconstruction from $t$ = 400 to 700 against the easy winner, if the judge prefers it. *Hard*: an
# almost real picture ($t$ = 100) against the normal winner. After every stage the adapter is merged; the next reference is the stage's own start. Easy
# takes three parts of the steps, normal and hard one each (in the paper 15 : 1 : 1); the arms without easy, without normal and all at once spend those five parts
# as well. Predict which one wins.

# %% [markdown] lang="ja" uid="curriculum" pair="0c68fef9"
# ## 6. カリキュラムと、その要素を除いた比較
#
# *easy* ではプールの最高と最低を比べます。*normal* では $t$ = 400〜700 の復元画像のうち最良のものを、評価役が上と認めた場合に限り easy の勝者と比べます。*hard* では
# ほぼ本物の画像($t$ = 100)を勝者、normal の勝者を敗者とします。段階が終わるたびにアダプタを統合し、次の参照モデルはその段階の出発点とします。ステップ数の比は
# easy 3、normal 1、hard 1 です(論文では 15 : 1 : 1)。easy なし、normal なし、一括の 3 条件も、総ステップ数は同じです(5 単位)。どの条件が勝つか、予想してください。

# %% uid="curriculum-predict" tags=["quiz"]
lab.predict("order")

# %% uid="curriculum-run" tags=["slow"]
from labkit.dpo import PreferencePairs, hard_pairs, leap_pairs, normal_pairs, sft

easy_set = best_vs_worst(pool, judge.name)
middle = [t_ for t_ in recons if t_ != 100]
normal_set = normal_pairs(easy_set, {k: recons[k] for k in middle}, {k: judged_recons[k] for k in middle}, judge.name)
# en: a handful of pictures may leave nothing: take the leap's pairs then
# ja: 画像が少ないと 1 組も残らないことがあります。その場合は leap のペアを使います
if all(normal_set.column("tie")):
    normal_set = leap_pairs(easy_set, recons[400])
easy, normal = easy_set.training(), normal_set.training()
hard = hard_pairs(normal_set, recons[100]).training()
leap = leap_pairs(easy_set, real).training()
print(t("l06.kept", kept=len(normal), total=len(prompts)))
together = PreferencePairs(
    easy.prompts + normal.prompts + hard.prompts,
    torch.cat([easy.winner, normal.winner, hard.winner]),
    torch.cat([easy.loser, normal.loser, hard.loser]),
    hashes=easy.hashes,
)
term = [dpo(sizes.kappa)]
# en: arm -> (stages with units of steps, trained after "easy")
# ja: 条件 -> (各段階とステップ数の単位, "easy" の後に学習するか)
plans = {
    "easy": ([("easy", easy, term, 3)], False),
    "hg": ([("normal", normal, term, 1), ("hard", hard, term, 1)], True),
    "no_easy": ([("normal", normal, term, 3), ("hard", hard, term, 2)], False),
    "no_normal": ([("hard", hard, term, 2)], True),
    "at_once": ([("together", together, term, 5)], False),
    "leap": ([("leap", leap, term, 3)], False),
    "sft": ([("sft", hard, [sft(sizes.kappa / 2)], 1)], True),
}
plan_names = {
    "easy": t("l06.easy"),
    "hg": t("l06.hg"),
    "no_easy": t("l06.no_easy"),
    "no_normal": t("l06.no_normal"),
    "at_once": t("l06.at_once"),
    "leap": t("l06.leap"),
    "sft": t("l06.sft"),
}
results = {key: [] for key in plans}
states, train_rows = {}, 0
jobs = [(key, s) for s in seeds for key in plans]
for key, s in lab.progress_bar(jobs, t("l06.training"), len(jobs)):
    stages, after_easy = plans[key]
    start = states["easy", s] if after_easy else ()
    states[key, s], images, rows = lab.keep("curriculum", align, stages, s, start)
    results[key].append(images)
    train_rows += rows

# %% uid="curriculum-table"
gold_base = [gold(x, test) for x in base]
gains = {
    key: by_prompt([gold(x, test) - g for x, g in zip(images, gold_base, strict=True)])
    for key, images in results.items()
}
bar_with_interval(
    [plan_names[key] for key in plans],
    tuple(with_interval(list(gains.values()))),
    xlabel=t("l06.gold_gain"),
    title=t("l06.gains_title", base=float(np.mean(gold_base)), seeds=len(seeds)),
    value_format="{:+.3f}",
)

# %% uid="curriculum-pictures"
rows = {t("l06.base"): [base[0][i] for i in shown]}
strips(
    rows | {plan_names[key]: [images[0][i] for i in shown] for key, images in results.items()},
    title=t("l06.same_seeds"),
)

# %% uid="curriculum-claims"
lab.reveal("order", max(("hg", "easy", "leap", "at_once"), key=lambda name: gains[name].mean()))
claim("leap_collapses", t("l06.measure_gold", a=plan_names["leap"], b=t("l06.base")), gains["leap"])
claim("curriculum_beats_base", t("l06.measure_gold", a=plan_names["hg"], b=t("l06.base")), gains["hg"])
claim(
    "easy_matters", t("l06.measure_gold", a=plan_names["hg"], b=plan_names["no_easy"]), gains["hg"] - gains["no_easy"]
)
claim(
    "normal_matters",
    t("l06.measure_gold", a=plan_names["hg"], b=plan_names["no_normal"]),
    gains["hg"] - gains["no_normal"],
)
claim(
    "order_matters", t("l06.measure_gold", a=plan_names["hg"], b=plan_names["at_once"]), gains["hg"] - gains["at_once"]
)
claim("sft_erases", t("l06.measure_gold", a=plan_names["sft"], b=plan_names["easy"]), gains["sft"] - gains["easy"])

# %% [markdown] lang="en" uid="proof" pair="1512e86f"
# ## 7. Prove it
#
# A judge that made the pairs cannot prove anything: the training score must be read beside a judge that it never saw. Sharpness is a third one, and easily
# pleased. Under each: the win rate against the base with the same seeds.

# %% [markdown] lang="ja" uid="proof" pair="824b7718"
# ## 7. 証明する
#
# 選好ペアを作った評価役では、何も証明できません。学習用の得点は、学習で一度も使っていない評価役の得点と並べて読む必要があります。第 3 の尺度である鮮鋭度は、
# 簡単に高得点が出ます。それぞれについて、同じシードの基準モデルに対する勝率を求めます。

# %% uid="proof-run"
from labkit.dpo import sharpness
from labkit.metrics import outcomes, win_rate

judges = {t("l06.judge"): judge, t("l06.gold"): gold, t("l06.sharp"): sharpness()}
table = {}
for key, images in results.items():
    for name, measure in judges.items():
        scored = [
            np.concatenate([np.asarray(measure(x, test), dtype=float) for x in group]) for group in (images, base)
        ]
        won = outcomes(candidate=scored[0], baseline=scored[1])
        rate = win_rate(won, prompts=test * len(seeds), generator=np.random.default_rng(lab.seed), resamples=2000)
        table[key, name] = (rate.value, min(rate.low, rate.value), max(rate.high, rate.value))
bar_with_interval(
    [plan_names[key] for key in plans],
    {name: tuple(np.array([table[key, name] for key in plans]).T) for name in judges},
    xlabel=t("l06.win_rate"),
    reference={t("l06.chance"): 0.5},
    xlim=(0, 1),
    value_format="{:.0%}",
    title=t("l06.proof_title", prompts=len(held_out), seeds=len(seeds)),
)

# %% uid="proof-claims"
value, low, high = table["hg", t("l06.gold")]
lab.claim("wins_by_gold", measured=t("l06.measure_win"), value=value, interval=(low, high), seeds=seeds)
both = [
    sharpness()(x, test).numpy() - sharpness()(b_, test).numpy() for x, b_ in zip(results["leap"], base, strict=True)
]
claim("sharper_is_not_better", t("l06.measure_sharp"), by_prompt(both))

# %% [markdown] lang="en" uid="goodhart" pair="5191a178"
# When a measure becomes a target, it stops being a good measure (Goodhart). The easy adapter at twice and four times its strength stands for a training
# that nobody stopped in time. Where do the two judges part?

# %% [markdown] lang="ja" uid="goodhart" pair="b7af3baf"
# 測定の尺度は、それ自体が目標になると良い尺度ではなくなります(グッドハートの法則)。easy のアダプタを 2 倍、4 倍の強さで使い、止めどきを過ぎた学習に
# 見立てます。2 つの評価役の得点は、どこで分かれるでしょうか。

# %% uid="goodhart-run" tags=["slow"]
from labkit.diffusion import use_adapters

strengths = (0.0, 0.5, 1.0, 2.0, 4.0)
known = {0.0: base, 1.0: results["easy"]}
pushed = {}
jobs = [(k, strength) for k in range(len(seeds)) for strength in strengths]
for k, strength in lab.progress_bar(jobs, t("l06.pictures"), len(jobs)):
    if strength in known:
        images = known[strength][k]
    else:
        with adapters(states["easy", seeds[k]]), use_adapters(pipe.unet, {"easy": strength}):
            images = pictures(seeds[k])
    pushed[k, strength] = [np.mean(np.asarray(ask(images, test), dtype=float)) for ask in (judge, gold)]
gain = np.array([[pushed[k, x] for x in strengths] for k in range(len(seeds))])  # [seeds, strengths, judges]
gain -= gain[:, :1]
curve_with_interval(
    strengths,
    {t("l06.judge"): gain[..., 0], t("l06.gold"): gain[..., 1]},
    xlabel=t("l06.strength"),
    ylabel=t("l06.against_base"),
    reference={t("l06.base"): 0.0},
    title=t("l06.goodhart_title"),
)

# %% [markdown] lang="en" uid="side" pair="7a2611dc"
# ## 8. Side effects
#
# What happened to attributes that no prompt asked for? The gold judge reads how their shares moved between the base and the curriculum's model. Intervals and
# p-values count prompts; the p-values are corrected for the number of attributes.

# %% [markdown] lang="ja" uid="side" pair="5327c5e5"
# ## 8. 副作用
#
# プロンプトが指定していない属性には何が起きたでしょうか。基準モデルとカリキュラム後のモデルで割合がどう動いたかを、正解の評価役で読み取ります。区間と p 値は
# プロンプトを単位とし、p 値は属性の数で補正してあります。

# %% uid="side-run"
from labkit.dpo import side_effects
from labkit.portraits import attribute_name, value_name

report = side_effects(
    reader,
    before=torch.cat(base),
    after=torch.cat(results["hg"]),
    prompts=test * len(seeds),
    generator=np.random.default_rng(lab.seed),
)
largest = report.largest(8)
for effect in report.attributes:
    print(t("l06.moved", name=attribute_name(effect.attribute, lab.lang), distance=effect.distance, p=effect.p_value))
print(
    t(
        "l06.diversity",
        before=report.diversity_before,
        after=report.diversity_after,
        low=report.diversity_low,
        high=report.diversity_high,
    )
)
changes = np.array([(s.change, min(s.low, s.change), max(s.high, s.change)) for s in largest]).T
bar_with_interval(
    [": ".join((attribute_name(s.attribute, lab.lang), value_name(s.attribute, s.value, lab.lang))) for s in largest],
    tuple(changes),
    xlabel=t("l06.share_change"),
    title=t("l06.side_title"),
    value_format="{:+.2f}",
)

# %% uid="side-claim"
smallest = min(effect.p_value for effect in report.attributes)
lab.claim("side_effects", measured=t("l06.measure_side"), value=smallest, seeds=seeds)

# %% [markdown] lang="en" uid="finish" pair="0bde2bdf"
# ## 9. Finish like the paper
#
# At inference the paper runs its adapters at half their scale, and the last stage in the decoder blocks alone. The adapters lie side by side, so this is one
# context manager. What does it cost, and what does it keep?

# %% [markdown] lang="ja" uid="finish" pair="60f4649f"
# ## 9. 論文の仕上げ
#
# 論文は推論時にアダプタの強さを半分にし、最後の段階のアダプタはデコーダ側のブロックだけで使います。アダプタは別々に保持しているので、コンテキストマネージャ
# 1 つで済みます。何が失われ、何が残るでしょうか。

# %% uid="finish-widget" tags=["widget"]
from labkit.dpo import up_blocks


def finished(scale, decoder_only):
    with adapters(states["hg", seeds[0]]):
        scales = dict.fromkeys(adapter_names(pipe.unet), scale)
        with use_adapters(pipe.unet, scales, where={"hard": up_blocks} if decoder_only else None):
            images = sample(pipe, held_out[:6], generators=image_generators(len(held_out[:6]), 7), steps=sizes.steps)
    return image_grid(images, captions=held_out[:6], scores=gold(images, held_out[:6]), columns=6)


explore(
    finished,
    {
        "scale": slider(t("l06.scale"), 0.0, 1.5, 0.5, 0.25),
        "decoder_only": choice(t("l06.where"), {t("l06.all_blocks"): False, t("l06.decoder"): True}),
    },
)

# %% [markdown] lang="en" uid="words" pair="6679380d"
# The hard stage has no judge that reads the prompt. To make up for it the paper trains the text encoder by itself on the easy pairs, and uses it for
# $900 \le t \le 1000$ alone: where the composition is decided.

# %% [markdown] lang="ja" uid="words" pair="7556ebc9"
# hard 段階には、プロンプトを読む評価役がいません。それを補うため、論文ではテキストエンコーダを easy のペアで別に学習し、構図が決まる
# $900 \le t \le 1000$ だけで使います。

# %% uid="words-run" tags=["slow"]
from labkit.diffusion import encode_prompts
from labkit.dpo import DPOTrainer, text_window

words = DPOConfig(
    steps=3 * sizes.train_steps, batch_size=sizes.batch, lr=sizes.lr, rank=64, seed=seeds[0],
    model="text_encoder", adapter="words", log_every=sizes.train_steps,
)  # fmt: skip
with torch.no_grad():
    plain = encode_prompts(pipe, test)
with DPOTrainer(pipe, easy, words, term) as trainer:
    trainer.run()
    with torch.no_grad():
        tuned = encode_prompts(pipe, test)
with adapters(states["hg", seeds[0]]):
    generators = image_generators(len(test), 1000 + seeds[0])
    with_words = sample(pipe, None, generators=generators, steps=sizes.steps, conditions=text_window(plain, tuned))
claim(
    "words_help",
    t("l06.measure_gold", a=t("l06.with_words"), b=plan_names["hg"]),
    by_prompt([gold(with_words, test) - gold(results["hg"][0], test)]),
    seeds[:1],
)

# %% [markdown] lang="en" uid="personal" pair="92947a54"
# Does the alignment carry over to a personal model? One person, drawn in many moods and clothes, is learnt by an adapter of its own (plain fine-tuning). Then the
# curriculum's adapters are put beside it, without any further training. Does the person stay the same, and are the prompts kept better?

# %% [markdown] lang="ja" uid="personal" pair="cbd54a84"
# アラインメントの効果は、特定の人物に合わせたモデルにも引き継がれるでしょうか。ある 1 人の人物をさまざまな表情と服装で描き、専用のアダプタに通常の
# ファインチューニングで覚えさせます。その隣にカリキュラムのアダプタを、追加の学習なしで並べます。人物は同じままで、プロンプトへの忠実さは上がるでしょうか。

# %% uid="personal-run" tags=["slow"]
changing = ("mood", "clothes", "background")


def variants(others):
    """en: One person with the moods, clothes and backgrounds of others, and captions that name just those.
    ja: 同じ人物に、others の表情、服、背景を組み合わせます。キャプションはその 3 つだけを指定します。
    """
    people = [specs[0].with_(**{a: getattr(other, a) for a in changing}) for other in others]
    return people, [caption(p, drop=[a for a in ATTRIBUTES if a not in changing]).text for p in people]


def same_person(images):
    """en: Share of the person's own attributes that the gold judge finds, per image.
    ja: その人物の属性のうち、正解の評価役が読み取れた割合を、画像ごとに返します。
    """
    read = reader.read(images)
    kept = [a for a in ATTRIBUTES if a not in changing]
    return np.mean([(read[a] == ATTRIBUTES[a].index(getattr(specs[0], a))).cpu().numpy() for a in kept], axis=0)


album, album_prompts = variants(specs[1:])
with torch.no_grad():
    portraits = encode_images(pipe, render_tensor(album)).cpu()
# en: SFT looks at winners alone
# ja: SFT は勝者だけを見ます
personal_pairs = PreferencePairs(album_prompts, portraits, real[1:], hashes=easy.hashes)
me = align([("me", personal_pairs, [sft(sizes.kappa / 2)], 3)], seeds[0])[0]
others, _ = half_named(sizes.test_prompts, lab.seed + 3)
_, wishes = variants(others)
personal = []
for carried in ({}, states["hg", seeds[0]]):
    with adapters({**me, **carried}):
        personal.append(
            sample(pipe, wishes, generators=image_generators(len(wishes), 9), steps=sizes.steps, batch_size=48)
        )
strips(
    {t("l06.personal"): list(personal[0][:6]), t("l06.personal_hg"): list(personal[1][:6])},
    captions={t("l06.personal_hg"): wishes[:6]},
)

# %% uid="personal-claims"
names = {"a": t("l06.personal_hg"), "b": t("l06.personal")}
claim(
    "identity_stays", t("l06.measure_identity", **names), same_person(personal[1]) - same_person(personal[0]), seeds[:1]
)
claim(
    "transfer_helps", t("l06.measure_gold", **names), gold(personal[1], wishes) - gold(personal[0], wishes), seeds[:1]
)

# %% [markdown] lang="en" uid="cost" pair="76058972"
# ## 10. The manager's questions
#
# The article asks what it costs and who is still needed. In U-Net rows (one picture through the U-Net once; a training row costs three), and in labels: the judge gave
# one label per candidate; a person who compares pairs would have given one vote per pair.

# %% [markdown] lang="ja" uid="cost" pair="21af423d"
# ## 10. 経営者の質問
#
# 記事の問いは、費用と人の役割です。費用は U-Net を通した回数(NFE)で数えます(画像 1 枚を 1 回通すと 1 回、学習では 3 回分)。ラベルについては、評価役は候補ごとに
# 1 回採点しました。人がペアを比べるなら、ペアごとに 1 票が必要です。

# %% uid="cost-run"
rows_per_picture = 2 * sizes.steps
# en: without the pictures it was judged on
# ja: 評価に使った画像の分を除きます
per_model = train_rows / len(jobs) - len(test) * rows_per_picture
print(t("l06.cost", pool=pool_rows, train=per_model, labels=scores.numel(), votes=len(easy) + len(normal)))
won_share = table["hg", t("l06.gold")][0]
print(
    t(
        "l06.break_even",
        pictures=(pool_rows + 3 * per_model) / (rows_per_picture * (pool.n - 1)),
        n=pool.n,
        won=won_share,
    )
)
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz()
