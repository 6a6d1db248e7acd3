import numpy as np
import pytest
from browser import ROOT, open_page, page_text, require_browser, segment, start_app
from PIL import Image
from tiny_runs import network, processor, scenes

from hf_segkd.networks.inference import predict


@pytest.mark.slow
def test_a_browser_gets_the_masks_that_predict_gives(tmp_path):
    pytest.importorskip("gradio", reason="needs gradio (pip install hf-segkd[app])")
    require_browser()
    networks = {"student": network(width=8), "teacher": network(width=12)}
    flags = []
    for name, model in networks.items():
        model.eval().save_pretrained(tmp_path / name)
        processor().save_pretrained(tmp_path / name)
        flags += [f"--{name}", str(tmp_path / name)]
    image = scenes("val", 1)[0]["image"]
    image.save(tmp_path / "scene.png")
    Image.new("1", (6000, 6000)).save(tmp_path / "large.png")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    environment = {"PYTHONPATH": str(ROOT)}
    with (
        start_app(ROOT / "app" / "app.py", *flags, cwd=tmp_path, environment=environment) as url,
        open_page(url, downloads) as page,
    ):
        text, masks = segment(page, tmp_path / "scene.png", downloads)
        for role, model in networks.items():
            expected = predict(model, processor(), image).numpy()
            assert np.array_equal(masks[role], expected)
            for index in np.unique(expected):
                assert model.config.id2label[index] in text
        assert text.count("ms forward pass") == 2
        assert not page.find_elements("css selector", ".toast-body")
        check_opacity(page)
        check_narrow(page)
        check_refusal(page, tmp_path / "large.png", "6000 x 6000 pixels, more than the limit of 25,000,000")
        (tmp_path / "text.png").write_text("no picture")
        check_refusal(page, tmp_path / "text.png")
        asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [name for name in asked if not name.startswith((url, "data:"))] == []


def check_opacity(page):
    """The slider reaches the pictures without asking the server."""
    from selenium.webdriver.support.wait import WebDriverWait

    classes = page.find_element("css selector", ".result .classes")
    assert classes.value_of_css_property("opacity") == "0.5"
    page.find_element("css selector", "input[type=range]").send_keys("\ue010")  # the End key
    WebDriverWait(page, 20).until(lambda _: classes.value_of_css_property("opacity") == "1")


def check_narrow(page):
    """Nothing sticks out; on a tablet student and teacher stand side by side, on a phone below each other."""
    for width, axis in ((820, "y"), (390, "x")):
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert len({result.location[axis] for result in page.find_elements("css selector", ".block.result")}) == 1
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def check_refusal(page, picture, reason=None):
    """A refused picture says why or what could be used, and takes the results of the picture before away."""
    from selenium.webdriver.support.wait import WebDriverWait

    page.find_element("css selector", "[aria-label='Remove Image']").click()
    WebDriverWait(page, 60).until(lambda page: page_text(page).count("The classes will appear here.") == 2)
    page.find_element("css selector", "input[type=file]").send_keys(str(picture))
    WebDriverWait(page, 60).until(lambda page: page_text(page).count("This picture cannot be used.") == 2)
    assert "What can: BMP, GIF, JPEG, PNG, TIFF, WEBP, one picture a file" in page_text(page)
    if reason is not None:  # what is no picture at all is refused by gradio, without a reason
        assert reason in page.find_element("css selector", ".toast-body").get_property("textContent")
