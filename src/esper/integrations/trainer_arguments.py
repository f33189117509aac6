"""What a Trainer is given that cannot work with a model that grows, told before anything is built."""

from typing import Any

from esper.contracts.errors import ConfigError
from esper.kasmina.host.wrapping import growth_config

OTHERS = {
    "deepspeed": "DeepSpeed shares the parameters out among processes",
    "fsdp": "FSDP shares the parameters out among processes",
    "parallelism_config": "it shares the model or its sequences out among processes",
    "auto_find_batch_size": "a run that begins anew with smaller batches begins with a model that has trained already",
    "torch_compile": "the compiled model is not the one that grows; wrap, and call model.compile() yourself",
}
"""Arguments that are refused, and why."""


def check_arguments(args: Any, eval_dataset: Any) -> None:
    """Refuse training arguments that cannot work, and a run without held-out data.

    Raises:
        ConfigError: naming the argument.
    """
    for name, why in OTHERS.items():
        if getattr(args, name, None):
            raise ConfigError(f"TrainingArguments({name}={getattr(args, name)!r}) does not work with growth: {why}.")
    if args.n_gpu > 1:
        raise ConfigError(
            f"One process would use {args.n_gpu} devices, and a model that grows needs a process for each. Start "
            "them by torchrun, or let this one see one GPU: CUDA_VISIBLE_DEVICES=0."
        )
    if args.load_best_model_at_end and args.save_only_model:
        raise ConfigError(
            "load_best_model_at_end needs whole checkpoints, which hold what had grown: save_only_model=False."
        )
    if eval_dataset is None:
        raise ConfigError(
            "GrowthTrainer has no eval_dataset, on whose samples everything that grows is judged. Hand over held-out "
            "data, some 500 samples or more."
        )


def check_model(model: Any, optimizer: Any) -> None:
    """Refuse a model that was not wrapped, and an optimizer of another one.

    Raises:
        ConfigError: with what to do.
    """
    growth_config(model)
    if optimizer is None:
        return
    own = {id(parameter) for parameter in model.parameters()}
    held = [one for group in optimizer.param_groups for one in group["params"]]
    others = sum(id(one) not in own for one in held)
    if others:
        raise ConfigError(
            f"{others} of the {len(held)} parameters in optimizers are not the model's. Call esper.wrap first, then "
            "build the optimizer over the parameters of the wrapped model."
        )
