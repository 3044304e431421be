# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("04", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="story" pair="bd00a46b"
# ## 1. The article, in one line of code
#
# The article「生成AIの布地を調整する:FABRICは反復的なフィードバックで拡散モデルを個別化するAIアプローチです」presents FABRIC
# ([arXiv 2307.10159](https://arxiv.org/abs/2307.10159)). Three of its sentences are put to the test:
#
# 1. Denoising can attend to liked pictures and take over *semantic information* from them.
# 2. Liked and disliked pictures have separate passes, attention scores are re-weighted, and all that is *scheduled along the denoising steps*.
# 3. So pictures can be refined *iteratively*, round by round, until they are what you had in mind.
#
# After this lesson you can write the attention that does it, say which of the three sentences hold here and by how much, and build the control that is missing
# from most demonstrations: the same number of pictures without any feedback. Nothing is trained in this lesson. The whole method is one context manager
# around a pipeline that knows nothing of it:
#
# ```python
# with fabric(pipe, liked=[portrait]):
#     pipe(prompt)
# ```
#
# | the article's word | this course | in code |
# |---|---|---|
# | attention scores (注目スコア) | logits of self-attention, before the softmax | `logits` |
# | reference image (リファレンスイメージ) | reference: a liked or disliked picture | `liked`, `disliked` |
# | U-Net pass for the references | reference pass | `hooked` in section 4 |
# | iterative refinement | round: pictures, votes, pictures | `FeedbackLoop` |

# %% [markdown] lang="ja" uid="story" pair="586feeaf"
# ## 1. 記事の主張と、1行のコード
#
# 記事「生成AIの布地を調整する:FABRICは反復的なフィードバックで拡散モデルを個別化するAIアプローチです」が紹介しているのは、FABRIC
# ([arXiv 2307.10159](https://arxiv.org/abs/2307.10159))です。次の3つの主張を確かめます。
#
# 1. ノイズ除去の途中で好きな画像に注意を向け、その*意味情報*を取り込める。
# 2. 好きな画像と嫌いな画像は別々に U-Net を通り、注意のスコアが再重み付けされ、その働きは*ノイズ除去のステップに沿ってスケジュールされる*。
# 3. その結果、ラウンドを重ねるごとに、画像は思い描いたものへ*反復的に*近づく。
#
# このレッスンを終えると、これを実現する注意の計算を自分で書き、3つの主張のどれがどの程度成り立つかを説明できます。さらに、多くのデモに欠けている対照実験、つまり
# 「フィードバックなしで同じ枚数を作る」実験も組み立てられます。学習は一切しません。手法の全体は、FABRIC のことを何も知らないパイプラインを包む、
# コンテキストマネージャ1つです。
#
# ```python
# with fabric(pipe, liked=[portrait]):
#     pipe(prompt)
# ```
#
# | 記事の言葉 | この教材の言葉 | コード |
# |---|---|---|
# | 注目スコア | 自己注意のロジット(ソフトマックスの前の値) | `logits` |
# | リファレンスイメージ | 参照画像: 好きな画像、または嫌いな画像 | `liked`, `disliked` |
# | 参照画像用の U-Net パス | 参照の順伝播 | 第4節の `hooked` |
# | 反復的な洗練 | ラウンド: 画像を作り、評価し、また作る | `FeedbackLoop` |

# %% uid="first-picture"
import numpy as np
import torch

from labkit.diffusion import image_generators
from labkit.fabric import fabric
from labkit.figures import bar_with_interval, curve_with_interval, image_grid, recorded_means, recorded_plane, strips
from labkit.figures.widgets import choice, explore, slider
from labkit.studies import l04

sizes, run_seed = lab.sizes, 100 + lab.seed
pipe, prompt = l04.models().pipe, l04.PROMPT
crowd = l04.people(sizes.targets, run_seed)
portrait = crowd.liked_pictures[0]


def six():
    """en: Six pictures of the pipeline for the open prompt, always from the same noise.
    ja: 何も指定しないプロンプトで、いつも同じノイズから6枚生成します。
    """
    options = {"num_inference_steps": sizes.steps, "guidance_scale": sizes.guidance, "num_images_per_prompt": 6}
    images = pipe(prompt, generator=image_generators(6, run_seed), output_type="pt", **options).images
    return images.cpu() * 2 - 1


before = six()
with fabric(pipe, liked=[portrait]):
    after = six()

# %% uid="first-strip"
near = l04.nearness(0, run_seed, sizes)
image_grid(
    [portrait, *before, portrait, *after],
    scores=[np.nan, *near(before), np.nan, *near(after)],
    captions=[t("l04.liked"), *[""] * 6, t("l04.liked"), *[""] * 6],
    columns=7,
    row_labels=[t("l04.without"), t("l04.with_like")],
    score_label="CLIP",
    title=t("l04.first_title", prompt=prompt),
)

# %% [markdown] lang="en" uid="first-reading" pair="d4b7f5f5"
# **What you see.** One prompt, which names nothing; in each column one noise. The lower row has seen one liked portrait, the upper row nothing. The number under
# a picture is its CLIP similarity to the liked portrait. No weight of the model differs between the rows.
#
# Before you look for the reason, look closely at *what* changed. Go through the columns: background, clothes, skin, hair colour; then hair style,
# expression, spectacles, beard, drawing style. The article speaks of semantic information. Which of the nine attributes came along, in your eyes? Write your guess
# down; section 5 counts.

# %% [markdown] lang="ja" uid="first-reading" pair="fce0a698"
# **図の読み方。** プロンプトは1つで、何も指定していません。各列は同じノイズから始めています。下の行だけが、好きなポートレートを1枚見ています。画像の下の数字は、
# 好きなポートレートとの CLIP 類似度です。モデルの重みは、2つの行でまったく同じです。
#
# 理由を探す前に、*何が*変わったのかをよく見てください。列ごとに、背景、服、肌、髪の色を、次に髪型、表情、眼鏡、ひげ、画風を比べます。記事は「意味情報」が取り込まれると
# 述べています。9つの属性のうち、どれが移ったように見えますか。予想を残しておいてください。第5節で数えます。

# %% uid="transfer-predict" tags=["quiz"]
lab.predict("transfer")

# %% [markdown] lang="en" uid="by-hand" pair="381cd2c3"
# ## 2. The formula, by hand
#
# **Intuition.** A U-Net layer sees a picture as places: $8 \times 8$ of them in the outer layers here, $4 \times 4$ further in, $2 \times 2$ in the middle. In
# self-attention every place asks all places "who has something for me?" and takes a weighted mean of their answers. That is how one half of a face
# knows what the other half looks like. FABRIC lets it ask the places of *another* picture as well.
#
# **Formula.** For one asking place (a query), let $s_j$ be its logit for place $j$: own places $j = 1 \dots N$, and places of references. Plain attention is
# $a_j = e^{s_j} / \sum_l e^{s_l}$. Give every place a weight $w_j$, with $w_j = 1$ for own places and $w_j = w$ for those of references:
#
# $$a_j = \frac{w_j\, e^{s_j}}{\sum_l w_l\, e^{s_l}} = \mathrm{softmax}_j(s_j + \log w_j).$$
#
# The second form follows from $w\,e^{s} = e^{s + \log w}$; so re-weighting costs one addition before the softmax. (The paper prints its equation 2 without
# the normalisation of the row; every published implementation has it.)
#
# Write `reweight` in NumPy. By hand: one own place and one reference place, both with logit 0, and $w = 3$ give $(0.25, 0.75)$.

# %% [markdown] lang="ja" uid="by-hand" pair="68961514"
# ## 2. 式を自分で書く
#
# **考え方。** U-Net の層は、画像を「位置」の集まりとして見ます。この教材のモデルでは、外側の層で $8 \times 8$、その内側で $4 \times 4$、中央で $2 \times 2$ です。自己注意では、
# 各位置がすべての位置に「使える情報はありませんか」と尋ね、答えの重み付き平均を受け取ります。顔の左半分が右半分と食い違わないのは、このためです。FABRIC は、*別の*画像の位置にも
# 尋ねられるようにします。
#
# **式。** 尋ねる位置(クエリ)を1つ選び、位置 $j$ に対するロジットを $s_j$ とします。$j = 1 \dots N$ は自分の位置で、その後に参照画像の位置が続きます。通常の注意は
# $a_j = e^{s_j} / \sum_l e^{s_l}$ です。ここで各位置に重み $w_j$ を与えます。自分の位置では $w_j = 1$、参照画像の位置では $w_j = w$ です。
#
# $$a_j = \frac{w_j\, e^{s_j}}{\sum_l w_l\, e^{s_l}} = \mathrm{softmax}_j(s_j + \log w_j).$$
#
# 2つ目の形は $w\,e^{s} = e^{s + \log w}$ から出ます。つまり再重み付けは、ソフトマックスの前の足し算1回で済みます(論文の式 (2) には行の正規化が抜けていますが、公開されている実装は
# どれも正規化しています)。
#
# `reweight` を NumPy で書いてください。手計算の例: 自分の位置が1つ、参照の位置が1つ、ロジットがどちらも0で $w = 3$ なら、$(0.25, 0.75)$ です。


