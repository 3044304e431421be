"""The page on which people inspect: one HTML file beside the pictures, keys for everything, time per picture kept.

It works without a server and without a network. What an inspector saves is a JSONL file of verdicts. A picture can be
judged once it stands there, not before; its time runs while the page is in view, over all looks at it; a page that was
closed goes on where it stood.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from labkit.files import write_atomically
from labkit.inspection.lot import Item, Lot
from labkit.inspection.texts import texts
from labkit.inspection.verdicts import Defect, same_person

MAX_DEFECTS = 9  # one digit each
NO_BROWSER = frozenset({".tif", ".tiff", ".jp2"})

PAGE = """<!doctype html><html lang="%(lang)s"><head><meta charset="utf-8"><title>%(page_title)s</title><style>
body { font: 16px/1.6 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Yu Gothic", sans-serif; max-width: 60rem;
  margin: 1rem auto; padding: 0 1rem; color: #222; }
img { display: block; min-height: 16rem; max-height: 62vh; max-width: 100%%; object-fit: contain; margin: 1rem 0;
  image-rendering: auto; border: 1px solid #ccc; }
button, input { font: inherit; margin: .15rem; padding: .3rem .8rem; } .critical { border-left: .4rem solid #c33; }
.major { border-left: .4rem solid #e90; } .minor { border-left: .4rem solid #99b; } [hidden] { display: none; }
</style></head><body><h1>%(page_title)s: %(lot)s</h1>
<form id="begin"><label>%(page_name)s <input id="who" required autocomplete="off"></label>
<button>%(page_start)s</button></form>
<main hidden><p id="where" aria-live="polite"></p><div id="frame"></div><p id="text"></p>
<p id="trouble" role="alert"></p><div id="buttons"></div><p>%(page_keys)s</p>
</main><section id="end" hidden><p>%(page_done)s</p><p><button id="save">%(save)s</button>
<button id="file" hidden>%(page_save)s</button></p><p id="told" role="status"></p></section><script>
"use strict";
const job = %(job)s, told = [], spent = job.items.map(() => 0), pictures = [];
let since = 0, saved = true;
const get = (id) => document.getElementById(id);
const started = () => get("begin").hidden;
const picture = (i) => {  // shown and the next two: whoever works fast waits for no file
  for (let k = i; k < Math.min(i + 3, job.items.length); k++) {
    if (pictures[k]) continue;
    pictures[k] = new Image(); pictures[k].alt = job.items[k].name; pictures[k].id = "picture";
    pictures[k].onload = pictures[k].onerror = () => { if (k === told.length && started()) arrived(); };
    pictures[k].src = job.items[k].href;
  }
  return pictures[i];
};
const seen = () => { const one = pictures[told.length]; return one && one.complete && one.naturalWidth > 0; };
const arrived = () => {
  const one = pictures[told.length];
  if (seen()) { since = document.hidden ? 0 : performance.now(); get("trouble").textContent = ""; }
  else if (one.complete) get("trouble").textContent = job.told.missing + " " + job.items[told.length].name;
};
const pause = () => {  // nobody looks at a hidden page
  if (since) spent[told.length] += performance.now() - since;
  since = 0;
};
document.addEventListener("visibilitychange", () => {
  if (document.hidden) pause();
  else if (started() && told.length < job.items.length && seen()) since = performance.now();
});
const show = () => {
  const i = told.length, over = i >= job.items.length;
  document.querySelector("main").hidden = over; get("end").hidden = !over;
  if (over) return;
  get("where").textContent = (i + 1) + " / " + job.items.length + "  " + job.items[i].name;
  get("frame").replaceChildren(picture(i)); get("trouble").textContent = "";
  get("text").textContent = job.items[i].text; arrived();
};
const person = (name) => name.normalize("NFKC").toLowerCase().normalize("NFKC").replace(/[^\\p{L}\\p{N}\\p{M}]+/gu, "");
const place = () => JSON.stringify([job.draw, job.items.map((item) => item.name), person(get("who").value)]);
const keep = () => {  // a closed tab is no lost day, where the browser lets the page remember
  try { if (job.draw) window.localStorage.setItem(place(), JSON.stringify({told: told, spent: spent})); }
  catch { /* private window */ }
};
const judge = (defect) => {
  if (told.length >= job.items.length || !started() || !seen()) return;
  pause();
  const i = told.length, verdict = {item: job.items[i].name, inspector: get("who").value.trim(), defect: defect,
    seconds: Math.round(spent[i] / 100) / 10};
  if (job.draw) verdict.draw = job.draw;
  told.push(verdict); saved = false;
  keep(); show();
};
const back = () => { if (!told.length) return; pause(); told.pop(); saved = false; keep(); show(); };
const button = (text, action, kind) => {
  const one = document.createElement("button");
  one.textContent = text; one.className = kind; one.type = "button";
  one.onclick = () => { one.blur(); action(); };
  get("buttons").append(one);
};
button("Enter: %(page_good)s", () => judge(""), "good");
job.defects.forEach((d, i) => button((i + 1) + ": " + d.text, () => judge(d.code), d.severity));
button("Backspace: %(page_back)s", back, "back");
get("begin").onsubmit = (event) => {
  event.preventDefault();
  const who = person(get("who").value);
  if (!who) { window.alert(job.told.nobody); return; }
  if (job.barred.includes(who)) { window.alert(job.told.maker); return; }
  try {
    const before = job.draw ? JSON.parse(window.localStorage.getItem(place())) : null;
    const where = before && before.told.length + " / " + job.items.length;
    if (before && before.told.length && window.confirm(job.told.again + " " + where)) {
      told.push(...before.told); before.spent.forEach((ms, i) => { spent[i] = ms; }); saved = false;
    }
  } catch { /* nothing was kept */ }
  get("who").blur(); get("begin").hidden = true; show();
};
document.addEventListener("keydown", (event) => {
  if (!started() || event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.normalize("NFKC"), enter = key === "Enter" || key === " ";
  if (enter && event.target instanceof HTMLButtonElement) return;  // the button that Tab has reached
  if (key === "Backspace") { event.preventDefault(); back(); return; }
  if (told.length >= job.items.length) return;
  if (enter) { event.preventDefault(); judge(""); }
  const d = job.defects[Number(key) - 1];
  if (key >= "1" && key <= "9" && d) judge(d.code);
});
const lines = () => told.map((v) => JSON.stringify(v) + "\\n").join("");
const download = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines()], {type: "application/x-ndjson"}));
  link.download = "verdicts-" + get("who").value.trim().replace(/[^\\p{L}\\p{N}_-]+/gu, "-") + ".jsonl";
  link.click(); saved = true;
};
get("file").onclick = download;
get("save").onclick = () => {
  if (!job.submit) { download(); return; }
  get("save").disabled = true;
  fetch(job.submit, {method: "POST", body: lines()})
    .then(async (answer) => [answer.ok, await answer.text()])
    .catch((error) => [false, String(error)])
    .then(([ok, text]) => {
      get("told").textContent = (ok ? job.told.sent : job.told.failed) + " " + text; get("save").disabled = ok;
      get("file").hidden = ok; if (ok) saved = true;
    });
};
window.addEventListener("beforeunload", (event) => { if (told.length && !saved) event.preventDefault(); });
</script></body></html>
"""


def write_page(
    path: Path | str,
    lot: Lot,
    sample: Sequence[str],
    defects: Sequence[Defect],
    *,
    lang: str,
    barred: Sequence[str] = (),
    draw: str = "",
) -> Path:
    """Write the inspection page for a sample; it refers to the pictures where they lie.

    Pictures that browsers do not show (TIFF, JPEG 2000) are copied as PNG into a hidden folder beside the page: a lot
    that lies around it must not grow by them.

    Args:
        path: the .html file. sample: names in the order of inspection. defects: at most 9. lang: "ja" or "en".
        barred: names that may not inspect, such as the maker's. draw: name of the draw, written into every verdict.

    Raises:
        ValueError: more defects than digits.
    """
    path = Path(path)
    folder = path.absolute().parent
    addresses = [_href(_viewable(lot[name], path), folder) for name in sample]
    orders = [lot[name].text for name in sample]
    page = page_html(lot.name, sample, addresses, defects, lang=lang, orders=orders, barred=barred, draw=draw)
    return write_atomically(path, page)


def page_html(
    title: str,
    sample: Sequence[str],
    addresses: Sequence[str],
    defects: Sequence[Defect],
    *,
    lang: str,
    orders: Sequence[str] | None = None,
    barred: Sequence[str] = (),
    submit: str = "",
    draw: str = "",
) -> str:
    """The page as text; `addresses` of the pictures and what was ordered in the order of the sample, `submit`: where
    verdicts are sent (empty: they are saved as a file), `draw`: name of the draw, written into every verdict.

    Raises:
        ValueError: more defects than digits.
    """
    if len(defects) > MAX_DEFECTS:
        raise ValueError(f"{len(defects)} defects but {MAX_DEFECTS} keys: put rare ones together")
    t = texts(lang)
    orders = [""] * len(sample) if orders is None else orders
    shown = zip(sample, addresses, orders, strict=True)
    job = {
        "items": [{"name": name, "href": href, "text": text} for name, href, text in shown],
        "defects": [{"code": d.code, "severity": d.severity, "text": getattr(d, lang)} for d in defects],
        "submit": submit,
        "barred": [same_person(name) for name in barred],
        "draw": draw,
        "told": {key: t[f"page_{key}"] for key in ("maker", "sent", "failed", "missing", "nobody", "again")},
    }
    words = {key: html.escape(text) for key, text in t.items() if key.startswith("page_")}
    words["save"] = words["page_send" if submit else "page_save"]
    # "<" inside a script could end it: the names of files are not ours
    told = json.dumps(job, ensure_ascii=False).replace("<", "\\u003c")
    return PAGE % {**words, "lang": lang, "lot": html.escape(title), "job": told}


def _viewable(item: Item, page: Path) -> Path:
    """The picture's file, or a PNG copy of it where browsers cannot show the format."""
    if item.path.suffix.lower() not in NO_BROWSER:
        return item.path
    copy = page.absolute().parent / f".{page.stem}-pictures" / f"{item.sha256[:16]}.png"
    copy.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(item.open()).save(copy)
    return copy


def _href(picture: Path, folder: Path) -> str:
    """Address of a picture relative to the page, or absolute where there is no relative one (another drive)."""
    try:
        return quote(os.path.relpath(picture.absolute(), folder).replace(os.sep, "/"))
    except ValueError:
        return picture.absolute().as_uri()
