# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("01", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="forward" pair="834e8385"
# ## 1. The forward process
#
# A clean latent $x_0$ is mixed with noise $\epsilon$: $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$. The schedule
# $\bar\alpha_t$ falls from almost 1 to almost 0. Write `add_noise`; `alpha_bar` is one number.

# %% [markdown] lang="ja" uid="forward" pair="cd9cf4a1"
# ## 1. 拡散過程
#
# ノイズのない潜在変数 $x_0$ にノイズ $\epsilon$ を混ぜます: $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon$。スケジュール
# $\bar\alpha_t$ はほぼ1からほぼ0まで下がります。`add_noise` を書いてください。`alpha_bar` は1つの数値です。


# %% uid="add-noise" tags=["exercise"] exercise="add_noise"
def add_noise(x0, noise, alpha_bar):
    """en: x_t from x0 and noise of the same shape, at a level given by one number.
    ja: x0 と、同じ形の noise から x_t を作ります。alpha_bar は1つの数です。
    """
    # BEGIN SOLUTION
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
    # END SOLUTION


# %% uid="add-noise-check" tags=["check"]
lab.check("add_noise")
add_noise = lab.use("add_noise")

# %% uid="forward-picture"
import torch

from labkit.figures import curve_with_interval, heatmap_overlay, image_grid, strips
from labkit.diffusion import decode_latents, encode_images, image_generators, sample
from labkit.models import load_pipeline
from labkit.portraits import caption, random_caption, render_tensor, sample_specs

pipe = load_pipeline(tier, lab.device)
size = pipe.unet.config.sample_size * 8
specs = sample_specs(lab.sizes.portraits, seed=lab.seed)
alphas = pipe.scheduler.alphas_cumprod
with torch.no_grad():
    x0 = encode_images(pipe, render_tensor(specs, size))
noise = torch.randn(x0.shape, generator=lab.generator()).to(x0)
levels = [1, 200, 400, 600, 800, 999]
with torch.no_grad():
    noised = torch.cat([decode_latents(pipe, add_noise(x0[:1], noise[:1], float(alphas[k]))) for k in levels])
image_grid(noised.clamp(-1, 1), captions=[f"t = {k}" for k in levels], columns=6, title=t("l01.forward"))

# %% [markdown] lang="en" uid="predict" pair="036c3d20"
# ## 2. What the U-Net predicts
#
# The U-Net is asked for the noise. From its answer $\hat\epsilon$ follows a guess of the clean latent,
# $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\epsilon)/\sqrt{\bar\alpha_t}$. Write `predict_x0`.

# %% [markdown] lang="ja" uid="predict" pair="fca5dbc6"
# ## 2. U-Net は何を予測するのか
#
# U-Net が予測するのはノイズです。予測 $\hat\epsilon$ からは、元の潜在変数の推定値
# $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\epsilon)/\sqrt{\bar\alpha_t}$ が得られます。`predict_x0` を書いてください。


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
rows = {t("l01.noised"): list(noised.clamp(-1, 1)), t("l01.guess"): list(torch.cat(guesses).clamp(-1, 1))}
strips(rows, title=t("l01.guess_title"))

# %% uid="predict-error"
per_portrait = torch.stack(errors, 1).cpu().numpy()  # [portraits, levels]
curve_with_interval(
    levels,
    {t("l01.noise_error"): per_portrait},
    xlabel=t("l01.timestep"),
    ylabel=t("l01.noise_error_axis"),
    title=t("l01.noise_error_title"),
)

# %% [markdown] lang="en" uid="ddim" pair="9f41efd1"
# ## 3. DDIM by hand
#
# A deterministic DDIM step guesses $\hat x_0$ and mixes it again with the same $\hat\epsilon$ at the next lower level:
# $x_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{1-\bar\alpha_{t'}}\,\hat\epsilon$. Twenty such steps are a sampler.

# %% [markdown] lang="ja" uid="ddim" pair="0fa12ccf"
# ## 3. DDIM を自分で書く
#
# 決定論的な DDIM の1ステップでは、$\hat x_0$ を推定し、同じ $\hat\epsilon$ を使って1つ下のノイズレベルで混ぜ直します:
# $x_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{1-\bar\alpha_{t'}}\,\hat\epsilon$。これを20回繰り返せばサンプラーになります。


