"""The evaluate stage: quality of original, quantized and uniform models on samples never calibrated on.

evaluate(run, engine)       stage: reads plan and solution, writes evaluation.json, one value per item beside it
contents, parts, tasks      what is measured: the config's data, and tasks
rounds                      models over chunks, shared out over ranks, resumable
walks                       the same of a streamed model: all models side by side, block after block
units                       the same in work units, over an executor
engines                     what runs a model: torch_engine, deepspeed_engine
summary, statistics         values per item to numbers with intervals
"""

from hpcmpq.evaluate.stage import evaluate

__all__ = ["evaluate"]
