"""A real browser in front of a page: start the app, give it a picture, take the mask that it offers."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def require_browser():
    """Skip the test where there is no selenium or Chromium."""
    pytest.importorskip("selenium", reason="needs selenium")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian: apt-get install chromium chromium-driver)")


@contextlib.contextmanager
def start_app(app, *flags, cwd, environment=None):
    """The URL of an app in a process of its own, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    settings["GRADIO_TEMP_DIR"] = str(Path(cwd, "gradio"))
    url, log = f"http://127.0.0.1:{port}", Path(cwd, "app.log")
    command = [sys.executable, str(app), "--port", str(port), *flags]
    with log.open("w") as output:
        environment = {**os.environ, **settings, **(environment or {})}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=environment)
    try:
        deadline = time.monotonic() + 180
        while not _answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield url
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def open_page(url, downloads, *flags, width=1280, height=900):
    """A headless Chromium, started with flags, that shows the page and stores downloads in a folder."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    always = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}")
    for flag in (*always, *flags):
        options.add_argument(flag)
    several = "profile.default_content_setting_values.automatic_downloads"
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads), several: 1})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(120)
        driver.get(url)
        yield driver
    finally:
        driver.quit()


def segment(driver, picture, downloads):
    """Upload a picture and wait; the page's text, and for each network the mask (h, w) that it offers for download."""
    upload = wait_for(driver, "input[type=file]")
    networks = len(driver.find_elements("css selector", ".result .empty"))
    upload.send_keys(str(picture))
    wait_for(driver, ".result table", count=networks)
    for button in driver.find_elements("css selector", "a[download], button"):
        if "Download mask" in button.text:
            driver.execute_script("arguments[0].click()", button)
    deadline = time.monotonic() + 30
    while len(files := sorted(Path(downloads).glob("*_mask.png"))) < networks:
        assert time.monotonic() < deadline, f"only {files} were downloaded"
        time.sleep(0.2)
    masks = {file.stem.split("_")[-2]: np.asarray(Image.open(file)) for file in files}
    return page_text(driver), masks


def wait_for(driver, selector, count=1, seconds=120):
    """The first of at least so many elements, once they are there."""
    deadline = time.monotonic() + seconds
    while len(found := driver.find_elements("css selector", selector)) < count:
        assert time.monotonic() < deadline, f"{selector} did not appear; the page shows:\n{page_text(driver)}"
        time.sleep(0.2)
    return found[0]


def page_text(driver):
    return driver.find_element("css selector", "body").text


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