# %% uid="ddim-step" tags=["exercise"] exercise="ddim_step"
def ddim_step(x_t, eps, alpha_bar, alpha_bar_next):
    """en: One deterministic DDIM step from level alpha_bar to alpha_bar_next.
    ja: レベル alpha_bar から alpha_bar_next へ、決定論的な DDIM で1ステップ進みます。
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

first = encode_prompts(pipe, prompts[:1])
x = initial_latents(pipe, image_generators(1, lab.seed))
with torch.no_grad():
    for now, following in ddim_timesteps(pipe.scheduler, lab.sizes.steps):
        eps = predict_noise(pipe, x, now, first, guidance_scale=lab.sizes.guidance)
        level = alphas[following] if following >= 0 else pipe.scheduler.final_alpha_cumprod
        x = ddim_step(x, eps, float(alphas[now]), float(level))
    mine = decode_latents(pipe, x).clamp(-1, 1)
options = {"steps": lab.sizes.steps, "guidance_scale": lab.sizes.guidance}
theirs = sample(pipe, prompts[:1], generators=image_generators(1, lab.seed), **options).clamp(-1, 1)
apart = float((mine - theirs).abs().max())
lab.verdict(t("l01.same_picture", value=apart), apart < 1e-3)
image_grid(torch.cat([mine, theirs]), captions=[t("l01.by_hand"), t("l01.by_library")], columns=2)

# %% [markdown] lang="en" uid="guidance" pair="f24115ba"
# ## 4. Guidance: faithful or varied?
#
# Classifier-free guidance pushes the prediction away from that of the empty prompt. Faithfulness is measured: the AttributeReader reads every
# picture, and only attributes that the prompt names count. It reads portraits alone, so this section uses PortraitSD on every tier. Variety is
# the standard deviation of a pixel among pictures of one prompt. The bands are 95 % intervals over prompts.

# %% [markdown] lang="ja" uid="guidance" pair="e1c6a2c1"
# ## 4. 誘導スケール: 忠実度か多様性か
#
# 分類器なし誘導は、空のプロンプトの予測から離れる方向へ予測を押し出します。忠実度は実測します。AttributeReader がすべての画像を読み取り、
# プロンプトが指定した属性だけを採点します。読み取れるのはポートレートだけなので、この節ではどの tier でも PortraitSD を使います。
# 多様性は、同じプロンプトの画像間での画素値の標準偏差です。帯はプロンプト単位の95%区間です。

# %% uid="guidance-run" tags=["slow"]
import numpy as np

from labkit.models import load_reader

portrait_pipe, reader = load_pipeline("cpu", lab.device), load_reader(lab.device)
rng = np.random.default_rng(lab.seed)
described = [(spec, random_caption(spec, rng)) for spec in sample_specs(lab.sizes.prompts, seed=lab.seed + 1)]
# en: some captions name nothing
# ja: 何も指定しないキャプションもあります
judged, named = zip(*[(spec, c) for spec, c in described if c.named], strict=True)
copies = lab.sizes.copies
texts = [c.text for c in named for _ in range(copies)]
scales = [1.0, 2.0, 3.0, 5.0, 8.0]


def at_scale(scale):
    """en: Faithfulness and variety at one guidance scale: one number per prompt each.
    ja: ある誘導スケールでの忠実度と多様性です。どちらもプロンプト1つにつき1つの値です。
    """
    pictures = sample(
        portrait_pipe,
        texts,
        generators=image_generators(len(texts), lab.seed),
        steps=lab.sizes.steps,
        guidance_scale=scale,
        batch_size=32,
    ).cpu()
    right = reader.correct(pictures, [s for s in judged for _ in range(copies)])
    score = [np.mean([right[a][i].item() for a in named[i // copies].named]) for i in range(len(texts))]
    spread = pictures.reshape(-1, copies, *pictures.shape[1:]).std(1).mean((1, 2, 3)).numpy()
    return np.reshape(score, (-1, copies)).mean(1), spread


bar = lab.progress_bar(scales, t("l01.guidance_scale"), len(scales))
faithful, varied = zip(*[lab.keep("guidance", at_scale, scale) for scale in bar], strict=True)


def with_interval(rows):
    """en: Mean and 95 % interval over prompts for each scale.
    ja: スケールごとに、プロンプト単位の平均と95%区間を返します。
    """
    rows = np.asarray(rows)
    mean, half = rows.mean(1), 1.96 * rows.std(1, ddof=1) / rows.shape[1] ** 0.5
    return mean, mean - half, mean + half


curve_with_interval(
    scales,
    {t("l01.faithfulness"): with_interval(faithful), t("l01.variety"): with_interval(varied)},
    xlabel=t("l01.guidance_scale"),
    ylabel=t("l01.share_or_spread"),
    title=t("l01.guidance_title", prompts=len(judged), copies=copies),
)

# %% uid="guidance-claim"
gain = faithful[scales.index(3.0)] - faithful[scales.index(1.0)]
margin = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
interval = (float(gain.mean() - margin), float(gain.mean() + margin))
lab.claim("guidance_helps", measured=t("l01.m_gain"), value=float(gain.mean()), interval=interval, seeds=[seed])

# %% uid="guidance-widget" tags=["widget"]
from labkit.figures.widgets import explore, slider


def guided(scale):
    pictures = sample(
        pipe,
        prompts[:4],
        generators=image_generators(4, lab.seed),
        steps=lab.sizes.steps,
        guidance_scale=scale,
    )
    return image_grid(pictures.clamp(-1, 1), captions=prompts[:4], columns=4)


explore(guided, {"scale": slider(t("l01.guidance_scale"), 1.0, 10.0, 3.0, 0.5)})

# %% [markdown] lang="en" uid="attention" pair="833aa4ba"
# ## 5. Where attention looks
#
# Cross-attention connects places of the picture with words; self-attention connects places with places. A small processor computes the same
# as the original one and keeps the weights. It is put in, used once, and taken out again.

# %% [markdown] lang="ja" uid="attention" pair="e36f1e4c"
# ## 5. 注意はどこを見ているか
#
# 交差注意は画像の位置と単語を、自己注意は画像の位置どうしを結び付けます。もとの処理と同じ計算をしながら注意の重みを
# 記録する小さなプロセッサーを書き、差し替えて1回だけ使い、元に戻します。


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
        weights = attn.get_attention_scores(query, key, attention_mask)  # [rows * heads, queries, keys]
        self.maps.append(weights.unflatten(0, (-1, attn.heads)).mean(1).float().cpu())
        return attn.to_out[0](attn.batch_to_head_dim(weights @ value))


def attention_maps(kind, x_t, timestep, condition):
    """en: Mean map of the outermost blocks; kind is "attn1" (self) or "attn2" (cross).
    ja: いちばん外側のブロックの注意マップを平均します。kind は "attn1"(自己注意)か "attn2"(交差注意)です。
    """
    recorder, before = Recorder(), pipe.unet.attn_processors
    chosen = {k: recorder if f".{kind}." in k and k.startswith("down_blocks.0") else v for k, v in before.items()}
    pipe.unet.set_attn_processor(chosen)
    try:
        with torch.no_grad():
            predict_noise(pipe, x_t, timestep, condition)
    finally:
        pipe.unet.set_attn_processor(before)
    return torch.stack(recorder.maps).mean(0)[0]  # [queries, keys]


sentence = "a happy person with red hair and glasses, wearing blue clothes"
picture = sample(pipe, [sentence], generators=image_generators(1, lab.seed), **options)
condition = encode_prompts(pipe, [sentence])
with torch.no_grad():
    clean = encode_images(pipe, picture.clamp(-1, 1))
x_t = add_noise(clean, torch.randn(clean.shape, generator=lab.generator(1)).to(clean), float(alphas[300]))
cross = attention_maps("attn2", x_t, 300, condition)
side = round(len(cross) ** 0.5)
tokens = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(sentence)["input_ids"])
# en: mood, hair, glasses, clothes
# ja: 表情、髪、眼鏡、服
words = [sentence.replace(",", "").split()[k] for k in (1, 5, 7, 10)]
places = [tokens.index(word + "</w>") for word in words]
heat = [cross[:, k].reshape(side, side) / cross[:, k].max() for k in places]
heatmap_overlay([picture[0].clamp(-1, 1)] * 4, heat, captions=words, label=t("l01.attention"), columns=4)

# %% uid="self-attention"
itself = attention_maps("attn1", x_t, 300, condition)
spots = {t("l01.mouth"): (0.62, 0.5), t("l01.corner"): (0.05, 0.05), t("l01.clothes"): (0.95, 0.5)}
heat = []
for down, right in spots.values():
    row = itself[int(down * side) * side + int(right * side)].reshape(side, side)
    heat.append(row / row.max())
heatmap_overlay([picture[0].clamp(-1, 1)] * 3, heat, captions=list(spots), label=t("l01.attention"), columns=3)

# %% [markdown] lang="en" uid="latents" pair="f1f77b7a"
# ## 6. The latent space of the VAE
#
# The VAE compresses a picture into an eighth of its side. What does it lose, and what lies between two portraits: in pixels, and in latents?

# %% [markdown] lang="ja" uid="latents" pair="c6a2a152"
# ## 6. VAE の潜在空間
#
# VAE は画像の一辺を8分の1に圧縮します。何が失われるのでしょうか。また、2枚のポートレートの中間には何があるでしょうか。画素と潜在変数で比べます。

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

# %% [markdown] lang="en" uid="cost" pair="99e782e4"
# ## 7. What does a picture cost?
#
# The unit of this course is one U-Net row: one image through the U-Net once. Predict: four images, guidance 3, as many steps as above.

# %% [markdown] lang="ja" uid="cost" pair="1c33006b"
# ## 7. 画像1枚のコスト
#
# この教材では、1枚の画像を U-Net に1回通すことをコストの単位とし、これを1回(NFE)と数えます。誘導スケール3、上と同じステップ数で4枚生成すると
# 何回になるか、予想してください。

# %% uid="cost-predict" tags=["quiz"]
lab.predict("rows")

# %% uid="cost-run"
from labkit.diffusion import NFELedger

with NFELedger(pipe) as ledger:
    sample(pipe, prompts[:4], generators=image_generators(4, lab.seed), steps=lab.sizes.steps, guidance_scale=3.0)
print(t("l01.cost", rows=ledger.nfe, steps=lab.sizes.steps, seconds=ledger.seconds))
lab.reveal("rows", ledger.nfe / (4 * lab.sizes.steps))

# %% uid="quiz" tags=["quiz"]
lab.quiz()
