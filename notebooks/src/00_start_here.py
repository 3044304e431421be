# %% uid="parameters" tags=["parameters"]
tier = "cpu"
lang = "en"
seed = 0
strict = False
interactive = True

# %% uid="setup" tags=["setup"]
from labkit.course import start, t

lab = start("00", tier=tier, lang=lang, seed=seed, strict=strict, interactive=interactive)

# %% uid="first-picture"
from labkit.figures import image_grid
from labkit.diffusion import image_generators, sample
from labkit.models import load_pipeline
from labkit.portraits import describe, unknown_words

# en: your words; change them and run the cell again
# ja: あなたの言葉。書き換えて、セルをもう一度実行してみてください
my_words = t("l00.my_words")

pipe = load_pipeline(tier, lab.device)


def portraits(words, count, first_seed=0):
    """en: Images [count, 3, H, W] in [-1, 1] of one prompt, one seed each.
    ja: 1つのプロンプトからcount枚の画像 [count, 3, H, W](値は [-1, 1])を、シードを1つずつ変えて生成します。
    """
    generators = image_generators(count, first_seed)
    options = {"steps": lab.sizes.steps, "guidance_scale": lab.sizes.guidance}
    return sample(pipe, [words] * count, generators=generators, **options)


def paint(words, count=4, first_seed=0):
    """en: Pictures of a prompt, and a warning about the words that the model has never seen.
    ja: プロンプトの画像を描きます。モデルが見たことのない単語があれば警告します。
    """
    unknown = unknown_words(words) if tier != "gpu" else []
    if unknown:
        print(t("l00.unknown", words=", ".join(unknown)))
    return image_grid(portraits(words, count, first_seed), columns=4, title=words)


paint(my_words)

# %% [markdown] lang="en" uid="first-reading" pair="64e3b98b"
# **What you see.** A model has painted four portraits of your sentence, on this machine, in a few seconds. The sentence is called the **prompt**. All four have what it says; in everything that it leaves open, clothes, background, hair style, they differ. What makes them differ is the **seed**, the number that the random noise of the beginning is drawn from: same words, same
# seed, same picture. Change `my_words` above and run the cell again. (In English: the model has never read another language.)
#
# ## 1. The question of this course
#
# The articles of this course report on methods that make such a model do what people want: choose typical or rare outputs (pseudo density), learn from likes (FABRIC), learn from comparisons (DPO), put differences into words (PC-CLIP). One sentence stands in all of them in one form or another, most plainly in the dialogue「拡散モデルのアラインメント」: used as it is, the model's output
# *departs from what was expected*; alignment fits it to people's intentions. How would one measure that? This lesson lays the ground: a world in which "what was expected" has an exact answer. Afterwards you can say what the model knows, what it cannot know, and how faithful a picture is. And you know the tools of every lesson: predictions, checks, hints, open tasks.

# %% [markdown] lang="ja" uid="first-reading" pair="659b853c"
# **図から読み取れること。** このコンピュータの上で、モデルが数秒のうちに、あなたの文から4枚のポートレートを描きました。この文を**プロンプト**と呼びます。4枚とも文のとおりですが、服、背景、髪型など、文が触れていないところは異なります。違いを生むのは**シード**、つまり最初のランダムなノイズを決める番号です。言葉とシードが同じなら、同じ画像になります。上の
# `my_words` を書き換えて、もう一度実行してみてください(英語で書いてください。モデルはほかの言語を読んだことがありません)。
#
# ## 1. この教材の問い
#
# この教材で扱う記事が紹介しているのは、こうしたモデルを人の望みどおりに動かす方法です。典型的な出力や珍しい出力を選ぶ(擬似密度)、「いいね」から学ぶ(FABRIC)、比較から学ぶ(DPO)、差を言葉にする(PC-CLIP)。どの記事にも共通する問題意識を最もはっきり述べているのが、対話記事『拡散モデルのアラインメント』です。そのまま使うと出力が*期待とずれる*ので、
# アラインメントによって人の意図に合わせる、というものです。では、ずれはどう測ればよいのでしょうか。このレッスンで、その土台を作ります。「期待されたもの」に正確な答えがある世界です。終わるころには、モデルが何を知っていて、何を知りえないか、画像がどれだけ忠実かを説明できるようになります。予想、チェック、ヒント、自由課題といった、どのレッスンでも使う道具にも慣れます。

