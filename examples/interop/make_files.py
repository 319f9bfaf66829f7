"""What the scripts of this folder read: a pruned network as .tflite files of three kinds, and images with its outputs.

    python examples/interop/make_files.py --model resnet20.keras interop/

The ResNet-20 of examples/cifar10.py or one like it: raw images in, ten logits out. Half the MACs, widths for phones.
"""

import argparse
import pathlib

import keras
import numpy as np

import keras_filterprune as kfp

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
KINDS = {
    "float32": {},
    "int8": {"quantize": "int8"},
    "int8, uint8 I/O": {"quantize": "int8", "integer_io": "uint8"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model", required=True, help="a .keras file for CIFAR-10")
    parser.add_argument("--data-dir", help="of tensorflow_datasets (KFP_DATA_DIR)")
    parser.add_argument("--images", type=int, default=100, help="that consumers are given (%(default)s)")
    options = parser.parse_args()
    import sys

    sys.path.append(str(pathlib.Path(__file__).parents[1]))
    from cifar10 import load_cifar10

    (x, _), (test, _) = load_cifar10(options.data_dir)
    x, images = x[:512].astype("float32"), test[: options.images]
    model = keras.saving.load_model(options.model)
    small, report = kfp.prune_model(model, "pursuit", 0.5, data=x, channel_multiple=8, return_report=True)
    # A byte is a pixel: the network takes raw images.
    about = kfp.export.Metadata(labels=CLASSES, normalization=(0, 1), plan=report.plan)
    options.folder.mkdir(parents=True, exist_ok=True)
    for kind, settings in KINDS.items():
        path = options.folder / f"{kind.replace(', ', '_').replace(' ', '_').replace('/', '')}.tflite"
        print(kfp.export_tflite(small, path, data=x, metadata=about, overwrite=True, **settings).summary())
    outputs = small.predict(images.astype("float32"), verbose=0)
    np.savez(options.folder / "samples.npz", images=images, outputs=outputs, classes=np.array(CLASSES))


if __name__ == "__main__":
    main()
