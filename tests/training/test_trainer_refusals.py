import datasets
import pytest
import torch
from tiny_runs import arguments, network, processor, scenes, trainer

from hf_segkd.training.trainer import DistillationTrainer


def test_wrong_set_ups_are_refused_with_the_way_out(tmp_path):
    cases = {
        "needs a teacher": {"args": arguments(tmp_path, method="kd")},
        "method is 'none'": {"args": arguments(tmp_path), "teacher": network(seed=1)},
        "Did you mean 'attnfd'": {"args": arguments(tmp_path, method="atnfd"), "teacher": network(seed=1)},
        "which teaches which with class_map": {
            "args": arguments(tmp_path, method="kd"),
            "teacher": network(seed=1, id2label={i: str(i) for i in range(7)}, label2id=None),
        },
        "processing_class is missing": {"args": arguments(tmp_path), "processing_class": None},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            DistillationTrainer(
                **{"model": network(), "train_dataset": scenes(), "processing_class": processor()} | options
            )
    student = network()
    with pytest.raises(ValueError, match="same object"):
        DistillationTrainer(student, arguments(tmp_path, method="kd"), teacher=student)


def test_what_would_train_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="so nothing would be trained"):
        DistillationTrainer(
            network(), arguments(tmp_path), train_dataset=scenes(num_images=3), processing_class=processor()
        )
    splits = datasets.DatasetDict({"train": scenes()})
    with pytest.raises(ValueError, match="holds the splits train"):
        DistillationTrainer(network(), arguments(tmp_path), train_dataset=splits, processing_class=processor())


def test_an_optimizer_without_the_losss_parameters_is_refused(tmp_path):
    student = network()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="they would never learn"):
        DistillationTrainer(
            student,
            arguments(tmp_path, method="attnfd"),
            teacher=network(seed=1),
            train_dataset=scenes(),
            processing_class=processor(),
            optimizers=(optimizer, None),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fp16": True}, "fp16 needs a GPU"),
        ({"use_liger_kernel": True}, "use_liger_kernel is True and must be False: its kernels are those of language"),
    ],
)
def test_modes_that_can_not_work_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options)


def test_labels_in_another_order_or_of_other_names_are_refused(tmp_path):
    names = list(network().config.id2label.values())
    mixed = network(id2label=dict(enumerate(names[::-1])), label2id=None)
    with pytest.raises(ValueError, match="in another order"):
        trainer(tmp_path, student=mixed)
    with pytest.raises(ValueError, match=r"calls its classes \['a', 'b', 'c', 'd'\], the data set demo \['background'"):
        trainer(tmp_path, student=network(id2label=dict(enumerate("abcd")), label2id=None))
    shouted = [name.upper().replace(" ", "_") for name in names]
    trainer(tmp_path, student=network(id2label=dict(enumerate(shouted)), label2id=None))


def test_a_student_without_class_names_takes_over_those_of_the_data(tmp_path):
    run = trainer(tmp_path, student=network(id2label=None, label2id=None, num_labels=4))
    names = network().config.id2label
    assert run.student.config.id2label == names
    assert run.student.config.label2id == {name: index for index, name in names.items()}


def test_data_whose_labels_are_not_known_are_refused(tmp_path):
    foreign = scenes().with_format(None)
    with pytest.raises(ValueError, match="carries no label information"):
        DistillationTrainer(network(), arguments(tmp_path), train_dataset=foreign, processing_class=processor())


def test_a_stream_without_a_number_of_steps_is_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    def start(**options):
        return DistillationTrainer(
            network(), arguments(tmp_path, **options), train_dataset=Stream(), processing_class=processor()
        )

    with pytest.raises(
        ValueError, match=r"train_dataset is a stream \(Stream\), whose length is not known: set max_st"
    ):
        start(max_steps=-1)
    with pytest.raises(ValueError, match="a stream without a single image"):
        start(max_steps=4).train()
