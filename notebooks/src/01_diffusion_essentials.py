# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("01", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="article" pair="303fc9f7"
# ## 1. A portrait out of noise
#
# Two of the course's articles rest on sentences that they do not explain. The one on FABRIC,「生成AIの布地を調整する」(paper: [arXiv 2307.10159](https://arxiv.org/abs/2307.10159)), says that diffusion models make pictures by *iteratively refining a source of noise*, and that it is hard to
# *guide* them to what one wants by text alone. The dialogue on the survey「拡散モデルのアラインメント」asks outright what a diffusion model is. This lesson answers both: why noise, what is refined, and what guidance does. Everything that the later lessons change, a loss, a sampler, an attention layer, you will have written or opened here.
#
# The figure shows the whole thing once: PortraitSD, a small Stable Diffusion, at work. Above what it holds in its hands, below what it *guesses* the finished portrait to be. Nobody ever showed this network how to draw. All it has learnt is to say, of a spoilt picture, which part of it is noise. How can that be
# enough?

# %% [markdown] lang="ja" uid="article" pair="12395e70"
# ## 1. ノイズからポートレートへ
#
# この教材で扱う2つの記事には、説明されないまま使われている文があります。FABRICの記事『生成AIの布地を調整する』(論文: [arXiv 2307.10159](https://arxiv.org/abs/2307.10159))は、拡散モデルが*ノイズ源を反復的に洗練*して画像を作ること、テキストだけで目標へ*誘導*するのは難しいことを述べています。サーベイを紹介する対話記事『拡散モデルのアラインメント』では、
# 役員が「そもそも拡散モデルとは何か」と尋ねます。このレッスンで答えるのは、その2つです。なぜノイズなのか、何を洗練しているのか、誘導は何をするのか。後のレッスンで変更する損失関数、サンプラー、注意の層は、すべてここで自分で書くか、中を開けて見ます。
#
# 次の図は、小さなStable DiffusionであるPortraitSDが1枚を描く様子です。上の段は手元にあるもの、下の段は、その時点で*推定した*完成図です。このネットワークに絵の描き方を教えた人はいません。学習したのは、ノイズで汚れた画像を見て、どの部分がノイズかを答えることだけです。それだけで、なぜ絵が描けるのでしょうか。

# %% uid="first-look"
import numpy as np
import torch

from labkit.figures import curve_with_interval, heatmap_overlay, image_grid, strips
from labkit.diffusion import decode_latents, encode_images, image_generators, sample, sample_latents
from labkit.models import load_pipeline
from labkit.portraits import caption, describe, render_tensor, sample_specs

pipe = load_pipeline(tier, lab.device)
size = pipe.unet.config.sample_size * 8
alphas = pipe.scheduler.alphas_cumprod
options = {"steps": lab.sizes.steps, "guidance_scale": lab.sizes.guidance}
sentence = describe({"mood": "happy", "hair_color": "red", "glasses": "glasses", "clothes": "blue"}).text
seen = []
sample_latents(pipe, [sentence], generators=image_generators(1, lab.seed), callback=seen.append, **options)
shown = [seen[i] for i in np.linspace(0, len(seen) - 1, 6).round().astype(int)]
with torch.no_grad():
    held = decode_latents(pipe, torch.cat([step.latents for step in shown])).cpu().clamp(-1, 1)
    guess = decode_latents(pipe, torch.cat([step.x0 for step in shown])).cpu().clamp(-1, 1)
strips({t("l01.held"): list(held), t("l01.guess"): list(guess)}, title=sentence)

# %% [markdown] lang="en" uid="first-reading" pair="76ad827f"
# **What you see.** The first guess is blurred and has no details: roughly the average of all portraits that fit the sentence. With every step the guess commits itself, first to large areas, then to glasses and mouth. Drawing is a sequence of guesses, each a little better informed than the last. Section 3 explains the blur, section 4 the steps. The
# training comes first.

# %% [markdown] lang="ja" uid="first-reading" pair="d1b5e4ad"
# **図から読み取れること。** 最初の推定はぼやけています。この文に合うポートレートすべての平均だからです。ステップを進めるごとに、まず大きな領域が、次に眼鏡や口が決まっていきます。絵を描くとは、少しずつ情報の増える推定を繰り返すことなのです。ぼやける理由は第3節、ステップの中身は第4節で説明します。まずは学習から
# 始めましょう。

# %% [markdown] lang="en" uid="forward" pair="821fb8f6"
# ## 2. Spoiling is easy
#
# *Intuition.* A drop of ink in water spreads until nothing of its shape is left. Each moment of it is simple, a little random motion, and the end is always the same: evenly grey. The way back, from grey to the drop, is the hard one. So let us spoil pictures in many tiny steps, because a tiny step is the only one that can be undone.
#
# *Formula.* One step mixes in a little noise: $x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\epsilon_t$ with a small $\beta_t$ and a fresh standard normal $\epsilon_t$. The roots keep the variance at 1: $(1-\beta_t)\cdot 1 + \beta_t = 1$. Do it twice: $x_2$ contains $x_0$ with the factor $\sqrt{(1-\beta_1)(1-\beta_2)}$, and the two noises add up to one normal noise, because sums of
# independent normals are normal and the variance must again be 1. So any number of steps can be jumped over. With $\bar\alpha_t = (1-\beta_1)\cdots(1-\beta_t)$, which falls from almost 1 to almost 0,
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon.$$
#
# Write `add_noise`; `alpha_bar` is one number. By hand: $x_0 = 1$, $\epsilon = 2$, $\bar\alpha = 0.64$ give $0.8 + 1.2 = 2$. The common mistake is to forget the roots.

# %% [markdown] lang="ja" uid="forward" pair="8e6966a9"
# ## 2. 壊すのは簡単
#
# *直感。* 水に落としたインクは広がり、やがて形がなくなります。一瞬一瞬の動きは単純でわずかな乱れにすぎず、行き着く先はいつも同じ、一様な灰色です。難しいのは逆向き、灰色からインクの形に戻すことです。そこで、画像をごく小さなステップに分けて壊します。小さなステップなら、元に戻せるからです。
#
# *式。* 1ステップで少しだけノイズを混ぜます: $x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\epsilon_t$。$\beta_t$ は小さな数、$\epsilon_t$ は毎回新しい標準正規分布のノイズです。平方根を取るのは、分散を1に保つためです: $(1-\beta_t)\cdot 1 + \beta_t = 1$。2回繰り返すと、$x_2$ には $x_0$ が $\sqrt{(1-\beta_1)(1-\beta_2)}$ 倍で含まれ、2つのノイズは
# 1つの正規ノイズにまとまります。独立な正規分布の和は正規分布で、全体の分散は1のままだからです。つまり、何ステップでも一度に飛び越せます。$\bar\alpha_t = (1-\beta_1)\cdots(1-\beta_t)$ とすると、これはほぼ1からほぼ0まで下がり、
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon.$$
#
# `add_noise` を書いてください。`alpha_bar` は1つの数値です。手計算の例: $x_0 = 1$、$\epsilon = 2$、$\bar\alpha = 0.64$ なら $0.8 + 1.2 = 2$ です。よくある誤りは、平方根を忘れることです。


# %% uid="add-noise" tags=["exercise"] exercise="add_noise"
def add_noise(x0, noise, alpha_bar):
    """en: x_t from x0 and noise of the same shape, at a level given by one number.
    ja: x0と、同じ形の noise から x_t を作ります。alpha_bar は1つの数です。
    """
    # BEGIN SOLUTION
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
    # END SOLUTION


# %% uid="add-noise-check" tags=["check"]
lab.check("add_noise")
add_noise = lab.use("add_noise")

# %% uid="forward-picture"
specs = sample_specs(lab.sizes.portraits, seed=lab.seed)
with torch.no_grad():
    x0 = encode_images(pipe, render_tensor(specs, size))
