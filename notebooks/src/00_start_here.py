# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("00", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% [markdown] lang="en" uid="environment" pair="b14d2ea5"
# ## 1. Is this machine ready?
#
# The cell below looks at Python, packages, GPU, fonts and disk. Each problem comes with what to do about it.

# %% [markdown] lang="ja" uid="environment" pair="2ca36a4f"
# ## 1. 環境の確認
#
# 次のセルで Python、パッケージ、GPU、フォント、ディスクの状態を調べます。問題があれば、対処方法も表示されます。

# %% uid="check-environment"
from labkit.envcheck import show_environment

findings = show_environment(tier)
# %% [markdown] lang="en" uid="world" pair="d49620cc"
# ## 2. A world whose ground truth we know
#
# Everything in this course runs on drawn portraits. A portrait is decided by a handful of attributes, so every picture has an exact answer to
# the question what it shows. That is what makes claims measurable here.

# %% [markdown] lang="ja" uid="world" pair="eb905a26"
# ## 2. 正解が分かっている世界
#
# この教材では、イラストのポートレートを使います。ポートレートはいくつかの属性だけで決まるため、「何が描かれているか」には必ず正解があります。
# だからこそ、この教材では主張を数値で確かめられます。

# %% uid="portraits"
from labkit.figures import image_grid
from labkit.portraits import ATTRIBUTES, attribute_name, caption, differences, render, sample_specs, value_name

specs = sample_specs(lab.sizes.portraits, seed=lab.seed)
shown = [t("l00.comma").join(value_name(a, getattr(s, a), lang) for a in ("mood", "hair_color")) for s in specs]
image_grid([render(s) for s in specs], captions=shown, columns=8, title=t("l00.world"))

# %% [markdown] lang="en" uid="captions" pair="bb4c0828"
# A **caption** puts a portrait into words and may leave attributes open. It knows which ones it names; faithfulness is judged on those alone.

# %% [markdown] lang="ja" uid="captions" pair="3c86ee2a"
# **キャプション**はポートレートを言葉で表したものです。一部の属性には触れないこともあります。指定した属性は `caption.named` に
# 記録されていて、忠実度はその属性だけで評価します。

# %% uid="caption"
for drop in ([], ["skin", "background", "clothes"], [a for a in ATTRIBUTES if a != "mood"]):
    words = caption(specs[0], lang, drop=drop)
    print(words.text)
    print("  ", t("l00.open", names=t("l00.comma").join(attribute_name(a, lang) for a in drop)))

# %% uid="difference"
for sentence in differences(specs[0], specs[1], lang):
    print(sentence)

# %% [markdown] lang="en" uid="warm-up" pair="6ec918f9"
# ## 3. Warm-up: how exercises work
#
# Replace the body of `open_attributes` so that it returns the names of the attributes that a caption leaves open, in the order of `ATTRIBUTES`.
# Then run the cell after it. Stuck? The buttons below its answer give hints, three levels in all, and a solution; without buttons, type
# `lab.hint()` or `lab.solution()`. If you go on without a solution, `lab.use` lends you the reference and says so: every lesson runs to its end.

# %% [markdown] lang="ja" uid="warm-up" pair="6c746e59"
# ## 3. ウォームアップ: 課題の進め方
#
# `open_attributes` の中身を書き換え、キャプションが指定していない属性の名前を `ATTRIBUTES` の順に返してください。書けたら次のセルを実行します。
# 行き詰まったら、チェック結果の下のボタンでヒント(全3段階)と解答例を表示できます。ボタンがない環境では `lab.hint()` や `lab.solution()` と
# 入力してください。解かずに先へ進むと `lab.use` が参照実装を使い、その旨を表示します。どのレッスンも最後まで実行できます。


# %% uid="open-attributes" tags=["exercise"] exercise="open_attributes"
def open_attributes(caption):
    """en: The attributes that a caption leaves open, in the order of ATTRIBUTES.
    ja: キャプションが指定していない属性を、ATTRIBUTES の順に返します。
    """
    # BEGIN SOLUTION
    return [name for name in ATTRIBUTES if name not in caption.named]
    # END SOLUTION


# %% uid="open-attributes-check" tags=["check"]
lab.check("open_attributes")
open_attributes = lab.use("open_attributes")

# %% [markdown] lang="en" uid="first-picture" pair="43dc35f8"
# ## 4. The first pictures from words
#
# `load_pipeline` gives a small but genuine Stable Diffusion on the smoke and cpu tiers, and Stable Diffusion 1.5 on the gpu tier. The prompt
# below names only a mood. Predict first, then run.