# %% [markdown] lang="en" uid="cannot-know" pair="e94a81d0"
# ## 2. What it cannot know
#
# The model has seen fewer than fifty kinds of things: nine attributes of a drawn person with a few values each, and nothing else. What will it paint for "a cat"? Predict, then run.

# %% [markdown] lang="ja" uid="cannot-know" pair="16f6ab68"
# ## 2. モデルが知りえないこと
#
# このモデルが見てきたものは、50種類足らずしかありません。イラストの人物の9個の属性に、値が数個ずつあるだけです。「a cat」と頼んだら何を描くでしょうか。予想してから実行してください。

# %% uid="cat-predict" tags=["quiz"]
lab.predict("cat")

# %% uid="cat"
paint("a cat")

# %% uid="cat-reveal"
lab.reveal("cat", "other" if tier == "gpu" else "person")

# %% [markdown] lang="en" uid="cat-reading" pair="6293e057"
# **What you see.** Portraits of people, well drawn, and no complaint from the model. The warning does not come from it: our code compared the words with those of all captions in training. **Why.** To the network a prompt is a row of numbers, and *every* row of numbers leads to a picture. The word "cat" is spelt in letters that mean nothing in particular, so what is left is "any portrait". **What would change it.** Only training pictures with cats. (On tier gpu you have Stable Diffusion,
# which has seen cats and a few hundred million other things. It has gaps all the same, and nobody has the list.)
#
# Remember this when an article says that a model "understands" a request. A generative model has no way to say *I do not know this*; somebody else has to check. Here `paint` warns you; in the field nobody does.

# %% [markdown] lang="ja" uid="cat-reading" pair="00187abb"
# **図から読み取れること。** 出てきたのは、よく描けた人物のポートレートです。モデルはエラーも警告も出しません。警告を出したのは、こちらのコードです。プロンプトの単語を、学習に使った全キャプションの単語と照合しました。**理由。** ネットワークにとってプロンプトは数値の列で、*どんな*数値の列からも画像ができます。「cat」は特に意味を持たない文字の並びとして読まれるので、残るのは「何かのポートレート」という情報だけです。**何を変えればよいか。** 猫の画像で
# 学習するしかありません(tierがgpuなら、猫もほかの無数のものも見てきたStable Diffusionが動きます。それでも知らないものはあり、その一覧は誰も持っていません)。
#
# 記事に、モデルが要求を「理解する」と書かれていたら、この例を思い出してください。生成モデルは「*これは知りません*」と言えません。確かめるのは、ほかの誰かの仕事です。ここでは `paint` が警告しますが、実務では誰も警告してくれません。

# %% [markdown] lang="en" uid="world" pair="afe9d31a"
# ## 3. A world whose ground truth we know
#
# Everything in this course runs on drawn portraits. A portrait is decided by nine **attributes**, so every picture has an exact answer to the question what it shows. That is what makes claims measurable here: on photographs one would have to ask people, on portraits one reads it off.

# %% [markdown] lang="ja" uid="world" pair="d554b545"
# ## 3. 正解が分かっている世界
#
# この教材では、イラストのポートレートを使います。ポートレートは9個の**属性**だけで決まるので、「何が描かれているか」には必ず正確な答えがあります。だからこそ、この教材では主張を数値で確かめられます。写真なら人に尋ねるしかありませんが、ポートレートなら読み取れます。

# %% uid="portraits"
from labkit.portraits import ATTRIBUTES, attribute_name, caption, differences, render, sample_specs, value_name

specs = sample_specs(lab.sizes.portraits, seed=lab.seed)
shown = [t("l00.comma").join(value_name(a, getattr(s, a), lang) for a in ("mood", "hair_color")) for s in specs]
for attribute, values in ATTRIBUTES.items():
    known = t("l00.comma").join(
        value_name(attribute, v, lang) for v in values if (attribute, v) != ("hair_color", "none")
    )
    print(f"{attribute_name(attribute, lang)}: {known}")
