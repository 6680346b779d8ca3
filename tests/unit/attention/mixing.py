"""A mixer called on plain tensors."""

from papa_lightning.attention import DynamicAttention


def mix(mixer, query, key, value, mask, scaling=1.0, dropout=0.0, need_weights=False, bias=None):
    """The mixed values and the matrices, as an encoder's layer would get them."""
    return mixer(DynamicAttention(query, key, mask, scaling, bias), value, dropout, need_weights)
