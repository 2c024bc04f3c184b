"""`hpcmpq init`: a first config."""

from pathlib import Path
from typing import Any

from hpcmpq.cli import arguments, console
from hpcmpq.cli.app import command


@command("hpcmpq init models/my-model --data corpus.txt --output my-model.yaml")
def init(
    model_directory: arguments.ModelDirectory,
    output: arguments.NewConfig = Path("config.yaml"),
    data: arguments.DataFile = None,
) -> dict[str, Any]:
    """Look at a Hugging Face directory or GGUF file and write a commented config to start from."""
    from hpcmpq.planning.starter import write_starter

    groups = write_starter(model_directory, output, data)
    console.say(
        f"{len(groups)} groups with {sum(group.numel for group in groups):,} weights; config in {output}"
    )
    if data is None:
        console.say("change calibration.data in it to your own")
    console.say(
        f"next: hpcmpq run {output} --run-dir runs/{model_directory.resolve().name.removesuffix('.gguf')}"
    )
    num_weights = sum(group.numel for group in groups)
    return {"config": str(output), "num_groups": len(groups), "num_weights": num_weights}