noise = torch.randn(x0.shape, generator=lab.generator()).to(x0)
levels = [1, 200, 400, 600, 800, 999]
with torch.no_grad():
    noised = torch.cat([decode_latents(pipe, add_noise(x0[:1], noise[:1], float(alphas[k]))) for k in levels])
image_grid(
    noised.cpu().clamp(-1, 1),
    captions=[t("l01.level", t=k, share=float(alphas[k]) ** 0.5) for k in levels],
    columns=6,
    title=t("l01.forward"),
)

# %% [markdown] lang="en" uid="forward-reading" pair="c59521ce"
# **Reading.** Under each picture stands $\sqrt{\bar\alpha_t}$, the share of the portrait that is left. At $t = 400$ a human still recognises the hair, at $t = 800$ hardly anything, at $t = 999$ less than 7 % is left. Drawing starts from pure noise, as if that little were nothing. What is noised here is not the pixels but **latents**, a compressed picture; section 7 says why.

# %% [markdown] lang="ja" uid="forward-reading" pair="be998e52"
# **図の読み方。** 各画像の下の $\sqrt{\bar\alpha_t}$ は、元のポートレートが残っている割合です。$t = 400$ ではまだ髪型が分かり、$t = 800$ ではほとんど分からず、$t = 999$ で残るのは7%弱です。生成は、この残りを無視して、純粋なノイズから始めます。なお、ノイズを加えているのは画素ではなく、圧縮した画像である**潜在変数**です。理由は第7節で説明します。

# %% [markdown] lang="en" uid="loss" pair="0388043d"
# ## 3. What the network learns, and where the loss comes from
#
# *The wish.* A generative model should give real pictures a high probability $p_\theta(x_0)$. That integral over all ways from noise to picture cannot be computed.
#
# *Step 1: a bound.* The same trick as in a VAE: $-\log p_\theta(x_0)$ is at most a sum over the steps, and the term of step $t$ asks how far the model's step back, $p_\theta(x_{t-1}\mid x_t)$, is from the true step back when $x_0$ is known, $q(x_{t-1}\mid x_t, x_0)$. Distance means KL divergence.
#
# *Step 2: both are normal.* The true step back is a normal distribution, because everything about it is a sum of normals. Let the model's step be a normal of the same variance. The KL divergence of two normals with equal variance $\sigma_t^2$ is the squared distance of their means, over $2\sigma_t^2$.
#
# *Step 3: means are noises.* Given $x_t$, the true mean depends on $x_0$ only through $\epsilon$ (solve the formula of section 2 for $x_0$). So a network $\epsilon_\theta(x_t, t)$ that guesses the noise fixes the mean, and the term becomes a number that depends on $t$ times $|\epsilon - \epsilon_\theta(x_t, t)|^2$.
#
# *Step 4: drop the number.* Ho and others ([arXiv 2006.11239](https://arxiv.org/abs/2006.11239)) leave the factor out, which gives the hard, noisy levels more weight, and pictures became better. What remains is the loss of Stable Diffusion, and of lessons 03, 05 and 06: $\mathbb{E}\,|\epsilon - \epsilon_\theta(x_t, t)|^2$.
#
# *What is the best guess?* Squared errors are minimised by an **average**: the mean of all noises that could have led to this $x_t$. On a line this average can be computed exactly. Let the data be a mixture of $K$ normals with weights $w_k$, means $m_k$ and deviations $s_k$. At level $\bar\alpha$ component $k$ has become a normal of mean $\sqrt{\bar\alpha}\,m_k$ and variance
# $v_k = \bar\alpha\,s_k^2 + 1 - \bar\alpha$. Seeing $x_t$, it is responsible with probability $r_k \propto w_k\,N(x_t;\ \sqrt{\bar\alpha}\,m_k, v_k)$, and within it the best guess of $x_0$ is $m_k + \frac{\sqrt{\bar\alpha}\,s_k^2}{v_k}(x_t - \sqrt{\bar\alpha}\,m_k)$. So
#
# $$\hat x_0 = \sum_k r_k\Big(m_k + \frac{\sqrt{\bar\alpha}\,s_k^2}{v_k}\,(x_t - \sqrt{\bar\alpha}\,m_k)\Big), \qquad \hat\epsilon = \frac{x_t - \sqrt{\bar\alpha}\,\hat x_0}{\sqrt{1-\bar\alpha}}.$$
#
# Write `mixture_noise`, a complete diffusion model of the line without any training. By hand: one component with mean 0 and deviation 1 gives $\hat\epsilon = \sqrt{1-\bar\alpha}\,x_t$; at $x_t = 2$ and $\bar\alpha = 0.64$ that is 1.2. Common mistakes: the $r_k$ do not add up to 1; the answer is $\hat x_0$ instead of the noise.

# %% [markdown] lang="ja" uid="loss" pair="75569ad0"
# ## 3. ネットワークは何を学ぶのか、損失関数はどこから来るのか
#
# *目標。* 生成モデルは、本物の画像に高い確率 $p_\theta(x_0)$ を与えるべきです。しかし、ノイズから画像へ至るすべての道筋についての積分は計算できません。
#
# *第1段: 上界。* VAEと同じ工夫を使います。$-\log p_\theta(x_0)$ は、ステップごとの項の和で上から抑えられます。ステップ $t$ の項は、モデルが1歩戻る分布 $p_\theta(x_{t-1}\mid x_t)$ が、$x_0$ を知っているときの本当の1歩 $q(x_{t-1}\mid x_t, x_0)$ からどれだけ離れているかを表します。離れ具合はKLダイバージェンスで測ります。
#
# *第2段: どちらも正規分布。* 本当の1歩は、正規分布の和だけからできているので正規分布です。モデルの1歩も、分散の等しい正規分布とします。分散 $\sigma_t^2$ が等しい2つの正規分布のKLダイバージェンスは、平均の差の2乗を $2\sigma_t^2$ で割ったものです。
#
# *第3段: 平均の代わりにノイズ。* $x_t$ が与えられると、本当の平均は $\epsilon$ だけで決まります(第2節の式を $x_0$ について解いてみてください)。したがって、ノイズを推定するネットワーク $\epsilon_\theta(x_t, t)$ があれば平均も決まり、項は「$t$ で決まる数」と $|\epsilon - \epsilon_\theta(x_t, t)|^2$ の積になります。
#
# *第4段: 係数を外す。* Hoら([arXiv 2006.11239](https://arxiv.org/abs/2006.11239))は、この係数を外しました。ノイズの強い、難しいレベルの比重が増え、画像は良くなりました。残ったものが、Stable Diffusionの損失関数であり、レッスン03、05、06の出発点です: $\mathbb{E}\,|\epsilon - \epsilon_\theta(x_t, t)|^2$。
#
# *最良の推定とは。* 2乗誤差を最小にするのは**平均**です。つまり、その $x_t$ に至りえたすべてのノイズの平均です。数直線の上なら、この平均を正確に計算できます。データを $K$ 個の正規分布の混合とし、重みを $w_k$、平均を $m_k$、標準偏差を $s_k$ とします。レベル $\bar\alpha$ では、成分 $k$ は平均 $\sqrt{\bar\alpha}\,m_k$、分散
# $v_k = \bar\alpha\,s_k^2 + 1 - \bar\alpha$ の正規分布になります。$x_t$ を見たとき、それが成分 $k$ から来た確率は $r_k \propto w_k\,N(x_t;\ \sqrt{\bar\alpha}\,m_k, v_k)$ で、成分の中での $x_0$ の最良の推定は $m_k + \frac{\sqrt{\bar\alpha}\,s_k^2}{v_k}(x_t - \sqrt{\bar\alpha}\,m_k)$ です。したがって
#
# $$\hat x_0 = \sum_k r_k\Big(m_k + \frac{\sqrt{\bar\alpha}\,s_k^2}{v_k}\,(x_t - \sqrt{\bar\alpha}\,m_k)\Big), \qquad \hat\epsilon = \frac{x_t - \sqrt{\bar\alpha}\,\hat x_0}{\sqrt{1-\bar\alpha}}.$$
#
# `mixture_noise` を書いてください。学習を一切していないのに、数直線上の完全な拡散モデルになります。手計算の例: 平均0、標準偏差1の成分が1つなら $\hat\epsilon = \sqrt{1-\bar\alpha}\,x_t$ です。$x_t = 2$、$\bar\alpha = 0.64$ では1.2です。よくある誤りは、$r_k$ の和が1にならないことと、ノイズではなく $\hat x_0$ を返すことです。


