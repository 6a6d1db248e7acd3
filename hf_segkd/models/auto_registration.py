"""Makes the Auto classes of transformers know the networks here. Calling a function again changes nothing.

Everything is imported inside the functions: each may run while transformers itself is still being imported, when only
what that function needs can be imported.
"""


def register_configs() -> None:
    """Registers the configurations with `AutoConfig`."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from .configuration_backbones import SegKDHRNetBackboneConfig, SegKDMobileNetV2Config, SegKDResNetConfig
    from .configuration_deeplabv3plus import DeepLabV3PlusConfig
    from .configuration_hrnet import HRNetConfig
    from .configuration_isanet import ISANetConfig
    from .configuration_pspnet import PSPNetConfig

    for config_class in (
        SegKDResNetConfig,
        SegKDMobileNetV2Config,
        SegKDHRNetBackboneConfig,
        DeepLabV3PlusConfig,
        HRNetConfig,
        PSPNetConfig,
        ISANetConfig,
    ):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def register_models() -> None:
    """Registers the networks with `AutoBackbone` and `AutoModelForSemanticSegmentation`."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        AutoBackbone,
        AutoModelForSemanticSegmentation,
    )

    from .configuration_backbones import SegKDHRNetBackboneConfig, SegKDMobileNetV2Config, SegKDResNetConfig
    from .configuration_deeplabv3plus import DeepLabV3PlusConfig
    from .configuration_hrnet import HRNetConfig
    from .configuration_isanet import ISANetConfig
    from .configuration_pspnet import PSPNetConfig
    from .modeling_deeplabv3plus import DeepLabV3PlusForSemanticSegmentation
    from .modeling_hrnet import HRNetForSemanticSegmentation, SegKDHRNetBackbone
    from .modeling_isanet import ISANetForSemanticSegmentation
    from .modeling_mobilenet_v2 import SegKDMobileNetV2Backbone
    from .modeling_pspnet import PSPNetForSemanticSegmentation
    from .modeling_resnet import SegKDResNetBackbone

    AutoBackbone.register(SegKDResNetConfig, SegKDResNetBackbone, exist_ok=True)
    AutoBackbone.register(SegKDMobileNetV2Config, SegKDMobileNetV2Backbone, exist_ok=True)
    AutoBackbone.register(SegKDHRNetBackboneConfig, SegKDHRNetBackbone, exist_ok=True)
    for config_class, model_class in (
        (DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation),
        (HRNetConfig, HRNetForSemanticSegmentation),
        (PSPNetConfig, PSPNetForSemanticSegmentation),
        (ISANetConfig, ISANetForSemanticSegmentation),
    ):
        AutoModelForSemanticSegmentation.register(config_class, model_class, exist_ok=True)
        # pipeline("image-segmentation") looks a model up by name here, and logs an error when it is missing.
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config_class.model_type] = model_class.__name__


def register_image_processors() -> None:
    """Registers transformers' own `SegformerImageProcessor` with `AutoImageProcessor`, and `MultiBandImageProcessor`.

    The first fits these networks as it is: resize, normalise, and masks from `logits`. The second is found by its name.
    """
    from transformers import SegformerImageProcessor, SegformerImageProcessorPil
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .configuration_backbones import SegKDBackboneConfig
    from .configuration_deeplabv3plus import DeepLabV3PlusConfig
    from .configuration_hrnet import HRNetConfig
    from .configuration_isanet import ISANetConfig
    from .configuration_pspnet import PSPNetConfig
    from .image_processing_multiband import MultiBandImageProcessor

    for config_class in (DeepLabV3PlusConfig, HRNetConfig, PSPNetConfig, ISANetConfig):
        AutoImageProcessor.register(
            config_class,
            image_processor_classes={"torchvision": SegformerImageProcessor, "pil": SegformerImageProcessorPil},
            exist_ok=True,
        )
    # By its name in preprocessor_config.json a class is found among those registered for any configuration: one that
    # no network has does not change the choice for networks without such a name.
    AutoImageProcessor.register(
        SegKDBackboneConfig,
        image_processor_classes={"torchvision": MultiBandImageProcessor, "pil": MultiBandImageProcessor},
        exist_ok=True,
    )
