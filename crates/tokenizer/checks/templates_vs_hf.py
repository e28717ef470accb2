"""The committed template snapshots against what transformers renders for the same conversations.

Usage: python templates_vs_hf.py VOCAB_DIR     (needs transformers and jinja2)
"""

import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

TESTS = Path(__file__).resolve().parent.parent / "tests"
SPECIAL = {
    "Qwen-Qwen2.5-7B-Instruct": ("", "<|im_end|>"),
    "Qwen-Qwen3-0.6B": ("", "<|im_end|>"),
    "meta-llama-Llama-3.1-8B-Instruct": ("<|begin_of_text|>", "<|eot_id|>"),
    "google-gemma-2-2b-it": ("<bos>", "<eos>"),
    "microsoft-Phi-3.5-mini-instruct": ("<s>", "<|endoftext|>"),
}


def outcome(template, case, bos, eos):
    try:
        return template.render(
            messages=case["messages"], tools=case.get("tools"), documents=None,
            add_generation_prompt=case["add_generation_prompt"],
            **{"bos_token": bos, "eos_token": eos, **case.get("extra", {})},
        )
    except Exception as error:
        return f"ERROR chat template: {error}"


def main():
    cases = json.loads((TESTS / "data" / "conversations.json").read_text())
    different = 0
    for name, (bos, eos) in SPECIAL.items():
        template = _compile_jinja_template((Path(sys.argv[1]) / f"{name}.jinja").read_text())
        ours = (TESTS / "snapshots" / f"templates__{name}.snap").read_text().split("---\n", 2)[2]
        theirs = "".join(f"=== {case}\n{outcome(template, cases[case], bos, eos)}\n" for case in cases)
        same = ours.strip("\n") == theirs.strip("\n")
        different += not same
        print(f"{name}: {'equal' if same else 'DIFFERENT'} over {len(cases)} conversations")
        if not same:
            import difflib
            sys.stdout.writelines(difflib.unified_diff(ours.splitlines(True), theirs.splitlines(True), "ours", "theirs"))
    sys.exit(different != 0)


main()
