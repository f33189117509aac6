"""decode(encode(x)) == x, for whatever a state dict may hold."""

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from esper.checkpoint.tree import clone, flatten, unflatten
from esper.contracts.errors import CheckpointError

DTYPES = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]
ARRAY_DTYPES = ["bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


@st.composite
def tensors(draw):
    """Any bytes of any dtype, so also nan, inf and denormal numbers; 0-dimensional and empty ones too."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
    if dtype is torch.bool:
        flat = flat % 2
    return flat.view(dtype).reshape(shape)


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    dtype = np.dtype(draw(st.sampled_from(ARRAY_DTYPES)))
    return np.asarray(np.arange(math.prod(shape)).reshape(shape) % 2, dtype=dtype)


Pair = namedtuple("Pair", "one other")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
scalars |= st.complex_numbers() | st.sampled_from(
    [torch.float16, torch.device("cpu"), torch.Size((2, 3)), torch.Size()]
)
keys = st.text(max_size=4) | st.integers(-3, 3) | st.sampled_from(["a", "a.b", "b", "key", "0", ""]) | st.none()
keys |= st.tuples(st.integers(0, 2), st.text(max_size=2)) | st.binary(max_size=3)
trees = st.recursive(
    scalars | tensors() | arrays(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
        | st.dictionaries(keys, inner, max_size=3).map(lambda items: defaultdict(list, items))
        | st.sets(st.integers(), max_size=3)
        | st.frozensets(st.text(max_size=2), max_size=3)
        | st.dictionaries(st.integers(), st.integers(1, 9), max_size=3).map(Counter)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=3))
    ),
    max_leaves=12,
)


def same(one, other) -> bool:
    """Equal in type, dtype, shape and every byte."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and _bytes(one) == _bytes(other)
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()
    if isinstance(one, defaultdict) and one.default_factory is not other.default_factory:
        return False
    if isinstance(one, deque) and one.maxlen != other.maxlen:
        return False
    if isinstance(one, dict):
        return same(list(one), list(other)) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        return same([one.real, one.imag], [other.real, other.imag])
    return one == other


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@settings(max_examples=300)
@given(trees)
def test_any_tree_comes_back_exactly(tree):
    structure, parts = flatten(tree)
    assert same(unflatten(json.loads(json.dumps(structure)), parts), tree)


@given(trees)
def test_a_clone_is_equal(tree):
    assert same(clone(tree), tree)


def test_signed_zeros_and_keys_of_any_kind_survive():
    tree = {0: -0.0, "0": 0.0, None: math.inf, (1, "a"): -math.inf, b"\xff": 10**30, True: "\u2028"}
    structure, parts = flatten(tree)
    back = unflatten(json.loads(json.dumps(structure)), parts)
    assert same(back, tree)
    assert math.copysign(1, back[0]) == -1


def test_paths_that_read_alike_do_not_collide():
    tree = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.ones(2), "1": torch.zeros(2)}
    structure, parts = flatten(tree)
    assert len(parts) == 4
    assert same(unflatten(structure, parts), tree)


def test_a_transposed_or_expanded_tensor_comes_back_by_value():
    tree = [torch.arange(6).view(2, 3).t(), torch.ones(1).expand(4), nn.Parameter(torch.ones(2))]
    structure, parts = flatten(tree)
    back = unflatten(structure, parts)
    assert all(torch.equal(*pair) for pair in zip(back, tree, strict=True))


