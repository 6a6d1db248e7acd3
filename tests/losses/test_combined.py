import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels

from hf_segkd.losses import combined, create_loss


def values(name, **kwargs):
    torch.manual_seed(0)
    loss = create_loss(name, STUDENT, TEACHER, **kwargs)
    return loss, loss(make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels())


def test_each_term_is_what_its_loss_gives_alone():
    _, together = values("cwd,kd,fakd_pd", cwd={"weight": 2.0}, kd={"temperature": 3.0})
    alone = {**values("cwd", weight=2.0)[1], **values("kd", temperature=3.0)[1], **values("fakd_pd")[1]}
    assert list(together) == list(alone)
    assert all(torch.equal(together[name], alone[name]) for name in alone)


def test_weights_and_parameters_are_those_of_all():
    loss, _ = values("attnfd,cwd", cwd={"tap": "encoder"})
    assert loss.name == "attnfd,cwd"
    assert loss.weights.keys() == {"attnfd", "cwd"}
    parts = [values("attnfd")[0], values("cwd", tap="encoder")[0]]
    count = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert sum(parameter.numel() for parameter in loss.parameters()) == count


def test_progress_reaches_every_loss():
    loss, _ = values("fakd_pd,fakd_cwd")
    loss.set_progress(0.25)
    assert [part.progress for part in loss.losses] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cwd,cwd", {}, "twice; name it once"),
        ("cwd,kdd", {}, "'kd'"),
        ("cwd,kd", {"weight": 2}, "cwd, kd"),
        ("cwd,kd", {"kd": {"temprature": 2}}, "temperature"),
        ("cwd,kd", {"kd": 2}, "kd"),
        ("attnfd,cwd", {"attnfd": {"preset": "official"}}, "connector_epochs"),
    ],
)
def test_what_does_not_go_together_is_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        values(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("cirkd,kd", {}, ["cirkd,kd applies KD on the logits 2 times: cirkd_kd (weight 1) and kd (weight 1)"]),
        ("kd,skds", {"kd": {"weight": 2.5}}, ["2 times: kd (weight 2.5) and skds_pixel (weight 10)"]),
        ("cirkd,kd", {"cirkd": {"kd_weight": 0}}, []),
        ("skds,kd", {"kd": {"weight": 0}}, []),
        ("cwd,kd", {}, []),
    ],
)
def test_pixel_wise_kd_that_two_methods_bring_is_told(name, kwargs, told, monkeypatch):
    messages = []
    monkeypatch.setattr(combined.logger, "warning", messages.append)
    create_loss(name, STUDENT, TEACHER, **kwargs)
    assert len(messages) == len(told)
    assert all(part in message for part, message in zip(told, messages, strict=True))


def test_labels_are_needed_and_images_coupled_where_one_loss_does_so():
    for name, expected in (("cwd,fakd_pd", True), ("cwd,kd", False)):
        loss, _ = values(name)
        assert (loss.needs_labels, loss.couples_images) == (expected, expected)


def test_blanks_between_names_do_not_matter():
    assert values("cwd, kd")[0].name == "cwd,kd"