# %% uid="mixture-noise" tags=["exercise"] exercise="mixture_noise"
def mixture_noise(x_t, alpha_bar, weights, means, deviations):
    """en: Best guess of the noise [n] in x_t [n], for data of K normals: weights, means, deviations [K] (tensors).
    ja: データがK個の正規分布の混合(重み、平均、標準偏差のテンソル [K])のとき、x_t [n] に含まれるノイズの最良の推定 [n] です。
    """
    # BEGIN SOLUTION
    root = alpha_bar**0.5
    variance = alpha_bar * deviations**2 + 1 - alpha_bar  # [K]
    away = x_t[:, None] - root * means  # [n, K]
    log_share = weights.log() - 0.5 * variance.log() - away**2 / (2 * variance)
    share = log_share.softmax(dim=1)  # [n, K]
    guess = (share * (means + root * deviations**2 / variance * away)).sum(1)  # [n]
    return (x_t - root * guess) / (1 - alpha_bar) ** 0.5
    # END SOLUTION


# %% uid="mixture-noise-check" tags=["check"]
lab.check("mixture_noise")
mixture_noise = lab.use("mixture_noise")

# %% [markdown] lang="en" uid="predict" pair="8edbb6d2"
# From a guess of the noise follows a guess of the clean data: solve $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\hat\epsilon$ for $x_0$. That is the lower row of the first figure. Write `predict_x0`. By hand: $x_t = 2$, $\hat\epsilon = 2$, $\bar\alpha = 0.64$ give 1, the case of section 2 read backwards.

# %% [markdown] lang="ja" uid="predict" pair="d17877cb"
# ノイズの推定からは、元のデータの推定が得られます。$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\hat\epsilon$ を $x_0$ について解いてください。最初の図の下の段が、この推定です。`predict_x0` を書いてください。手計算の例: $x_t = 2$、$\hat\epsilon = 2$、$\bar\alpha = 0.64$ なら1です。第2節の例を逆向きにたどったものです。


