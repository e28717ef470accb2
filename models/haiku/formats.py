"""What each format of weights costs and gives: size, speed, distance from F16, and haiku. Writes a table and a plot.

    pip install gguf numpy matplotlib
    cargo xtask make-random random-f16.gguf --n-embd 1024 --n-head 16
    python models/haiku/formats.py target/release/worker-orcd --llama-quantize llama-quantize --speed-model random-f16.gguf \
        --llama-bench llama-bench --out target/formats

Accuracy is that of the haiku model: its KL divergence to F16 over 600 prompts with haiku of the grammar (`worker-orcd compare`), and how
many of the sixty minute words it answers, greedily, with a haiku: three lines of 5, 7 and 5 syllables that hold the word once. Speed is that
of another model, with random weights; llama-bench reads the same file directly after each of our runs. Files come from
`worker-orcd quantize`; those of formats that it does not write from llama-quantize, MXFP4 from Python's gguf. Where llama-quantize
knows a format too, the KL divergence of its file stands beside it.

    python models/haiku/formats.py target/release/worker-orcd --llama-quantize llama-quantize --golden

writes golden_divergence.json instead: a text of a quarter of those prompts, and how far llama.cpp's files are from F16 over it.
"""

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy

import haikugen

HERE = Path(__file__).parent
F16 = HERE / "haiku-qwen2-5.8m-f16.gguf"
FLOATS = ["F32", "F16", "BF16"]
OURS = ["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"]
LLAMA = ["IQ4_NL", "IQ4_XS", "Q3_K_M", "Q2_K"]
SAMPLES = 600
GOLDEN_SAMPLES = 150
N_MINUTES = 60
SEED = 20261123


