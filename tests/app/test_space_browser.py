import numpy as np
import pytest
from browser import ROOT, open_page, require_browser, segment, start_app
from tiny_runs import network, processor, scenes

from hf_segkd.inference import predict


@pytest.mark.slow
def test_a_browser_gets_the_masks_that_predict_gives(tmp_path):
    require_browser()
    networks = {"student": network(width=8), "teacher": network(width=12)}
    flags = []
    for name, model in networks.items():
        model.eval().save_pretrained(tmp_path / name)
        processor().save_pretrained(tmp_path / name)
        flags += [f"--{name}", str(tmp_path / name)]
    image = scenes("val", 1)[0]["image"]
    image.save(tmp_path / "scene.png")
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
        assert not page.find_elements("css selector", ".toast-wrap .error")
