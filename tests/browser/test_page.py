"""The page at `GET /` in a browser. Each test is a claim about what somebody who opens it gets.

`cargo xtask test --browser` runs this.
"""

import json
import re
import time
import unittest

from page import PATIENCE_MS, SECONDS, Browser, PageTest, expect

HAIKU = 'Write a haiku about GPU computing that includes the word "forty-two"'
RAIN = "Write a haiku about rain"

DURATION = r"([\d.]+) (ms|s)"


def setUpModule():
    PageTest.browser = Browser()
    unittest.addModuleCleanup(PageTest.browser.close)


class Chat(PageTest):
    def test_an_answer_is_the_workers_with_its_figures(self):
        page = self.open(self.browser.haiku())
        self.set(temperature=0, seed=7)
        self.send(HAIKU)
        self.expect_end()
        messages = [{"role": "user", "content": HAIKU}]
        whole = self.worker.post("/v1/chat/completions", {"messages": messages, "temperature": 0})
        self.assertEqual(self.answer().locator("p").text_content(), whole["choices"][0]["message"]["content"])
        usage = whole["usage"]
        self.assertRegex(self.figures(), rf"^{usage['completion_tokens']} tokens in {DURATION} · first after {DURATION} · ")
        self.assertRegex(self.figures(), rf" · prompt {usage['prompt_tokens']} · seed 7$")
        expect(page.locator("#text")).to_be_focused()

    def test_the_models_facts_are_those_of_the_worker(self):
        page = self.open(self.browser.haiku())
        health = self.worker.health()
        facts = page.locator("#facts")
        expect(facts.locator("dt")).to_have_text(
            ["Name", "Architecture", "Weights", "Device", "Context", "Vocabulary", "Memory"])
        told = facts.locator("dd").all_text_contents()
        self.assertEqual(told[:4], [health[key] for key in ("model", "architecture", "quant_kind", "device")])
        numbers = [int(re.sub(r"\D", "", text)) for text in told[4:]]
        self.assertEqual(numbers[:1], [health["context_length"]])
        self.assertTrue(told[5].endswith(" " + health["tokenizer_kind"]))
        self.assertEqual(page.title(), f"{health['model']} · worker-orcd")

    def test_what_was_said_before_and_the_system_prompt_are_part_of_the_request(self):
        page = self.open(self.browser.haiku())
        self.set(system="Be brief.", temperature=0.7, top_p=0.9, min_p=0.05, repetition_penalty=1.1, top_k=40, max_tokens=30)
        self.send(RAIN)
        self.expect_end()
        first = self.answer().locator("p").text_content()
        with page.expect_request("**/v1/chat/completions") as asked:
            self.send("Write a haiku about snow")
        body = json.loads(asked.value.post_data)
        self.assertEqual(
            [(message["role"], message["content"]) for message in body["messages"]],
            [("system", "Be brief."), ("user", RAIN), ("assistant", first),
             ("user", "Write a haiku about snow")],
        )
        settings = {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1, "top_k": 40, "max_tokens": 30}
        self.assertEqual({name: body[name] for name in settings}, settings)
        self.expect_end()

    def test_again_asks_the_same_and_keeps_one_answer(self):
        page = self.open(self.browser.haiku())
        self.send(RAIN)
        self.expect_end()
        with page.expect_request("**/v1/chat/completions") as asked:
            page.get_by_role("button", name="Again").click()
        self.assertEqual(len(json.loads(asked.value.post_data)["messages"]), 1)
        self.expect_end()
        expect(page.locator("#chat > li")).to_have_count(1)

    def test_a_model_without_a_chat_template_explains_itself_and_offers_the_plain_prompt(self):
        page = self.open(self.browser.without_template())
        self.send(RAIN)
        expect(self.answer().get_by_role("alert")).to_contain_text("no chat template")
        page.get_by_role("button", name="Continue it as a plain prompt").click()
        expect(page.locator("#text")).to_have_value(RAIN)
        page.keyboard.press("Enter")
        self.expect_end()
        expect(self.answer().locator("p")).to_have_text(re.compile(r"\w+ \w+"))


