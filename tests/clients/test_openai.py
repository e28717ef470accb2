"""The `openai` package, as it is published, against a running worker.

`cargo xtask test --clients` runs this. Each test is a claim about what a user of that package gets.
"""

import asyncio
import json
import os
import time
import unittest

import openai

from worker import Worker

PROMPT = 'Write a haiku about GPU computing that includes the word "forty-two"'
MESSAGES = [{"role": "user", "content": PROMPT}]


def setUpModule():
    global worker, client
    worker = Worker()
    client = openai.OpenAI(base_url=worker.url + "/v1", api_key="none", max_retries=0, timeout=60)


def tearDownModule():
    client.close()
    worker.stop()


def chat(**settings):
    return client.chat.completions.create(model="any", messages=MESSAGES, **{"temperature": 0, "max_tokens": 40, **settings})


def complete(**settings):
    settings = {"prompt": PROMPT, "temperature": 0, "max_tokens": 40, **settings}
    return client.completions.create(model="any", **settings)


class Chat(unittest.TestCase):
    def test_a_whole_answer_has_text_reason_and_usage(self):
        answer = chat()
        choice = answer.choices[0]
        self.assertEqual((answer.object, choice.message.role), ("chat.completion", "assistant"))
        self.assertTrue(choice.message.content)
        self.assertIn(choice.finish_reason, ("stop", "length"))
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertLessEqual(usage.completion_tokens, 40)

    def test_a_streamed_answer_is_the_whole_one(self):
        whole = chat()
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
        self.assertEqual("".join(delta.delta.content or "" for delta in deltas), whole.choices[0].message.content)
        self.assertEqual([delta.finish_reason for delta in deltas[:-1]], [None] * (len(deltas) - 1))
        self.assertEqual(deltas[-1].finish_reason, whole.choices[0].finish_reason)
        self.assertEqual((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], whole.usage.completion_tokens))
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)

    def test_the_packages_own_accumulator_agrees(self):
        settings = {"model": "any", "messages": MESSAGES, "temperature": 0, "max_tokens": 40}
        with client.chat.completions.stream(**settings, logprobs=True) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
            final = stream.get_final_completion()
        whole = chat(logprobs=True)
        self.assertEqual(text, final.choices[0].message.content)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(final.choices[0].logprobs.content, whole.choices[0].logprobs.content)

    def test_logprobs_come_with_bytes_that_are_the_text(self):
        answer = chat(logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), answer.usage.completion_tokens)
        text = bytes(byte for token in content for byte in token.bytes).decode()
        self.assertEqual(text, answer.choices[0].message.content)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertEqual(token.logprob, token.top_logprobs[0].logprob, "greedy takes the likeliest")
            self.assertLessEqual(token.logprob, 0)

    def test_several_choices_repeat_with_their_seed(self):
        def three(n=3):
            answer = chat(n=n, seed=7, temperature=1.5)
            return [choice.message.content for choice in answer.choices], answer.usage

        (texts, usage), (again, _), (one, _) = three(), three(), three(1)
        self.assertEqual(texts, again)
        self.assertEqual(texts[:1], one)
        self.assertEqual(len(set(texts)), 3)
        self.assertEqual(usage.prompt_tokens, chat(max_tokens=1).usage.prompt_tokens)

    def test_parts_of_text_and_a_developer_turn_are_taken(self):
        messages = [
            {"role": "developer", "content": "Write haiku."},
            {"role": "user", "content": [{"type": "text", "text": "About rain."}]},
        ]
        answer = client.chat.completions.create(model="any", messages=messages, max_completion_tokens=5)
        self.assertLessEqual(answer.usage.completion_tokens, 5)