# %% uid="predict-x0" tags=["exercise"] exercise="predict_x0"
def predict_x0(x_t, eps, alpha_bar):
    """en: The clean latent that a noise prediction implies.
    ja: ノイズの予測 eps から、ノイズのない潜在変数を求めます。
    """
    # BEGIN SOLUTION
    return (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    # END SOLUTION


# %% uid="predict-x0-check" tags=["check"]
lab.check("predict_x0")
predict_x0 = lab.use("predict_x0")

# %% uid="line-guesses"
# en: data on a line: two kinds, at -1 and at +1
# ja: 数直線上のデータ。-1と+1の付近に2種類あります
WEIGHTS, MEANS, DEVIATIONS = torch.tensor([0.6, 0.4]), torch.tensor([-1.0, 1.0]), torch.tensor([0.3, 0.3])
line = torch.linspace(-2.5, 2.5, 201)


def line_guess(alpha_bar):
    """en: Best guess of the clean value for every x_t on the line.
    ja: 数直線上の各x_tに対する、元の値の最良の推定です。
    """
    return predict_x0(line, mixture_noise(line, alpha_bar, WEIGHTS, MEANS, DEVIATIONS), alpha_bar)


curve_with_interval(
    line,
    {t("l01.line_level", level=level): line_guess(level) for level in (0.98, 0.7, 0.3, 0.01)},
    xlabel="$x_t$",
    ylabel=t("l01.line_guess"),
    title=t("l01.line_title"),
)

# %% [markdown] lang="en" uid="line-reading" pair="c51c3a77"
# **What you see.** With little noise ($\bar\alpha = 0.98$) the best guess is nearly what one sees. With more (0.7, 0.3) it becomes a smooth step: whatever lies near $-1$ is drawn to the one kind, whatever lies near $+1$ to the other. With much noise it is a flat line near $0.6\cdot(-1) + 0.4\cdot 1 = -0.2$, a value that no datum ever has. **Why.** When $x_t$ says nothing, the average of everything is the least wrong answer. That is
# the blur of the first figure: not a weak network, but an optimal one. **What would change it.** Knowing more. A prompt narrows down what can be meant; that is the way in for guidance. Now the same with portraits, where nobody can compute the average and a U-Net has learnt it.

# %% [markdown] lang="ja" uid="line-reading" pair="832d7117"
# **図から読み取れること。** ノイズが弱いとき($\bar\alpha = 0.98$)、最良の推定は見たままの値に近くなります。もう少し強いと(0.7、0.3)なだらかな段の形になり、$-1$ の近くの値は一方の種類に、$+1$ の近くの値はもう一方に引き寄せられます。ノイズが強いときは、$0.6\cdot(-1) + 0.4\cdot 1 = -0.2$ 付近の平らな線になります。どのデータも取らない値です。**理由。** $x_t$ から何も分からないとき、最も外れの少ない答えは全体の平均です。
# 最初の図がぼやけていたのは、ネットワークが弱いからではなく、最適だからです。**何を変えればよいか。** 情報を増やすことです。プロンプトがあれば、意味しうるものが絞られます。誘導はここに働きます。次に、ポートレートで同じことを試します。平均を計算できる人はいないので、U-Netが学習したものを使います。

# %% uid="predict-picture"
from labkit.diffusion import encode_prompts, predict_noise

prompts = [caption(spec).text for spec in specs]
conditions = encode_prompts(pipe, prompts)
guesses, errors = [], []
with torch.no_grad():
    for k in levels:
        x_t = add_noise(x0, noise, float(alphas[k]))
        eps = predict_noise(pipe, x_t, k, conditions)
        errors.append((eps - noise).square().mean((1, 2, 3)))  # [portraits]
        guesses.append(decode_latents(pipe, predict_x0(x_t[:1], eps[:1], float(alphas[k]))))
rows = {t("l01.noised"): noised, t("l01.guess"): torch.cat(guesses)}
strips({name: list(row.cpu().clamp(-1, 1)) for name, row in rows.items()}, title=t("l01.guess_title"))

# %% uid="predict-error"
per_portrait = torch.stack(errors, 1).cpu().numpy()  # [portraits, levels]
curve_with_interval(
    levels,
    {t("l01.noise_error"): per_portrait},
    xlabel=t("l01.timestep"),
    ylabel=t("l01.noise_error_axis"),
    title=t("l01.noise_error_title"),
)

# %% [markdown] lang="en" uid="predict-reading" pair="3287d935"
# **What you see.** Two opposite stories. The *guess of the picture* is perfect at $t = 1$ and gets worse with $t$; at $t = 999$ it has the caption's colours, but another face. (It is no smear, because this caption names every attribute.) The *error in the noise*, which is the loss, is largest at $t = 1$ and almost 0 at $t = 999$. **Why.** At $t = 999$ nearly all of $x_t$ is noise, so "it is all noise" is nearly right; at $t = 1$ the noise is a whisper that must be told from the grain of the picture. **What would
# change it.** The loss is an average over random $t$. A model whose loss fell by 1 % may have improved where nobody looks. Remember that in lesson 05, where losses of two models are compared, at the same $t$ and with the same noise.

# %% [markdown] lang="ja" uid="predict-reading" pair="3b24775a"
# **図から読み取れること。** 2つの図は正反対のことを示しています。*画像の推定*は $t = 1$ で完璧で、$t$ が大きいほど悪くなります。$t = 999$ では、色はキャプションどおりでも別の顔です(すべての属性を指定したキャプションなので、ぼやけはしません)。*ノイズの誤差*、つまり損失は、$t = 1$ で最大、$t = 999$ ではほぼ0です。**理由。** $t = 999$ では $x_t$ のほとんどがノイズなので、「すべてノイズ」と答えればほぼ正解です。$t = 1$ のノイズはごく弱く、画像の細部と見分けなければなりません。**何を
# 変えるとどうなるか。** 損失は、ランダムな $t$ についての平均です。損失が1%下がっても、改善したのは見た目に影響しないレベルかもしれません。レッスン05では2つのモデルの損失を、同じ $t$ と同じノイズで比べます。そのときに思い出してください。

# %% [markdown] lang="en" uid="ddim" pair="a4e81d16"
# ## 4. DDIM by hand
#
# *Intuition.* The first guess is an average, so do not jump to it. Take the guess, and go back into the noise, but a little less deep, with the *same* noise that the network has named. There the network sees more and guesses again.
#
# *Formula.* A deterministic DDIM step ([arXiv 2010.02502](https://arxiv.org/abs/2010.02502)) from level $\bar\alpha_t$ to the next lower level $\bar\alpha_{t'}$ consists of the two functions that you have written: guess $\hat x_0$ with `predict_x0`, and mix it again with $\hat\epsilon$ by `add_noise`:
#
# $$x_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{1-\bar\alpha_{t'}}\,\hat\epsilon.$$
#
# Twenty such steps are a sampler. No random number is drawn on the way: noise in, picture out, always the same. That is why a *seed* names a picture, and why two models can be compared on equal noise. Write `ddim_step`. By hand: $x_t = 2.2$, $\hat\epsilon = 2$ from 0.36 to 0.64 give 2. Try to say before the check where the step ends for $\bar\alpha_{t'} = 1$.

# %% [markdown] lang="ja" uid="ddim" pair="8e90b3d7"
# ## 4. DDIM を自分で書く
#
# *直感。* 最初の推定は平均でしかないので、そこへ一気に進んではいけません。推定したら、もう一度ノイズの中へ、ただし少し浅いところへ戻ります。戻すノイズは、ネットワークが答えたのと*同じ*ノイズです。そこでは前よりよく見えるので、もう一度推定します。
#
# *式。* 決定論的なDDIMの1ステップ([arXiv 2010.02502](https://arxiv.org/abs/2010.02502))は、レベル $\bar\alpha_t$ から1つ下のレベル $\bar\alpha_{t'}$ へ進みます。部品は、すでに書いた2つの関数です。`predict_x0` で $\hat x_0$ を推定し、`add_noise` で $\hat\epsilon$ と混ぜ直します。
#
# $$x_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{1-\bar\alpha_{t'}}\,\hat\epsilon.$$
#
# これを20回繰り返せばサンプラーになります。途中で乱数は使いません。ノイズが決まれば画像も決まります。*シード*で画像を特定でき、2つのモデルを同じノイズで比べられるのはこのためです。`ddim_step` を書いてください。手計算の例: $x_t = 2.2$、$\hat\epsilon = 2$ で0.36から0.64へ進むと2です。$\bar\alpha_{t'} = 1$ ならどこに着くか、チェックの前に考えてみてください。


# %% uid="ddim-step" tags=["exercise"] exercise="ddim_step"
def ddim_step(x_t, eps, alpha_bar, alpha_bar_next):
    """en: One deterministic DDIM step from level alpha_bar to alpha_bar_next.
    ja: レベル alpha_bar から alpha_bar_next へ、決定論的なDDIMで1ステップ進みます。
    """
    # BEGIN SOLUTION
    guess = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return alpha_bar_next**0.5 * guess + (1 - alpha_bar_next) ** 0.5 * eps
    # END SOLUTION


# %% uid="ddim-check" tags=["check"]
lab.check("ddim_step")
ddim_step = lab.use("ddim_step")

# %% uid="ddim-loop"
from labkit.diffusion import ddim_timesteps, initial_latents


def my_sampler(condition, generators, steps, scale_at):
    """en: Pictures by your steps; scale_at(i) is the guidance scale of step i (0, 1, ...).
    ja: 自分のステップで画像を生成します。scale_at(i) は、ステップi(0から)の誘導スケールです。
    """
    x = initial_latents(pipe, generators)
    with torch.no_grad():
        for i, (now, following) in enumerate(ddim_timesteps(pipe.scheduler, steps)):
            eps = predict_noise(pipe, x, now, condition, guidance_scale=scale_at(i))
            level = alphas[following] if following >= 0 else pipe.scheduler.final_alpha_cumprod
            x = ddim_step(x, eps, float(alphas[now]), float(level))
        return decode_latents(pipe, x).cpu().clamp(-1, 1)


first = encode_prompts(pipe, prompts[:1])
mine = my_sampler(first, image_generators(1, lab.seed), lab.sizes.steps, lambda i: lab.sizes.guidance)
theirs = sample(pipe, prompts[:1], generators=image_generators(1, lab.seed), **options).cpu()
apart = float((mine - theirs).abs().max())
lab.verdict(t("l01.same_picture", value=apart), apart < 1e-3)
counts = [2, 4, 8, lab.sizes.steps]
by_steps = [my_sampler(first, image_generators(1, lab.seed), n, lambda i: lab.sizes.guidance) for n in counts]
image_grid(
    torch.cat([theirs, *by_steps]),
    captions=[t("l01.by_library"), *(t("l01.by_hand", n=n) for n in counts)],
    columns=5,
)

# %% [markdown] lang="en" uid="ddim-reading" pair="17ef6ee5"
# **Reading.** Your loop draws the library's picture. Two steps give a dark mask, four already the portrait, and more steps change details: this caption names every attribute and leaves little to decide. The error of a step comes from walking straight where the path bends, so it shrinks with the length of the step. Lessons that need hundreds of pictures therefore use 8 to 12 steps, not 50.

# %% [markdown] lang="ja" uid="ddim-reading" pair="96e92750"
# **図の読み方。** 自作のループは、ライブラリと同じ画像を描きます。2ステップでは暗い輪郭だけですが、4ステップでポートレートになり、それ以上増やしても細部が変わるだけです。このキャプションはすべての属性を指定しているので、決めることがほとんど残っていません。1ステップの誤差は、曲がった道をまっすぐ進むことから生じるので、歩幅を縮めれば小さくなります。数百枚の画像が必要なレッスンで、50ではなく8〜12ステップを
# 使うのはこのためです。

# %% [markdown] lang="en" uid="guidance" pair="af8055cd"
# ## 5. Guidance: what it does to a distribution
#
# *Intuition.* Ask the network twice: once with the prompt, once with the empty prompt. The difference of the two answers is what the words have changed. **Classifier-free guidance** ([arXiv 2207.12598](https://arxiv.org/abs/2207.12598)), the CFG of many articles, walks further in that direction than the network itself proposes:
#
# $$\hat\epsilon = \epsilon_\theta(x_t) + w\,\big(\epsilon_\theta(x_t, c) - \epsilon_\theta(x_t)\big).$$
#
# The **guidance scale** $w$ is 0 for no prompt, 1 for the honest model of the prompt, and usually 3 to 8.
#
# *Why that sharpens.* A noise guess is, up to a factor, the slope of a log density: $\epsilon_\theta(x_t, c) \approx -\sqrt{1-\bar\alpha_t}\,\nabla \log p(x_t\mid c)$. By Bayes, $\log p(x\mid c) - \log p(x) = \log p(c\mid x)$ up to a constant. So the guided step climbs $\log p(x) + w\,\log p(c\mid x)$. Read $p(c\mid x)$ as a classifier, which tells the prompt from the picture: it is the data, times this classifier raised to the power $w$. Where the classifier is nearly sure, not much happens; where a
# picture could be mistaken for something else, it is pushed away. Write `guided`. By hand: 1 without, 3 with the prompt, $w = 2$ give 5. Then predict what happens on the line, if "the prompt" means the kind at $+1$.

# %% [markdown] lang="ja" uid="guidance" pair="5d716ad8"
# ## 5. 誘導は分布をどう変えるのか
#
# *直感。* ネットワークに2回尋ねます。1回はプロンプトあり、もう1回は空のプロンプトです。2つの答えの差が、言葉による変化です。**分類器なし誘導**([arXiv 2207.12598](https://arxiv.org/abs/2207.12598)、多くの記事でCFGと呼ばれるもの)は、その方向へ、ネットワーク自身の答えよりもさらに先まで進みます。
#
# $$\hat\epsilon = \epsilon_\theta(x_t) + w\,\big(\epsilon_\theta(x_t, c) - \epsilon_\theta(x_t)\big).$$
#
# **誘導スケール** $w$ は、0ならプロンプトなし、1ならプロンプトに対するモデル本来の答えで、普段は3〜8を使います。
#
# *なぜ分布が鋭くなるのか。* ノイズの推定は、定数倍を除けば対数密度の傾きです: $\epsilon_\theta(x_t, c) \approx -\sqrt{1-\bar\alpha_t}\,\nabla \log p(x_t\mid c)$。ベイズの定理から、定数を除いて $\log p(x\mid c) - \log p(x) = \log p(c\mid x)$ です。したがって、誘導つきのステップは $\log p(x) + w\,\log p(c\mid x)$ を登ります。$p(c\mid x)$ は、画像からプロンプトを当てる分類器とみなせます。つまり、データの分布に、この分類器の $w$ 乗を掛けたものです。分類器がほぼ確信している場所では
# 何も起きず、ほかのものと取り違えそうな場所では、そこから押し出されます。`guided` を書いてください。手計算の例: プロンプトなしで1、ありで3、$w = 2$ なら5です。書けたら、数直線で「プロンプト」が $+1$ の種類を指すとき何が起きるかを予想してください。


# %% uid="guided" tags=["exercise"] exercise="guided"
def guided(eps_empty, eps_prompt, scale):
    """en: Classifier-free guidance of two noise predictions of one shape.
    ja: 同じ形の2つのノイズ予測から、分類器なし誘導の結果を求めます。
    """
    # BEGIN SOLUTION
    return eps_empty + scale * (eps_prompt - eps_empty)
    # END SOLUTION


# %% uid="guided-check" tags=["check"]
lab.check("guided")
guided = lab.use("guided")

# %% uid="guided-predict" tags=["quiz"]
lab.predict("guided_line")

# %% uid="guided-line"
# en: two kinds that overlap; the prompt means the second
# ja: 重なり合う2種類。プロンプトが指すのは2つ目です
LAW = torch.tensor([0.6, 0.4]), torch.tensor([-0.8, 0.8]), torch.tensor([0.5, 0.5])
ASKED = torch.ones(1), LAW[1][1:], LAW[2][1:]
starts = torch.randn(4000, generator=lab.generator(2))


def line_samples(scale):
    """en: 4,000 samples on the line, from the same noises for every scale.
    ja: 数直線上の4,000個の標本です。どのスケールでも同じノイズから始めます。
    """
    x, path = starts.clone(), [float(level) for level in torch.linspace(0.002, 0.999, 60)]
    for now, following in zip(path, path[1:], strict=False):
        eps = guided(mixture_noise(x, now, *LAW), mixture_noise(x, now, *ASKED), scale)
        x = ddim_step(x, eps, now, following)
    return x


edges = torch.linspace(-2.5, 3.5, 61)
middles = (edges[1:] + edges[:-1]) / 2
drawn = {scale: line_samples(scale) for scale in (0.0, 1.0, 3.0, 8.0)}
curve_with_interval(
    middles,
    {t("l01.scale", scale=s): torch.histogram(x, edges, density=True).hist for s, x in drawn.items()},
    xlabel="$x_0$",
    ylabel=t("l01.density"),
    title=t("l01.line_guided"),
)

# %% uid="guided-reveal"
gone = float((drawn[1.0] < 0.4).float().mean() - (drawn[8.0] < 0.4).float().mean())
lab.reveal("guided_line", "pushed" if gone > 0.05 else "same")

# %% [markdown] lang="en" uid="guided-reading" pair="bbd257fd"
# **What you see.** $w = 0$ gives both kinds, $w = 1$ exactly the kind that was asked for, with all its width. At $w = 3$ and 8 the side that touches the other kind is empty: the samples have been pushed away from what could be mistaken, and crowd together further out than the middle of the real data. **Why.** The classifier's power rewards being *unmistakable*, not being typical. **What follows.** Guidance
# buys faithfulness with variety, and a little with realism. **A warning about the formula.** The samples follow the density sharpened by $w$ only roughly, because noising and multiplying do not commute; the direction is right, the shape is not exact.
#
# Now measure the trade on portraits. Faithfulness: the AttributeReader says how probable each value that the prompt names is, and their mean counts. Variety: the standard deviation of a pixel among pictures of one prompt, from the variance averaged over all pixels. (The reader reads portraits alone, so this section uses PortraitSD on every tier.) At which scale will faithfulness be highest?

# %% [markdown] lang="ja" uid="guided-reading" pair="38d2439c"
# **図から読み取れること。** $w = 0$ では両方の種類が出ます。$w = 1$ では、求めた種類がそのままの幅で出ます。$w = 3$ と8では、もう一方と接する側が空になります。標本は、取り違えられそうな場所から押し出され、実際のデータの中央よりも外側に集まっています。**理由。** 分類器の累乗が評価するのは、典型的であることではなく、*紛れがない*ことだからです。**結論。** 誘導は、多様性と、少しばかりの
# 本物らしさを犠牲にして、忠実度を得ます。**式についての注意。** 標本が従うのは、$w$ で鋭くした密度そのものではなく、その近似です。「ノイズを加える」操作と「分類器の累乗を掛ける」操作は、順序を入れ替えると結果が変わるからです。方向は合っていますが、形は厳密ではありません。
#
# 次に、このトレードオフをポートレートで測ります。忠実度を測るには、まず、プロンプトが指定した属性ごとに、画像が指定どおりである確率をAttributeReaderに読み取らせます。その平均が忠実度です。多様性は、同じプロンプトの画像間での画素値の標準偏差で、全画素で平均した分散から求めます(AttributeReaderが読めるのはポートレートだけなので、どのtierでもPortraitSDを使います)。忠実度が最も高くなるのは、どのスケールでしょうか。

# %% uid="scale-predict" tags=["quiz"]
lab.predict("best_scale")

# %% uid="guidance-run" tags=["slow"]
from IPython.display import display

from labkit.studies import l01
from labkit.studies.estimate import recorded_levels

how = {"prompts": lab.sizes.prompts, "copies": lab.sizes.copies, "steps": lab.sizes.quick, "device": lab.device}
scales, run_seed = list(l01.SCALES), 100 + lab.seed
mine = {
    scale: lab.keep("guidance", l01.at_scale, scale, run_seed, **how)
    for scale in lab.progress_bar(scales, t("l01.guidance_scale"), len(scales))
}
asked = {"seeds": len(lab.recorded.seeds(l01.arm_of(1))), "asked": l01.STUDY.sizes["prompts"]}
for metric, what in (("faithful", t("l01.faithful_axis")), ("variety", t("l01.variety_axis"))):
    levels = np.array([[end[0] for end in recorded_levels("01", [metric], l01.arm_of(scale))] for scale in scales])
    yours = [float(mine[scale][metric].mean()) for scale in scales]
    drawn = {t("l01.recorded"): tuple(levels.T), t("l01.yours"): yours}
    title = t("l01.guidance_title", prompts=lab.sizes.prompts, copies=lab.sizes.copies, **asked)
    display(
        curve_with_interval(scales, drawn, xlabel=t("l01.guidance_scale"), ylabel=what, title=title, size=(7.0, 2.8))
    )


# %% uid="guidance-claim"
def change(metric, scale, against):
    """en: Mean change over prompts with its 95 % interval.
    ja: プロンプトについて平均した変化と、その95%区間です。
    """
    gained = mine[scale][metric] - mine[against][metric]
    mean, half = float(gained.mean()), 1.96 * float(gained.std(ddof=1)) / len(gained) ** 0.5
    return {"value": mean, "interval": (mean - half, mean + half), "seeds": [run_seed]}


best = max(scales, key=lambda scale: mine[scale]["faithful"].mean())
lab.reveal("best_scale", "one" if best == 1.0 else "more")
lab.claim("guidance_helps", measured=t("l01.m_gain"), **change("faithful", 3.0, 1.0))
lab.claim("guidance_costs", measured=t("l01.m_cost"), **change("variety", 3.0, 1.0))
lab.claim("three_is_enough", measured=t("l01.m_more"), **change("faithful", 8.0, 3.0))
lab.claim("steps_help", reason=t("l01.only_recorded"))

# %% uid="guidance-widget" tags=["widget"]
from labkit.figures.widgets import explore, slider


def guided_pictures(scale):
    pictures = sample(
        pipe, prompts[:4], generators=image_generators(4, lab.seed), steps=lab.sizes.quick, guidance_scale=scale
    )
    return image_grid(pictures.clamp(-1, 1), captions=prompts[:4], columns=4)


explore(guided_pictures, {"scale": slider(t("l01.guidance_scale"), 1.0, 10.0, 3.0, 0.5)})

# %% [markdown] lang="en" uid="scale-reading" pair="8788ecf4"
# **What you see.** In the record faithfulness rises from .92 at 1 to .98 at 3, a gain of $.052$ $[.041, .064]$, and variety falls by $.030$ $[.014, .045]$. Up to 5 there is nothing more to win. At 8 faithfulness *falls* again, by $.047$ $[.029, .065]$ against 3, and the pictures of a prompt differ as much as without guidance ($-.004$ $[-.029, .020]$), so "3 is enough, and more does no harm" is **contradicted**. **Why.** Once all named attributes are unmistakable, more pushing has nothing left to win.
# And eight steps are few: a large scale goes far along a direction that was right at the start of a step only. With twenty steps the loss is gone: there 8 and 3 differ by $.002$ $[-.002, .006]$, and variety falls on from 3 to 8, by $.015$ $[.006, .024]$, as on the line. So the variety at 8 in eight steps was most likely damage. **What would change it.** The captions: where a prompt names little, there is little to win. Move the slider to 10: colours saturate, and outlines become hard. That is the overshoot of the line. The scale 3 of the other lessons is
# the knee of this curve, not a law. And mark the unit of the bands, *prompts and seeds*: lesson 02 explains why not pictures.

# %% [markdown] lang="ja" uid="scale-reading" pair="0d69bb47"
# **図から読み取れること。** 記録では、スケール1の忠実度0.92が、スケール3では0.98へ $.052$ $[.041, .064]$ 上がり、多様性は $.030$ $[.014, .045]$ 下がります。スケール5まで上げても、それ以上得るものはありません。スケール8では忠実度がかえって*下がり*、スケール3との差は $.047$ $[.029, .065]$ です。同じプロンプトの画像どうしのばらつきは、スケール1(誘導なし)と同じくらいに戻ります(差は $-.004$ $[-.029, .020]$)。「3で十分で、上げても害はない」という予想は、**反対の結果になりました**。**理由。** 指定した属性がすべて紛れのないものになれば、それ以上押しても得るものがありません。
# しかも、8ステップでは1歩の幅が大きくなります。そこへスケールの大きさが加わると、ステップの初めにしか正しくない方向へ、大きく進みすぎるのです。20ステップにすると忠実度の低下はなくなり、スケール8とスケール3の差は $.002$ $[-.002, .006]$ です。多様性も、数直線のときと同じく、スケール3から8へさらに $.015$ $[.006, .024]$ 下がります。つまり、8ステップのスケール8で多様性が高く見えたのは、画像が壊れていたためでしょう。**何を変えるとどうなるか。** 指定の少ないプロンプトでは、得られるものも少なくなります。スライダーを10まで動かすと、色が飽和し、輪郭が硬くなります。数直線で見た行き過ぎです。ほかのレッスンで使う
# スケール3は、この曲線の曲がり角であって、法則ではありません。帯(95%区間)は、画像ではなく*プロンプトとシード*を単位として計算していることにも注意してください。その理由はレッスン02で説明します。

# %% [markdown] lang="en" uid="attention" pair="09b32082"
# ## 6. Where attention looks
#
# The U-Net must know two things that convolutions alone do not tell it: which words belong to which place, and which places belong together. Both are **attention**. Each place asks with a *query* $q$, each source offers a *key* $k$ and a *value* $v$, and the answer is a mean of the values with the weights $\mathrm{softmax}(q\cdot k/\sqrt d)$, $d$ being the length of a key. In **cross-attention** the keys
# come from the words. In **self-attention** they come from the other places of the same picture; FABRIC (lesson 04) puts the places of *another* picture beside them.
#
# Write the weights, `attention_weights(query, key)`: all queries of a picture against all keys, each row a set of shares that add up to 1. By hand: one query 1 and two keys $\ln 3$ and 0 (of length $d = 1$) give 0.75 and 0.25. Common mistakes: no root of $d$, and a softmax over the queries.

# %% [markdown] lang="ja" uid="attention" pair="ebb16500"
# ## 6. 注意はどこを見ているか
#
# U-Netには、畳み込みだけでは分からないことが2つあります。どの単語がどの場所に対応するのか、どの場所とどの場所が関係するのか、です。どちらも**注意**(アテンション)が担います。各場所が*クエリ* $q$ で問い合わせ、情報源は*キー* $k$ と*バリュー* $v$ を示します。答えは、重み $\mathrm{softmax}(q\cdot k/\sqrt d)$ によるバリューの平均です。$d$ はキーの長さです。**交差注意**では、キーは
# 単語から来ます。**自己注意**では、同じ画像のほかの場所から来ます。FABRIC(レッスン04)は、そこに*別の*画像の場所を並べます。
#
# この重みを計算する `attention_weights(query, key)` を書いてください。1枚の画像のすべてのクエリとすべてのキーを組み合わせ、行ごとに合計1の割合を返します。手計算の例: クエリが1、キーが $\ln 3$ と0(長さ $d = 1$)なら、0.75と0.25です。よくある誤りは、$d$ の平方根で割らないことと、クエリの軸でソフトマックスを取ることです。


# %% uid="attention-weights" tags=["exercise"] exercise="attention_weights"
def attention_weights(query, key):
    """en: softmax(q . k / sqrt(d)) of queries [B, N, d] and keys [B, M, d]: [B, N, M], rows add up to 1.
    ja: クエリ [B, N, d] とキー [B, M, d] の softmax(q・k / sqrt(d))、[B, N, M] です。行の合計は1です。
    """
    # BEGIN SOLUTION
    return (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    # END SOLUTION


# %% uid="attention-weights-check" tags=["check"]
lab.check("attention_weights")
attention_weights = lab.use("attention_weights")

# %% [markdown] lang="en" uid="recorder" pair="646f66ac"
# `Recorder` below puts *your* weights into a layer of the U-Net and keeps them. It is put in, used once, and taken out again. That is how every method of lesson 04 gets into the network, so read it line by line. The light says whether the network notices anything. Before you run it: which places will look at "glasses", and which at "clothes"?

# %% [markdown] lang="ja" uid="recorder" pair="0eff8989"
# 次の `Recorder` は、*自分の書いた*重みをU-Netの層に差し込み、記録します。1回だけ使い、元に戻します。レッスン04の手法はすべてこの方法でネットワークに入るので、1行ずつ読んでください。ネットワークの答えが変わらないことは、判定の表示で確かめます。実行する前に予想しましょう。どの場所が「glasses」を見るでしょうか。「clothes」を見るのはどこでしょうか。


# %% uid="attention-maps"
class Recorder:
    """en: An attention processor that keeps its probabilities, averaged over heads: [rows, queries, keys].
    ja: 注意の確率を、ヘッドで平均して [rows, queries, keys] の形で残す注意プロセッサです。
    """

    def __init__(self):
        self.maps = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(project(states))
            for project, states in ((attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source))
        )
        weights = attention_weights(query, key)  # [rows * heads, queries, keys]
        self.maps.append(weights.unflatten(0, (-1, attn.heads)).mean(1).float().cpu())
        return attn.to_out[0](attn.batch_to_head_dim(weights @ value))


def attention_maps(kind, block, x_t, timestep, condition):
    """en: Mean map of the layers of one block, and the prediction; kind is "attn1" (self) or "attn2" (cross).
    ja: 1つのブロックの層で平均した注意マップと、予測です。kind は "attn1"(自己注意)か "attn2"(交差注意)です。
    """
    recorder, before = Recorder(), pipe.unet.attn_processors
    chosen = {k: recorder if f".{kind}." in k and k.startswith(block) else v for k, v in before.items()}
    pipe.unet.set_attn_processor(chosen)
    try:
        with torch.no_grad():
            answer = predict_noise(pipe, x_t, timestep, condition)
    finally:
        pipe.unet.set_attn_processor(before)
    return torch.stack(recorder.maps).mean(0)[0], answer  # [queries, keys]


picture = sample(pipe, [sentence], generators=image_generators(1, lab.seed), **options)
condition = encode_prompts(pipe, [sentence])
with torch.no_grad():
    clean = encode_images(pipe, picture.clamp(-1, 1))
x_t = add_noise(clean, torch.randn(clean.shape, generator=lab.generator(1)).to(clean), float(alphas[300]))
first, last = "down_blocks.0", f"up_blocks.{len(pipe.unet.up_blocks) - 1}"
cross, recorded = attention_maps("attn2", last, x_t, 300, condition)
with torch.no_grad():
    apart = float((recorded - predict_noise(pipe, x_t, 300, condition)).abs().max())
lab.verdict(t("l01.same_layer", value=apart), apart < (0.1 if tier == "gpu" else 1e-4))
side = round(len(cross) ** 0.5)
tokens = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(sentence)["input_ids"])
# en: mood, hair, glasses, clothes
# ja: 表情、髪、眼鏡、服
words = [sentence.replace(",", "").split()[k] for k in (4, 8, 10, 13)]
places = [tokens.index(word + "</w>") for word in words]
heat = [cross[:, k].reshape(side, side) / cross[:, k].max() for k in places]
heatmap_overlay([picture[0].clamp(-1, 1)] * 4, heat, captions=words, label=t("l01.attention"), columns=4)

