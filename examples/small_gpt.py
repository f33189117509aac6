"""A small causal transformer that grows while it learns to write.

    python examples/small_gpt.py [FILE] [--epochs N]

Without a file it learns sentences of a made-up almanac.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import esper

CONTEXT, WIDTH, HEADS, BLOCKS = 32, 24, 2, 3

parser = argparse.ArgumentParser()
parser.add_argument("file", nargs="?", type=Path, help="a text of at least some 20,000 characters")
parser.add_argument("--epochs", type=int, default=16)
options = parser.parse_args()


def almanac(sentences: int = 700) -> str:
    """Sentences about a year that never was."""
    draw = random.Random(0)
    who = ["the baker", "a grey heron", "our neighbour", "the old clock", "every child", "the north wind"]
    does = ["waits for", "sings to", "forgets", "walks around", "paints", "counts"]
    what = ["the harbour", "seven apples", "the first snow", "a paper boat", "the long bridge", "its own shadow"]
    when = ["in March", "before dawn", "on the last Friday", "while it rains", "at harvest time", "after the fair"]
    lines = (
        f"{draw.choice(when)}, {draw.choice(who)} {draw.choice(does)} {draw.choice(what)}." for _ in range(sentences)
    )
    return "\n".join(line[0].upper() + line[1:] for line in lines)


class Block(nn.Module):
    """Attention and a perceptron, each around a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Tokens to logits of the token that comes next."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary))

    def forward(self, tokens):
        x = self.token(tokens) + self.position.weight[: tokens.shape[-1]]
        return self.head(self.blocks(x))


text = almanac() if options.file is None else options.file.read_text(encoding="utf-8")[:200_000]
vocabulary = sorted(set(text))
codes = torch.tensor([vocabulary.index(character) for character in text])
count = (len(codes) - 1) // CONTEXT
inputs, targets = (codes[start : start + count * CONTEXT].view(count, CONTEXT) for start in (0, 1))
held_out = count // 4  # the last quarter: windows never overlap
x, y, x_held_out, y_held_out = inputs[:-held_out], targets[:-held_out], inputs[-held_out:], targets[-held_out:]

torch.manual_seed(0)
# Seeds around each perceptron, around each block, and over all blocks; colonies of all perceptrons, and of all blocks.
# The text is short: without min_targets=0 Esper would not try to grow.
config = esper.GrowthConfig(layers=["blocks.*.mlp", "blocks.?", "blocks"], max_rounds=1, min_targets=0)
model = esper.wrap(GPT(len(vocabulary)), config, example=x[:4])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = esper.BatchLoader((x, y), batch_size=16, seed=0)


def token_losses(model, inputs, targets):
    """Cross entropy of every character: ``[windows, tokens]``."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def evaluate(model):
    """One loss per held-out window."""
    return esper.Evaluation(losses=token_losses(model, x_held_out, y_held_out).mean(1))


session = esper.Session(
    model,
    optimizer,
    loss=lambda model, batch: token_losses(model, *batch).mean(),
    evaluate=evaluate,
    planned_steps=options.epochs * len(loader),
    scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(loader)),
    clip_grad_norm=1.0,
    loader=loader,
)
for epoch in range(options.epochs):
    for batch in loader:
        loss = session.step(batch)
    session.after_epoch()
    if (epoch + 1) % max(1, options.epochs // 4) == 0:
        print(f"epoch {epoch + 1:2}: training loss {float(loss):.3f} nats per character")
session.finish()

for report in session.field_reports:
    print(f"{report.blueprint} on {report.layer_id}: {report.outcome} ({report.reason})")
print(f"\n{esper.summary(model)}\n")

plain = esper.export(model).eval()
tokens = codes[:8].tolist()
with torch.no_grad():
    while len(tokens) < 200:
        logits = plain(torch.tensor([tokens[-CONTEXT:]]))[0, -1]
        tokens.append(int(torch.multinomial(logits.softmax(0), 1)))
print("".join(vocabulary[token] for token in tokens))
