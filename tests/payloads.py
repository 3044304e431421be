"""Scripts that try to run when somebody opens a page of ours, each of which calls `hit()`, and pages that hold them."""

import re
from pathlib import Path

from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labkit.authoring.run.html import notebook_html
from labkit.authoring.run.job import Outcome
from labkit.authoring.run.plan import Row
from labkit.authoring.run.report import report_page
from labkit.course.claims import declared
from labkit.course.ledger import ledger
from labkit.course.manifest import Project
from labkit.course.render import box, page, table

FIXTURE = Project(Path(__file__).parent / "data" / "lesson_fixture")

PAYLOADS = [
    "<script>hit()</script>",
    "<img src=x onerror=hit()>",
    '<img src="data:," onerror="hit()">',
    "<svg/onload=hit()>",
    "<svg><script>hit()</script></svg>",
    "<svg><animate onbegin=hit() attributeName=x dur=1s></svg>",
    '<svg><a xlink:href="javascript:hit()"><text y=20>click</text></a></svg>',
    "$\\text{<svg/onload=hit()>}$",
    "$$\\text{<img src=x onerror=hit()>}$$",
    "\\begin{aligned}\\text{<script>hit()</script>}\\end{aligned}",
    "<math><mtext><table><mglyph><style><img src=x onerror=hit()></style></mglyph></table></mtext></math>",
    '<math href="javascript:hit()"><mi>x</mi></math>',
    '<a href="javascript:hit()">click</a>',
    '<a href=" &#x0A;java&#x09;script:hit()">click</a>',
    '<a href="data:text/html,<script>opener.hit()</script>">click</a>',
    '<iframe srcdoc="<script>parent.hit()</script>"></iframe>',
    '<object data="javascript:hit()"></object><embed src="javascript:hit()">',
    '<meta http-equiv="refresh" content="0;url=javascript:hit()">',
    '<base href="https://example.org/"><img srcset="b.png 1x" src="data:,">',
    '<form action="javascript:hit()"><button>click</button><input autofocus onfocus=hit()></form>',
    "<details open ontoggle=hit()><summary>s</summary></details>",
    '<div style="background:url(javascript:hit());position:fixed" onmouseover=hit()>x</div>',
    "<style>@import 'https://example.org/x.css';</style><link rel=stylesheet href=https://example.org/x.css>",
    "</title></style></textarea></script><img src=x onerror=hit()>",
    "<noscript><p title='</noscript><img src=x onerror=hit()>'></noscript>",
    "\"><img src=x onerror=hit()>'><body onload=hit()>",
    "<video><source onerror=hit()></video><audio src=x onerror=hit()></audio>",
]


def spoiled_notebook(payload):
    """The payload wherever a notebook can hold it: prose, code, print, HTML, drawing, message, traceback."""
    outputs = [
        new_output("stream", name="stdout", text=payload),
        new_output("display_data", {"text/html": f"<p>{payload}</p>", "text/plain": payload}),
        new_output("display_data", {"text/html": box("info", payload, payload, code=payload)[0]}),
        new_output("display_data", {"image/svg+xml": f'<svg xmlns="http://www.w3.org/2000/svg">{payload}</svg>'}),
        new_output("display_data", {"text/markdown": payload}),
        new_output("display_data", {"text/latex": payload}),
        new_output("display_data", {"application/javascript": "hit()"}),
        new_output("display_data", {"image/png": f'x" onerror="hit()" y="{payload}'}),
        new_output("error", ename=payload, evalue=payload, traceback=[payload]),
    ]
    prose = f"# {payload}\n\n{payload}\n\n| a |\n|---|\n| {payload} |\n\n![{payload}](x.png)\n\n[{payload}]({payload})"
    cells = [new_markdown_cell(prose), new_code_cell(payload, outputs=outputs, execution_count=1)]
    return notebook_html(new_notebook(cells=cells), title=payload)


def spoiled_report(payload, folder):
    lane = re.sub(r"[/\0]", "", payload)[:60]
    for name in (f"a-{lane}-b", "javascript:hit()-x-y"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{lane}.html").write_text("")
    cells = [{"id": payload, "seconds": 3.0, "line": payload}]
    outcome = Outcome("failed", cells=cells, error=payload, where=payload, traceback=payload)
    row = Row("00", payload, {"en": payload, "ja": payload}, "en", "solution", "smoke", "", outcome=outcome)
    return report_page([row], folder, {"started": payload, "python": payload})


def spoiled_ledger(payload):
    changed = {"statement": {"en": payload, "ja": payload}, "paper": payload}
    claim = declared("90", FIXTURE)["l90.better"].model_copy(update=changed)
    body = ledger([{"claim": claim, "record": None, "verdict": "not_run"}])[0]
    return page(payload, body + table([payload], [[payload]])[0] + box("warn", payload, payload)[0])
