# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("04", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="by-hand" pair="ebb81b81"
# ## 1. The formula, by hand
#
# Self-attention lets every place of a picture look at every other place. FABRIC appends the places of liked pictures, and gives each of
# them a weight $w$: with logits $s_j$ the attention is $a_j = w_j e^{s_j} / \sum_l w_l e^{s_l}$, where own places have $w_j = 1$. That is a softmax
# of $s_j + \log w_j$. Write `reweight` in NumPy.

# %% [markdown] lang="ja" uid="by-hand" pair="63681a92"
# ## 1. 式を自分で書く
#
# 自己注意では、画像の各位置がほかのすべての位置を見ます。FABRIC は、そこに「好き」な画像の位置を継ぎ足し、それぞれに重み $w$ を与えます。
# ロジットを $s_j$ とすると、注意は $a_j = w_j e^{s_j} / \sum_l w_l e^{s_l}$ です。自分の位置では $w_j = 1$ とします。これは
# $s_j + \log w_j$ のソフトマックスです。`reweight` を NumPy で書いてください。

# %% uid="reweight" tags=["exercise"] exercise="reweight"
import numpy as np


def reweight(own, refs, w):
    """en: Attention of one query: own logits [N], reference logits [M], weight w > 0 -> [N + M], sums to 1.
    ja: 1 つのクエリの注意 [N + M](和は 1)です。own [N] は自分、refs [M] は参照のロジット、w > 0 は重みです。
    """
    # BEGIN SOLUTION
    logits = np.concatenate([own, refs + np.log(w)])
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
    # END SOLUTION


# %% uid="reweight-check" tags=["check"]
lab.check("reweight")
reweight = lab.use("reweight")

# %% uid="reweight-widget" tags=["widget"]
from labkit.figures import bar_with_interval, curve_with_interval, heatmap_overlay, image_grid, strips
from labkit.figures.widgets import explore, slider

own, refs = np.array([1.0, 0.2, -0.5]), np.array([0.6, -0.2])
names = [t("l04.own", number=i + 1) for i in range(3)] + [t("l04.ref", number=i + 1) for i in range(2)]


def one_row(log_w):
    row = reweight(own, refs, np.exp(log_w))
    title = t("l04.row_title", weight=float(np.exp(log_w)), mass=float(row[3:].sum()))
    return bar_with_interval(names, row, xlabel=t("l04.attention"), title=title, xlim=(0, 1))


explore(one_row, {"log_w": slider(t("l04.log_weight"), -4.0, 4.0, 0.0, 0.25)})

# %% [markdown] lang="en" uid="mass" pair="0934ee6a"
# The share of attention that goes to the references is called the mass $m$; the output walks on a straight line from what a picture sees in
# itself to what it sees in the references. $\log w$ shifts the log-odds of $m$ for every query, so $w$ is no percentage, and $n$ references add up.

# %% [markdown] lang="ja" uid="mass" pair="0789d80a"
# 参照画像に向かう注意の割合を質量 $m$ と呼びます。出力は、自分自身から得られる値と参照画像から得られる値を結ぶ直線の上を動きます。
# $\log w$ は、すべてのクエリで $m$ の対数オッズをずらす量です。したがって $w$ は割合ではなく、参照画像が $n$ 枚あれば効果は積み重なります。

# %% uid="mass-curve"
from labkit.fabric import flat_mass

log_weights = np.linspace(-4, 4, 33)
series = {t("l04.this_row"): [reweight(own, refs, np.exp(v))[3:].sum() for v in log_weights]}
series |= {t("l04.flat", n=n): [flat_mass(n * np.exp(v)) for v in log_weights] for n in (1, 8)}
curve_with_interval(
    log_weights, series, xlabel=r"$\log w$", ylabel=t("l04.mass"), title=t("l04.mass_title"), ylim=(0, 1)
)

# %% [markdown] lang="en" uid="hook" pair="c202eb68"
# ## 2. Write the hook
#
# Now in PyTorch. First the attention itself, then a layer of the U-Net: `attn` offers `to_q`, `to_k`, `to_v`, `to_out[0]`, and
# `head_to_batch_dim` and `batch_to_head_dim`, which split and join the heads.

# %% [markdown] lang="ja" uid="hook" pair="43c58a26"
# ## 2. フックを書く
#
# 次は PyTorch です。まず注意そのもの、続いて U-Net の層を書きます。`attn` には `to_q`、`to_k`、`to_v`、`to_out[0]` があり、
# ヘッドの分割と結合には `head_to_batch_dim` と `batch_to_head_dim` を使えます。

# %% uid="weighted-attention" tags=["exercise"] exercise="weighted_attention"
import torch


def weighted_attention(q, k, v, k_ref, v_ref, w):
    """en: q, k, v [B, N, d] own; k_ref, v_ref [1, M, d] shared by all rows; weight w > 0 -> [B, N, d].
    ja: q, k, v [B, N, d] は自分のもの、k_ref, v_ref [1, M, d] は全行に共通、w > 0 は重みです。[B, N, d] を返します。
    """
    # BEGIN SOLUTION
    keys = torch.cat([k, k_ref.expand(len(q), -1, -1)], dim=1)  # [B, N + M, d]
    values = torch.cat([v, v_ref.expand(len(q), -1, -1)], dim=1)
    logits = q @ keys.transpose(1, 2) / q.shape[-1] ** 0.5  # [B, N, N + M]
    bias = torch.zeros(keys.shape[1], device=q.device)
    bias[k.shape[1] :] = np.log(w)
    return (logits + bias).softmax(-1) @ values
    # END SOLUTION


