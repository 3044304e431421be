"""Pages that we write: whatever stands in a notebook, a claim or a file name, nothing of it can run or load."""

import json
import re
from html.parser import HTMLParser

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from payloads import PAYLOADS, spoiled_ledger, spoiled_notebook, spoiled_report

from labkit.authoring.run.html import mathml, notebook_html
from labkit.authoring.run.sanitise import ATTRIBUTES, TAGS, clean
from labkit.course.render import POLICY

OURS = {"html", "head", "meta", "title", "style", "body"}  # the frame of a page, which we write ourselves


class Looker(HTMLParser):
    """Collects what could run or load: [(tag, attribute, value)] beyond what is allowed."""

    def __init__(self):
        super().__init__()
        self.found, self.heads = [], []

    def handle_starttag(self, tag, attrs):
        if tag in OURS:
            self.heads.append((tag, dict(attrs)))
            attrs = [] if tag == "meta" else [one for one in attrs if one[0] != "lang"]
        elif tag not in TAGS:
            self.found.append((tag, None, None))
        for name, value in attrs:
            known = ATTRIBUTES["*"] | ATTRIBUTES.get(tag, set()) | {"rel"}
            address = re.sub(r"[\s\x00-\x1f]", "", value or "").lower()
            inside = tag == "img" and address.startswith("data:")
            if name not in known and not name.startswith("aria-") or ":" in address and name == "src" and not inside:
                self.found.append((tag, name, value))
            if name == "href" and re.match(r"(javascript|data|vbscript):", address):
                self.found.append((tag, name, value))
            if name == "style" and re.search(r"url\(|expression|position", address):
                self.found.append((tag, name, value))


def look(text):
    looker = Looker()
    looker.feed(text)
    metas = [attrs for tag, attrs in looker.heads if tag == "meta"]
    assert metas[1]["http-equiv"] == "Content-Security-Policy" and "default-src 'none'" in metas[1]["content"]
    others = [("meta", None, attrs) for attrs in metas[2:] if attrs.get("name") != "viewport"]
    return looker.found + others


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_that_could_run_or_load_is_left_of(payload, tmp_path):
    assert look(spoiled_notebook(payload)) == []
    assert look(spoiled_report(payload, tmp_path)) == []
    assert look(spoiled_ledger(payload)) == []


def test_the_looker_sees_every_payload_that_is_not_cleaned():
    seen = [payload for payload in PAYLOADS if look(f'<meta charset="utf-8">{POLICY}{payload}')]
    assert [payload for payload in PAYLOADS if payload not in seen] == []


def test_links_of_a_report_lead_to_files_whatever_they_are_called(tmp_path):
    text = spoiled_report("<b> & 100%#?", tmp_path)
    links = re.findall(r'href="([^"]+)"', text)
    assert "javascript%3Ahit%28%29-x-y/%3Cb%3E%20%26%20100%25%23%3F.html" in links


def test_what_a_lesson_is_made_of_stays(tmp_path):
    picture = '<img class="labkit-figure" src="data:image/png;base64,iVBORw0K" alt="four portraits" '
    picture += 'style="max-width:100%;width:640px;height:auto">'
    kept = [
        picture,
        '<details><summary>Hint</summary><ul style="list-style:none;padding-left:1em"><li>a</li></ul></details>',
        '<table lang="ja"><thead><tr><th scope="col" style="text-align:left">表</th></tr></thead></table>',
        '<div class="highlight hl-ipython3"><pre><span class="kn">import</span></pre></div>',
        '<div lang="en" style="border-left:4px solid #009E73;padding:.4em .8em;margin:.3em 0"><b>Passed</b></div>',
        '<progress max="1" value="0.5" style="vertical-align:middle"></progress>',
    ]
    for markup in kept:
        # the CSS is written anew (".3em" -> "0.3em"), the markup is not
        assert clean(markup).replace("0.", ".") == markup.replace("0.", ".")


def test_links_to_pages_and_places_stay():
    assert 'href="https://arxiv.org/abs/2006.11239"' in clean('<a href="https://arxiv.org/abs/2006.11239">x</a>')
    assert 'href="#anchor"' in clean('<a href="#anchor">x</a>') and 'href="01_x.ipynb"' in clean(
        '<a href="01_x.ipynb">'
    )


def test_drawings_become_images_with_a_description():
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1"><script>hit()</script><rect/></svg>'
    output = new_output("display_data", {"image/svg+xml": drawing, "text/plain": "a <flow> of steps"})
    text = notebook_html(new_notebook(cells=[new_code_cell("draw()", outputs=[output])]), title="t")
    assert 'src="data:image/svg+xml;base64,' in text and 'alt="a &lt;flow&gt; of steps"' in text
    assert "<svg" not in text and look(text) == []


def test_every_formula_of_the_course_is_still_drawn():
    from labkit.authoring.run.html import _MATH
    from labkit.course.manifest import ROOT

    drawn = 0
    for path in sorted((ROOT / "notebooks" / "ja").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for found in _MATH.finditer("".join(cell["source"]) if cell["cell_type"] == "markdown" else ""):
                tex = found["display"] or found["inline"] or found[0]
                markup = mathml(tex, display=not found["inline"])
                assert markup.startswith("<math"), f"{path.name}: {tex}"
                assert clean(markup).count("<m") == markup.count("<m"), f"{path.name}: {tex}"
                drawn += 1
    assert drawn > 50
