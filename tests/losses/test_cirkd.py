import pytest
import torch
from loss_cases import STUDENT, TEACHER, Allocations, make_features, make_labels, reference
from several_processes import spawn
from torch import distributed as dist
from torch.nn import functional as F

from hf_segkd.losses import cirkd, create_loss
from hf_segkd.losses.cirkd_memory import CIRKDMemory, ClassQueues, key_divergence
from hf_segkd.losses.cirkd_minibatch import minibatch_divergence
from hf_segkd.types import NetworkSpec


def randn(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def doubles(seed, *shapes):
    student, *others = (tensor.double() for tensor in randn(seed, *shapes))
    return student.requires_grad_(), *others


def assert_same_with_gradient(value, expected, student, rtol=1e-10):
    (gradient,) = torch.autograd.grad(value, student)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=0.0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-12)


# --- pairs of images of the batch ---


def all_pairs(student, teacher, temperature=0.1):
    """The mini-batch term with whole n x n maps, image by image."""
    images, pixels = len(student), student[0, 0].numel()
    total = 0.0
    for i in range(images):
        for j in range(images):
            log_p, log_q = (
                torch.log_softmax(
                    F.normalize(x[i].flatten(1), dim=0).T @ F.normalize(x[j].flatten(1), dim=0) / temperature, 1
                )
                for x in (teacher, student)
            )
            total = total + (log_p.exp() * (log_p - log_q)).sum()
    return total / (images**2 * pixels)


@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0])
def test_the_minibatch_term_and_its_gradient_are_the_formula_over_all_ordered_pairs_of_images(temperature):
    student, teacher = doubles(0, (3, 4, 3, 5), (3, 6, 3, 5))
    value = minibatch_divergence(student, teacher, temperature)
    assert_same_with_gradient(value, all_pairs(student, teacher, temperature), student)
    assert torch.autograd.gradcheck(lambda s: minibatch_divergence(s, teacher, temperature), student)


def test_maps_that_take_several_tiles_give_the_same_and_no_n_x_n_map_is_ever_made():
    student, teacher = doubles(1, (2, 3, 30, 35), (2, 4, 30, 35))
    with Allocations() as allocations:
        value = minibatch_divergence(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
    assert allocations.largest < 1050 * 1050 * 8 / 2
    expected = all_pairs(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0], rtol=1e-7, atol=1e-12)


def test_the_minibatch_term_of_512_channels_at_64_x_64_takes_less_than_200_mb():
    student, teacher = randn(1, (2, 512, 32, 32), (2, 512, 32, 32))  # a quarter of the pixels
    with Allocations() as allocations:
        minibatch_divergence(student.requires_grad_(), teacher).backward()
    assert allocations.peak < 50e6


