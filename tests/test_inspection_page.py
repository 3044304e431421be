"""The inspection page in a browser: keys, going back, time per picture, and the file that is saved."""

import os

import numpy as np
import pytest
from PIL import Image

from labkit.inspection import DEFECTS, read_lot
from labkit.inspection.page import write_page
from labkit.inspection.verdicts import read_verdicts


@pytest.mark.browser
@pytest.mark.slow
def test_an_inspector_works_by_keys_alone_and_saves_verdicts(browser_path, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "lot").mkdir()
    for i in range(4):
        pixels = np.full((8, 8, 3), 60 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "lot" / f"写真 {i}#.png")
    lot = read_lot(tmp_path / "lot")
    names = [item.name for item in lot.items][::-1]
    page_path = write_page(tmp_path / "job" / "inspect.html", lot, names, DEFECTS, lang="en")
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-proxy-server", *sandbox])
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_path.as_uri())
        page.keyboard.press("1")  # before a name is given, keys judge nothing
        page.fill("#who", "Ito")
        page.keyboard.press("Enter")
        page.wait_for_function("document.getElementById('picture').naturalWidth === 8")
        page.wait_for_timeout(300)
        page.keyboard.press("3")
        page.keyboard.press("Enter")
        page.keyboard.press("9")  # no such defect
        page.keyboard.press("4")
        page.keyboard.press("Backspace")
        assert page.inner_text("#where").startswith(f"3 / 4 {names[2]}")
        page.keyboard.press("5")
        page.keyboard.press(" ")
        assert page.is_visible("#end") and not page.is_visible("main")
        with page.expect_download() as download:
            page.click("#save")
        assert download.value.suggested_filename == "verdicts-Ito.jsonl"
        download.value.save_as(tmp_path / "v.jsonl")
        browser.close()
    verdicts = read_verdicts(tmp_path / "v.jsonl")
    assert [v.item for v in verdicts] == names and {v.inspector for v in verdicts} == {"Ito"}
    assert [v.defect for v in verdicts] == ["shape", "", "texture", ""]
    assert verdicts[0].seconds >= 0.3 and not errors