image_grid([render(s) for s in specs], captions=shown, columns=8, title=t("l00.world"))

# %% [markdown] lang="en" uid="captions" pair="ab592884"
# **Reading.** The list is all that can be said in this world. Two of its art styles, *outlined* and *hand-drawn*, were kept from the model: try `paint("a hand-drawn portrait of a person")`. The pictures are *renders*: drawn by a program from their attributes, without any network. The model has learnt from such pictures and their captions. In later lessons renders stand for "the real data".
#
# ### Captions leave things open
#
# A **caption** puts a portrait into words, and it need not name everything. So a caption object has two parts: its `.text`, and `.named`, the set of attributes that the text names. The rest is *open*. Look at three captions of the same portrait before you go on: complete, with three attributes dropped, and with all but the mood dropped.

# %% [markdown] lang="ja" uid="captions" pair="5a7dc5f4"
# **図の読み方。** 上の一覧が、この世界で言えることのすべてです。このうち2つの画風、*outlined*(線画調)と*hand-drawn*(手描き調)は、モデルに見せていません。`paint("a hand-drawn portrait of a person")` を試してみてください。画像は*レンダリング*、つまり、ネットワークを使わずにプログラムが属性から描いたものです。モデルは、こうした画像とキャプションから学びました。後のレッスンでは、レンダリング画像を「本物のデータ」とみなします。
#
# ### キャプションはすべてを語らない
#
# **キャプション**はポートレートを言葉で表したものですが、すべてに触れるとは限りません。そこで、キャプションのオブジェクトは2つの部分からできています。文そのものの `.text` と、文が指定している属性の集合 `.named` です。残りは*未指定*です。先へ進む前に、同じポートレートの3つのキャプションを見てください。全部を述べたもの、3つの属性を省いたもの、表情以外をすべて省いたものです。

# %% uid="caption"
for drop in ([], ["skin", "background", "clothes"], [a for a in ATTRIBUTES if a != "mood"]):
    words = caption(specs[0], lang, drop=drop)
    print(words.text)
    print("   .named:", ", ".join(a for a in ATTRIBUTES if a in words.named))
for line in differences(specs[0], specs[1], lang):
    print(line)

# %% [markdown] lang="en" uid="warm-up" pair="ec1c25d5"
# The last lines say how two portraits differ: sentences of that kind are the subject of lesson 07.
#
# ### Warm-up: how exercises work
#
# Replace the body of `open_attributes` so that it returns the names of the attributes that a caption leaves open, in the order of `ATTRIBUTES` (a dictionary: going through it gives the names). By hand: of a caption that names only the mood, eight attributes are open. Then run the cell after it. Stuck? The buttons below its answer give hints, three levels in all, and a solution; without buttons, type
# `lab.hint()` or `lab.solution()`. If you go on without a solution, `lab.use` lends you the reference and says so: every lesson runs to its end.

# %% [markdown] lang="ja" uid="warm-up" pair="a5473a4e"
# 最後の数行は、2枚のポートレートの違いを述べています。このような文は、レッスン07の主題です。
#
# ### ウォームアップ: 課題の進め方
#
# `open_attributes` の中身を書き換え、キャプションが指定していない属性の名前を `ATTRIBUTES` の順に返してください(`ATTRIBUTES` は辞書で、順に取り出すと名前が得られます)。手計算の例: 表情だけを指定したキャプションなら、未指定の属性は8個です。書けたら次のセルを実行します。行き詰まったら、チェック結果の下のボタンでヒント(全3段階)と解答例を表示できます。ボタンがない環境では
# `lab.hint()` や `lab.solution()` と入力してください。解かずに先へ進むと `lab.use` が参照実装を使い、その旨を表示します。どのレッスンも最後まで実行できます。


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