def test_the_minibatch_term_is_that_of_the_authors_code():
    # CIRKD 2d8ad0f, losses/cirkd_mini_batch.py: torch seed 17, student randn(2, 16, 12, 20), teacher 32 channels.
    student, teacher = randn(17, (2, 16, 12, 20), (2, 32, 12, 20))
    student.requires_grad_()
    value = minibatch_divergence(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(2.1254825592041016, rel=1e-6)
    assert student.grad.norm().item() == pytest.approx(0.03410887831891886, rel=1e-6)
    first = torch.tensor([-9.87788662314415e-05, 0.0004444235819391906, -0.0002001090906560421])
    torch.testing.assert_close(student.grad.flatten()[:3], first, rtol=2e-5, atol=1e-10)


def test_pooling_averages_cells_first_and_those_at_the_edge_over_what_they_have():
    student, teacher = doubles(2, (2, 4, 5, 7), (2, 4, 5, 7))
    cells = []
    for features in (student, teacher):
        columns = [features[..., x : x + 2].mean(-1) for x in range(0, 7, 2)]
        rows = [torch.stack(columns, -1)[..., y : y + 2, :].mean(-2) for y in range(0, 5, 2)]
        cells.append(torch.stack(rows, -2))
    assert cells[0].shape == (2, 4, 3, 4)
    assert_same_with_gradient(minibatch_divergence(student, teacher, pooling=2), all_pairs(*cells), student)


def test_equal_maps_cost_nothing_and_neither_length_nor_order_of_the_vectors_matters():
    student, teacher = doubles(3, (2, 4, 3, 5), (2, 4, 3, 5))
    expected = minibatch_divergence(student, teacher)
    assert abs(minibatch_divergence(teacher, 2.0 * teacher)) < 1e-12
    lengths = torch.rand(2, 1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    torch.testing.assert_close(minibatch_divergence(student * lengths, teacher), expected)
    torch.testing.assert_close(minibatch_divergence(student.flip(0, 2), teacher.flip(0, 2)), expected)


def test_opposite_vectors_at_the_lowest_temperature_are_finite():
    student = torch.ones(1, 2, 2, 2)
    student[..., 0, 0] = -1.0
    student.requires_grad_()
    value = minibatch_divergence(student, student.detach().flip(2), temperature=0.023)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("channels", [16, 256])
def test_a_pixel_of_zeros_gets_no_gradient_and_leaves_that_of_the_others_as_it_is(channels):
    student, teacher = (tensor.relu() for tensor in randn(9, (2, channels, 6, 8), (2, channels, 6, 8)))
    specs = [NetworkSpec({"decoder": channels}, 5)] * 2
    torch.manual_seed(0)
    loss = create_loss("cirkd", *specs, kd_weight=0.0, pixel_queue=60, region_queue=10)
    labels = make_labels()
    loss({"decoder": student}, {"decoder": teacher}, labels)
    loss.training = False  # the queues stay as they are
    slopes = []
    for _ in range(2):
        leaf = student.clone().requires_grad_()
        terms = loss({"decoder": leaf}, {"decoder": teacher}, labels)
        slopes.append(
            torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0].abs().max() for v in terms.values()])
        )
        student[0, :, 2, 3] = 0.0
    assert (slopes[1] < 10 * slopes[0]).all()
    assert (slopes[1] > slopes[0] / 10).all()


# --- relations to keys ---


@pytest.mark.parametrize(("pixels", "keys"), [(5, 7), (600, 2000)])  # one chunk, two chunks
def test_relations_to_keys_are_the_formula_and_have_its_gradient(pixels, keys):
    student, teacher, keys = doubles(4, (pixels, 3), (pixels, 3), (keys, 3))
    log_p, log_q = (torch.log_softmax(x @ keys.T / 0.2 / 1.5, dim=1) for x in (teacher, student))
    expected = (log_p.exp() * (log_p - log_q)).sum(1).mean() * 1.5**2
    assert_same_with_gradient(key_divergence(student, teacher, keys, 0.2, 1.5), expected, student)


def test_no_pixel_to_relate_costs_nothing_and_has_a_graph():
    student = torch.zeros(0, 3, requires_grad=True)
    value = key_divergence(student, torch.zeros(0, 3), torch.zeros(4, 3))
    value.backward()
    assert value == 0.0
    assert student.grad.shape == (0, 3)


# --- the memory ---


def memory_case(**kwargs):
    """The authors' code on CPU, torch seed 18: all vectors of both queues are keys, so nothing random is left."""
    generator = torch.Generator().manual_seed(18)
    student, teacher = (torch.randn(2, channels, 4, 6, generator=generator) for channels in (8, 16))
    labels = torch.randint(0, 4, (2, 32, 48), generator=generator)
    labels[:, :8] = -1
    shapes = (16, 8, 1, 1), (16, 16, 1, 1), (5, 40, 16), (5, 12, 16)
    first, second, pixels, regions = (torch.randn(shape, generator=generator) for shape in shapes)
    specs = [NetworkSpec({"decoder": side.shape[1]}, 5, ignore_index=-1) for side in (student, teacher)]
    sizes = {"pixel_queue": 40, "region_queue": 12, "pixel_keys": 40, "region_keys": 12}
    weights = {"weight": 0.0, "kd_weight": 0.0, "pixel_weight": 1.0, "region_weight": 1.0}
    loss = create_loss("cirkd", *specs, **sizes, **weights, **kwargs)
    with torch.no_grad():
        loss.projector[0].weight.copy_(first * 0.4)
        loss.projector[3].weight.copy_(second * 0.3)
    for queues, vectors in ((loss.memory.pixels, pixels), (loss.memory.regions, regions)):
        queues.vectors = F.normalize(vectors, dim=2)
        queues.row.copy_(torch.arange(5))
        queues.filled.fill_(vectors.shape[1])
    return loss, {"decoder": student.requires_grad_()}, {"decoder": teacher}, labels


