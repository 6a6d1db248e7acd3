import pytest
import torch
from loss_cases import STUDENT, TEACHER, draw, make_features, make_labels, reference
from several_processes import spawn
from torch import distributed as dist
from torch.nn import functional as F

from hf_segkd.losses import cirkd, create_loss
from hf_segkd.losses.cirkd_memory import CIRKDMemory
from hf_segkd.losses.cirkd_minibatch import minibatch_divergence
from hf_segkd.types import NetworkSpec


def with_memory(loss, pixel_queue, region_queue, pixel_keys, region_keys):
    """In place: queues of these lengths, from which so many keys are drawn."""
    channels = loss.memory.pixels.vectors.shape[2]
    loss.memory = CIRKDMemory(loss.memory.num_classes, channels, pixel_queue, region_queue)
    loss.keys = pixel_keys, region_keys
    return loss


@pytest.mark.parametrize("channels", [16, 256])
def test_a_pixel_of_zeros_gets_no_gradient_and_leaves_that_of_the_others_as_it_is(channels):
    student, teacher = (tensor.relu() for tensor in draw(9, (2, channels, 6, 8), (2, channels, 6, 8)))
    specs = [NetworkSpec({"decoder": channels}, 5)] * 2
    torch.manual_seed(0)
    loss = with_memory(create_loss("cirkd", *specs, kd_weight=0.0), 60, 10, 820, 205)
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


def memory_case():
    """The authors' code on CPU, torch seed 18: all vectors of both queues are keys, so nothing random is left."""
    generator = torch.Generator().manual_seed(18)
    student, teacher = (torch.randn(2, channels, 4, 6, generator=generator) for channels in (8, 16))
    labels = torch.randint(0, 4, (2, 32, 48), generator=generator)
    labels[:, :8] = -1
    shapes = (16, 8, 1, 1), (16, 16, 1, 1), (5, 40, 16), (5, 12, 16)
    first, second, pixels, regions = (torch.randn(shape, generator=generator) for shape in shapes)
    specs = [NetworkSpec({"decoder": side.shape[1]}, 5, ignore_index=-1) for side in (student, teacher)]
    weights = {"weight": 0.0, "kd_weight": 0.0, "pixel_weight": 1.0, "region_weight": 1.0}
    loss = with_memory(create_loss("cirkd", *specs, **weights), 40, 12, 40, 12)
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


def test_memory_terms_after_the_batch_has_entered_the_queues():
    loss, *arguments = memory_case()
    terms = loss(*arguments)
    assert terms["cirkd_pixel"].item() == pytest.approx(6.988716, rel=2e-6)  # with the authors' index mended
    assert terms["cirkd_region"].item() == pytest.approx(4.543310, rel=2e-6)


def test_the_reference_file_agrees():
    cases = {case["id"]: case for case in reference("methods.json")["cases"]}
    student, teacher = draw(17, (2, 16, 12, 20), (2, 32, 12, 20))
    expected = cases["minibatch_v1_poolFalse"]["outputs"]["loss"]
    assert minibatch_divergence(student, teacher).item() == pytest.approx(expected, rel=2e-5)
    loss, *arguments = memory_case()
    loss.training = False
    expected = cases["memory_loss_only_no_enqueue"]["outputs"]
    assert [value.item() for value in loss(*arguments).values()] == pytest.approx(list(expected.values()), rel=2e-5)


def loss_and_batch(**kwargs):
    torch.manual_seed(0)
    loss = with_memory(create_loss("cirkd", STUDENT, TEACHER, **kwargs), 60, 10, 20, 4)
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
        f"cirkd keeps {length} {kind} of each class instead of the published {full}, so that the queues of 150 classes "
        "of 512 channels fit into 1024 MiB."
        for kind, length, full in (("pixels", 3177, 20000), ("class means", 317, 2000))
    ]
    assert messages == ([] if published else expected)


def test_defaults_are_those_of_the_authors_code():
    loss = create_loss("cirkd", STUDENT, TEACHER)
    assert loss.weights == {"cirkd_kd": 1.0, "cirkd_minibatch": 1.0, "cirkd_pixel": 0.1, "cirkd_region": 0.1}
    assert loss.keys == (4096 // 5 + 1, 1024 // 5 + 1)
    assert loss.temperature == 0.1
    assert loss.memory.pixels_per_image == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.01}, "temperature is 0.01; it must be at least 0.023"),
        ({"temperature": "0.1"}, "temperature is '0.1'; it must be positive"),
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
            student, teacher = draw(10 * step + rank, (number, 8, 3, 5), (number, 16, 3, 5))
            classes = torch.rand(number, 3, 5, generator=torch.Generator().manual_seed(10 * step + rank)) * (step + 2)
            labels = classes.long() + rank
            labels[:, 0] = 255
            if (step, rank) == (1, 0):
                labels[:] = 255
            parts.append((student, teacher, labels))
        yield parts


def one_run(batches, wrap=lambda loss: loss):
    torch.manual_seed(0)
    loss = with_memory(create_loss("cirkd", STUDENT, TEACHER, kd_weight=0.0), 200, 20, 200, 20)
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
