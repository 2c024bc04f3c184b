"""The run directory on disk. HDF5 files are read and written by `hpcmpq.store.h5_files`, JSON by
`hpcmpq.store.json_files`.

    RUN/plan.json        resolved config, search space, work units, versions, fingerprint
    RUN/shards/<id>.h5   one file per finished work unit; the name existing is the only "done" mark
    RUN/attempts/*.jsonl when each calibrate process finished what, for `status`; nothing depends on it
    RUN/quadratic.h5     the quadratic model; RUN/activations.h5: static ranges of activations, if there are any
    RUN/solution.json  RUN/frontier.json  RUN/checkpoint/  RUN/evaluation.json  RUN/report.html

Every file is written beside its final name, fsynced and renamed, so a reader never sees half a file, no lock
is needed, and two writers of the same unit are waste, not corruption.

HDF5 schema (format_version 1), beside the checksums of `hpcmpq.store.h5_files`:

    shard      attributes kind, unit_id, fingerprint, num_samples, num_batches; datasets as named by the
    method
    quadratic  datasets linear [P], quadratic [P,P], stderr_linear [P], stderr_quadratic [P,P],
    diagonal [P],
               batches/linear [B,P], batches/quadratic [B,P,P], options/group [P], options/format [P];
               attributes objective, method, loss0, num_samples, fingerprint, task_loss_mean_square if measured
"""