# %% uid="reweight" tags=["exercise"] exercise="reweight"
def reweight(own, refs, w):
    """en: Attention of one query: own logits [N], reference logits [M], weight w > 0 -> [N + M], sums to 1.
    ja: 1つのクエリの注意 [N + M](和は1)です。own [N] は自分、refs [M] は参照のロジット、w > 0は重みです。
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
own, refs = np.array([1.0, 0.2, -0.5]), np.array([0.6, -0.2])
places = [t("l04.own", number=i + 1) for i in range(3)] + [t("l04.ref", number=i + 1) for i in range(2)]


def one_row(log_w):
    row = reweight(own, refs, np.exp(log_w))
    title = t("l04.row_title", weight=float(np.exp(log_w)), mass=float(row[3:].sum()))
    return bar_with_interval(places, row, xlabel=t("l04.attention"), title=title, xlim=(0, 1))


explore(one_row, {"log_w": slider(t("l04.log_weight"), -4.0, 4.0, 0.0, 0.25)})

# %% [markdown] lang="en" uid="mass" pair="68bb3ec4"
# **Reading.** Move the slider: all reference bars grow together, all own bars shrink together, and inside each group the proportions stay. So one number says it
# all, the **mass** $m$, the share of attention that goes to references. The output is $(1 - m)$ times what the place would have seen in its own picture, plus
# $m$ times what it sees in the references. Since $m / (1 - m) = w \cdot \sum_{\mathrm{ref}} e^{s} / \sum_{\mathrm{own}} e^{s}$, the weight multiplies the *odds*; it is no
# percentage.
#
# If the logits say nothing (all equal) and each of $n$ references has as many places as the picture, the sums cancel to $m / (1 - m) = w\,n$, hence
# $m = wn / (1 + wn)$. At the paper's $w = 0.8$ one like takes 44 % of the attention, four take 76 %, eight take 86 %: nobody asked for more, the list merely grew.
#
# Turn the formula round: which weight gives $n$ references together a mass of $m$? Write `weight_for`. By hand: half of the attention for one reference needs
# $w = 1$, and $m = 0.75$ needs $w = 3$ for one reference and $w = 1$ for three.

# %% [markdown] lang="ja" uid="mass" pair="42cebd98"
# **図の読み方。** スライダーを動かすと、参照の棒は一緒に伸び、自分の棒は一緒に縮みます。それぞれの中での比は変わりません。したがって、参照画像に向かう注意の割合である
# **質量** $m$ だけですべてが決まります。出力は、自分の画像だけを見た場合の値の $(1 - m)$ 倍と、参照画像だけを見た場合の値の $m$ 倍の和です。
# $m / (1 - m) = w \cdot \sum_{\mathrm{ref}} e^{s} / \sum_{\mathrm{own}} e^{s}$ なので、重みは*オッズ*に掛かります。割合ではありません。
#
# ロジットがすべて等しく、$n$ 枚の参照画像がどれも生成中の画像と同じ数の位置を持つなら、和が約分されて $m / (1 - m) = w\,n$、つまり
# $m = wn / (1 + wn)$ です。論文の $w = 0.8$ なら、「好き」1枚で注意の44%、4枚で76%、8枚で86%を占めます。強くしてほしいと頼んだわけではなく、枚数が増えただけです。
#
# この式を逆に解いてください。$n$ 枚の参照画像の質量を合計 $m$ にする重みはいくつでしょうか。`weight_for` を書きます。手計算の例: 1枚で注意の半分なら $w = 1$ です。
# $m = 0.75$ なら、1枚では $w = 3$、3枚では $w = 1$ です。


# %% uid="weight-for" tags=["exercise"] exercise="weight_for"
def weight_for(mass, n):
    """en: Weight at which n references together get this mass (0 <= mass < 1), if the logits are flat.
    ja: ロジットが一様なとき、n 枚の参照画像の質量の合計が mass(0以上1未満)になる重みです。
    """
    # BEGIN SOLUTION
    return mass / (1 - mass) / n
    # END SOLUTION


# %% uid="weight-for-check" tags=["check"]
lab.check("weight_for")
weight_for = lab.use("weight_for")

# %% uid="mass-curve"
counts = np.arange(1, 9)
mass = {t("l04.same_weight"): [0.8 * n / (1 + 0.8 * n) for n in counts]}
kept = weight_for(mass[t("l04.same_weight")][0], counts)
mass[t("l04.your_weight")] = [w * n / (1 + w * n) for w, n in zip(kept, counts, strict=True)]
curve_with_interval(
    counts, mass, xlabel=t("l04.references"), ylabel=t("l04.mass"), ylim=(0, 1), title=t("l04.mass_title")
)

# %% [markdown] lang="en" uid="reference-pass" pair="ac49f848"
# **Reading.** With a fixed weight the liked pictures take over as the rounds go on. With your weights the mass stays where it was, and each single like counts less. This is a
# choice, not a correction: do eight likes mean "eight times as sure" or "look at all eight"? Keep it in mind for section 7.
#
# ## 3. The reference pass
#
# Where do the keys and values of a liked picture come from? From the same U-Net, in a pass of its own before every step. The article's sentence "the reference passes
# through the U-Net" leaves out the three details that make it work.
#
# ```text
#                        noise to the step's own t         empty prompt
# liked picture --VAE--> x_ref ------------------> x_ref(t) ----------> U-Net ---> output: thrown away
#                                                                        |
#                                        every self-attention stores what enters it
#                                                                        |  weight w inside the window, else 0
#                                                                        v
# new picture ---------------------------> x(t) ------- prompt -------> U-Net ---> noise prediction
#                                                        every self-attention reads own and stored places
# ```
#
# * **Noised to the current step.** $x_{\mathrm{ref}}(t) = \sqrt{\bar\alpha_t}\,x_{\mathrm{ref}} + \sqrt{1 - \bar\alpha_t}\,\epsilon$, anew in every step. The U-Net has learnt what pictures
#   look like *at this noise level*; its keys for a clean picture at $t = 900$ would be strange to a picture that is nearly noise.
# * **The empty prompt.** A like says "this picture", not "this picture as an answer to my prompt". The paper leaves the prompt of this pass open; its code takes the
#   empty one.
# * **The window.** The weight is $w$ during a part of the steps and 0 (or a small $w_{\min}$) outside. The article's word "scheduled" suggests a gradual course; paper, code and
#   web UI all use this box.
#
# Then guidance: likes are read by the half that sees the prompt, dislikes by the half that does not. Section 6 draws the consequence.
#
# The published code measures the window in steps: with $T$ steps, numbered from 0, the window $(a, b)$ begins with step $\mathrm{round}(aT)$ and ends with step
# $\mathrm{round}(bT)$, *both included*. Write `active_steps`. By hand: at $T = 20$ the window $(0, 0.8)$ holds 17 steps, 0 to 16, and $(0, 1)$ all 20, since step 20 does
# not exist.

# %% [markdown] lang="ja" uid="reference-pass" pair="a41bc397"
# **図の読み方。** 重みを固定すると、ラウンドが進むにつれて好きな画像が注意を独占していきます。自分で求めた重みなら質量は変わらず、代わりに1枚ごとの影響が小さくなります。どちらが正しいというものではなく、
# 選択の問題です。「好き」が8枚あることは「8倍確かだ」という意味でしょうか。それとも「8枚とも見てほしい」という意味でしょうか。第7節で再び出てきます。
#
# ## 3. 参照の順伝播
#
# 好きな画像のキーと値は、どこから来るのでしょうか。同じ U-Net です。毎ステップの前に、参照画像だけを通します。記事は「リファレンスイメージを U-Net に通す」とだけ述べていますが、
# うまく働かせるには、書かれていない3つの点が欠かせません。
#
# ```text
# 好きな画像 --VAE--> x_ref --同じ t までノイズを加える--> x_ref(t) --空のプロンプト--> U-Net --> 出力は捨てる
#                                               各自己注意が、自分への入力を保存する
#                                                              |
#                                                              |  窓の中では重み w、外では0
#                                                              v
# 新しい画像 -----------------------> x(t) --プロンプト--> U-Net --> ノイズ予測
#                                               各自己注意が、自分の位置と保存した位置を読む
# ```
#
# * **現在のステップまでノイズを加える。** $x_{\mathrm{ref}}(t) = \sqrt{\bar\alpha_t}\,x_{\mathrm{ref}} + \sqrt{1 - \bar\alpha_t}\,\epsilon$ を毎ステップ計算します。U-Net が学んだのは、
#   *そのノイズの強さでの*画像の見え方です。$t = 900$ のステップでノイズのない画像を U-Net に通しても、得られるキーは、ほぼノイズだけの生成中の画像とはかみ合いません。
# * **空のプロンプト。** 「好き」が意味するのは「この画像」であり、「自分のプロンプトへの答えとしてのこの画像」ではありません。論文はこのプロンプトを明記していませんが、著者の
#   コードは空のプロンプトを使います。
# * **窓。** 重みは、一部のステップの間だけ $w$ で、それ以外では0(または小さな $w_{\min}$)です。記事の「スケジュール」からは徐々に変わる様子を想像しますが、論文、著者のコード、
#   Web UI は、いずれもこの箱形の窓を使っています。
#
# 最後に誘導です。「好き」はプロンプトを見る側が、「嫌い」は見ない側が読みます。その結果、何が起こるかは第6節で調べます。
#
# 公開されているコードでは、窓をステップで測ります。$T$ ステップに0から番号を付けると、窓 $(a, b)$ は $\mathrm{round}(aT)$ 番で始まり、$\mathrm{round}(bT)$ 番で終わります。
# *両端を含みます*。`active_steps` を書いてください。手計算の例: $T = 20$ のとき、窓 $(0, 0.8)$ は0番から16番までの17ステップです。$(0, 1)$ は20ステップ全部です。20番というステップは
# 存在しないからです。


# %% uid="active-steps" tags=["exercise"] exercise="active_steps"
def active_steps(steps, start, end):
    """en: Numbers of the steps inside the window (start, end), fractions of the process: list of ints, 0 .. steps - 1.
    ja: 窓 (start, end)(全体に対する割合)に入るステップの番号を、0から steps - 1までの整数のリストで返します。
    """
    # BEGIN SOLUTION
    first, last = round(steps * start), round(steps * end)
    return [i for i in range(steps) if first <= i <= last]
    # END SOLUTION


# %% uid="active-steps-check" tags=["check"]
lab.check("active_steps")
active_steps = lab.use("active_steps")

# %% uid="windows"
from labkit.fabric import PRESETS

courses = {}
for name in ("paper", "repo", "diffusers"):
    one = PRESETS[name].settings
    inside = active_steps(20, one.start, one.end)
    courses[name] = [one.max_weight if i in inside else one.min_weight for i in range(20)]
curve_with_interval(np.arange(20), courses, xlabel=t("l04.step"), ylabel=t("l04.weight"), title=t("l04.windows_title"))

# %% [markdown] lang="en" uid="hook" pair="4a349cca"
# **Reading.** One method, three windows, and each is called FABRIC somewhere: the paper reads references in every step, the authors' later code in the first 80 % with a weight of
# 0.3, the diffusers pipeline only in the middle third. A result quoted without its window is half a result. Section 5 finds out which steps matter *here*.
#
# ## 4. Write the hook
#
# Now the same in PyTorch, in two steps: the attention, then a layer of the U-Net. Queries come from the picture alone, keys and values from picture and
# references; that is why nothing has to be trained. A row of keys more is, for a softmax, nothing new.
#
# `weighted_attention` has rows (pictures of a batch) and one set of references for all of them. By hand: two own places with key 0, one reference with key 0 and $w = 2$ take
# a quarter, a quarter and a half of the attention.

# %% [markdown] lang="ja" uid="hook" pair="921667c2"
# **図の読み方。** 手法は1つですが、窓は3通りあり、どれも FABRIC と呼ばれています。論文は全ステップで参照画像を読み、著者の後のコードは最初の80%で重み0.3、diffusers のパイプラインは中央の
# 3分の1だけです。窓を書かずに結果だけを示すのは、半分しか報告していないのと同じです。*この教材では*どのステップが効くのかを、第5節で調べます。
#
# ## 4. フックを書く
#
# 同じことを PyTorch で書きます。まず注意そのもの、次に U-Net の層です。クエリは生成中の画像だけから、キーと値は生成中の画像と参照画像の両方から作ります。学習が要らないのは
# このためです。キーの行が増えても、ソフトマックスにとっては何も変わりません。
#
# `weighted_attention` の入力は、1行がバッチ内の画像1枚に当たり、参照画像は全行に共通です。手計算の例: キーが0の自分の位置が2つ、キーが0の参照が1つで $w = 2$ なら、
# 注意は4分の1、4分の1、2分の1に分かれます。


# %% uid="weighted-attention" tags=["exercise"] exercise="weighted_attention"
def weighted_attention(q, k, v, k_ref, v_ref, w):
    """en: q, k, v [B, N, d] own; k_ref, v_ref [1, M, d] shared by all rows; weight w > 0 -> [B, N, d].
    ja: q, k, v [B, N, d] は自分のもの、k_ref, v_ref [1, M, d] は全行に共通、w > 0は重みです。[B, N, d] を返します。
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

# %% [markdown] lang="en" uid="layer" pair="2b71a03b"
# A layer of the U-Net is an `Attention` module of diffusers. You met it in lesson 01, where `Recorder` replaced its processor, the function that does the work of the
# layer, and kept its probabilities. It has the linear maps `to_q`, `to_k`, `to_v`, the output map `to_out[0]`, and two helpers: `head_to_batch_dim`
# cuts the channels into heads and makes them rows, $[B, N, C] \to [B \cdot h, N, C / h]$, and `batch_to_head_dim` joins them again.
#
# `read_references` gets what enters the layer (`states`) and what was stored when the references went through (`stored`). Stored are the *inputs*, not keys and
# values; the layer's own `to_k` and `to_v` turn them into those. Your `weighted_attention` fits the heads once `stored` has been repeated for each row.

# %% [markdown] lang="ja" uid="layer" pair="a0c08ed8"
# U-Net の層は、diffusers の `Attention` モジュールです。レッスン01では、`Recorder` がそのプロセッサ(層の計算を受け持つ関数)を置き換え、確率を記録していました。このモジュールには、
# 線形変換 `to_q`、`to_k`、`to_v` と出力の変換 `to_out[0]`、それに補助関数が2つあります。`head_to_batch_dim` はチャネルをヘッドに分けて行に移し
# ($[B, N, C] \to [B \cdot h, N, C / h]$)、`batch_to_head_dim` は元に戻します。
#
# `read_references` は、層への入力(`states`)と、参照画像が通ったときに保存した入力(`stored`)を受け取ります。保存してあるのはキーや値ではなく*入力*です。層自身の `to_k` と
# `to_v` でキーと値に変えます。`stored` を行数分に広げれば、ヘッドごとの計算には先ほどの `weighted_attention` と同じ考え方が使えます。