# %% uid="self-attention"
itself, _ = attention_maps("attn1", first, x_t, 300, condition)
spots = {t("l01.mouth"): (0.62, 0.5), t("l01.corner"): (0.05, 0.05), t("l01.clothes"): (0.95, 0.5)}
heat = []
for down, right in spots.values():
    row = itself[int(down * side) * side + int(right * side)].reshape(side, side)
    heat.append(row / row.max())
heatmap_overlay([picture[0].clamp(-1, 1)] * 3, heat, captions=list(spots), label=t("l01.attention"), columns=3)

# %% [markdown] lang="en" uid="attention-reading" pair="fb2ab528"
# **What you see.** A word is looked at by the places where its thing is drawn: "happy" by the mouth, "hair" by the top of the head, "glasses" by an end of the frame, "clothes" by the shoulders. In self-attention the corner looks at the rest of the background, and the clothes at the clothes: that is how one colour spreads over an area. **Why not sharper.** These maps have 8 × 8 places and are a mean over heads that do different things; and a word's information may arrive through other words. An attention map shows where a layer
# *looks*, not what *causes* the picture. **What would change it.** Another block: the words were recorded in the last one. Put `first` in its place, and "happy" and "glasses" light up all over the background, for there the network does not yet know what will be where. For a proof, change the word and see what changes in the picture.