def test_numpy_scalars_become_plain_numbers_and_foreign_byte_orders_native():
    tree = {"a": np.float64(0.1), "b": np.int32(3), "c": np.bool_(True), "d": np.arange(3, dtype=">i4")}
    structure, parts = flatten(tree)
    back = unflatten(structure, parts)
    assert (back["a"], back["b"], back["c"]) == (0.1, 3, True)
    assert back["d"].dtype == np.dtype("int32")
    assert back["d"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("is_coalesced", [True, False])
def test_a_sparse_tensor_comes_back_as_it_lies(is_coalesced):
    """Entries of one position that were not added yet stay apart: their sum would round once more."""
    made = torch.sparse_coo_tensor([[2, 0, 2]], torch.rand(3, 4), (5, 4), check_invariants=False)
    made = made.coalesce() if is_coalesced else made
    (back,) = unflatten(*flatten([made]))
    assert back.is_coalesced() is is_coalesced
    assert back.shape == made.shape
    assert torch.equal(back._indices(), made._indices())
    assert torch.equal(back._values(), made._values())


class Unknown:
    pass


UNKNOWN = {
    "object": (Unknown(), "Unknown"),
    "function": (len, "builtin_function_or_method"),
    "named tuple": (Pair(1, 2), "Pair"),
    "someone's dict": (type("Box", (dict,), {})(a=1), "Box"),
    "someone's default": (defaultdict(lambda: 1), "defaultdict"),
    "jagged": (
        torch.nested.nested_tensor([torch.ones(1)], layout=torch.jagged),
        r"NestedTensor of torch\.float32 in torch\.jagged",
    ),
    "complex128": (torch.zeros(1, dtype=torch.complex128), r"Tensor of torch\.complex128"),
    "strings": (np.array(["a"]), "ndarray of <U1"),
    "objects": (np.array([None]), "ndarray of object"),
    "long double": (np.longdouble(1), "longdouble"),
    "dates": (np.array(["2024-01-01"], dtype="datetime64[D]"), "ndarray of datetime64"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_stored_is_named_with_its_path(name):
    value, kind = UNKNOWN[name]
    with pytest.raises(CheckpointError, match=rf"^extra\.ema\.1\.decay is a {kind}.*cannot be stored"):
        flatten({"extra": {"ema": [0, {"decay": value}]}})


HOSTILE = {
    "absent tensor": {"tensor": "no"},
    "absent part": {"apart": "no"},
    "two kinds": {"tensor": "a", "list": []},
    "no kind": {},
    "unhashable key": {"dict": [[{"list": []}, 1]]},
    "unhashable member": {"set": [{"list": []}]},
    "no pairs": {"dict": [1]},
    "text for a list": {"dict": "abc"},
    "a class of a library": {"transformers": ["Trainer", {"dict": []}]},
    "a function of torch": {"dtype": "load"},
    "a device that is none": {"device": "moon:1"},
    "a factory that is none": {"default": ["eval", []]},
    "an index that is outside": {"sparse": [{"tensor": "i"}, {"tensor": "v"}, {"tuple": [2]}, True]},
    "a shape that is negative": {"sparse": [{"tensor": "i"}, {"tensor": "v"}, {"tuple": [-2]}, True]},
    "no base64": {"bytes": 3},
    "a length that is negative": {"deque": [-1, []]},
    "a bfloat16 array": {"array": "b"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_structure_that_esper_does_not_write_is_refused(name):
    given = {"i": torch.tensor([[5]]), "v": torch.ones(1), "b": torch.ones(1, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointError, match="has a structure that Esper does not write"):
        unflatten({"list": [HOSTILE[name]]}, given)


def test_a_state_that_holds_itself_cannot_be_stored():
    state: dict = {}
    state["me"] = state
    with pytest.raises(CheckpointError, match="holds itself"):
        flatten(state)


def test_a_structure_that_is_too_deep_is_refused():
    structure = 1
    for _ in range(100_000):
        structure = {"list": [structure]}
    with pytest.raises(CheckpointError, match="nested too deeply"):
        unflatten(structure, {})


def test_a_newer_kind_of_value_is_an_error_not_a_default():
    with pytest.raises(CheckpointError, match=r"'matrix'.*newer version"):
        unflatten({"matrix": []}, {})


def test_a_clone_shares_no_memory():
    tree = {"t": torch.zeros(2), "n": np.zeros(2), "s": {1}, "l": [torch.zeros(1)], "u": (torch.zeros(1),)}
    tree["b"] = bytearray(1)
    copy = clone(tree)
    tree["t"] += 1
    tree["n"] += 1
    tree["s"].add(2)
    tree["l"][0] += 1
    tree["u"][0].add_(1)
    tree["b"][0] = 1
    assert not copy["t"].any()
    assert not copy["n"].any()
    assert copy["s"] == {1}
    assert not copy["l"][0].any()
    assert not copy["u"][0].any()
    assert copy["b"] == bytearray(1)


def test_the_states_of_optimizers_and_schedulers_come_back():
    model = nn.Linear(3, 2)
    for make in (torch.optim.AdamW, torch.optim.Adafactor, torch.optim.RAdam):
        optimizer = make(model.parameters())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, cycle_momentum=False)
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
        tree = [optimizer.state_dict(), scheduler.state_dict()]
        structure, parts = flatten(tree)
        assert same(unflatten(json.loads(json.dumps(structure)), parts), tree)