# %% [markdown] lang="en" uid="faithful" pair="7dd4c141"
# ## 4. How faithful is a picture?
#
# Somebody orders "a happy person with red hair". The picture shows a happy person with red hair and sunglasses. Is that wrong? No: nobody said anything about glasses, and what is left open cannot be wrong. So **faithfulness** is the share of the *named* attributes that the picture shows as asked. Two things are needed: what was asked, and what the picture shows. The second comes from the **AttributeReader**, a small network that reads all nine attributes off a portrait; on renders it is
# right in more than 99 % of the cases.
#
# Write `faithfulness(named, asked, read)`: `named` is a set of attribute names, `asked` and `read` are dictionaries from attribute to value. By hand: two named attributes, one of them right, give 0.5. A caption that names nothing is fulfilled by every picture: 1. The common mistake is to count all nine.

# %% [markdown] lang="ja" uid="faithful" pair="ec82a7cb"
# ## 4. 画像はどれだけ忠実か
#
# 「a happy person with red hair」という注文に対して、赤毛で笑顔、サングラスをかけた人物の画像が届きました。これは誤りでしょうか。いいえ。眼鏡については何も言われていません。指定されていないことに、誤りはありません。そこで**忠実度**を、*指定された*属性のうち、画像が指定どおりに示しているものの割合とします。必要なのは、何が指定されたかと、画像が何を示しているかです。後者は**AttributeReader**に尋ねます。ポートレートから9個の属性をすべて読み取る小さな
# ネットワークで、レンダリング画像に対する正解率は99%を超えます。
#
# `faithfulness(named, asked, read)` を書いてください。`named` は属性名の集合、`asked` と `read` は属性から値への辞書です。手計算の例: 指定が2個で、うち1個が正しければ0.5です。何も指定しないキャプションは、どの画像でも満たされるので1とします。よくある誤りは、9個すべてを数えてしまうことです。


# %% uid="faithfulness" tags=["exercise"] exercise="faithfulness"
def faithfulness(named, asked, read):
    """en: Share of the named attributes whose read value is the one asked for; 1 if none is named.
    ja: 指定された属性のうち、読み取った値が指定どおりだったものの割合です。指定がなければ1です。
    """
    # BEGIN SOLUTION
    return sum(asked[name] == read[name] for name in named) / len(named) if named else 1.0
    # END SOLUTION


# %% uid="faithfulness-check" tags=["check"]
lab.check("faithfulness")
faithfulness = lab.use("faithfulness")

# %% [markdown] lang="en" uid="vary" pair="bf34897b"
# Now measure. One prompt that names only a mood, eight seeds. What will differ between the pictures? Predict first, then run.

# %% [markdown] lang="ja" uid="vary" pair="754d1e84"
# では測ってみましょう。表情だけを指定したプロンプトで、シードを8通り試します。画像の間で何が変わるでしょうか。予想してから実行してください。

# %% uid="predict" tags=["quiz"]
lab.predict("vary")

# %% uid="generate"
from labkit.models import load_reader

reader = load_reader(lab.device)
prompt = describe({"mood": "happy"})
images = portraits(prompt.text, lab.sizes.images)
if tier == "gpu":
    scores = None
else:
    read = reader.describe(images)
    scores = [faithfulness(prompt.named, {"mood": "happy"}, one) for one in read]
    for a in ATTRIBUTES:
        print(t("l00.values_seen", attribute=attribute_name(a, lang), count=len({one[a] for one in read})))
image_grid(images, columns=4, title=t("l00.same_prompt"), scores=scores)

# %% uid="reveal"
# en: standard deviation of a pixel over the pictures, in units of [-1, 1]
# ja: 画像間での画素の標準偏差(単位は [-1, 1])
spread = float(images.std(dim=0).mean())
print(t("l00.spread", spread=spread))
lab.reveal("vary", "open" if spread > 0.02 else "nothing")

# %% [markdown] lang="en" uid="vary-reading" pair="e8239e5d"
# **What you see.** The named attribute has one value in nearly all pictures, the others several. The number under each picture is its faithfulness, from your function. **Why.** For the model "a happy person" stands for all portraits of happy people, and a seed picks one. **What would change it.** Words: every attribute that you name closes one freedom. That is why the course always says which attributes a prompt leaves open; a method that changes *those* may have changed
# what nobody asked about.

