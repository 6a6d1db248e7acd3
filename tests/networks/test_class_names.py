from hf_segkd.networks.class_names import CLASS_NAMES, config_values

CONFIG = {
    "model_type": "segkd-pspnet",
    "dtype": "float32",
    "id2label": {"0": "road"},
    "backbone_config": {"model_type": "segkd-resnet", "width": 8, "dtype": "float32", "id2label": {"0": "LABEL_0"}},
    "scaling": {"kind": "linear", "dtype": "kept: this is no configuration"},
}


def test_configurations_within_a_configuration_are_told_by_paths_and_what_is_no_network_is_left_out():
    told = {"model_type": "segkd-pspnet", "backbone_config.width": 8, "scaling": CONFIG["scaling"]}
    assert config_values(CONFIG, without=CLASS_NAMES) == {**told, "backbone_config.model_type": "segkd-resnet"}


def test_class_names_are_part_of_a_network_unless_left_out():
    assert config_values(CONFIG)["id2label"] == {"0": "road"}


def test_what_was_told_by_paths_is_told_so_again():
    assert config_values(config_values(CONFIG)) == config_values(CONFIG)
