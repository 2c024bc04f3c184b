"""The calibrate and reduce stages: work units to shards, shards to the quadratic model."""