# %% [markdown] lang="ja" uid="vary-reading" pair="ab40b523"
# **図から読み取れること。** 指定した属性は、ほぼすべての画像で同じ値です。ほかの属性は、画像によって値が変わります。画像の下の数値は、自分の関数で求めた忠実度です。**理由。** モデルにとって「a happy person」は笑顔のポートレート全体を指し、シードがその中から1枚を選びます。**何を変えればよいか。** 言葉です。属性を1つ指定するごとに、自由度が1つ減ります。この教材で、プロンプトがどの属性を指定していないかを必ず示すのはこのためです。*未指定の*属性を変える
# 手法は、誰も頼んでいないものを変えたのかもしれません。

# %% [markdown] lang="en" uid="left" pair="c9a80d57"
# ### How much does a prompt leave to chance?
#
# One number says how free a prompt is: how many different portraits would fit it. If two attributes are open, one with 3 values and one with 5, any of the 3 may meet any of the 5. Write `portraits_left(named, choices)`: `named` is a set of attribute names, `choices` a dictionary from each attribute to its values. By hand: with x of 2 values and y of 3, a caption that
# names x fits 3 portraits.

# %% [markdown] lang="ja" uid="left" pair="6aaadc31"
# ### プロンプトはどれだけを偶然に任せるか
#
# プロンプトの自由さは、1つの数で表せます。当てはまるポートレートが何通りあるかです。未指定の属性が2つあり、値が3個と5個なら、3個のどれもが5個のどれとも組み合わさります。`portraits_left(named, choices)` を書いてください。`named` は属性名の集合、`choices` は属性から値の一覧への辞書です。手計算の例: xの値が2個、yの値が3個のとき、
# xを指定したキャプションに当てはまるのは3通りです。


# %% uid="portraits-left" tags=["exercise"] exercise="portraits_left"
import math


def portraits_left(named, choices):
    """en: Number of different portraits that fit a caption which names these attributes.
    ja: これらの属性を指定したキャプションに当てはまるポートレートが、何通りあるかを返します。
    """
    # BEGIN SOLUTION
    return math.prod(len(values) for name, values in choices.items() if name not in named)
    # END SOLUTION


# %% uid="portraits-left-check" tags=["check"]
lab.check("portraits_left")
portraits_left = lab.use("portraits_left")

# %% uid="portraits-left-use"
growing = {"mood": "happy", "hair_color": "red", "glasses": "glasses", "style": specs[0].style}
for k in range(len(growing) + 1):
    asked = describe(dict(list(growing.items())[:k])) if k else describe({})
    print(t("l00.left", words=asked.text, count=portraits_left(asked.named, ATTRIBUTES)))

# %% [markdown] lang="en" uid="left-reading" pair="20c3c816"
# **Reading.** Each named attribute divides the number by its values, and with four of nine named, thousands are still left. A seed picks one of them. Nobody has ever looked at all of them, neither you nor whoever trained the model. (A few cannot be drawn: bald heads have no colour.)

# %% [markdown] lang="ja" uid="left-reading" pair="42dddef5"
# **結果の読み方。** 属性を1つ指定するたびに、その値の個数で割った数になります。9個のうち4個を指定しても、まだ数千通り残っています。シードは、その中から1つを選びます。すべてを見た人は、あなたも、モデルを学習させた人も含めて、誰もいません(スキンヘッドには髪の色がないなど、描けない組み合わせも少しあります)。

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

# %% [markdown] lang="en" uid="gaps" pair="50a3d7c6"
# **Reading.** The seeds stay the same, so what changes when you choose is due to your words.
#
# ## 5. What the data never showed
#
# Unknown words are easy to find. A subtler gap: words that are all known, in a *combination* that never occurred. We left four combinations out of the training data on purpose, to see whether the model can put together what it has only seen apart. Which four? The data can tell you.
#
# *Idea.* If two values had nothing to do with each other, $n_v$ portraits with the one and $n_w$ with the other among $N$ would meet in about $n_v n_w / N$ portraits. Where ten or more are expected and none is there, somebody has kept them apart. Write `missing_pairs(rows, at_least)`: `rows` is a list of dictionaries from attribute to value; return all pairs `((attribute, value), (attribute, value))`,
# of two *different* attributes in the order of the dictionary, that never occur together although at least `at_least` are expected. By hand: of four rows, two with x = 1 and the other two with y = 1, you would expect $2\cdot 2/4 = 1$ with both; there is none, so the pair is missing for `at_least=1` and not for 2. This is the hardest exercise of the lesson (4/5); the hints help.