# %% uid="read-references" tags=["exercise"] exercise="read_references"
def read_references(attn, states, stored, w):
    """en: One self-attention layer: states [B, N, C] also look at stored tokens [1, M, C] -> [B, N, C].
    ja: 自己注意の1層です。states [B, N, C] が、保存済みのトークン stored [1, M, C] も見ます。[B, N, C] を返します。
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

# %% [markdown] lang="en" uid="puzzle" pair="deed557a"
# Before you use it, a puzzle. Let a noisy picture have *itself* as its only reference: the same noise, the same prompt, weight 2. What does the U-Net answer?

# %% [markdown] lang="ja" uid="puzzle" pair="19c8530e"
# 使う前に考えてみましょう。ノイズの乗った画像に、*自分自身*だけを参照させます。ノイズもプロンプトも同じで、重みは2です。U-Net の答えはどうなるでしょうか。

# %% uid="puzzle-predict" tags=["quiz"]
lab.predict("self_reference")


# %% uid="hook-class"
from labkit.fabric import self_attentions


class Hook:
    """en: Stores what enters a self-attention, or, once it has a weight, reads what was stored.
    ja: 自己注意への入力を保存します。重みが設定された後は、保存したものを読みます。
    """

    def __init__(self, original):
        self.original, self.stored, self.weight = original, None, None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if self.weight is None:
            # en: all references end to end
            # ja: すべての参照画像を1列につなぎます
            self.stored = hidden_states.flatten(0, 1)[None]  # [1, n N, C]
            return self.original(attn, hidden_states)
        return read_references(attn, hidden_states, self.stored, self.weight)


# %% uid="hooked"
def hooked(x_ref, text_ref, x_t, text, timestep, w):
    """en: What the U-Net says of x_t while it sees the noised references x_ref: two passes, as in the diagram.
    ja: ノイズを加えた参照画像 x_ref を見せながら、x_t に対する U-Net の予測を求めます。図のとおり、2回通します。
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


# %% [markdown] lang="en" uid="hook-run" pair="38fc8b69"
# Five lines of the diagram, five lines of code. Four properties must hold if everything is wired correctly: a picture that sees itself stays as it is; two copies of a
# reference at $w/2$ are one at $w$; a second picture in the batch changes nothing for the first; and your hook computes what `labkit.fabric` computes. All four
# are exact statements about the formula, so they hold to rounding or there is a bug.

# %% [markdown] lang="ja" uid="hook-run" pair="cee2d1b1"
# 図の流れが、そのままコードになりました。正しくつながっていれば、4つの性質が成り立つはずです。自分自身を参照しても変わらないこと。同じ参照を $w/2$ で2枚使うと、$w$ で1枚使うのと同じこと。
# バッチに2枚目の画像を加えても、1枚目は変わらないこと。自作のフックが `labkit.fabric` と同じ計算をすること。どれも式から厳密に言えることなので、丸め誤差を超えてずれたら
# バグがあります。

# %% uid="hook-inputs"
from labkit.diffusion import encode_images, encode_prompts, labelled_rows
from labkit.fabric import Reference, noised_reference, reference_noise

level = 400
references = [Reference(picture, (-1, 1)) for picture in before[:2]]
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


def alone(w, x_ref=noised[1:]):
    """en: The prediction for the first picture, with the second as its only reference at weight w.
    ja: 2枚目の画像だけを重み w で参照したときの、1枚目の予測です。
    """
    return hooked(x_ref, empty, noised[:1], text, level, w)


# %% uid="hook-lights" tags=["check"]
mine, both = alone(0.8), hooked(noised[1:], empty, noised, text.expand(2, -1, -1), level, 0.8)
twice = alone(0.4, noised[1:].expand(2, -1, -1, -1))
itself = gap(hooked(noised[:1], text, noised[:1], text, level, 2.0), plain)
same, other = gap(twice, mine), gap(both[:1], mine)
lab.verdict(t("l04.light_self", value=itself), itself < 1e-4)
lab.verdict(t("l04.light_copies", value=same), same < 1e-4)
lab.verdict(t("l04.light_batch", value=other), other < 1e-4)
lab.verdict(t("l04.light_library", value=gap(mine, theirs)), gap(mine, theirs) < 1e-4)
print(t("l04.effect", value=gap(mine, plain)))
print(t("l04.effect_clean", value=gap(alone(0.8, clean[1:]), plain)))
print(t("l04.tiny", value=gap(alone(1e-9), plain)))
lab.reveal("self_reference", "nothing" if itself < 1e-4 else "changes")

# %% [markdown] lang="en" uid="tiny-weight" pair="1e8f363c"
# **Reading.** The three lines below the lights are measurements, not laws. The first is what another person as reference does to one prediction. The second is the same
# person without the noise, so a picture that the U-Net does not expect at $t = 400$; compare its size with the first. The third belongs to a property that is missing on purpose, "a weight near
# 0 changes nothing": $w = 10^{-9}$ takes only 20.7 off a logit, and in the middle of the U-Net, where a picture has four places, the logits of another
# picture can lie more than 100 above its own. There the references win at any weight you would write down. Only $w = 0$ is nothing:
# `labkit.fabric` then leaves the references out.

# %% [markdown] lang="ja" uid="tiny-weight" pair="9223aede"
# **結果の読み方。** 判定の下の3行は、法則ではなく測定値です。1行目は、別の人物を参照したときに予測がどれだけ変わるかです。2行目は、同じ人物をノイズなしで参照した場合で、U-Net が $t = 400$ で
# 見るはずのない入力です。1行目と大きさを比べてください。3行目は、あえて性質に入れなかった「重みがほぼ0なら何も変わらない」に対応します。$w = 10^{-9}$ でもロジットから20.7を
# 引くだけです。画像を4つの位置で表す U-Net の中央では、別の画像のロジットが自分のロジットを100以上も上回ることがあります。そこでは、現実的などんな重みでも参照側が勝ちます。
# 確実に影響がなくなるのは $w = 0$ だけで、`labkit.fabric` はそのとき参照画像を取り除きます。

# %% [markdown] lang="en" uid="measure" pair="d1b76e5a"
# ## 5. What does a like transfer?
#
# The article promises semantic information. This world lets us count it: a portrait has nine attributes, and the AttributeReader reads each of them from the pixels. The experiment:
# for every target a person is drawn at random and liked, the prompt names nothing, the same noise is used with and without the like. For each attribute
# we ask how much more probable *the liked person's value* has become. Zero means that the like did nothing for this attribute.
#
# A live run has few targets; the recorded study has six targets with four pictures each in every seed. Dots are its seeds, bars its 95 % intervals, and the star is
# your own run of the same function, on people that the study never saw.

# %% [markdown] lang="ja" uid="measure" pair="35b0079f"
# ## 5. 「好き」は何を移すのか
#
# 記事は、意味情報を取り込めると述べています。この教材の世界では、それを数えられます。ポートレートには9つの属性があり、AttributeReader が画素から1つずつ読み取るからです。実験では、目標ごとに
# 人物を無作為に選んで「好き」とし、何も指定しないプロンプトで、同じノイズから「好き」のある場合とない場合の画像を作ります。そして属性ごとに、*好きな人物と同じ値*である確率が
# どれだけ上がったかを調べます。0なら、その属性には何も起きていません。
#
# その場の実行では目標が少数です。記録済みの実験では、シードごとに6目標、各4枚を測りました。点がシード、横棒が95%区間、星は同じ関数による自分の結果です。自分の実行に出てくる
# 人物は、記録した実験では使っていません。


# %% uid="transfer-run" tags=["slow"]
def transfer(arm):
    """en: Pictures of every target under one setting of the study: list of [copies, 3, 64, 64].
    ja: 記録済みの実験の1つの条件で、目標ごとの画像 [copies, 3, 64, 64] をリストで返します。
    """
    return [l04.draw(i, run_seed, sizes, **l04.TRANSFER[arm]) for i in range(sizes.targets)]


arms = ["none", "like", "like_outer", "like_inner", "like_first", "like_second", "dislike", "both", "first", "second"]
images = {arm: lab.keep(arm, transfer, arm) for arm in lab.progress_bar(arms, t("l04.drawing"), len(arms))}
results = {arm: l04.measures(made, run_seed, sizes) for arm, made in images.items()}
names = {
    "none": t("l04.arm.none"),
    "like": t("l04.arm.like"),
    "like_outer": t("l04.arm.like_outer"),
    "like_inner": t("l04.arm.like_inner"),
    "like_first": t("l04.arm.like_first"),
    "like_second": t("l04.arm.like_second"),
    "like_0.3": t("l04.arm.light"),
    "like_2": t("l04.arm.heavy"),
    "like_8": t("l04.arm.heaviest"),
    "dislike": t("l04.arm.dislike"),
    "both": t("l04.arm.both"),
    "first": t("l04.arm.first"),
    "second": t("l04.arm.second"),
    "prompt": t("l04.arm.prompt"),
    "fixed": t("l04.arm.fixed"),
    "both_worst": t("l04.arm.both_worst"),
    "both_steps20": t("l04.arm.both_steps20"),
    "first_steps20": t("l04.arm.first_steps20"),
}

# %% uid="transfer-pictures"
shown = ["none", "like", "like_outer", "like_inner"]
image_grid(
    [one for arm in shown for i in range(2) for one in (crowd.liked_pictures[i], *images[arm][i][:3])],
    scores=[s for arm in shown for i in range(2) for s in (np.nan, *l04.judge(images[arm][i], crowd.liked[i])[:3])],
    columns=2 * (1 + min(3, sizes.copies)),
    row_labels=[names[arm] for arm in shown],
    column_labels=[t("l04.liked"), *[""] * min(3, sizes.copies)] * 2,
    title=t("l04.transfer_title"),
)

# %% uid="helpers" tags=["hide-input"]
from labkit.metrics import cluster_bootstrap
from labkit.portraits import attribute_name
from labkit.studies import estimate, means
from labkit.studies.estimate import gain

attributes = (*l04.PALETTE, *l04.FORM)
words = {
    "target": t("l04.what.target"),
    "unwanted": t("l04.what.unwanted"),
    "judge": t("l04.what.judge"),
    "diversity": t("l04.what.diversity"),
    "palette": t("l04.what.palette"),
    "form": t("l04.what.form"),
}


def recorded_gains(arm):
    """en: Recorded gain over "none" per attribute, as (value, low, high) for a bar chart.
    ja: 属性ごとの「なし」に対する記録済みの増分を、棒グラフ用の (値, 下限, 上限) で返します。
    """
    found = [estimate(gain(f"has.{a}", arm, "none")(lab.recorded)) for a in attributes]
    return tuple(np.array([getattr(one, end) for one in found]) for end in ("value", "low", "high"))


def live_interval(values):
    """en: Mean of one number per target and its bootstrap interval.
    ja: 目標ごとの値の平均と、ブートストラップ区間です。
    """
    value = float(np.mean(values))
    low, high = cluster_bootstrap(np.asarray(values, float), generator=np.random.default_rng(0), method="percentile")
    return value, (min(low, value), max(high, value))


def difference(metric, arm, against):
    """en: In words, and one number per target if both settings were run here, else None.
    ja: 差を表す言葉と、両方の条件をここで実行した場合は目標ごとの差(それ以外は None)を返します。
    """
    measured = t("l04.measure", metric=words[metric], a=names[arm], b=names[against])
    both = {arm, against} <= set(results)
    return measured, results[arm][metric] - results[against][metric] if both else None


def claim(id, measured, values=None):
    """en: The recorded verdict, and your own mean with its interval where there are values.
    ja: 記録済みの判定と、値がある場合は自分の平均と区間を示します。
    """
    if values is None:
        return lab.claim(id, measured=measured, reason=t("l04.recorded_only"))
    value, interval = live_interval(values)
    return lab.claim(id, measured=measured, value=value, interval=interval, seeds=[run_seed])


# %% uid="transfer-attributes"
labels = {a: attribute_name(a, lab.lang) for a in attributes}
recorded_means(
    {labels[a]: estimate(gain(f"has.{a}", "like", "none")(lab.recorded)) for a in attributes},
    yours={labels[a]: (results["like"][f"has.{a}"] - results["none"][f"has.{a}"]).mean() for a in attributes},
    xlabel=t("l04.gain"),
    reference={t("l04.nothing"): 0.0},
    title=t("l04.attributes_title"),
    value_format="{:+.2f}",
)

# %% uid="transfer-claims"
palette, form = (results["like"][kind].mean() - results["none"][kind].mean() for kind in ("palette", "form"))
lab.reveal(
    "transfer", "palette" if palette > 2 * max(form, 0.02) else "form" if form > 2 * max(palette, 0.02) else "both"
)
claim("likes_raise", *difference("target", "like", "none"))
claim("palette_transfers", *difference("palette", "like", "none"))
apart = difference("palette", "like", "none")[1] - difference("form", "like", "none")[1]
claim("palette_beats_form", t("l04.palette_form"), apart)

