"""Small models of collections, with random weights: backbones of keras-hub below a head of classes, and kimm.

Neither package is needed for anything else; what is not installed is left out.
"""

import importlib
from collections.abc import Callable

import keras

IMAGE, VOCABULARY, TOKENS = (64, 64, 3), 40, 16
TEXT = {"vocabulary_size": VOCABULARY, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "intermediate_dim": 64}
GROUPED = {name: value for name, value in TEXT.items() if name != "num_heads"} | {
    "num_query_heads": 4,
    "num_key_value_heads": 2,
}
VIT = {"patch_size": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "image_shape": IMAGE}
MIT = {
    "layerwise_depths": [1, 1, 1, 1],
    "num_layers": 4,
    "layerwise_num_heads": [1, 2, 4, 4],
    "layerwise_sr_ratios": [8, 4, 2, 1],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3, 3, 3],
    "layerwise_strides": [4, 2, 2, 2],
    "hidden_dims": [16, 24, 32, 40],
    "image_shape": IMAGE,
}
RESNET = {
    "input_conv_filters": [16],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 2],
    "stackwise_num_strides": [1, 2],
    "image_shape": IMAGE,
}
MOBILENET = {
    "stackwise_expansion": [[40, 56], [64, 144]],
    "stackwise_num_blocks": [2, 2],
    "stackwise_num_filters": [[16, 16], [24, 24]],
    "stackwise_kernel_size": [[3, 3], [5, 5]],
    "stackwise_num_strides": [[2, 1], [1, 1]],
    "stackwise_se_ratio": [[None, None], [0.25, 0.25]],
    "stackwise_activation": [["relu", "relu"], ["hard_swish", "hard_swish"]],
    "stackwise_padding": [[1, 1], [2, 2]],
    "output_num_filters": 64,
    "input_num_filters": 16,
    "depthwise_filters": 8,
    "depthwise_stride": 2,
    "depthwise_residual": False,
    "squeeze_and_excite": 0.5,
    "last_layer_filter": 48,
    "image_shape": IMAGE,
}
EFFICIENTNET = {
    "stackwise_width_coefficients": [1.0, 1.0],
    "stackwise_depth_coefficients": [1.0, 1.0],
    "stackwise_kernel_sizes": [3, 3],
    "stackwise_num_repeats": [2, 2],
    "stackwise_input_filters": [16, 16],
    "stackwise_output_filters": [16, 24],
    "stackwise_expansion_ratios": [1, 4],
    "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
    "stackwise_strides": [1, 2],
    "stackwise_block_types": ["v1", "v1"],
    "stackwise_force_input_filters": [0, 0],
    "stackwise_nores_option": [False, False],
    "input_shape": IMAGE,
}
HGNET = {
    "depths": [1, 1],
    "embedding_size": 8,
    "hidden_sizes": [16, 32],
    "stem_channels": [3, 8, 8],
    "hidden_act": "relu",
    "use_learnable_affine_block": True,
    "stackwise_stage_filters": [[8, 8, 16, 1, 2, 3], [16, 8, 32, 1, 2, 3]],
    "apply_downsample": [False, True],
    "use_lightweight_conv_block": [False, True],
    "image_shape": IMAGE,
}
CSPNET = {
    "stem_filters": 16,
    "stem_kernel_size": 3,
    "stem_strides": 1,
    "stackwise_depth": [1, 2],
    "stackwise_strides": [1, 2],
    "stackwise_num_filters": [16, 32],
    "block_type": "dark_block",
    "stage_type": "csp",
    "bottle_ratio": [0.5, 1.0],
    "block_ratio": [1.0, 0.5],
    "expand_ratio": [2.0, 1.0],
    "image_shape": IMAGE,
}
DETECTOR = {
    "hidden_size": 32,
    "num_layers": 2,
    "intermediate_dim": 64,
    "num_heads": 4,
    "global_attention_layer_indices": [1],
    "image_shape": IMAGE,
    "num_output_channels": 16,
    "window_size": 2,
}
MOONSHINE = {
    "vocabulary_size": VOCABULARY,
    "filter_dim": 32,
    "encoder_num_layers": 2,
    "decoder_num_layers": 2,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "encoder_num_heads": 4,
    "decoder_num_heads": 4,
}
LONG = {"max_sequence_length": TOKENS}