# %% [markdown] lang="ja" uid="gaps" pair="5cad7d0d"
# **図の読み方。** シードは同じなので、選択によって変わったところは、言葉によるものです。
#
# ## 5. データが一度も示さなかったもの
#
# 知らない単語は簡単に見つかります。もっと気付きにくい欠落があります。単語はすべて知っているのに、*組み合わせ*が一度も現れなかった場合です。学習データからは、4つの組み合わせを意図的に除いてあります。別々にしか見たことのないものを、モデルが組み合わせられるかどうかを調べるためです。どの4つでしょうか。データが教えてくれます。
#
# *考え方。* 2つの値が互いに無関係なら、$N$ 枚のうち一方が $n_v$ 枚、もう一方が $n_w$ 枚あるとき、両方を持つものは約 $n_v n_w / N$ 枚です。10枚以上あるはずなのに1枚もなければ、誰かが除いたと考えられます。`missing_pairs(rows, at_least)` を書いてください。`rows` は、属性から値への辞書のリストです。*異なる*2つの属性(辞書の順)の組 `((属性, 値), (属性, 値))` のうち、期待される枚数が
# `at_least` 以上なのに一度も同時に現れないものを、すべて返します。手計算の例: 4行のうち2行が x = 1、残りの2行が y = 1なら、両方を持つ行の期待値は $2\cdot 2/4 = 1$ ですが、実際は0行です。したがって、この組は `at_least=1` なら欠けており、2なら欠けているとはいえません。このレッスンで最も難しい課題です(4/5)。ヒントも使ってください。


# %% uid="missing-pairs" tags=["exercise"] exercise="missing_pairs"
def missing_pairs(rows, at_least):
    """en: Pairs ((attribute, value), (attribute, value)) that never meet in rows although at least so many should.
    ja: at_least 枚以上あるはずなのに、rows の中で一度も同時に現れない組 ((属性, 値), (属性, 値)) を返します。
    """
    # BEGIN SOLUTION
    having = {}
    for i, row in enumerate(rows):
        for item in row.items():
            having.setdefault(item, set()).add(i)
    place = {name: k for k, name in enumerate(rows[0])}
    items = sorted(having, key=lambda item: place[item[0]])
    return [
        (a, b)
        for i, a in enumerate(items)
        for b in items[i + 1 :]
        if a[0] != b[0] and len(having[a]) * len(having[b]) / len(rows) >= at_least and not having[a] & having[b]
    ]
    # END SOLUTION


# %% uid="missing-pairs-check" tags=["check"]
lab.check("missing_pairs")
missing_pairs = lab.use("missing_pairs")

# %% uid="gaps-run"
from labkit.models.paths import data_dir
from labkit.portraits import load_dataset

_, training = load_dataset(data_dir() / "portraits")
found = missing_pairs([spec.to_dict() for spec in training], 10)
# en: some styles cannot draw some values, and bald heads have no colour: rules of the pen, not of the data
# ja: 描けない値がある画風があり、スキンヘッドには髪の色がありません。これらはデータではなく、画材の制約です
chosen = [pair for pair in found if "style" not in {a for a, _ in pair} and "none" not in {v for _, v in pair}]
for (a, v), (b, w) in chosen:
    print(f"{value_name(a, v, lang)} + {value_name(b, w, lang)}")
pairs = chosen[:4] or [(("mood", "happy"),)]
rare = [describe(dict(pair)) for pair in pairs]
drawn = [portraits(words.text, 2) for words in rare]
scores = None
if tier != "gpu":
    asked = [dict(pair) for pair in pairs for _ in range(2)]
    read = [one for made in drawn for one in reader.describe(made)]
    scores = [faithfulness(set(what), what, one) for what, one in zip(asked, read, strict=True)]
