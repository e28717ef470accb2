"""A worker as a process of its own, with the built-in model, on a free port."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request

READY_SECONDS = 60


class Worker:
    """Runs from `start` to `stop`; `url` is where it listens."""

    def __init__(self, *flags):
        binary = os.environ["WORKER_ORCD_BIN"]
        command = [binary, "--worker-id", "clients", "--device", "cpu", "--port", "0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = self.process.stdout.readline()
        self.url = line.removeprefix("listening on ").strip()
        assert self.url.startswith("http://"), f"the worker said {line!r}"
        self._wait_until_ready()

    def _wait_until_ready(self):
        give_up = time.monotonic() + READY_SECONDS
        while True:
            try:
                return urllib.request.urlopen(self.url + "/ready", timeout=5).read()
            except urllib.error.HTTPError:
                assert time.monotonic() < give_up, "the worker does not become ready"
                time.sleep(0.02)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=5))

    def health(self):
        return json.load(urllib.request.urlopen(self.url + "/health", timeout=5))

    def stop(self):
        self.process.terminate()
        self.process.stdout.close()
        assert self.process.wait(timeout=30) == 0, "the worker ends in order"