# %% [markdown] lang="ja" uid="attention-reading" pair="9765a2ea"
# **図から読み取れること。** 単語を見ているのは、それが描かれた場所です。「happy」は口元、「hair」は頭の上、「glasses」はフレームの端、「clothes」は肩から見られています。自己注意では、隅は背景の残りを、服は服を見ています。こうして1つの色が領域全体に広がります。**もっと鋭くない理由。** マップは8×8の場所しかなく、働きの異なるヘッドの平均です。単語の情報が、別の単語を経由して届くこともあります。注意マップが示すのは、層がどこを
# *見ている*かであって、画像の*原因*ではありません。**何を変えるとどうなるか。** 単語のマップは最後のブロックで記録しました。`last` を `first` に変えると、「happy」と「glasses」は背景のいたるところで強くなります。そこでは、どこに何が描かれるかがまだ決まっていないからです。原因を確かめるには、単語を変えて画像の変化を見ます。

# %% [markdown] lang="en" uid="latents" pair="9fe25199"
# ## 7. Why latents?
#
# A portrait of 64 × 64 pixels is 12,288 numbers, a photograph of 512 × 512 is 786,432. Most of them are detail that no prompt will ever speak of, and a diffusion model would pay for them at every step. Attention costs most: every place looks at every other, so twice the side is four times the places and sixteen times the pairs. Rombach and others ([arXiv 2112.10752](https://arxiv.org/abs/2112.10752))
# split the work. An autoencoder, the **VAE**, learns once to compress a picture to an eighth of its side, with 4 numbers at each place in Stable Diffusion (48 times fewer) and 8 in PortraitSD (512 in all, 24 times fewer). The diffusion model then works on what is left: layout, colours, what is where. What is lost on the way, no amount of alignment can bring back.

