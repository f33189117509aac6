"""Models of transformers, from configurations: what has grown is exported, saved and loaded without Esper."""

import copy
import runpy

import peft
import pytest
import torch
import transformers
from torch import nn

import esper
from esper import ConfigError
from esper.contracts.lifecycle import State
from esper.integrations.source import source_of
from esper.integrations.transformers import save_pretrained
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.layer import KasminaLayer
from tests import warm
from tests.kasmina.growing import grow, place_of
from tests.kasmina.zoo import HIDDEN, REAL, VOCABULARY, real

TOKENS = torch.arange(1, 15).view(2, 7) % VOCABULARY
TEXT = {"input_ids": TOKENS}
MASKED = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
BOTH = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
SOUND = {"input_features": torch.linspace(-1, 1, 2 * 4 * 16).view(2, 4, 16), "decoder_input_ids": TOKENS}
IMAGES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)}

MODELS = {
    "llama": (
        real("LlamaForCausalLM", **HIDDEN, num_key_value_heads=1, tie_word_embeddings=True),
        ["model.layers.0.mlp.down_proj", "model.layers.1", "lm_head"],
        MASKED,
    ),
    "gpt2": (REAL["gpt2"].build, ["transformer.h.0.mlp", "transformer.h.1", "lm_head"], TEXT),
    "bert": (REAL["bert"].build, ["bert.encoder.layer.0.output.dense", "bert.encoder.layer.1"], MASKED),
    "vit": (REAL["vit"].build, ["vit.layers.0.mlp.fc2", "vit.layers.1"], IMAGES),
    "t5": (REAL["t5"].build, ["decoder.block.0.layer.2", "decoder.block.1", "encoder.block.0"], BOTH),
    "mamba": (REAL["mamba"].build, ["backbone.layers.1.mixer", "backbone.layers.0"], TEXT),
    "whisper": (REAL["whisper"].build, ["model.encoder.layers.0.fc2", "model.decoder.layers.1"], SOUND),
}