# %% [markdown] lang="en" uid="transfer-reading" pair="31518e02"
# **What you see.** The like moves the *palette*. Background, in the record, goes from one picture in five that has the liked colour to nearly all; in clothes, half of all pictures more have the liked one's colour, in hair and skin about
# a third more of all. The *form* stays behind: expression and spectacles each come along in about one picture in twenty-five ($+.040$ $[.008, .072]$ and $+.039$ $[.020, .059]$ over thirty seeds), hair style in one in thirty, drawing style in one in sixty, and of the beard the record cannot say whether it moves ($+.036$ $[-.005, .077]$). Had we averaged over nine attributes, we
# would have reported "+0.24, it works", and hidden that one half moves and the other stands still.
#
# **Why.** The pictures above hint at it: heads, mouths and collars stay where the noise had put them, and are painted over. The next figures look for the mechanism, layer by layer. **What would
# change it.** A model whose inner layers carry more: this U-Net attends at $8 \times 8$, $4 \times 4$ and $2 \times 2$ places, Stable Diffusion at $64 \times 64$ down to $8 \times 8$, where one place can be an eye. So for
# Stable Diffusion the question is open, but it can be asked in the same way, and the paper did not ask it.
#
# Which layers carry the palette? FABRIC hooks all of them. Open the outer ones alone (three at $8 \times 8$ places), then the inner ones alone. Guess before you look: does the coarse inside
# hold the form, as many drawings of a U-Net suggest?

# %% [markdown] lang="ja" uid="transfer-reading" pair="1c73ef49"
# **図の読み方。** 「好き」が動かすのは*色*です。記録では、好きな人物と同じ背景色の画像は、5枚に1枚からほぼ全部になります。服の色が一致する画像は全体の半分に当たる分だけ、髪と肌の色が一致する画像は全体の3分の1に当たる分だけ増えます。一方、*形*はほとんど移りません。
# 表情と眼鏡が移るのは25枚に1枚ほど(30シードで $+.040$ $[.008, .072]$ と $+.039$ $[.020, .059]$)、髪型は30枚に1枚、画風は60枚に1枚です。ひげが移るかどうかは、記録からは決まりません($+.036$ $[-.005, .077]$)。9属性の平均だけを見ていたら、「+0.24、効果あり」と報告して、半分が動き、半分が動いていないことを
# 見落としていたでしょう。
#
# **理由。** 手がかりは上の画像にあります。頭、口、襟はノイズが決めた場所に残り、その上から色が塗り替えられています。仕組みは、次の図で層ごとに調べます。**結果を左右しそうなもの。** 内側の層がもっと多くを運ぶ
# モデルです。この U-Net の注意は $8 \times 8$、$4 \times 4$、$2 \times 2$ の位置で働きますが、Stable Diffusion では $64 \times 64$ から $8 \times 8$ までで、1つの位置が片目ほどの大きさになり得ます。Stable Diffusion については
# 未解決ですが、同じ方法で調べられます。論文は調べていません。
#
# 色を運んでいるのは、どの層でしょうか。FABRIC はすべての層に手を加えます。外側の層だけ($8 \times 8$ の3層)、次に内側の層だけにしてみます。見る前に予想してください。U-Net の図でよく言われるように、
# 粗い内側の層が形を持っているのでしょうか。

# %% uid="levels"
shown = ["like", "like_outer", "like_inner"]
bar_with_interval(
    [labels[a] for a in attributes],
    {names[arm]: recorded_gains(arm) for arm in shown},
    xlabel=t("l04.gain"),
    title=t("l04.levels_title"),
    value_format="{:+.2f}",
)


# %% uid="levels-yours"
def two_kinds(arms, title):
    """en: Recorded gain in palette and in form of these settings, with your own run as stars.
    ja: 各条件での、色と形の記録済みの増分に、自分の結果を星で重ねます。
    """
    rows = {f"{names[arm]}: {words[kind]}": (arm, kind) for arm in arms for kind in ("palette", "form")}
    found = {row: estimate(gain(kind, arm, "none")(lab.recorded)) for row, (arm, kind) in rows.items()}
    yours = {
        row: (results[arm][kind] - results["none"][kind]).mean() for row, (arm, kind) in rows.items() if arm in results
    }
    return recorded_means(
        found, yours=yours, xlabel=t("l04.gain"), reference={t("l04.nothing"): 0.0}, title=title, value_format="{:+.2f}"
    )


two_kinds(["like", "like_outer", "like_inner"], t("l04.levels_kinds"))

# %% uid="levels-claim"
claim("outer_carries_palette", *difference("palette", "like_outer", "like_inner"))

# %% [markdown] lang="en" uid="levels-reading" pair="81134876"
# **Reading.** The outer layers alone carry most of the palette; the inner ones carry the background, which is large enough to be seen from $4 \times 4$ places, and little else. And the form? If a little of it comes along
# anywhere, then from inside, about three hundredths. So the guess was not wrong, only useless: where form could live, there is next to nothing to read. With 16 and 4 places per
# picture an inner layer knows "dark above, light below", not "bob, parted on the left".
#
# Look into one layer yourself.

# %% [markdown] lang="ja" uid="levels-reading" pair="4a9fd483"
# **図の読み方。** 色の大部分は、外側の層だけで運べます。内側の層が運ぶのは背景くらいです。背景は広いので、$4 \times 4$ の粗い位置からでも見えます。形はどうでしょうか。わずかに移るとすれば内側の層からですが、
# 0.03ほどです。つまり、予想は間違いではなくても、役には立ちません。形がありそうな場所に、読み取れる情報がほとんどないのです。位置が16個や4個しかない内側の層に分かるのは「上が暗く、下が明るい」程度で、
# 「左分けのボブ」ではありません。
#
# 1つの層の中を、自分で覗いてみましょう。

# %% uid="looks-map" tags=["widget"]
from labkit.fabric import attention_table
from labkit.figures import heatmap_overlay

seen = []
with fabric(pipe, liked=[portrait], backend="lse", observer=seen.append):
    six()
moments = sorted({o.t for o in seen})