# %% [markdown] lang="ja" uid="latents" pair="096c665c"
# ## 7. なぜ潜在変数なのか
#
# 64×64画素のポートレートは12,288個、512×512の写真なら786,432個の数値です。その大半は、どのプロンプトも触れない細部ですが、拡散モデルは毎ステップその計算をすることになります。最も高くつくのは注意です。すべての場所が互いを見るので、一辺が2倍になると場所は4倍、組は16倍です。Rombachら([arXiv 2112.10752](https://arxiv.org/abs/2112.10752))は仕事を
# 分けました。まずオートエンコーダ(**VAE**)が、画像の一辺を8分の1に圧縮する方法を学びます。1か所あたりの数値は、Stable Diffusionでは4個(全体で48分の1)、PortraitSDでは8個(全部で512個、24分の1)です。拡散モデルは、残ったもの、つまり構図、色、何がどこにあるかだけを扱います。圧縮で失われたものは、どんなアラインメントでも取り戻せません。

# %% uid="reconstruction"
originals = render_tensor(specs[:6], size)
with torch.no_grad():
    restored = decode_latents(pipe, encode_images(pipe, originals)).cpu().clamp(-1, 1)
decibel = [-10 * np.log10(float(((a - b) / 2).square().mean())) for a, b in zip(originals, restored, strict=True)]
rows = {t("l01.original"): list(originals), t("l01.restored"): list(restored)}
strips(rows, scores={t("l01.restored"): decibel}, score_label="PSNR [dB]", score_format="{:.1f}")

# %% uid="interpolation"
shares = [0.0, 0.25, 0.5, 0.75, 1.0]
with torch.no_grad():
    ends = encode_images(pipe, originals[:2])
    between = torch.cat([decode_latents(pipe, torch.lerp(ends[:1], ends[1:], share)) for share in shares]).cpu()