def host(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def grown(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """With a fossil at every place."""
    model = host(name).to(dtype)
    config = esper.GrowthConfig(layers=MODELS[name][1], seeds_per_layer=1, axis={"*": -1})
    esper.wrap(model, config, example=MODELS[name][2])
    for number, layer_id in enumerate(MODELS[name][1], start=1):
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3, lifecycle=number)
    return model


def logits(model: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**MODELS[name][2]).logits


@pytest.mark.parametrize("name", MODELS)
def test_an_export_gives_the_same_logits_and_keeps_class_and_keys(name):
    model = grown(name)
    plain, bare = esper.export(model), host(name)
    assert torch.equal(logits(plain, name), logits(model, name))
    assert not torch.equal(logits(plain, name), logits(bare, name))
    assert type(plain) is type(bare)
    assert [key for key in plain.state_dict() if "grown" not in key] == list(bare.state_dict())


LOADING = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "esper":
            raise ImportError("Esper is not installed here")
sys.meta_path.insert(0, Absent())
import torch, transformers
for name in sys.argv[1:]:
    example, wanted = torch.load(name + ".pt")
    autos = transformers.AutoConfig.from_pretrained(name).auto_map
    for auto in autos:
        model = getattr(transformers, auto).from_pretrained(name, trust_remote_code=True)
        with torch.no_grad():
            assert torch.equal(model.eval()(**example).logits, wanted), (name, auto)
    print(name, type(model).__name__, *sorted(autos))
"""


def test_what_was_saved_loads_to_the_same_bits_without_esper(tmp_path):
    for name in MODELS:
        model = grown(name)
        save_pretrained(model, tmp_path / name)
        torch.save((MODELS[name][2], logits(model, name)), tmp_path / f"{name}.pt")
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = warm.run(["-c", LOADING, *MODELS], folder=tmp_path, environment=environment)
    assert done.stdout.splitlines() == [
        "llama GrownLlamaForCausalLM AutoModel AutoModelForCausalLM",
        "gpt2 GrownGPT2LMHeadModel AutoModel AutoModelForCausalLM AutoModelForPreTraining",
        "bert GrownBertForSequenceClassification AutoModel AutoModelForSequenceClassification",
        "vit GrownViTForImageClassification AutoModel AutoModelForImageClassification",
        "t5 GrownT5ForConditionalGeneration AutoModel AutoModelForPreTraining AutoModelForSeq2SeqLM",
        "mamba GrownMambaForCausalLM AutoModel AutoModelForCausalLM AutoModelForPreTraining",
        "whisper GrownWhisperForConditionalGeneration AutoModel AutoModelForSpeechSeq2Seq",
    ], done.stderr


@pytest.mark.parametrize(("saved", "loaded"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_what_was_saved_loads_in_another_dtype(name, saved, loaded, tmp_path):
    save_pretrained(grown(name, saved), tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=True, dtype=loaded)
    wanted = grown(name, saved).to(loaded)
    assert next(model.parameters()).dtype == loaded
    torch.testing.assert_close(logits(model, name), logits(wanted, name), rtol=0, atol=0.1)


NEOX = transformers.GPTNeoXConfig(
    vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
)
MIXTRAL = transformers.MixtralConfig(
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_local_experts=2,
)
RENAMED = {
    "a head": (transformers.GPTNeoXForCausalLM, NEOX, TEXT, "gpt_neox.layers.0.mlp"),
    "layers": (transformers.ViTModel, MODELS["vit"][0]().config, IMAGES, "layers.0.mlp"),
    "experts": (transformers.MixtralForCausalLM, MIXTRAL, TEXT, "model.norm"),
}
"""Models of which transformers writes and reads some keys under other names."""


def renamed(name: str) -> tuple[nn.Module, nn.Module]:
    """Without and with a fossil."""
    kind, config, example, layer_id = RENAMED[name]
    torch.manual_seed(0)
    bare = kind(config).eval()
    model = copy.deepcopy(bare)
    esper.wrap(model, esper.GrowthConfig(layers=[layer_id], seeds_per_layer=1), example=example)
    grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    return bare, model


@pytest.mark.parametrize("name", RENAMED)
def test_a_class_whose_keys_transformers_renames_is_saved_too(name, tmp_path):
    bare, model = renamed(name)
    save_pretrained(model, tmp_path)
    autos = transformers.AutoConfig.from_pretrained(tmp_path).auto_map
    auto = getattr(transformers, next(one for one in autos if one != "AutoModel" or len(autos) == 1))
    example = RENAMED[name][2]
    for trusting, wanted in ((True, model), (False, bare)):
        loaded = auto.from_pretrained(tmp_path, trust_remote_code=trusting).eval()
        with torch.no_grad():
            assert torch.equal(loaded(**example)[0], wanted(**example)[0])


def test_a_folder_that_loads_other_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"loads other weights, at 'lm_head\.weight'.*torch\.save"):
        save_pretrained(renamed("a head")[1], tmp_path, save_original_format=True)


@pytest.mark.parametrize("blueprint", ["sliding_conv", "mini_attention"])
def test_what_mixes_tokens_generates_without_a_cache_once_exported_or_loaded(blueprint, tmp_path):
    model = host("llama")
    model.config.use_cache = False
    esper.wrap(model, esper.GrowthConfig(layers=["model.layers.0.mlp"], seeds_per_layer=1), example=MASKED)
    grow(place_of(model, "model.layers.0.mlp"), "all", State.FOSSILIZED, blueprint=blueprint)
    save_pretrained(model, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    options = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    wanted = torch.stack(model.generate(TOKENS, use_cache=False, **options).logits)
    for one in (esper.export(model), loaded.eval()):
        torch.testing.assert_close(torch.stack(one.generate(TOKENS, **options).logits), wanted)
    assert model.generation_config.use_cache


def test_the_folder_tells_what_has_grown_and_how_to_load_it(tmp_path):
    save_pretrained(grown("llama"), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert 'AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)' in card
    assert "| `model.layers.1` | 115 |" in card
    assert "esper" not in (tmp_path / "modeling_grown.py").read_text().replace("Written by Esper", "")


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"input_ids": TOKENS[index % 2], "labels": TOKENS[index % 2], "more": index}


def test_the_trainer_trains_and_keeps_a_wrapped_model_which_is_exported_then(tmp_path):
    """It chooses columns of a batch by the forward's signature, and sets a forward on the instance."""
    model = host("gpt2")
    esper.wrap(model, esper.GrowthConfig(layers=["lm_head"], seeds_per_layer=1), example=TEXT)
    settings = {"max_steps": 2, "save_steps": 2, "report_to": [], "disable_tqdm": True}
    arguments = transformers.TrainingArguments(tmp_path, bf16=True, use_cpu=True, **settings)
    transformers.Trainer(model, arguments, train_dataset=Texts()).train()
    kept = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-2").eval()
    assert "forward" in vars(model)
    assert torch.equal(logits(esper.export(model.eval()), "gpt2"), logits(kept, "gpt2"))
    grow(place_of(model, "lm_head"), "all", State.FOSSILIZED, hidden=3)
    plain = esper.export(model)
    del model.forward
    assert torch.equal(logits(plain, "gpt2"), logits(model, "gpt2"))


@pytest.mark.parametrize("is_exported", [False, True])
def test_the_models_own_save_pretrained_does_not_lose_what_grew(is_exported, tmp_path):
    model = esper.export(grown("gpt2")) if is_exported else grown("gpt2")
    with pytest.raises((ConfigError, AssertionError), match=r"esper\.integrations\.transformers\.save_pretrained"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    save_pretrained(model, tmp_path)
    assert (tmp_path / "modeling_grown.py").exists()


@pytest.mark.parametrize("save", [lambda model, path: model.save_pretrained(path), save_pretrained])
def test_a_dormant_model_is_saved_as_the_host_would_be(save, tmp_path):
    model = host("llama")
    model.save_pretrained(tmp_path / "bare")
    esper.wrap(model, example=MODELS["llama"][2])
    save(model, tmp_path / "wrapped")
    assert isinstance(model, KasminaLayer)
    files = sorted(path.name for path in (tmp_path / "bare").iterdir())
    assert sorted(path.name for path in (tmp_path / "wrapped").iterdir()) == files
    for name in files:
        assert (tmp_path / "wrapped" / name).read_bytes() == (tmp_path / "bare" / name).read_bytes()


def test_a_grown_span_is_saved_too(tmp_path):
    model = host("gpt2")
    model.transformer.h[0].mlp = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
    esper.wrap(model, esper.GrowthConfig(layers=["transformer.h.0.mlp.0:transformer.h.0.mlp.2"]), example=TEXT)
    grow(next(places(model)), "all", State.FOSSILIZED, hidden=3)
    imports, classes = source_of(esper.export(model))
    other, scope = host("gpt2"), {}
    other.transformer.h[0].mlp = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
    exec(f"{imports}\n{classes}", scope)
    scope["grow"](other)
    other.load_state_dict(esper.export(model).state_dict())
    assert torch.equal(logits(other, "gpt2"), logits(model, "gpt2"))


def test_a_span_whose_steps_transformers_walks_is_saved_too(tmp_path):
    """The steps of a stage of a ResNet are called one by one."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[3], layer_type="basic", num_labels=3)
    model = transformers.ResNetForImageClassification(config).eval()
    layer_id = "resnet.encoder.stages.0.layers.0:resnet.encoder.stages.0.layers.1"
    esper.wrap(model, esper.GrowthConfig(layers=[layer_id]), example=IMAGES)
    grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    save_pretrained(model, tmp_path)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**IMAGES).logits, model(**IMAGES).logits)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_are_saved_with_what_has_grown_beside_them(tmp_path):
    adapters = peft.LoraConfig(r=2, target_modules=["c_fc"], init_lora_weights=False, fan_in_fan_out=True)
    model = peft.get_peft_model(host("gpt2"), adapters).eval()
    layers = ["base_model.model.transformer.h.1", "base_model.model.lm_head"]
    esper.wrap(model, esper.GrowthConfig(layers=layers, axis={"*": -1}, seeds_per_layer=1), example=TEXT)
    for layer_id in layers:
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    save_pretrained(model, tmp_path)
    scope = runpy.run_path(str(tmp_path / "grown.py"))
    again = peft.PeftModel.from_pretrained(host("gpt2"), tmp_path).eval()
    assert not torch.equal(logits(again, "gpt2"), logits(model, "gpt2"))
    assert torch.equal(logits(scope["attach"](again), "gpt2"), logits(model, "gpt2"))
    half = peft.PeftModel.from_pretrained(host("gpt2").bfloat16(), tmp_path, autocast_adapter_dtype=False).eval()
    assert {parameter.dtype for parameter in scope["attach"](half).parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(half, "gpt2").float(), logits(model, "gpt2"), rtol=0, atol=0.1)


def test_a_class_that_transformers_does_not_bring_is_refused_with_the_remedy(tmp_path):
    model = esper.wrap(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ConfigError, match=r"not a Sequential.*torch\.save\(esper\.export"):
        save_pretrained(model, tmp_path)


def test_no_other_weights_are_written(tmp_path):
    with pytest.raises(ConfigError, match="Leave out state_dict"):
        save_pretrained(grown("gpt2"), tmp_path, state_dict={})


def test_nothing_is_pushed(tmp_path):
    with pytest.raises(ConfigError, match="pushes nothing"):
        save_pretrained(grown("gpt2"), tmp_path, push_to_hub=True)


def test_a_model_with_wider_layers_is_not_written_where_its_configuration_would_lie(tmp_path):
    torch.manual_seed(0)
    model = esper.wrap(REAL["llama"].build(), example=REAL["llama"].example())
    grow(place_of(model, "model.layers.*.mlp"), "all", State.FOSSILIZED)
    for one in (model, esper.export(model)):
        with pytest.raises(ConfigError, match=r"wider than its config\.json can tell.*torch\.save"):
            save_pretrained(one, tmp_path)
    assert not list(tmp_path.iterdir())
