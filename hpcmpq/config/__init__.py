"""The configuration file: YAML to the frozen dataclasses of `hpcmpq.settings`.

An unknown key is an error that names a valid one. The file stops here: what comes behind takes settings with types. To
add a key: its field and meaning in `hpcmpq.settings`, what its type cannot refuse in `checks`.
"""

from hpcmpq.config.read import parse_config, read_config, resolve_paths, text_of, values_of

__all__ = ["parse_config", "read_config", "resolve_paths", "text_of", "values_of"]