def look(layer, column, row):
    """en: Where one place of the first new picture looks in the liked portrait, half way through the steps.
    ja: 1枚目の新しい画像の1か所が、ステップの半ばで、好きなポートレートのどこを見るかを示します。
    """
    o = next(o for o in seen if o.layer.name == layer and o.t == moments[len(moments) // 2])
    table = attention_table(o.q, o.k, o.reference.k, o.reference.weights)[1][0].mean(0)  # [N, M]
    side = round(o.q.shape[2] ** 0.5)
    x, y = (min(int(percent * side / 100), side - 1) for percent in (column, row))
    there, here = table[y * side + x].reshape(side, side).cpu(), torch.zeros(side, side)
    here[y, x] = 1
    maps = [here, there / there.max()]
    return heatmap_overlay(
        [after[0], portrait], maps, captions=[t("l04.asks"), t("l04.liked")], label=t("l04.attention_max"), columns=2
    )


layers = {t("l04.layer_at", number=i + 1, depth=o.depth): o.name for i, (o, _) in enumerate(self_attentions(pipe.unet))}
controls = {"layer": choice(t("l04.layer"), layers)}
controls |= {"column": slider(t("l04.column"), 0, 100, 10, 5), "row": slider(t("l04.row"), 0, 100, 10, 5)}
explore(look, controls)

# %% [markdown] lang="en" uid="looks-reading" pair="8d2d0dc0"
# **Reading.** The bright place on the left asks; the map on the right shows where in the liked portrait it looks, averaged over heads. Let a corner of the background ask, then an eye,
# then the collar, and try outer and inner layers. A background place finds the whole background of the other picture and brings its colour home: for that it does not
# matter *which* of the places answers, they all say the same. A shape would need many places to copy from matching places at once, and to agree with
# what their neighbours copied. An average of values carries a colour easily and an arrangement badly.
#
# ### And when?
#
# The paper reports, without a figure, that feedback in the first half of the steps alone beats feedback in every step by a large margin, and that in the second half alone it
# hurts. In this experiment likes act in 8 steps, so each half has four.

# %% [markdown] lang="ja" uid="looks-reading" pair="6df66498"
# **図の読み方。** 左の明るい位置が尋ねる側で、右は、それが好きなポートレートのどこを見ているか(ヘッドの平均)です。背景の隅、目、襟元から尋ねさせ、外側と内側の層も試してください。背景の位置は、相手の
# 背景全体を見つけて、その色を持ち帰ります。このとき、*どの*位置が答えても構いません。どこも同じことを答えるからです。形を写すには、たくさんの位置がそれぞれ対応する位置から同時に写し、しかも
# 隣の位置と食い違わないようにする必要があります。値の平均は、色ならたやすく運べますが、配置を運ぶのは苦手です。
#
# ### いつ効くのか
#
# 論文は、図なしで次のように報告しています。前半のステップだけのフィードバックは、全ステップの場合より大幅に良く、後半だけでは悪くなる。この実験は8ステップなので、前半も後半も
# 4ステップです。

# %% uid="windows-kinds"
two_kinds(["like", "like_first", "like_second"], t("l04.windows_kinds"))

# %% uid="windows-claims"
claim("first_half_helps", *difference("target", "first", "both"))
claim("first_half_helps_in_20", *difference("target", "first_steps20", "both_steps20"))
claim("second_half_hurts", *difference("target", "second", "both"))
claim("first_beats_second", *difference("target", "first", "second"))

# %% [markdown] lang="en" uid="own" pair="9d933af8"
# **Reading.** Each half alone brings some three fifths of the palette, and all steps together bring the most: the paper's claim is *contradicted* here, by a wide margin. With eight steps the halves hardly differ. The contradiction
# is not owed to the number of steps: with twenty, as in the authors' code, the first half stays behind all of them by $.120$ $[.101, .138]$, with eight by $.110$ $[.101, .119]$, and behind the second half, too, by $.034$ $[.010, .059]$. **Why may
# that be?** What transfers here is colour, and colour can still be changed late; in the paper's pictures the first steps fix a composition, which here does not transfer at any time. And feedback in
# every step did no harm that an early window could spare: in the paper's photographs late feedback copies textures and burns them in, while these flat portraits have no texture to
# burn.
#
# ### An experiment of your own
#
# A like costs something: pictures that all look at one portrait look like each other. Below, the horizontal axis is the diversity of a batch ($1 -$ mean cosine of pairs), the vertical
# one the judge's mean probability of the liked person's values, over all nine attributes. The dots are recorded settings.
#
# **Open task.** Choose a weight, a window, and depths (0 is outermost, 1 the middle), predict where your star will land, then run. Find a setting that no recorded dot beats on both
# axes. There is no single answer, and the chart judges. Harder (5 of 5): find one that carries hair style, spectacles or beard, say by 0.05, and still keeps four fifths of
# the diversity; if you believe that none exists, what would you have to show?

# %% [markdown] lang="ja" uid="own" pair="111549e8"
# **図の読み方。** 前半だけ、後半だけでは、それぞれ色の5分の3ほどしか移らず、全ステップで使う場合が最も多く移ります。論文の主張は、ここでは大差で*反対の結果になりました*。8ステップでは、前半と後半の差はほとんどありません。論文と反対になったのは、ステップ数のせいではありません。著者のコードと同じ
# 20ステップでも、前半だけでは全ステップの場合に $.120$ $[.101, .138]$ 及ばず(8ステップでは $.110$ $[.101, .119]$)、後半だけの場合にも $.034$ $[.010, .059]$ 及びません。**考えられる
# 理由。** ここで移るのは色で、色は終盤でも変えられます。論文の画像では最初のステップが構図を決めますが、ここでは構図はいつ参照しても移りません。また、全ステップのフィードバックに害があるなら前半だけの窓が
# 有利ですが、その害もありません。論文のような写真では、終盤のフィードバックが質感まで写して画像を破綻させますが、平塗りのポートレートには焼き付く質感がないからです。
#
# ### 自分の実験
#
# 「好き」には代償があります。同じポートレートを見て作った画像は、互いに似てきます。次の図の横軸はバッチの多様性($1 -$ ペアのコサイン類似度の平均)、縦軸は好きな人物と同じ値である確率の、9属性にわたる
# 平均です。点は記録済みの条件です。
#
# **自由課題。** 重み、窓、深さ(0が最も外側、1が中央)を選び、星がどこに来るかを予想してから実行してください。記録済みのどの点にも、両方の軸で同時には負けない設定を見つけます。正解は1つではなく、
# 判定するのは図です。難易度5: 髪型、眼鏡、ひげのいずれかを0.05ほど移し、しかも多様性を5分の4以上残す設定を見つけてください。存在しないと考えるなら、何を示せば
# よいでしょうか。

# %% uid="own-run" tags=["open", "slow"]
own_setting = {"max_weight": 0.8, "start": 0.25, "end": 0.75, "depths": (0.0, 0.25)}


def own_pictures(setting):
    """en: Pictures of every target with the learner's setting of one like.
    ja: 「好き」1枚を自分の設定で使い、目標ごとの画像を生成します。
    """
    return [l04.draw(i, run_seed, sizes, disliked=False, **setting) for i in range(sizes.targets)]


results["own"] = l04.measures(lab.keep("own", own_pictures, own_setting), run_seed, sizes)
names["own"] = t("l04.arm.own")

# %% uid="own-plane"
dots = ["none", "like", "like_0.3", "like_2", "like_8", "like_outer", "like_inner", "like_first", "like_second"]
known = {m: means(lab.recorded, m, {names[a]: a for a in dots}) for m in ("diversity", "judge")}
yours = {names[a]: (results[a]["diversity"].mean(), results[a]["judge"].mean()) for a in ("none", "like", "own")}
for a in attributes:
    print(t("l04.own_line", name=labels[a], value=(results["own"][f"has.{a}"] - results["none"][f"has.{a}"]).mean()))
recorded_plane(
    {name: (known["diversity"][name], known["judge"][name]) for name in known["judge"]},
    yours=yours,
    xlabel=words["diversity"],
    ylabel=words["judge"],
    title=t("l04.own_title"),
)

# %% [markdown] lang="en" uid="own-reading" pair="539cac1f"
# **Reading.** The dots lie on a curve: what carries more costs more diversity, from "no feedback" on the right to $w = 8$ on the left. A star above the curve would be a discovery, a star on it is a choice. Windows and
# layers move you *along* the curve more than off it. Part of the price is not a defect: if every picture has the liked background, the batch is less diverse, and that was the wish. The defect is what
# goes beyond: the same face four times. The lines per attribute above the chart say which of the two you have bought.
#
# ## 6. Likes, dislikes, and what guidance makes of them
#
# Guidance computes $\hat\epsilon = \epsilon_u + g\,(\epsilon_c - \epsilon_u)$, where $\epsilon_c$ saw the prompt and $\epsilon_u$ did not. Likes change $\epsilon_c$ by some $\delta_c$, dislikes change
# $\epsilon_u$ by some $\delta_u$. Put both in: $(\epsilon_u + \delta_u) + g\,(\epsilon_c + \delta_c - \epsilon_u - \delta_u)$. How far has $\hat\epsilon$ moved? Write `guided_shift`, the change as a
# function of $\delta_c$, $\delta_u$ and $g$. By hand: $\delta_c = 1$, $\delta_u = 0$, $g = 3$ give 3; $\delta_c = 0$, $\delta_u = 1$, $g = 3$ give $-2$.

# %% [markdown] lang="ja" uid="own-reading" pair="673763dd"
# **図の読み方。** 点は1本の曲線に沿って並びます。多くを移す設定ほど、多様性を多く失います。右端が「フィードバックなし」、左端が $w = 8$ です。曲線より上に星があれば発見で、曲線の上にあるなら、それは
# 選択です。窓や層を変えても、曲線から離れるより、曲線に*沿って*動くことが多いはずです。この代償のすべてが欠点なのではありません。どの画像も好きな背景になれば多様性は下がりますが、それは望んだことです。欠点は、それを超える分、
# たとえば同じ顔が4枚並ぶことです。自分が支払ったのがどちらなのかは、図の上の属性ごとの行で分かります。
#
# ## 6. 「好き」と「嫌い」に誘導が与える影響
#
# 誘導は $\hat\epsilon = \epsilon_u + g\,(\epsilon_c - \epsilon_u)$ を計算します。$\epsilon_c$ はプロンプトを見た予測、$\epsilon_u$ は見ていない予測です。「好き」は $\epsilon_c$ を $\delta_c$ だけ、
# 「嫌い」は $\epsilon_u$ を $\delta_u$ だけ変えます。両方を代入すると $(\epsilon_u + \delta_u) + g\,(\epsilon_c + \delta_c - \epsilon_u - \delta_u)$ です。$\hat\epsilon$ はどれだけ動いたでしょうか。
# この変化を $\delta_c$、$\delta_u$、$g$ の関数として `guided_shift` に書いてください。手計算の例: $\delta_c = 1$、$\delta_u = 0$、$g = 3$ なら3です。
# $\delta_c = 0$、$\delta_u = 1$、$g = 3$ なら $-2$ です。


# %% uid="guided-shift" tags=["exercise"] exercise="guided_shift"
def guided_shift(d_cond, d_uncond, g):
    """en: How far the guided prediction moves when its halves move by d_cond and d_uncond (numbers or tensors).
    ja: 誘導の2つの側が d_cond と d_uncond だけ動いたときの、誘導後の予測の動きです(数またはテンソル)。
    """
    # BEGIN SOLUTION
    return g * d_cond + (1 - g) * d_uncond
    # END SOLUTION


# %% uid="guided-shift-check" tags=["check"]
lab.check("guided_shift")
guided_shift = lab.use("guided_shift")

# %% [markdown] lang="en" uid="dislikes" pair="c19b1fef"
# A like is multiplied by $g$, a dislike by $1 - g$: at $g = 3$ that is $3$ against $-2$. The minus sign is the whole trick of dislikes: the model is steered away from what
# the unconditional half has been shown. So dislikes at half the weight, as the paper's code has them, are still strong. And at $g = 1$?

# %% [markdown] lang="ja" uid="dislikes" pair="3c7c3f3d"
# 「好き」は $g$ 倍、「嫌い」は $1 - g$ 倍されます。$g = 3$ なら $3$ 対 $-2$ です。「嫌い」の仕組みは、このマイナス記号に尽きます。条件なし側に見せたものから遠ざかる
# わけです。したがって、論文のコードのように重みを半分にしても「嫌い」は十分に強く働きます。では、$g = 1$ ではどうなるでしょうか。

# %% uid="dislikes-predict" tags=["quiz"]
lab.predict("dislikes_alone")

# %% uid="dislikes-run"
from labkit.diffusion import sample

unwanted, effects = crowd.disliked_pictures[0], {}
for g in (1.0, 3.0):
    made = {}
    for sign in ("none", "liked", "disliked"):
        shown = {} if sign == "none" else {sign: [portrait if sign == "liked" else unwanted]}
        with fabric(pipe, end=1.0, **shown):
            generators = image_generators(1, run_seed)
            made[sign] = sample(pipe, prompt, generators=generators, steps=sizes.steps, guidance_scale=g)
    effects[g] = {sign: gap(made[sign], made["none"]) for sign in ("liked", "disliked")}
    print(t("l04.effect_of", g=g, **effects[g], like=guided_shift(1, 0, g), dislike=guided_shift(0, 1, g)))
lab.verdict(t("l04.no_guidance", value=effects[1.0]["disliked"]), effects[1.0]["disliked"] == 0)
lab.reveal("dislikes_alone", "nothing" if effects[1.0]["disliked"] == 0 else "something")

# %% uid="signs"
rows = ["like", "dislike", "both"]
known = {m: means(lab.recorded, m, {names[a]: a for a in rows}, against="none") for m in ("target", "unwanted")}
recorded_means(
    {f"{name}: {words[m]}": found for m in known for name, found in known[m].items()},
    yours={f"{names[a]}: {words[m]}": (results[a][m] - results["none"][m]).mean() for m in known for a in rows},
    xlabel=t("l04.against_none"),
    reference={t("l04.nothing"): 0.0},
    title=t("l04.signs_title"),
)

# %% uid="signs-claims"
claim("dislikes_lower", *difference("unwanted", "dislike", "none"))
claim("both_beat_likes", *difference("target", "both", "like"))
claim("worst_dislike_helps", *difference("target", "both_worst", "like"))
claim("diversity_falls", *difference("diversity", "both", "none"))
claim("empty_prompt", *difference("target", "prompt", "both"))
claim("fixed_noise", *difference("target", "fixed", "both"))

# %% [markdown] lang="en" uid="signs-reading" pair="63146b70"
# **Reading.** A like pulls, hard. A dislike pushes, by a seventh of that, and nothing of it helps to reach the target: with a random person disliked, like and dislike together stay a little farther away than the like alone. The paper
# found the opposite, with a dislike that was the *worst picture of the batch*. We took that for the reason: "not this failure of my wish" points somewhere, "not this stranger" does not, since a stranger may
# share half of the target's attributes. So we asked: the farthest of four pictures drawn without feedback as the dislike is a little better than a stranger, by $.009$ $[.001, .018]$, but still worse than no dislike at all, by $.021$ $[.012, .030]$ over thirty seeds. So which picture is disliked is not the reason, or a small part of it. A dislike pushes away from *everything* that its picture shows, also from what the target shares with it, and in this model the push goes mostly into colours, where the like was already right. Whether it helps where failures are of another kind, broken hands in a photograph, this world cannot say. The paper leaves the prompt of the reference pass open: here it makes no difference. One noise for all steps costs about
# a hundredth, two at most.
#
# ### Neighbours
#
# The published implementations differ in weight and window, and two other methods, one older and one younger than FABRIC, are the same formula with other settings. **Reference-only** (ControlNet's extension) is likes alone at
# $w = 1$, *with the prompt of the generation* in the reference pass; with the empty prompt, as in FABRIC, it is a different thing. **StyleAligned** lets queries and keys take the mean and
# the variance of the reference's first and uses $w = 2$. One seed, one like, one dislike:

# %% [markdown] lang="ja" uid="signs-reading" pair="70043b5d"
# **図の読み方。** 「好き」は強く引き寄せます。「嫌い」も遠ざけますが、その力は7分の1ほどで、目標に近づく助けにはなりません。無作為な人物を「嫌い」としたこの実験では、「好き」と「嫌い」を併用すると、「好き」だけの場合より
# わずかに遠くなります。論文の結果は逆ですが、論文で「嫌い」とされるのは*そのバッチで最悪の画像*です。当初は、理由はここにあると考えていました。「望みから外れたこの失敗は嫌だ」は方向を示しますが、「この他人は嫌だ」は
# 示しません。他人でも、属性の半分は目標と同じかもしれないからです。そこで、フィードバックなしで生成した4枚のうち、目標から最も遠い画像を「嫌い」として試しました。結果は、他人を使うよりわずかに良い($.009$ $[.001, .018]$)ものの、「嫌い」を使わない場合には及びません(30シードで $.021$ $[.012, .030]$)。つまり、「嫌い」にどんな画像を選ぶかは、論文と結果が違う理由ではないか、理由だとしてもごく一部です。
# 「嫌い」は、その画像に写る*すべて*から遠ざけます。目標と共通する部分も例外ではなく、このモデルで押されるのは主に色、つまり「好き」ですでに合っていた部分です。写真の崩れた手のような、別の種類の失敗に効くかどうかは、この世界では分かりません。参照の順伝播に与えるプロンプトは論文に明記されていませんが、ここでは、空のプロンプトでも生成と同じプロンプトでも結果は変わりません。参照画像に加えるノイズを全ステップで固定しても、類似度が0.01ほど(多くても0.02)下がるだけです。
#
# ### 近い手法
#
# 公開されている実装は、重みと窓が互いに異なります。また、FABRIC の前後に出た2つの手法は、同じ式の別の設定とみなせます。先に出た **reference-only**(ControlNet の拡張)は、「好き」だけを $w = 1$ で使い、参照の順伝播に
# *生成と同じプロンプト*を使うものです。FABRIC のように空のプロンプトを使えば、別のものになります。後に出た **StyleAligned** は、クエリとキーの平均と分散を参照画像のものにそろえてから $w = 2$ とします。
# シード、「好き」、「嫌い」は1つずつです。

# %% uid="neighbours-run"
import warnings

alone_at = {"disliked": [], "end": 1.0}
settings = {name: {"settings": name} for name in ("paper", "repo", "webui", "diffusers", "comfy")}
settings = {names["none"]: {"liked": [], "disliked": []}} | settings
settings |= {"reference-only": {"max_weight": 1.0, "reference_prompt": None} | alone_at}
settings |= {"StyleAligned": {"max_weight": 2.0, "adain": True} | alone_at}
cells = [portrait, unwanted]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for changes in settings.values():
        with fabric(pipe, steps=sizes.steps, **{"liked": [portrait], "disliked": [unwanted]} | changes):
            generators = image_generators(1, run_seed + 2)
            cells.append(sample(pipe, prompt, generators=generators, steps=sizes.steps, guidance_scale=3.0)[0].cpu())
image_grid(
    cells, captions=[t("l04.liked"), t("l04.disliked"), *settings], scores=[np.nan, np.nan, *near(torch.stack(cells[2:]))],
    score_label="CLIP", columns=5, title=t("l04.neighbours_title"),
)  # fmt: skip

# %% [markdown] lang="en" uid="rounds" pair="08c1c8f4"
# **Reading.** Same formula, same pictures, eight different results: a sentence such as "FABRIC did this" needs the setting behind it. Look for the cells that hardly differ from "no feedback" (a
# narrow window, a low weight) and for those that have become the portrait.
#
# ## 7. Rounds against restarts
#
# Now the article's third sentence. An oracle has a person in mind, and plays: of four pictures it likes the nearest and dislikes the farthest (by CLIP, as in the paper),
# four new ones are drawn, and so on for four rounds. The paper's curves rise, and so would the curve of anybody who draws sixteen pictures and keeps the best: the
# maximum of more numbers is larger. So the control is **restarts**: in each of four rounds, four pictures from the noise that the feedback run has there, and no feedback. Only what goes beyond
# them is owed to FABRIC.
#
# Write `best_so_far`, which both will be measured with: from scores [rounds, images] the best score of all pictures up to each round. By hand:
# rounds $(0.2, 0.5)$, $(0.4, 0.1)$, $(0.6, 0.3)$ give $(0.5, 0.5, 0.6)$.

# %% [markdown] lang="ja" uid="rounds" pair="906d44d9"
# **図の読み方。** 同じ式、同じ画像でも、8通りの結果になります。「FABRIC ではこうなった」と言うには、設定も書かなければ意味がありません。「フィードバックなし」とほとんど変わらないもの(窓が狭い、
# 重みが小さい)と、ポートレートそのものになってしまったものを探してください。
#
# ## 7. ラウンドか、作り直しか
#
# 次は記事の3つ目の主張です。自動プレイヤーが、ある人物を思い浮かべて遊びます。4枚のうち最も近い画像を「好き」、最も遠い画像を「嫌い」とし(論文と同じく CLIP で測ります)、新たに4枚を生成します。これを
# 4ラウンド続けます。論文の曲線は上がっていきますが、16枚作って最良のものを残せば、誰の曲線でも上がります。数を増やせば、最大値は大きくなるからです。そこで**作り直し**を対照にします。各ラウンドで、フィードバックありの場合と
# 同じノイズから4枚ずつ、4ラウンド生成し、フィードバックは与えません。これを上回った分だけが、FABRIC のおかげです。
#
# 両方の測定に使う `best_so_far` を書いてください。得点 [ラウンド数, 枚数] から、各ラウンドまでの全画像の中の最高点を求めます。手計算の例:
# $(0.2, 0.5)$、$(0.4, 0.1)$、$(0.6, 0.3)$ の3ラウンドなら、$(0.5, 0.5, 0.6)$ です。


# %% uid="best-so-far" tags=["exercise"] exercise="best_so_far"
def best_so_far(scores):
    """en: Best score of all pictures up to each round: array [rounds, images] -> array [rounds], never falling.
    ja: 各ラウンドまでの全画像の中の最高点です。配列 [ラウンド数, 枚数] から配列 [ラウンド数] を返します。
    """
    # BEGIN SOLUTION
    return np.maximum.accumulate(np.max(scores, axis=1))
    # END SOLUTION


# %% uid="best-so-far-check" tags=["check"]
lab.check("best_so_far")
best_so_far = lab.use("best_so_far")

# %% uid="rounds-predict" tags=["quiz"]
lab.predict("restarts")


# %% uid="rounds-run" tags=["slow"]
def played(way, target):
    """en: The pictures of each round, and what was liked and disliked in it.
    ja: 各ラウンドの画像と、そこで「好き」「嫌い」とした番号です。
    """
    return [(one.images, one.liked, one.disliked) for one in l04.play(way, target, run_seed, sizes).rounds]


ways = {"restarts": t("l04.way.restarts"), "feedback": t("l04.way.feedback")}
todo = [(way, i) for way in ways for i in range(sizes.targets)]
games = {(way, i): lab.keep("game", played, way, i) for way, i in lab.progress_bar(todo, t("l04.playing"), len(todo))}

# %% uid="rounds-strip"
shown, scores, frames = [], [], {}
for way in ways:
    for pictures, liked, disliked in games[way, 0]:
        frames |= {len(shown) + 1 + i: "good" for i in liked} | {len(shown) + 1 + i: "bad" for i in disliked}
        shown += [portrait, *pictures]
        scores += [np.nan, *near(pictures)]
image_grid(
    shown,
    scores=scores,
    frames=frames,
    columns=1 + sizes.images,
    row_labels=[t("l04.round_of", way=name, number=k + 1) for name in ways.values() for k in range(sizes.rounds)],
    column_labels=[t("l04.target"), *[""] * sizes.images],
    size=0.9,
    title=t("l04.rounds_title"),
)

# %% uid="rounds-curves"
numbers = np.arange(1, 5)


def recorded_curve(metric, arm):
    found = [estimate(lab.recorded.values(f"{metric}.{r}", f"rounds_{arm}")) for r in numbers]
    return tuple(np.array([getattr(one, end) for one in found]) for end in ("value", "low", "high"))


more = ways | {"normalized": t("l04.way.normalized")}
curve_with_interval(
    numbers,
    {name: recorded_curve("so_far", way) for way, name in more.items()},
    xlabel=t("l04.round_axis"),
    ylabel=t("l04.best_so_far"),
    title=t("l04.race_title"),
)

# %% uid="rounds-spread"
spread = {
    t("l04.best"): recorded_curve("best", "feedback"),
    t("l04.mean"): recorded_curve("mean", "feedback"),
    t("l04.worst"): recorded_curve("worst", "feedback"),
    t("l04.mean_restarts"): recorded_curve("mean", "restarts"),
}
curve_with_interval(numbers, spread, xlabel=t("l04.round_axis"), ylabel=words["target"], title=t("l04.rounds_curve"))

# %% uid="rounds-yours"
from types import SimpleNamespace


def as_rounds(way, target):
    """en: A game as the study reads it.
    ja: 記録済みの実験の関数が読める形の、1つのゲームです。
    """
    return SimpleNamespace(rounds=[SimpleNamespace(images=pictures) for pictures, _, _ in games[way, target]])


for way in ways:
    results[way] = l04.scores_of_rounds({i: as_rounds(way, i) for i in range(sizes.targets)}, run_seed, sizes)
mine = {way: best_so_far(np.stack([near(pictures) for pictures, _, _ in games[way, 0]])) for way in ways}
print(*(t("l04.race_line", way=ways[w], values=", ".join(f"{v:.2f}" for v in mine[w])) for w in ways), sep="\n")


last, fed, alone_again = sizes.rounds, results["feedback"], results["restarts"]
against = fed[f"so_far.{last}"] - alone_again[f"so_far.{last}"]
lab.reveal("restarts", "feedback" if against.mean() > 0.02 else "restarts" if against.mean() < -0.02 else "equal")
claim("feedback_beats_restarts", t("l04.race_difference"), against)
claim("rounds_best", t("l04.last_round"), fed[f"best.{last}"] - alone_again[f"best.{last}"])
claim("rounds_mean", t("l04.last_round"), fed[f"mean.{last}"] - alone_again[f"mean.{last}"])
claim("rounds_worst", t("l04.last_round"), fed[f"worst.{last}"] - alone_again[f"worst.{last}"])

# %% [markdown] lang="en" uid="rounds-reading" pair="0e0b7fba"
# **Reading.** Hold the two charts side by side. In the second one everything that the paper says of a *round* is there: against pictures from the same noise without feedback the mean rises, the worst picture
# rises most. In the first one, where only the best picture of all so far counts, restarts climb nearly as fast, and the gap at sixteen pictures is $.020$ $[.013, .028]$ over 154 seeds: **reproduced**, and about as large as the smallest difference that we had declared to matter. Neither curve is wrong. They answer different questions.
#
# **Why is the gap so small?** The best of many lives from *spread*. Feedback pulls all four pictures towards the best one so far, right values and wrong ones alike, so a round becomes better on average and
# narrower (the diversity chart below shows by how much), and a narrow round has few outliers. Restarts keep their full spread. And what is liked sets the limit: the best of four strangers shares about a third
# of the target's values. Section 5 shows the other case: with the target's own portrait as like, the *average* picture is as near as the best of sixteen restarts. **What would change it.**
# A like that has what you want: an upload, as in section 5, or a longer hunt before the first like. More pictures to choose from per round. And a model in which likes carry form.
#
# ### Who is the judge?
#
# CLIP chose the likes, so CLIP is flattered: a picture can please the selector without being the person. The AttributeReader never chose anything. Two questions for it. Does
# the mean of a round rise in *its* eyes? And is the picture that CLIP would finally pick, best of sixteen, more like the person than the one that restarts offer? The same figure
# shows **prompt dropout**, the paper's remedy for uniform batches: each word of the prompt is left out with probability 0.3. The third figure compares its effect on a prompt that names nothing with that on a prompt that names four attributes, two of them unlike the target's.

# %% [markdown] lang="ja" uid="rounds-reading" pair="b7a83293"
# **図の読み方。** 2つの図を並べて見てください。2つ目の図では、*ラウンド*についての論文の主張がすべて確かめられます。同じノイズからフィードバックなしで作った画像に比べて、平均が上がり、最悪の画像が最も大きく
# 上がります。ところが1つ目の図では、それまでの最良の1枚だけを比べます。すると作り直しもほとんど同じ速さで上がり、16枚での差は154のシードで $.020$ $[.013, .028]$ です。主張は**再現できました**が、大きさは、意味のある最小の差として宣言した0.02と同じくらいです。どちらの曲線も正しく、答えている問いが違います。
#
# **差が小さい理由。** 多数の中の最良は、*ばらつき*のおかげで大きくなります。フィードバックは、4枚すべてをそれまでの最良の画像に引き寄せます。合っている属性も、外れている属性も一緒にです。その結果、ラウンドは平均では良くなりますが、
# 幅は狭くなり(どれだけかは後の多様性の図に出ます)、狭いラウンドからは飛び抜けた画像がほとんど出ません。作り直しは、元のばらつきを保ちます。さらに、何を「好き」にできるかが限界を決めます。4人の他人の中の最良でも、
# 目標と一致する属性は3分の1ほどです。第5節は、その逆の場合です。目標のポートレートそのものを「好き」にすると、*平均的な*1枚が、作り直し16枚の最良と同じくらい近づきました。**結果を左右しそうなもの。** 望むものを
# 備えた「好き」です。第5節のようにアップロードするか、最初の「好き」を付けるまで長く探します。ほかに、1ラウンドの枚数を増やすこと、「好き」が形も運ぶモデルを使うことです。
#
# ### 判定するのは誰か
#
# 「好き」を選んだのは CLIP なので、CLIP の評価は甘くなりがちです。本人に似ていなくても、選択に使った評価役の得点だけが上がることがあります。AttributeReader は、何も選んでいません。これに2つのことを尋ねます。
# ラウンドの平均は、*こちらの目で見ても*上がるでしょうか。CLIP が16枚から最後に選ぶ1枚は、作り直しの場合の1枚よりも本人に似ているでしょうか。同じ図に、画像が一様になることへの論文の
# 対策である**プロンプトドロップアウト**も示します。プロンプトの各単語を、確率0.3で省く方法です。3つ目の図では、その効果を、何も指定しないプロンプトと、属性を4つ指定したプロンプト(そのうち2つは目標と食い違います)とで比べます。

# %% uid="judge-rounds"
rows = {
    "rounds_restarts": t("l04.way.restarts"),
    "rounds_feedback": t("l04.way.feedback"),
    "rounds_likes": t("l04.way.likes"),
    "rounds_normalized": t("l04.way.normalized"),
    "rounds_dropout": t("l04.way.dropout"),
}
stars = {rows[f"rounds_{way}"]: results[way] for way in ways}
recorded_means(
    means(lab.recorded, "chosen.4", {name: arm for arm, name in rows.items()}),
    yours={name: found[f"chosen.{last}"].mean() for name, found in stars.items()},
    xlabel=t("l04.chosen"),
    title=t("l04.chosen_title"),
    value_format="{:.2f}",
)

# %% uid="diversity-rounds"
recorded_means(
    means(lab.recorded, "diversity.4", {name: arm for arm, name in rows.items()}),
    yours={name: found[f"diversity.{last}"].mean() for name, found in stars.items()},
    xlabel=t("l04.last_diversity"),
    title=t("l04.diversity_title"),
    value_format="{:.2f}",
)

# %% uid="dropout-words"
from labkit.studies.estimate import by_seed

kinds = {
    t("l04.names_nothing"): ("rounds_dropout", "rounds_feedback"),
    t("l04.names_four"): ("rounds_named_dropout", "rounds_named"),
}
changes = {
    t("l04.dropout_row", measure=measure, prompt=prompt): estimate(by_seed(gain(metric, arm, plain))(lab.recorded))
    for metric, measure in {"diversity.4": t("l04.diversity"), "mean.4": t("l04.nearness")}.items()
    for prompt, (arm, plain) in kinds.items()
}
recorded_means(
    changes,
    xlabel=t("l04.dropout_change"),
    reference={t("l04.no_dropout"): 0.0},
    title=t("l04.dropout_title"),
)

# %% uid="judge-claims"
claim("judge_agrees", t("l04.last_round_judge"), fed[f"judge.{last}"] - alone_again[f"judge.{last}"])
claim("chosen_is_nearer", t("l04.chosen_difference"), fed[f"chosen.{last}"] - alone_again[f"chosen.{last}"])
claim("dropout_varies", t("l04.dropout_difference"))
claim("dropout_costs", t("l04.dropout_difference"))
claim("named_dropout_varies", t("l04.dropout_difference"))
claim("named_dropout_costs", t("l04.dropout_difference"))

# %% [markdown] lang="en" uid="game" pair="579a66d7"
# **Reading.** The judge confirms the rise of the *round*: its mean is better than without feedback, so CLIP did not only flatter itself. It confirms a better *final picture*, too, by less: what CLIP picks from sixteen is more like the person by $.018$ $[.010, .027]$ over 164 seeds, a sixth of an attribute. (After 92 seeds it had looked like no difference at all; the round was planned to 164 and had no verdict before.) And the price is in the second chart, of diversity: a last round with feedback has about six tenths of the diversity of a restart. Dividing the weight by the number of likes gives some of
# it back, $+.114$ $[.092, .136]$ over ten seeds, and costs the mean of a round $.028$ $[.006, .050]$, a quarter of what feedback had brought. For the best of all sixteen pictures no difference shows. Where likes pile up and variety counts, it is the better default.
#
# **Prompt dropout: our first setting is too far from the paper's.** There it buys diversity with similarity. Over fifteen seeds the diversity here changes by $-.015$ $[-.051, .020]$ and the mean by $+.019$ $[-.024, .061]$; neither effect shows. More seeds would not help the claim, for our prompt has five words
# that name nothing. There is no content to drop, and what is left is closer to the empty prompt that the references were read with. So we asked again, with prompts that name four attributes, two of which the target contradicts. Over sixty seeds dropout now keeps the last round more diverse, by $.150$ $[.135, .165]$, and costs its mean $.026$ $[.012, .040]$: both **reproduced**. The diversity comes in before any feedback, for four pictures answer four different prompts: the first round is more diverse by $.222$ $[.208, .236]$, and feedback takes
# some of that away again. Whether the trade pays depends on what you want of the rounds: the best of all sixteen pictures comes out *nearer*, by $.023$ $[.010, .036]$ (seen afterwards, not declared). Perhaps because what is left out is sometimes the word that was wrong, or because a wider round has better best ones; no arm takes the two apart.
#
# ## 8. Your turn
#
# Here is a target, on the left. Find them: like, dislike, next round. The number under a picture is its similarity to the target, so you know what the oracle knows, and you see
# more than it does: it is bound to one like and one dislike a round, and you may like a background for its colour and dislike nothing at all. The goal is the best picture of the
# restarts in section 7, sixteen pictures. You have the same sixteen, four rounds. Without votes the next round *is* a restart.
#
# **Decide before you play:** which of the target's attributes can likes bring you, by what section 5 measured, and which must come by luck? Vote for what luck has to bring first,
# colours follow later; or the other way round? Say which and why, then test your plan.

# %% [markdown] lang="ja" uid="game" pair="1485ac71"
# **図の読み方。** *ラウンド*の改善は、評価役も認めます。平均はフィードバックなしより良く、CLIP が自分を甘く採点しただけではありません。*最後の1枚*の改善も認めますが、差は小さめです。CLIP が16枚から選ぶ1枚は、フィードバックがあると、164のシードで $.018$ $[.010, .027]$、つまり属性6分の1個分だけ
# 本人に近くなります(92シードの時点では差がないように見えましたが、最初から164までの計画だったので、そこでは判定していません)。代償は、2つ目の多様性の図に出ています。フィードバックありの最終ラウンドの多様性は、作り直しの6割ほどです。重みを「好き」の枚数で割ると、多様性がいくらか戻ります(10シードで $+.114$ $[.092, .136]$)。
# 代わりに、ラウンドの平均は $.028$ $[.006, .050]$、つまりフィードバックで得た分の4分の1ほど下がります。16枚の中の最良には差が見られません。「好き」が積み重なり、多様性も欲しいなら、こちらを既定にすべきでしょう。
#
# **プロンプトドロップアウトを確かめるには、最初の実験の条件は論文から離れすぎています。** 論文では、類似度と引き換えに多様性が得られます。ここでは15シードで、多様性の変化が $-.015$ $[-.051, .020]$、平均の変化が $+.019$ $[-.024, .061]$ で、どちらの効果も見えません。シードを増やしても、論文の主張は確かめられません。プロンプトは
# 5語しかなく、何も指定していないので、省いても失われる内容がないからです。語を省いたプロンプトは、参照画像を読むときに使う空のプロンプトに近づくだけです。そこで、属性を4つ指定し、そのうち2つが目標と食い違うプロンプトで、もう一度試しました。60シードの記録では、ドロップアウトを使うと、使わない場合に比べて、最終ラウンドの多様性は $.150$ $[.135, .165]$ 高く、目標との類似度の平均は $.026$ $[.012, .040]$ 低くなりました。どちらの主張も**再現できました**。多様性が増えるのは、フィードバックを与える前です。省かれる語は画像ごとに異なるので、4枚はそれぞれ別のプロンプトから作られます。そのため、多様性は最初のラウンドですでに $.222$ $[.208, .236]$ 高く、その後のフィードバックがその一部を
# 打ち消します。この交換が得かどうかは、何を重視するかで変わります。16枚の中の最良の画像は、かえって $.023$ $[.010, .036]$ だけ目標に*近く*なりました(結果を見て気づいたことで、事前の宣言はありません)。理由は2つ考えられます。目標と食い違う語がたまたま省かれることと、多様なラウンドほど飛び抜けた1枚が出やすいことです。どちらなのかは、この記録では区別できません。
#
# ## 8. 今度はあなたの番です
#
# 左端が目標の人物です。「好き」「嫌い」を選んで、次のラウンドへ進んでください。画像の下の数値は目標との類似度です。自動プレイヤーと同じ情報ですが、あなたにはもっと多くのものが見えています。
# 自動プレイヤーは、毎回「好き」1枚と「嫌い」1枚しか選べません。あなたは、背景の色だけを理由に「好き」を付けても、「嫌い」を1枚も付けなくても構いません。到達目標は、第7節の作り直し(16枚)の
# 最高点です。あなたも同じ16枚、4ラウンドまでです。評価を付けなければ、次のラウンドは作り直しそのものになります。
#
# **始める前に決めてください。** 第5節の測定によれば、目標の属性のうち「好き」で近づけるのはどれで、運に任せるしかないのはどれでしょうか。運が必要な属性を先に狙い、色は後から寄せますか。それとも逆にしますか。
# 方針と理由を決めてから、試してください。

# %% uid="game-play" tags=["widget"]
from labkit.figures.game import FeedbackGame

goal = float(results["restarts"][f"so_far.{last}"][0])
print(t("l04.game_goal", goal=goal, pictures=sizes.rounds * sizes.images))
mine = l04.loop(0, run_seed, sizes)
FeedbackGame(mine, near, goal=goal, rounds=sizes.rounds, target=portrait)

# %% [markdown] lang="en" uid="race" pair="11c0d6c7"
# **Reading your game.** Write down the round in which the goal fell, and what your last four pictures have in common with your likes. If you won by colours alone, the judge of section 7 would
# not be impressed; if you lost although every colour was right, you have met the limit that the paper itself states: feedback narrows what the prompt already generates, it cannot
# leave it.
#
# ## 9. What does it cost?
#
# Every step inside the window sends the references through the U-Net once more: with $n$ references a guided picture costs $2 + n$ evaluations there instead of 2. Three ways to pay less:
#
# * **Cached.** If the noise of a reference depends on the step alone and not on the round, its keys and values are the same in every round. Kept, the pass disappears; what remains is longer attention.
#   Section 7 played that way.
# * **Fused.** The references are rows of the same call: as many evaluations, fewer calls. By default `labkit.fabric` takes as many references beside a picture as that call has
#   rows, two for one guided picture; beyond, it warns and gives them a call of their own. `chunk=n` allows more.
# * **Pooled.** Four places of a reference become one. Quicker still, and no longer exact.
#
# Write `evaluations`, so that you can say the price before you pay it: `steps` in all, `active` of them inside the window, so many `references`, with or without guidance, with or without a cache. By hand: 8 steps, all active, 4 references and guidance give $8 \cdot 2 + 8 \cdot 4 = 48$.

# %% [markdown] lang="ja" uid="race" pair="c6cb1777"
# **ゲームの振り返り。** 到達目標に届いたラウンドと、最後の4枚が「好き」にした画像と何が共通しているかを書き留めてください。色だけで勝ったのなら、第7節の評価役の点は伸びないでしょう。色は全部合ったのに負けたのなら、
# 論文自身が認める限界に突き当たったことになります。フィードバックは、プロンプトからもともと生成できる範囲を狭めるだけで、その外には出られません。
#
# ## 9. コストはどれくらいか
#
# 窓の中のステップでは、参照画像も U-Net を1回通ります。参照画像が $n$ 枚なら、誘導ありの画像1枚につき、1ステップあたりの計算は2回から $2 + n$ 回に増えます。減らす方法は3つあります。
#
# * **キャッシュ。** 参照画像のノイズがステップだけで決まり、ラウンドによらなければ、キーと値はどのラウンドでも同じです。保存しておけば、この順伝播は不要になり、残るのは
#   注意の計算が長くなる分だけです。第7節のラウンドも、この方法で実行しました。
# * **融合。** 参照画像も同じバッチで計算します。計算量は同じで、呼び出し回数が減ります。`labkit.fabric` の既定では、一緒に計算する参照画像は、その呼び出しの行数(誘導ありの画像1枚なら2枚)までです。
#   それを超えると警告を出し、参照画像だけを別に呼び出します。`chunk=n` を指定すれば増やせます。
# * **2×2平均プーリング。** 参照画像の4つの位置を1つにまとめます。さらに速くなりますが、厳密ではなくなります。
#
# 払う前に費用が分かるように、`evaluations` を書いてください。`steps` は全ステップ数、`active` はそのうち窓の中のステップ数、`references` は参照画像の枚数です。誘導の有無とキャッシュの有無も引数で受け取ります。手計算の例: 8ステップがすべて窓の中で、参照画像が4枚、誘導ありなら、$8 \cdot 2 + 8 \cdot 4 = 48$ 回です。


# %% uid="evaluations" tags=["exercise"] exercise="evaluations"
def evaluations(steps, active, references, *, guided=True, cached=False):
    """en: U-Net evaluations (an int) of one picture; active: number of steps inside the window.
    ja: 画像1枚の U-Net の計算回数(int)です。active は窓の中のステップ数です。
    """
    # BEGIN SOLUTION
    own = steps * (2 if guided else 1)
    return own if cached else own + active * references
    # END SOLUTION


# %% uid="evaluations-check" tags=["check"]
lab.check("evaluations")
evaluations = lab.use("evaluations")

# %% uid="race-run" tags=["slow"]
from labkit.diffusion import NFELedger
from labkit.fabric import ReferenceCache


def cost(n, **choices):
    """en: (seconds, U-Net evaluations, U-Net calls) of one picture with n likes; the quicker of two runs.
    ja: 「好き」が n 枚のときの、画像1枚の(秒数、U-Net の計算回数、呼び出し回数)です。2回のうち速い方を採ります。
    """
    runs = []
    for _ in range(2):
        with NFELedger(pipe) as ledger, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fabric(pipe, liked=candidates[:n], end=1.0, **choices):
                generators = image_generators(1, 0)
                sample(pipe, prompt, generators=generators, steps=sizes.steps, guidance_scale=sizes.guidance)
        runs.append((ledger.seconds, ledger.counts.unet_rows, ledger.counts.unet_calls))
    return min(runs)


candidates, warm = torch.cat(images["none"])[:8], ReferenceCache()
contestants = {"recomputed": {}, "fused": {"fused": True, "chunk": 8}}
contestants |= {"cached": {"cache": warm}, "pooled": {"cache": warm, "pool": 2}}
costs = {name: [] for name in contestants}
for n in lab.progress_bar(sizes.race, t("l04.references"), len(sizes.race)):
    for name, choices in contestants.items():
        costs[name].append(cost(n, **choices))

# %% uid="race-curve"
ways_to_pay = {"recomputed": t("l04.cost.recomputed"), "fused": t("l04.cost.fused")}
ways_to_pay |= {"cached": t("l04.cost.cached"), "pooled": t("l04.cost.pooled")}
for name, kept in costs.items():
    print(t("l04.cost_line", name=ways_to_pay[name], n=sizes.race[-1], rows=kept[-1][1], calls=kept[-1][2]))
active = len(active_steps(sizes.steps, 0.0, 1.0))
for n, (_, counted, _) in zip(sizes.race, costs["recomputed"], strict=True):
    mine = evaluations(sizes.steps, active, n)
    lab.verdict(t("l04.same_evaluations", n=n, counted=counted, mine=mine), counted == mine)
# en: the quickest run without references
# ja: 参照画像なしで最も速かった実行
unit_of_time = min(kept[0][0] for kept in costs.values())
curve_with_interval(
    sizes.race,
    {ways_to_pay[name]: [one[0] / unit_of_time for one in kept] for name, kept in costs.items()},
    xlabel=t("l04.references"),
    ylabel=t("l04.time_ratio"),
    title=t("l04.cost_title"),
)

# %% [markdown] lang="en" uid="real" pair="a0afe92b"
# **Reading.** The lines count: fused has the evaluations of recomputed in one call a step; cached and pooled have the calls and evaluations of a picture without feedback. Whether a saved call is
# saved *time* depends on the machine: on a small model with one thread the work itself dominates, on a GPU a call that is too small leaves it idle. The curve is linear in $n$ (the paper calls the growth of
# memory quadratic): the queries stay those of one picture. What would change the picture is its size; at $64 \times 64$ places the longer attention itself is the price.
#
# ## 10. The same on Stable Diffusion
#
# Nothing in this lesson was about portraits: `fabric` hooks the self-attention of any such U-Net, and a like is a picture. So let the whole method run once more, with what a practitioner has: a judge
# picks the like and the dislike from a first round, and two second rounds start from the same new noise, one with that feedback and one without. `lab.real` supplies model, judges and sizes of the tier:
#
# | tier | pictures | who picks the like | who only watches |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5, or SDXL with `model="sdxl"` | PickScore, or `reward="imagereward"` and others | CLIP |
# | smoke, cpu | PortraitSD, or PortraitFlow with `model="portrait-flow"` | PortraitCLIP: what the prompt names, no sunglasses, a cool background | AttributeReader, the same questions |
#
# U-Nets are not the only kind of model. With `lab.real(pipe, rounds=3, model="portrait-flow")` this very cell runs on a transformer in the layout of Stable Diffusion 3, on tiers smoke and cpu. It predicts a velocity,
# $v = \epsilon - x_0$, in place of the noise, so a reference is noised along the straight line $x_t = (1 - t)\,x_0 + t\,\epsilon$; and in place of self-attention there is *joint attention*, where picture and text attend to
# both at once: there the picture's tokens read the like, the text's do not.
#
# Before a weight is loaded, the box says what the gpu tier will draw, how much of its memory it needs and how long it takes; without a GPU it says so for a T4. Look at the *rows* before you
# read the numbers: what do the pictures of the last row share with the like?

# %% [markdown] lang="ja" uid="real" pair="27f9c3b5"
# **図の読み方。** まず回数を見てください。「融合」の計算量は「毎回計算」と同じで、呼び出しは1ステップに1回です。「キャッシュ」と「プーリング」は、フィードバックなしの画像と同じ回数で済みます。呼び出しを減らして*時間*が減るかどうかは
# 機械によります。小さなモデルをスレッド1つで動かすと計算そのものが支配的ですが、GPU では、小さすぎる呼び出しは GPU を遊ばせてしまいます。曲線は $n$ に対して直線的です。論文は、メモリが2次で増えると
# 述べていますが、クエリは1枚分のままなので、そうはなりません。結果を変えるのは画像の大きさです。位置が $64 \times 64$ になれば、長くなった注意そのものが費用になります。
#
# ## 10. 同じことを Stable Diffusion で
#
# このレッスンの手法に、ポートレート専用の部分はありません。`fabric` はこの種の U-Net ならどれでも自己注意にフックを掛けますし、「好き」はただの画像です。そこで、実務で手に入る道具だけを使って、手法の全体をもう一度動かします。評価役が最初の
# ラウンドから「好き」と「嫌い」を1枚ずつ選び、2回目のラウンドは、同じ新しいノイズから、フィードバックありとなしの2通りで生成します。モデル、評価役、規模は、tier に応じて `lab.real` が用意します。
#
# | tier | 画像 | 「好き」を選ぶ評価役 | 見守るだけの評価役 |
# |---|---|---|---|
# | gpu | Stable Diffusion 1.5(`model="sdxl"` なら SDXL) | PickScore(`reward="imagereward"` などに変更できます) | CLIP |
# | smoke, cpu | PortraitSD(`model="portrait-flow"` なら PortraitFlow) | PortraitCLIP: プロンプトの指定、サングラスがないこと、寒色の背景 | AttributeReader(同じ3点) |
#
# モデルは U-Net だけではありません。`lab.real(pipe, rounds=3, model="portrait-flow")` とすると、tier smoke と cpu では、同じセルが Stable Diffusion 3と同じ構成の Transformer で動きます。このモデルは、ノイズの代わりに速度
# $v = \epsilon - x_0$ を予測するので、参照画像も直線 $x_t = (1 - t)\,x_0 + t\,\epsilon$ に沿ってノイズを加えます。また、自己注意の代わりに*ジョイント注意*(joint attention)があり、画像とテキストの両方のトークンに注意を向けます。ここで
# 「好き」を読むのは画像のトークンだけで、テキストのトークンは読みません。
#
# 重みを読み込む前に、tier gpu で何枚生成するか、メモリと時間がどれだけかかるかを表示します。GPU がなければ、T4 での見込みを示します。数値を読む前に、*行*を見比べてください。最後の行の画像は、「好き」と何が共通しているでしょうか。

# %% uid="real-run" tags=["slow"]
sd = lab.real(pipe, rounds=3)
wish = [sd.prompts[0]] * len(sd.prompts)
first, alone = sd.draw(wish), sd.draw(wish, first=len(wish))
votes = sd.reward(first, wish)
like, dislike = int(votes.argmax()), int(votes.argmin())
with fabric(sd.pipe, liked=[first[like]], disliked=[first[dislike]], value_range=(-1, 1)):
    fed = sd.draw(wish, first=len(wish))
three = {t("l04.real_first"): first, t("l04.without"): alone, t("l04.real_fed"): fed}
rows = {name: sd.opinions(images, wish) for name, images in three.items()}
for name, (chosen, seen) in rows.items():
    print(t("real.means", name=name, chosen=chosen.mean(), seen=seen.mean()))
votes = {like: t("l04.liked"), dislike: t("l04.disliked")}
strips(
    three,
    scores={name: chosen for name, (chosen, _) in rows.items()},
    captions={t("l04.real_first"): [votes.get(i, "") for i in range(len(wish))]},
    frames={like: "winner", dislike: "loser"},
    title=t("l04.real_title", model=sd.name, prompt=wish[0]),
)

# %% [markdown] lang="en" uid="finish" pair="6937cd8a"
# **Reading.** Compare the second row with the third: same noise, same prompt. Both judges must rise before you believe in the like, since the first of them picked it. On the portraits a like for a cool background usually
# carries the background over, as section 5 led you to expect: a colour. On Stable Diffusion the paper reports more than that; whether you see it is for your eyes and your own judge, on your own prompts. Eight or sixteen
# pictures of one prompt show an effect and prove none: the proof is the design of section 7, many targets and restarts of the same number.
#
# The numbers in the box are counted work, not measured time. This cell was tested on random weights in the layouts of Stable Diffusion 1.5 and SDXL, which shows that it runs there, and nothing about its pictures.
#
# ## 11. What to keep
#
# * Feedback by attention is one addition to the logits. All that differs between implementations is who is shown, when, where and how heavily; ask for these four before you believe a picture.
# * Say *what* transfers before you say that it works. An average over attributes can hide that one half moves and the other stands still.
# * A curve over rounds needs the control with the same number of pictures and no feedback. More tries alone make any best picture better.
#
# Last, the article's sentences beside the paper and your numbers, and three questions. Then lesson 05, where the preferences go into the weights: [Diffusion-DPO](05_diffusion_dpo.ipynb).

# %% [markdown] lang="ja" uid="finish" pair="433917ad"
# **図の読み方。** 2行目と3行目を比べます。ノイズもプロンプトも同じです。「好き」を選んだのは1人目の評価役なので、効果を信じるには、2人の評価がそろって上がる必要があります。ポートレートでは、寒色の背景を「好き」にすると、たいてい背景の色が移ります。第5節の測定から
# 予想できるとおり、移るのは色です。論文は、Stable Diffusion ではそれ以上のものが移ると報告しています。そう見えるかどうかは、自分のプロンプトと、自分で選んだ評価役で確かめてください。1つのプロンプトの8枚や16枚では、効果を示すことはできても、証明はできません。証明には第7節の
# 設計、つまり多くの目標と、同じ枚数の作り直しが必要です。
#
# 最初に表示した見込みは計算量から求めたもので、実測ではありません。このセルは、Stable Diffusion 1.5と SDXL の構造に乱数の重みを入れたモデルで試験しています。動くことは確かめましたが、画像の質については何も分かりません。
#
# ## 11. 持ち帰ること
#
# * 注意によるフィードバックは、ロジットへの足し算1回です。実装の違いは、どの画像を、いつ、どこで、どの重みで見せるかだけです。結果の画像を信じる前に、この4つを確かめてください。
# * 効いたと言う前に、*何が*移ったのかを言ってください。属性の平均だけを見ると、半分が動いて半分が動いていないことに気づけません。
# * ラウンドの曲線には、同じ枚数でフィードバックなしの対照が必要です。試す回数を増やすだけでも、最良の画像は良くなります。
#
# 最後に、記事の主張を論文と自分の数値に並べ、3つの問いを考えます。次のレッスン05では、好みをモデルの重みに学習させます: [Diffusion-DPO](05_diffusion_dpo.ipynb)。

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz()
