"""`.tflite` files as objects that can be read and changed, and back."""

from typing import Any


def unpack(content: bytes) -> Any:
    """The `ModelT` of LiteRT's schema that a file holds."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(content, 0)


def pack(model: Any) -> bytes:
    """The content of a file that holds this `ModelT`."""
    # ai-edge-litert's schema stands on flatbuffers, which therefore is there too.
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