# %% uid="weighted-attention-check" tags=["check"]
lab.check("weighted_attention")
weighted_attention = lab.use("weighted_attention")


# %% uid="read-references" tags=["exercise"] exercise="read_references"
def read_references(attn, states, stored, w):
    """en: One self-attention layer: states [B, N, C] also look at stored tokens [1, M, C] -> [B, N, C].
    ja: 自己注意の 1 層です。states [B, N, C] が、保存済みのトークン stored [1, M, C] も見ます。[B, N, C] を返します。
    """

    # BEGIN SOLUTION
    def project(linear, x):
        return attn.head_to_batch_dim(linear(x))  # [B heads, N, d]

    q, k, v = (project(linear, states) for linear in (attn.to_q, attn.to_k, attn.to_v))
    stored = stored.expand(len(states), -1, -1)
    k, v = (torch.cat([a, project(linear, stored)], dim=1) for a, linear in ((k, attn.to_k), (v, attn.to_v)))
    bias = torch.zeros(k.shape[1], device=states.device)
    bias[states.shape[1] :] = np.log(w)
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    return attn.to_out[0](attn.batch_to_head_dim(weights @ v))
    # END SOLUTION


# %% uid="read-references-check" tags=["check"]
lab.check("read_references")
read_references = lab.use("read_references")

# %% [markdown] lang="en" uid="puzzle" pair="14ef21d2"
# Before you use it: let a noisy picture have itself as its only reference, with the same noise and the same prompt. What does the U-Net answer?

# %% [markdown] lang="ja" uid="puzzle" pair="23ed7ce8"
# 使う前に考えてみましょう。ノイズの乗った画像に、同じノイズ、同じプロンプトの自分自身だけを参照させます。U-Net の答えはどうなるでしょうか。

# %% uid="puzzle-predict" tags=["quiz"]
lab.predict("self_reference")

# %% [markdown] lang="en" uid="hook-run" pair="58adad10"
# The hook goes into every self-attention. A first pass, of the references, only stores what enters each layer; a second one, of the
# picture, reads it. Four properties must hold.

# %% [markdown] lang="ja" uid="hook-run" pair="b687f60e"
# フックをすべての自己注意に組み込みます。最初に参照画像を通し、各層への入力を保存します。次に生成中の画像を通し、保存した内容を読み込みます。
# 4 つの性質が成り立つはずです。

# %% uid="hook-lights" tags=["check"]
from labkit.diffusion import encode_images, encode_prompts, image_generators, labelled_rows, sample
from labkit.fabric import Reference, fabric, noised_reference, reference_noise, self_attentions
from labkit.models import load_pipeline

pipe = load_pipeline("cpu", lab.device)


class Hook:
    """en: Stores what enters a self-attention, or, once it has a weight, reads what was stored.
    ja: 自己注意への入力を保存します。重みが設定された後は、保存したものを読みます。
    """

    def __init__(self, original):
        self.original, self.stored, self.weight = original, None, None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if self.weight is None:
            # en: all references end to end
            # ja: すべての参照画像を 1 列につなぎます
            self.stored = hidden_states.flatten(0, 1)[None]  # [1, n N, C]
            return self.original(attn, hidden_states)
        return read_references(attn, hidden_states, self.stored, self.weight)


def hooked(x_ref, text_ref, x_t, text, timestep, w):
    """en: What the U-Net says of x_t while it sees the noised references x_ref.
    ja: ノイズを加えた参照画像 x_ref を見せながら、x_t に対する U-Net の予測を求めます。
    """
    layers = [attn for _, attn in self_attentions(pipe.unet)]
    hooks = [Hook(attn.processor) for attn in layers]
    try:
        for attn, hook in zip(layers, hooks, strict=True):
            attn.set_processor(hook)
        with torch.no_grad():
            pipe.unet(x_ref, timestep, encoder_hidden_states=text_ref.expand(len(x_ref), -1, -1))
            for hook in hooks:
                hook.weight = w
            return pipe.unet(x_t, timestep, encoder_hidden_states=text)[0]
    finally:
        for attn, hook in zip(layers, hooks, strict=True):
            attn.set_processor(hook.original)


prompt, level = "a happy person wearing blue clothes", 400
pair = sample(pipe, prompt, generators=image_generators(2, lab.seed), steps=lab.sizes.steps, guidance_scale=3.0)
references = [Reference(picture) for picture in pair]
with torch.no_grad():
    clean = encode_images(pipe, torch.stack([r.image for r in references]))
noise = torch.stack([reference_noise(r.key, 0, level, clean.shape[1:]) for r in references])
noised = noised_reference(clean, noise, level, pipe.scheduler.alphas_cumprod)
text, empty = encode_prompts(pipe, [prompt]).cond, encode_prompts(pipe, [""]).cond
with torch.no_grad():
    plain = pipe.unet(noised[:1], level, encoder_hidden_states=text)[0]
    with labelled_rows(["cond"]), fabric(pipe, liked=references[1:], max_weight=0.8):
        theirs = pipe.unet(noised[:1], level, encoder_hidden_states=text)[0]


def gap(a, b):
    return float((a - b).abs().max())


def alone(w):
    """en: The prediction for the first picture, with the second as its only reference at weight w.
    ja: 2 枚目の画像だけを重み w で参照したときの、1 枚目の予測です。
    """
    return hooked(noised[1:], empty, noised[:1], text, level, w)


