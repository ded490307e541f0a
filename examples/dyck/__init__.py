"""The toy family: bounded-depth Dyck-3 sequences and the two-block transformer that learns them.

Importing this package registers the architecture with signarium, which is all that `--plugin examples/dyck` does. The
classes themselves are imported when a model of the family is loaded.
"""

from signarium import register_model

MODEL_TYPE = "signarium_dyck"

register_model(
    MODEL_TYPE,
    f"{__name__}.model:DyckConfig",
    f"{__name__}.model:DyckModel",
    causal=f"{__name__}.model:DyckForTokens",
    modules=[f"{__name__}.labels"],
)
