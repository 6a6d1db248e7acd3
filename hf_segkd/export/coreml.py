"""Core ML packages, by coremltools. Only macOS and iOS run them, so here they are made and not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from .graph import DenseNetwork


def save(
    network: DenseNetwork, program: ExportedProgram, path: Path, size: tuple[int, int, int], facts: dict[str, Any]
) -> None:
    """Write a traced network as a folder .mlpackage: fp32, iOS 16 and macOS 13 or later, `facts` in its metadata."""
    import coremltools

    model = coremltools.convert(
        program.run_decompositions({}),  # it refuses programs as `torch.export` gives them
        outputs=[coremltools.TensorType(name=network.output_name)],
        compute_precision=coremltools.precision.FLOAT32,  # by itself it would halve them to fp16
        minimum_deployment_target=coremltools.target.iOS16,
        skip_model_load=True,
    )
    model.user_defined_metadata.update({name: json.dumps(value) for name, value in facts.items()})
    model.save(str(path))
