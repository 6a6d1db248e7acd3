import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels
from several_processes import spawn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers.utils import logging

from hf_segkd.losses import create_loss, sp
from hf_segkd.losses.sp import similarity_distance


def public_case():
    """RepDistiller b84f547: torch seed 3, relu of student randn(4, 16, 12, 20), teacher randn(4, 32, 6, 10)."""
    generator = torch.Generator().manual_seed(3)
    shapes = (4, 16, 12, 20), (4, 32, 6, 10)
    student, teacher = (torch.randn(shape, generator=generator).relu().double() for shape in shapes)
    return student.requires_grad_(), teacher


def by_loops(student, teacher):
    matrices = []
    for images in (student.flatten(1), teacher.flatten(1)):
        gram = [[sum(a * b for a, b in zip(first, second, strict=True)) for second in images] for first in images]
        lengths = [sum(value**2 for value in row) ** 0.5 for row in gram]
        matrices.append([[value / length for value in row] for row, length in zip(gram, lengths, strict=True)])
    b = range(len(student))
    return sum((matrices[0][i][j] - matrices[1][i][j]) ** 2 for i in b for j in b) / len(b) ** 2


def test_value_and_gradient_are_those_of_the_formula_written_as_loops():
    student, teacher = (x[:3, :2, :2, :3].detach() for x in public_case())
    actual, expected = (student.clone().requires_grad_() for _ in range(2))
    value = similarity_distance(actual, teacher)
    value.backward()
    formula = by_loops(expected, teacher)
    formula.backward()
    torch.testing.assert_close(value, formula, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-8, atol=1e-14)


def test_value_and_gradient_are_those_of_the_public_code():
    student, teacher = public_case()
    value = similarity_distance(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0.00023245903984154187, rel=1e-10)
    assert student.grad.norm().item() == pytest.approx(0.00020026673963324354, rel=1e-10)
    assert student.grad.sum().item() == pytest.approx(-0.007254780784553383, rel=2e-5)


def test_a_rotation_of_the_features_and_the_order_of_the_images_cost_nothing():
    student, teacher = (x.detach() for x in public_case())
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).double()).Q
    turned = torch.einsum("dc,bchw->bdhw", rotation, student)
    assert similarity_distance(5.0 * turned, student) < 1e-20
    swapped = similarity_distance(student.flip(0), teacher.flip(0))
    torch.testing.assert_close(swapped, similarity_distance(student, teacher))


def test_fp32_is_exact_for_large_maps():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 256, 64, 64, generator=generator).relu() for _ in range(2))
    exact, student = student.double().requires_grad_(), student.requires_grad_()
    similarity_distance(exact, teacher.double()).backward()
    similarity_distance(student, teacher).backward()
    assert (student.grad - exact.grad).norm() < 1e-4 * exact.grad.norm()


def test_one_image_gives_exactly_nothing_and_one_warning(monkeypatch):
    messages = []
    logging.warning_once.cache_clear()
    monkeypatch.setattr(sp.logger, "warning", messages.append)
    student = {"decoder": make_features(STUDENT, 1)["decoder"][:1].detach().requires_grad_()}
    loss = create_loss("sp", STUDENT, TEACHER)
    for _ in range(2):
        value = loss(student, {"decoder": make_features(TEACHER, 2)["decoder"][:1]}, make_labels()[:1])["sp"]
    value.backward()
    assert value == 0.0
    assert student["decoder"].grad.abs().max() == 0.0
    assert messages == ["sp compares the images of a batch; with one image it is always 0. Use two or more."]


def batch_of_four():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 6, 5, generator=generator).double()
    return images, torch.randn(4, 16, 4, 4, generator=generator).double(), make_labels()[[0, 1, 0, 1]]


def network():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 8, 3).double()


def value_and_gradient(images, teacher, labels, model, **kwargs):
    loss = create_loss("sp", STUDENT, TEACHER, **kwargs)
    value = loss({"decoder": model(images)}, {"decoder": teacher}, labels)["sp"]
    value.backward()
    return [value.detach(), *(parameter.grad for parameter in model.parameters())]


def job(rank, folder):
    dist.init_process_group("gloo")
    share = [tensor[2 * rank : 2 * rank + 2] for tensor in batch_of_four()]
    torch.save(value_and_gradient(*share, DistributedDataParallel(network())), f"{folder}/{rank}.pt")
    torch.save(value_and_gradient(*share, network(), gather=False), f"{folder}/alone{rank}.pt")


@pytest.mark.slow
def test_two_processes_have_value_and_gradient_of_the_whole_batch(tmp_path):
    spawn(2, tmp_path, job)
    expected = value_and_gradient(*batch_of_four(), network())
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected, rtol=1e-9, atol=1e-12)
        own = [tensor[2 * rank : 2 * rank + 2] for tensor in batch_of_four()]
        torch.testing.assert_close(torch.load(tmp_path / f"alone{rank}.pt"), value_and_gradient(*own, network()))


def test_the_images_of_other_processes_count_and_the_gradient_makes_up_for_ddps_mean(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, channels, 3, 2, generator=generator) for channels in (8, 16))
    whole = student.clone().requires_grad_()
    expected = 3000.0 * similarity_distance(whole, teacher)
    expected.backward()

    from_rank_0 = [student[:2], teacher[:2]]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "all_gather", lambda parts, own: parts[0].copy_(from_rank_0.pop(0)))
    own = student[2:].clone().requires_grad_()
    value = create_loss("sp", STUDENT, TEACHER)({"decoder": own}, {"decoder": teacher[2:]}, make_labels())["sp"]
    value.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(own.grad, 2 * whole.grad[2:])


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="weight of sp is -1"):
        create_loss("sp", STUDENT, TEACHER, weight=-1)