def test_memory_terms_are_those_of_the_authors_code():
    loss, student, teacher, labels = memory_case()
    loss.training = False  # nothing enters the queues, but the projector's batch norm is in training mode
    terms = loss(student, teacher, labels)
    sum(terms.values()).backward()
    assert terms["cirkd_pixel"].item() == pytest.approx(4.6013336181640625, rel=2e-5)
    assert terms["cirkd_region"].item() == pytest.approx(4.253773212432861, rel=2e-5)
    gradient = student["decoder"].grad
    assert gradient.norm().item() == pytest.approx(0.4950369915867208, rel=2e-5)
    first = torch.tensor([-0.0019850365351885557, -0.004683247767388821, -0.0016825948841869831])
    torch.testing.assert_close(gradient.flatten()[:3], first, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize(("variant", "pixel"), [("published", 4.567358), ("corrected", 6.988716)])
def test_memory_terms_after_the_batch_has_entered_the_queues(variant, pixel):
    loss, *arguments = memory_case(variant=variant)
    terms = loss(*arguments)
    assert terms["cirkd_pixel"].item() == pytest.approx(pixel, rel=2e-6)
    assert terms["cirkd_region"].item() == pytest.approx(4.543310, rel=2e-6)


def test_the_reference_file_agrees():
    cases = {case["id"]: case for case in reference("methods.json")["cases"]}
    student, teacher = randn(17, (2, 16, 12, 20), (2, 32, 12, 20))
    expected = cases["minibatch_v1_poolFalse"]["outputs"]["loss"]
    assert minibatch_divergence(student, teacher).item() == pytest.approx(expected, rel=2e-5)
    loss, *arguments = memory_case()
    loss.training = False
    expected = cases["memory_loss_only_no_enqueue"]["outputs"]
    assert [value.item() for value in loss(*arguments).values()] == pytest.approx(list(expected.values()), rel=2e-5)


def test_a_group_that_reaches_the_end_of_its_queue_takes_the_last_places():
    queues = ClassQueues(num_classes=2, length=5, channels=1)
    queues.push(torch.arange(1.0, 9.0)[:, None], [(1, 3), (0, 1), (1, 4)])
    assert queues.row.tolist() == [1, 0]
    assert queues.vectors[..., 0].tolist() == [[1, 5, 6, 7, 8], [4, 0, 0, 0, 0]]
    assert queues.filled.tolist() == [1, 5]
    assert queues.position.tolist() == [1, 0]
    queues.push(torch.arange(9.0, 11.0)[:, None], [(1, 2)])
    assert queues.vectors[0, :, 0].tolist() == [9, 10, 6, 7, 8]
    assert queues.filled.tolist() == [1, 5]
    assert queues.position.tolist() == [1, 2]


def test_keys_are_distinct_vectors_of_the_classes_seen_as_many_of_each_as_asked_or_there_are():
    memory = CIRKDMemory(num_classes=3, channels=1, pixel_queue=50, region_queue=2)
    memory.pixels.push(torch.arange(1.0, 54.0)[:, None], [(0, 50), (2, 3)])
    keys = memory.draw(10, 1)[0].flatten().tolist()
    assert len(set(keys)) == 13
    assert sum(key <= 50 for key in keys) == 10
    assert sorted(keys)[10:] == [51.0, 52.0, 53.0]


def test_full_queues_are_read_at_the_same_places_for_all_classes():
    memory = CIRKDMemory(num_classes=2, channels=1, pixel_queue=50, region_queue=2)
    memory.pixels.push(torch.arange(100.0)[:, None], [(0, 50), (1, 50)])
    first, second = memory.draw(10, 1)[0].flatten().view(2, 10)
    assert (second - first == 50.0).all()


def test_other_steps_and_seeds_draw_other_keys():
    memories = [CIRKDMemory(1, 1, pixel_queue=500, region_queue=2, seed=seed) for seed in (0, 0, 1)]
    for memory in memories:
        memory.pixels.push(torch.arange(500.0)[:, None], [(0, 500)])
    memories[1].updates += 1
    assert len({tuple(memory.draw(20, 1)[0].flatten().tolist()) for memory in memories}) == 3
    assert torch.equal(memories[0].draw(20, 1)[0], memories[0].draw(20, 1)[0])


def vectors_of(queues, y):
    assert queues.row[y] >= 0
    return queues.vectors[queues.row[y]]


def one_hot_rows(labels, channels=5):
    """Unit vectors that tell the class of their pixel; of ignored pixels channel 4."""
    return F.one_hot(labels.masked_fill(labels < 0, 4).flatten(), channels).float()


@pytest.mark.parametrize("variant", ["corrected", "published"])
def test_pixels_enter_the_queue_of_their_own_class_unless_as_published(variant):
    labels = torch.tensor([[[-1] * 6 + [0] * 30 + [2] * 4], [[2] * 20 + [3] * 20]])
    memory = CIRKDMemory(4, 5, pixel_queue=100, region_queue=10, variant=variant)
    memory.update(one_hot_rows(labels), labels)
    entered = {0: 16, 1: 0, 2: 20, 3: 16}  # at most 16 of an image
    assert memory.pixels.position.tolist() == list(entered.values())
    assert memory.regions.position.tolist() == [1, 0, 2, 1]
    strangers = 0
    for y, number in entered.items():
        if number:
            strangers += int((vectors_of(memory.pixels, y)[:number].argmax(1) != y).sum())
            assert (vectors_of(memory.regions, y)[: memory.regions.position[y]].argmax(1) == y).all()
    # Published: of the first 30, 4 and 20 pixels of the images some or all are of another class.
    assert strangers == 0 if variant == "corrected" else strangers >= 4 + 16


def test_the_mean_of_a_class_in_an_image_enters_with_length_one():
    (rows,) = randn(5, (12, 3))
    labels = torch.tensor([[[0, 0, 1, -1, 0, 1]], [[1, 1, 1, 1, -1, -1]]])
    memory = CIRKDMemory(2, 3, pixel_queue=100, region_queue=10)
    memory.update(rows, labels)
    means = [rows[[0, 1, 4]].mean(0)], [rows[[2, 5]].mean(0), rows[6:10].mean(0)]
    for y, expected in enumerate(means):
        actual = vectors_of(memory.regions, y)[: len(expected)]
        torch.testing.assert_close(actual, F.normalize(torch.stack(expected), dim=1))
    assert memory.regions.filled.tolist() == [1, 2]


def test_the_published_queues_start_full_of_unit_vectors_and_ours_empty():
    published = CIRKDMemory(3, 8, 20, 10, variant="published")
    for queues, length in ((published.pixels, 20), (published.regions, 10)):
        assert queues.filled.tolist() == [length] * 3
        torch.testing.assert_close(queues.vectors.norm(dim=2), torch.ones(3, length))
    assert CIRKDMemory(3, 8, 20, 10).pixels.filled.tolist() == [0, 0, 0]


def test_only_classes_that_were_seen_take_memory():
    memory = CIRKDMemory(150, 5, pixel_queue=100, region_queue=10)
    assert memory.pixels.vectors.shape == (0, 100, 5)
    for classes in ([149, 3], [3, 20], [20]):
        labels = torch.tensor(classes).repeat_interleave(6).view(1, 1, -1)
        memory.update(one_hot_rows(labels % 4), labels)
    assert memory.pixels.vectors.shape == (3, 100, 5)
    assert memory.regions.vectors.shape == (3, 10, 5)
    assert {y: row for y, row in enumerate(memory.pixels.row.tolist()) if row >= 0} == {3: 0, 149: 1, 20: 2}
    assert memory.pixels.filled[[3, 20, 149]].tolist() == [12, 12, 6]
    for y in (3, 20, 149):
        assert (vectors_of(memory.pixels, y)[: memory.pixels.filled[y]].argmax(1) == y % 4).all()


def test_queues_of_another_length_are_not_loaded():
    with pytest.raises(RuntimeError, match="size mismatch for vectors"):
        ClassQueues(2, 5, 1).load_state_dict(ClassQueues(2, 6, 1).state_dict())


def loss_and_batch(**kwargs):
    torch.manual_seed(0)
    sizes = {"pixel_queue": 60, "region_queue": 10, "pixel_keys": 20, "region_keys": 4}
    loss = create_loss("cirkd", STUDENT, TEACHER, **sizes, **kwargs)
    return loss, make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()


def test_a_run_goes_on_from_its_state_with_the_same_bits():
    loss, student, teacher, _ = loss_and_batch()
    for seed in range(4):
        if seed == 2:
            restored, *_ = loss_and_batch()
            restored(student, teacher, torch.full_like(make_labels(), 4))  # other classes than were seen before
            restored.load_state_dict({name: value.clone() for name, value in loss.state_dict().items()})
        terms = loss(student, teacher, make_labels(seed))
    for seed in (2, 3):
        again = restored(student, teacher, make_labels(seed))
    assert again == terms
    state = restored.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())


