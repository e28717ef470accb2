"""Pictures of the page for the documentation: `cargo xtask test --browser --screenshots`."""

import os
import unittest
from pathlib import Path

from page import Browser, PageTest

HAIKU = 'Write a haiku about GPU computing that includes the word "forty-two"'
RAIN = "Write a haiku about rain"
DESK = {"width": 1080, "height": 720}
PHONE = {"width": 360, "height": 640, "has_touch": True, "is_mobile": True}


def setUpModule():
    PageTest.browser = Browser()
    unittest.addModuleCleanup(PageTest.browser.close)


class Screenshots(PageTest):
    def shoot(self, name, *prompts, **options):
        page = self.open(self.browser.haiku(), device_scale_factor=1.25, **options)
        # The panel is closed on a phone.
        page.evaluate("document.querySelector('#seed').value = 3")
        for prompt in prompts:
            self.send(prompt)
            self.expect_end()
        page.screenshot(path=Path(os.environ["WORKER_SCREENSHOTS"]) / f"{name}.png")

    def test_light(self):
        self.shoot("page-light", HAIKU, RAIN, color_scheme="light", **DESK)

    def test_dark(self):
        self.shoot("page-dark", HAIKU, RAIN, color_scheme="dark", **DESK)

    def test_phone(self):
        self.shoot("page-phone", HAIKU, **PHONE)
