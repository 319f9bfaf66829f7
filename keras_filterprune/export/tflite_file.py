"""A `.tflite` file in memory, parsed once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from keras_filterprune.export.delegation import delegated_operators


@dataclass(frozen=True, eq=False)
class TFLiteFile:
    """A `.tflite` file in memory, parsed when it is first looked into.

    Attributes:
        content: its bytes.
    """

    content: bytes

    @classmethod
    def holding(cls, model: Any) -> TFLiteFile:
        """The file that holds this `ModelT` of LiteRT's schema, which is not to be changed afterwards."""
        # ai-edge-litert's schema stands on flatbuffers, which therefore is there too.
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return cls.parsed(bytes(builder.Output()), model)

    @classmethod
    def parsed(cls, content: bytes, model: Any) -> TFLiteFile:
        """The file of which it is known what it holds."""
        file = cls(content)
        # Where cached_property looks first.
        vars(file)["model"] = model
        return file

    @cached_property
    def model(self) -> Any:
        """What it holds, a `ModelT` of LiteRT's schema; whoever changes it makes a copy."""
        from ai_edge_litert import schema_py_generated as schema

        return schema.ModelT.InitFromPackedBuf(self.content, 0)

    @property
    def graph(self) -> Any:
        """The main graph, a `SubGraphT`."""
        return self.model.subgraphs[0]

    @cached_property
    def kinds(self) -> tuple[tuple[str, ...], ...]:
        """TFLite's name of every operator, per graph."""
        names = [_kind(code) for code in self.model.operatorCodes or ()]
        return tuple(tuple(names[op.opcodeIndex] for op in graph.operators) for graph in self.model.subgraphs)

    @cached_property
    def delegated(self) -> frozenset[int]:
        """Numbers of the main graph's operators that LiteRT hands to XNNPACK, its CPU delegate.

        Raises:
            ExportError: LiteRT cannot run the file.
        """
        return delegated_operators(self.content, len(self.graph.operators))

    def in_order(self, inputs: Sequence[str], outputs: Sequence[str]) -> TFLiteFile:
        """The file with its inputs and outputs in the order of these names of its signature.

        The converter sorts them by name, and code on a device reads them by number.
        """
        model, signature, graph = (copy.copy(x) for x in (self.model, self.model.signatureDefs[0], self.graph))
        for side, names in (("inputs", inputs), ("outputs", outputs)):
            places = {name: place for place, name in enumerate(names)}
            entries = sorted(getattr(signature, side), key=lambda e: places.get(e.name.decode(), len(places)))
            tensors = [int(entry.tensorIndex) for entry in entries]
            unnamed = [int(tensor) for tensor in getattr(graph, side) if tensor not in tensors]
            setattr(signature, side, entries)
            setattr(graph, side, tensors + unnamed)
        if all([*getattr(graph, side)] == [*getattr(self.graph, side)] for side in ("inputs", "outputs")):
            return self
        model.subgraphs = [graph, *model.subgraphs[1:]]
        model.signatureDefs = [signature, *model.signatureDefs[1:]]
        return TFLiteFile.holding(model)

    def count_operators(self) -> dict[str, int]:
        """Count the operators of all graphs.

        Returns:
            `{TFLite operator name: count}`, sorted by name.
        """
        return dict(sorted(Counter(kind for kinds in self.kinds for kind in kinds).items()))


@cache
def names_of(enumeration: str) -> dict[int, str]:
    """`{number: name}` of an enumeration of LiteRT's schema, as in "TensorType"."""
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(getattr(schema, enumeration)).items() if isinstance(code, int)}


def _kind(code: Any) -> str:
    # Codes below 127 stand in the old one-byte field, later ones only in the new field.
    kind = names_of("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]
    return f"CUSTOM:{code.customCode.decode()}" if kind == "CUSTOM" else kind