def test_a_batch_of_ignored_pixels_costs_the_memory_nothing_and_leaves_the_queues_alone():
    loss, student, teacher, labels = loss_and_batch()
    loss(student, teacher, labels)
    before = {name: value.clone() for name, value in loss.memory.state_dict().items() if name != "updates"}
    terms = loss(student, teacher, torch.full_like(labels, 255))
    assert terms["cirkd_pixel"] == terms["cirkd_region"] == 0.0
    assert terms["cirkd_pixel"].requires_grad
    assert all(torch.equal(value, loss.memory.state_dict()[name]) for name, value in before.items())


def test_an_overflow_of_the_teacher_does_not_stay_in_the_queues():
    loss, student, teacher, labels = loss_and_batch()
    spoilt = {**teacher, "decoder": teacher["decoder"].detach().clone()}
    spoilt["decoder"][0, 3, 4:6] = torch.inf
    loss(student, spoilt, labels)
    assert all(value.isfinite().all() for value in loss.memory.state_dict().values())
    assert all(value.isfinite() for value in loss(student, teacher, labels).values())


def test_before_the_first_batch_there_are_no_keys_and_the_memory_costs_nothing():
    loss, *batch = loss_and_batch()
    terms = loss.eval()(*batch)
    assert terms["cirkd_pixel"] == terms["cirkd_region"] == 0.0
    assert terms["cirkd_pixel"].requires_grad