pixels = torch.stack([torch.lerp(originals[0], originals[1], share) for share in shares])
strips({t("l01.in_pixels"): list(pixels), t("l01.in_latents"): list(between.clamp(-1, 1))}, title=t("l01.between"))

# %% [markdown] lang="en" uid="latents-reading" pair="fcd13ed9"
# **What you see.** The VAE returns the portraits with softer edges; PSNR, the peak signal-to-noise ratio, says by how much (30 dB is an error of about 3 % of the range). Halfway between two portraits, pixels give a double exposure, and latents give hardly anything better. **Why.** Compression is not understanding: this space has been trained to be small, not to have a portrait at every place. What knows which places are portraits is the diffusion model. **What
# follows.** Limits of realism may be limits of the VAE: measure renders *through the VAE* beside the model before you blame the model.

# %% [markdown] lang="ja" uid="latents-reading" pair="ca407e1a"
# **図から読み取れること。** VAEを通すと、輪郭が少し甘くなります。その程度を表すのがPSNR(ピーク信号対雑音比)です(30dBなら、誤差は値の範囲の約3%)。2枚のポートレートの中間は、画素では二重写しで、潜在変数でもほとんど変わりません。**理由。** 圧縮は理解ではありません。この空間は小さくなるように学習されたもので、あらゆる場所にポートレートがあるわけではありません。どの場所がポートレートかを知っているのは
# 拡散モデルです。**結論。** 現実らしさの限界は、VAEの限界かもしれません。モデルのせいにする前に、*VAEを通した*レンダリング画像も並べて測りましょう。

# %% [markdown] lang="en" uid="cost" pair="d082a6ab"
# ## 8. What does a picture cost? A task of your own
#
# The unit of this course is one pass of one image through the U-Net, called an **NFE** (number of function evaluations). Predict: at guidance 3, how many NFE does one image take per step?

# %% [markdown] lang="ja" uid="cost" pair="ab7593ef"
# ## 8. 画像1枚のコストと、自由課題
#
# この教材では、1枚の画像をU-Netに1回通すことをコストの単位とし、**NFE**(関数評価の回数)で数えます。誘導スケール3では、画像1枚、1ステップあたり何回になるか、予想してください。

# %% uid="cost-predict" tags=["quiz"]
lab.predict("rows")

# %% uid="cost-run"
from labkit.diffusion import NFELedger

with NFELedger(pipe) as ledger:
    sample(pipe, prompts[:4], generators=image_generators(4, lab.seed), steps=lab.sizes.steps, guidance_scale=3.0)
print(t("l01.cost", rows=ledger.nfe, steps=lab.sizes.steps, seconds=ledger.seconds))
lab.reveal("rows", ledger.nfe / (4 * lab.sizes.steps))

# %% [markdown] lang="en" uid="cost-reading" pair="2d09ba98"
# **Reading.** Two: one with the prompt, one with the empty prompt. But at scale 1 the empty prompt cancels out of the formula, and one is enough. Write `plan_cost(scales)`, the NFE of one picture whose steps have these guidance scales. By hand: the scales 3 and 1 cost 3.

# %% [markdown] lang="ja" uid="cost-reading" pair="40fe2b37"
# **結果の読み方。** 2回です。プロンプトありと、空のプロンプトです。ただしスケール1では、空のプロンプトの項が式から消えるので、1回で足ります。各ステップの誘導スケールのリストから、画像1枚のNFEを求める `plan_cost(scales)` を書いてください。手計算の例: スケールが3と1なら、3回です。


# %% uid="plan-cost" tags=["exercise"] exercise="plan_cost"
def plan_cost(scales):
    """en: U-Net evaluations (NFE) of one picture whose steps have these guidance scales.
    ja: 各ステップの誘導スケールのリストから、画像1枚のU-Netの計算回数(NFE)を返します。
    """
    # BEGIN SOLUTION
    return sum(1 if scale == 1 else 2 for scale in scales)
    # END SOLUTION


# %% uid="plan-cost-check" tags=["check"]
lab.check("plan_cost")
plan_cost = lab.use("plan_cost")

# %% uid="plan-cost-use"
for scale in (3.0, 1.0):
    with NFELedger(pipe) as ledger:
        sample(pipe, prompts[:1], generators=image_generators(1, 0), steps=lab.sizes.quick, guidance_scale=scale)
    mine = plan_cost([scale] * lab.sizes.quick)
    lab.verdict(t("l01.same_cost", counted=ledger.nfe, mine=mine), ledger.nfe == mine)

# %% [markdown] lang="en" uid="open" pair="aba20c6e"
# **Open task (difficulty 4/5).** You may spend 12 NFE on each picture. Make them as faithful as you can. The plan in the cell spends them evenly: 6 steps, guidance 3 at each. But your sampler takes *another scale at every step*, and a step with scale 1 costs one NFE instead of two. When does guidance matter: early, when the layout is decided, or late? Are twelve
# unguided steps better than six guided ones? Change `steps` and `scale_at`; the cell refuses what is too dear and scores faithfulness on the prompts of section 5. There is no single right answer; a gain of less than the interval is none.

# %% [markdown] lang="ja" uid="open" pair="f50789cf"
# **自由課題(難易度4/5)。** 画像1枚に使えるのは12NFEまでです。できるだけ忠実な画像を作ってください。セルにある計画は、誘導スケール3の6ステップに均等に使っています。自作のサンプラーは*ステップごとに別のスケール*を使え、スケール1のステップは2NFEではなく1NFEで済みます。誘導が効くのは、構図が決まる前半でしょうか、後半でしょうか。誘導なしの12ステップは、誘導ありの6ステップより
# 良いでしょうか。`steps` と `scale_at` を変えてください。予算を超えた計画は採点されません。第5節のプロンプトで忠実度を測ります。正解は1つではありません。区間の幅より小さい差は、差とはいえません。

# %% uid="open-task" tags=["open"]
steps, budget = 6, 12


def scale_at(i):
    """en: Your guidance scale of step i, from the noisiest (0) to the last (steps - 1).
    ja: ステップiの誘導スケールです。最もノイズの強いステップが0、最後がsteps - 1です。
    """
    return 3.0


spent = plan_cost([scale_at(i) for i in range(steps)])
if spent > budget:
    print(t("l01.too_dear", spent=spent, budget=budget))
elif tier == "gpu":
    print(t("l01.portraits_only"))
else:
    wanted = l01.orders(lab.sizes.prompts)
    asked = encode_prompts(pipe, [words.text for _, words in wanted])
    made = my_sampler(asked, image_generators(len(wanted), lab.seed + 7), steps, scale_at)
    scored = l01.faithfulness(l01.networks(lab.device).reader, made, wanted)
    half = 1.96 * scored.std(ddof=1) / len(scored) ** 0.5
    print(t("l01.open_score", spent=spent, score=scored.mean(), half=half))

# %% [markdown] lang="en" uid="map" pair="f474a4ea"
# ## 9. Paper, article, your numbers
#
# | in the articles | here |
# |---|---|
# | source of noise, refined iteratively | initial latents, DDIM steps |
# | CFG | classifier-free guidance, guidance scale |
# | fine-tuning | further steps on the loss of section 3 |
# | "attention" to other pixels | self-attention |

# %% [markdown] lang="ja" uid="map" pair="dcd3bc69"
# ## 9. 論文、記事、自分の数値
#
# | 記事の言葉 | この教材 |
# |---|---|
# | ノイズ源を反復的に洗練する | 初期潜在変数、DDIMのステップ |
# | CFG | 分類器なし誘導、誘導スケール |
# | 『微調整』 | ファインチューニング(第3節の損失関数による追加学習) |
# | ほかのピクセルに「注意」を向ける | 自己注意 |

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz()
