"""What a handle knows of each layer."""

from attention.small_models import small_llama

from gssf_plug.attention import patch_attention


def test_the_older_name_of_a_layers_metrics() -> None:
    for layer in patch_attention(small_llama(), block_size=4).layers.values():
        assert layer.query is layer.metric_layer
        assert layer.metric_layer.heads.query_heads == 4
