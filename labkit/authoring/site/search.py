"""Search in Japanese: pairs of neighbouring characters, cut alike when the pages are indexed and in the browser.

Sphinx's own Japanese index holds words as a segmenter cuts them, but the browser cuts a query at spaces alone, so that
a compound of two indexed words is not found. Pairs of characters need no segmenter: every text that holds the query
holds all of its pairs.
"""

from __future__ import annotations

import re

try:
    from sphinx.search import SearchLanguage
except (
    ModuleNotFoundError
):  # without the extra `site` no pages are built; how Japanese is cut can be asked all the same
    SearchLanguage = object

_WIDE = "々〆〇぀-ヿ㐀-鿿豈-﫿ｦ-ﾟ"
_RUN = re.compile(rf"(?P<wide>[{_WIDE}]+)|(?P<word>[^\W{_WIDE}]+)")


class Bigrams(SearchLanguage):
    """Words of letters and digits as they are; Japanese as single characters and pairs."""

    lang = "ja"
    language_name = "Japanese"
    stopwords: frozenset[str] = frozenset()
    js_stemmer_code = "var Stemmer = function () { this.stemWord = function (word) { return word; } }"
    js_splitter_code = f"""
function splitQuery(query) {{
  const terms = [];
  for (const found of query.matchAll(/([{_WIDE}]+)|([\\p{{Letter}}\\p{{Number}}_]+)/gu)) {{
    if (!found[1]) {{ terms.push(found[2]); continue; }}
    const run = [...found[1]];
    if (run.length === 1) terms.push(run[0]);
    for (let at = 0; at + 1 < run.length; at++) terms.push(run[at] + run[at + 1]);
  }}
  return terms;
}}
"""

    def split(self, input: str) -> list[str]:
        """The terms of a text: "拡散モデル v2" -> 拡 散 モ デ ル, 拡散 散モ モデ デル, v2."""
        terms: list[str] = []
        for found in _RUN.finditer(input):
            run = found["wide"]
            if run is None:
                terms.append(found["word"])
            else:
                terms += [*run, *(run[at : at + 2] for at in range(len(run) - 1))]
        return terms

    def stem(self, word: str) -> str:
        """The word itself."""
        return word

    def word_filter(self, word: str) -> bool:
        """Every term counts."""
        return bool(word)
