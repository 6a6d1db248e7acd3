"""The scenes of `tiny_runs` as users of the Hub have them: other columns, transforms, streams."""

import io

import datasets
import numpy as np
import torch
from tiny_runs import scenes

PICTURES = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})


def pairs(split="train", num_images=8):
    """Images and masks, PIL."""
    return [(row["image"], row["annotation"]) for row in scenes(split, num_images)]


def hub_dataset(image="image", mask="label", split="train", num_images=8, **columns):
    """A data set as `load_dataset` gives it, with decoded pictures."""
    images, masks = zip(*pairs(split, num_images), strict=True)
    features = {name: datasets.Image() for name in (image, mask)}
    features |= {name: datasets.Value("int64") for name in columns}
    rows = {image: list(images), mask: list(masks), **columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def png(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def file_of(picture):
    """A cell of an undecoded column."""
    return {"bytes": png(picture), "path": None}


def shards(split="train", num_images=8, num_shards=2, masks=True):
    """Lists of rows with the bytes of files."""
    rows = [{"image": file_of(image), "label": file_of(mask)} for image, mask in pairs(split, num_images)]
    rows = rows if masks else [{"image": row["image"]} for row in rows]
    return [rows[shard::num_shards] for shard in range(num_shards)]


def yield_rows(shards):
    for shard in shards:
        yield from shard


def stream(split="train", num_images=8, num_shards=1, masks=True, features=True):
    """A stream of `datasets`."""
    columns = PICTURES if masks else datasets.Features({"image": datasets.Image()})
    return datasets.IterableDataset.from_generator(
        yield_rows,
        gen_kwargs={"shards": shards(split, num_images, num_shards, masks)},
        features=columns if features else None,
    )


class TorchStream(torch.utils.data.IterableDataset):
    """A stream of PyTorch, of PIL pictures or of tensors."""

    def __init__(self, tensors=False, num_images=8):
        self.tensors, self.num_images = tensors, num_images

    def __iter__(self):
        for image, mask in pairs(num_images=self.num_images):
            yield tensors_of(image, mask) if self.tensors else {"image": image, "mask": mask, "caption": "a scene"}


class TorchPairs(torch.utils.data.Dataset):
    """A data set of PyTorch, of PIL pictures or of tensors."""

    def __init__(self, tensors=False, num_images=8):
        self.rows, self.tensors = pairs(num_images=num_images), tensors

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        image, mask = self.rows[index]
        return tensors_of(image, mask) if self.tensors else {"image": image, "mask": np.asarray(mask)}


def tensors_of(image, mask):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return {"pixel_values": pixels, "labels": torch.from_numpy(np.array(mask)).long(), "caption": "a scene", "n": 1}