mine, both = alone(0.8), hooked(noised[1:], empty, noised, text.expand(2, -1, -1), level, 0.8)
twice = hooked(noised[1:].expand(2, -1, -1, -1), empty, noised[:1], text, level, 0.4)
itself = gap(hooked(noised[:1], text, noised[:1], text, level, 2.0), plain)
same, other = gap(twice, mine), gap(both[:1], mine)
lab.verdict(t("l04.light_self", value=itself), itself < 1e-4)
lab.verdict(t("l04.light_copies", value=same), same < 1e-4)
lab.verdict(t("l04.light_batch", value=other), other < 1e-4)
lab.verdict(t("l04.light_library", value=gap(mine, theirs)), gap(mine, theirs) < 1e-4)
print(t("l04.effect", value=gap(mine, plain)), t("l04.tiny", value=gap(alone(1e-9), plain)), sep="\n")
lab.reveal("self_reference", "nothing" if itself < 1e-4 else "changes")

# %% [markdown] lang="en" uid="tiny-weight" pair="7caf61df"
# A fifth property is missing on purpose: "a weight near 0 changes nothing". $w = 10^{-9}$ takes only 20.7 off a logit, and in the innermost block, where
# a picture has four places, the logits of another picture can lie more than 100 above its own. There the references win at any weight you would
# write down; with many seeds the last line above shows it. Only $w = 0$ is nothing: `labkit.fabric` then leaves the references out.

# %% [markdown] lang="ja" uid="tiny-weight" pair="5686d012"
# 「重みがほぼ 0 なら何も変わらない」という性質は、あえて入れていません。$w = 10^{-9}$ でもロジットから 20.7 を引くだけです。画像を 4 つの位置で表す
# 最も内側のブロックでは、別の画像のロジットが自分のロジットを 100 以上も上回ることがあり、そこでは重みをどれだけ小さくしても参照側が勝ちます。
# 上の最後の行にその影響が現れるシードもあります。確実に影響がなくなるのは $w = 0$ だけで、`labkit.fabric` はそのとき参照を取り除きます。

# %% [markdown] lang="en" uid="feedback" pair="ef5c0053"
# ## 3. A hidden person
#
# From here on `labkit.fabric` does the same for whole pictures: likes are shown to the conditional half of guidance, dislikes to the
# unconditional half. Every target is a person drawn at random who fits the prompt; nobody tells the model. Pictures are *selected* by
# CLIP similarity to the target, and *judged* by the AttributeReader: the share of nine attributes that are as in the target.

# %% [markdown] lang="ja" uid="feedback" pair="ccf17420"
# ## 3. 隠れた人物を探す
#
# ここからは `labkit.fabric` を使い、同じことを画像全体の生成に適用します。「好き」は誘導の条件付き側に、「嫌い」は条件なし側に見せます。
# 目標は、プロンプトに合う人物を無作為に描いたものです。モデルには知らせません。画像の*選択*には目標との CLIP 類似度を、*判定*には AttributeReader
# (9 属性のうち目標と一致した割合)を使います。

# %% uid="people" tags=["slow"]
from labkit.models import load_clip, load_reader
from labkit.models.clip import embed_images
from labkit.portraits import ATTRIBUTES, render_tensor, sample_specs

clip, reader = load_clip("cpu", lab.device)[0], load_reader(lab.device)
only = {"mood": "happy", "clothes": "blue"}
marginals = {name: {v: float(v == value) for v in ATTRIBUTES[name]} for name, value in only.items()}
specs = sample_specs(lab.sizes.targets, seed=lab.seed, marginals=marginals)
portraits = render_tensor(specs)
options = {"steps": lab.sizes.steps, "guidance_scale": lab.sizes.guidance}


def similarity(pictures, others):
    """en: Mean CLIP similarity of each picture to the others: [N].
    ja: 各画像と others の CLIP 類似度の平均 [N] です。
    """
    return (embed_images(clip, pictures.to(lab.device)) @ embed_images(clip, others.to(lab.device)).T).mean(1).cpu()


def judged(pictures, spec):
    """en: Share of attributes that the reader sees as in the target: [N].
    ja: 評価役が目標と同じだと読み取った属性の割合 [N] です。
    """
    right = reader.correct(pictures.to(lab.device), [spec] * len(pictures))
    return torch.stack([hits.cpu().float() for hits in right.values()]).mean(0)


def eight(first):
    """en: Up to eight pictures of the pool.
    ja: 候補の画像を 8 枚まで生成します。
    """
    generators = image_generators(min(8, lab.sizes.pool - first), lab.seed + 1, first=first)
    return sample(pipe, prompt, generators=generators, **options).cpu()


parts = range(0, lab.sizes.pool, 8)
pool = torch.cat([lab.keep("pool", eight, k) for k in lab.progress_bar(parts, t("l04.pool"), len(parts))])
ranked = [pool[similarity(pool, portrait[None]).argsort(descending=True)] for portrait in portraits]
few = lab.sizes.references
shown = torch.cat([portraits[:1], ranked[0][:few], ranked[0][-few:]])
captions = [t("l04.target"), *[t("l04.liked")] * few, *[t("l04.disliked")] * few]
image_grid(shown, captions=captions, columns=len(captions), scores=similarity(shown, portraits[:1]), score_label="CLIP")

# %% [markdown] lang="en" uid="same-seed" pair="e497a1d5"
# ### Same seed, more weight, more references
#
# One seed, only the feedback changes; the left column is the picture before it. With flat logits the mass is $wn/(1+wn)$:
# where does the picture stop being itself?

