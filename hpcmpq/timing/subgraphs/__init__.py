"""Partition of a traced model into sequential sub-graphs, whose times add up (arXiv 2505.13060).

cuts.py       plain graphs: the nodes that every path goes through
trace.py      a forward pass as a graph of operations, each with the group whose weight it uses
partition.py  the graph cut into parts that run one after the other
pieces.py     a part as a module, with other kernels for its groups
"""

from hpcmpq.timing.subgraphs.cuts import cut_nodes, stages
from hpcmpq.timing.subgraphs.graph import Trace, trace_model
from hpcmpq.timing.subgraphs.partition import SubGraph, partition

__all__ = ["SubGraph", "Trace", "cut_nodes", "partition", "stages", "trace_model"]
