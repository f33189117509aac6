"""Hosts of all kinds, and inputs for each."""

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

Host = tuple[nn.Module, tuple[Any, ...]]
HOSTS: dict[str, Callable[[], Host]] = {}
UNFIT: dict[str, Callable[[], Host]] = {}


def host(make: Callable[[], Host]) -> Callable[[], Host]:
    """List a host that works."""
    HOSTS[make.__name__] = make
    return make


def unfit(make: Callable[[], Host]) -> Callable[[], Host]:
    """List a host with inputs that it does not take, or that show nothing of it."""
    UNFIT[make.__name__] = make
    return make


def x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), *(between or (nn.ReLU(),)), nn.Linear(8, 4))


class Calls(nn.Module):
    """Runs a function of itself and its inputs."""

    def __init__(self, run: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


@host
def frozen_throughout() -> Host:
    return mlp().requires_grad_(False), (x(5, 6),)


@host
def frozen_first_layer() -> Host:
    model = mlp()
    model[0].requires_grad_(False)
    return model, (x(5, 6),)


@host
def one_frozen_bias() -> Host:
    model = mlp()
    model[2].bias.requires_grad_(False)
    return model, (x(5, 6),)


@host
def no_bias() -> Host:
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False)), (x(5, 6),)


@host
def the_same_layer_three_times() -> Host:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer), (x(5, 6),)


@host
def the_same_block_twice() -> Host:
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    return nn.Sequential(block, nn.Tanh(), block), (x(5, 6),)


@host
def tied_embedding_and_head() -> Host:
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(10, 6), body=nn.Linear(6, 6), head=nn.Linear(6, 10)))
    model.head.weight = model.embed.weight
    return model, (torch.tensor([[1, 2], [9, 0]]),)


@host
def one_parameter_under_two_names() -> Host:
    model = mlp()
    model[2].register_parameter("again", model[0].weight)
    return model, (x(5, 6),)


@host
def layers_of_one_channel() -> Host:
    return nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), (x(5, 1),)


@host
def a_layer_that_reads_nothing() -> Host:
    return Calls(lambda m, x: m.body(x) + m.none(x[:, :0]), body=mlp(), none=nn.Linear(0, 4)), (x(5, 6),)


@host
def a_layer_that_writes_nothing() -> Host:
    run = lambda m, x: torch.cat([m.body(x), m.none(x)], 1)  # noqa: E731
    return Calls(run, body=mlp(), none=nn.Linear(6, 0)), (x(5, 6),)


@host
def grouped_convolutions() -> Host:
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=4)), (
        x(2, 4, 5, 5),
    )


@host
def depthwise_convolutions() -> Host:
    return nn.Sequential(nn.Conv1d(6, 6, 3, groups=6), nn.GELU(), nn.Conv1d(6, 3, 1)), (x(2, 6, 9),)


@host
def transposed_convolution() -> Host:
    return nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2, groups=1), nn.ReLU(), nn.Conv2d(4, 2, 1)), (
        x(2, 3, 4, 4),
    )


@host
def three_dimensional_convolution() -> Host:
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Conv3d(2, 1, 1)), (x(1, 1, 3, 3, 3),)


@unfit
def unbatched_convolution() -> Host:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), (x(3, 5, 5),)


@host
def channels_last_memory() -> Host:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return model.to(memory_format=torch.channels_last), (x(2, 3, 5, 5).to(memory_format=torch.channels_last),)


@host
def old_weight_norm() -> Host:
    model = mlp()
    model[0] = nn.utils.weight_norm(model[0])
    return model, (x(5, 6),)


@host
def old_spectral_norm() -> Host:
    model = mlp()
    model[0] = nn.utils.spectral_norm(model[0])
    return model, (x(5, 6),)


@host
def new_weight_norm() -> Host:
    model = mlp()
    parametrizations.weight_norm(model[2])
    return model, (x(5, 6),)


@host
def new_spectral_norm() -> Host:
    model = mlp()
    parametrizations.spectral_norm(model[0])
    return model, (x(5, 6),)


