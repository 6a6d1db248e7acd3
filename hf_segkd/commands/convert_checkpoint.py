"""`hf-segkd convert_checkpoint`: turns a checkpoint of another code base into a folder that `from_pretrained` loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor

from hf_segkd.commands.command_line import parse_arguments
from hf_segkd.models import convert_attnfd_state_dict, convert_mmseg_state_dict, read_checkpoint
from hf_segkd.networks.loading import build_config, load_network
from hf_segkd.training.arguments import json_object

CONVERTERS = {"attnfd": convert_attnfd_state_dict, "mmsegmentation": convert_mmseg_state_dict}


@dataclass(kw_only=True)
class ConversionCommand:
    """Flags: the checkpoint to convert, and its network."""

    checkpoint: str = field(
        metadata={"help": "The .pth or .pth.tar file; of transformers the folder or Hub id with a pytorch_model.bin."}
    )
    source: Literal["attnfd", "mmsegmentation", "transformers"] = field(
        metadata={"help": "The code base that wrote it."}
    )
    output: str = field(metadata={"help": "New folder for config.json, the weights and the image processor."})
    network_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Config of the network as a JSON object, such as {"model_type": "segkd-pspnet", "backbone": '
            '"resnet101"}; model_type is DeepLabV3+ unless given, num_labels comes from the checkpoint.'
        },
    )


def main(args: list[str] | None = None) -> Path:
    """Convert, load strictly, save; returns the folder.

    Raises:
        ValueError: If the folder exists, the file holds no network of that code base, or it does not fit its config.
    """
    (command,) = parse_arguments(ConversionCommand, args=args)
    output = Path(command.output)
    if output.exists():
        raise ValueError(f"{output} exists already; give a new folder as output.")
    if command.source == "transformers":
        return _save_as_safetensors(command, output)
    weights = CONVERTERS[command.source](read_checkpoint(command.checkpoint))
    if "classifier.weight" not in weights:
        raise ValueError(
            f"{command.checkpoint} holds no classifier, so it is not a whole network's. ImageNet weights of a backbone "
            "go into a new student with --pretrained_backbone."
        )
    values = {"num_labels": len(weights["classifier.weight"])}
    values |= json_object(command.network_config, "network_config")
    model = AutoModelForSemanticSegmentation.from_config(build_config(values, "network_config"))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"The checkpoint does not fit network_config. The first differences: {first}") from error
    model.save_pretrained(output)
    # Both code bases normalise with ImageNet's mean and std.
    SegformerImageProcessor(do_resize=False, do_reduce_labels=False).save_pretrained(output)
    print(f"Wrote {type(model).__name__} with {model.num_parameters():,} parameters to {output}.")
    return output


def _save_as_safetensors(command: ConversionCommand, output: Path) -> Path:
    if command.network_config is not None:
        raise ValueError("network_config is for the other sources; a checkpoint of transformers has its config.json.")
    model, processor = load_network(command.checkpoint, pickled=True, dtype="auto")
    model.save_pretrained(output)
    processor.save_pretrained(output)
    print(f"Wrote {type(model).__name__} with {model.num_parameters():,} parameters to {output}.")
    return output