image_grid(
    [picture for made in drawn for picture in made],
    captions=[words.text for words in rare for _ in range(2)],
    scores=scores,
    columns=4,
    title=t("l00.rare_title"),
)

# %% [markdown] lang="en" uid="gaps-reading" pair="c705c8df"
# **What you see.** The four left-out combinations, found by counting. And the model paints three of them as asked (faithfulness 1 under the picture), although it has never seen one: it has learnt *beard* and *pink hair* as two things that can be put together. The fourth stops at one half: the mouth is sad, but the glasses are clear. **Why the difference to the cat?** A combination is made of parts that were seen; a cat is not. **Why not the fourth?** Sadness shows in the eyes, and sunglasses cover them: parts that want the same place of the picture are harder to combine than parts that lie apart.

# %% [markdown] lang="ja" uid="gaps-reading" pair="097096bf"
# **図から読み取れること。** 数えるだけで、除かれた4つの組み合わせが見つかりました。モデルは一度も見たことがないのに、そのうち3つを指定どおりに描けます(画像の下の忠実度が1です)。*あごひげ*と*ピンクの髪*を、組み合わせられる2つのものとして学んだからです。残る1つは0.5にとどまります。口元は悲しそうでも、眼鏡はサングラスになっていません。**猫との違い。** 組み合わせの部品は見たことがあります。猫は見たことがありません。**4つ目ができない理由。** 悲しみは目に表れますが、サングラスはその目を隠します。画像の同じ場所を取り合う部品は、離れた部品よりも組み合わせにくいのです。

# %% [markdown] lang="en" uid="open" pair="77c534e8"
# ## 6. Open task: break it
#
# **Difficulty 3/5.** Find a prompt of known words only, naming at least three attributes, that the model gets *wrong* as often as possible. It is judged by the mean faithfulness over eight seeds, by your own function, and **lower is better**; below 0.8 is a good find. Ideas: rare combinations, many attributes at once, attributes that compete for one place. There is no single right answer. Then ask yourself: did you find a weakness of the model or of the reader? Look at the pictures.

# %% [markdown] lang="ja" uid="open" pair="1792540f"
# ## 6. 自由課題: モデルの弱点を探す
#
# **難易度3/5。** 知っている単語だけを使い、3個以上の属性を指定して、モデルができるだけ*間違える*プロンプトを見つけてください。8つのシードでの忠実度の平均を、自分の関数で測ります。**小さいほど良い**結果で、0.8を下回れば良い発見です。まれな組み合わせ、一度に多くの属性、同じ場所を取り合う属性などを試してみましょう。正解は1つではありません。見つけたら、それがモデルの弱点なのか、読み取る側の弱点なのかを、画像を見て考えてください。

# %% uid="open-task" tags=["open"]
attack = {"mood": "sad", "glasses": "sunglasses", "hair_color": "pink", "beard": "beard"}

order = describe(attack)
made = portraits(order.text, lab.sizes.images, first_seed=100)
if tier == "gpu":
    print(t("l00.portraits_only"))
    scores = None
else:
    scores = [faithfulness(order.named, attack, one) for one in reader.describe(made)]
    print(t("l00.attack", score=sum(scores) / len(scores), names=len(order.named)))
image_grid(made, columns=4, title=order.text, scores=scores)

# %% [markdown] lang="en" uid="which" pair="504a89d2"
# **Reading.** A single low picture is chance; a low mean over eight seeds is a finding. Lesson 02 says how many pictures such a sentence needs. But a mean says *how much* is wrong and hides *what*. Take it apart: write `misses(named, asked, reads)`, a dictionary from each named attribute to the share of the pictures in which it is wrong; `reads` has one dictionary per picture.
# By hand: one attribute, wrong in one of four pictures, gives 0.25.