# %% [markdown] lang="ja" uid="same-seed" pair="1ffbc1e5"
# ### シードは同じ、重みと枚数を変える
#
# シードは 1 つに固定し、フィードバックだけを変えます。左端の列はフィードバックなしの画像です。ロジットが一様なら質量は $wn/(1+wn)$ です。
# 元の画像らしさは、どこで失われるでしょうか。

# %% uid="same-seed-grid" tags=["slow"]
import warnings

weights, counts = [0.1, 0.4, 0.8, 2.0], [0, 1, 2, 4]
cells = []
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for w in lab.progress_bar(weights, t("l04.weight"), len(weights)):
        for n in counts:
            with fabric(pipe, liked=ranked[0][:n], max_weight=w, end=1.0):
                cells.append(sample(pipe, prompt, generators=image_generators(1, lab.seed + 2), **options)[0].cpu())
image_grid(
    torch.stack(cells),
    columns=len(counts),
    row_labels=[f"w = {w}" for w in weights],
    column_labels=[f"n = {n}" for n in counts],
    captions=[f"{flat_mass(w * n):.0%}" for w in weights for n in counts],
    title=t("l04.grid_title"),
)

# %% [markdown] lang="en" uid="looks" pair="ce89315c"
# ### Where does it look?
#
# One place of the new picture (bright on the left), seen from one layer: which places of the liked pictures does it look at? Move it, and try
# other layers. And how much of the attention goes to the liked pictures, over the steps?

# %% [markdown] lang="ja" uid="looks" pair="8b089aff"
# ### どこを見ているのか
#
# 新しい画像のある位置(左の画像で明るい所)は、ある層で、好きな画像のどこを見ているでしょうか。位置や層を変えてみてください。また、注意のうち
# どれだけが好きな画像に向かうでしょうか。ステップに沿って調べます。

# %% uid="looks-map" tags=["widget"]
from labkit.figures.widgets import choice
from labkit.fabric import attention_table

seen = []
with fabric(pipe, liked=ranked[0][:few], end=1.0, backend="lse", observer=seen.append) as session:
    asking = sample(pipe, prompt, generators=image_generators(1, lab.seed + 2), **options)[0].cpu()
