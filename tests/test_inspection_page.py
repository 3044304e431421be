"""The inspection page in a browser: keys, going back, time per picture, and the file that is saved."""

import os

import numpy as np
import pytest
from PIL import Image

from labkit.inspection import DEFECTS, read_lot
from labkit.inspection.page import write_page
from labkit.inspection.texts import texts
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
    page_path = write_page(tmp_path / "job" / "inspect.html", lot, names, DEFECTS, lang="en", draw="d1")
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-proxy-server", *sandbox])
        page, errors = browser.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_path.as_uri())
        page.keyboard.press("1")  # before a name is given, keys judge nothing
        page.fill("#who", "Ito")
        page.keyboard.press("Enter")

        def press(key, picture, wait=0):
            """Once the picture stands there: before, no key judges it."""
            page.wait_for_function("document.getElementById('picture').naturalWidth === 8")
            assert page.inner_text("#where").startswith(f"{picture} / 4 {names[picture - 1]}")
            page.wait_for_timeout(wait)
            page.keyboard.press(key)

        press("3", 1, wait=300)
        press("Enter", 2)
        press("9", 3)  # no such defect
        press("4", 3, wait=200)
        press("Backspace", 4)
        assert page.evaluate("told.length") == 2
        page.focus("#buttons button:nth-of-type(6)")  # whoever moves by Tab presses the button that they see
        press("Enter", 3, wait=200)
        press(" ", 4)
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
    assert verdicts[2].seconds >= 0.4  # both looks at it
    assert read_verdicts(tmp_path / "v.jsonl", draw="d1") == verdicts


@pytest.mark.browser
@pytest.mark.slow
def test_a_page_that_was_closed_goes_on_and_a_picture_that_is_gone_cannot_be_judged(browser_path, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "lot").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (90 * i, 0, 0)).save(tmp_path / "lot" / f"{i}.png")
    lot = read_lot(tmp_path / "lot")
    names = [item.name for item in lot.items]
    shown = "document.getElementById('picture').naturalWidth === 8"
    path = write_page(tmp_path / "job" / "inspect.html", lot, names, DEFECTS, lang="en", draw="d1", barred=["Abe"])
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=browser_path, args=["--no-proxy-server", *sandbox])
        page, asked = browser.new_page(), []
        page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
        page.goto(path.as_uri())
        for nobody in ("ＡＢＥ\u200b", "-"):
            page.fill("#who", nobody)
            page.keyboard.press("Enter")
            assert page.is_visible("#who")
        assert asked == [texts("en")["page_maker"], texts("en")["page_nobody"]]
        page.fill("#who", "Ito")
        page.keyboard.press("Enter")
        page.wait_for_function(shown)
        page.wait_for_timeout(300)
        page.keyboard.press("2")
        (tmp_path / "lot" / names[1]).unlink()
        page.reload()
        page.fill("#who", "I to")
        page.keyboard.press("Enter")
        page.wait_for_function("document.getElementById('trouble').textContent !== ''")
        page.keyboard.press("Enter")
        assert "1 / 3" in asked[-1] and page.inner_text("#where").startswith("2 / 3")
        assert names[1] in page.inner_text("#trouble") and page.evaluate("told[0].seconds") >= 0.3
        page.reload()
        page.fill("#who", "Mori")  # another person begins at the beginning
        page.keyboard.press("Enter")
        page.wait_for_function(shown)
        assert page.inner_text("#where").startswith("1 / 3")
        browser.close()