# %% [markdown] lang="ja" uid="first-picture" pair="31ed419a"
# ## 4. 言葉から最初の画像を作る
#
# `load_pipeline` は、tier が smoke と cpu なら小さいながらも本物の Stable Diffusion を、gpu なら Stable Diffusion 1.5を読み込みます。
# 次のプロンプトは表情だけを指定しています。結果を予想してから実行してください。

# %% uid="predict" tags=["quiz"]
lab.predict("vary")

# %% uid="generate"
from labkit.diffusion import image_generators, sample
from labkit.models import load_pipeline
from labkit.portraits import describe

pipe = load_pipeline(tier, lab.device)


def portraits(prompt, count, first_seed=0):
    """en: Images [count, 3, H, W] in [-1, 1] of one prompt, one seed each.
    ja: 1つのプロンプトから count 枚の画像 [count, 3, H, W](値は [-1, 1])を、シードを1つずつ変えて生成します。
    """
    generators = image_generators(count, first_seed)
    options = {"steps": lab.sizes.steps, "guidance_scale": lab.sizes.guidance}
    return sample(pipe, [prompt] * count, generators=generators, **options)


prompt = describe({"mood": "happy"})
images = portraits(prompt.text, lab.sizes.images)
image_grid(images, columns=4, title=t("l00.same_prompt"))

# %% uid="reveal"
# en: standard deviation of a pixel over the pictures, in units of [-1, 1]
# ja: 画像間での画素の標準偏差(単位は [-1, 1])
spread = float(images.std(dim=0).mean())
print(t("l00.spread", spread=spread))
lab.reveal("vary", "open" if spread > 0.02 else "nothing")

# %% [markdown] lang="en" uid="cold" pair="2a2a8bfe"
# How long does a first picture take on this machine from a cold start? A fresh Python process imports everything, loads the model and makes one.

# %% [markdown] lang="ja" uid="cold" pair="0919aba9"
# この環境では、何も読み込んでいない状態から最初の1枚まで何秒かかるでしょうか。新しい Python プロセスで、インポート、モデルの読み込み、生成までを計測します。

# %% uid="cold-start"
import subprocess
import sys
import time

program = f"""
from labkit.diffusion import image_generators, sample
from labkit.models import load_pipeline
pipe = load_pipeline({tier!r}, {str(lab.device)!r})
sample(pipe, ["a portrait of a person"], generators=image_generators(1, 0), steps={lab.sizes.steps})
"""
begin = time.perf_counter()
subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
print(t("l00.seconds", seconds=time.perf_counter() - begin))

# %% [markdown] lang="en" uid="compose" pair="3f44c926"
# ## 5. Compose a prompt
#
# Choose attributes or leave them open, and look at four portraits. The seeds stay the same, so what changes is due to your words.

# %% [markdown] lang="ja" uid="compose" pair="8cbe8cb6"
# ## 5. プロンプトを組み立てる
#
# 属性を選ぶか、指定なしのままにして、4枚のポートレートを見てみましょう。シードは同じなので、変化は言葉によるものです。

# %% uid="widget" tags=["widget"]
from labkit.figures.widgets import choice, explore


def compose(mood, hair_color, background):
    chosen = {"mood": mood, "hair_color": hair_color, "background": background}
    prompt = describe({a: v for a, v in chosen.items() if v})
    return image_grid(portraits(prompt.text, 4), columns=4, title=prompt.text)


def values(attribute):
    """en: What the list offers: open, then every value.
    ja: 選択肢の一覧です。先頭は「指定なし」で、その後に属性の値が並びます。
    """
    offered = {value_name(attribute, v, lang): v for v in ATTRIBUTES[attribute] if v != "none"}
    return {t("l00.anything"): ""} | offered


explore(
    compose,
    {
        "mood": choice(t("l00.mood"), values("mood")),
        "hair_color": choice(t("l00.hair"), values("hair_color")),
        "background": choice(t("l00.background"), values("background")),
    },
)

# %% [markdown] lang="en" uid="tiers" pair="2a95c24b"
# ## 6. Tiers
#
# `tier` in the first cell chooses the size of everything: `smoke` (tests, seconds), `cpu` (a laptop, minutes), `gpu` (a CUDA GPU;
# the README lists what each lesson loads there). The code is the same. A last question:

# %% [markdown] lang="ja" uid="tiers" pair="46537d7f"
# ## 6. tier(実行規模)
#
# パラメータのセルの `tier` で全体の規模が決まります。`smoke` はテスト用(数秒)、`cpu` はノートPC向け(数分)、`gpu` は CUDA 対応GPU向けです。
# 各レッスンが gpu で読み込むモデルは、READMEの表にまとめています。コードはどの tier でも同じです。最後に確認問題を1つ解いてみましょう。

# %% uid="quiz" tags=["quiz"]
lab.quiz("open")