# {class of keras_hub.models: what it is made with}
BACKBONES = {
    "AlbertBackbone": TEXT | LONG | {"embedding_dim": 16},
    "BartBackbone": TEXT | LONG,
    "BertBackbone": TEXT | LONG,
    "BloomBackbone": TEXT,
    "DebertaV3Backbone": TEXT | LONG | {"bucket_size": 8},
    "DistilBertBackbone": TEXT | LONG,
    "ElectraBackbone": {n: v for n, v in TEXT.items() if n != "vocabulary_size"}
    | LONG
    | {"vocab_size": VOCABULARY, "embedding_dim": 16},
    "ESMBackbone": TEXT | LONG,
    "FNetBackbone": {name: value for name, value in TEXT.items() if name != "num_heads"} | LONG,
    "FalconBackbone": {n: v for n, v in TEXT.items() if n != "num_heads"} | {"num_attention_heads": 4},
    "GPT2Backbone": TEXT | LONG,
    "GPTNeoXBackbone": TEXT | LONG,
    "GemmaBackbone": GROUPED | {"head_dim": 8},
    "LlamaBackbone": GROUPED,
    "MistralBackbone": GROUPED,
    "MixtralBackbone": GROUPED | {"num_experts": 2},
    "OPTBackbone": TEXT | LONG,
    "Phi3Backbone": GROUPED,
    "QwenBackbone": GROUPED,
    "Qwen3Backbone": GROUPED | {"head_dim": 8},
    "RobertaBackbone": TEXT | LONG,
    "RoformerV2Backbone": TEXT | {"head_size": 8},
    "T5Backbone": TEXT,
    "WhisperBackbone": TEXT | {"num_mels": 8, "max_encoder_sequence_length": 64, "max_decoder_sequence_length": TOKENS},
    "XLMRobertaBackbone": TEXT | LONG,
    "XLNetBackbone": TEXT,
    "MoonshineBackbone": MOONSHINE,
    "CSPNetBackbone": CSPNET,
    "DeiTBackbone": VIT | {"intermediate_dim": 64},
    "DenseNetBackbone": {"stackwise_num_repeats": [2, 2], "growth_rate": 8, "image_shape": IMAGE},
    "DINOV2Backbone": VIT | {"intermediate_dim": 64, "position_embedding_shape": IMAGE},
    "DINOV3Backbone": VIT | {"intermediate_dim": 64},
    "EfficientNetBackbone": EFFICIENTNET,
    "HGNetV2Backbone": HGNET,
    "MiTBackbone": MIT,
    "MobileNetBackbone": MOBILENET,
    "ResNetBackbone": RESNET | {"block_type": "bottleneck_block"},
    "SwinTransformerBackbone": {
        "image_shape": IMAGE,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "VGGBackbone": {"stackwise_num_repeats": [2, 2], "stackwise_num_filters": [16, 24], "image_shape": IMAGE},
    "ViTBackbone": VIT | {"patch_size": (16, 16), "mlp_dim": 64},
    "ViTDetBackbone": DETECTOR,
    "XceptionBackbone": {
        "stackwise_conv_filters": [[8, 16], [16, 24, 24]],
        "stackwise_pooling": [True, False],
        "image_shape": IMAGE,
    },
}
# {class: backbone of its images, other arguments}
AROUND_IMAGES = {
    "RetinaNetBackbone": ("ResNetBackbone", {"min_level": 2, "max_level": 3, "use_p5": False, "image_shape": IMAGE}),
    "SegFormerBackbone": ("MiTBackbone", {"projection_filters": 16}),
}
# Classes of kimm.models, the smallest of every family.
KIMM = """
    ConvMixer736D32 ConvNeXtAtto DenseNet121 EfficientNetLiteB0 TinyNetE GhostNetW050 GhostNetV2W100 GhostNetV3W050
    HGNetTiny HGNetV2B0 InceptionNeXtTiny LCNet035 MobileNetV2W050 MobileNetV3W050Small MobileOneS0 MobileViTXXS
    MobileViTV2W050 RegNetX002 RegNetY002 RepVGGA0 ResNet18 VisionTransformerTiny16 Xception
""".split()


def hub_networks() -> dict[str, Callable[[], keras.Model]]:
    """{name: makes it} of keras-hub; {} where it is not installed."""
    models = _module("keras_hub", "models")
    if models is None:
        return {}

    def plain(kind: str) -> Callable[[], keras.Model]:
        return lambda: getattr(models, kind)(**BACKBONES[kind])

    def around(kind: str) -> Callable[[], keras.Model]:
        inner, arguments = AROUND_IMAGES[kind]
        return lambda: getattr(models, kind)(image_encoder=plain(inner)(), **arguments)

    made = {kind: plain(kind) for kind in BACKBONES} | {kind: around(kind) for kind in AROUND_IMAGES}
    return {f"keras-hub {kind.removesuffix('Backbone')}": with_head(build) for kind, build in made.items()}


def with_head(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """The backbone as it is used: means over positions, and classes. Its outputs alone would have to stay as wide.

    One that does not say how wide they are is used as it is.
    """

    def make() -> keras.Model:
        backbone = build()
        features = [x for x in keras.tree.flatten(backbone.output) if "float" in x.dtype]
        if any(x.shape[-1] is None for x in features):
            return backbone
        means = [keras.ops.mean(x, axis=tuple(range(1, len(x.shape) - 1))) if len(x.shape) > 2 else x for x in features]
        x = keras.layers.Concatenate()(means) if len(means) > 1 else means[0]
        return keras.Model(backbone.input, keras.layers.Dense(5, name="classes")(x), name="classifier")

    return make


def kimm_networks() -> dict[str, Callable[[], keras.Model]]:
    """{name: makes it} of kimm; {} where it is not installed."""
    models = _module("kimm", "models")
    if models is None:
        return {}

    def make(kind: str) -> Callable[[], keras.Model]:
        return lambda: getattr(models, kind)(weights=None, classes=5, input_shape=IMAGE)

    return {f"kimm {kind}": make(kind) for kind in KIMM}


def _module(package: str, name: str):
    try:
        importlib.import_module(package)
        return importlib.import_module(f"{package}.{name}")
    except ImportError:
        return None
