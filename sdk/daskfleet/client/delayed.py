"""Graphs of many delayed values, culled in linear time.

Each delayed value is a layer of its own, and dask hands to each layer the keys of all: 2,500 values cost it 46 times as
much as this, 10,000 values 270 times, seconds of processor time. Here the layers are put together first, but for those
with annotations, whose tasks these are.
"""

from __future__ import annotations

from typing import Any

from dask import config
from dask._expr import Expr, HLGExpr, _HLGExprGroup, _HLGExprSequence
from dask._task_spec import cull
from dask.core import flatten
from dask.delayed import optimize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from daskfleet.client.encode import as_nodes


def faster(expression: Expr) -> Expr:
    """The same graph as `expression`, made sooner."""
    if type(expression) is not _HLGExprSequence or config.get("optimization.fuse.delayed", False):
        return expression
    operands = expression.operands
    if not any(_is_delayed(operand) for operand in operands):
        return expression
    return _HLGExprSequence(*[_culled(operand) if _is_delayed(operand) else operand for operand in operands])


def _is_delayed(operand: Any) -> bool:
    return type(operand) in (HLGExpr, _HLGExprGroup) and operand.low_level_optimizer is optimize


def _culled(operand: Any) -> Expr:
    keys = operand.__dask_keys__()
    layers = operand.hlg.layers
    graph = as_nodes({key: node for layer in layers.values() for key, node in layer.items()})
    graph = dict(cull(graph, set(flatten(keys))))
    parts: dict[str, Any] = {}
    for name, layer in layers.items():
        if layer.annotations:
            own = {key: graph.pop(key) for key in layer if key in graph}
            parts[name] = MaterializedLayer(own, annotations=layer.annotations)
    parts["delayed"] = MaterializedLayer(graph)
    culled = HighLevelGraph(parts, {name: set() for name in parts})
    kind: type[HLGExpr] = type(operand)
    return kind(dsk=culled, low_level_optimizer=None, output_keys=keys, postcompute=operand.postcompute)