class Streams(PageTest):
    def test_text_appears_step_by_step(self):
        page = self.open(self.browser.slow())
        self.watch()
        self.set(max_tokens=100, seed=1)
        self.send("One")
        expect(self.answer().locator(".figures")).to_contain_text("limit")
        self.expect_end()
        lengths = page.evaluate("lengths")
        self.assertEqual(lengths, sorted(lengths))
        self.assertGreater(len(set(lengths)), 10, lengths)
        self.assertEqual(lengths[-1], len(self.answer().locator("p").text_content()))
        told = re.match(
            rf"100 tokens in {DURATION} · first after {DURATION} · ([\d.]+) tokens/s · .*limit$", self.figures())
        self.assertIsNotNone(told, self.figures())
        # What it says of its speed fits what it says of its times. Those that arrive first, together, do not count.
        n = float(told[5]) * (seconds(told[1], told[2]) - seconds(told[3], told[4]))
        self.assertTrue(20 < n < 115, self.figures())

    def test_stop_ends_the_answer_and_frees_the_worker(self):
        for stop in (lambda page: page.locator("#stop").click(), lambda page: page.keyboard.press("Escape")):
            page = self.open(self.browser.slow())
            self.send("Without end")
            expect(self.answer().locator("p")).to_have_text(re.compile("..."))
            self.assertEqual(self.worker.health()["active_jobs"], 1)
            stop(page)
            self.expect_end()
            expect(self.answer().locator(".figures")).to_contain_text("stopped")
            give_up = time.monotonic() + PATIENCE_MS / SECONDS
            while self.worker.health()["active_jobs"] > 0:
                self.assertLess(time.monotonic(), give_up, "the job goes on")
                time.sleep(0.02)
            text = self.answer().locator("p").text_content()
            self.assertTrue(text)
            page.wait_for_timeout(300)
            self.assertEqual(self.answer().locator("p").text_content(), text)

    def test_another_mode_stops_the_answer_and_keeps_it(self):
        page = self.open(self.browser.slow())
        self.send("Without end")
        expect(self.answer().locator("p")).to_have_text(re.compile("..."))
        page.get_by_label("Prompt", exact=True).check(force=True)
        self.expect_end()
        expect(page.locator("#conversation")).not_to_contain_text("stopped", use_inner_text=True)
        page.get_by_label("Chat", exact=True).check(force=True)
        expect(self.answer().locator(".figures")).to_contain_text("stopped")


