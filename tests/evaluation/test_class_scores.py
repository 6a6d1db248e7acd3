import torch
from transformers import EvalPrediction

from hf_segkd.evaluation.class_scores import class_keys
from hf_segkd.evaluation.streaming_scores import StreamingScores


def test_names_of_classes_become_keys_that_differ():
    names = ["road", "traffic light", "traffic-light", "windowpane, window", "été", "?", "", "road_1", "Road"]
    assert class_keys(dict(enumerate(names))) == [
        *("iou_road", "iou_traffic_light_1", "iou_traffic_light_2", "iou_windowpane_window", "iou_été"),
        *("iou_5", "iou_6", "iou_road_1", "iou_Road"),
    ]


def test_names_that_get_the_id_of_another_differ_too():
    keys = class_keys({0: "a b", 1: "a-b", 2: "a_b_0"})
    assert len(set(keys)) == 3


def scores_of(matrix, keys):
    scores = StreamingScores(len(matrix), keys)
    rows = torch.tensor(matrix).reshape(1, -1)
    return scores(EvalPrediction(predictions=rows, label_ids=torch.zeros(1)))


def test_the_iou_of_the_classes_that_are_asked_for():
    found = scores_of([[3, 1, 0], [2, 4, 0], [0, 0, 0]], {0: "iou_road", 1: "iou_car", 2: "iou_ship"})
    assert found == {
        "mean_iou": (3 / 6 + 4 / 7) / 2,
        "mean_accuracy": (3 / 4 + 4 / 6) / 2,
        "overall_accuracy": 7 / 10,
        "iou_road": 3 / 6,
        "iou_car": 4 / 7,  # and nothing of the ship, which neither truth nor prediction has
    }


def test_without_a_labelled_pixel_there_are_no_scores():
    assert scores_of([[0, 0], [0, 0]], {0: "iou_road"}) == {}