def test_evaluation_reads_the_queues_and_leaves_them_alone():
    loss, *batch = loss_and_batch()
    loss(*batch)
    before = {name: value.clone() for name, value in loss.memory.state_dict().items()}
    loss.eval()
    assert all(value > 0 for value in loss(*batch).values())
    assert all(torch.equal(value, before[name]) for name, value in loss.memory.state_dict().items())


# --- the whole ---


def test_terms_of_weight_zero_are_left_out_with_what_they_need():
    _, *batch = loss_and_batch()
    loss = create_loss("cirkd", STUDENT, TEACHER, kd_weight=0.0, pixel_weight=0.0, region_weight=0.0)
    assert loss(*batch).keys() == {"cirkd_minibatch"}
    assert loss.student_taps == ("decoder",)
    assert not loss.state_dict()
    for left_out, other in (("pixel", "region"), ("region", "pixel")):
        loss = create_loss("cirkd", STUDENT, TEACHER, **{f"{left_out}_weight": 0.0})
        assert loss(*batch).keys() == {"cirkd_kd", "cirkd_minibatch", f"cirkd_{other}"}
        memory = {name.split(".")[1] for name in loss.state_dict() if name.startswith("memory.")}
        assert memory == {f"{other}s", "updates"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kd_weight": 0, "kd_temperature": 9.0},
            "kd_temperature is 9.0, but nothing reads it: 0 is given for kd_weight",
        ),
        ({"weight": 0, "pooling": 4}, "pooling is 4, but nothing reads it: 0 is given for weight"),
        ({"pixel_weight": 0, "pixel_queue": 7}, "pixel_queue is 7, .* 0 is given for pixel_weight"),
        ({"pixel_weight": 0, "pixel_keys": 7}, "pixel_keys is 7, .* 0 is given for pixel_weight"),
        ({"pixel_weight": 0, "pixels_per_image": 7}, "pixels_per_image is 7, .* 0 is given for pixel_weight"),
        ({"region_weight": 0, "region_queue": 7}, "region_queue is 7, .* 0 is given for region_weight"),
        ({"region_weight": 0, "region_keys": 7}, "region_keys is 7, .* 0 is given for region_weight"),
        ({"variant": "published"}, "variant is 'published', .* 0 is given for pixel_weight and region_weight"),
        ({"seed": 1}, "seed is 1, .* 0 is given for pixel_weight and region_weight"),
        ({"contrast_kd_temperature": 2.0}, "contrast_kd_temperature is 2.0, .* pixel_weight and region_weight"),
        ({"weight": 0, "temperature": 0.2}, "temperature is 0.2, .* weight and pixel_weight and region_weight"),
        ({"weight": 0, "tap": "encoder"}, "tap is 'encoder', .* weight and pixel_weight and region_weight"),
    ],
    ids=str,
)
def test_options_that_only_terms_of_weight_zero_read_are_refused(options, message):
    if "region_weight" not in options and "pixel_weight" not in options:
        options = {**options, "pixel_weight": 0, "region_weight": 0}
    with pytest.raises(ValueError, match=message):
        create_loss("cirkd", STUDENT, TEACHER, **options)