@host
def orthogonal() -> Host:
    model = mlp()
    parametrizations.orthogonal(model[2])
    return model, (x(5, 6),)


class Skew(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu(1) - weight.triu(1).T


@host
def a_parametrisation_of_ones_own() -> Host:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    parametrize.register_parametrization(model[0], "weight", Skew())
    return model, (x(5, 6),)


@host
def pruned() -> Host:
    model = mlp()
    prune.random_unstructured(model[0], "weight", amount=0.5)
    return model, (x(5, 6),)


class LowRank(nn.Module):
    """A hand-made adapter around a frozen layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@host
def hand_made_adapters() -> Host:
    return nn.Sequential(LowRank(nn.Linear(6, 8)), nn.ReLU(), LowRank(nn.Linear(8, 4))), (x(5, 6),)


@host
def an_adapter_that_is_a_linear() -> Host:
    class Adapted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 8)
            self.down, self.up = nn.Parameter(x(2, 6)), nn.Parameter(x(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x @ self.down.T @ self.up.T

    return nn.Sequential(Adapted(), nn.ReLU(), nn.Linear(8, 4)), (x(5, 6),)


@host
def some_layers_quantised() -> Host:
    tail = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear}, dtype=torch.qint8)
    return Calls(lambda m, x: m.body(x) + m.tail(m.body[0](x)).detach(), body=mlp(), tail=tail), (x(5, 6),)


@host
def parts_without_parameters() -> Host:
    return nn.Sequential(nn.Identity(), nn.Flatten(), mlp(), nn.Softmax(-1), nn.Identity()), (x(5, 2, 3),)


@host
def an_empty_sequential_within() -> Host:
    return nn.Sequential(nn.Linear(6, 8), nn.Sequential(), nn.ReLU(), nn.Linear(8, 4)), (x(5, 6),)


@host
def one_layer_alone() -> Host:
    return nn.Linear(6, 4), (x(5, 6),)


@host
def a_submodule_that_is_none() -> Host:
    model = Calls(lambda m, x: m.body(x), body=mlp())
    model.head = None
    model.register_module("tail", None)
    return model, (x(5, 6),)


@host
def a_module_never_called() -> Host:
    return Calls(lambda m, x: m.body(x), body=mlp(), spare=nn.Linear(3, 3)), (x(5, 6),)


@unfit
def complex_weights() -> Host:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).to(torch.complex64)
    return model, (x(5, 6, dtype=torch.complex64),)


@host
def complex_in_the_middle() -> Host:
    run = lambda m, x: m.last(torch.view_as_real(m.mid(m.first(x).to(torch.complex64))).flatten(1))  # noqa: E731
    return Calls(run, first=nn.Linear(6, 4), mid=nn.Linear(4, 4).to(torch.complex64), last=nn.Linear(8, 4)), (x(5, 6),)


@host
def double_weights() -> Host:
    return mlp(nn.LayerNorm(8)).double(), (x(5, 6, dtype=torch.float64),)


@host
def half_weights() -> Host:
    return mlp().half(), (x(5, 6, dtype=torch.float16),)


@host
def two_dtypes() -> Host:
    model = Calls(lambda m, x: m.b(m.a(x).bfloat16()), a=nn.Linear(6, 8), b=nn.Linear(8, 4).bfloat16())
    return model, (x(5, 6),)


@unfit
def the_wrong_dtype() -> Host:
    return mlp(), (torch.ones(5, 6, dtype=torch.int64),)


@unfit
def the_wrong_width() -> Host:
    return mlp(), (x(5, 7),)


@unfit
def an_input_of_one_axis() -> Host:
    return mlp(), (x(6),)


@unfit
def an_input_that_is_text() -> Host:
    return mlp(), ("text",)


@unfit
def no_input() -> Host:
    return mlp(), ()


@unfit
def two_inputs_for_one() -> Host:
    return mlp(), (x(5, 6), x(5, 6))


@unfit
def indices_out_of_range() -> Host:
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 4)), (torch.tensor([[3, 10]]),)


@host
def an_empty_batch() -> Host:
    return mlp(nn.LayerNorm(8)), (x(0, 6),)


@host
def an_empty_batch_of_images() -> Host:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)), (x(0, 3, 5, 5),)


@host
def a_batch_of_one_with_batch_norm() -> Host:
    return mlp(nn.BatchNorm1d(8)), (x(1, 6),)


@host
def a_batch_with_nan() -> Host:
    return mlp(), (torch.full((5, 6), float("nan")),)


@host
def gives_a_dict() -> Host:
    return Calls(lambda m, x: {"loss": m.body(x).sum(), "logits": m.body(x), "name": "a"}, body=mlp()), (x(5, 6),)


@host
def gives_a_tuple_with_none() -> Host:
    return Calls(lambda m, x: (None, m.body(x), 3), body=mlp()), (x(5, 6),)


@host
def gives_nothing() -> Host:
    return Calls(lambda m, x: print(end=str(m.body(x))[:0]), body=mlp()), (x(5, 6),)


@host
def gives_a_scalar() -> Host:
    return Calls(lambda m, x: m.body(x).mean(), body=mlp()), (x(5, 6),)


@host
def gives_an_object() -> Host:
    return Calls(lambda m, x: SimpleNamespace(logits=m.body(x)), body=mlp()), (x(5, 6),)


@host
def gives_its_input() -> Host:
    return Calls(lambda m, x: (m.body(x), x)[1], body=mlp()), (x(5, 6),)


@host
def writes_into_its_activations() -> Host:
    return mlp(nn.Dropout(0.5, inplace=True), nn.ELU(inplace=True)), (x(5, 6),)


@host
def names_of_all_kinds() -> Host:
    names = ["a b", "ünïcode", "0", "[x]", "a*b?", "_esper2", "module", "a:b", ""]
    model = Calls(lambda m, x: functools.reduce(lambda y, one: one(y), m.children(), x))
    for name in names[:-1]:
        model.add_module(name, nn.Linear(6, 6))
    return model, (x(5, 6),)


@host
def a_child_called_like_a_method() -> Host:
    model = nn.ModuleDict({"keys_": nn.Linear(6, 8), "forward_": nn.Linear(8, 4)})
    return Calls(lambda m, x: m.inner["forward_"](m.inner["keys_"](x)), inner=model), (x(5, 6),)


@host
def hooks_that_change_what_passes() -> Host:
    model = mlp()
    model[0].register_forward_pre_hook(_doubles_input)
    model[0].register_forward_hook(adds_one)
    model[2].register_full_backward_hook(_nothing)
    return model, (x(5, 6),)


def _doubles_input(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] * 2,)


def adds_one(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output + 1


def adds_little(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output + 1e-6


def _nothing(module: nn.Module, grad_input: Any, grad_output: Any) -> None:
    return None


@host
def recurrent_with_state() -> Host:
    run = lambda m, x: m.head(m.rnn(x, (torch.zeros(1, 2, 5),) * 2)[0])  # noqa: E731
    return Calls(run, rnn=nn.LSTM(6, 5, batch_first=True), head=nn.Linear(5, 3)), (x(2, 4, 6),)


@host
def a_chain_that_ends_in_a_scalar() -> Host:
    return nn.Sequential(*mlp(), Calls(lambda m, x: x.mean())), (x(5, 6),)


@host
def a_parametrisation_with_layers_in_it() -> Host:
    model = mlp()
    parametrize.register_parametrization(model[0], "weight", nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    return model, (x(5, 6),)


@host
def parametrised_without_a_bias() -> Host:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    parametrizations.weight_norm(model[0])
    return model, (x(5, 6),)


@host
def data_parallel_around_it() -> Host:
    return nn.DataParallel(mlp()), (x(5, 6),)


def made(make: Callable[[], Host]) -> Host:
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # torch's, about what is old, new or empty
        return make()
