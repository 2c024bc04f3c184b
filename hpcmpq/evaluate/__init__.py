"""The evaluate stage: quality of original, quantized and uniform models on samples never calibrated on.

evaluate(run, engine)       stage: reads plan and solution, writes evaluation.json, one value per item beside it
parts, hpcmpq.tasks         what is measured: the config's data, and tasks
rounds                      models over chunks, shared out over ranks, resumable
engines                     what runs a model: torch_engine, deepspeed_engine
summary, statistics         values per item to numbers with intervals
"""

from hpcmpq.evaluate.stage import baseline_format, evaluate

__all__ = ["baseline_format", "evaluate"]
