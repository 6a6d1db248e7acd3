"""`role_of`: what each training argument means to a resumed run and to a model card."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class OnResume(Enum):
    """What a changed value means to a run that is resumed."""

    MUST_AGREE = "refused: the state that was saved, or the order of the images, is that of the old value"
    FOLLOWED = "followed from there on, with a warning"
    IRRELEVANT = "free: it has no bearing on the student's weights"


class OnCard(Enum):
    """What a model card does with a value."""

    COMPARED = "listed, and named where runs that stand side by side differ in it"
    OF_THE_METHOD = "listed, and named where runs of one method differ in it: a baseline has no use for it"
    LISTED = "listed: not part of what a student learns, or compared by the report"
    PRIVATE = "left out: tells of a machine or an account"


class Role(NamedTuple):
    """Both meanings of one argument."""

    on_resume: OnResume
    on_card: OnCard


# Each field of `DistillationArguments` once, by its exact name.
TABLE: dict[Role, tuple[str, ...]] = {
    # The optimizer takes its rates and decays from its saved state: it would silently ignore new ones.
    Role(OnResume.MUST_AGREE, OnCard.COMPARED): (
        *("dataloader_drop_last", "frozen", "head_lr_multiplier", "learning_rate", "optim", "optim_args", "scale_lr"),
        *("repeat_threshold", "train_sampling_strategy", "weight_decay"),
    ),
    Role(OnResume.MUST_AGREE, OnCard.OF_THE_METHOD): ("connector_lr_multiplier", "teacher_dtype"),
    # Reports compare method and arguments, and pair runs by their seed.
    Role(OnResume.MUST_AGREE, OnCard.LISTED): ("data_seed", "method", "method_kwargs", "seed"),
    Role(OnResume.FOLLOWED, OnCard.COMPARED): (
        *("accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs", "adam_beta1"),
        *("adam_beta2", "adam_epsilon", "auto_find_batch_size", "bf16", "bf16_full_eval", "ce_weight", "channels_last"),
        *("class_weights", "crop_size", "dataloader_in_order", "deepspeed", "flip_probability", "fp16"),
        *("fp16_full_eval", "fsdp"),
        *("fsdp_config", "full_determinism", "gradient_accumulation_steps", "gradient_checkpointing"),
        *("gradient_checkpointing_kwargs", "label_loss", "label_loss_kwargs", "label_smoothing_factor"),
        *("liger_kernel_config", "lr_scheduler_kwargs"),
        *("lr_scheduler_type", "max_class_share", "max_grad_norm", "neftune_noise_alpha", "optim_target_modules"),
        *("parallelism_config", "per_device_train_batch_size", "photometric", "remove_unused_columns", "scale_base"),
        *("scale_range", "sync_batch_norm", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("teacher_views", "use_cpu", "use_liger_kernel", "warmup_ratio", "warmup_steps"),
    ),
    Role(OnResume.FOLLOWED, OnCard.OF_THE_METHOD): (
        "distillation_weight",
        "teacher_batch_norm",
        "teacher_cache_dtype",
    ),
    # Reports compare the steps, the averaging and the unlabelled images.
    Role(OnResume.FOLLOWED, OnCard.LISTED): ("ema_decay", "max_steps", "num_train_epochs", "unlabelled_ratio"),
    # Which checkpoint is scored, which images are seen, what scale_lr scales by: a resumed run compares the result.
    Role(OnResume.IRRELEVANT, OnCard.COMPARED): (
        *("bad_images", "greater_is_better", "ignore_data_skip", "load_best_model_at_end", "metric_for_best_model"),
        "recipe_batch_size",
    ),
    Role(OnResume.IRRELEVANT, OnCard.LISTED): (
        *("allow_weak_teacher", "average_tokens_across_devices", "batch_eval_metrics"),
        *("dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_persistent_workers"),
        *("dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_backend", "ddp_broadcast_buffers"),
        *("ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout", "debug"),
        *("disable_tqdm", "do_eval", "do_predict", "do_train", "enable_jit_checkpoint", "eval_accumulation_steps"),
        *(
            "eval_delay",
            "eval_do_concat_batches",
            "eval_on_start",
            "eval_overlap",
            "eval_steps",
            "eval_strategy",
            "eval_tile",
        ),
        *("eval_use_gather_object", "include_for_metrics", "include_num_input_tokens_seen", "label_names"),
        *("length_column_name", "local_rank", "log_level", "log_level_replica", "log_on_each_node"),
        *("log_pictures", "logging_first_step", "logging_nan_inf_filter", "logging_steps", "logging_strategy"),
        "max_logged_classes",
        *("per_device_eval_batch_size", "prediction_loss_only", "preflight_images", "report_to"),
        *("restore_callback_states_from_checkpoint", "save_on_each_node", "save_only_model", "save_steps"),
        "data_cache_limit",
        *("save_strategy", "save_total_limit", "skip_memory_metrics", "teacher_cache_limit", "torch_empty_cache_steps"),
        "use_cache",
    ),
    Role(OnResume.IRRELEVANT, OnCard.PRIVATE): (
        *("hub_always_push", "hub_license", "hub_model_id", "hub_private_repo", "hub_revision", "hub_self_contained"),
        *("hub_strategy", "hub_token", "logging_dir", "output_dir", "project", "push_to_hub"),
        *("resume_from_checkpoint", "run_name", "teacher_cache", "trackio_bucket_id", "trackio_space_id"),
        "data_cache",
        "trackio_static_space_id",
    ),
}
ROLES: dict[str, Role] = {name: role for role, names in TABLE.items() for name in names}


def role_of(name: str) -> Role:
    """The role of a training argument; the cautious one for names not in the table, as of a later transformers."""
    return ROLES.get(name, Role(OnResume.FOLLOWED, OnCard.COMPARED))
