"""Every kernel that a host may use is counted."""

import pytest
import torch
import torch.nn.functional as F

from esper.kasmina.flops import FlopCounter


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_on_the_cpu_is_counted_like_its_matrix_products(is_causal):
    """Two products forward; in backward those that give the four gradients, and one to recompute the weights."""
    query, key, value = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 16 * 16 * 8
    with FlopCounter() as counter:
        output = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    assert counter.flops == 2 * product
    with FlopCounter() as counter:
        output.sum().backward()
    assert counter.flops == 5 * product


def test_what_is_counted_elsewhere_stays_what_it_was():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    with FlopCounter() as counter:
        F.linear(x, weight).sum().backward()
    assert counter.flops == 3 * 2 * 4 * 8 * 5