half_way = sorted({o.t for o in seen})[lab.sizes.steps // 2]


def look(layer, column, row):
    """en: Where one place of the new picture (in percent of its width and height) looks, half way through the steps.
    ja: 生成中の画像の 1 か所(幅と高さに対するパーセントで指定)が、ステップの半ばでどこを見るかを示します。
    """
    o = next(o for o in seen if o.layer.name == layer and o.t == half_way)
    # en: mean of heads
    # ja: ヘッドの平均
    table = attention_table(o.q, o.k, o.reference.k, o.reference.weights)[1][0].mean(0)  # [N, M]
    side = round(o.q.shape[2] ** 0.5)
    x, y = (min(int(percent * side / 100), side - 1) for percent in (column, row))
    maps = [one.reshape(side, side).cpu() for one in table[y * side + x].split(o.reference.tokens)]
    top = max(float(one.max()) for one in maps)
    here = torch.zeros(side, side)
    here[y, x] = 1
    return heatmap_overlay(
        [asking, *ranked[0][:few]],
        [here, *[one / top for one in maps]],
        captions=[t("l04.asks"), *[t("l04.liked")] * few],
        label=t("l04.attention_max"),
        columns=few + 1,
    )


places = {t("l04.layer_at", number=i + 1, depth=o.depth): o.name for i, (o, _) in enumerate(self_attentions(pipe.unet))}
controls = {"layer": choice(t("l04.layer"), places)}
controls |= {"column": slider(t("l04.column"), 0, 100, 50, 5), "row": slider(t("l04.row"), 0, 100, 50, 5)}
explore(look, controls)

# %% uid="looks-mass"
depths = {one.name: one.depth for one, _ in self_attentions(pipe.unet)}
times = sorted({at for at, _, _ in session.mass}, reverse=True)


def mean_mass(at, keep):
    return np.mean([m for (time, name, _), m in session.mass.items() if time == at and keep(depths[name])])


lines = {
    t("l04.outer"): [mean_mass(at, lambda d: d == 0) for at in times],
    t("l04.inner"): [mean_mass(at, lambda d: d == 1) for at in times],
}
reference = {t("l04.flat_short"): flat_mass(0.8 * few)}
curve_with_interval(
    np.arange(1, len(times) + 1),
    lines,
    xlabel=t("l04.step"),
    ylabel=t("l04.mass"),
    reference=reference,
    ylim=(0, 1),
    title=t("l04.looks_title"),
)

# %% [markdown] lang="en" uid="measure" pair="4adb693e"
# ## 4. What does it do, and when?
#
# For every target the same seeds are drawn under eight conditions, so all differences are paired. Intervals are 95 % bootstraps over
# targets. Two conditions are open questions, which the paper does not answer: the text of the reference pass, and its noise.

# %% [markdown] lang="ja" uid="measure" pair="daa280c8"
# ## 4. 何に、いつ効くのか
#
# 目標ごとに、同じシードの画像を 8 つの条件で生成するので、差はすべて対応のある差です。区間は目標を単位とする 95 % ブートストラップ区間です。
# うち 2 つの条件は、論文が答えていない問いです。参照画像を通すときのプロンプトと、そのノイズを調べます。

# %% uid="measure-run" tags=["slow"]
from labkit.fabric import ReferenceCache, pairwise_diversity
from labkit.metrics import cluster_bootstrap

conditions = {
    "none": {"liked": 0, "disliked": 0},
    "likes": {"disliked": 0},
    "dislikes": {"liked": 0},
    "both": {},
    "first": {"end": 0.5},
    "second": {"start": 0.5},
    "prompt": {"reference_prompt": None},
    "fixed": {"noise": "image"},
}
condition_names = {
    "none": t("l04.condition.none"),
    "likes": t("l04.condition.likes"),
    "dislikes": t("l04.condition.dislikes"),
    "both": t("l04.condition.both"),
    "first": t("l04.condition.first"),
    "second": t("l04.condition.second"),
    "prompt": t("l04.condition.prompt"),
    "fixed": t("l04.condition.fixed"),
}
score_names = {
    "liked": t("l04.what.liked"),
    "disliked": t("l04.what.disliked"),
    "target": t("l04.what.target"),
    "judge": t("l04.what.judge"),
    "diversity": t("l04.what.diversity"),
}
copies = lab.sizes.copies


def for_target(i):
    """en: Target i under every condition: the scores by name, and the first pictures.
    ja: 目標 i について、各条件での得点(名前ごと)と最初の数枚の画像を返します。
    """
    sides, cache, rows = {"liked": ranked[i][:few], "disliked": ranked[i][-few:]}, ReferenceCache(), {}
    for condition, changes in conditions.items():
        chosen = {"max_weight": lab.sizes.weight, "end": 1.0} | changes
        chosen |= {sign: pictures[: chosen.get(sign, few)] for sign, pictures in sides.items()}
        with fabric(pipe, cache=cache, **chosen):
            generators = image_generators(copies, lab.seed + 3, first=i * copies)
            pictures = sample(pipe, prompt, generators=generators, **options).cpu()
        row = {sign: similarity(pictures, others) for sign, others in sides.items()}
        row["target"] = similarity(pictures, portraits[i : i + 1])
        row["judge"] = judged(pictures, specs[i])
        row["diversity"] = [pairwise_diversity(embed_images(clip, pictures.to(lab.device)))]
        rows[condition] = row, pictures[: min(copies, 6)]
    return rows


bar = lab.progress_bar(range(len(specs)), t("l04.targets"), len(specs))
targets = [lab.keep("measured", for_target, i) for i in bar]
measured = {c: {name: [rows[c][0][name] for rows in targets] for name in score_names} for c in conditions}
example = {condition: pictures for condition, (_, pictures) in targets[0].items()}
strips({condition_names[name]: list(example[name]) for name in ("none", "likes", "both", "first", "second")})


# %% uid="measure-claims"
def interval(per_target):
    """en: (mean, (low, high)) of one value per target.
    ja: 目標ごとに 1 つの値から、(平均, (low, high)) を求めます。
    """
    values = np.asarray(per_target, dtype=float)
    generator = np.random.default_rng(lab.seed)
    low, high = cluster_bootstrap(values, generator=generator, method="percentile")
    return float(values.mean()), (float(low), float(high))


def contrast(a, b, what):
    """en: Mean paired difference of two conditions, with its interval over targets.
    ja: 2 つの条件の差を対にして平均し、目標単位の区間を付けます。
    """
    difference = [
        np.mean(np.asarray(x) - np.asarray(y)) for x, y in zip(measured[a][what], measured[b][what], strict=True)
    ]
    return interval(difference)


def found(a, b, what):
    """en: What `lab.claim` wants to know of a contrast.
    ja: 2 つの条件の比較について、`lab.claim` に渡す値です。
    """
    words = t("l04.measured", a=condition_names[a], b=condition_names[b], what=score_names[what])
    value, bounds = contrast(a, b, what)
    return {"measured": words, "value": value, "interval": bounds, "seeds": [seed]}


def against_none(what):
    rows = [contrast(name, "none", what) for name in conditions if name != "none"]
    return tuple(np.array(x) for x in zip(*[(value, *bounds) for value, bounds in rows], strict=True))


bar_with_interval(
    [condition_names[name] for name in conditions if name != "none"],
    {score_names[what]: against_none(what) for what in ("target", "judge")},
    xlabel=t("l04.gain"),
    title=t("l04.gain_title", targets=len(specs), copies=copies),
    value_format="{:+.3f}",
)

# %% uid="claims-signs"
lab.claim("likes_raise", **found("likes", "none", "liked"))
lab.claim("dislikes_lower", **found("dislikes", "none", "disliked"))
lab.claim("both_beat_likes", **found("both", "likes", "target"))
lab.claim("diversity_falls", **found("both", "none", "diversity"))

# %% uid="claims-time"
lab.claim("first_half_helps", **found("first", "both", "target"))
lab.claim("second_half_hurts", **found("second", "both", "target"))
lab.claim("first_beats_second", **found("first", "second", "target"))

# %% uid="claims-open"
lab.claim("empty_prompt", **found("prompt", "both", "target"))
lab.claim("fixed_noise", **found("fixed", "both", "target"))

# %% [markdown] lang="en" uid="dislikes" pair="e9d125b6"
# ### The dislike puzzle
#
# Guidance computes $\hat\epsilon = \epsilon_u + g\,(\epsilon_c - \epsilon_u)$. Likes change $\epsilon_c$, dislikes change $\epsilon_u$. What do dislikes do at $g = 1$?

# %% [markdown] lang="ja" uid="dislikes" pair="588d13ef"
# ### 「嫌い」の謎
#
# 誘導は $\hat\epsilon = \epsilon_u + g\,(\epsilon_c - \epsilon_u)$ を計算します。「好き」は $\epsilon_c$ を、「嫌い」は $\epsilon_u$ を変えます。$g = 1$ のとき、「嫌い」には何ができるでしょうか。

# %% uid="dislikes-predict" tags=["quiz"]
lab.predict("dislikes_alone")

# %% uid="dislikes-run"
effects = {}
for g in (1.0, 3.0):
    settings = {"generators": image_generators(1, lab.seed), "steps": lab.sizes.steps, "guidance_scale": g}
    without = sample(pipe, prompt, **settings)
    with fabric(pipe, disliked=ranked[0][-few:], end=1.0):
        effects[g] = gap(sample(pipe, prompt, **settings | {"generators": image_generators(1, lab.seed)}), without)
    print(f"g = {g:g}:", t("l04.largest", value=effects[g]))
lab.verdict(t("l04.no_guidance", value=effects[1.0]), effects[1.0] == 0)
lab.reveal("dislikes_alone", "nothing" if effects[1.0] == 0 else "something")

# %% [markdown] lang="en" uid="neighbours" pair="57ad851c"
# ### Neighbours
#
# The published implementations differ in weight and window. Likes alone at $w = 1$ are reference-only; $w = 2$, after queries and keys have
# taken the mean and the variance of the reference's, is StyleAligned. One seed, the same likes and dislikes.

# %% [markdown] lang="ja" uid="neighbours" pair="1ff64d13"
# ### 近い手法
#
# 公開されている実装は、重みと窓が異なります。「好き」だけを $w = 1$ で使えば reference-only です。クエリとキーの平均と分散を参照画像のものに
# そろえてから $w = 2$ とすれば StyleAligned です。シード、「好き」、「嫌い」はどれも同じです。

# %% uid="neighbours-run"
alone = {"disliked": [], "end": 1.0}
settings = {name: {"settings": name} for name in ("paper", "repo", "webui", "diffusers", "comfy")}
settings = {condition_names["none"]: {"liked": [], "disliked": []}} | settings
settings |= {"reference-only": {"max_weight": 1.0} | alone, "StyleAligned": {"max_weight": 2.0, "adain": True} | alone}
cells = []
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for changes in settings.values():
        sides = {"liked": ranked[0][:few], "disliked": ranked[0][-few:]} | changes
        with fabric(pipe, steps=lab.sizes.steps, **sides):
            cells.append(sample(pipe, prompt, generators=image_generators(1, lab.seed + 2), **options)[0].cpu())
image_grid(torch.stack(cells), captions=list(settings), columns=4, title=t("l04.neighbours_title"))

# %% [markdown] lang="en" uid="rounds" pair="de9db38b"
# ## 5. Rounds
#
# Best picture liked, worst disliked, then four new ones: an oracle plays against random restarts, which get as many new pictures and no feedback,
# and against prompt dropout, which leaves out each word of the prompt with probability 0.3.

# %% [markdown] lang="ja" uid="rounds" pair="bfd014e2"
# ## 5. ラウンドを重ねる
#
# 最良の画像を「好き」、最悪の画像を「嫌い」とし、新しい画像を作ります。この判定を自動で行い、フィードバックなしで同じ枚数を作り直す方法や、
# プロンプトの各単語を確率 0.3 で省くプロンプトドロップアウトと比べます。

# %% uid="rounds-run" tags=["slow"]
from labkit.fabric import FeedbackLoop

ways = {"feedback": {}, "restarts": {}, "dropout": {"dropout": 0.3}}
way_names = {"feedback": t("l04.feedback"), "restarts": t("l04.restarts"), "dropout": t("l04.dropout")}
shape = {"images": lab.sizes.images, "max_weight": lab.sizes.weight, "end": 1.0, "noise": "fixed"}
history = {way: {"target": [], "judge": [], "diversity": []} for way in ways}
for i in lab.progress_bar(range(len(specs)), t("l04.targets"), len(specs)):
    for way, changes in ways.items():
        loop = FeedbackLoop(pipe, prompt, seed=lab.seed + 4 + i, **options, **shape, **changes)

        def nearness(pictures, i=i):
            return similarity(pictures, portraits[i : i + 1])

        if way == "restarts":
            for _ in range(lab.sizes.rounds):
                loop.generate()
        else:
            loop.run(nearness, lab.sizes.rounds)
        batches = [one.images for one in loop.rounds]
        history[way]["target"].append(torch.stack([nearness(x) for x in batches]).numpy())  # [rounds, images]
        history[way]["judge"].append(torch.stack([judged(x, specs[i]) for x in batches]).numpy())
        history[way]["diversity"].append([pairwise_diversity(embed_images(clip, x.to(lab.device))) for x in batches])
        if i == 0 and way == "feedback":
            gallery = {t("l04.round", number=k + 1): list(x) for k, x in enumerate(batches)}
history = {way: {name: np.asarray(values) for name, values in kept.items()} for way, kept in history.items()}
strips(gallery, title=t("l04.rounds_title"))

# %% uid="rounds-curves"
numbers = np.arange(1, lab.sizes.rounds + 1)
summaries = {t("l04.best"): np.max, t("l04.mean"): np.mean, t("l04.worst"): np.min}
series = {}
for name, summary in summaries.items():
    per_round = summary(history["feedback"]["target"], axis=2)  # [targets, rounds]
    rows = [interval(column) for column in per_round.T]
    series[name] = tuple(np.array(x) for x in zip(*[(v, *bounds) for v, bounds in rows], strict=True))
baseline = {way_names["restarts"]: float(history["restarts"]["target"].mean())}
curve_with_interval(
    numbers,
    series,
    xlabel=t("l04.round_axis"),
    ylabel=score_names["target"],
    reference=baseline,
    title=t("l04.rounds_curve"),
)

# %% uid="rounds-restarts"
so_far = {}
for way in ("feedback", "restarts"):
    best = np.maximum.accumulate(history[way]["target"].max(axis=2), axis=1)  # [targets, rounds]
    rows = [interval(column) for column in best.T]
    so_far[way_names[way]] = tuple(np.array(x) for x in zip(*[(v, *bounds) for v, bounds in rows], strict=True))
curve_with_interval(
    numbers, so_far, xlabel=t("l04.round_axis"), ylabel=t("l04.best_so_far"), title=t("l04.race_to_target")
)


# %% uid="rounds-needed"
goals = np.array([similarity(best[:1], goal[None]).item() for best, goal in zip(ranked, portraits, strict=True)])


def rounds_needed(way):
    """en: First round that comes as near as the best of the pool, per target; one more than there are if none does.
    ja: 候補の最良の画像と同じくらい目標に近づいた最初のラウンドを、目標ごとに返します。なければラウンド数 + 1 です。
    """
    reached = history[way]["target"].max(axis=2) >= goals[:, None]  # [targets, rounds]
    return np.where(reached.any(axis=1), reached.argmax(axis=1), lab.sizes.rounds) + 1


needed = {way: rounds_needed(way) for way in ways}
rows = [interval(needed[way]) for way in ways]
value, bounds = interval(needed["feedback"] - needed["restarts"])
lab.claim("fewer_rounds", measured=t("l04.needed_less"), value=value, interval=bounds, seeds=[seed])
bar_with_interval(
    [way_names[way] for way in ways],
    tuple(np.array(x) for x in zip(*[(v, *b) for v, b in rows], strict=True)),
    xlabel=t("l04.needed"),
    title=t("l04.needed_title", pool=lab.sizes.pool),
)


# %% uid="claims-rounds"
def since_first(way, what, summary):
    """en: Last round minus first round, per target.
    ja: 最終ラウンドと最初のラウンドの差を、目標ごとに返します。
    """
    values = history[way][what]
    values = values if values.ndim == 2 else summary(values, axis=2)
    return values[:, -1] - values[:, 0]


def over_rounds(summary):
    value, bounds = interval(since_first("feedback", "target", summary))
    return {"measured": t("l04.last_first"), "value": value, "interval": bounds, "seeds": [seed]}


def dropout_against(what):
    difference = [history[way][what][:, -1].reshape(len(specs), -1).mean(1) for way in ("dropout", "feedback")]
    value, bounds = interval(difference[0] - difference[1])
    return {"measured": t("l04.dropout_feedback"), "value": value, "interval": bounds, "seeds": [seed]}


lab.claim("rounds_best", **over_rounds(np.max))
lab.claim("rounds_mean", **over_rounds(np.mean))
lab.claim("rounds_worst", **over_rounds(np.min))
lab.claim("dropout_varies", **dropout_against("diversity"))
lab.claim("dropout_costs", **dropout_against("target"))

# %% [markdown] lang="en" uid="goodhart" pair="7f0bd475"
# ### Who is the judge?
#
# CLIP selected, so CLIP is flattered: a picture may please the selector without being the person. Both gains below are in standard deviations of
# the first round, so they can be compared.

# %% [markdown] lang="ja" uid="goodhart" pair="cd830cfe"
# ### 判定するのは誰か
#
# 選択に使ったのは CLIP なので、CLIP の評価は甘くなりがちです。目標の人物に似ていなくても、選択側の評価だけが上がることがあります。下の 2 つの改善量は、
# どちらも第 1 ラウンドの標準偏差を単位としているので、互いに比べられます。

# %% uid="goodhart-run"
gains = {}
for what in ("target", "judge"):
    spread = max(float(history["feedback"][what][:, 0].std()), 1e-6)
    gains[what] = since_first("feedback", what, np.mean) / spread
rows = [interval(gains[what]) for what in gains]
value, bounds = interval(gains["target"] - gains["judge"])
lab.claim("selector_flatters", measured=t("l04.selector_judge"), value=value, interval=bounds, seeds=[seed])
bar_with_interval(
    [score_names[what] for what in gains],
    tuple(np.array(x) for x in zip(*[(v, *b) for v, b in rows], strict=True)),
    xlabel=t("l04.gain_sd"),
    title=t("l04.goodhart_title"),
)

# %% [markdown] lang="en" uid="users" pair="ef027bea"
# ### Two users, one prompt
#
# One user likes spectacles, the other likes beards. Both start from the same pictures.

# %% [markdown] lang="ja" uid="users" pair="9204c776"
# ### 同じプロンプト、2 人のユーザー
#
# 1 人は眼鏡、もう 1 人はひげが好きです。2 人とも同じ画像から始めます。

# %% uid="users-run" tags=["slow"]
tastes = {"glasses": t("l04.likes_glasses"), "beard": t("l04.likes_beard")}
rows, shares = {}, {}
for attribute, name in tastes.items():

    def wanted(pictures, attribute=attribute):
        # en: the first value is "none"
        # ja: 先頭の値は "none" です
        return 1 - reader.probabilities(pictures.to(lab.device))[attribute][:, 0].cpu()

    loop = FeedbackLoop(pipe, prompt, seed=lab.seed + 5, **options, **shape)
    loop.run(wanted, lab.sizes.rounds)
    label = t("l04.user_row", name=name, number=lab.sizes.rounds)
    rows[label], shares[label] = list(loop.rounds[-1].images), wanted(loop.rounds[-1].images).tolist()
strips({t("l04.both_start"): list(loop.rounds[0].images)} | rows, scores=shares, score_format="{:.2f}")

# %% [markdown] lang="en" uid="game" pair="d6129b6b"
# ## 6. Your turn
#
# The computer thinks of a person. Find them: like, dislike, next round. The number tells how near the best picture is; the goal is the nearest
# picture of the pool. Do you need fewer rounds than the oracle, or than random restarts?

# %% [markdown] lang="ja" uid="game" pair="fe8d52f7"
# ## 6. 今度はあなたの番です
#
# コンピュータが思い浮かべた人物を探し当ててください。「好き」「嫌い」を選んで次のラウンドへ進みます。数値は、最良の画像がどれだけ近いかを表します。
# 目標値は、候補の画像のうち最も近いものの値です。自動判定やランダムな作り直しより少ないラウンドで済むでしょうか。

# %% uid="game-play" tags=["widget"]
from labkit.figures.game import FeedbackGame

hidden = portraits[-1:]
print(t("l04.game_needed", rounds=lab.sizes.rounds, **{way: int(needed[way][-1]) for way in ("feedback", "restarts")}))
mine = FeedbackLoop(pipe, prompt, seed=lab.seed + 6, **options, **shape)
FeedbackGame(mine, lambda pictures: similarity(pictures, hidden), goal=goals[-1])

# %% [markdown] lang="en" uid="race" pair="a02b95df"
# ## 7. What does it cost?
#
# Every step runs the references through the U-Net once more. With one noise per reference their keys and values are the same in every round:
# cached, the pass disappears, and what remains is longer attention. Fused, the references are rows of the same call: as many, in fewer calls.
# Pooled, four places of a reference become one: quicker, and no longer exact.

# %% [markdown] lang="ja" uid="race" pair="ef1f17b5"
# ## 7. コストはどれくらいか
#
# 毎ステップ、参照画像も U-Net を 1 回通ります。参照画像ごとにノイズを決めておけば、キーと値はどのラウンドでも同じです。キャッシュすればこの順伝播は
# 不要になり、残るのは注意の計算が長くなる分だけです。融合すると、参照画像も同じバッチで計算するので、計算量は同じで呼び出し回数が減ります。
# 2×2 平均プーリングでは、参照画像の 4 つの位置が 1 つになり、速くなる代わりに厳密ではなくなります。

# %% uid="race-run" tags=["slow"]
from labkit.diffusion import NFELedger


def cost(n, **choices):
    """en: U-Net rows and seconds of one picture with n likes; the quicker of two runs.
    ja: 「好き」が n 枚のときの、1 枚あたりの U-Net の回数と秒数です。2 回のうち速い方を採ります。
    """
    runs = []
    for _ in range(2):
        with NFELedger(pipe) as ledger, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fabric(pipe, liked=pool[:n], end=1.0, **choices):
                sample(pipe, prompt, generators=image_generators(1, 0), **options)
        runs.append((ledger.counts.unet_rows, ledger.seconds))
    return min(runs)


warm, sizes = ReferenceCache(), lab.sizes.race
contestants = {"recomputed": {}, "fused": {"fused": True}}
contestants |= {"cached": {"cache": warm}, "pooled": {"cache": warm, "pool": 2}}
labels = {"recomputed": t("l04.cost.recomputed"), "fused": t("l04.cost.fused")}
labels |= {"cached": t("l04.cost.cached"), "pooled": t("l04.cost.pooled")}
costs = {name: [] for name in contestants}
for n in lab.progress_bar(sizes, t("l04.references_axis"), len(sizes)):
    for name, choices in contestants.items():
        costs[name].append(cost(n, **choices))
# en: the quickest run without references
# ja: 参照画像なしで最も速かった実行
plain_seconds = min(kept[0][1] for kept in costs.values())
print(t("l04.rows_used", recomputed=costs["recomputed"][-1][0], cached=costs["cached"][-1][0], n=sizes[-1]))
curve_with_interval(
    sizes,
    {labels[name]: [seconds / plain_seconds for _, seconds in kept] for name, kept in costs.items()},
    xlabel=t("l04.references_axis"),
    ylabel=t("l04.time_ratio"),
    title=t("l04.race_title"),
)

# %% uid="race-pooled"
versions = {"full": {}, "pooled": {"pool": 2}, "plain": {"liked": []}}
made = {}
for name, choices in versions.items():
    with fabric(pipe, **{"liked": pool[:few], "cache": warm, "end": 1.0} | choices):
        made[name] = sample(pipe, prompt, generators=image_generators(4, 0), **options).cpu()
effect, off = ((made["full"] - made[name]).abs().mean() for name in ("plain", "pooled"))
print(t("l04.pooled_off", effect=float(effect), off=float(off)))
image_grid(
    torch.cat(list(made.values())),
    columns=4,
    row_labels=[t("l04.version.full"), t("l04.version.pooled"), t("l04.version.plain")],
)

# %% [markdown] lang="en" uid="article" pair="e240e33e"
# ## 8. The article, the paper, and what you measured

# %% [markdown] lang="ja" uid="article" pair="86d3ee5e"
# ## 8. 記事、論文、そして測定結果

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz()
