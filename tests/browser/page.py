"""The page as somebody at a browser has it: headless Chromium, driven over its DevTools protocol."""

import os
import tempfile
import unittest
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from worker import Worker

SECONDS = 1000
# Longer than anything here takes, short enough to wait for when something hangs.
PATIENCE_MS = 30 * SECONDS


class Browser:
    """One for all tests, with a worker that answers well and one that answers long: 40 tokens a second, without end."""

    def __init__(self):
        self.playwright = sync_playwright().start()
        self.chromium = self.playwright.chromium.launch(executable_path=os.environ["CHROME"])
        self.workers = {}
        expect.set_options(timeout=PATIENCE_MS)

    def worker(self, name, *flags):
        if name not in self.workers:
            self.workers[name] = Worker(*flags)
        return self.workers[name]

    def haiku(self):
        return self.worker("haiku")

    def slow(self):
        return self.worker("slow", "--model", os.environ["WORKER_SLOW_MODEL"], "--ctx-size", "4096")

    def with_key(self, key):
        return self.worker(f"with the key {key}", "--api-key", key)

    def without_template(self):
        """The built-in model, with the key of its chat template misspelt."""
        if "without template" not in self.workers:
            file = Path(os.environ["WORKER_HAIKU_MODEL"]).read_bytes()
            with tempfile.NamedTemporaryFile(suffix=".gguf") as copy:
                copy.write(file.replace(b"tokenizer.chat_template", b"tokenizer.chat_templete"))
                copy.flush()
                self.worker("without template", "--model", copy.name)
        return self.workers["without template"]

    def close(self):
        self.chromium.close()
        self.playwright.stop()
        for worker in self.workers.values():
            worker.stop()


class PageTest(unittest.TestCase):
    """A test with pages of its own. Whatever it does, no page asks anyone but its worker, and none meets a fault of its own."""

    browser: Browser

    def setUp(self):
        self.asked, self.faults = [], []

    def open(self, worker, width=1100, height=800, **options):
        context = self.browser.chromium.new_context(viewport={"width": width, "height": height}, **options)
        self.addCleanup(context.close)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        # A status of 400 or more is told on the console too, by the browser.
        told = ("Failed to load resource: the server responded", "Failed to load resource: net::ERR_CONNECTION_REFUSED")
        page.on("console", lambda line: line.text.startswith(told) or self.faults.append(line.text))
        page.goto(worker.url)
        self.worker, self.page = worker, page
        expect(page.locator("#state span")).to_have_text("ready")
        return page

    def tearDown(self):
        self.assertEqual([url for url in self.asked if not url.startswith(self.worker.url + "/")], [])
        self.assertIn(self.worker.url + "/page/app.js", self.asked)
        self.assertEqual(self.faults, [])

    def send(self, text):
        self.page.locator("#text").fill(text)
        self.page.keyboard.press("Enter")

    def set(self, **settings):
        for name, value in settings.items():
            self.page.locator(f"#{name}").fill(str(value))

    def answer(self):
        """The last answer of the mode that is on."""
        return self.page.locator("ol:not([hidden]) > li:last-child .answer")

    def figures(self):
        """The line below it, with ordinary spaces."""
        return self.answer().locator(".figures").text_content().replace("\xa0", " ")

    def expect_end(self):
        expect(self.page.locator("#send")).to_be_visible()

    def watch(self):
        """Has the page note how long the last answer is whenever it grows."""
        self.page.evaluate("""() => {
            window.lengths = [];
            new MutationObserver(() => {
                const answers = document.querySelectorAll("ol:not([hidden]) .answer > p");
                lengths.push(answers[answers.length - 1].textContent.length);
            }).observe(document.querySelector("#conversation"), { subtree: true, characterData: true });
        }""")
