"""Adapters of PEFT: grafts grow beside them, in the Trainer and without it, and both are kept."""

import runpy
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.optim import AdamW

import esper
from esper import ConfigError
from esper.integrations.growth_trainer import GrowthTrainer
from esper.integrations.transformers import save_pretrained
from esper.kasmina.host.anchoring import is_espers, places
from tests.few import few
from tests.integrations.small_models import KINDS, Script, arguments, data, example, growing, parts, settings

BLOCK, LAYER = "base_model.model.transformer.h.1", "base_model.model.transformer.h.0.mlp.c_fc"

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def adapted() -> nn.Module:
    """GPT-2 with adapters that already do something."""
    adapters = peft.LoraConfig(r=2, target_modules=["c_fc"], init_lora_weights=False, fan_in_fan_out=True)
    return peft.get_peft_model(KINDS["gpt2"].host(), adapters)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**example("gpt2")).logits


def frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: one.detach().clone()
        for name, one in model.named_parameters()
        if "lora" not in name and not is_espers(name)
    }


def trained_by_the_trainer(place: str, path: Any) -> nn.Module:
    trainer = growing(
        "gpt2",
        arguments(path, save_strategy="steps", save_steps=12),
        Script({1: [place]}),
        {"layers": [place], "axis": {"*": -1}},
        model=adapted(),
    )
    trainer.train()
    assert [report.outcome for report in trainer.growth.field_reports] == ["FOSSILIZED"]
    ended = logits(trainer.model)
    trainer.train(resume_from_checkpoint=True)
    assert torch.equal(logits(trainer.model), ended)
    return trainer.model


def trained_by_a_session(place: str, _: Any) -> nn.Module:
    model = esper.wrap(adapted(), settings("gpt2", layers=[place], axis={"*": -1}), example=example("gpt2"))
    held_out = torch.stack([one["input_ids"] for one in data("gpt2", 16, 2)])
    batches = torch.stack([one["input_ids"] for one in data("gpt2", 16, 1)]).split(4)

    def evaluate(model: nn.Module) -> esper.Evaluation:
        predicted = model(held_out).logits[:, :-1].transpose(1, 2)
        losses = nn.functional.cross_entropy(predicted, held_out[:, 1:], reduction="none").mean(1)
        return esper.Evaluation(losses=losses)

    session = esper.Session(
        model,
        AdamW(model.parameters(), lr=1e-2),
        loss=lambda model, batch: model(input_ids=batch, labels=batch).loss,
        evaluate=evaluate,
        planned_steps=20,
        policy=Script({1: [place]}),
    )
    for _ in range(5):
        for batch in batches:
            session.step(batch)
        session.after_epoch()
    session.finish()
    assert [report.outcome for report in session.field_reports] == ["FOSSILIZED"]
    return model


@pytest.mark.parametrize("train", few([trained_by_the_trainer, trained_by_a_session], [trained_by_the_trainer]))
def test_grafts_grow_beside_adapters_and_both_are_saved(train, all_pass, tmp_path):
    """The base stays frozen; the folder holds adapters and what has grown; the adapters of an export can be merged."""
    model = train(BLOCK, tmp_path / "run")
    before, after = frozen(adapted()), frozen(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    assert any(place.is_growing for place in places(model))
    save_pretrained(model, tmp_path / "kept")
    again = peft.PeftModel.from_pretrained(KINDS["gpt2"].host(), tmp_path / "kept")
    runpy.run_path(str(tmp_path / "kept" / "grown.py"))["attach"](again)
    assert torch.equal(logits(again), logits(model))
    merged = esper.export(model).merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), logits(model))


def test_the_adapters_of_a_layer_that_has_grown_are_not_merged(all_pass, tmp_path):
    """The graft would be gone."""
    model = trained_by_a_session(LAYER, tmp_path)
    with pytest.raises(ConfigError, match=r"Merge before esper\.wrap"):
        model.merge_and_unload()


def test_adapters_that_come_after_wrap_are_refused_with_the_order(tmp_path):
    model = esper.wrap(KINDS["gpt2"].host(), settings("gpt2"), example=example("gpt2"))
    late = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_fc"], fan_in_fan_out=True))
    with pytest.raises(ConfigError, match=r"Add adapters.*first; then call esper\.wrap"):
        GrowthTrainer(model=late, **parts("gpt2", arguments(tmp_path)))
