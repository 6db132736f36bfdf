"""The definition of :func:`longconv.functional.multires_conv`, level by level in float64, for tests."""

from torch import Tensor

from ..dilated.reference import dilated_conv_reference


def multires_conv_reference(
    x: Tensor, h0: Tensor, h1: Tensor, w: Tensor, *, levels: int, tree_select: str = "fading"
) -> Tensor:
    """Evaluate the tree; shapes and meaning as in `multires_conv`. Float64 whatever x is, differentiable."""
    x, w = x.double(), w.double()
    K, room = h0.shape[1], w.shape[1] - 1
    a = [x]
    b = []  # b[j] is b_{j+1} of the paper's recursion
    for j in range(levels):
        b.append(dilated_conv_reference(a[j], h1, dilation=2**j))
        a.append(dilated_conv_reference(a[j], h0, dilation=2**j))
    y = w[:, -1, None] * x + w[:, 0, None] * a[levels]
    used, nodes = 1, 1
    for j in reversed(range(levels)):
        taken = 1 if tree_select == "fading" else min(nodes, room - used)
        if taken == 0:
            break
        y = y + dilated_conv_reference(b[j], w[:, used : used + taken], dilation=2 ** (j + 1))
        used += taken
        nodes = 2 * (nodes - 1) + K  # what these nodes see of the level below
    return y