class Completions(unittest.TestCase):
    def test_texts_lists_and_ids_are_prompts(self):
        one = complete()
        listed = complete(prompt=[PROMPT, "rain", PROMPT])
        texts = [choice.text for choice in listed.choices]
        self.assertEqual((texts[0], texts[2]), (one.choices[0].text,) * 2)
        self.assertEqual([choice.index for choice in listed.choices], [0, 1, 2])
        by_ids = complete(prompt=[283, 257, 275, 277, 870])
        self.assertEqual(by_ids.usage.prompt_tokens, 5)
        self.assertEqual(by_ids.choices[0].text, complete(prompt=[[283, 257, 275, 277, 870]]).choices[0].text)

    def test_a_streamed_answer_is_the_whole_one(self):
        chunks = list(complete(stream=True, echo=True))
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), PROMPT + complete().choices[0].text)
        self.assertEqual(chunks[-1].choices[0].text, "")
        self.assertIsNotNone(chunks[-1].choices[0].finish_reason)

    def test_a_stop_string_ends_the_answer_before_it(self):
        whole = complete().choices[0].text
        stop = whole[7:11]
        stopped = complete(stop=[stop])
        self.assertEqual(stopped.choices[0].text, whole[: whole.index(stop)])
        self.assertEqual(stopped.choices[0].finish_reason, "stop")

    def test_logprobs_are_parallel_lists(self):
        choice = complete(logprobs=2).choices[0]
        logprobs = choice.logprobs
        self.assertEqual("".join(logprobs.tokens), choice.text)
        for token, logprob, top, offset in zip(
            logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset, strict=True
        ):
            self.assertEqual(top[token], logprob)
            self.assertTrue(choice.text[offset:].startswith(token))

    def test_an_echoed_prompt_comes_with_its_log_probabilities(self):
        for max_tokens in (0, 1, 5):
            answer = complete(echo=True, logprobs=2, max_tokens=max_tokens)
            choice, usage = answer.choices[0], answer.usage
            lists = choice.logprobs
            self.assertTrue(choice.text.startswith(PROMPT))
            self.assertEqual("".join(lists.tokens[: usage.prompt_tokens]), PROMPT)
            self.assertEqual((lists.token_logprobs[0], lists.top_logprobs[0]), (None, None))
            rows = zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, lists.text_offset, strict=True)
            for token, logprob, top, offset in list(rows)[1:]:
                self.assertEqual(top[token], logprob)
                self.assertIn(len(top), (2, 3))
                self.assertTrue(choice.text[offset:].startswith(token))
            chunks = list(complete(echo=True, logprobs=2, max_tokens=max_tokens, stream=True))
            streamed = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
            self.assertEqual([t for part in streamed for t in part.tokens], lists.tokens)
            self.assertEqual([x for part in streamed for x in part.token_logprobs], lists.token_logprobs)
            self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), choice.text)

    def test_a_continuations_likelihood_is_what_a_harness_makes_of_the_echo(self):
        # As lm-eval's loglikelihood does it: context and continuation as ids, one token too many, its entry cut off.
        context, continuation = [283, 257, 275, 277], [870, 1145, 305]
        likelihoods = []
        for max_tokens, end in ((1, -1), (0, None)):
            answer = complete(prompt=[context + continuation], echo=True, logprobs=1, max_tokens=max_tokens)
            lists = answer.choices[0].logprobs
            likelihoods.append(lists.token_logprobs[len(context) : end])
        self.assertEqual(likelihoods[0], likelihoods[1])
        self.assertEqual(len(likelihoods[0]), len(continuation))
        # Each is what the tokens before it say of it.
        for i, logprob in enumerate(likelihoods[0]):
            before = context + continuation[:i]
            top = complete(prompt=before, max_tokens=1, logprobs=1, logit_bias={str(continuation[i]): 100}).choices[0].logprobs
            self.assertEqual(top.token_logprobs, [logprob])

    def test_penalties_and_biases_change_the_answer(self):
        def tokens(**settings):
            answer = complete(max_tokens=60, logprobs=0, extra_body={"ignore_eos": True}, **settings)
            return answer.choices[0].logprobs.tokens

        plain, penalized = tokens(), tokens(frequency_penalty=2, presence_penalty=2)
        self.assertGreater(len(set(penalized)), len(set(plain)), "tokens repeat less")
        self.assertEqual(tokens(logit_bias={"283": 100}), ["Write"] * 60)

    def test_ignore_eos_goes_on_to_the_limit(self):
        answer = complete(max_tokens=60, extra_body={"ignore_eos": True})
        self.assertEqual((answer.usage.completion_tokens, answer.choices[0].finish_reason), (60, "length"))