# %% [markdown] lang="ja" uid="which" pair="ee9a54ee"
# **図の読み方。** 1枚だけ値が低いのは偶然かもしれません。8つのシードの平均が低ければ発見です。このように主張するのに何枚必要かは、レッスン02で学びます。ただし、平均から分かるのは*どれだけ*間違えたかで、*何を*間違えたかは隠れています。そこで内訳を調べます。`misses(named, asked, reads)` を書いてください。指定した属性から、それが間違っている画像の割合への辞書を返します。
# `reads` は、画像1枚につき辞書1つのリストです。手計算の例: ある属性が4枚中1枚で間違っていれば0.25です。


# %% uid="misses" tags=["exercise"] exercise="misses"
def misses(named, asked, reads):
    """en: Per named attribute the share of the pictures in which it is not as asked: dictionary of floats.
    ja: 指定した属性ごとに、注文と違っている画像の割合を、辞書で返します。
    """
    # BEGIN SOLUTION
    return {name: sum(read[name] != asked[name] for read in reads) / len(reads) for name in named}
    # END SOLUTION


# %% uid="misses-check" tags=["check"]
lab.check("misses")
misses = lab.use("misses")

# %% uid="misses-use"
if tier != "gpu":
    found = misses(order.named, attack, reader.describe(made))
    for name in sorted(found, key=found.get, reverse=True):
        print(t("l00.missed", attribute=attribute_name(name, lang), share=found[name]))

# %% [markdown] lang="en" uid="machine" pair="ac6ad8f2"
# **Reading.** The errors are not spread evenly: some attributes are never wrong, others carry the whole loss. That is the first thing to ask of any score in this course. In lesson 04 an average over nine attributes would hide the main result.
#
# ## 7. Is this machine ready?
#
# The next cell looks at Python, packages, GPU, fonts and disk; each problem comes with what to do about it. The one after it measures how long a first picture takes from a cold start: a fresh Python process imports everything, loads the model and paints.

# %% [markdown] lang="ja" uid="machine" pair="d3e8cb73"
# **結果の読み方。** 間違いは均等には起きません。一度も間違えない属性もあれば、減点のすべてを占める属性もあります。この教材でどんな得点を見るときも、まず内訳を尋ねてください。レッスン04では、9属性の平均だけを見ると、主な結果が隠れてしまいます。
#
# ## 7. 環境の確認
#
# 次のセルで、Python、パッケージ、GPU、フォント、ディスクの状態を調べます。問題があれば、対処方法も表示されます。その次のセルでは、何も読み込んでいない状態から最初の1枚まで何秒かかるかを測ります。新しいPythonプロセスで、インポート、モデルの読み込み、生成を行います。

# %% uid="check-environment"
from labkit.envcheck import show_environment

findings = show_environment(tier)

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

# %% [markdown] lang="en" uid="tiers" pair="8115e456"
# ## 8. Tiers, words, map
#
# `tier` in the parameters cell chooses the size of everything: `smoke` (tests, seconds), `cpu` (a laptop, minutes), `gpu` (a CUDA GPU; the README lists what each lesson loads there). The code is the same. The articles use some words that differ from ours:
#
# | article | this course |
# |---|---|
# | pseudo density | pseudo density (lesson 03) |
# | importance sampling | importance sampling (lesson 03) |
# | fine-tuning | fine-tuning (lessons 03, 05, 06) |
# | preference, liking | preference (lessons 05, 06) |

# %% [markdown] lang="ja" uid="tiers" pair="62a84d98"
# ## 8. tier(実行規模)、用語、対応表
#
# パラメータのセルの `tier` で全体の規模が決まります。`smoke` はテスト用(数秒)、`cpu` はノートPC向け(数分)、`gpu` はCUDA対応GPU向けです(各レッスンがgpuで読み込むモデルは、READMEの表にまとめています)。コードはどのtierでも同じです。記事の用語には、この教材と異なるものがあります。
#
# | 記事 | この教材 |
# |---|---|
# | 『疑似密度』 | 擬似密度(レッスン03) |
# | 『重要度サンプリング』 | 重点サンプリング(レッスン03) |
# | 『微調整』 | ファインチューニング(レッスン03、05、06) |
# | 『好み』 | 選好(レッスン05、06) |

# %% uid="article-map"
lab.article_map()

# %% uid="quiz" tags=["quiz"]
lab.quiz()
