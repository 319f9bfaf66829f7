"""Which operators XNNPACK computes, LiteRT's CPU delegate: the only file that calls something private of LiteRT."""

from __future__ import annotations

from keras_filterprune.errors import ExportError


def delegated_operators(content: bytes, count: int) -> frozenset[int]:
    """Read off what LiteRT does with a file on this computer.

    Args:
        content: the file.
        count: number of operators in its main graph.

    Returns:
        The numbers of those that run inside XNNPACK; of all of them where LiteRT does not tell, for no warning is
        better than a wrong one.

    Raises:
        ExportError: LiteRT cannot run the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"LiteRT cannot run the converted file: {error}") from error
    # Private, and there is no public name for the plan (ai-edge-litert 2.3). A test says when this changes. After the
    # file's own operators the plan lists each delegate with what goes in and comes out.
    details = getattr(interpreter, "_get_ops_details", None)
    if details is None:
        return frozenset(range(count))
    plan = details()
    own = [node for node in plan if node["op_name"] != "DELEGATE"]
    producers = {int(tensor): node for node in own for tensor in node["outputs"]}
    inside: set[int] = set()
    for delegate in plan[len(own) :]:
        border = set(map(int, delegate["inputs"]))
        waiting = list(map(int, delegate["outputs"]))
        while waiting:
            tensor = waiting.pop()
            node = None if tensor in border else producers.get(tensor)
            if node is not None and node["index"] not in inside:
                inside.add(node["index"])
                waiting += map(int, node["inputs"])
    return frozenset(inside)