def test_maps_of_fp64_give_what_those_of_fp32_give():
    loss, *features, labels = loss_and_batch()
    expected = loss(*features, labels)
    loss, *_ = loss_and_batch()
    doubled = [{tap: feature.double() for tap, feature in side.items()} for side in features]
    terms = loss(*doubled, labels)
    for term, value in terms.items():
        assert value.item() == pytest.approx(expected[term].item(), rel=1e-5)
    assert loss.double()(*doubled, labels)["cirkd_pixel"].dtype == torch.float64


def test_a_projector_that_gives_zeros_gets_no_gradient_rather_than_an_endless_one():
    loss, *batch = loss_and_batch(weight=0.0, kd_weight=0.0)
    with torch.no_grad():
        loss.projector[3].weight.zero_()
    sum(loss(*batch).values()).backward()
    assert loss.projector[3].weight.grad.abs().max() == 0.0


@pytest.mark.parametrize(
    ("options", "term"),
    [
        ({"temperature": 0.2}, "cirkd_minibatch"),
        ({"temperature": 0.2}, "cirkd_pixel"),
        ({"pooling": 2}, "cirkd_minibatch"),
        ({"kd_temperature": 2.0}, "cirkd_kd"),
        ({"contrast_kd_temperature": 2.0}, "cirkd_region"),
        ({"pixels_per_image": 2}, "cirkd_pixel"),
        ({"variant": "published"}, "cirkd_pixel"),
        ({"seed": 1}, "cirkd_pixel"),
        ({"tap": "encoder"}, "cirkd_minibatch"),
    ],
    ids=str,
)
def test_an_option_changes_its_term(options, term):
    default, *batch = loss_and_batch()
    changed, *_ = loss_and_batch(**options)
    assert changed(*batch)[term] != default(*batch)[term]


@pytest.mark.parametrize(("classes", "published"), [(19, True), (21, True), (150, False)])
def test_queues_are_as_long_as_published_where_they_fit_into_a_gibibyte_and_else_a_warning_says_so(
    classes, published, monkeypatch
):
    messages = []
    monkeypatch.setattr(cirkd.logger, "warning", messages.append)
    spec = NetworkSpec({"decoder": 512, "logits": classes}, classes)
    memory = create_loss("cirkd", spec, spec).memory
    lengths = memory.pixels.vectors.shape[1], memory.regions.vectors.shape[1]
    assert (lengths == (20000, 2000)) == published
    assert sum(lengths) * classes * 512 * 4 <= 2**30
    assert published or sum(lengths) * classes * 512 * 4 > 0.99 * 2**30
    expected = [
        f"cirkd: {argument}_queue is {length} instead of the published {full}, so that the queues of 150 classes of "
        f"512 channels fit into 1024 MiB. Give {argument}_queue for another."
        for argument, length, full in (("pixel", 3177, 20000), ("region", 317, 2000))
    ]
    assert messages == ([] if published else expected)


