"""`GET /metrics` as others read it: Prometheus' own tool and its Python client, neither of which shares code with the worker.

`cargo xtask test --clients` runs this, with promtool where one can be had (`PROMTOOL`).
"""

import os
import subprocess
import unittest
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from worker import Worker

CONTEXT = 512

FIRST_TOKEN = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
]  # fmt: skip
BETWEEN_TOKENS = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80]
REQUEST = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680]
TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500]

# Names, types and buckets of vLLM V1's metrics page, written down from there; the names as their series have them.
VLLM = {
    "vllm:num_requests_running": ("gauge", None),
    "vllm:num_requests_waiting": ("gauge", None),
    "vllm:kv_cache_usage_perc": ("gauge", None),
    "vllm:cache_config_info": ("gauge", None),
    "vllm:prefix_cache_queries_total": ("counter", None),
    "vllm:prefix_cache_hits_total": ("counter", None),
    "vllm:prompt_tokens_total": ("counter", None),
    "vllm:num_preemptions_total": ("counter", None),
    "vllm:generation_tokens_total": ("counter", None),
    "vllm:request_success_total": ("counter", None),
    "vllm:time_to_first_token_seconds": ("histogram", FIRST_TOKEN),
    "vllm:inter_token_latency_seconds": ("histogram", BETWEEN_TOKENS),
    "vllm:request_time_per_output_token_seconds": ("histogram", BETWEEN_TOKENS),
    "vllm:e2e_request_latency_seconds": ("histogram", REQUEST),
    "vllm:request_queue_time_seconds": ("histogram", REQUEST),
    "vllm:request_inference_time_seconds": ("histogram", REQUEST),
    "vllm:request_prefill_time_seconds": ("histogram", REQUEST),
    "vllm:request_decode_time_seconds": ("histogram", REQUEST),
    "vllm:request_prompt_tokens": ("histogram", TOKENS),
    "vllm:request_prefill_kv_computed_tokens": ("histogram", TOKENS),
    "vllm:request_generation_tokens": ("histogram", TOKENS),
    "vllm:request_max_num_generation_tokens": ("histogram", TOKENS),
    "vllm:request_params_max_tokens": ("histogram", TOKENS),
    "vllm:request_params_n": ("histogram", [1, 2, 5, 10, 20]),
}
OWN = {
    "worker_requests_total": ("counter", None),
    "worker_engine_steps_total": ("counter", None),
    "worker_memory_bytes": ("gauge", None),
    "worker_vram_bytes": ("gauge", None),
    "worker_uptime_seconds": ("gauge", None),
    "worker_device_info": ("gauge", None),
}


def setUpModule():
    global worker
    worker = Worker("--max-seqs", "2", "--queue-limit", "2", "--ctx-size", str(CONTEXT))
    for max_tokens in (1, 8):
        worker.post("/v1/completions", {"prompt": "A haiku about metrics", "max_tokens": max_tokens, "n": 2})


def tearDownModule():
    worker.stop()


def scrape(accept="text/plain"):
    request = urllib.request.Request(worker.url + "/metrics", headers={"Accept": accept})
    response = urllib.request.urlopen(request, timeout=5)
    return response.headers["Content-Type"], response.read().decode()


def shape(families):
    """Name, type and finite bucket bounds of each, in the form of the tables above."""
    found = {}
    for family in families:
        bounds = {float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")}
        finite = sorted(bounds - {float("inf")})
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = (family.type, finite if family.type == "histogram" else None)
    return found


class Metrics(unittest.TestCase):
    maxDiff = None

    def test_names_types_and_buckets_are_those_of_the_table_in_either_form(self):
        content_type, text = scrape()
        self.assertEqual(content_type, "text/plain; version=0.0.4; charset=utf-8")
        self.assertEqual(shape(parse_prometheus(text)), VLLM | OWN)
        content_type, text = scrape("application/openmetrics-text; version=1.0.0")
        self.assertEqual(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8")
        self.assertEqual(shape(parse_openmetrics(text)), VLLM | OWN)

    def test_every_series_has_vllms_labels(self):
        for family in parse_prometheus(scrape()[1]):
            for sample in family.samples:
                self.assertTrue(sample.labels["model_name"], sample)
                self.assertEqual(sample.labels.get("engine"), "0" if family.name.startswith("vllm:") else None, sample)

    def test_histograms_are_cumulative_and_end_with_their_count(self):
        for family in parse_prometheus(scrape()[1]):
            if family.type != "histogram":
                continue
            buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
            [count] = [sample.value for sample in family.samples if sample.name.endswith("_count")]
            self.assertEqual(buckets, sorted(buckets), family.name)
            self.assertEqual(buckets[-1], count, family.name)
            self.assertGreater(count, 0, family.name)

    def test_what_an_inference_gateway_needs_is_there(self):
        """The gauges of the model-server protocol of Kubernetes' Gateway API Inference Extension, as vLLM names them."""
        families = {family.name: family for family in parse_prometheus(scrape()[1])}
        for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
            [sample] = families[name].samples
            self.assertEqual((families[name].type, sample.value), ("gauge", 0))
        [config] = families["vllm:cache_config_info"].samples
        self.assertGreater(int(config.labels["block_size"]), 0)
        self.assertGreater(int(config.labels["num_gpu_blocks"]), 0)

    def test_promtool_has_nothing_against_it_but_vllms_colon(self):
        promtool = os.environ.get("PROMTOOL")
        if not promtool:
            self.skipTest("no promtool: set PROMTOOL, or put it on the PATH")
        check = [promtool, "check", "metrics"]
        done = subprocess.run(check, input=scrape()[1], capture_output=True, text=True, timeout=60)
        complaints = (done.stdout + done.stderr).splitlines()
        expected = [f"{name} metric names should not contain ':'" for name in VLLM]
        self.assertEqual(sorted(complaints), sorted(expected))
        # That it complains at all is seen from a text with one fault more.
        faulty = scrape()[1].replace("worker_uptime_seconds", "worker_uptime_total")
        done = subprocess.run(check, input=faulty, capture_output=True, text=True, timeout=60)
        self.assertIn('worker_uptime_total non-counter metrics should not have "_total" suffix', done.stdout + done.stderr)
