"""Prints the peak memory of distilling on a stream of so many generated images, in MB: python stream_memory.py NUMBER

With a second argument they are mixed into eight labelled ones, as many of each.
"""

import resource
import sys
import tempfile

import datasets
import numpy as np
import torch
from foreign_rows import png
from PIL import Image
from tiny_runs import arguments, network, processor, scenes

from hf_segkd.training.trainer import DistillationTrainer

BATCH = 50


def generate(shards):
    for shard in shards:
        for number in range(*shard):
            noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            yield {"image": {"bytes": png(Image.fromarray(noise).resize((48, 32))), "path": None}}


def images(number):
    shards = [(start, start + 1000) for start in range(0, number, 1000)]
    features = datasets.Features({"image": datasets.Image()})
    stream = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": shards}, features=features)
    return stream.shuffle(seed=0, buffer_size=500)


def main(number, mixed):
    torch.set_num_threads(1)
    batches = number // BATCH * (2 if mixed else 1)
    options = {"crop_size": [16, 16], "per_device_train_batch_size": BATCH, "logging_steps": 500}
    with tempfile.TemporaryDirectory() as folder:
        run = DistillationTrainer(
            network(width=4),
            arguments(folder, method="kd", max_steps=batches, **options),
            teacher=network(width=4, seed=1),
            train_dataset=scenes(num_images=8) if mixed else images(number),
            unlabelled_dataset=images(number) if mixed else None,
            processing_class=processor(),
        )
        run.train()
    print(f"{number} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]), len(sys.argv) > 2)