def test_defaults_are_those_of_the_authors_code():
    loss = create_loss("cirkd", STUDENT, TEACHER)
    assert loss.weights == {"cirkd_kd": 1.0, "cirkd_minibatch": 1.0, "cirkd_pixel": 0.1, "cirkd_region": 0.1}
    assert loss.keys == (4096 // 5 + 1, 1024 // 5 + 1)
    assert (loss.temperature, loss.kd_temperature, loss.contrast_kd_temperature) == (0.1, 1.0, 1.0)
    assert loss.memory.pixels_per_image == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.01}, "temperature is 0.01; it must be at least 0.023"),
        ({"temperature": "0.1"}, "temperature is '0.1'; it must be positive"),
        ({"variant": "v2"}, "variant is 'v2'; it must be one of 'corrected', 'published'"),
        ({"kd_temperature": 0.0}, "kd_temperature is 0.0; it must be positive"),
        ({"pooling": 0}, "pooling must be a whole number from 1, got 0"),
        ({"pooling": 1.5}, "pooling must be a whole number from 1, got 1.5"),
        ({"pooling": True}, "pooling must be a whole number from 1, got True"),
        ({"pixels_per_image": 0.5}, "pixels_per_image must be a whole number from 1, got 0.5"),
        ({"pixel_queue": 30.5}, "pixel_queue must be a whole number from 1, got 30.5"),
        ({"region_queue": 0}, "region_queue must be a whole number from 1, got 0"),
        ({"pixel_keys": 2.5}, "pixel_keys must be a whole number from 1, got 2.5"),
        ({"seed": -1}, "seed must be a whole number from 0, got -1"),
        ({"region_weight": -0.1}, "weight of cirkd_region is -0.1; it must be 0 or more"),
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_loss("cirkd", STUDENT, TEACHER, **options)


def test_networks_with_other_classes_are_refused_unless_kd_is_left_out():
    other = NetworkSpec({**TEACHER.channels, "logits": 7}, num_labels=7)
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 7"):
        create_loss("cirkd", STUDENT, other)
    create_loss("cirkd", STUDENT, other, kd_weight=0.0)


# --- several processes ---


def test_one_process_gathers_nothing(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "all_gather", None)
    loss, *batch = loss_and_batch()
    assert all(loss(*batch).values())


def shares():
    """Three steps of two processes: other numbers of images, ever more classes, one share without labelled pixels."""
    for step, images in enumerate(((1, 2), (2, 2), (2, 1))):
        parts = []
        for rank, number in enumerate(images):
            student, teacher = randn(10 * step + rank, (number, 8, 3, 5), (number, 16, 3, 5))
            classes = torch.rand(number, 3, 5, generator=torch.Generator().manual_seed(10 * step + rank)) * (step + 2)
            labels = classes.long() + rank
            labels[:, 0] = 255
            if (step, rank) == (1, 0):
                labels[:] = 255
            parts.append((student, teacher, labels))
        yield parts


def one_run(batches, wrap=lambda loss: loss):
    torch.manual_seed(0)
    options = {"kd_weight": 0.0, "pixel_queue": 200, "region_queue": 20, "pixel_keys": 200, "region_keys": 20}
    loss = create_loss("cirkd", STUDENT, TEACHER, **options)
    wrapped = wrap(loss)
    for student, teacher, labels in batches:
        terms = wrapped({"decoder": student}, {"decoder": teacher}, labels)
        sum(terms.values()).backward()
    return loss, terms


def distributed(loss):
    """As the trainer has it: the memory is not sent from process 0 to the others."""
    loss._ddp_params_and_buffers_to_ignore = [f"memory.{name}" for name, _ in loss.memory.named_buffers()]
    return torch.nn.parallel.DistributedDataParallel(loss)


def job(rank, folder):
    dist.init_process_group("gloo")
    loss, terms = one_run([parts[rank] for parts in shares()], distributed)
    torch.save((loss.memory.state_dict(), terms), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_hold_the_same_queues_those_of_one_process_with_all_the_images(tmp_path):
    spawn(2, tmp_path, job)
    (state, terms), (other, other_terms) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    assert {len(s["pixels.vectors"]) for s in (state, other)} == {5}
    together, _ = one_run([tuple(map(torch.cat, zip(*parts, strict=True))) for parts in shares()])
    expected = together.memory.state_dict()
    torch.testing.assert_close(state["regions.vectors"], expected["regions.vectors"])
    for name in ("updates", "pixels.row", "pixels.filled", "pixels.position", "regions.position"):
        assert torch.equal(state[name], expected[name])
    # The pixels of a class of an image come in a random order; there are fewer than 16, so all of them come.
    for y in range(5):
        rows, expected_rows = (sorted(s["pixels.vectors"][s["pixels.row"][y]].tolist()) for s in (state, expected))
        torch.testing.assert_close(torch.tensor(rows), torch.tensor(expected_rows))
    for rank, values in enumerate((terms, other_terms)):
        student, teacher, _ = list(shares())[-1][rank]
        torch.testing.assert_close(values["cirkd_minibatch"], minibatch_divergence(student, teacher))
