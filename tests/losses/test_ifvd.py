import pytest
import torch
from loss_cases import STUDENT, TEACHER, Allocations, make_features, make_labels, reference
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.ifvd import class_sums, intra_class_variation
from hf_segkd.types import NetworkSpec


def official_case(dtype=torch.float32):
    """IFVD 950a7a5: torch seed 10, maps randn + 0.3, seven of 19 classes, the first 16 rows of labels ignored."""
    generator = torch.Generator().manual_seed(10)
    student = torch.randn(2, 16, 12, 20, generator=generator) + 0.3
    teacher = torch.randn(2, 32, 12, 20, generator=generator) + 0.3
    labels = torch.randint(0, 7, (2, 96, 160), generator=generator)
    labels[:, :16] = 255
    return student.to(dtype).requires_grad_(), teacher.to(dtype), labels


def ifvd(student, teacher, labels, num_labels=19, ignore_index=255, **kwargs):
    specs = [NetworkSpec({"decoder": side.shape[1]}, num_labels, ignore_index) for side in (student, teacher)]
    loss = create_loss("ifvd", *specs, weight=1.0, **kwargs)
    return loss({"decoder": student}, {"decoder": teacher}, labels)["ifvd"]


def written_as_loops(student, teacher, labels):
    """Cosine of each pixel with the mean of its class in its image, pixel by pixel; labels at the maps' size."""
    images, height, width = labels.shape
    error = 0.0
    for image in range(images):
        for y in range(height):
            for x in range(width):
                label = labels[image, y, x]
                if label == 255:
                    continue
                cosines = []
                for features in (student, teacher):
                    members = features[image][:, labels[image] == label]
                    cosines.append(F.cosine_similarity(features[image, :, y, x], members.mean(1), dim=0))
                error = error + (cosines[0] - cosines[1]) ** 2
    return error


def test_value_and_gradient_are_those_of_the_formula_written_as_loops_over_pixels():
    student, teacher, labels = official_case(torch.float64)
    small = labels[:, ::8, ::8]  # nearest neighbour of 96 x 160 at 12 x 20
    expected = written_as_loops(student, teacher, small) / labels.numel() * 64
    (expected_gradient,) = torch.autograd.grad(expected, student)
    value = ifvd(student, teacher, labels)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-15)


def test_value_and_gradient_are_those_of_the_authors_code():
    student, teacher, labels = official_case()
    value = ifvd(student, teacher, labels)
    value.backward()
    assert value.item() == pytest.approx(0.06095414236187935, rel=2e-5)
    assert student.grad.norm().item() == pytest.approx(0.005705768032459558, rel=2e-5)
    assert student.grad.sum().item() == pytest.approx(-0.03317957089009973, rel=2e-5)
    assert student.grad[:, :, :2].abs().max() == 0.0  # ignored


def test_the_reference_file_agrees():
    case = next(case for case in reference("methods.json")["cases"] if case["id"] == "official_19cls_ignore255")
    assert ifvd(*official_case()).item() == pytest.approx(case["outputs"]["loss"], rel=2e-5)


def test_the_scale_of_the_maps_and_the_order_of_the_images_do_not_matter():
    student, teacher, labels = official_case(torch.float64)
    expected = ifvd(student, teacher, labels)
    torch.testing.assert_close(ifvd(3.0 * student, 0.1 * teacher, labels), expected)
    torch.testing.assert_close(ifvd(student.flip(0), teacher.flip(0), labels.flip(0)), expected)
    assert ifvd(teacher, teacher, labels) == 0.0


def test_an_ignore_index_that_is_the_number_of_a_class_is_ignored():
    student, teacher, labels = official_case(torch.float64)
    renamed = labels.masked_fill(labels == 255, 18)
    torch.testing.assert_close(ifvd(student, teacher, renamed, ignore_index=18), ifvd(student, teacher, labels))


def test_sums_are_taken_class_by_class_and_image_by_image():
    rows = torch.arange(8.0)[:, None]
    labels = torch.tensor([[[0, 1], [1, 255]], [[1, 1], [-1, 0]]])
    sums, group = class_sums(rows, labels, num_classes=2)
    assert sums.flatten().tolist() == [0.0, 3.0, 3.0, 7.0, 9.0, 6.0]
    assert group.tolist() == [0, 1, 1, 2, 4, 4, 5, 3]


def test_as_much_is_computed_and_as_little_kept_for_150_classes_as_for_2():
    features = torch.randn(2, 64, 16, 16, requires_grad=True)
    elements = []
    for classes in (2, 150):
        labels = torch.randint(classes, (2, 16, 16), generator=torch.Generator().manual_seed(0))
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Allocations() as allocations:
            intra_class_variation(features, labels, classes).sum().backward()
        assert sum(kept.values()) < 4 * features.nbytes
        elements.append(allocations.elements)
    # The sums are of 148 classes more; a loop over masks would compute 75 times as much.
    assert elements[1] < 2 * elements[0]


def test_the_loss_reads_the_tap_it_is_told():
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    values = {create_loss("ifvd", STUDENT, TEACHER, tap=tap)(*arguments)["ifvd"] for tap in ("encoder", "decoder")}
    assert len(values) == 2


def test_the_default_weight_is_the_papers():
    assert create_loss("ifvd", STUDENT, TEACHER).weights == {"ifvd": 50.0}


@pytest.mark.parametrize("channels", [16, 256])
def test_a_pixel_of_zeros_gets_no_gradient_and_leaves_that_of_the_others_as_it_is(channels):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, channels, 6, 8, generator=generator).relu()
    labels = torch.randint(3, (1, 6, 8), generator=generator)
    slopes = []
    for _ in range(2):
        leaf = student.clone().requires_grad_()
        (slope,) = torch.autograd.grad(ifvd(leaf, teacher, labels, num_labels=3), leaf)
        slopes.append(slope.abs().max())
        student[0, :, 2, 3] = 0.0
    assert slopes[0] / 10 < slopes[1] < 10 * slopes[0]