class Errors(unittest.TestCase):
    def test_a_bad_request_names_its_fields(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            chat(temperature=3, n=0)
        self.assertEqual(raised.exception.code, "invalid_value")
        self.assertIn(raised.exception.param, ("n", "temperature"))
        self.assertIn("temperature: expected a number from 0 to 2, got 3", raised.exception.message)
        self.assertIn("n: expected", raised.exception.message)

    def test_what_is_not_supported_is_refused_by_name(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            complete(best_of=3)
        self.assertEqual((raised.exception.code, raised.exception.param), ("unsupported_parameter", "best_of"))

    def test_a_prompt_longer_than_the_context_says_so(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            complete(prompt=[5] * 600)
        self.assertEqual(raised.exception.code, "context_length_exceeded")

    def test_an_unknown_model_is_not_found_only_where_it_is_asked_for(self):
        with self.assertRaises(openai.NotFoundError):
            client.models.retrieve("gpt-4o")
        self.assertEqual(complete(max_tokens=1).object, "text_completion")


class Slow(unittest.TestCase):
    """Against a model that writes some 40 tokens a second, so that whatever a test does to an answer finds it at work."""

    def setUp(self):
        # Two answers at a time and two that wait: a full queue is four.
        self.worker = Worker(
            "--model", os.environ["WORKER_SLOW_MODEL"], "--ctx-size", "4096", "--max-seqs", "2", "--queue-limit", "2")
        self.addCleanup(self.worker.stop)
        self.client = openai.OpenAI(base_url=self.worker.url + "/v1", api_key="none", max_retries=0, timeout=60)
        self.addCleanup(self.client.close)

    def complete(self, **settings):
        return self.client.completions.create(model="any", prompt=PROMPT, **settings)

    def test_a_full_queue_is_a_rate_limit_and_leaving_makes_room(self):
        stream = self.complete(n=4, stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
        next(iter(stream))
        with self.assertRaises(openai.RateLimitError):
            self.complete()
        stream.close()
        give_up = time.monotonic() + 30
        while any(self.worker.health()[jobs] for jobs in ("active_jobs", "queued_jobs")):
            self.assertLess(time.monotonic(), give_up, "the answers of a client that has left do not end")
            time.sleep(0.01)
        self.assertEqual(self.complete(max_tokens=2).object, "text_completion")

    def test_a_cancelled_stream_raises(self):
        stream = self.complete(stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
        chunks = iter(stream)
        self.assertTrue(self.worker.post("/cancel", {"job_id": next(chunks).id})["live"])
        with self.assertRaises(openai.APIError) as raised:
            list(chunks)
        self.assertIn("cancelled", raised.exception.message)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "introduce", "description": "Introduces somebody.", "parameters": PERSON}}]


class Structured(unittest.TestCase):
    """The built-in model knows nothing of JSON: what it writes is right because nothing else may be written."""

    def assert_person(self, text):
        person = json.loads(text)
        self.assertEqual(set(person), {"name", "age", "likes"})
        self.assertLessEqual(len(person["name"]), 12)
        self.assertIn(person["age"], range(151))
        self.assertLessEqual(len(person["likes"]), 2)
        self.assertLessEqual(set(person["likes"]), {"tea", "rain"})

    def test_a_schema_is_kept_by_every_choice(self):
        schema = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
        answer = chat(response_format=schema, n=2, temperature=1, seed=7, max_tokens=400)
        for choice in answer.choices:
            self.assertEqual(choice.finish_reason, "stop")
            self.assert_person(choice.message.content)

    def test_a_required_call_is_made_whole_and_streamed(self):
        named = {"type": "function", "function": {"name": "introduce"}}
        for tool_choice in ("required", named):
            settings = {"tools": TOOLS, "tool_choice": tool_choice, "parallel_tool_calls": False, "max_tokens": 400}
            choice = chat(**settings).choices[0]
            self.assertEqual((choice.finish_reason, choice.message.content), ("tool_calls", None))
            [call] = choice.message.tool_calls
            self.assertEqual((call.type, call.function.name), ("function", "introduce"))
            self.assert_person(call.function.arguments)
            with client.chat.completions.stream(model="any", messages=MESSAGES, temperature=0, **settings) as stream:
                for _ in stream:
                    pass
                streamed = stream.get_final_completion().choices[0]
            self.assertEqual(streamed.finish_reason, "tool_calls")
            self.assertEqual(streamed.message.tool_calls[0].function.arguments, call.function.arguments)

    def test_a_conversation_goes_on_behind_a_call(self):
        settings = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400}
        message = chat(**settings).choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"}
        messages = [*MESSAGES, message, result]
        settings = {"tools": TOOLS, "tool_choice": "none", "max_tokens": 10, "temperature": 0}
        answer = client.chat.completions.create(model="any", messages=messages, **settings)
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))

    def test_tools_that_the_model_would_not_be_told_of_are_refused_by_name(self):
        strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
        for tools in (TOOLS, strict):
            with self.assertRaises(openai.BadRequestError) as caught:
                chat(tools=tools)
            self.assertEqual(caught.exception.param, "tools")
            self.assertIn("required", str(caught.exception))

    def test_a_grammar_is_kept(self):
        grammar = 'root ::= "(" ( "forty" | "two" | root ){1,2} ")"'
        answer = complete(max_tokens=200, temperature=1, seed=7, extra_body={"grammar": grammar})
        self.assertRegex(answer.choices[0].text, r"^[(]+(forty|two|[()])+")

    def test_a_fault_names_the_place_in_the_schema(self):
        schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
        with self.assertRaises(openai.BadRequestError) as caught:
            chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
        self.assertIn("/properties/a", str(caught.exception))
        self.assertEqual(caught.exception.param, "response_format")


class Others(unittest.TestCase):
    def test_models_lists_the_one_there_is(self):
        (model,) = client.models.list().data
        self.assertEqual(client.models.retrieve(model.id), model)
        self.assertEqual(model.id, chat(max_tokens=1).model)

    def test_asynchronous_clients_side_by_side_get_what_each_gets_alone(self):
        async def together():
            async with openai.AsyncOpenAI(base_url=worker.url, api_key="none", max_retries=0) as client:
                asked = (client.completions.create(model="", prompt=PROMPT, seed=i, max_tokens=40) for i in range(4))
                return await asyncio.gather(*asked)

        for seed, answer in enumerate(asyncio.run(together())):
            alone = complete(seed=seed, temperature=1)
            self.assertEqual(answer.choices[0].text, alone.choices[0].text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