def main():
    args = arguments()
    if not args.golden and not args.out:
        sys.exit("--out: expected a folder")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        if args.golden:
            llama = {name: bench.compare(bench.by_llama(F16, name))["kl_divergence"]["mean"]["value"] for name in OURS}
            golden = {"text": bench.text.read_text(), "llama.cpp": llama}
            (HERE / "golden_divergence.json").write_text(json.dumps(golden, indent=1) + "\n")
            return
        rows = [bench.row(name) for name in [*FLOATS, *OURS, *LLAMA, "MXFP4"]]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "formats.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    plot(rows, args.out / "formats.svg")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worker", type=Path, help="the worker's binary")
    parser.add_argument("--llama-quantize", type=Path, required=True, help="llama.cpp's llama-quantize")
    parser.add_argument("--speed-model", type=Path, help="an F16 file to measure speed with; none is measured without")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's llama-bench, to measure its speed too")
    parser.add_argument("--threads", type=int, default=2, help="those of both, for speed")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each speed, of which the median counts")
    parser.add_argument("--golden", action="store_true", help="write golden_divergence.json")
    parser.add_argument("--out", type=Path, help="the folder for formats.json and formats.svg")
    return parser.parse_args()


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.text = folder / "text.txt"
        rng = random.Random(SEED)
        samples = [haikugen.sample(rng) for _ in range(GOLDEN_SAMPLES if args.golden else SAMPLES)]
        self.text.write_text("".join(f"{prompt}\n{haiku}\n" for prompt, haiku, _ in samples))
        self.prompts = json.loads((HERE / "golden_minutes.json").read_text())

    def row(self, name):
        """One format's figures. `kl` and `llama_kl` are nats a token, with their standard errors; speeds tokens a second."""
        print(f"{name} ...", file=sys.stderr)
        file = self.quantized(F16, name)
        row = {"format": name, "by": "llama.cpp" if name in LLAMA else "gguf" if name == "MXFP4" else "worker-orcd"}
        compared = self.compare(file)
        n_values = sum(int(numpy.prod(t.shape)) for t in gguf.GGUFReader(F16).tensors)
        row["bits"] = 8 * compared["b"]["weight_bytes"] / n_values
        row["kl"] = compared["kl_divergence"]["mean"]
        row["same_top"] = compared["same_top"]
        row["n_haiku"] = sum(self.is_haiku(file, p) for p in self.prompts)
        if name in OURS:
            row["llama_kl"] = self.compare(self.by_llama(F16, name))["kl_divergence"]["mean"]
        if self.args.speed_model:
            row |= self.speed(self.quantized(self.args.speed_model, name))
        return row

    def quantized(self, source, name):
        if name == "F16":
            return source
        if name in LLAMA:
            return self.by_llama(source, name)
        to = self.folder / f"{source.stem}-{name}.gguf"
        if name == "MXFP4":
            to_mxfp4(source, to)
        else:
            self.run(self.args.worker, "quantize", source, to, name)
        return to

    def by_llama(self, source, name):
        to = self.folder / f"{source.stem}-{name}-llama.gguf"
        self.run(self.args.llama_quantize, source, to, name)
        return to

    def compare(self, file):
        return json.loads(self.run(self.args.worker, "compare", F16, file, "--file", self.text, "--json", "--device", "cpu"))

    def is_haiku(self, file, prompt):
        text = json.loads(self.run(
            self.args.worker, "generate", "--model", file, "--prompt", prompt["prompt"], "--temperature", "0", "--device", "cpu",
            "--max-tokens", "48", "--json"))["text"]
        return haikugen.is_575(text) and len(re.findall(rf"(?<![\w-]){prompt['word']}(?![\w-])", text)) == 1

    def speed(self, file):
        """Medians of our runs and llama.cpp's, which take turns."""
        runs = [self.speeds_once(file) for _ in range(self.args.repetitions)]
        if file != self.args.speed_model:
            file.unlink()  # half a gigabyte each
        return {key: statistics.median(run[key] for run in runs) for key in runs[0]}

    def speeds_once(self, file):
        threads = str(self.args.threads)
        ours = json.loads(self.run(
            self.args.worker, "bench", "--model", file, "--device", "cpu", "--threads", threads, "-p", "512", "-n", "32", "-r", "1", "--json"))
        speeds = {result["test"]: result["tokens_per_sec"]["median"] for result in ours["results"]}
        if self.args.llama_bench:
            theirs = json.loads(self.run(
                self.args.llama_bench, "-m", file, "-t", threads, "-p", "512", "-n", "32", "-r", "1", "-o", "json"))
            speeds |= {"llama_prompt" if run["n_gen"] == 0 else "llama_decode": run["avg_ts"] for run in theirs}
        return speeds

    def run(self, *command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{command[0]} {command[1]} failed:\n{done.stderr[-2000:]}")
        return done.stdout


def to_mxfp4(source, to):
    """Matrices with rows of whole blocks in MXFP4, everything else as it is."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(to, architecture)
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    mxfp4 = gguf.GGMLQuantizationType.MXFP4
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F16 and len(tensor.shape) == 2 and tensor.shape[0] % 32 == 0:
            writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data.astype(numpy.float32), mxfp4), raw_dtype=mxfp4)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def table(rows):
    def kl(value):  # in thousandths of a nat, with one digit of the error
        if value is None:
            return ""
        mean, error = 1000 * value["value"], 1000 * value["error"]
        digits = 0 if error == 0 else max(0, -math.floor(math.log10(error)))
        return f"{mean:.{digits}f} ± {error:.{digits}f}"

    def speed(row, key):
        return f"{row[key]:.{1 if row[key] < 100 else 0}f}" if key in row else ""

    titles = ["format", "bits a weight", "KL divergence to F16, millinats a token", "of llama.cpp's file", "same likeliest token", "haiku",
              "decode", "llama.cpp's", "prompt of 512", "llama.cpp's"]
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]
    for row in rows:
        by = {"llama.cpp": " ¹", "gguf": " ²"}.get(row["by"], "")
        cells = [row["format"] + by, f"{row['bits']:.2f}", kl(row["kl"]), kl(row.get("llama_kl")), f"{100 * row['same_top']['value']:.1f} %",
                 f"{row['n_haiku']} of {N_MINUTES}"]
        cells += [speed(row, key) for key in ["decode", "llama_decode", "prompt", "llama_prompt"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows, to):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "formats"  # the same file from the same figures
    from matplotlib import pyplot

    quantised = [row for row in rows if row["format"] not in FLOATS]
    f16 = rows[FLOATS.index("F16")]
    panels = [("bits a weight", "bits", lambda r: r["bits"], None),
              ("KL divergence to F16,\nmillinats a token (log scale)", "kl", lambda r: 1000 * r["kl"]["value"], "log")]
    if all("decode" in row for row in rows):
        panels.append(("decode, tokens/s\n(random model, CPU)", "decode", lambda r: r["decode"], None))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.5 * len(panels) + 1, 5), sharey=True)
    names = [row["format"] for row in quantised]
    for ax, (title, key, value, scale) in zip(axes, panels):
        values = [value(row) for row in quantised]
        errors = [1000 * row["kl"]["error"] for row in quantised] if key == "kl" else None
        ax.barh(names, values, xerr=errors, color="#4477aa", ecolor="#222222", capsize=2)
        for y, x in enumerate(values):
            ax.annotate(f"{x:.3g}", (x, y), textcoords="offset points", xytext=(9, -3), fontsize=8)
        if key == "decode":
            ax.axvline(f16["decode"], color="#cc6677", linestyle="--", label="F16")
            ax.legend(loc="lower right", fontsize=8)
        ax.set(title=title, **({"xscale": scale} if scale else {}))
        ax.margins(x=0.25)
        ax.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(to, metadata={"Date": None})


if __name__ == "__main__":
    main()
