"""Random texts through this crate and through Google's sentencepiece with the same pieces and scores: equal ids.

Usage: python spm_vs_sentencepiece.py VOCAB_DIR [N]      (needs sentencepiece and protobuf)
"""

import json
import random
import subprocess
import sys
from pathlib import Path

from gguf import GGUFReader
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2 as pb

from ids_vs_hf import text


def load(path):
    fields = GGUFReader(path).fields
    value = lambda key: fields[f"tokenizer.ggml.{key}"].contents()
    model = pb.ModelProto()
    for piece, score, kind in zip(value("tokens"), value("scores"), value("token_type")):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return SentencePieceProcessor(model_proto=model.SerializeToString())


def main():
    path, n = Path(sys.argv[1]) / "ggml-vocab-llama-spm.gguf", int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    rng = random.Random("llama-spm")
    # sentencepiece takes a NUL for the end of a text.
    texts = [text(rng, ["<s", "/s>", "</ s>"]).replace("\0", "") for _ in range(n)]
    run = subprocess.run(["cargo", "run", "-q", "--release", "-p", "tokenizer", "--example", "encode_lines", "--", path],
                         input="".join(json.dumps(t) + "\n" for t in texts), capture_output=True, text=True, check=True,
                         cwd=Path(__file__).resolve().parent)
    ours = [json.loads(line) for line in run.stdout.splitlines()]
    processor = load(path)
    theirs = [processor.encode(t) for t in texts]
    different = [i for i in range(n) if ours[i] != theirs[i]]
    print(f"llama-spm: {n - len(different)} of {n} texts equal ({sum(map(len, theirs))} ids)")
    for i in different[:5]:
        at = next((k for k, (a, b) in enumerate(zip(ours[i], theirs[i])) if a != b), -1)
        print("  ", ours[i][at - 2:at + 5], theirs[i][at - 2:at + 5], repr(processor.decode(theirs[i][max(at - 2, 0):at + 5])))
    sys.exit(different != [])


main()
