"""Net1D's convolutions in half precision: grouped ones are as near to float32 as the others, on any CPU."""

import pytest
import torch

from stages.experts.networks.net1d import SameConv1d


@pytest.mark.parametrize("per_group", [1, 4, 8, 12, 16])
@pytest.mark.parametrize("autocast", [False, True])
def test_grouped_convolutions_in_bfloat16_are_near_those_in_float32(per_group, autocast):
    torch.manual_seed(0)
    conv = SameConv1d(4 * per_group, 4 * per_group, 16, groups=4)
    x = torch.randn(3, 4 * per_group, 300)
    with torch.no_grad():
        expected = conv(x)
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                found = conv(x)
        else:
            found = conv.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16 or autocast
    assert (found.float() - expected).norm() < 0.01 * expected.norm()