class Prompt(PageTest):
    def test_a_text_is_continued_as_it_stands(self):
        page = self.open(self.browser.haiku())
        page.get_by_label("Prompt", exact=True).check(force=True)
        self.set(temperature=0)
        self.send(HAIKU)
        self.expect_end()
        whole = self.worker.post("/v1/completions", {"prompt": HAIKU, "temperature": 0, "max_tokens": 100})
        self.assertEqual(self.answer().locator("p").text_content(), whole["choices"][0]["text"])
        expect(page.locator("#conversation")).to_contain_text(HAIKU)

    def test_text_that_looks_like_html_is_shown_as_text(self):
        page = self.open(self.browser.haiku())
        html = '<script>window.run = 1</script><img src="/x.png" onerror="window.run = 2"><b>bold</b>'
        # The built-in model writes no HTML, so its answer is changed on the way.
        event = {"choices": [{"index": 0, "text": html, "finish_reason": "stop"}], "usage": None}
        page.route("**/v1/completions", lambda route: route.fulfill(
            content_type="text/event-stream", body=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"))
        page.get_by_label("Prompt", exact=True).check(force=True)
        self.send(html)
        self.expect_end()
        for place in (".ask p", ".answer p"):
            self.assertEqual(page.locator(f"#prompt {place}").text_content(), html)
        self.assertEqual(page.locator("#conversation :is(script, #prompt img, b)").count(), 0)
        self.assertIsNone(page.evaluate("window.run ?? null"))


class Errors(PageTest):
    def test_a_prompt_that_is_too_long_is_told_in_words_and_the_next_one_works(self):
        self.open(self.browser.haiku())
        self.send("word " * 600)
        self.expect_end()
        told = self.answer().get_by_role("alert")
        self.assertRegex(told.text_content(), r"^Prompt has \d+ tokens; the context of 512 leaves no room for an answer\.$")
        self.send(RAIN)
        self.expect_end()
        expect(self.answer().locator("p")).to_have_text(re.compile(r"\w+ \w+"))

    def test_an_error_within_an_answer_and_a_torn_connection_are_told_too(self):
        page = self.open(self.browser.haiku())
        begin = 'data: {"choices": [{"index": 0, "delta": {"content": "leaves"}}], "usage": null}\n\n'
        for rest, words in [
            ('data: {"error": {"message": "the device failed", "code": "cuda_error"}}\n\ndata: [DONE]\n\n', "The device failed."),
            ("", "The connection ended before the answer did."),
        ]:
            page.unroute_all()
            page.route("**/v1/chat/completions", lambda route: route.fulfill(
                content_type="text/event-stream", body=begin + rest))
            self.send(RAIN)
            expect(self.answer().get_by_role("alert")).to_have_text(words)
            expect(self.answer().locator("p")).to_have_text("leaves")
        page.unroute_all()
        page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
        self.send(RAIN)
        expect(self.answer().get_by_role("alert")).to_contain_text("The worker does not answer.")

    def test_a_worker_that_is_busy_loading_or_failed_says_so(self):
        page = self.open(self.browser.haiku())
        health = self.worker.health()
        state = page.locator("#state span")
        for answer, words in [
            ({"status": "loading", "progress": 0.425}, "loading 42 %"),
            ({"status": "draining"}, "draining: no new work"),
            ({"status": "failed", "message": "out of memory"}, "failed: out of memory"),
            (None, "no answer from the worker"),
            ({"active_jobs": 3}, "ready, 3 other answers"),
        ]:
            page.unroute_all()
            page.route("**/health", lambda route: (
                route.fulfill(json={**health, **answer}) if answer else route.abort("connectionrefused")))
            expect(state).to_have_text(words)

    def test_the_page_asks_for_the_key_once_and_again_where_it_is_wrong(self):
        page = self.open(self.browser.with_key("right"))
        self.send(RAIN)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        page.keyboard.press("Escape")
        expect(self.answer().get_by_role("alert")).to_contain_text("wants an API key")
        page.get_by_role("button", name="Again").click()
        expect(page.locator("#key")).to_be_focused()
        expect(page.get_by_text("not accepted")).to_be_hidden()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("not accepted")).to_be_visible()
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("right")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(self.answer().locator("p")).to_have_text(re.compile(r"\w+ \w+"))
        self.expect_end()
        self.send("Write a haiku about snow")
        expect(page.locator("#chat > li")).to_have_count(2)
        self.expect_end()
        expect(self.answer().get_by_role("alert")).to_be_empty()


class Everybody(PageTest):
    def test_the_keyboard_alone_will_do(self):
        page = self.open(self.browser.slow())
        keys = page.keyboard
        focused = lambda: page.evaluate("document.activeElement.id || document.activeElement.value")
        self.assertEqual(focused(), "text")
        keys.type("One")
        keys.press("Shift+Enter")
        keys.type("two")
        self.assertEqual(page.locator("#text").input_value(), "One\ntwo")
        keys.press("Tab")
        self.assertEqual(focused(), "send")
        keys.press("Space")
        # The button that takes its place has the focus.
        expect(page.locator("#stop")).to_be_focused()
        expect(self.answer().locator("p")).to_have_text(re.compile("..."))
        keys.press("Space")
        expect(page.locator("#send")).to_be_focused()
        expect(self.answer().locator(".figures")).to_contain_text("stopped")
        reached = set()
        for _ in range(20):
            keys.press("Tab")
            reached.add(focused())
        controls = {"temperature", "top_p", "min_p", "repetition_penalty", "top_k", "max_tokens", "seed", "system", "chat",
                    "conversation", "text", "send", "clear"}
        self.assertEqual(controls - reached, set())
        page.locator("[value=chat]").focus()
        keys.press("ArrowRight")
        expect(page.locator("label[for=text]")).to_have_text("Text to continue")

    def test_every_control_has_a_name_and_answers_are_announced_when_whole(self):
        page = self.open(self.browser.slow())
        nameless = page.evaluate("""() => [...document.querySelectorAll("input, textarea")]
            .filter((element) => element.labels.length === 0).map((element) => element.outerHTML)""")
        self.assertEqual(nameless, [])
        log = page.get_by_role("log")
        self.send("Without end")
        expect(log).to_have_attribute("aria-busy", "true")
        page.locator("#stop").click()
        expect(log).to_have_attribute("aria-busy", "false")

    def test_a_setting_out_of_range_is_not_sent(self):
        page = self.open(self.browser.haiku())
        page.locator("#panel summary").click()
        self.set_hidden("top_k", -1)
        self.send(RAIN)
        expect(page.locator("#top_k")).to_be_focused()
        expect(page.locator("#chat > li")).to_have_count(0)
        expect(page.locator("#text")).to_have_value(RAIN)

    def set_hidden(self, name, value):
        self.page.evaluate("([name, value]) => { document.getElementById(name).value = value }", [name, value])

    def test_nothing_is_wider_than_a_phone(self):
        page = self.open(self.browser.haiku(), width=360, height=640, has_touch=True, is_mobile=True)
        widths = "[document.documentElement.scrollWidth, document.querySelector('#conversation').scrollWidth]"
        self.send("W" * 200 + " " + HAIKU)
        self.expect_end()
        self.assertEqual(page.evaluate(widths), [360, 360])
        page.locator("#panel summary").tap()
        expect(page.locator("#temperature")).to_be_visible()
        self.assertEqual(page.evaluate(widths), [360, 360])
        expect(page.locator("#send")).to_be_in_viewport()

    def test_text_has_the_contrast_that_eyes_need(self):
        for scheme in ("light", "dark"):
            page = self.open(self.browser.haiku(), color_scheme=scheme)
            color = lambda name: page.evaluate(
                "(name) => getComputedStyle(document.documentElement).getPropertyValue(name)", name).strip()
            for ink, ground, least in [
                ("--ink", "--ground", 4.5), ("--ink", "--raised", 4.5), ("--muted", "--ground", 4.5), ("--muted", "--raised", 4.5),
                ("--accent", "--ground", 4.5), ("--on-accent", "--accent", 4.5), ("--ground", "--ink", 4.5),
                ("--edge", "--ground", 3), ("--edge", "--raised", 3),
            ]:
                self.assertGreaterEqual(contrast(color(ink), color(ground)), least, (scheme, ink, ground))

    def test_who_wants_no_motion_gets_none(self):
        page = self.open(self.browser.slow(), reduced_motion="reduce")
        self.send("Without end")
        expect(page.locator("#stop")).to_be_visible()
        # Not the colours of buttons, which change when they change.
        moving = "document.getAnimations().filter((animation) => animation instanceof CSSAnimation).length"
        self.assertEqual(page.evaluate(moving), 0)
        page.emulate_media(reduced_motion="no-preference")
        self.assertEqual(page.evaluate(moving), 1)
        page.locator("#stop").click()
        self.expect_end()


def seconds(number, unit):
    return float(number) * (1 if unit == "s" else 0.001)


def contrast(*colors):
    """The ratio of WCAG 2, section 1.4.3."""
    def luminance(color):
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        parts = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))
    dark, light = sorted(luminance(color) for color in colors)
    return (light + 0.05) / (dark + 0.05)


if __name__ == "__main__":
    unittest.main()
