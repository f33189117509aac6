"""The Trainer of Hugging Face: a small vision transformer grows while it trains, and is loaded by from_pretrained.

    python examples/hugging_face_trainer.py [EPOCHS]

Nothing is downloaded. Needs transformers and accelerate: pip install 'esper-morphogenetic[transformers]'.
"""

import sys
import tempfile

import torch
from transformers import AutoModelForImageClassification, TrainingArguments, ViTConfig
from transformers.utils.logging import disable_progress_bar

import esper
from esper.integrations.growth_trainer import GrowthTrainer

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 8


def rings(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Images of four pixels; the class is how far the two upper ones are from grey."""
    images = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    distance = images[:, 0, 0].norm(dim=1)
    labels = (distance > 0.8).long() + (distance > 1.5).long()
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


disable_progress_bar()
train, held_out = rings(320, seed=1), rings(800, seed=2)

torch.manual_seed(0)
# A model that is too narrow for the task, on purpose.
config = ViTConfig(
    image_size=2,
    patch_size=2,
    num_channels=1,
    num_labels=3,
    hidden_size=4,
    intermediate_size=1,
    num_hidden_layers=1,
    num_attention_heads=1,
    hidden_act="relu",
    hidden_dropout_prob=0.0,
)
model = AutoModelForImageClassification.from_config(config)
growth = esper.GrowthConfig(
    layers=["vit.layers.0"],
    blueprints=["bottleneck_mlp"],
    colonies=[],  # from_pretrained could not build wider layers
    min_targets=0,  # the data are few: without it Esper would not try to grow
    compare="steps",
    grow_at=0.25,
    round_fraction=0.3,
    ramp_fraction=0.05,
    capacity_per_round=1.5,
    max_growth=4.0,
)
esper.wrap(model, growth, example={"pixel_values": train[0]["pixel_values"][None]})

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=500,
        learning_rate=2e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        use_cpu=True,
    )
    trainer = GrowthTrainer(model=model, args=arguments, train_dataset=train, eval_dataset=held_out)
    trainer.train()  # goes on from the last checkpoint with resume_from_checkpoint=True
    measured = trainer.evaluate()["eval_loss"]

    for report in trainer.growth.field_reports:
        print(f"{report.blueprint} on {report.layer_id}: {report.outcome} ({report.reason})")
    print(f"\n{esper.summary(model)}")

    trainer.save_model(f"{folder}/grown")
    plain = AutoModelForImageClassification.from_pretrained(f"{folder}/grown", trust_remote_code=True).eval()
    images = torch.stack([one["pixel_values"] for one in held_out])
    labels = torch.stack([one["labels"] for one in held_out])
    with torch.no_grad():
        loaded = float(plain(pixel_values=images, labels=labels).loss)
    assert abs(loaded - measured) < 1e-4
    print(f"\nloaded by from_pretrained: held-out loss {loaded:.3f}, {plain.num_parameters()} parameters")
